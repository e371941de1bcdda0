"""Turns a deployment of the graph into a launch description; the launch files are nothing but calls of this.

The only module that needs `launch` and `launch_ros`, which come with a ROS install and are not published as wheels.
"""

from __future__ import annotations

import sys

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node

from nav_bringup.graph import ENVIRONMENT, Process, deployment

RESPAWN_DELAY_S = 1.0  # launch has no back-off: one wait for all deaths (chosen)


def launch_description(name: str) -> LaunchDescription:
    """The launch description of the deployment called `name`, with its arguments declared and described."""
    graph = deployment(name)

    def start(context: LaunchContext) -> list[Action]:
        given = {a.name: context.launch_configurations[a.name] for a in graph.arguments}
        return [_action(process) for process in graph.processes(given)]

    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    argument.name, default_value=argument.default, description=argument.description
                )
                for argument in graph.arguments
            ),
            *(SetEnvironmentVariable(variable, value) for variable, value in ENVIRONMENT.items()),
            OpaqueFunction(function=start),
        ]
    )


def _action(process: Process) -> Action:
    prefix = f"nice -n {process.nice}" if process.nice else None
    common = {
        "name": process.name,
        "output": "screen",
        "respawn": process.respawn,
        "respawn_delay": RESPAWN_DELAY_S,
        "prefix": prefix,
    }
    if not process.executable:
        return ExecuteProcess(cmd=[sys.executable, "-m", process.package, *process.arguments], **common)
    files = [str(process.parameters_file)] if process.parameters_file else []
    return Node(
        package=process.package,
        executable=process.executable,
        parameters=[*files, dict(process.parameters)],
        remappings=list(process.remappings),
        arguments=list(process.arguments),
        **common,
    )
