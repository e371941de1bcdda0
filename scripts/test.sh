#!/usr/bin/env bash
# Every check and every test. The last line counts the tests; the exit status is 0 only when all is well.
set -uo pipefail
cd "$(dirname "$0")/.."
# With a ROS 2 install sourced its packages would hide those of .venv, which are what is tested.
# The ROS wheels set LD_LIBRARY_PATH once for a program and its children, and leave a mark that they did.
[ ! -d .venv ] || unset PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH \
    _ROS_WHEELS_BOOTSTRAP_COMPLETE
# shellcheck disable=SC1091
source scripts/env.sh
unset QWEN_MODEL_PATH # the tests fly with the shipped pilot
status=0

cd ros2_ws
mkdir -p build/computing
rm -f build/*/pytest.xml build/computing/*/pytest.xml # of packages that are gone

# Packages whose tests judge real time, one after the other: two graphs at once would judge each other's load.
real_time=(airsim_bridge nav_agent nav_bringup nav_common nav_server vlm_perception zenoh_link)
# Their tests that only compute.
declare -A computing=(
    [vlm_perception]="test/engine"
    [nav_bringup]="test/test_accept.py test/test_documentation.py"
)

test_packages() { # pytest's arguments in one word, then colcon's that choose the packages
    local chosen=$1
    shift
    # A run started by nohup or in the background ignores HUP or INT, and its children would: tests send both.
    # The profile "ci" of Hypothesis: no deadlines, the same examples each time.
    # shellcheck disable=SC2086
    env --default-signal=HUP,INT colcon --log-level error test "$@" \
        --executor sequential --return-code-on-test-failure --python-testing pytest \
        --event-handlers console_direct+ console_start_end- desktop_notification- \
        --pytest-args $chosen -q -rsx --timeout 300 --hypothesis-profile=ci
}

# Lint and what only computes meanwhile, on what is left of the processors.
echo "in the background: lint, then all packages but ${real_time[*]}, then ${computing[*]} of these"
trap 'exit 130' INT
set -m # a process group of its own, which ends with this script
(
    renice -n 19 "$BASHPID" >/dev/null
    failed=0
    ../scripts/lint.sh || failed=1
    test_packages "" --packages-skip "${real_time[@]}" || failed=1
    for package in "${!computing[@]}"; do
        test_packages "${computing[$package]}" --packages-select "$package" --test-result-base build/computing || failed=1
    done
    exit $failed
) >build/computing.log 2>&1 &
set +m
trap 'kill -- "-$!" 2>/dev/null' EXIT
# (colcon would take --ignore for an option of its own.)
# shellcheck disable=SC2086,SC2048
test_packages "$(printf -- '--ignore-glob=%s ' ${computing[*]})" --packages-select "${real_time[@]}" || status=1
wait $! || status=1
cat build/computing.log
colcon test-result
cd ..
python scripts/count_tests.py ros2_ws/build || status=1
exit $status
