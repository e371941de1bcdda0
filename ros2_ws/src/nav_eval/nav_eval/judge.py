"""The judge: reads any recording of a flight and reports each breach of the safety invariants, with its time.

It uses only what was recorded: commands on the wire, what the vehicle measured and reported, decisions and goal states.
What the gate executed is judged by stamps of the edge's clock (commands echo it) and by sequence numbers, so that a
recorder that had to wait for the processor is no breach. Rows of the agent (decisions, goal states, commands) are
compared with each other by log times, since their stamps may be of another machine's clock.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from nav_common.contract import (
    COMMAND_MAX_AGE_S,
    COMMAND_TIMEOUT_S,
    STAMP_TOLERANCE_S,
    STATE_PERIOD_S,
)
from nav_common.data import (
    Decision,
    DroneState,
    FlyingMode,
    GateMode,
    GenerateStatus,
    NavigateState,
    Odometry,
    VelocityCommand,
)
from nav_eval.bags import Logged
from nav_eval.flight_log import FlightLog, load

# Order in which messages of different topics reach the recorder: a few ms; chosen with room for a busy machine.
ORDER_SLACK_S = 0.05
# A goal that takes over from another finds its commands in transit: time until hover must hold (chosen).
ACCEPTANCE_SLACK_S = 0.1
# The first hover after acceptance, and between two hovers while thinking: the gate brakes after COMMAND_TIMEOUT_S;
# 0.2 s more means that nobody streams hover.
HOVER_GAP_S = COMMAND_TIMEOUT_S + 0.2
# "Moving", by odometry: above what hover in wind or a settling controller shows, below what any tool flies.
MOVING_M_S = 0.3
MOVING_RAD_S = 0.15
# From the stamp that the last motion command echoes until the vehicle begins to brake: the command may have been as
# old as the gate accepts, then the gate waits for the next one; 0.2 s to get the zero velocity to the vehicle
# (invariant 3).
COASTING_S = COMMAND_MAX_AGE_S + COMMAND_TIMEOUT_S + 0.2
# The least deceleration with which the vehicle is expected to stop, m/s2 (chosen: half of the gate's limit).
BRAKING_M_S2 = 1.0
# Speeding up: more than this within a quarter of a second is a motion that was commanded.
SPEED_UP_M_S = 0.25
SPEED_UP_RAD_S = 0.15
# After a contact, a take-off or a landing the vehicle moves on its own for a while.
SETTLING_S = 2.0
# Longest gaps between two messages of a topic, by their stamps.
ODOMETRY_GAP_S = 0.5
STATE_GAP_S = 1.0
IMAGE_GAP_S = 2.0


@dataclass(frozen=True)
class Breach:
    """One breach. `time_s` counts from the start of the recording; `log_time_s` is the message's log time."""

    rule: str
    time_s: float
    log_time_s: float
    message: str


@dataclass
class Report:
    """What the judge found."""

    path: str
    duration_s: float
    messages: int
    goals: int
    decisions: int
    commands: int
    judged: list[str] = field(default_factory=list)
    """The rules for which the recording has the topics."""
    notes: list[str] = field(default_factory=list)
    """The rules that could not be judged, and the topics that are missing."""
    breaches: list[Breach] = field(default_factory=list)

    @property
    def hover_violations(self) -> int:
        return sum(breach.rule in HOVER_RULES for breach in self.breaches)

    @property
    def nothing_judged(self) -> bool:
        """Whether no safety rule could be judged: order and gaps of topics alone are no verdict on a flight."""
        return not set(self.judged) - CONSISTENCY_RULES

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hover_violations": self.hover_violations}

    def text(self, most: int = 20) -> str:
        """For the terminal: one line a breach, at most `most` of each rule."""
        lines = [
            f"{self.path}: {self.duration_s:.1f} s, {_counted(self.messages, 'message')}, "
            f"{_counted(self.goals, 'goal')}, {_counted(self.decisions, 'decision')}, "
            f"{_counted(self.commands, 'command')}"
        ]
        lines += [f"  not judged: {note}" for note in self.notes]
        for rule in RULES:
            found = [breach for breach in self.breaches if breach.rule == rule]
            lines += [f"  {b.time_s:9.3f} s  {b.rule}: {b.message}" for b in found[:most]]
            if len(found) > most:
                lines.append(f"             {rule}: {len(found) - most} more")
        return "\n".join([*lines, f"  {self._verdict()}"])

    def _verdict(self) -> str:
        rules = f"{len(self.judged)} of {len(RULES)} rules judged"
        if self.breaches:
            return f"{_counted(len(self.breaches), 'breach')}, {rules}"
        if self.nothing_judged:
            return "no safety rule could be judged: the recording lacks the topics that they need"
        return f"no breach, {rules}"


