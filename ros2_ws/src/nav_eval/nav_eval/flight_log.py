"""A recorded flight as rows of nav_common.data: what the judge, the figures and the pictures read from a recording."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nav_common import topics
from nav_common.data import (
    ActiveFrames,
    Decision,
    DroneState,
    EngineStatus,
    GoalState,
    Odometry,
    VelocityCommand,
)
from nav_common.topics import Topic
from nav_eval.bags import Bag, BagError, Logged


@dataclass
class FlightLog:
    """The rows of one recording, each list in the order of log times. `start_s`, `end_s`: first and last log time."""

    path: Path
    vehicle_namespace: str
    start_s: float = math.inf
    end_s: float = -math.inf
    messages: int = 0
    odometry: list[Logged[Odometry]] = field(default_factory=list)
    commands: list[Logged[VelocityCommand]] = field(default_factory=list)
    cmd_vel: list[Logged[Any]] = field(default_factory=list)
    """The TwistStamped of a joystick or rqt, as messages."""
    states: list[Logged[DroneState]] = field(default_factory=list)
    goal_states: list[Logged[GoalState]] = field(default_factory=list)
    decisions: list[Logged[Decision]] = field(default_factory=list)
    statuses: list[Logged[EngineStatus]] = field(default_factory=list)
    active_frames: list[Logged[ActiveFrames]] = field(default_factory=list)
    """Of a memory bank; empty without one."""
    image_stamps: list[Logged[float]] = field(default_factory=list)
    """The stamp of each picture, s of the edge's clock."""

    @property
    def path_m(self) -> float:
        """Length of the path flown."""
        return sum(math.dist(a.data.position, b.data.position) for a, b in itertools.pairwise(self.odometry))

    def add(self, topic: Topic, time_s: float, data: Any) -> None:
        """Append a row of `topic` with its log time."""
        self.messages += 1
        self.start_s = min(self.start_s, time_s)
        self.end_s = max(self.end_s, time_s)
        if topic is topics.FRONT_IMAGE:
            self.image_stamps.append(Logged(time_s, data.stamp_s))
            return
        rows: list[Logged[Any]] = {  # type: ignore[assignment]
            topics.ODOM: self.odometry,
            topics.COMMAND: self.commands,
            topics.CMD_VEL: self.cmd_vel,
            topics.STATE: self.states,
            topics.GOAL_STATE: self.goal_states,
            topics.DECISION: self.decisions,
            topics.ENGINE_STATUS: self.statuses,
            topics.ACTIVE_FRAMES: self.active_frames,
        }[topic]
        rows.append(Logged(time_s, data))


TOPICS = (
    topics.ODOM,
    topics.COMMAND,
    topics.CMD_VEL,
    topics.STATE,
    topics.GOAL_STATE,
    topics.DECISION,
    topics.ENGINE_STATUS,
    topics.ACTIVE_FRAMES,
    topics.FRONT_IMAGE,
)
"""What a FlightLog is made of."""


def load(path: Path | str, vehicle_namespace: str | None = None) -> FlightLog:
    """Read a recording's flight.

    Raises:
        BagError: unreadable, or it holds no vehicle, or a topic of another type than ours.
    """
    with Bag(path) as bag:
        namespace = vehicle_namespace or bag.vehicle_namespace()
        log = FlightLog(Path(path), namespace)
        by_name = {topic.resolve(namespace): topic for topic in TOPICS}
        for name, topic in by_name.items():
            if name in bag.types:
                bag.require(name, topic.type)
        for name, row in bag.rows(by_name):
            log.add(by_name[name], row.time_s, row.data)
    if not log.messages:
        raise BagError(f"{path} holds no message of a flight: its topics are {', '.join(sorted(by_name))}")
    return log
