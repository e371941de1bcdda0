"""Turns a deployment of the graph into a launch description; the launch files are nothing but calls of this.

The only module that needs `launch` and `launch_ros`, which come with a ROS install and are not published as wheels.
"""

from __future__ import annotations

import shutil

from launch import Action, LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch_ros.actions import Node

from nav_bringup import preflight
from nav_bringup.graph import ENVIRONMENT, Process, deployment
from nav_bringup.runner import parameter_arguments
from nav_bringup.supervisor import STOP_TIMEOUTS_S
from nav_common.process import CONFIGURATION_ERROR

RESPAWN_DELAY_S = 1.0  # launch has no back-off: one delay for all deaths (chosen)


class ConfigurationRefused(RuntimeError):
    """A node refused its configuration: launch prints this line, ends the others and returns 1."""


def launch_description(name: str) -> LaunchDescription:
    """The launch description of the deployment called `name`, with its arguments declared and described.

    An argument that cannot be raises graph.ArgumentError before anything starts; launch prints its line.
    """
    graph = deployment(name)

    def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        given = {a.name: context.launch_configurations[a.name] for a in graph.arguments}
        processes = graph.processes(given)
        preflight.check(processes)
        return [_action(process) for process in processes]

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
    """Ends everything when a node refuses its configuration: it would refuse it again at each respawn."""
    return RegisterEventHandler(OnProcessExit(on_exit=_stop_if_refused))


def _stop_if_refused(event: ProcessExited, context: LaunchContext) -> None:
    if event.returncode == CONFIGURATION_ERROR and not context.is_shutdown:
        raise ConfigurationRefused(
            f"{event.process_name} refuses its configuration (see its last line above)"
        )


def _action(process: Process) -> Action:
    common = {
        "output": "screen",
        "respawn": process.respawn,
        "respawn_delay": RESPAWN_DELAY_S,
        "prefix": " ".join(_prefix(process)),
        "additional_env": dict(process.environment),
        # From Ctrl-C to SIGTERM, and from that to SIGKILL.
        "sigterm_timeout": str(max(STOP_TIMEOUTS_S.values())),
        "sigkill_timeout": str(max(STOP_TIMEOUTS_S.values())),
    }
    if not process.is_node:
        return ExecuteProcess(
            cmd=[str(preflight.executable(process)), *process.arguments], name=process.name, **common
        )
    return Node(
        package=process.package,
        executable=process.executable,
        name=process.name,
        exec_name=process.name,
        parameters=[str(process.parameters_file)] if process.parameters_file else [],
        # On the command line: launch_ros would write a dictionary into a temporary file and leave it there.
        ros_arguments=parameter_arguments(process),
        remappings=list(process.remappings),
        arguments=list(process.arguments),
        **common,
    )


def _prefix(process: Process) -> list[str]:
    """The kernel ends a process when launch dies, whatever ends it (launch itself leaves orphans on SIGTERM)."""
    end_with_parent = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return end_with_parent + (["nice", "-n", str(process.nice)] if process.nice else [])
