"""Lock-step: the real cores fly together, the same way each time, and the judge finds nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.data import Outcome
from nav_eval import judge
from nav_eval.lockstep import FlownMission, LockStepSettings, _Composition, fly, load_model
from nav_eval.policies import Call
from vlm_perception.serving_form import ServingForm
from vlm_perception.testing.tiny_model import make_tiny_model

SHORT = LockStepSettings(max_decisions=2, time_limit_s=30.0)
SHORT_BUT_WHOLE = LockStepSettings(max_decisions=9, time_limit_s=90.0)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model: it calls tools at random, which is all that is wanted here."""
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=4.0)
    ServingForm(width=112, height=84, max_cache_tokens=4096).save(folder)
    return folder


def flown(
    folder: Path, seed: int = 7, record: Path | None = None, settings: LockStepSettings = SHORT
) -> FlownMission:
    return fly(
        load_world("field", seed), ["fly to the red beacon"], load_model(folder), settings, record=record
    )


@pytest.mark.timeout(180)
def test_a_mission_flies_without_a_breach_and_again_the_same(model_folder: Path, tmp_path: Path) -> None:
    first = flown(model_folder, record=tmp_path / "flight")
    assert first.result.decisions == 2
    assert len(first.decisions) == len(first.engine_ms) == 2
    assert min(first.engine_ms) > 0.0
    report = judge.judge(first.log)
    assert report.breaches == [], report.text()
    assert (report.goals, report.decisions) == (1, len(first.decisions))
    for decision in first.log.decisions:
        assert decision.data.hovering
        assert decision.data.total_ms >= 300.0  # what a decision costs in virtual time

    recorded = judge.check(tmp_path / "flight")
    assert recorded.breaches == []
    assert (recorded.decisions, recorded.commands) == (report.decisions, report.commands)

    again = flown(model_folder)
    assert (again.decisions, again.track, again.virtual_s) == (first.decisions, first.track, first.virtual_s)
    assert again.log.odometry == first.log.odometry
    assert again.log.commands == first.log.commands


@pytest.mark.timeout(120)
def test_api_control_taken_away_ends_the_mission_as_in_a_live_flight(model_folder: Path) -> None:
    simulation = Simulation(load_world("field", 7))
    settings = LockStepSettings(max_decisions=40, time_limit_s=90.0)
    composition = _Composition(simulation, load_model(model_folder), settings, None)
    take_away = composition.clock.now() + 6.0
    composition.clock.call_at(take_away, lambda: simulation.call("enableApiControl", False, ""))
    try:
        result = composition.fly(["fly to the red beacon"])
    finally:
        composition.close()
        simulation.close()
    assert result.outcome == Outcome.DRONE_LOST, result.reason
    assert "API control is off" in result.reason


@pytest.mark.timeout(120)
def test_policies_fly_in_place_of_a_model_one_for_each_instruction() -> None:
    """To a pillar at its side and back to the start: each policy is asked until it finishes."""
    there: Iterator[Call] = iter(
        [
            ("turn_left", {"angle_deg": 30}),
            ("move_forward", {"distance_m": 2}),
            ("finish", {"reason": "reached"}),
        ]
    )
    back: Iterator[Call] = iter([("turn_right", {"angle_deg": 90}), ("finish", {"reason": "reached"})])
    mission = fly(
        load_world("field", 7),
        ["go there", "come back"],
        [lambda *_: next(there), lambda *_: next(back)],
        SHORT_BUT_WHOLE,
    )
    assert mission.result.outcome is Outcome.FINISHED
    assert [decision.tool for decision in mission.decisions] == [
        "turn_left", "move_forward", "finish", "turn_right", "finish",
    ]  # fmt: skip
    at_finish = mission.decisions[2]
    assert math.hypot(*at_finish.position[:2]) == pytest.approx(2.0, abs=0.4)
    assert math.degrees(at_finish.heading) == pytest.approx(
        30.0 + load_world("field", 7).start_yaw_deg, abs=5.0
    )
    assert judge.judge(mission.log).breaches == []
    assert mission.track[0].time_s >= mission.decisions[0].time_s
    assert mission.contacts == ()
