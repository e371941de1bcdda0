"""The launch files: one for each deployment, installed where `ros2 launch nav_agent ...` looks, and what they start."""

from __future__ import annotations

import ast
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory

from nav_bringup import launch_data, runner
from nav_bringup.graph import DEPLOYMENTS, ArgumentError, deployment
from nav_bringup.supervisor import STOP_TIMEOUTS_S
from nav_common.process import CONFIGURATION_ERROR
from nav_common.testing import free_port

INSTALLED = Path(get_package_share_directory("nav_agent")) / "launch"
NO_LAUNCH = "launch and launch_ros are not published as wheels: checked where a ROS install has them"


def test_each_deployment_has_an_installed_launch_file() -> None:
    assert {path.name for path in INSTALLED.glob("*.launch.py")} == {
        f"{name}.launch.py" for name in DEPLOYMENTS
    }


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_launch_file_asks_for_its_own_deployment(name: str) -> None:
    tree = ast.parse((INSTALLED / f"{name}.launch.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [ast.literal_eval(call.args[0]) for call in calls] == [name]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_launch_declares_every_argument_with_its_default_and_description(name: str) -> None:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH)
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(INSTALLED / f"{name}.launch.py"))
    declared = {argument.name: argument for argument in description.get_launch_arguments()}
    for argument in deployment(name).arguments:
        assert declared[argument.name].description == argument.description
        assert "".join(part.text for part in declared[argument.name].default_value) == argument.default


def actions(name: str, **arguments: str) -> list[Any]:
    """What launch would start, or graph.ArgumentError."""
    pytest.importorskip("launch_ros", reason=NO_LAUNCH)
    from launch import LaunchContext
    from launch.actions import OpaqueFunction

    from nav_bringup.launching import launch_description

    context = LaunchContext()
    defaults = {a.name: a.default for a in deployment(name).arguments}
    context.launch_configurations.update({**defaults, **arguments})
    start = next(e for e in launch_description(name).entities if isinstance(e, OpaqueFunction))
    made = start.execute(context)
    assert made is not None
    return list(made)


def test_launch_starts_the_processes_of_the_graph() -> None:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH)
    from launch.actions import ExecuteProcess

    made = actions("full_stack", airsim_port=str(free_port()))
    assert all(isinstance(action, ExecuteProcess) for action in made)
    assert len(made) == len(deployment("full_stack").processes({}))


def test_launch_refuses_a_port_in_use_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(ArgumentError, match=f"airsim_port is {port}, which cannot be used"):
            launch_data.actions(deployment("edge"), {"airsim_port": port})


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What launch is told of each process of the full stack with a parameter file, by name."""
    file = tmp_path_factory.mktemp("launch") / "mine.yaml"
    file.touch()
    made = launch_data.actions(
        deployment("full_stack"), {"airsim_port": str(free_port()), "params_file": str(file)}
    )
    return {action["name"]: action for action in made}


def test_launch_is_told_of_every_process(started: dict[str, dict[str, Any]]) -> None:
    assert list(started) == [process.name for process in deployment("full_stack").processes({})]


def test_launch_starts_the_simulator_by_its_packages_executable(started: dict[str, dict[str, Any]]) -> None:
    executable = str(Path(get_package_prefix("airsim_sim")) / "lib" / "airsim_sim" / "airsim_sim")
    command = started["airsim_sim"]["cmd"]
    assert (command[0], command[-1]) == (executable, "--end-with-parent")
    (simulator, *_) = deployment("full_stack").processes({})
    assert runner.command(simulator).arguments[0] == executable


def test_launch_gives_the_nodes_as_long_to_end_as_the_runner_does(started: dict[str, dict[str, Any]]) -> None:
    assert STOP_TIMEOUTS_S[signal.SIGINT] >= 10.0, "what perception needs on a busy machine"
    for action in started.values():
        for name in ("sigterm_timeout", "sigkill_timeout"):
            assert float(action[name]) >= STOP_TIMEOUTS_S[signal.SIGINT]


def test_a_nodes_lines_are_labelled_by_its_name_alone(started: dict[str, dict[str, Any]]) -> None:
    assert started["vlm_perception"]["prefix"].endswith("nice -n 5")
    assert {name: a["exec_name"] for name, a in started.items() if "package" in a} == {
        name: name for name in ("airsim_bridge", "vlm_perception", "nav_agent")
    }


def test_launch_writes_no_parameter_file_of_its_own(started: dict[str, dict[str, Any]]) -> None:
    """launch_ros writes one for each dictionary, and leaves it."""
    nodes = [action for action in started.values() if "package" in action]
    assert all([Path(file).name for file in action["parameters"]] == ["mine.yaml"] for action in nodes)
    assert "vehicle_namespace:='/drone'" in started["nav_agent"]["ros_arguments"]


@pytest.mark.parametrize("status", [0, 1, -9])
def test_an_end_that_is_no_refusal_leaves_the_graph_alone(status: int) -> None:
    launch_data.stop_if_refused(ended(status), context(is_shutdown=False))


def test_a_refusal_ends_the_graph_unless_it_is_ending_already() -> None:
    with pytest.raises(launch_data.ConfigurationRefused, match="node-1 refuses its configuration"):
        launch_data.stop_if_refused(ended(CONFIGURATION_ERROR), context(is_shutdown=False))
    launch_data.stop_if_refused(ended(CONFIGURATION_ERROR), context(is_shutdown=True))


def ended(status: int) -> Any:
    """Stands for launch's ProcessExited."""
    return SimpleNamespace(process_name="node-1", returncode=status)


def context(*, is_shutdown: bool) -> Any:
    """Stands for launch's context."""
    return SimpleNamespace(is_shutdown=is_shutdown)


@pytest.mark.parametrize(("status", "refused"), [(2, True), (1, False), (0, False), (-9, False)])
def test_launch_ends_when_a_node_refuses_its_configuration_and_only_then(status: int, refused: bool) -> None:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH)
    from launch import LaunchDescription, LaunchService
    from launch.actions import ExecuteProcess, Shutdown, TimerAction

    from nav_bringup.launching import refusal_handler

    ends = (
        f"import os, signal; os.kill(os.getpid(), {-status})" if status < 0 else f"raise SystemExit({status})"
    )
    program = ExecuteProcess(
        cmd=[sys.executable, "-S", "-c", ends], respawn=True, respawn_delay=0.2, name="node"
    )
    service = LaunchService()
    ended = TimerAction(period=8.0, actions=[Shutdown()])
    service.include_launch_description(LaunchDescription([refusal_handler(), program, ended]))
    begin = time.monotonic()
    returned = service.run()
    assert (returned != 0, time.monotonic() - begin < 6.0) == (refused, refused)
