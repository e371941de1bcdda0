"""The judge: reads any recording of a flight and reports each breach of the safety invariants, with its time.

It believes only what was recorded: commands on the wire, what the vehicle measured and said, decisions and goal states.
Times of different topics are compared by the recorder's log times, stamps only with stamps of the same clock, so
recordings of flights over two machines are judged as well.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nav_common.stamps import to_seconds
from nav_eval.flight import Command, Flight, OdometrySample, Stamped, load

# Order in which messages of different topics reach the recorder: a few ms; chosen with room for a busy machine.
ORDER_SLACK_S = 0.05
# A goal that takes over from another finds its commands on the way: time until hover must hold (chosen).
ACCEPTANCE_SLACK_S = 0.1
# The first hover after acceptance, and between two hovers while thinking. The gate brakes after 0.3 s (DESIGN.md); half
# a second without a command means that nobody streams hover.
HOVER_GAP_S = 0.5
# The gate refuses commands older than 0.5 s by their echoed stamp; 0.1 s more for odometry on its way to the recorder.
COMMAND_AGE_S = 0.5 + 0.1
# A new epoch is known to the recorder by the next state message, 0.1 s later at most, give or take delivery.
EPOCH_SLACK_S = 0.25
# "Moving", by odometry. Above what hover in wind or a settling controller shows, below what any tool flies.
MOVING_M_S = 0.3
MOVING_RAD_S = 0.15
# What silence may take: 0.3 s until the gate brakes, 0.2 s to get there (invariant 3), 0.5 s measured late.
SILENCE_S = 1.0
# The least deceleration with which the vehicle is expected to stop, m/s2 (chosen: half of the gate's limit).
BRAKING_M_S2 = 1.0
# Speeding up: more than this within a quarter of a second is a motion that somebody commanded.
SPEED_UP_M_S = 0.25
SPEED_UP_RAD_S = 0.15
# After a contact, a take-off or a landing the vehicle moves on its own for a while.
SETTLING_S = 2.0
# Longest silences of a topic.
ODOMETRY_GAP_S = 0.5
STATE_GAP_S = 1.0
IMAGE_GAP_S = 2.0

_OK = 0  # Decision.STATUS_OK
_ACCEPTED, _ENDED = 6, 7  # GoalState
_TAKING_OFF, _AIRBORNE, _LANDING = 2, 3, 4  # DroneState.flying_mode
_ACTIVE, _LAND = 1, 3  # DroneState.gate_mode

HOVER_RULES = ("hover-on-acceptance", "hover-while-thinking", "still-while-thinking")


@dataclass(frozen=True)
class Breach:
    """One breach. `time_s` counts from the start of the recording; `log_time_s` is the message's log time."""

    rule: str
    time_s: float
    log_time_s: float
    message: str


