"""What is checked before anything starts, so that a wrong start is one line that names the remedy."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from nav_bringup.graph import NODES, ArgumentError, Listening, Process

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
        for address in process.listens_on:
            check_free(address)


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


def check_free(wanted: Listening) -> None:
    """Whether a process can listen there.

    Raises:
        ArgumentError: another one does, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            wanted.host, wanted.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        remedy = wanted.remedy
        if error.errno != errno.EADDRINUSE:
            remedy = f"for {wanted.host} port {wanted.port} give an address of this machine and a port that you may use"
        raise ArgumentError(
            f"{wanted.argument}, which cannot be used ({error.strerror}): {remedy}"
        ) from error


def check_parameters_file(path: Path) -> None:
    """Whether ROS can read the parameter file and every section of it belongs to a node of the graph.

    The names and ranges of the parameters are the nodes' own to check, at their start.

    Raises:
        ArgumentError: it cannot; the message names file, node, parameter and remedy.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
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
        if not _is_of_a_node(str(node)):
            raise ArgumentError(
                f"parameter file {path}: there is no node {str(node)!r}; the nodes are {', '.join(NODES)}; /** is all"
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


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML keeps the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given = set()
        for key, _ in node.value:
            if str(key.value) in given:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            given.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _is_of_a_node(section: str) -> bool:
    """Whether ROS gives the parameters of `section` to a node. It takes * and ** for whole names only, and the nodes
    have no namespace."""
    *namespaces, name = section.removeprefix("/").split("/")
    return name in (*NODES, "*", "**") and all(namespace == "**" for namespace in namespaces)


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
