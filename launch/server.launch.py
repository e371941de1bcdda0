"""The machine with the model: perception and agent.

ros2 launch nav_agent server.launch.py --show-args
"""

from launch import LaunchDescription

from nav_bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("server")