@dataclass
class Report:
    """What the judge saw."""

    path: str
    duration_s: float
    messages: int
    goals: int
    decisions: int
    commands: int
    breaches: list[Breach] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be judged, for want of a topic."""

    @property
    def hover_violations(self) -> int:
        return sum(breach.rule in HOVER_RULES for breach in self.breaches)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hover_violations": self.hover_violations}

    def text(self, most: int = 20) -> str:
        """For the terminal: one line a breach, at most `most` of each rule."""
        lines = [
            f"{self.path}: {self.duration_s:.1f} s, {self.messages} messages, {self.goals} goals, "
            f"{self.decisions} decisions, {self.commands} commands"
        ]
        lines += [f"  not judged: {note}" for note in self.notes]
        for rule in RULES:
            found = [breach for breach in self.breaches if breach.rule == rule]
            lines += [f"  {b.time_s:9.3f} s  {b.rule}: {b.message}" for b in found[:most]]
            if len(found) > most:
                lines.append(f"             {rule}: {len(found) - most} more")
        lines.append(f"  {len(self.breaches)} breaches" if self.breaches else "  no breach")
        return "\n".join(lines)


def check(path: Path | str, vehicle_namespace: str | None = None) -> Report:
    """Judge the recording at `path`.

    Raises:
        BagError: it cannot be read.
    """
    return judge(load(path, vehicle_namespace))


def judge(flight: Flight) -> Report:
    """Judge a flight by every rule."""
    report = Report(
        str(flight.path),
        flight.end_s - flight.start_s,
        flight.messages,
        sum(row.data.state == _ACCEPTED for row in flight.goal_states),
        len(flight.decisions),
        len(flight.commands),
    )
    needed = {
        "odometry": (flight.odometry, "motion, old pictures"),
        "vehicle states": (flight.states, "epochs, the gate"),
        "commands": (flight.commands, "hover"),
        "goal states": (flight.goal_states, "hover on acceptance, order of goals"),
        "decisions": (flight.decisions, "hover while thinking, old pictures"),
    }
    report.notes = [f"{what} (no {name} recorded)" for name, (rows, what) in needed.items() if not rows]
    evidence = _Evidence(flight)
    for rule, find in RULES.items():
        for time_s, message in find(evidence):
            report.breaches.append(Breach(rule, time_s - flight.start_s, time_s, message))
    report.breaches.sort(key=lambda breach: breach.log_time_s)
    return report


class _Evidence:
    """A flight with the look-ups that several rules need."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.command_times = [command.time_s for command in flight.commands]
        self.odometry_times = [sample.time_s for sample in flight.odometry]
        self.state_times = [state.time_s for state in flight.states]
        self.problems = self._problems()
        # Commands that the gate may execute and that move; a plain cmd_vel counts, since it goes through the gate too.
        self.motion_times = sorted(
            [
                c.time_s
                for c, p in zip(flight.commands, self.problems, strict=True)
                if p is None and not c.is_hover
            ]
            + [row.time_s for row in flight.cmd_vel]
        )
        self.settling = self._settling()

    def state_at(self, time_s: float) -> Stamped | None:
        index = bisect.bisect_right(self.state_times, time_s) - 1
        return self.flight.states[index] if index >= 0 else None

    def commands_between(self, start_s: float, end_s: float) -> list[Command]:
        return self.flight.commands[
            bisect.bisect_left(self.command_times, start_s) : bisect.bisect_right(self.command_times, end_s)
        ]

    def last_command_before(self, time_s: float) -> Command | None:
        index = bisect.bisect_left(self.command_times, time_s) - 1
        return self.flight.commands[index] if index >= 0 else None

    def odometry_between(self, start_s: float, end_s: float) -> list[OdometrySample]:
        return self.flight.odometry[
            bisect.bisect_left(self.odometry_times, start_s) : bisect.bisect_right(self.odometry_times, end_s)
        ]

    def thinking(self) -> Iterator[tuple[Stamped, float, float]]:
        """Each decision with the log times of its asking and its end."""
        for row in self.flight.decisions:
            asked = row.time_s - (to_seconds(row.data.stamp) - to_seconds(row.data.ask_stamp))
            yield row, asked, row.time_s

    def airborne_at(self, time_s: float) -> bool:
        state = self.state_at(time_s)
        return state is None or state.data.flying_mode == _AIRBORNE

    def is_settling(self, time_s: float) -> bool:
        index = bisect.bisect_right(self.settling, (time_s, math.inf)) - 1
        return index >= 0 and time_s <= self.settling[index][1]

    def _problems(self) -> list[str | None]:
        """Why the gate must not execute each command, or None."""
        flight = self.flight
        highest: dict[int, int] = {}
        newest_stamp, odometry_index = -math.inf, 0
        problems: list[str | None] = []
        for command in flight.commands:
            while (
                odometry_index < len(flight.odometry)
                and flight.odometry[odometry_index].time_s <= command.time_s
            ):
                newest_stamp = max(newest_stamp, flight.odometry[odometry_index].stamp_s)
                odometry_index += 1
            epochs = self._epochs_around(command.time_s)
            last = highest.get(command.epoch)
            if not command.finite:
                problem: str | None = "not finite"
            elif epochs and command.epoch not in epochs:
                problem = f"of epoch {command.epoch} while the gate's was {max(epochs)}"
            elif newest_stamp - command.stamp_s > COMMAND_AGE_S:
                problem = f"{newest_stamp - command.stamp_s:.2f} s old by its echoed stamp"
            elif last is not None and command.sequence <= last:
                problem = f"out of order (sequence {command.sequence} after {last})"
            else:
                problem = None
                highest[command.epoch] = command.sequence
            problems.append(problem)
        return problems

    def _epochs_around(self, time_s: float) -> set[int]:
        first = bisect.bisect_right(self.state_times, time_s - EPOCH_SLACK_S) - 1
        last = bisect.bisect_right(self.state_times, time_s + EPOCH_SLACK_S)
        return {int(row.data.epoch) for row in self.flight.states[max(first, 0) : last]}

    def _settling(self) -> list[tuple[float, float]]:
        """Spans in which the vehicle moves without a command: take-off, landing, after a contact."""
        spans: list[tuple[float, float]] = []
        contacts: int | None = None
        for row in self.flight.states:
            state = row.data
            touched = contacts is not None and state.collision_count > contacts
            contacts = state.collision_count
            if touched or state.flying_mode in (_TAKING_OFF, _LANDING) or state.gate_mode == _LAND:
                start, end = row.time_s - 0.5, row.time_s + SETTLING_S
                if spans and start <= spans[-1][1]:
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((start, end))
        return spans


