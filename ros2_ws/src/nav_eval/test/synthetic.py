"""A small flight made by hand, for tests: 10 Hz rows of a mission with two motions, in order until a test spoils it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nav_common import topics
from nav_common.stamps import split
from nav_common.topics import Topic
from nav_eval.bags import BagWriter, make, serialize
from nav_eval.profile import PROFILE

START_S = 1_700_000_000.0
ACTIVE, HOLD, AIRBORNE = 1, 0, 3
ACCEPTED, THINKING, MOVING, ENDED = 6, 3, 4, 7
GOAL = "0123456789abcdef"


def time(seconds: float) -> Any:
    sec, nanosec = split(seconds)
    return make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)


def twist(x: float = 0.0, yaw_rate: float = 0.0) -> Any:
    return make(
        "geometry_msgs/msg/Twist",
        linear=make("geometry_msgs/msg/Vector3", x=x),
        angular=make("geometry_msgs/msg/Vector3", z=yaw_rate),
    )


def header(stamp_s: float) -> Any:
    return make("std_msgs/msg/Header", stamp=time(stamp_s))


@dataclass
class Row:
    """A message before it is written; tests change its fields or drop it."""

    time_s: float
    topic: Topic
    message: Any


@dataclass
class Script:
    """The story: accepted at 1 s; two decisions of 0.6 s, each followed by 2 s of forward flight; finish; ended."""

    accepted_s: float = 1.0
    asks: tuple[tuple[float, float], ...] = ((2.0, 2.6), (7.0, 7.6), (12.0, 12.6))
    motions: tuple[tuple[float, float], ...] = ((2.7, 4.7), (7.7, 9.7))
    ended_s: float = 12.7
    end_s: float = 14.0
    rows: list[Row] = field(default_factory=list)

    def commanded(self, t: float) -> float:
        return 2.0 if any(a <= t < b for a, b in self.motions) else 0.0

    def speed(self, t: float) -> float:
        """Follows the command with 2 m/s2."""
        for a, b in self.motions:
            if a <= t < b:
                return min(2.0, 2.0 * (t - a))
            if b <= t < b + 1.0:
                return 2.0 - 2.0 * (t - b)
        return 0.0


def flight(spoil: Callable[[Script], None] | None = None) -> list[Row]:
    """The rows in the order of their times. `spoil` may change the story before its rows are made."""
    story = Script()
    if spoil:
        spoil(story)
    rows = story.rows
    sequence = 0
    x = 0.0
    for tick in range(round(story.end_s * 10)):
        t = tick / 10
        now = START_S + t
        x += story.speed(t) / 10
        pose = make(
            "geometry_msgs/msg/PoseWithCovariance",
            pose=make(
                "geometry_msgs/msg/Pose",
                position=make("geometry_msgs/msg/Point", x=x, z=2.0),
                orientation=make("geometry_msgs/msg/Quaternion", w=1.0),
            ),
        )
        odometry = make(
            "nav_msgs/msg/Odometry",
            header=header(now),
            pose=pose,
            twist=make("geometry_msgs/msg/TwistWithCovariance", twist=twist(story.speed(t))),
        )
        rows.append(Row(now, topics.ODOM, odometry))
        rows.append(
            Row(now + 0.001, topics.FRONT_IMAGE, make("sensor_msgs/msg/CompressedImage", header=header(now)))
        )
        state = make(
            "nav_msgs_ext/msg/DroneState",
            stamp=time(now),
            flying_mode=AIRBORNE,
            gate_mode=ACTIVE if story.accepted_s < t < story.ended_s else HOLD,
            epoch=3,
            connected=True,
        )
        rows.append(Row(now + 0.002, topics.STATE, state))
        if story.accepted_s <= t <= story.ended_s:
            sequence += 1
            command = make(
                "nav_msgs_ext/msg/VelocityCommand",
                stamp=time(now),
                epoch=3,
                sequence=sequence,
                twist=twist(story.commanded(t)),
            )
            rows.append(Row(now + 0.01, topics.COMMAND, command))
    goal = {"goal_id": GOAL, "instruction": "fly to the red beacon"}
    changes = [(story.accepted_s, ACCEPTED), (story.ended_s, ENDED)]
    for number, (asked, done) in enumerate(story.asks, 1):
        changes += [(asked, THINKING), (done, MOVING)]
        still = max([b + 1.0 for _, b in story.motions if b < asked], default=0.5)
        decision = make(
            "nav_msgs_ext/msg/Decision",
            stamp=time(START_S + done),
            ask_stamp=time(START_S + asked),
            frame_stamp=time(START_S + math.floor(asked * 10) / 10),
            barrier_stamp=time(START_S + still),
            step=number,
            tool="finish" if number == len(story.asks) else "move_forward",
            arguments='{"reason": "reached"}' if number == len(story.asks) else '{"distance_m": 4}',
            hovering=True,
            total_ms=600.0,
            **goal,
        )
        rows.append(Row(START_S + done + 0.003, topics.DECISION, decision))
    for t, state in changes:
        message = make("nav_msgs_ext/msg/GoalState", stamp=time(START_S + t), state=state, **goal)
        rows.append(Row(START_S + t, topics.GOAL_STATE, message))
    return sorted(rows, key=lambda row: row.time_s)


def write(path: Path, rows: list[Row], vehicle_namespace: str = "/drone") -> Path:
    """The rows as a recording."""
    with BagWriter(path) as writer:
        for recorded in PROFILE:
            topic = recorded.topic
            writer.add_topic(topic.resolve(vehicle_namespace), topic.type, topic.qos)
        for row in sorted(rows, key=lambda row: row.time_s):
            writer.put(row.topic.resolve(vehicle_namespace), round(row.time_s * 1e9), serialize(row.message))
    return path
