"""The machine with the drone: bridge, and the embedded simulator unless AirSim runs.

ros2 launch nav_agent edge.launch.py --show-args
"""

from launch import LaunchDescription

from nav_bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("edge")
