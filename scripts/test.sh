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
mkdir -p build
rm -f build/*/pytest.xml # of packages that are gone

# Packages whose tests judge real time, one after the other: two graphs at once would judge each other's load.
real_time=(airsim_bridge nav_agent nav_bringup nav_common nav_server vlm_perception zenoh_link)

test_packages() { # arguments of colcon that choose them
    # A run started by nohup or in the background ignores HUP or INT, and its children would: tests send both.
    # The profile "ci" of Hypothesis: no deadlines, the same examples each time.
    env --default-signal=HUP,INT colcon --log-level error test "$@" \
        --executor sequential --return-code-on-test-failure --python-testing pytest \
        --event-handlers console_direct+ console_start_end- desktop_notification- \
        --pytest-args -q -rsx --timeout 300 --hypothesis-profile=ci
}

# Lint and the others, which only compute, meanwhile on what is left of the processors.
echo "in the background: lint, then all packages but ${real_time[*]}"
(
    renice -n 19 "$BASHPID" >/dev/null
    ../scripts/lint.sh
    linted=$?
    test_packages --packages-skip "${real_time[@]}" && exit $linted
) >build/computing.log 2>&1 &
test_packages --packages-select "${real_time[@]}" || status=1
wait $! || status=1
cat build/computing.log
colcon test-result
cd ..
python scripts/count_tests.py ros2_ws/build || status=1
exit $status
