#!/usr/bin/env bash
# Makes everything that the project needs to fly: Debian packages, `.venv`, the built workspace. Safe to repeat: what is done is skipped.
#   scripts/setup.sh          all of it (`make setup`)
#   scripts/setup.sh --build  only the colcon build, whether or not its inputs changed (`make build`)
# PYTHON=python3.12 chooses the interpreter for a new `.venv`.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
stamps=$root/.venv/.streampilot

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Runs a long command into a log, with one line of progress (a time that counts on a terminal); shows the log's end when it fails.
quietly() {
    local what=$1 log=$2 started=$SECONDS pid
    shift 2
    mkdir -p "$(dirname "$log")"
    say "$what ... (log: ${log#"$root"/})"
    "$@" >"$log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        [ -t 1 ] && printf '\rsetup: %4d s  %-90.90s' $((SECONDS - started)) "$(tail -n 1 "$log" | tr -d '\r')"
        sleep 0.5
    done
    [ -t 1 ] && printf '\r%110s\r' ''
    if ! wait "$pid"; then
        tail -n 40 "$log" >&2
        die "$what failed; the whole log is $log"
    fi
    say "$what: done in $((SECONDS - started)) s"
}

# ---- Debian packages: compiler for the interface package, Mesa's EGL for the simulator's pictures
debian_packages() {
    local missing=()
    command -v cmake >/dev/null || missing+=(cmake)
    command -v g++ >/dev/null || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    if command -v dpkg-query >/dev/null; then
        for package in libegl1 libopengl0 libgl1-mesa-dri; do
            dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
        done
    fi
    # Where the distribution's Python is too old (Ubuntu 22.04: 3.10) its packages would not help; see virtual_environment.
    if [ ! -x .venv/bin/python ] && ! find_python >/dev/null && ! too_old /usr/bin/python3; then
        missing+=(python3 python3-venv python3-dev)
    fi
    [ ${#missing[@]} -eq 0 ] && return
    local line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        die "these are missing, and there is no apt-get here to install them: ${missing[*]}"
    elif [ "$(id -u)" = 0 ]; then
        quietly "Debian packages ${missing[*]}" "$root/.setup-apt.log" env DEBIAN_FRONTEND=noninteractive bash -c "$line"
        rm -f "$root/.setup-apt.log"
    else
        die "Debian packages are missing and this user may not install them. Run:  sudo bash -c '$line'  and then make setup again."
    fi
}

too_old() {
    [ -x "$1" ] && "$1" -c 'import sys; sys.exit(sys.version_info[:2] >= (3, 11))'
}

# A Python that is wanted: 3.11 to 3.13, able to make an environment, with the headers that the interface package is compiled against.
find_python() {
    local candidate
    # uv keeps Pythons of its own, with headers; conda's is python3 once its environment is active.
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 /usr/bin/python3 $(uv python find --managed-python '>=3.11,<3.14' 2>/dev/null)}; do
        if "$candidate" - 2>/dev/null <<'PY'; then
import os, sys, sysconfig
import ensurepip, venv
sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13) and os.path.exists(sysconfig.get_path("include") + "/Python.h")))
PY
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# ---- .venv: pinned packages, then the relocations that the ROS wheels need
virtual_environment() {
    local key python
    key=$(cat requirements.txt requirements.lock scripts/relocate.py | sha256sum | cut -c1-16)
    if [ -x .venv/bin/python ] && [ "$(cat "$stamps/environment" 2>/dev/null)" = "$key" ]; then
        return
    fi
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python) || die "no Python 3.11 to 3.13 with venv and headers found (tried: ${PYTHON:-python3 python3.12 python3.11 python3.13, and those of uv}).
  Debian 12 and later, Ubuntu 24.04 and later: apt-get install python3 python3-venv python3-dev
  Ubuntu 22.04 (its Python is 3.10), one of:   conda create -y -n streampilot python=3.12 && conda activate streampilot
                                               curl -LsSf https://astral.sh/uv/install.sh | sh && uv python install 3.12
  or name one: PYTHON=/path/to/python3.12 make setup"
        say "making .venv with $("$python" --version 2>&1)"
        "$python" -m venv .venv
    fi
    mkdir -p "$stamps"
    # By its own index first, where the driver asks for one: the requirements are content with what is there.
    local index
    index=$(.venv/bin/python scripts/torch_build.py) || die "no torch was installed (see above)"
    [ -z "$index" ] || quietly "torch for this machine's driver, from $index" "$stamps/pip-torch.log" \
        .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-input \
        --index-url "$index" "$(grep -o '^torch==[^ ]*' requirements.txt)"
    quietly "Python packages into .venv (about 2 GB when new)" "$stamps/pip.log" \
        .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-input \
        -r requirements.txt -c requirements.lock
    .venv/bin/python scripts/relocate.py
    echo "$key" >"$stamps/environment"
}

