# The project's environment for bash: `source scripts/env.sh` (the virtual environment, then the built workspace).
# In an ordinary ROS 2 install without `.venv` it adds only the workspace to what is sourced already.
_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [ -d "$_root/.venv" ]; then
    # shellcheck disable=SC1091
    source "$_root/.venv/bin/activate"
    # The ROS wheels put their share/ and lib/ into the environment's root, so that is the underlay.
    case ":${AMENT_PREFIX_PATH:-}:" in
    *":$_root/.venv:"*) ;;
    *)
        export AMENT_PREFIX_PATH="$_root/.venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
        export CMAKE_PREFIX_PATH="$_root/.venv${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
        ;;
    esac
fi
if [ -f "$_root/ros2_ws/install/local_setup.bash" ]; then
    case $- in *u*) _nounset=1 ;; *) _nounset= ;; esac
    set +u # colcon's script reads variables that may not exist
    # shellcheck disable=SC1091
    source "$_root/ros2_ws/install/local_setup.bash"
    [ -z "$_nounset" ] || set -u
    unset _nounset
fi

# One machine is the default; whoever wants DDS across a network says so before sourcing.
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
# Without it an int in a float field can abort a process at publish (rclpy, Jazzy).
export ROS_PYTHON_CHECK_FIELDS=1
# Thread pools: one thread each. Two cores carry simulator, bridge, perception and agent.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TOKENIZERS_PARALLELISM=false
export PYTHONUNBUFFERED=1
unset _root
