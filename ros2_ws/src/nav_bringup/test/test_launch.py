"""The launch files: one for each deployment, installed where `ros2 launch nav_agent ...` looks, and what they start."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_share_directory

from nav_bringup.graph import DEPLOYMENTS, deployment

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


def test_launch_starts_the_processes_of_the_graph() -> None:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH)
    from launch import LaunchContext
    from launch.actions import ExecuteProcess, OpaqueFunction

    from nav_bringup.launching import launch_description

    context = LaunchContext()
    context.launch_configurations.update({a.name: a.default for a in deployment("full_stack").arguments})
    start = next(e for e in launch_description("full_stack").entities if isinstance(e, OpaqueFunction))
    actions = start.execute(context)
    assert actions is not None
    assert all(isinstance(action, ExecuteProcess) for action in actions)
    assert len(actions) == len(deployment("full_stack").processes({}))
