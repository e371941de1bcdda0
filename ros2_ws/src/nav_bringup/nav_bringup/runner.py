"""Starts a deployment of the graph as supervised processes, for machines that have no `ros2 launch`.

    python -m nav_bringup.runner full_stack scene:=field seed:=3

(or `--side edge` and `--side server` on two machines) takes the same arguments as `ros2 launch nav_agent
full_stack.launch.py scene:=field seed:=3`. Ctrl-C (SIGTERM, a closed terminal) ends everything in order, the agent
first; a second one ends it at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nav_bringup import preflight
from nav_bringup.graph import DEPLOYMENTS, ENVIRONMENT, ArgumentError, Deployment, Process, deployment
from nav_bringup.supervisor import ProcessSpec, Supervisor
from nav_bringup.terminal import Terminal
from nav_common.process import CONFIGURATION_ERROR, StopSignals

POLL_S = 0.05


def command(process: Process) -> ProcessSpec:
    """How `process` is started without launch.

    Raises:
        ArgumentError: its package or executable is not there.
    """
    nice = ["nice", "-n", str(process.nice)] if process.nice else []
    arguments = [*process.arguments, *(ros_arguments(process) if process.is_node else ())]
    words = [*nice, str(preflight.executable(process)), *arguments]
    return ProcessSpec(process.name, words, process.respawn, {**ENVIRONMENT, **process.environment})


def ros_arguments(process: Process) -> list[str]:
    """Name, remappings and parameters of a node as its command line takes them."""
    arguments = ["--ros-args", "-r", f"__node:={process.name}"]
    for old, new in process.remappings:
        arguments += ["-r", f"{old}:={new}"]
    if process.parameters_file:
        arguments += ["--params-file", str(process.parameters_file)]
    return arguments + parameter_arguments(process)


def parameter_arguments(process: Process) -> list[str]:
    """The parameters that are set over those of the parameter file, as ROS arguments."""
    return [word for name, value in process.parameters.items() for word in ("-p", f"{name}:={_yaml(value)}")]


def _yaml(value: bool | int | float | str) -> str:
    """`value` so that ROS reads the same type back: a string that looks like a number stays a string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def commands(graph: Deployment, arguments: Mapping[str, str]) -> list[ProcessSpec]:
    """The command lines of `graph`, after the checks that make start-up errors clear.

    Raises:
        ArgumentError: it cannot start like this.
    """
    processes = graph.processes(arguments)
    preflight.check(processes)
    return [command(process) for process in processes]


def run_folder(root: Path = Path("runs")) -> Path:
    """A new folder `root/<time>` for what a run writes; `root/latest` points to it."""
    root.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 100):
        folder = root / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue
    point_latest(folder)
    return folder


def point_latest(folder: Path) -> None:
    """`latest` beside `folder` points to it, from now on."""
    latest, fresh = folder.with_name("latest"), folder.with_name(f".latest-{folder.name}")
    fresh.symlink_to(folder.name)
    fresh.replace(latest)


def parse(words: Sequence[str]) -> dict[str, str]:
    """`name:=value` words as a dictionary.

    Raises:
        ArgumentError: a word is not of that form, or a name comes twice.
    """
    arguments: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or not name:
            raise ArgumentError(f"{word!r} is not an argument: they are written name:=value, as scene:=field")
        if name in arguments:
            raise ArgumentError(f"argument {name} is given twice")
        arguments[name] = value
    return arguments


def usage() -> str:
    """What can be started, with what."""
    lines = [
        "python -m nav_bringup.runner DEPLOYMENT [name:=value ...]",
        "python -m nav_bringup.runner --side edge|server [name:=value ...]",
        "",
    ]
    for graph in DEPLOYMENTS.values():
        lines.append(f"{graph.name}: {graph.description}")
        lines += [f"    {a.name}:={a.default or '...':14} {a.description}" for a in graph.arguments]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: CONFIGURATION_ERROR when arguments are refused, here or by a node at its start."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["--side"]:  # the deployments of one side are called as the sides are
        words = words[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else CONFIGURATION_ERROR
    try:
        graph = deployment(words[0])
        lines = commands(graph, parse(words[1:]))
    except ArgumentError as error:
        print(f"runner: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    folder = run_folder()
    terminal = Terminal()

    def say(line: str) -> None:
        terminal.say(f"runner: {line}")

    stop = StopSignals()
    supervisor = Supervisor(lines, folder / "log", say)
    try:
        supervisor.start()
        say(f"started {', '.join(supervisor.running)}; logs in {folder / 'log'}; Ctrl-C ends it")
        while not stop.wait(POLL_S) and not supervisor.failure:
            supervisor.poll()
            if not supervisor.active:
                break
    finally:
        seen = max(stop.count, 1)
        supervisor.stop(kill_now=lambda: stop.count > seen)
        say("all ended")
    return CONFIGURATION_ERROR if supervisor.failure else 0


if __name__ == "__main__":
    sys.exit(main())
