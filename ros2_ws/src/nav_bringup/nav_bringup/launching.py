"""Turns a deployment of the graph into a launch description; the launch files are nothing but calls of this.

The only module that needs `launch` and `launch_ros`, which come with a ROS install and are not published as wheels.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch_ros.actions import Node

from nav_bringup import launch_data
from nav_bringup.graph import ENVIRONMENT, deployment


def launch_description(name: str) -> LaunchDescription:
    """The launch description of the deployment called `name`, with its arguments declared and described.

    An argument that cannot be raises graph.ArgumentError before anything starts; launch prints its line.
    """
    graph = deployment(name)

    def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        given = {a.name: context.launch_configurations[a.name] for a in graph.arguments}
        return [
            Node(**action) if "package" in action else ExecuteProcess(**action)
            for action in launch_data.actions(graph, given)
        ]

    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    argument.name, default_value=argument.default, description=argument.description
                )
                for argument in graph.arguments
            ),
            *(SetEnvironmentVariable(variable, value) for variable, value in ENVIRONMENT.items()),
            refusal_handler(),
            OpaqueFunction(function=start),
        ]
    )


def refusal_handler() -> RegisterEventHandler:
    """Ends everything when a node refuses its configuration."""
    return RegisterEventHandler(OnProcessExit(on_exit=launch_data.stop_if_refused))
