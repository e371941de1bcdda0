"""A recording of a graph that runs, with ROS's own recorder: every topic of the profile, its quality of service given.

ros2 launch nav_agent record.launch.py output:=flight
"""

from launch import LaunchDescription

from nav_bringup.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("record")
