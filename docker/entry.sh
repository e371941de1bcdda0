#!/usr/bin/env bash
# A deployment of the graph with its arguments (`server link:=...`), or any other command in the project's environment.
set -euo pipefail
cd "$(dirname "$0")/.."
# The image's own ROS lies beside: what runs is what is tested, the packages in .venv.
unset PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH
# shellcheck disable=SC1091
source scripts/env.sh
case "${1:-}" in
server | edge | full_stack | replay) exec python -m nav_bringup.runner "$@" ;;
*) exec "$@" ;;
esac
