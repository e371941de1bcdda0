"""The recording profile: what a recording of a flight holds. The one place where this is decided."""

from __future__ import annotations

from dataclasses import dataclass

from nav_common import topics
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE, Topic


@dataclass(frozen=True)
class Recorded:
    """A topic of the profile; `max_rate_hz` 0 records every message, otherwise at most that many a second."""

    topic: Topic
    max_rate_hz: float = 0.0


PROFILE: tuple[Recorded, ...] = (
    Recorded(topics.FRONT_IMAGE),
    Recorded(topics.FRONT_INFO),
    # For looking back at what was near. 77 kB each at 160x120 float32: at 1 Hz no more than the pictures.
    Recorded(topics.FRONT_DEPTH, max_rate_hz=1.0),
    Recorded(topics.ODOM),
    Recorded(topics.STATE),
    Recorded(topics.COMMAND),
    Recorded(topics.CMD_VEL),
    Recorded(topics.EMERGENCY_STOP),
    Recorded(topics.GOAL_STATE),
    Recorded(topics.DECISION),
    Recorded(topics.ENGINE_STATUS),
    Recorded(topics.DIAGNOSTICS),
)


def topic_names(vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE) -> list[str]:
    """Absolute names, in the profile's order."""
    return [recorded.topic.resolve(vehicle_namespace) for recorded in PROFILE]


def ros2_bag_arguments(output: str, vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE) -> list[str]:
    """The command that records the same profile with ROS's own recorder.

    It takes the quality of service that each publisher offers, so nothing is missed for want of a match.
    """
    return [
        "ros2",
        "bag",
        "record",
        "--storage",
        "mcap",
        "--output",
        output,
        "--topics",
        *topic_names(vehicle_namespace),
    ]
