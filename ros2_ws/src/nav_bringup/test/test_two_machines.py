"""What is read out of a flight across the link."""

from __future__ import annotations

import pytest

from nav_bringup.two_machines import main, outages
from nav_common.data import DroneState, GateMode, LinkState
from nav_common.process import CONFIGURATION_ERROR


def link(stamp_s: float, up: bool, answer_age_s: float = 0.1) -> LinkState:
    return LinkState(stamp_s, up=up, answer_age_s=answer_age_s)


def state(stamp_s: float, mode: GateMode) -> DroneState:
    return DroneState(stamp_s, gate_mode=mode)


def test_an_outage_in_flight_is_timed_from_the_last_answer_and_from_the_links_return() -> None:
    links = [link(0.0, False), link(1.0, True), link(10.0, True), link(11.0, False, 1.0), link(20.0, True)]
    states = [
        state(2.0, GateMode.ACTIVE),
        state(9.9, GateMode.ACTIVE),
        state(10.3, GateMode.BRAKE),
        state(10.9, GateMode.HOLD),
        state(22.5, GateMode.ACTIVE),
    ]
    hover_s, recover_s = outages(links, states)
    assert hover_s == pytest.approx([0.3])
    assert recover_s == pytest.approx([2.5])


def test_an_outage_while_hovering_stops_nothing() -> None:
    links = [link(1.0, True), link(11.0, False, 1.0)]
    assert outages(links, [state(9.0, GateMode.HOLD), state(12.0, GateMode.HOLD)]) == ([], [])


def test_an_internet_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--internet", "mars"]) == CONFIGURATION_ERROR
    assert "'mars' is none of" in capsys.readouterr().err
