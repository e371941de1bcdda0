"""The evaluation's figures from given records, its refusals, and one small run for real."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airsim_sim.instructions import called
from airsim_sim.world import load_world, parse_world
from nav_common.data import Outcome
from nav_common.success import is_rightly_not_found
from nav_eval import evaluation, runs
from nav_eval.episodes import Control, EpisodeSettings, SceneError, mission_of
from nav_eval.harness import EPISODES_FILE, Job
from nav_eval.metrics import TakenDecision, looked_all_around
from vlm_perception.serving_form import ServingForm


def record(success: bool, *, wrong: bool = False, spl: float | None = 0.5, free: int = 1) -> dict[str, Any]:
    return {
        "outcome": "FINISHED",
        "success": {"1m": False, "2m": success, "3m": success},
        "wrong_goal": wrong,
        "false_reached": not success,
        "not_found": False,
        "metrics": {
            "path_m": 20.0,
            "spl_weight": spl,
            "contacts": 0 if success else 1,
            "near_misses": 0,
            "smallest_clearance_m": 0.4,
            "ways_chosen": 2,
            "ways_free": free,
            "coherence": {
                "score": 0.75, "turns": 2, "turns_undone": 1, "decisions": 4, "revisits": 0, "goal_changes": 1,
            },
        },
        "decisions": [{}] * 4,
        "engine_ms": [10.0, 20.0, 30.0, 40.0],
        "hover_violations": 0,
        "breaches": [],
        "evictions": 0,
        "finding_again": None,
        "recalls": None,
        "virtual_s": 40.0,
        "wall_s": 2.0,
    }  # fmt: skip


SEEDS = [2001, 2002, 2003, 2004]


def summary(variants: list[str], controls: list[Control], good: dict[str, list[bool]]) -> dict[str, Any]:
    records = {
        Job("field", variant, control, seed): record(ok)
        for variant in variants
        for control in ["", *controls]
        for seed, ok in zip(SEEDS, good[control or variant], strict=True)
    }
    return evaluation.summary(records, ["field"], variants, controls, SEEDS, EpisodeSettings())


def test_the_figures_of_one_variant_with_controls():
    results = summary(
        ["streaming"],
        [Control.BLANK, Control.EXPERT],
        {"streaming": [True, True, False, True], "blank": [False] * 4, "expert": [True] * 4},
    )
    assert results["scene"] == "field"
    assert results["seeds"] == "2001-2004"
    assert results["variant"] == "streaming"
    assert results["success_rate"] == {"1m": 0.0, "2m": 0.75, "3m": 0.75}
    assert results["success_interval"][0] < 0.75 < results["success_interval"][1]
    assert results["collision_rate"] == 0.25
    assert results["collisions_per_100_m"] == pytest.approx(1.25)
    assert results["spl"] == pytest.approx(0.375)
    assert results["traversability"] == 0.5
    assert results["coherence"] == 0.75
    assert results["turns_undone"] == 0.5
    assert results["decision_latency_ms"] == {"p50": 25.0, "p95": 40.0, "max": 40.0}
    assert results["realtime_factor"] == 20.0
    assert results["think_s"] == 0.3
    assert results["controls"] == {"blank": 0.0, "shuffled_words": None, "random": None, "expert": 1.0}
    assert "success 75%" in evaluation.text_of(results)


def test_what_was_found_again_and_brought_back_is_counted_over_the_episodes():
    records = [record(True) for _ in range(4)]
    for one, windows, found in zip(records[:3], (3.5, 4.0, 0.5), (True, False, True), strict=True):
        one["finding_again"] = {"windows_out_of_sight": windows, "found": found}
    counts = {"retrievals": 3, "decisions": 2, "extra_tokens": 60, "extra_s": 0.1, "questions": 9}
    for one in records:
        one["recalls"] = counts
    figures = evaluation.figures(records)
    assert (figures["came_to_last_instruction"], figures["found_again_rate"]) == (3, 0.6667)
    assert (figures["long_out_of_sight"], figures["long_out_of_sight_found_rate"]) == (2, 0.5)
    assert (figures["retrievals"], figures["extra_tokens"]) == (12, 240)
    assert figures["extra_latency_ms"] == 50.0
    assert "retrievals" not in evaluation.figures([record(True)])


def test_two_variants_are_compared_in_pairs():
    results = summary(
        ["streaming", "last-4"],
        [],
        {"streaming": [True, True, True, False], "last-4": [True, False, False, False]},
    )
    assert results["variants"]["streaming"]["success_rate"]["2m"] == 0.75
    assert results["pairs"] == {"wins": 2, "losses": 0, "mcnemar_p": 0.5}


def test_an_episode_without_a_way_does_not_count_in_spl():
    figures = evaluation.figures([record(True), record(True, spl=None)])
    assert figures["spl"] == 0.5


def test_the_mission_names_the_goal_and_shuffled_words_name_another():
    world = load_world("field-decoys", 5)
    mission, shuffled = mission_of(world), mission_of(world, shuffled=True)
    assert mission.goals == shuffled.goals == ("beacon",)
    assert mission.instructions == (f"fly to {world.names['beacon']}",)
    assert shuffled.instructions == (f"fly to {world.names['decoy_1']}",)
    assert mission.candidates == ("beacon", "decoy_1", "decoy_2")


def test_with_one_object_shuffled_words_name_something_absent():
    world = load_world("field", 3)
    assert mission_of(world, shuffled=True).instructions == ("fly to the blue beacon",)


def test_several_goals_have_an_instruction_each():
    mission = mission_of(load_world("wall", 4))
    assert mission.instructions == ("fly to the yellow beacon behind the wall", "fly back to the red car")
    assert mission.goals == ("beacon", "car")
    one = mission_of(load_world("wall", 4), instruction="approach {goal}")
    assert (one.instructions, one.goals) == (("approach the yellow beacon",), ("beacon",))


def test_where_something_absent_is_named_there_is_no_goal_and_shuffled_words_name_what_is_there():
    world = load_world("field-absent", 4)
    mission, shuffled = mission_of(world), mission_of(world, shuffled=True)
    assert (mission.goals, shuffled.goals) == ((), ())
    present = {called(world, name) for name in mission.candidates}
    assert len(present) == 4
    assert shuffled.instructions[0].removeprefix("fly to ") in present
    assert not any(name in mission.instructions[0] for name in present)


def decisions_at(*headings_deg):
    return [TakenDecision("turn_right", {"angle_deg": 90}, (0, 0, 2), math.radians(h)) for h in headings_deg]


def test_looking_all_around_takes_four_directions():
    assert looked_all_around(decisions_at(0, -92, -178, -272))
    assert looked_all_around([TakenDecision("look_around", {}, (0, 0, 2), 0.0), *decisions_at(3)])
    assert not looked_all_around(decisions_at(0, -90, -180))
    assert not looked_all_around(decisions_at(5))
    assert not looked_all_around([])


def test_what_is_absent_is_rightly_not_found_only_after_looking_and_without_a_contact():
    ended = (Outcome.FINISHED, "not_found")
    assert is_rightly_not_found(*ended, True, 0)
    assert not is_rightly_not_found(*ended, False, 0)
    assert not is_rightly_not_found(*ended, True, 1)
    assert not is_rightly_not_found(Outcome.FINISHED, "reached", True, 0)
    assert not is_rightly_not_found(Outcome.STEP_LIMIT, "not_found", True, 0)


def test_episodes_are_those_of_the_weights_that_flew_them(tmp_path):
    """A comparison pilot that was trained anew has flown none of the recorded episodes."""
    folders = {"streaming": tmp_path / "model", "last-4": tmp_path / "model-last-4"}
    for folder in folders.values():
        folder.mkdir()
        ServingForm().save(folder)
    before, again = (evaluation._identity(["field"], SEEDS, folders, EpisodeSettings()) for _ in range(2))
    assert before == again
    assert runs.models_named(folders["streaming"], folders).endswith("model, last-4 by model-last-4")
    (folders["last-4"] / "model.safetensors").write_bytes(b"other weights")
    after = evaluation._identity(["field"], SEEDS, folders, EpisodeSettings())
    assert {key for key in before if before[key] != after[key]} == {"models"}


def test_a_scene_without_instructions_or_another_name_is_refused():
    bare = "name: bare\nobjects:\n  - {name: goal, kind: pillar, at: [9, 0]}\ngoals: [goal]\n"
    with pytest.raises(SceneError, match="has no `instructions`"):
        mission_of(parse_world(bare, "bare"))
    named = bare + 'instructions: ["to {goal}"]\nnames: {goal: it}\n'
    with pytest.raises(SceneError, match="shuffled_words needs another one"):
        mission_of(parse_world(named, "bare"), shuffled=True)


def run(*arguments: str, cwd: Path, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nav_eval", "eval", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scene", "moon"], "unknown scene 'moon': choose one of corridor, field"),
        (["--variant", "last-5"], "unknown variant 'last-5'"),
        (["--variant", "streaming,streaming"], "one, or two different ones"),
        (["--controls", "dice"], "unknown control 'dice'; there are blank"),
        (["--seeds", "900-901"], "seed 900 is for training and tuning"),
        (["--seeds", "2005-2001"], "out of order"),
        (["--seeds", "2001", "--development"], "seed 2001 is kept for evaluation"),
        (["--model", "/nowhere"], "model /nowhere: there is no such folder"),
        (["--think-s", "-1"], "--think-s is -1.0, must be 0 to 60"),
        (["--processes", "0"], "--processes is 0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    from nav_eval.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_scene_file_with_a_mistake_is_refused_with_file_and_line(tmp_path, monkeypatch, capsys):
    from nav_eval.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nobjects:\n  - {name: a, kind: rocket, at: [1, 1]}\ngoals: [a]\n"
    )
    assert main(["eval", "--scene", "mine.yaml"]) == 2
    assert (
        "mine.yaml, line 3, field objects[0].kind: 'rocket' is not one of tree, pillar"
        in capsys.readouterr().err
    )


def test_a_small_run_leaves_its_results_and_goes_on_where_it_was(tmp_path):
    arguments = ["--scene", "field", "--seeds", "2001", "--controls", "expert,random", "--processes", "1"]
    done = run(*arguments, "--max-decisions", "3", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["episodes"] == 1
    assert results["controls"]["expert"] in (0.0, 1.0)
    assert results["decision_latency_ms"]["p50"] > 0
    lines = (tmp_path / "run" / EPISODES_FILE).read_text()
    again = run(*arguments, "--max-decisions", "3", "--out", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / EPISODES_FILE).read_text() == lines
    other = run(*arguments, "--max-decisions", "4", "--out", "run", cwd=tmp_path)
    assert other.returncode == 2
    assert "holds another run: its settings is" in other.stderr
