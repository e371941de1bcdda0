"""Whether an object was found again, and how long it had been out of sight, from the rows of a flight."""

from __future__ import annotations

import json
import math
from pathlib import Path

from airsim_sim.true_map import TrueMap
from airsim_sim.world import load_world
from nav_common.data import Decision, EngineStatus, FinishReason, GenerateStatus, Odometry
from nav_common.frames import Quaternion, Vector
from nav_common.topics import DECISION, ENGINE_STATUS, ODOM
from nav_eval.finding_again import FindingAgain, finding_again
from nav_eval.flight_log import FlightLog

WORLD = load_world("recall", 5)
GOALS = [goal.name for goal in WORLD.goals]
NORTH, SOUTH = math.pi / 2, -math.pi / 2  # yaw, counter-clockwise from east


def flight(end_north: float, *, reasons: tuple[FinishReason, ...] = (FinishReason.REACHED,) * 6) -> FlightLog:
    """Stands at the start looking north for 10 s, where the lamp is in sight; then far off in the north looking north,
    finishing an instruction each 10 s; then wherever it ends. A chunk enters the memory each second; it holds 12."""
    log = FlightLog(Path("flight"), "/drone")
    lamp = WORLD.object("lamp").position
    for second in range(70):
        east, north, yaw = (0.0, 0.0, NORTH) if second <= 10 else (-lamp[1], 90.0, NORTH)
        if second > 55:
            north, yaw = end_north, SOUTH
        half = yaw / 2
        pose = Odometry(
            second, Vector(east, north, 2.0), Quaternion(math.cos(half), 0.0, 0.0, math.sin(half))
        )
        log.add(ODOM, second, pose)
        log.add(
            ENGINE_STATUS, second, EngineStatus(second, chunks=min(second, 12), evictions=max(0, second - 12))
        )
        if second % 10 == 0 and second > 0:
            reason = reasons[min(second // 10, len(reasons)) - 1]
            arguments = json.dumps({"reason": reason.value})
            log.add(DECISION, second, decision(second, "finish", arguments))
        elif second == 65:
            log.add(DECISION, second, decision(second, "hover", "{}"))
    return log


def decision(second: float, tool: str, arguments: str) -> Decision:
    return Decision(
        second, second, second, second, "g", "go", 1, tool, arguments, status=GenerateStatus.OK, hovering=True
    )


def test_it_is_out_of_sight_from_the_last_pose_that_showed_it() -> None:
    log = flight(WORLD.object("lamp").position[0] + 1.5)
    assert finding_again(TrueMap(WORLD), GOALS, log, []) == FindingAgain(40, 12, True)


def test_found_is_what_was_finished_near_it_and_without_a_contact() -> None:
    near, far = WORLD.object("lamp").position[0] + 1.5, 60.0
    given_up = (*(FinishReason.REACHED,) * 5, FinishReason.NOT_FOUND)
    for log, contacts, found in (
        (flight(near), [45.0], True),
        (flight(near), [58.0], False),
        (flight(far), [], False),
        (flight(near, reasons=given_up), [], False),
    ):
        again = finding_again(TrueMap(WORLD), GOALS, log, contacts)
        assert again is not None
        assert again.found is found


def test_a_mission_that_names_nothing_twice_or_does_not_come_so_far_has_none() -> None:
    log = flight(10.0)
    assert finding_again(TrueMap(WORLD), GOALS[:-1], log, []) is None
    assert finding_again(TrueMap(WORLD), [*GOALS, "beacon", "lamp"], log, []) is None
