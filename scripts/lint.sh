#!/usr/bin/env bash
# Format, lint, size and types of everything that is committed.
set -uo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
source scripts/env.sh
status=0
ruff format --check --output-format concise . || status=1
ruff check --output-format concise . || status=1
long=$(find ros2_ws/src benchmarks examples scripts -name '*.py' -exec awk -v most=750 \
    'FNR == most + 1 { print FILENAME ": more than " most " lines: split it by what it does" }' {} +)
[ -z "$long" ] || { echo "$long"; status=1; }
lint-imports --no-logo || status=1
# Tests and programs: what they call is checked, how they are written is not.
as_tests=(
    --no-error-summary --config-file ../pyproject.toml --cache-dir ../.mypy_cache/tests
    --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls --allow-any-generics --no-strict-equality
    --no-warn-return-any --no-warn-unused-ignores --disable-error-code func-returns-value
    --disable-error-code var-annotated
)
# One run a package: each has modules called `test_...` and `node` of its own.
for package in ros2_ws/src/*/; do
    name=$(basename "$package")
    [ -f "$package/$name/__init__.py" ] || continue
    echo "mypy $name"
    # From the workspace: at the top, the folder launch/ would pass for ROS's package of that name.
    (cd ros2_ws && mypy --no-error-summary --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p "$name") || status=1
    [ -d "$package/test" ] && (cd ros2_ws &&
        MYPYPATH="src/$name/test/engine:src/$name/test" mypy "${as_tests[@]}" \
            $(find "src/$name/test" -name '*.py' ! -name conftest.py)) || status=1
done
echo "mypy benchmarks, scripts, examples"
(cd ros2_ws && mypy "${as_tests[@]}" ../benchmarks/*.py ../scripts/*.py ../examples/*.py) || status=1
exit $status
