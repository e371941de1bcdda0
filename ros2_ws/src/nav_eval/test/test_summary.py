"""The summary of a flight: figures from its recording, success, unknown values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airsim_sim.world import load_world
from nav_common.data import Decision, DroneState, EngineStatus, Odometry, Outcome
from nav_common.frames import Vector
from nav_eval.bags import Logged
from nav_eval.flight_log import FlightLog
from nav_eval.judge import Report
from nav_eval.summary import InstructionEnd, NoOutcome, instruction_ends, percentiles, rows, summarize, text


def flight(collisions: int = 0) -> FlightLog:
    result = FlightLog(Path("flight"), "/drone", start_s=10.0, end_s=40.0)
    for step in range(1, 12):
        parts = {"barrier_ms": 100.0, "ttft_ms": 10.0 * step, "generate_ms": 20.0 * step, "framework_ms": 2.0}
        decision = Decision(10.0 + step, 10.0, step=step, total_ms=100.0 * step, **parts)  # type: ignore[arg-type]
        result.decisions.append(Logged(10.0 + step, decision))
    for count in (3, 3 + collisions):
        result.states.append(Logged(10.0, DroneState(10.0, collision_count=count)))
    for frames, latency_ms in ((0, 0.0), (69, 30.0), (69, 30.0), (70, 50.0)):
        status = EngineStatus(
            40.0, frames_replaced=5, evictions=4, frames_appended=frames, frame_latency_ms=latency_ms
        )
        result.statuses.append(Logged(40.0, status))
    return result


def summary(
    outcome: Outcome | NoOutcome = Outcome.FINISHED,
    reason: str = "reached",
    distance_m: float | None = 1.5,
    collisions: int = 0,
) -> dict[str, Any]:
    return summarize(
        flight(collisions), Report("flight", 30.0, 9, 1, 11, 9), outcome, reason, 21.234, distance_m
    )


def test_the_figures_come_from_the_recording() -> None:
    figures = summary()
    assert figures["decisions"] == 11
    assert figures["decision_latency_ms"]["p50"] == 600.0
    assert figures["decision_latency_ms"]["p95"] == 1050.0
    assert figures["decision_latency_ms"]["parts"]["ttft"] == {"p50": 60.0, "p95": 105.0}
    assert (figures["frames"], figures["evictions"], figures["collisions"]) == (70, 4, 0)
    assert figures["frame_latency_ms"]["p50"] == 40.0
    assert (figures["path_m"], figures["duration_s"], figures["hover_violations"]) == (21.23, 30.0, 0)
    assert figures["success"] is True
    assert "finished (reached): success" in text(figures)


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": Outcome.STEP_LIMIT, "reason": "40 decisions"},
        {"outcome": NoOutcome.AGENT_LOST},
        {"reason": "not_found"},
        {"distance_m": 2.01},
        {"collisions": 1},
    ],
)
def test_success_is_reached_near_and_untouched(change: dict[str, Any]) -> None:
    assert summary(**change)["success"] is False


BACK = InstructionEnd("go back to the red tree", "reached", 1.2)


@pytest.mark.parametrize(
    ("first", "success"),
    [
        (InstructionEnd("fly to the blue beacon", "reached", 1.6), True),
        (InstructionEnd("fly to the blue beacon", "reached", 2.3), False),
        (InstructionEnd("fly to the blue beacon", "not_found", 1.6), False),
        (InstructionEnd("fly to the moon", "reached", None), None),
    ],
)
def test_of_several_instructions_each_must_be_reached(first: InstructionEnd, success: bool | None) -> None:
    figures = summarize(flight(), None, Outcome.FINISHED, "reached", 21.0, 1.2, [first, BACK])
    assert figures["success"] is success
    assert [end["distance_m"] for end in figures["instructions"]] == [first.distance_m, 1.2]


def test_what_several_instructions_came_to_is_told_in_one_line() -> None:
    ends = [InstructionEnd("fly to the blue beacon", "reached", 1.629), BACK]
    figures = summarize(flight(), None, Outcome.FINISHED, "reached", 21.0, 1.2, ends)
    assert rows(figures)["ends"] == "2 of 2 instructions with reached, 1.63 m, 1.2 m from what they name"
    assert "\nends        2 of 2 " in text(figures)
    assert "ends" not in rows(summary())
    given_up = [InstructionEnd("fly to the blue beacon", "not_found", 9.0)] * 2
    figures = summarize(flight(), None, Outcome.FINISHED, "not_found", 21.0, 9.0, given_up)
    assert rows(figures)["ends"] == "0 of 2 instructions with reached"


def test_where_an_instruction_ended_is_where_the_vehicle_was_when_the_pilot_finished_it() -> None:
    world = load_world("field-mixed", 595)
    north, west, _ = world.object("same_kind").position  # the blue beacon
    log = FlightLog(Path("flight"), "/drone", start_s=0.0, end_s=9.0)
    for time_s, x, y in ((1.0, 0.0, 0.0), (2.0, -west, north - 1.5), (3.0, 5.0, 5.0)):
        log.odometry.append(Logged(time_s, Odometry(time_s, Vector(x, y, 2.0))))
    for time_s, goal, tool, arguments, instruction in (
        (1.5, "a", "finish", '{"reason": "not_found"}', "of another goal"),
        (1.6, "b", "move_forward", '{"distance_m": 1}', "fly to the blue beacon"),
        (2.5, "b", "finish", '{"reason": "reached"}', "fly to the blue beacon"),
        (3.5, "b", "finish", '{"reason": "not_found"}', "fly to the moon"),
    ):
        decision = Decision(
            time_s, time_s, goal_id=goal, tool=tool, arguments=arguments, instruction=instruction
        )
        log.decisions.append(Logged(time_s, decision))
    beacon, moon = instruction_ends(log, world)
    assert (beacon.instruction, beacon.reason) == ("fly to the blue beacon", "reached")
    assert beacon.distance_m == pytest.approx(1.5)
    assert moon == InstructionEnd("fly to the moon", "not_found", None)
    assert instruction_ends(FlightLog(Path("flight"), "/drone", start_s=0.0, end_s=9.0), world) == []


@pytest.mark.parametrize(("breaches", "said"), [(0, ""), (2, "; breaches of all rules: 2")])
def test_a_breach_of_any_rule_stands_where_safety_does(breaches: int, said: str) -> None:
    figures = summary() | {"breaches": breaches}
    assert rows(figures)["safety"].endswith(f"0 hover violations{said}")


def test_what_nobody_knows_is_null() -> None:
    figures = summarize(None, None, Outcome.CANCELLED, "interrupted", 0.0, None)
    assert json.loads(json.dumps(figures))["success"] is None
    assert figures["collisions"] is figures["hover_violations"] is figures["frames"] is None
    assert percentiles([]) == {"p50": None, "p95": None}
    assert "success unknown" in text(figures)
