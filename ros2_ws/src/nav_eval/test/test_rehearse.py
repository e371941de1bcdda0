"""Rehearsal: what a motion's margin is, that the search finds the highest setting that holds, and what it writes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nav_common import topics
from nav_common.data import Decision, DroneState, GateMode, Odometry
from nav_common.frames import Vector
from nav_eval import rehearse
from nav_eval.__main__ import main
from nav_eval.flight_log import FlightLog
from nav_eval.rehearse import MISSIONS, QUALITIES, RATES_HZ, SEEDS, SPEEDS_M_S, STANDOFF_M, Flying, Probe


def flight(speed_m_s: float, length_m: float, flown_m: float) -> FlightLog:
    """One call move_forward(length_m), flown east at a constant speed, and stopped dead after `flown_m`."""
    log = FlightLog(Path("flight"), "/drone")
    arguments = json.dumps({"distance_m": length_m})
    log.add(topics.DECISION, 0.0, Decision(0.0, 0.0, tool="move_forward", arguments=arguments))
    for i in range(200):
        time_s = i / 30
        at = Vector(min(speed_m_s * time_s, flown_m), 0.0, 2.0)
        log.add(topics.ODOM, time_s, Odometry(time_s, at))
    log.add(topics.DECISION, 200 / 30, Decision(7.0, 7.0, tool="finish"))
    return log


def test_the_margin_is_the_way_left_when_the_link_is_lost_at_the_worst_moment() -> None:
    """At 2 m/s: 0.6 m until the gate notices, 1 m until it stands."""
    assert rehearse.margin_m(flight(2.0, 4.0, 4.0)) == pytest.approx(STANDOFF_M - 1.6, abs=0.1)


def test_a_motion_that_flies_past_its_end_has_less_margin() -> None:
    within, past = rehearse.margin_m(flight(1.0, 4.0, 4.0)), rehearse.margin_m(flight(1.0, 4.0, 6.0))
    assert within > 0 > past
    assert past == pytest.approx(within - 2.0, abs=0.1)


def test_turns_and_hovers_have_no_margin() -> None:
    log = FlightLog(Path("flight"), "/drone")
    log.add(topics.DECISION, 0.0, Decision(0.0, 0.0, tool="turn_left", arguments='{"angle_deg": 30}'))
    log.add(topics.ODOM, 0.1, Odometry(0.1))
    assert rehearse.margin_m(log) == math.inf


def test_a_new_epoch_between_decisions_is_a_motion_broken_off() -> None:
    log = flight(1.0, 4.0, 4.0)
    for time_s, epoch in ((-1.0, 1), (0.1, 2), (1.0, 2), (2.0, 3)):
        log.add(topics.STATE, time_s, DroneState(time_s, gate_mode=GateMode.ACTIVE, epoch=epoch))
    assert rehearse.broken_off(log) == 1


class World:
    """Holds up to these limits."""

    def __init__(self, most: Flying) -> None:
        self.most, self.flown = most, 0

    def fly(self, flying: Flying) -> Probe:
        self.flown += len(SEEDS)
        holds = (
            flying.speed_m_s <= self.most.speed_m_s
            and flying.picture_rate_hz <= self.most.picture_rate_hz
            and flying.jpeg_quality <= self.most.jpeg_quality
        )
        return Probe(flying, holds, 0.0, 0, 0, 0, len(SEEDS), None)


@given(st.sampled_from(SPEEDS_M_S), st.sampled_from(RATES_HZ), st.sampled_from(QUALITIES))
def test_the_search_finds_the_highest_setting_within_its_missions(
    speed: float, rate: float, quality: int
) -> None:
    world = World(Flying(speed, rate, quality))
    assert rehearse.search(world.fly) == world.most
    assert world.flown <= MISSIONS


def test_an_internet_that_nothing_flies_across_has_no_setting() -> None:
    assert rehearse.search(World(Flying(0.1, 2.0, 40)).fly) is None


def record(margin_m: float | None, broken_off: int = 0) -> dict[str, object]:
    return {
        "margin_m": margin_m,
        "broken_off": broken_off,
        "success": True,
        "contacts": 0,
        "image_ages_ms": [50.0, 60.0],
    }


@pytest.mark.parametrize(
    ("records", "holds"),
    [
        ([record(0.3), record(None)], True),
        ([record(0.3), record(-0.01)], False),
        ([record(0.3), record(0.3, broken_off=1)], False),
        ([record(None)], False),
    ],
)
def test_one_motion_too_long_or_voided_is_enough(records: list[dict[str, object]], holds: bool) -> None:
    assert rehearse.judge(Flying(1.0, 2.0, 40), records).holds is holds


def test_the_parameter_file_names_nodes_and_parameters_of_the_graph() -> None:
    values = yaml.safe_load(rehearse.parameters(Flying(1.25, 5.0, 70)))
    assert values["nav_agent"]["ros__parameters"] == {"speed": 1.25}
    assert values["airsim_bridge"]["ros__parameters"] == {"image_rate_hz": 5.0, "jpeg_quality": 70}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mars"], "'mars' is none of"),
        (["cut"], "has outages"),
        (["wan", "--scene", "moon"], "moon"),
        (["wan", "--processes", "0"], "--processes is 0"),
    ],
)
def test_what_cannot_be_rehearsed_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_candidate_above_one_that_fails_is_not_taken() -> None:
    steps = [Flying(float(speed), 2.0, 40) for speed in range(1, 9)]
    assert rehearse.highest(steps, World(replace(steps[4])).fly) == steps[4]
