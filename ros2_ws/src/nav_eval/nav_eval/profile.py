"""The recording profile: what a recording of a flight holds. The one place where this is decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nav_common import topics
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE, Qos, Topic

# Messages that DDS keeps of each topic until they are taken: 30 s of odometry, 100 s of pictures (20 MB at 320x240).
# A recorder that the machine lets wait for some seconds must lose nothing.
HISTORY = 1000
LIVE_PORT = 8765
"""Where the same is shown while it is flown (`nav_eval.live`); Foxglove's own."""


@dataclass(frozen=True)
class RecordedTopic:
    """A topic of the profile; `max_rate_hz` 0 records every message, otherwise at most that many a second."""

    topic: Topic
    max_rate_hz: float = 0.0


PROFILE: tuple[RecordedTopic, ...] = (
    RecordedTopic(topics.FRONT_IMAGE),
    RecordedTopic(topics.FRONT_INFO),
    # For looking back at what was near. 77 kB each at 160x120 float32: at 1 Hz no more than the pictures.
    RecordedTopic(topics.FRONT_DEPTH, max_rate_hz=1.0),
    RecordedTopic(topics.ODOM),
    RecordedTopic(topics.STATE),
    RecordedTopic(topics.COMMAND),
    RecordedTopic(topics.CMD_VEL),
    RecordedTopic(topics.EMERGENCY_STOP),
    RecordedTopic(topics.GOAL_STATE),
    RecordedTopic(topics.DECISION),
    RecordedTopic(topics.MARKERS),
    RecordedTopic(topics.ENGINE_STATUS),
    RecordedTopic(topics.WATCH_EVENT),
    RecordedTopic(topics.ACTIVE_FRAMES),
    RecordedTopic(topics.DIAGNOSTICS),
)


def topic_names(vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE) -> list[str]:
    """Absolute names, in the profile's order."""
    return [recorded.topic.resolve(vehicle_namespace) for recorded in PROFILE]


def qos_overrides(vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE) -> dict[str, dict[str, Any]]:
    """How to subscribe to each topic so that nothing is missed: as it is offered, with a deep history.

    The content of the file that `ros2 bag record --qos-profile-overrides-path` takes.
    """

    def override(qos: Qos) -> dict[str, Any]:
        keeps = qos.transient_local and not qos.any_publisher
        return {
            "history": "keep_last",
            "depth": HISTORY,
            "reliability": "reliable" if qos.reliable else "best_effort",
            "durability": "transient_local" if keeps else "volatile",
        }

    return {r.topic.resolve(vehicle_namespace): override(r.topic.qos) for r in PROFILE}


def ros2_bag_command(
    output: str, qos_file: str, vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE
) -> list[str]:
    """The command that records this profile with ROS's own recorder; `qos_file` holds `qos_overrides` as YAML."""
    names = topic_names(vehicle_namespace)
    where = ["--storage", "mcap", "--output", output, "--qos-profile-overrides-path", qos_file]
    return ["ros2", "bag", "record", *where, "--topics", *names]
