"""What is read out of a flight across the link."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nav_bringup.two_machines import main, outages, stale_commands_executed
from nav_bringup.watch import Received
from nav_common.data import DroneState, GateMode, LinkState, Twist, VelocityCommand
from nav_common.process import CONFIGURATION_ERROR
from nav_common.testing import free_port, unique_domain_id

FORWARD = Twist.body(forward_m_s=1.0)


def link(stamp_s: float, up: bool, answer_age_s: float = 0.1) -> LinkState:
    return LinkState(stamp_s, up=up, answer_age_s=answer_age_s)


def state(stamp_s: float, mode: GateMode, epoch: int = 1) -> DroneState:
    return DroneState(stamp_s, gate_mode=mode, epoch=epoch)


def test_an_outage_in_flight_is_timed_from_the_last_answer_and_from_the_links_return() -> None:
    links = [link(0.0, False), link(1.0, True), link(10.0, True), link(11.0, False, 1.0), link(20.0, True)]
    states = [
        state(2.0, GateMode.ACTIVE),
        state(9.9, GateMode.ACTIVE),
        state(10.3, GateMode.BRAKE, 2),
        state(10.9, GateMode.HOLD, 2),
        state(20.2, GateMode.ACTIVE, 2),
    ]
    commands = [
        Received(1.5, VelocityCommand(1.5, epoch=1, sequence=1, twist=FORWARD)),
        Received(
            20.1, VelocityCommand(10.0, epoch=1, sequence=2, twist=FORWARD)
        ),  # late, of before the outage
        Received(20.2, VelocityCommand(20.2, 2, 1, Twist())),  # hovers while the agent thinks
        Received(22.5, VelocityCommand(22.5, epoch=2, sequence=2, twist=FORWARD)),
    ]
    hover_s, recover_s = outages(links, states, commands)
    assert hover_s == pytest.approx([0.3])
    assert recover_s == pytest.approx([2.5])


def test_an_outage_while_hovering_stops_nothing() -> None:
    links = [link(1.0, True), link(11.0, False, 1.0)]
    assert outages(links, [state(9.0, GateMode.HOLD), state(12.0, GateMode.HOLD)], []) == ([], [])


def test_a_mission_is_flown_from_the_server_by_an_edge_elsewhere_and_judged_by_the_truth_it_tells(
    tmp_path: Path,
) -> None:
    port = free_port()
    link, airsim = ["--link", f"tcp/127.0.0.1:{port}"], ["--airsim-port", str(free_port())]

    def side(name: str, *words: str) -> list[str]:
        runs = ["--runs", str(tmp_path / name)]
        return [sys.executable, "-m", "nav_bringup.fly", "--side", name, *link, *runs, *words]

    edge_environment = {**os.environ, "ROS_DOMAIN_ID": str(unique_domain_id())}
    edge = subprocess.Popen(side("edge", *airsim), env=edge_environment, cwd=tmp_path)
    try:
        server_environment = {**os.environ, "ROS_DOMAIN_ID": str(unique_domain_id())}
        flown = subprocess.run(
            side("server", "--max-decisions", "2"),
            env=server_environment,
            cwd=tmp_path,
            timeout=200,
            check=False,
        )
    finally:
        edge.terminate()
        edge.wait(30)
    summary = json.loads((tmp_path / "server" / "latest" / "summary.json").read_text())
    assert flown.returncode == 0, summary
    assert (summary["outcome"], summary["truth"]) == ("step_limit", "over the link")
    assert summary["distance_to_goal_m"] > 1
    assert summary["decisions"] == 2
    assert summary["hover_violations"] == 0


def command(at_s: float, age_s: float) -> Received:
    return Received(at_s, VelocityCommand(at_s - age_s, 1, round(1000 * at_s), FORWARD))


def states_of(mode: GateMode, began_s: float, ended_s: float, epoch: int = 1) -> list[DroneState]:
    return [state(began_s + 0.1 * i, mode, epoch) for i in range(round(10 * (ended_s - began_s)))]


def test_a_gate_that_is_active_on_stale_commands_alone_executes_them() -> None:
    fresh = [command(0.05 * i, 0.1) for i in range(20)]
    stale = [command(9.0 + 0.001 * i, 8.0) for i in range(50)]
    held = [*states_of(GateMode.ACTIVE, 0.0, 1.3), *states_of(GateMode.HOLD, 1.3, 12.0)]
    assert stale_commands_executed([*fresh, *stale], held) == 0
    followed = [*held[:-30], *states_of(GateMode.ACTIVE, 9.0, 10.0)]
    assert stale_commands_executed([*fresh, *stale], followed) == 50


def test_a_fresh_command_among_late_ones_explains_an_active_gate() -> None:
    mixed = [command(0.05 * i, 0.6 if i % 2 else 0.1) for i in range(100)]
    assert stale_commands_executed(mixed, states_of(GateMode.ACTIVE, 0.0, 6.0)) == 0


def test_a_command_of_a_dead_epoch_and_those_that_come_just_before_a_fresh_one_are_no_reason() -> None:
    active = states_of(GateMode.ACTIVE, 20.0, 21.0, epoch=2)
    late = [Received(20.0 + 0.001 * i, VelocityCommand(10.0, 1, i, FORWARD)) for i in range(2)]
    assert stale_commands_executed(late, active) == 0
    late = [Received(20.0 + 0.001 * i, VelocityCommand(10.0, 2, i, FORWARD)) for i in range(2)]
    assert stale_commands_executed(late, active) == 2
    fresh = Received(20.003, VelocityCommand(20.0, 2, 2, FORWARD))
    assert stale_commands_executed([*late, fresh], active) == 0


def test_an_internet_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--internet", "mars"]) == CONFIGURATION_ERROR
    assert "'mars' is none of" in capsys.readouterr().err
