"""Starts a deployment of the graph as supervised processes, for machines that have no `ros2 launch`.

    python -m nav_bringup.runner full_stack scene:=field seed:=3

takes the same arguments as `ros2 launch nav_agent full_stack.launch.py scene:=field seed:=3`. Ctrl-C ends everything in
order, the agent first; a second Ctrl-C ends it at once.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from nav_bringup.graph import DEPLOYMENTS, ENVIRONMENT, ArgumentError, Deployment, Process, deployment
from nav_bringup.supervisor import Command, Supervisor

POLL_S = 0.05


def command(process: Process) -> Command:
    """How `process` is started without launch.

    Raises:
        ArgumentError: its package or executable is not there.
    """
    nice = ["nice", "-n", str(process.nice)] if process.nice else []
    if not process.executable:
        line = [*nice, sys.executable, "-m", process.package, *process.arguments]
    else:
        line = [*nice, str(_executable(process)), *process.arguments, *_ros_arguments(process)]
    return Command(process.name, line, process.respawn, ENVIRONMENT)


def _executable(process: Process) -> Path:
    try:
        prefix = get_package_prefix(process.package)
    except PackageNotFoundError:
        raise ArgumentError(
            f"{process.name} needs the ROS package {process.package}, which is not here. StreamPilot's own: run make "
            "setup, then source scripts/env.sh. rqt's: part of a ROS install (ros-jazzy-rqt-common-plugins)"
        ) from None
    path = Path(prefix) / "lib" / process.package / process.executable
    if not path.is_file():
        raise ArgumentError(
            f"{process.name} needs {path}, which is not there: build the workspace (make build)"
        )
    return path


def _ros_arguments(process: Process) -> list[str]:
    arguments = ["--ros-args", "-r", f"__node:={process.name}"]
    for old, new in process.remappings:
        arguments += ["-r", f"{old}:={new}"]
    if process.parameters_file:
        arguments += ["--params-file", str(process.parameters_file)]
    for name, value in process.parameters.items():
        arguments += ["-p", f"{name}:={_yaml(value)}"]
    return arguments


def _yaml(value: bool | int | float | str) -> str:
    """`value` so that ROS reads the same type back: a string that looks like a number stays a string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def check_port(port: int) -> None:
    """Whether the embedded simulator can have `port` on loopback.

    Raises:
        ArgumentError: something listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ArgumentError(
                f"airsim_port is {port}, which cannot be used ({error.strerror}): another simulator runs, perhaps "
                f"another flight. End it, choose another port (airsim_port:={port + 1}), or fly in that one "
                "(airsim_host:=127.0.0.1)"
            ) from error


def commands(graph: Deployment, arguments: Mapping[str, str]) -> list[Command]:
    """The command lines of `graph`, after the checks that make start-up errors clear.

    Raises:
        ArgumentError: it cannot start like this.
    """
    processes = graph.processes(arguments)
    for process in processes:
        if process.package == "airsim_sim":
            check_port(int(process.arguments[process.arguments.index("--port") + 1]))
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
    latest, fresh = root / "latest", root / f".latest-{folder.name}"
    fresh.symlink_to(folder.name)
    fresh.replace(latest)
    return folder


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
    lines = ["python -m nav_bringup.runner DEPLOYMENT [name:=value ...]", ""]
    for graph in DEPLOYMENTS.values():
        lines.append(f"{graph.name}: {graph.description}")
        lines += [f"    {a.name}:={a.default or '...':14} {a.description}" for a in graph.arguments]
    return "\n".join(lines)


class Interrupts:
    """Counts SIGINT and SIGTERM instead of dying of them."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.count += 1


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    try:
        graph = deployment(words[0])
        lines = commands(graph, parse(words[1:]))
    except ArgumentError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    interrupts = Interrupts()
    folder = run_folder()
    supervisor = Supervisor(lines, folder / "log", lambda line: print(f"runner: {line}", flush=True))
    try:
        supervisor.start()
        print(
            f"runner: started {', '.join(supervisor.running)}; logs in {folder / 'log'}; Ctrl-C ends it",
            flush=True,
        )
        while not interrupts.count and not supervisor.failure:
            time.sleep(POLL_S)
            supervisor.poll()
            if not supervisor.active:
                break
    finally:
        seen = interrupts.count
        supervisor.stop(impatient=lambda: interrupts.count > max(seen, 1))
        print("runner: all ended", flush=True)
    return 1 if supervisor.failure else 0


if __name__ == "__main__":
    sys.exit(main())