def _counted(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{ending}"


def check(path: Path | str, vehicle_namespace: str | None = None) -> Report:
    """Judge the recording at `path`.

    Raises:
        BagError: it cannot be read.
    """
    return judge(load(path, vehicle_namespace))


def judge(log: FlightLog) -> Report:
    """Judge a flight by every rule for which it has the topics."""
    report = Report(
        str(log.path),
        max(log.end_s - log.start_s, 0.0),
        log.messages,
        sum(row.data.state is NavigateState.ACCEPTED for row in log.goal_states),
        len(log.decisions),
        len(log.commands),
    )
    lookup = _Lookup(log)
    for name, rule in RULES.items():
        missing = [each for each in rule.needs if not getattr(log, each)]
        if missing:
            what = ", ".join(each.replace("_", " ") for each in missing)
            report.notes.append(f"{name} (no {what} recorded)")
            continue
        report.judged.append(name)
        for time_s, message in rule.find(lookup):
            report.breaches.append(Breach(name, time_s - log.start_s, time_s, message))
    report.breaches.sort(key=lambda breach: breach.log_time_s)
    return report


class RefusalReason(Enum):
    """Why the gate must refuse a command."""

    NOT_FINITE = "not finite"
    OTHER_EPOCH = "of another epoch"
    TOO_OLD = "too old"
    OUT_OF_ORDER = "out of order"


@dataclass(frozen=True)
class _Problem:
    refusal: RefusalReason
    text: str


class _Lookup:
    """A flight log with the look-ups that several rules need. "Edge time": by stamps of the edge's clock."""

    def __init__(self, log: FlightLog) -> None:
        self.log = log
        self.command_times = [row.time_s for row in log.commands]
        self.odometry_times = [row.time_s for row in log.odometry]
        self.state_times = [row.time_s for row in log.states]
        self.problems = self._problems()
        acceptable = [
            row.data for row, problem in zip(log.commands, self.problems, strict=True) if not problem
        ]
        # A plain cmd_vel goes through the gate too; it echoes no stamp, so it counts by what the vehicle had sent then.
        manual = [self._edge_time(row.time_s) for row in log.cmd_vel]
        self.acceptable_stamps = sorted([c.stamp_s for c in acceptable] + manual)
        self.motion_stamps = sorted([c.stamp_s for c in acceptable if not c.twist.is_hover] + manual)
        self.settling = self._settling()

    def state_at(self, time_s: float) -> DroneState | None:
        index = bisect.bisect_right(self.state_times, time_s) - 1
        return self.log.states[index].data if index >= 0 else None

    def commands_between(self, start_s: float, end_s: float) -> list[Logged[VelocityCommand]]:
        return self.log.commands[
            bisect.bisect_left(self.command_times, start_s) : bisect.bisect_right(self.command_times, end_s)
        ]

    def last_command_before(self, time_s: float) -> Logged[VelocityCommand] | None:
        index = bisect.bisect_left(self.command_times, time_s) - 1
        return self.log.commands[index] if index >= 0 else None

    def first_command_after(self, time_s: float) -> Logged[VelocityCommand] | None:
        index = bisect.bisect_right(self.command_times, time_s)
        return self.log.commands[index] if index < len(self.log.commands) else None

    def odometry_between(self, start_s: float, end_s: float) -> list[Logged[Odometry]]:
        return self.log.odometry[
            bisect.bisect_left(self.odometry_times, start_s) : bisect.bisect_right(self.odometry_times, end_s)
        ]

    def thinking(self) -> Iterator[tuple[Decision, float, float]]:
        """Each decision with the log times of its asking and its end."""
        for row in self.log.decisions:
            yield row.data, row.time_s - (row.data.stamp_s - row.data.ask_stamp_s), row.time_s

    def airborne_at(self, time_s: float) -> bool:
        state = self.state_at(time_s)
        return state is None or state.flying_mode is FlyingMode.AIRBORNE

    def is_settling(self, time_s: float) -> bool:
        index = bisect.bisect_right(self.settling, (time_s, math.inf)) - 1
        return index >= 0 and time_s <= self.settling[index][1]

    def _edge_time(self, time_s: float) -> float:
        """Newest odometry stamp that was logged by `time_s`; minus infinity before the first."""
        index = bisect.bisect_right(self.odometry_times, time_s) - 1
        return self.log.odometry[index].data.stamp_s if index >= 0 else -math.inf

    def _problems(self) -> list[_Problem | None]:
        """Why the gate must refuse each command, or None. The age is measured from the newest stamp that a command
        before has echoed, since the vehicle's clock was at least there; how much motion a command explains is judged by
        its stamp in any case."""
        highest: dict[int, int] = {}
        newest_s = -math.inf
        problems: list[_Problem | None] = []
        state_stamps = [row.data.stamp_s for row in self.log.states]
        for row in self.log.commands:
            command, problem = row.data, None
            epochs = self._epochs_around(state_stamps, command.stamp_s)
            last = highest.get(command.epoch)
            age_s = newest_s - command.stamp_s
            newest_s = max(newest_s, command.stamp_s)
            if not command.twist.is_finite:
                problem = _Problem(RefusalReason.NOT_FINITE, "not finite")
            elif epochs and command.epoch not in epochs:
                text = f"of epoch {command.epoch} while the gate's was {max(epochs)}"
                problem = _Problem(RefusalReason.OTHER_EPOCH, text)
            elif age_s > COMMAND_MAX_AGE_S:
                problem = _Problem(RefusalReason.TOO_OLD, f"{age_s:.2f} s old by its echoed stamp")
            elif last is not None and command.sequence <= last:
                text = f"out of order (sequence {command.sequence} after {last})"
                problem = _Problem(RefusalReason.OUT_OF_ORDER, text)
            else:
                highest[command.epoch] = command.sequence
            problems.append(problem)
        return problems

    def _epochs_around(self, state_stamps: list[float], stamp_s: float) -> set[int]:
        """The gate's epochs from when the command's stamp was made until the command was too old. A state holds until
        the next one."""
        first = bisect.bisect_right(state_stamps, stamp_s - STATE_PERIOD_S) - 1
        last = bisect.bisect_right(state_stamps, stamp_s + COMMAND_MAX_AGE_S + STATE_PERIOD_S)
        return {row.data.epoch for row in self.log.states[max(first, 0) : last]}

    def _settling(self) -> list[tuple[float, float]]:
        """Log times within which the vehicle moves without a command: take-off, landing, after a contact."""
        spans: list[tuple[float, float]] = []
        contacts: int | None = None
        for row in self.log.states:
            state = row.data
            touched = contacts is not None and state.collision_count > contacts
            contacts = state.collision_count
            moves_itself = state.flying_mode in (FlyingMode.TAKING_OFF, FlyingMode.LANDING)
            if touched or moves_itself or state.gate_mode is GateMode.LAND:
                start, end = row.time_s - 0.5, row.time_s + SETTLING_S
                if spans and start <= spans[-1][1]:
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((start, end))
        return spans


Finding = tuple[float, str]


def _hover_on_acceptance(lookup: _Lookup) -> Iterator[Finding]:
    log = lookup.log
    for index, row in enumerate(log.goal_states):
        if row.data.state is not NavigateState.ACCEPTED:
            continue
        goal = row.data.goal_id
        ends = [r.time_s for r in log.decisions if r.data.goal_id == goal and r.time_s > row.time_s]
        ends += [
            r.time_s
            for r in log.goal_states[index + 1 :]
            if r.data.state in (NavigateState.ACCEPTED, NavigateState.ENDED)
        ]
        end_s = min(ends, default=log.end_s) - ORDER_SLACK_S
        for command in lookup.commands_between(row.time_s + ACCEPTANCE_SLACK_S, end_s):
            if not command.data.twist.is_hover:
                yield (
                    command.time_s,
                    f"goal {goal[:8]} has no decision yet, but {_shown(command.data)} was sent",
                )
        first = next(iter(lookup.commands_between(row.time_s - ORDER_SLACK_S, log.end_s)), None)
        late_s = (first.time_s if first else log.end_s) - row.time_s
        if lookup.airborne_at(row.time_s) and late_s > HOVER_GAP_S:
            yield (
                row.time_s,
                f"goal {goal[:8]} was accepted in the air, but no command followed for {late_s:.2f} s",
            )


def _hover_while_thinking(lookup: _Lookup) -> Iterator[Finding]:
    for decision, asked, done in lookup.thinking():
        step = f"decision {decision.step}"
        if not decision.hovering:
            yield done, f"{step} itself reports that it was not hovering"
        # A decision may be shorter than the slack: what follows it is the motion that it chose.
        before = lookup.last_command_before(min(asked + ORDER_SLACK_S, max(asked, done - ORDER_SLACK_S)))
        if before and not before.data.twist.is_hover:
            yield asked, f"{step} was asked for while the last command was {_shown(before.data)}"
        during = lookup.commands_between(asked + ORDER_SLACK_S, done - ORDER_SLACK_S)
        for command in during:
            if not command.data.twist.is_hover:
                yield command.time_s, f"{_shown(command.data)} was sent while {step} was being generated"
        if lookup.airborne_at(asked):
            around = [before, *during, lookup.first_command_after(done - ORDER_SLACK_S)]
            for a, b in itertools.pairwise(around):
                start = max(a.time_s, asked) if a else asked
                gap_s = min((min(b.time_s, done) if b else done) - start, _sending_gap_s(a, b))
                if gap_s > HOVER_GAP_S:
                    yield start, f"no hover was sent for {gap_s:.2f} s while {step} was being generated"


def _sending_gap_s(a: Logged[VelocityCommand] | None, b: Logged[VelocityCommand] | None) -> float:
    """Time between two commands when they were sent, by the stamps that they echo; those that the recorder missed, as
    the sequence tells, lie evenly between."""
    if not a or not b or a.data.epoch != b.data.epoch or b.data.sequence <= a.data.sequence:
        return math.inf
    return (b.data.stamp_s - a.data.stamp_s) / (b.data.sequence - a.data.sequence)


def _still_while_thinking(lookup: _Lookup) -> Iterator[Finding]:
    for decision, asked, done in lookup.thinking():
        if decision.status is not GenerateStatus.OK:
            continue
        moving = [
            row
            for row in lookup.odometry_between(asked, done)
            if _is_moving(row.data) and not lookup.is_settling(row.time_s)
        ]
        if moving:
            fastest = max((row.data for row in moving), key=lambda sample: sample.speed)
            yield (
                moving[0].time_s,
                (
                    f"the vehicle moved ({fastest.speed:.2f} m/s, {abs(fastest.yaw_rate):.2f} rad/s) while decision "
                    f"{decision.step} was being generated"
                ),
            )


def _old_picture(lookup: _Lookup) -> Iterator[Finding]:
    for decision, asked, done in lookup.thinking():
        if decision.status is not GenerateStatus.OK:
            continue
        step, frame_s, barrier_s = (
            f"decision {decision.step}",
            decision.frame_stamp_s,
            decision.barrier_stamp_s,
        )
        if frame_s == 0.0:
            yield done, f"{step} rests on no picture"
            continue
        if frame_s < barrier_s - STAMP_TOLERANCE_S:
            yield done, f"{step} rests on a picture {barrier_s - frame_s:.3f} s older than its own barrier"
            continue
        index = bisect.bisect_right(lookup.odometry_times, asked) - 1
        while index >= 0 and not _is_moving(lookup.log.odometry[index].data):
            index -= 1
        if index >= 0 and frame_s < lookup.log.odometry[index].data.stamp_s - STAMP_TOLERANCE_S:
            moved = lookup.log.odometry[index].data
            yield (
                done,
                (
                    f"{step} rests on a picture taken {moved.stamp_s - frame_s:.3f} s before the last motion ended "
                    f"({moved.speed:.2f} m/s at {moved.stamp_s:.3f})"
                ),
            )


def _motion_without_command(lookup: _Lookup) -> Iterator[Finding]:
    """Every motion is explained by a command that the gate may execute; otherwise something else moved the vehicle."""
    reported = False
    rows = lookup.log.odometry
    earlier = 0
    for index, row in enumerate(rows):
        sample = row.data
        while rows[earlier].data.stamp_s < sample.stamp_s - 0.25 and earlier < index:
            earlier += 1
        if not _is_moving(sample) or lookup.is_settling(row.time_s):
            reported = reported and _is_moving(sample)
            continue
        last = bisect.bisect_right(lookup.motion_stamps, sample.stamp_s + STAMP_TOLERANCE_S) - 1
        since_s = sample.stamp_s - lookup.motion_stamps[last] if last >= 0 else math.inf
        before = rows[earlier].data
        speeding_up = (
            sample.speed - before.speed > SPEED_UP_M_S
            or abs(sample.yaw_rate) - abs(before.yaw_rate) > SPEED_UP_RAD_S
        )
        if since_s > COASTING_S and speeding_up:
            what = "speeds up"
        elif since_s > COASTING_S + sample.speed / BRAKING_M_S2:
            what = "still moves"
        else:
            reported = False
            continue
        if not reported:
            yield row.time_s, _unexplained(lookup, row, since_s, what)
        reported = True


def _unexplained(lookup: _Lookup, row: Logged[Odometry], since_s: float, what: str) -> str:
    after = (
        f"{since_s:.2f} s after the last acceptable motion command"
        if math.isfinite(since_s)
        else "without any command"
    )
    sample = row.data
    text = f"the vehicle {what} at {sample.speed:.2f} m/s, {sample.yaw_rate:+.2f} rad/s, {after}"
    first = bisect.bisect_left(lookup.command_times, row.time_s - COASTING_S)
    last = bisect.bisect_right(lookup.command_times, row.time_s)
    for index in range(last - 1, first - 1, -1):
        command, problem = lookup.log.commands[index].data, lookup.problems[index]
        if command.twist.is_hover:
            continue
        age_s = sample.stamp_s - command.stamp_s
        why = (
            problem.text
            if problem
            else f"{age_s:.2f} s old by its echoed stamp"
            if age_s > COASTING_S
            else ""
        )
        if why:
            return f"{text}: {_shown(command)}, {why}, was executed"
    return text


def _gate_open(lookup: _Lookup) -> Iterator[Finding]:
    """The gate leaves ACTIVE when no acceptable command comes."""
    stamps, most_s = lookup.acceptable_stamps, COMMAND_MAX_AGE_S + COMMAND_TIMEOUT_S
    reported = False
    for row in lookup.log.states:
        last = bisect.bisect_right(stamps, row.data.stamp_s + STAMP_TOLERANCE_S) - 1
        elapsed_s = row.data.stamp_s - stamps[last] if last >= 0 else math.inf
        if row.data.gate_mode is GateMode.ACTIVE and elapsed_s > most_s:
            if not reported:
                yield row.time_s, f"the gate is ACTIVE {elapsed_s:.2f} s after the last acceptable command"
            reported = True
        else:
            reported = False


def _order(lookup: _Lookup) -> Iterator[Finding]:
    log = lookup.log
    for row, problem in zip(log.commands, lookup.problems, strict=True):
        if problem and problem.refusal is RefusalReason.OUT_OF_ORDER:
            yield row.time_s, f"a command of epoch {row.data.epoch} is {problem.text}"
    for name, rows in _stamps_of(log).items():
        for before, after in itertools.pairwise(rows):
            if after.data < before.data:
                yield after.time_s, f"{name}: stamp {after.data:.3f} after {before.data:.3f}"
    for earlier, state in itertools.pairwise(log.states):
        if 0 != state.data.epoch < earlier.data.epoch:  # 0: a bridge that was started anew
            yield state.time_s, f"the gate's epoch fell from {earlier.data.epoch} to {state.data.epoch}"
    steps: dict[str, int] = {}
    for decision in log.decisions:
        goal, step = decision.data.goal_id, decision.data.step
        if goal in steps and step != steps[goal] + 1:
            yield decision.time_s, f"decision {step} of goal {goal[:8]} follows decision {steps[goal]}"
        steps[goal] = step


def _goal_end(lookup: _Lookup) -> Iterator[Finding]:
    """Nothing is decided or flown for a goal that has ended, until the next is accepted."""
    log = lookup.log
    for index, row in enumerate(log.goal_states):
        # Without an id: a goal that was rejected.
        if row.data.state is not NavigateState.ENDED or not row.data.goal_id:
            continue
        goal = row.data.goal_id
        accepted = (r.time_s for r in log.goal_states[index + 1 :] if r.data.state is NavigateState.ACCEPTED)
        next_s = next(accepted, log.end_s)
        for command in lookup.commands_between(row.time_s + ACCEPTANCE_SLACK_S, next_s - ORDER_SLACK_S):
            if not command.data.twist.is_hover:
                yield command.time_s, f"{_shown(command.data)} was sent after goal {goal[:8]} had ended"
        last = lookup.last_command_before(row.time_s + ORDER_SLACK_S)
        if (
            last
            and not last.data.twist.is_hover
            and not lookup.commands_between(row.time_s, row.time_s + HOVER_GAP_S)
        ):
            yield row.time_s, f"goal {goal[:8]} ended without hover: the last command was {_shown(last.data)}"
        for decision in log.decisions:
            if decision.data.goal_id == goal and decision.time_s > row.time_s + HOVER_GAP_S:
                yield (
                    decision.time_s,
                    f"decision {decision.data.step} was taken for goal {goal[:8]}, which had ended",
                )


def _gaps(lookup: _Lookup) -> Iterator[Finding]:
    most_s = {"odometry": ODOMETRY_GAP_S, "vehicle states": STATE_GAP_S, "pictures": IMAGE_GAP_S}
    for name, rows in _stamps_of(lookup.log).items():
        for before, after in itertools.pairwise(rows):
            if after.data - before.data > most_s[name]:
                yield before.time_s, f"no {name} for {after.data - before.data:.2f} s"


def _stamps_of(log: FlightLog) -> dict[str, list[Logged[float]]]:
    """What the vehicle sent, by its stamps."""
    return {
        "odometry": [Logged(row.time_s, row.data.stamp_s) for row in log.odometry],
        "pictures": log.image_stamps,
        "vehicle states": [Logged(row.time_s, row.data.stamp_s) for row in log.states],
    }


def _is_moving(sample: Odometry) -> bool:
    return sample.speed > MOVING_M_S or abs(sample.yaw_rate) > MOVING_RAD_S


def _shown(command: VelocityCommand) -> str:
    (x, y, z), yaw_rate = command.twist.linear, command.twist.angular.z
    return f"command {command.sequence} ({x:+.2f} {y:+.2f} {z:+.2f} m/s, {yaw_rate:+.2f} rad/s)"


@dataclass(frozen=True)
class _Rule:
    """`needs`: the lists of a FlightLog without which the rule says nothing."""

    find: Callable[[_Lookup], Iterator[Finding]]
    needs: tuple[str, ...] = ()


RULES: dict[str, _Rule] = {
    "hover-on-acceptance": _Rule(_hover_on_acceptance, ("goal_states", "commands")),
    "hover-while-thinking": _Rule(_hover_while_thinking, ("decisions", "commands")),
    "still-while-thinking": _Rule(_still_while_thinking, ("decisions", "odometry")),
    "old-picture": _Rule(_old_picture, ("decisions",)),
    "motion-without-command": _Rule(_motion_without_command, ("odometry", "commands")),
    "gate-open": _Rule(_gate_open, ("states", "commands")),
    "order": _Rule(_order),
    "goal-end": _Rule(_goal_end, ("goal_states", "commands")),
    "gap": _Rule(_gaps),
}
HOVER_RULES = ("hover-on-acceptance", "hover-while-thinking", "still-while-thinking")
CONSISTENCY_RULES = {"order", "gap"}
"""About the recording rather than the flight."""