# ---- .venv-conformance: the real AirSim clients, which cannot live in .venv (numpy < 2), prove the simulator's protocol.
conformance_environment() {
    local requirements=ros2_ws/src/airsim_sim/requirements-conformance.txt key python=
    key=$(sha256sum "$requirements" | cut -c1-16)
    [ "$(cat .venv-conformance/.built 2>/dev/null)" = "$key" ] && return
    for candidate in .venv/bin/python python3.12 python3.11 python3.10; do
        "$candidate" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || continue
        python=$candidate
        break
    done
    if [ -z "$python" ]; then
        say "no Python 3.10 to 3.12 for the real AirSim clients (numpy < 2 has no wheel for newer ones): their tests will be skipped"
        return
    fi
    rm -rf .venv-conformance
    "$python" -m venv .venv-conformance
    # In two steps: airsim's own setup imports what it needs.
    quietly "AirSim's own clients into .venv-conformance" "$stamps/pip-conformance.log" bash -c "
        install='.venv-conformance/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-input'
        \$install -r $requirements && \$install --no-build-isolation --no-deps airsim==1.8.1"
    echo "$key" >.venv-conformance/.built
}

# ---- the workspace. With --symlink-install the packages' Python files are live: only what is generated, copied or listed needs a build.
build_key() {
    {
        cat "$stamps/environment" 2>/dev/null || true
        # Files that came or went: packages install their data by glob.
        find ros2_ws/src launch -name __pycache__ -prune -o -name '.?*' -prune -o -name test -prune -o \
            -type f ! -name '*.pyc' \( ! -name '*.py' -o -name '*.launch.py' \) -print 2>/dev/null | sort
        find ros2_ws/src/nav_msgs_ext -type f -print0 | sort -z | xargs -0 cat
        find ros2_ws/src \( -name package.xml -o -name setup.py -o -name setup.cfg \) -print0 | sort -z | xargs -0 cat
    } | sha256sum | cut -c1-16
}

build() {
    local key
    key=$(build_key)
    if [ "${1:-}" != always ] && [ "$(cat ros2_ws/install/.built 2>/dev/null)" = "$key" ]; then
        return
    fi
    rm -f ros2_ws/install/.built
    quietly "building ros2_ws" "$root/ros2_ws/log/setup-build.log" bash -c '
        source .venv/bin/activate
        # The wheels put their share/ and lib/ into the environment root: that is the underlay, whatever the caller had sourced.
        export AMENT_PREFIX_PATH=$VIRTUAL_ENV CMAKE_PREFIX_PATH=$VIRTUAL_ENV
        unset COLCON_PREFIX_PATH
        cd ros2_ws
        # Links to data files that are gone since the last build end it.
        mkdir -p build install && find build install -xtype l -delete
        colcon --log-level error build --symlink-install --event-handlers console_cohesion+ \
            --cmake-args -DCMAKE_BUILD_TYPE=Release -DPython3_EXECUTABLE="$(command -v python)" --no-warn-unused-cli'
    check_build
    echo "$key" >ros2_ws/install/.built
}

# The generated messages must be found by import and by the loader.
check_build() {
    bash -c '
        source scripts/env.sh
        case ":${LD_LIBRARY_PATH:-}:" in
        *"/ros2_ws/install/nav_msgs_ext/lib:"*) ;;
        *) echo "setup: ros2_ws/install/nav_msgs_ext/lib is not on LD_LIBRARY_PATH after scripts/env.sh" >&2; exit 1 ;;
        esac
        python - <<PY
from nav_msgs_ext.msg import VelocityCommand
from rclpy.serialization import deserialize_message, serialize_message

deserialize_message(serialize_message(VelocityCommand(sequence=7)), VelocityCommand)
PY' || die "the built interfaces cannot be used; try: make clean setup"
}

case "${1:-}" in
--build)
    [ -x .venv/bin/python ] || die "there is no .venv yet: run make setup"
    build always
    ;;
"")
    debian_packages
    virtual_environment
    conformance_environment
    build
    ;;
*) die "unknown argument '$1' (none, or --build)" ;;
esac
