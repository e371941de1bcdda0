"""Writes docs/parameters.md: every parameter of every node, from the nodes' own declarations.

    source scripts/env.sh && python scripts/parameter_reference.py [FILE]

Each node is made, asked for what it declared, and destroyed. ROS's own parameters are left out.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

import nav_pilot
from airsim_bridge.node import AirSimBridge
from nav_agent.node import NavAgent
from nav_eval.node import PlayerNode, RecorderNode
from nav_server.node import ServedPerception
from vlm_perception.node import VlmPerception
from zenoh_link.node import ZenohLink

FILE = Path(__file__).resolve().parent.parent / "docs/parameters.md"
SCRATCH = Path(tempfile.mkdtemp())
PERCEPTION = {"model": str(nav_pilot.model_folder()), "device": "cpu"}
# What a node cannot start without, and values that its start must not take from the machine it runs on.
NEEDED: dict[Any, dict[str, Any]] = {
    VlmPerception: PERCEPTION,
    ServedPerception: {**PERCEPTION, "http": False},
    RecorderNode: {"output": str(SCRATCH / "recording")},
    PlayerNode: {"bag": str(SCRATCH / "recording")},
    ZenohLink: {"side": "edge"},
}
OF_ROS = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def declarations(kind: Callable[[], Node]) -> dict[str, tuple[Any, Any]]:
    """Name: (default, descriptor) of each parameter of a node, in the order of declaration."""
    found: dict[str, tuple[Any, Any]] = {}
    declare: Any = Node.declare_parameter

    def noted(self: Node, name: str, default: Any = None, descriptor: Any = None, *more: Any) -> Parameter:
        found[name] = (default, descriptor)
        return declare(self, name, NEEDED.get(kind, {}).get(name, default), descriptor, *more)

    patched: Any = Node
    patched.declare_parameter = noted
    try:
        kind().destroy_node()
    except (OSError, ValueError):  # a recording that is not there: by then all is declared
        pass
    finally:
        patched.declare_parameter = declare
    return {name: entry for name, entry in found.items() if not name.startswith(OF_ROS)}


def allowed(descriptor: Any) -> str:
    ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
    if ranges:
        return f"{shown(float(ranges[0].from_value))} to {shown(float(ranges[0].to_value))}"
    return descriptor.additional_constraints.removeprefix("one of ")


def shown(value: object) -> str:
    if value == "" or value == []:
        return "empty"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:g}"
    return str(value)


def page() -> str:
    lines = [
        "# Parameters",
        "",
        "Made by `python scripts/parameter_reference.py` from the nodes' declarations; a test compares. *In flight*:",
        "changed by `ros2 param set` and rqt's sliders, from the gate's next tick or the next decision on. Your",
        "own values: a YAML file, with `params_file:=`.",
    ]
    perceptions = declarations(VlmPerception)
    for kind in (
        AirSimBridge,
        VlmPerception,
        ServedPerception,
        NavAgent,
        ZenohLink,
        RecorderNode,
        PlayerNode,
    ):
        declared = perceptions if kind is VlmPerception else declarations(kind)
        lines += ["", f"## {kind.__module__.split('.')[0]}: {kind.__name__}", ""]
        if kind is ServedPerception:
            lines += [
                "In perception's place with `http:=true` or another `vision:=` than the engine: its parameters, and",
                "",
            ]
            declared = {name: entry for name, entry in declared.items() if name not in perceptions}
        lines += ["| parameter | default | allowed | in flight | meaning |", "|---|---|---|---|---|"]
        for name, (default, descriptor) in declared.items():
            live = "" if descriptor.read_only else "yes"  # type: ignore[attr-defined]
            meaning = descriptor.description  # type: ignore[attr-defined]
            lines.append(f"| `{name}` | {shown(default)} | {allowed(descriptor)} | {live} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rclpy.init()
    try:
        text = page()
    finally:
        rclpy.try_shutdown()
        shutil.rmtree(SCRATCH, ignore_errors=True)
    (Path(sys.argv[1]) if len(sys.argv) > 1 else FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
