"""Lock-step: the real cores fly together, the same way each time, and the judge finds nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rosbags.highlevel import AnyReader

from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_agent.ports import Pending
from nav_common.data import (
    AskRequest,
    AskResponse,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    MarkerAction,
    MarkerType,
    Outcome,
    PrimeRequest,
    PrimeResponse,
    WatchRequest,
    WatchResponse,
)
from nav_eval import judge
from nav_eval.lockstep import (
    FlownMission,
    ForcedCall,
    LockStepSettings,
    _Completed,
    _Composition,
    _ForcedMemory,
    fly,
    load_model,
)
from nav_eval.metrics import TrackPoint
from nav_eval.policies import Call
from vlm_perception.identity.bank import MemoryBank
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

    # Foxglove and RViz know nothing of this project: what they draw is read here by the file's own definitions.
    with AnyReader([tmp_path / "flight"]) as reader:
        drawn = [connection for connection in reader.connections if connection.topic == "/nav_agent/markers"]
        assert [connection.msgtype for connection in drawn] == ["visualization_msgs/msg/MarkerArray"]
        drawings: list[Any] = [reader.deserialize(raw, of.msgtype) for of, _, raw in reader.messages(drawn)]
    assert all(drawing.markers[0].action == MarkerAction.DELETEALL for drawing in drawings)
    words = [marker.text for marker in drawings[-1].markers if marker.type == MarkerType.TEXT_VIEW_FACING]
    assert [text.partition(": ")[0] for text in words] == ["1", "2", "fly to the red beacon"]
    (way,) = [marker.points for marker in drawings[-1].markers if marker.type == MarkerType.LINE_STRIP]
    last = first.log.odometry[-1].data.position
    assert math.dist(last, (way[-1].x, way[-1].y, way[-1].z)) < 0.5

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


@pytest.mark.timeout(180)
def test_a_forced_call_changes_the_flight_from_its_decision_on_and_nothing_before(model_folder: Path) -> None:
    settings = LockStepSettings(max_decisions=4, time_limit_s=60.0)

    def with_forced(forced: ForcedCall | None) -> FlownMission:
        return fly(
            load_world("field", 7),
            ["fly to the red beacon"],
            load_model(model_folder),
            settings,
            forced=forced,
        )

    first = with_forced(None)
    assert len(first.decisions) == 4
    taken = first.decisions[2]

    same = with_forced(ForcedCall(3, taken.tool, taken.arguments))
    assert (same.decisions, same.track, same.virtual_s) == (first.decisions, first.track, first.virtual_s)
    assert same.log.odometry == first.log.odometry
    assert same.log.commands == first.log.commands

    other = (
        ("turn_left", {"angle_deg": 45}) if taken.tool != "turn_left" else ("turn_right", {"angle_deg": 45})
    )
    forked = with_forced(ForcedCall(3, *other))
    assert forked.decisions[:2] == first.decisions[:2]
    assert (forked.decisions[2].tool, forked.decisions[2].arguments) == other
    assert replace(forked.decisions[2], tool=taken.tool, arguments=taken.arguments) == taken
    assert len(forked.decisions) == 4  # the model goes on

    def up_to(flight: FlownMission) -> list[TrackPoint]:
        return [point for point in flight.track if point.time_s <= taken.time_s]

    assert up_to(forked) == up_to(first)
    assert up_to(first)
    assert forked.track != first.track


def test_a_call_is_not_forced_on_policies() -> None:
    with pytest.raises(ValueError, match="a policy has no memory"):
        fly(load_world("field", 7), ["go"], [lambda *_: ("hover", {})], forced=ForcedCall(1, "hover", {}))


def test_a_bank_that_brings_nothing_back_changes_nothing_of_a_flight(
    model_folder: Path, tmp_path: Path
) -> None:
    world, pilot = load_world("field", 7), load_model(model_folder)
    bank = MemoryBank(tmp_path, on_warning=pytest.fail)
    without = fly(world, ["fly to the red beacon"], pilot, SHORT)
    with_bank = fly(world, ["fly to the red beacon"], pilot, SHORT, bank=bank)
    assert with_bank.track == without.track
    assert without.recalls is None
    assert with_bank.recalls is not None
    assert with_bank.recalls.questions > 0
    assert bank.registry.entities.keys() == {"beacon_1"}


class _Answers:
    """A memory that gives these results one after the other."""

    def __init__(self, *results: GenerateResult) -> None:
        self._results = iter(results)

    def prime(self, request: PrimeRequest) -> Pending[PrimeResponse]:
        raise NotImplementedError

    def generate(self, goal: GenerateGoal) -> Pending[GenerateResult]:
        return _Completed(next(self._results))

    def ask(self, request: AskRequest) -> Pending[AskResponse]:
        raise NotImplementedError

    def watch(self, request: WatchRequest) -> Pending[WatchResponse]:
        raise NotImplementedError

    def alive(self) -> bool:
        return True

    def frames(self) -> int:
        return 0

    def cache_use(self) -> float:
        return 0.0


def test_only_the_wanted_decision_is_replaced_and_what_failed_is_none() -> None:
    own = [GenerateResult(GenerateStatus.OK, tool_call=f"{number}", tokens_in=number) for number in range(3)]
    memory = _ForcedMemory(
        _Answers(own[0], GenerateResult(GenerateStatus.DEADLINE), own[1], own[2]),
        ForcedCall(2, "climb", {"distance_m": 1}),
    )
    got = [memory.generate(GenerateGoal("", "")).wait(0.0) for _ in range(4)]
    forced = '{"name": "climb", "arguments": {"distance_m": 1}}'
    assert got == [
        own[0],
        GenerateResult(GenerateStatus.DEADLINE),
        replace(own[1], text=forced, tool_call=forced),
        own[2],
    ]
