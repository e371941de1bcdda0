"""A recorded flight as plain rows: what the judge, the figures and the pictures read from a recording."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nav_common import frames, topics
from nav_common.stamps import to_seconds
from nav_eval.bags import Bag, BagError


@dataclass(frozen=True)
class OdometrySample:
    """`time_s`: log time; `stamp_s`: the edge's clock; position in the odom frame (ENU, m); yaw ENU rad; speed m/s."""

    time_s: float
    stamp_s: float
    x: float
    y: float
    z: float
    yaw: float
    speed: float
    yaw_rate: float


@dataclass(frozen=True)
class Command:
    """A VelocityCommand; `is_hover` when its twist is zero."""

    time_s: float
    stamp_s: float
    epoch: int
    sequence: int
    velocity: tuple[float, float, float]
    yaw_rate: float
    finite: bool

    @property
    def is_hover(self) -> bool:
        return self.finite and self.velocity == (0.0, 0.0, 0.0) and self.yaw_rate == 0.0


@dataclass(frozen=True)
class Stamped:
    """A message kept as it is, with its log time."""

    time_s: float
    data: Any


@dataclass
class Flight:
    """The rows of one recording, each list in the order of log times (seconds)."""

    path: Path
    vehicle_namespace: str
    start_s: float = math.inf
    end_s: float = -math.inf
    messages: int = 0
    odometry: list[OdometrySample] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    cmd_vel: list[Stamped] = field(default_factory=list)
    states: list[Stamped] = field(default_factory=list)
    goal_states: list[Stamped] = field(default_factory=list)
    decisions: list[Stamped] = field(default_factory=list)
    statuses: list[Stamped] = field(default_factory=list)
    images: list[tuple[float, float]] = field(default_factory=list)
    """(log time, stamp) of each picture."""

    @property
    def path_m(self) -> float:
        """Length of the way flown."""
        return sum(
            math.dist((a.x, a.y, a.z), (b.x, b.y, b.z))
            for a, b in zip(self.odometry, self.odometry[1:], strict=False)
        )


def load(path: Path | str, vehicle_namespace: str | None = None) -> Flight:
    """Read a recording's flight.

    Raises:
        BagError: unreadable, or it holds no vehicle, or a topic of another type than ours.
    """
    with Bag(path) as bag:
        namespace = vehicle_namespace or bag.vehicle_namespace()
        flight = Flight(Path(path), namespace)
        wanted = {
            topic.resolve(namespace): topic
            for topic in (
                topics.ODOM,
                topics.COMMAND,
                topics.CMD_VEL,
                topics.STATE,
                topics.GOAL_STATE,
                topics.DECISION,
                topics.ENGINE_STATUS,
                topics.FRONT_IMAGE,
            )
        }
        for name, topic in wanted.items():
            if name in bag.types:
                bag.require(name, topic.type)
        for message in bag.messages(wanted):
            try:
                take(flight, wanted[message.topic], message.time_s, message.data)
            except AttributeError as error:
                raise BagError(
                    f"{path}: message {message.number} ({message.topic}) was recorded with another definition of "
                    f"{wanted[message.topic].type}: {error}"
                ) from error
    if not flight.messages:
        raise BagError(f"{path} holds no message of a flight: its topics are {', '.join(sorted(wanted))}")
    return flight


def take(flight: Flight, topic: topics.Topic, time_s: float, data: Any) -> None:
    """Add one message's row."""
    flight.messages += 1
    flight.start_s = min(flight.start_s, time_s)
    flight.end_s = max(flight.end_s, time_s)
    if topic is topics.ODOM:
        position, orientation = data.pose.pose.position, data.pose.pose.orientation
        linear, angular = data.twist.twist.linear, data.twist.twist.angular
        flight.odometry.append(
            OdometrySample(
                time_s,
                to_seconds(data.header.stamp),
                position.x,
                position.y,
                position.z,
                frames.yaw(frames.Quaternion(orientation.w, orientation.x, orientation.y, orientation.z)),
                math.hypot(linear.x, linear.y, linear.z),
                angular.z,
            )
        )
    elif topic is topics.COMMAND:
        linear, angular = data.twist.linear, data.twist.angular
        values = (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)
        flight.commands.append(
            Command(
                time_s,
                to_seconds(data.stamp),
                int(data.epoch),
                int(data.sequence),
                (linear.x, linear.y, linear.z),
                angular.z,
                all(math.isfinite(v) for v in values),
            )
        )
    elif topic is topics.FRONT_IMAGE:
        flight.images.append((time_s, to_seconds(data.header.stamp)))
    else:
        rows = {
            topics.CMD_VEL: flight.cmd_vel,
            topics.STATE: flight.states,
            topics.GOAL_STATE: flight.goal_states,
            topics.DECISION: flight.decisions,
            topics.ENGINE_STATUS: flight.statuses,
        }[topic]
        if topic is not topics.CMD_VEL:
            to_seconds(data.stamp)  # a message of another definition is found here, not deep in a rule
        rows.append(Stamped(time_s, data))
