"""The summary of a flight: facts from its recording, its judge and the simulator, as data and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from airsim_sim.instructions import named_last
from airsim_sim.world import World
from nav_common.data import FinishReason, Outcome
from nav_common.success import is_success
from nav_eval.flight_log import FlightLog
from nav_eval.flight_view import at_time
from nav_eval.judge import Report

# Of Decision: waiting for a fresh frame and the queue, prefill to the first token, the generation, the agent's own.
LATENCY_PARTS = ("barrier", "ttft", "generate", "framework")


@dataclass(frozen=True)
class InstructionEnd:
    """How the pilot itself ended an instruction."""

    instruction: str
    reason: str
    distance_m: float | None
    """From there to what the instruction names; None where the world has no such thing."""


class NoOutcome(Enum):
    """Why a mission has no outcome of its goal."""

    NOT_STARTED = auto()
    AGENT_LOST = auto()


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50 and p95, rounded to 0.1; None of nothing."""
    if not values:
        return {"p50": None, "p95": None}
    p50, p95 = np.percentile(np.asarray(values, dtype=np.float64), [50, 95])
    return {"p50": round(float(p50), 1), "p95": round(float(p95), 1)}


def instruction_ends(flight: FlightLog, world: World) -> list[InstructionEnd]:
    """Of the last goal, in their order; places by the recorded odometry."""
    goal_id = flight.decisions[-1].data.goal_id if flight.decisions else ""
    times = [row.time_s for row in flight.odometry]
    ends = []
    for row in flight.decisions:
        odometry = at_time(flight.odometry, times, row.time_s)
        if row.data.goal_id != goal_id or row.data.tool != "finish" or odometry is None:
            continue
        here = odometry.data.position
        named = named_last(world, row.data.instruction)
        distance_m = world.object(named).distance_m((here.y, -here.x)) if named else None
        ends.append(
            InstructionEnd(row.data.instruction, json.loads(row.data.arguments)["reason"], distance_m)
        )
    return ends


def summarize(
    flight: FlightLog | None,
    report: Report | None,
    outcome: Outcome | NoOutcome,
    reason: str,
    path_m: float,
    distance_m: float | None,
    ends: Sequence[InstructionEnd] = (),
) -> dict[str, Any]:
    """The figures of one flight.

    Args:
        flight, report: the recording and what the judge found in it; None when nothing was recorded.
        outcome, reason: how the mission ended; in the figures the outcome's name is in lower case.
        distance_m: from the end of the flight to the goal on the map; None when the goal is unknown.
        ends: of the instructions that the pilot ended, where they are known.

    `frame_latency_ms` is from the camera's stamp to perception's queue, of the frames that entered the memory.
    `success` is nav_common.success's, of every instruction that the pilot ended. None when one of their goals is
    unknown; figures for which nothing was recorded are None too.
    """
    decisions = [row.data for row in flight.decisions] if flight else []
    states = [row.data for row in flight.states] if flight else []
    statuses = [row.data for row in flight.statuses] if flight else []
    status = statuses[-1] if statuses else None
    # One value a frame: several status messages may report the same one.
    frame_latency_ms = {s.frames_appended: s.frame_latency_ms for s in statuses if s.frames_appended}
    collisions = states[-1].collision_count - states[0].collision_count if states else None
    of_goal = outcome if isinstance(outcome, Outcome) else None
    reasons = [*(end.reason for end in ends[:-1]), reason]
    known_m = [away for away in (*(end.distance_m for end in ends[:-1]), distance_m) if away is not None]
    success = None
    if len(known_m) == len(reasons):
        judged = zip(reasons, known_m, strict=True)
        success = all(is_success(of_goal, said, away_m, collisions or 0) for said, away_m in judged)
    return {
        "outcome": outcome.name.lower(),
        "reason": reason,
        "success": success,
        "distance_to_goal_m": _rounded(distance_m),
        "instructions": [{**asdict(end), "distance_m": _rounded(end.distance_m)} for end in ends],
        "collisions": collisions,
        "decisions": len(decisions),
        "hover_violations": report.hover_violations if report else None,
        "breaches": len(report.breaches) if report else None,
        "path_m": round(path_m, 2),
        "decision_latency_ms": {
            **percentiles([d.total_ms for d in decisions]),
            "parts": {
                part: percentiles([float(getattr(d, f"{part}_ms")) for d in decisions])
                for part in LATENCY_PARTS
            },
        },
        "frame_latency_ms": percentiles(list(frame_latency_ms.values())),
        "frames": status.frames_appended if status else None,
        "frames_replaced": status.frames_replaced if status else None,
        "evictions": status.evictions if status else None,
        "duration_s": round(flight.end_s - flight.start_s, 1) if flight else None,
    }


def _rounded(metres: float | None) -> float | None:
    return None if metres is None else round(metres, 2)


def rows(summary: Mapping[str, Any]) -> dict[str, str]:
    """`summary` in words with units, by what each is about."""
    latency = summary["decision_latency_ms"]
    success = {True: "success", False: "no success", None: "success unknown (no goal is known here)"}
    goal = summary["distance_to_goal_m"]
    outcome = summary["outcome"].replace("_", " ")
    several = {"ends": _told(summary["instructions"])} if len(summary["instructions"]) > 1 else {}
    return {
        "outcome": f"{outcome} ({summary['reason']}): {success[summary['success']]}",
        "flown": f"{summary['path_m']} m" + (f", ended {goal} m from the goal" if goal is not None else ""),
        **several,
        "safety": f"{_shown(summary['collisions'])} collisions, "
        f"{_shown(summary['hover_violations'])} hover violations"
        + (f"; breaches of all rules: {summary['breaches']}" if summary["breaches"] else ""),
        "decisions": f"{summary['decisions']}, latency {_shown(latency['p50'])} ms (p95 {_shown(latency['p95'])})",
        "memory": f"{_shown(summary['frames'])} frames ({_shown(summary['frame_latency_ms']['p50'])} ms old on "
        f"arrival), {_shown(summary['evictions'])} evictions",
    }


def _told(ends: Sequence[Mapping[str, Any]]) -> str:
    reached = [f"{_shown(end['distance_m'])} m" for end in ends if end["reason"] == FinishReason.REACHED]
    said = f"{len(reached)} of {len(ends)} instructions with reached"
    return f"{said}, {', '.join(reached)} from what they name" if reached else said


def text(summary: Mapping[str, Any]) -> str:
    """The same for the terminal."""
    return "\n".join(f"{name:<12}{words}" for name, words in rows(summary).items())


def _shown(value: object) -> str:
    return "?" if value is None else str(value)