Finding = tuple[float, str]


def _hover_on_acceptance(e: _Evidence) -> Iterator[Finding]:
    flight = e.flight
    for index, row in enumerate(flight.goal_states):
        if row.data.state != _ACCEPTED:
            continue
        goal = row.data.goal_id
        ends = [r.time_s for r in flight.decisions if r.data.goal_id == goal and r.time_s > row.time_s]
        ends += [r.time_s for r in flight.goal_states[index + 1 :] if r.data.state in (_ACCEPTED, _ENDED)]
        end_s = min(ends, default=flight.end_s) - ORDER_SLACK_S
        for command in e.commands_between(row.time_s + ACCEPTANCE_SLACK_S, end_s):
            if not command.is_hover:
                yield command.time_s, f"goal {goal[:8]} has no decision yet, but {_shown(command)} was sent"
        first = next(iter(e.commands_between(row.time_s - ORDER_SLACK_S, flight.end_s)), None)
        late = (first.time_s if first else flight.end_s) - row.time_s
        if flight.commands and e.airborne_at(row.time_s) and late > HOVER_GAP_S:
            yield (
                row.time_s,
                f"goal {goal[:8]} was accepted in the air, but no command followed for {late:.2f} s",
            )


def _hover_while_thinking(e: _Evidence) -> Iterator[Finding]:
    for row, asked, done in e.thinking():
        step = f"decision {row.data.step}"
        if not row.data.hovering:
            yield done, f"{step} itself reports that it was not hovering"
        if not e.flight.commands:
            continue
        # A decision may be shorter than the slack: what follows it is the motion that it chose.
        before = e.last_command_before(min(asked + ORDER_SLACK_S, max(asked, done - ORDER_SLACK_S)))
        if before and not before.is_hover:
            yield asked, f"{step} was asked for while the last command was {_shown(before)}"
        during = e.commands_between(asked + ORDER_SLACK_S, done - ORDER_SLACK_S)
        for command in during:
            if not command.is_hover:
                yield command.time_s, f"{_shown(command)} was sent while {step} was being thought about"
        if e.airborne_at(asked):
            times = [asked, *(command.time_s for command in during), done]
            for a, b in itertools.pairwise(times):
                if b - a > HOVER_GAP_S:
                    yield a, f"no hover was sent for {b - a:.2f} s while {step} was being thought about"


def _still_while_thinking(e: _Evidence) -> Iterator[Finding]:
    for row, asked, done in e.thinking():
        if row.data.status != _OK:
            continue
        moving = [s for s in e.odometry_between(asked, done) if _is_moving(s) and not e.is_settling(s.time_s)]
        if moving:
            fastest = max(moving, key=lambda s: s.speed)
            yield (
                moving[0].time_s,
                (
                    f"the vehicle moved ({fastest.speed:.2f} m/s, {abs(fastest.yaw_rate):.2f} rad/s) while decision "
                    f"{row.data.step} was being thought about"
                ),
            )


