"""Everything on one machine: simulator (or a running AirSim), bridge, perception, agent.

ros2 launch nav_agent full_stack.launch.py --show-args
"""

from launch import LaunchDescription

from nav_bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("full_stack")
