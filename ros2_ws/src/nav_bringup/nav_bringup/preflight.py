"""What is checked before anything starts, so that a wrong start is one line that names the remedy."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from nav_bringup.graph import NODES, ArgumentError, Process

# Debian packages of what the project does not bring itself.
INSTALL = {
    "rqt_gui": "ros-jazzy-rqt-common-plugins ros-jazzy-rqt-robot-monitor ros-jazzy-compressed-image-transport",
    "diagnostic_aggregator": "ros-jazzy-diagnostic-aggregator",
}


def check(processes: Iterable[Process]) -> None:
    """Whether `processes` can start: executables, ports, parameter files.

    Raises:
        ArgumentError: one cannot.
    """
    processes = list(processes)
    missing = sorted({package for p in processes for package in p.needs if not _prefix(package)})
    if missing:
        packages = " ".join(INSTALL[package] for package in missing)
        raise ArgumentError(
            f"{', '.join(missing)} not found: part of a ROS 2 install, not of the wheels. Run: apt install {packages}"
        )
    for path in {p.parameters_file for p in processes if p.parameters_file}:
        check_parameters_file(path)
    for process in processes:
        executable(process)
        if process.listens_on is not None:
            check_port(process.listens_on)


def executable(process: Process) -> Path:
    """The program of `process`.

    Raises:
        ArgumentError: its package or the program is not there.
    """
    prefix = _prefix(process.package)
    if prefix is None:
        raise ArgumentError(
            f"{process.name} needs the ROS package {process.package}, which is not found: run make setup, then source "
            "scripts/env.sh"
        )
    path = prefix / "lib" / process.package / process.executable
    if not path.is_file():
        raise ArgumentError(
            f"{process.name} needs {path}, which does not exist: build the workspace (make build)"
        )
    return path


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
                f"another flight. End it, choose another port (airsim_port {port + 1}), or fly in that one "
                "(airsim_host 127.0.0.1)"
            ) from error


def check_parameters_file(path: Path) -> None:
    """Whether ROS can read the parameter file and every section of it belongs to a node of the graph.

    The names and ranges of the parameters are the nodes' own to check, at their start.

    Raises:
        ArgumentError: it cannot; the message names file, node, parameter and remedy.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"parameter file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ArgumentError(
            f"parameter file {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    form = "NODE: {ros__parameters: {NAME: VALUE}} is wanted"
    if content is None:
        return
    if not isinstance(content, dict):
        raise ArgumentError(f"parameter file {path} holds a {type(content).__name__} at its top; {form}")
    for node, section in content.items():
        if "*" not in str(node) and str(node).removeprefix("/") not in NODES:
            raise ArgumentError(
                f"parameter file {path}: there is no node {str(node)!r}; the nodes are {', '.join(NODES)}"
            )
        if not isinstance(section, dict) or list(section) != ["ros__parameters"]:
            raise ArgumentError(f"parameter file {path}: section {node} is {_shown(section)}; {form}")
        parameters = section["ros__parameters"]
        if not isinstance(parameters, dict):
            raise ArgumentError(
                f"parameter file {path}: parameters of {node} are {_shown(parameters)}; {form}"
            )
        for name, value in parameters.items():
            _check_value(path, f"{node}.{name}", value)


def _check_value(path: Path, name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_value(path, f"{name}.{key}", inner)
    elif value is None or value == []:
        raise ArgumentError(f"parameter file {path}: {name} is empty; give a value or leave the line out")
    elif isinstance(value, list) and len({type(item) for item in value}) > 1:
        raise ArgumentError(
            f"parameter file {path}: {name} is {value}; the items of a list must be of one type"
        )


def _prefix(package: str) -> Path | None:
    try:
        return Path(get_package_prefix(package))
    except PackageNotFoundError:
        return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
