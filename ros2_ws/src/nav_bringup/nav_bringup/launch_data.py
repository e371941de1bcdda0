"""What launch is told of a graph, as plain data that needs no `launch`; `launching` makes its actions of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nav_bringup import preflight
from nav_bringup.graph import Deployment, Process
from nav_bringup.runner import parameter_arguments
from nav_bringup.supervisor import STOP_TIMEOUTS_S
from nav_common.process import CONFIGURATION_ERROR

if TYPE_CHECKING:
    from launch import LaunchContext
    from launch.events.process import ProcessExited

RESPAWN_DELAY_S = 1.0  # launch has no back-off: one delay for all restarts (chosen)


class ConfigurationRefused(RuntimeError):
    """A node refused its configuration: launch prints this line, ends the others and returns 1."""


def actions(graph: Deployment, arguments: Mapping[str, str]) -> list[dict[str, Any]]:
    """The arguments of launch's actions for `graph`: of `Node` where there is a `package`, else of `ExecuteProcess`.

    Raises:
        ArgumentError: it cannot start like this.
    """
    processes = graph.processes(arguments)
    preflight.check(processes)
    return [action(process) for process in processes]


def action(process: Process) -> dict[str, Any]:
    """The arguments of the action that starts `process`."""
    common = {
        "output": "screen",
        "respawn": process.respawn,
        "respawn_delay": RESPAWN_DELAY_S,
        "prefix": " ".join(_prefix(process)),
        "additional_env": dict(process.environment),
        # From Ctrl-C to SIGTERM, and from that to SIGKILL.
        "sigterm_timeout": str(max(STOP_TIMEOUTS_S.values())),
        "sigkill_timeout": str(max(STOP_TIMEOUTS_S.values())),
        "name": process.name,
    }
    if not process.is_node:
        return {"cmd": [str(preflight.executable(process)), *process.arguments], **common}
    return {
        "package": process.package,
        "executable": process.executable,
        "exec_name": process.name,  # the label of its lines; without it launch would take the prefix's words
        "parameters": [str(process.parameters_file)] if process.parameters_file else [],
        # On the command line: launch_ros would write a dictionary into a temporary file and leave it there.
        "ros_arguments": parameter_arguments(process),
        "remappings": list(process.remappings),
        "arguments": list(process.arguments),
        **common,
    }


def stop_if_refused(event: ProcessExited, context: LaunchContext) -> None:
    """Raises ConfigurationRefused: it would refuse its configuration again at each respawn."""
    if event.returncode == CONFIGURATION_ERROR and not context.is_shutdown:
        raise ConfigurationRefused(
            f"{event.process_name} refuses its configuration (see its last line above)"
        )


def _prefix(process: Process) -> list[str]:
    """The kernel ends a process when launch dies, whatever ends it (launch itself leaves orphans on SIGTERM)."""
    end_with_parent = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return end_with_parent + (["nice", "-n", str(process.nice)] if process.nice else [])
