"""A recording played into perception and an agent that flies nothing.

ros2 launch nav_agent replay.launch.py --show-args
"""

from launch import LaunchDescription

from nav_bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("replay")
