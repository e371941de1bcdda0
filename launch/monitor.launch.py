"""rqt's windows on a running graph: camera, plots, diagnostics.

ros2 launch nav_agent monitor.launch.py --show-args
"""

from launch import LaunchDescription

from nav_bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("monitor")