def _old_picture(e: _Evidence) -> Iterator[Finding]:
    for row, asked, done in e.thinking():
        if row.data.status != _OK:
            continue
        step, frame_s = f"decision {row.data.step}", to_seconds(row.data.frame_stamp)
        if frame_s == 0.0:
            yield done, f"{step} rests on no picture"
            continue
        barrier_s = to_seconds(row.data.barrier_stamp)
        if frame_s < barrier_s - 1e-6:
            yield done, f"{step} rests on a picture {barrier_s - frame_s:.3f} s older than its own barrier"
            continue
        index = bisect.bisect_right(e.odometry_times, asked) - 1
        while index >= 0 and not _is_moving(e.flight.odometry[index]):
            index -= 1
        if index >= 0 and frame_s < e.flight.odometry[index].stamp_s - 1e-6:
            moved = e.flight.odometry[index]
            yield (
                done,
                (
                    f"{step} rests on a picture taken {moved.stamp_s - frame_s:.3f} s before the last motion ended "
                    f"({moved.speed:.2f} m/s at {moved.stamp_s:.3f})"
                ),
            )


def _motion_without_command(e: _Evidence) -> Iterator[Finding]:
    """Every motion is explained by a command that the gate may execute; otherwise something else moved the vehicle."""
    if not e.flight.commands:
        return
    told = False
    samples = e.flight.odometry
    earlier = 0
    for index, sample in enumerate(samples):
        while samples[earlier].time_s < sample.time_s - 0.25 and earlier < index:
            earlier += 1
        if not _is_moving(sample) or e.is_settling(sample.time_s):
            told = told and _is_moving(sample)
            continue
        last = bisect.bisect_right(e.motion_times, sample.time_s + ORDER_SLACK_S) - 1
        since = sample.time_s - e.motion_times[last] if last >= 0 else math.inf
        speeding_up = (
            sample.speed - samples[earlier].speed > SPEED_UP_M_S
            or abs(sample.yaw_rate) - abs(samples[earlier].yaw_rate) > SPEED_UP_RAD_S
        )
        if since > SILENCE_S and speeding_up:
            what = "speeds up"
        elif since > SILENCE_S + sample.speed / BRAKING_M_S2:
            what = "still moves"
        else:
            told = False
            continue
        if not told:
            yield sample.time_s, _unexplained(e, sample, since, what)
        told = True


def _unexplained(e: _Evidence, sample: OdometrySample, since: float, what: str) -> str:
    after = (
        f"{since:.2f} s after the last acceptable motion command"
        if math.isfinite(since)
        else "without any command"
    )
    text = f"the vehicle {what} at {sample.speed:.2f} m/s, {sample.yaw_rate:+.2f} rad/s, {after}"
    first = bisect.bisect_left(e.command_times, sample.time_s - SILENCE_S)
    last = bisect.bisect_right(e.command_times, sample.time_s)
    for index in range(last - 1, first - 1, -1):
        command, problem = e.flight.commands[index], e.problems[index]
        if problem and not command.is_hover:
            return f"{text}: {_shown(command)}, {problem}, was executed"
    return text


def _gate_open(e: _Evidence) -> Iterator[Finding]:
    """The gate leaves ACTIVE when no acceptable command comes."""
    flight = e.flight
    times = [c.time_s for c, p in zip(flight.commands, e.problems, strict=True) if p is None]
    times = sorted(times + [row.time_s for row in flight.cmd_vel])
    told = False
    for row in flight.states:
        last = bisect.bisect_right(times, row.time_s + ORDER_SLACK_S) - 1
        silent = row.time_s - times[last] if last >= 0 else math.inf
        if row.data.gate_mode == _ACTIVE and flight.commands and silent > HOVER_GAP_S + EPOCH_SLACK_S:
            if not told:
                yield row.time_s, f"the gate is ACTIVE {silent:.2f} s after the last acceptable command"
            told = True
        else:
            told = False


