"""A small flight made by hand, for tests: 10 Hz rows of a mission with two motions, in order until a test spoils it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nav_common import topics
from nav_common.bag_writer import BagWriter
from nav_common.conversions import encode
from nav_common.data import (
    CompressedImage,
    Decision,
    DroneState,
    FlyingMode,
    GateMode,
    GoalState,
    NavigateState,
    Odometry,
    Twist,
    VelocityCommand,
)
from nav_common.frames import Vector
from nav_common.topics import Topic
from nav_eval.profile import PROFILE

START_S = 1_700_000_000.0
GOAL = "0123456789abcdef"
EPOCH = 3


@dataclass
class Row:
    """What is to be recorded; tests change it or drop it."""

    time_s: float
    topic: Topic
    data: Any

    def change(self, **values: Any) -> None:
        """Replace fields of the data."""
        self.data = replace(self.data, **values)


@dataclass
class Script:
    """Accepted at 1 s; two decisions of 0.6 s, each followed by 2 s of forward flight; finish; ended."""

    accepted_s: float = 1.0
    asks: tuple[tuple[float, float], ...] = ((2.0, 2.6), (7.0, 7.6), (12.0, 12.6))
    motions: tuple[tuple[float, float], ...] = ((2.7, 4.7), (7.7, 9.7))
    ended_s: float = 12.7
    end_s: float = 14.0

    def commanded_m_s(self, t: float) -> float:
        return 2.0 if any(a <= t < b for a, b in self.motions) else 0.0

    def speed_m_s(self, t: float) -> float:
        """Follows the command with 2 m/s2."""
        for a, b in self.motions:
            if a <= t < b:
                return min(2.0, 2.0 * (t - a))
            if b <= t < b + 1.0:
                return 2.0 - 2.0 * (t - b)
        return 0.0


@dataclass
class _Rows:
    script: Script
    rows: list[Row] = field(default_factory=list)
    sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    x_m: float = 0.0

    def tick(self, t: float) -> None:
        """What vehicle and agent send each 0.1 s."""
        script, now = self.script, START_S + t
        self.x_m += script.speed_m_s(t) / 10
        velocity = Vector(script.speed_m_s(t), 0.0, 0.0)
        odometry = Odometry(now, position=Vector(self.x_m, 0.0, 2.0), velocity=velocity)
        in_goal = script.accepted_s < t < script.ended_s
        state = DroneState(
            now,
            flying_mode=FlyingMode.AIRBORNE,
            gate_mode=GateMode.ACTIVE if in_goal else GateMode.HOLD,
            epoch=EPOCH,
            connected=True,
        )
        self.rows += [
            Row(now, topics.ODOM, odometry),
            Row(now + 0.001, topics.FRONT_IMAGE, CompressedImage(now, b"")),
            Row(now + 0.002, topics.STATE, state),
        ]
        if script.accepted_s <= t <= script.ended_s:
            self.rows.append(command(t, next(self.sequence), script.commanded_m_s(t), sent_s=t + 0.01))

    def goal(self) -> None:
        """Decisions, and the states of the goal."""
        script = self.script
        changes = [(script.accepted_s, NavigateState.ACCEPTED), (script.ended_s, NavigateState.ENDED)]
        for step, (asked, done) in enumerate(script.asks, 1):
            changes += [(asked, NavigateState.THINKING), (done, NavigateState.MOVING)]
            still = max([b + 1.0 for _, b in script.motions if b < asked], default=0.5)
            last = step == len(script.asks)
            decision = Decision(
                stamp_s=START_S + done,
                ask_stamp_s=START_S + asked,
                frame_stamp_s=START_S + math.floor(asked * 10) / 10,
                barrier_stamp_s=START_S + still,
                goal_id=GOAL,
                instruction="fly to the red beacon",
                step=step,
                tool="finish" if last else "move_forward",
                arguments='{"reason": "reached"}' if last else '{"distance_m": 4}',
                hovering=True,
                total_ms=600.0,
            )
            self.rows.append(Row(START_S + done + 0.003, topics.DECISION, decision))
        for t, state in changes:
            goal = GoalState(START_S + t, GOAL, "fly to the red beacon", state)
            self.rows.append(Row(START_S + t, topics.GOAL_STATE, goal))


def command(
    stamp: float,
    sequence: int,
    forward_m_s: float = 0.0,
    *,
    yaw_rate_rad_s: float = 0.0,
    epoch: int = EPOCH,
    sent_s: float | None = None,
) -> Row:
    """A command that echoes `stamp` and was sent at `sent_s` (default: then), both s from the start."""
    twist = Twist.body(forward_m_s, yaw_rate_rad_s=yaw_rate_rad_s)
    data = VelocityCommand(START_S + stamp, epoch, sequence, twist)
    return Row(START_S + (stamp if sent_s is None else sent_s), topics.COMMAND, data)


def flight(change: Callable[[Script], None] | None = None) -> list[Row]:
    """The rows in the order of their times. `change` may alter the script before."""
    script = Script()
    if change:
        change(script)
    made = _Rows(script)
    for tick in range(round(script.end_s * 10)):
        made.tick(tick / 10)
    made.goal()
    return sorted(made.rows, key=lambda row: row.time_s)


def write(path: Path, rows: list[Row], vehicle_namespace: str = "/drone") -> Path:
    """The rows as a recording."""
    with BagWriter(path) as writer:
        for recorded in PROFILE:
            topic = recorded.topic
            writer.add_topic(topic.resolve(vehicle_namespace), topic.type, topic.qos)
        for row in sorted(rows, key=lambda row: row.time_s):
            writer.put(row.topic.resolve(vehicle_namespace), round(row.time_s * 1e9), encode(row.data))
    return path
