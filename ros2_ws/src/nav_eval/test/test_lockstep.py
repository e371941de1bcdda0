"""Lock-step: the real cores fly together, the same way each time, and the judge finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.data import Outcome
from nav_eval import judge
from nav_eval.lockstep import FlownMission, LockStepSettings, _Composition, fly, load_model
from nav_eval.missions import main, parse_seeds, wilson
from vlm_perception.serving_form import ServingForm
from vlm_perception.testing.tiny_model import make_tiny_model

SHORT = LockStepSettings(max_decisions=2, time_limit_s=30.0)


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
        load_world("field", seed), "fly to the red beacon", *load_model(folder), settings, record=record
    )


@pytest.mark.timeout(180)
def test_a_mission_flies_without_a_breach_and_again_the_same(model_folder: Path, tmp_path: Path) -> None:
    first = flown(model_folder, record=tmp_path / "flight")
    assert first.result.decisions == 2
    assert len(first.calls) == 2
    report = judge.judge(first.log)
    assert report.breaches == [], report.text()
    assert (report.goals, report.decisions) == (1, len(first.calls))
    for decision in first.log.decisions:
        assert decision.data.hovering
        assert decision.data.total_ms >= 300.0  # what a decision costs in virtual time

    recorded = judge.check(tmp_path / "flight")
    assert recorded.breaches == []
    assert (recorded.decisions, recorded.commands) == (report.decisions, report.commands)

    again = flown(model_folder)
    assert (again.calls, again.goal_distance_m, again.virtual_s) == (
        first.calls,
        first.goal_distance_m,
        first.virtual_s,
    )
    assert again.log.odometry == first.log.odometry
    assert again.log.commands == first.log.commands


@pytest.mark.timeout(120)
def test_api_control_taken_away_ends_the_mission_as_in_a_live_flight(model_folder: Path) -> None:
    simulation = Simulation(load_world("field", 7))
    settings = LockStepSettings(max_decisions=40, time_limit_s=90.0)
    composition = _Composition(simulation, *load_model(model_folder), settings, None, lambda decision: None)
    take_away = composition.clock.now() + 6.0
    composition.clock.call_at(take_away, lambda: simulation.call("enableApiControl", False, ""))
    try:
        result = composition.fly("fly to the red beacon")
    finally:
        composition.close()
        simulation.close()
    assert result.outcome == Outcome.DRONE_LOST, result.reason
    assert "API control is off" in result.reason


@pytest.mark.timeout(120)
def test_the_command_line_writes_its_figures(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "figures" / "field.json"
    arguments = ["--seeds", "7", "--model", str(model_folder), "--max-decisions", "1", "--blank"]
    assert main([*arguments, "--json", str(result)]) == 0
    assert "seed 7: failure" in capsys.readouterr().out
    assert '"machine"' in result.read_text()


def test_wrong_arguments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--seeds", "ten"], "seeds are 'ten'"),
        (["--seeds", "9-1"], "nothing is in that range"),
        (["--model", str(tmp_path)], "config.json"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_an_unknown_scene_is_named(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(model_folder), "--scene", "moon"]) == 2
    assert "moon" in capsys.readouterr().err


def test_seeds_are_read_in_both_forms() -> None:
    assert parse_seeds("1001-1003,7") == [1001, 1002, 1003, 7]


@given(trials=st.integers(1, 500), data=st.data())
def test_wilsons_interval_holds_the_rate_and_shrinks(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0.0 <= low <= successes / trials + 1e-12 <= high + 2e-12 <= 1.0 + 2e-12
    wide_low, wide_high = wilson(successes * 4, trials * 4)
    assert wide_high - wide_low < high - low


def test_wilsons_interval_of_nine_in_ten_is_the_textbooks() -> None:
    low, high = wilson(90, 100)
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)