def _order(e: _Evidence) -> Iterator[Finding]:
    flight = e.flight
    for command, problem in zip(flight.commands, e.problems, strict=True):
        if problem and problem.startswith("out of order"):
            yield command.time_s, f"a command of epoch {command.epoch} is {problem}"
    for name, rows in (
        ("odometry", [(s.time_s, s.stamp_s) for s in flight.odometry]),
        ("pictures", flight.images),
        ("vehicle states", [(s.time_s, to_seconds(s.data.stamp)) for s in flight.states]),
    ):
        for (_, before), (time_s, stamp_s) in itertools.pairwise(rows):
            if stamp_s < before:
                yield time_s, f"{name}: stamp {stamp_s:.3f} after {before:.3f}"
    epoch = None
    for row in flight.states:
        if epoch is not None and row.data.epoch < epoch and row.data.epoch != 0:
            yield row.time_s, f"the gate's epoch fell from {epoch} to {row.data.epoch}"
        epoch = row.data.epoch
    steps: dict[str, int] = {}
    for row in flight.decisions:
        goal, step = row.data.goal_id, int(row.data.step)
        if goal in steps and step != steps[goal] + 1:
            yield row.time_s, f"decision {step} of goal {goal[:8]} follows decision {steps[goal]}"
        steps[goal] = step


def _goal_end(e: _Evidence) -> Iterator[Finding]:
    """Nothing is decided or flown for a goal that has ended, until the next is accepted."""
    flight = e.flight
    for index, row in enumerate(flight.goal_states):
        if row.data.state != _ENDED or not row.data.goal_id:  # without an id: a goal that was rejected
            continue
        goal = row.data.goal_id
        accepted = (r.time_s for r in flight.goal_states[index + 1 :] if r.data.state == _ACCEPTED)
        next_s = next(accepted, flight.end_s)
        for command in e.commands_between(row.time_s + ACCEPTANCE_SLACK_S, next_s - ORDER_SLACK_S):
            if not command.is_hover:
                yield command.time_s, f"{_shown(command)} was sent after goal {goal[:8]} had ended"
        last = e.last_command_before(row.time_s + ORDER_SLACK_S)
        if last and not last.is_hover and not e.commands_between(row.time_s, row.time_s + HOVER_GAP_S):
            yield row.time_s, f"goal {goal[:8]} ended without hover: the last command was {_shown(last)}"
        for decision in flight.decisions:
            if decision.data.goal_id == goal and decision.time_s > row.time_s + HOVER_GAP_S:
                yield (
                    decision.time_s,
                    f"decision {decision.data.step} was taken for goal {goal[:8]}, which had ended",
                )


def _gaps(e: _Evidence) -> Iterator[Finding]:
    flight = e.flight
    for name, times, most in (
        ("odometry", e.odometry_times, ODOMETRY_GAP_S),
        ("vehicle state", e.state_times, STATE_GAP_S),
        ("picture", [time_s for time_s, _ in flight.images], IMAGE_GAP_S),
    ):
        for a, b in itertools.pairwise(times):
            if b - a > most:
                yield a, f"no {name} for {b - a:.2f} s"


def _is_moving(sample: OdometrySample) -> bool:
    return sample.speed > MOVING_M_S or abs(sample.yaw_rate) > MOVING_RAD_S


def _shown(command: Command) -> str:
    x, y, z = command.velocity
    return f"command {command.sequence} ({x:+.2f} {y:+.2f} {z:+.2f} m/s, {command.yaw_rate:+.2f} rad/s)"


RULES: dict[str, Callable[[_Evidence], Iterator[Finding]]] = {
    "hover-on-acceptance": _hover_on_acceptance,
    "hover-while-thinking": _hover_while_thinking,
    "still-while-thinking": _still_while_thinking,
    "old-picture": _old_picture,
    "motion-without-command": _motion_without_command,
    "gate-open": _gate_open,
    "order": _order,
    "goal-end": _goal_end,
    "gap": _gaps,
}
