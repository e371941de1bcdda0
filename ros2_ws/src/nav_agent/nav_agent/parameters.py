"""The parameters of the agent's node: those of its start, and those that may change in flight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node

from nav_agent.agent import Settings
from nav_agent.mission import MissionSettings
from nav_agent.motion import MotionSettings
from nav_agent.prompts import load_prompt
from nav_common import topics
from nav_common.ros import LiveParameters, declare


@dataclass(frozen=True)
class Start:
    """What the node is started with."""

    vehicle_namespace: str
    system_prompt: str
    outage_timeout_s: float
    dry_run_interval_s: float | None


def declare_all(node: Node) -> tuple[Start, LiveParameters[Settings]]:
    """Declare them all; what the node is started with, and the group that changes in flight.

    Raises:
        ValueError: a value is of another type or out of range, or there is no such prompt.
    """
    start = _declare_start(node)
    live = LiveParameters(node, lambda values: _settings(values, start.outage_timeout_s))
    motion, mission = MotionSettings(), MissionSettings()

    def number(name: str, default: float, what: str, low: float, high: float) -> None:
        live.declare(name, default, what, minimum=low, maximum=high)

    number("speed", motion.speed_m_s, "level speed, m/s", 0.1, 10.0)
    number("vertical_speed", motion.vertical_speed_m_s, "climb and descent, m/s", 0.1, 5.0)
    number("yaw_rate", motion.yaw_rate_rad_s, "turning, rad/s", 0.1, 3.0)
    number("look_time_s", motion.look_s, "hover at each quarter of look_around, s", 0.0, 10.0)
    number("decision_deadline_s", mission.decision_deadline_s, "longest generation, s", 0.1, 300.0)
    number("max_decisions", mission.max_decisions, "decisions a goal, if it gives no limit", 1, 10000)
    number("time_limit_s", mission.time_limit_s, "time a goal, if it gives no limit, s", 1.0, 86400.0)
    number(
        "max_new_tokens",
        mission.max_new_tokens,
        "tokens sampled a decision; 0: the server's default",
        0,
        4096,
    )
    number("temperature", mission.temperature, "of the decision; 0: greedy", 0.0, 5.0)
    live.declare(
        "reasons",
        mission.reasons,
        "ask after each decision why, while hovering; a model without words gives no reason",
    )
    return start, live


def _declare_start(node: Node) -> Start:
    interval_s = declare(
        node,
        "dry_run_interval_s",
        2.0,
        "time that a call takes in a dry run, s",
        minimum=0.1,
        maximum=60.0,
    )
    dry_run = declare(node, "dry_run", False, "send nothing, only note what would be flown: for replays")
    return Start(
        vehicle_namespace=declare(
            node, "vehicle_namespace", topics.DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        ),
        system_prompt=load_prompt(declare(node, "prompt", "pilot", "system prompt: a file in prompts/")),
        outage_timeout_s=declare(
            node,
            "outage_timeout_s",
            MissionSettings().outage_timeout_s,
            "longest outage that a goal outlives, s",
            minimum=0.0,
            maximum=600.0,
        ),
        dry_run_interval_s=interval_s if dry_run else None,
    )


def _settings(values: Mapping[str, Any], outage_timeout_s: float) -> Settings:
    return Settings(
        MotionSettings(
            speed_m_s=values["speed"],
            vertical_speed_m_s=values["vertical_speed"],
            yaw_rate_rad_s=values["yaw_rate"],
            look_s=values["look_time_s"],
            outage_timeout_s=outage_timeout_s,
        ),
        MissionSettings(
            max_decisions=values["max_decisions"],
            time_limit_s=values["time_limit_s"],
            decision_deadline_s=values["decision_deadline_s"],
            outage_timeout_s=outage_timeout_s,
            max_new_tokens=values["max_new_tokens"],
            temperature=values["temperature"],
            reasons=values["reasons"],
        ),
    )
