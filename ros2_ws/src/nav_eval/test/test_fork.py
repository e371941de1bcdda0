"""A fork: its branches, their regret, its page, its refusals, and one for real."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airsim_sim.world import load_world
from nav_agent import toolset
from nav_eval.__main__ import main
from nav_eval.episodes import mission_of
from nav_eval.fork import FLY_TOWARDS_POINTS, _remaining_m, candidate_calls
from nav_eval.fork_report import Branch, fork_page, regret
from nav_eval.harness import EPISODES_FILE, Record
from vlm_perception.serving_form import ServingForm
from vlm_perception.testing.tiny_model import make_tiny_model


def branch(
    flown: Record,
    angle_deg: int,
    *,
    success: bool,
    spl: float | None,
    remaining_m: float,
    taken: bool = False,
) -> Branch:
    changed = copy.deepcopy(flown)
    changed["success"] = dict.fromkeys(changed["success"], success)
    changed["metrics"] |= {"spl_weight": spl}
    return Branch(("turn_left", {"angle_deg": angle_deg}), changed, remaining_m, taken)


def test_every_call_is_tried_once_and_of_fly_towards_the_named_points() -> None:
    calls = candidate_calls()
    lines = [toolset.call_line(*call) for call in calls]
    assert len(set(lines)) == len(lines)
    assert {name for name, _ in calls} == set(toolset.BY_NAME)
    for name, arguments in calls:
        assert toolset.clamp(name, arguments) == (arguments, [])
    for tool in toolset.TOOLS:
        count = sum(name == tool.name for name, _ in calls)
        every = 1
        for argument in tool.arguments:
            every *= len(argument.values)
        assert count == (len(FLY_TOWARDS_POINTS) if tool.name == "fly_towards" else every)


def test_regret_is_against_the_best_branch(flown: Record) -> None:
    best = branch(flown, 10, success=True, spl=0.9, remaining_m=1.5)
    slow = branch(flown, 20, success=True, spl=0.6, remaining_m=0.5)
    lost = branch(flown, 30, success=False, spl=0.95, remaining_m=8.0)
    branches = [slow, best, lost]
    assert regret(best, branches).spl == 0.0
    assert regret(slow, branches).spl == pytest.approx(0.3)
    assert regret(lost, branches).spl == pytest.approx(0.9)  # without success a short way counts nothing
    assert regret(lost, branches).remaining_m == pytest.approx(7.5)
    assert regret(slow, branches).remaining_m == pytest.approx(0.0)


def test_where_no_branch_succeeds_only_the_distance_tells_them_apart(flown: Record) -> None:
    near = branch(flown, 10, success=False, spl=None, remaining_m=3.0)
    far = branch(flown, 20, success=False, spl=None, remaining_m=9.0)
    assert regret(far, [near, far]).spl == 0.0
    assert regret(far, [near, far]).remaining_m == pytest.approx(6.0)


def test_the_remaining_distance_is_from_the_last_goal(flown: Record) -> None:
    one = mission_of(load_world("field", 7))
    assert _remaining_m(one, flown) == pytest.approx(flown["metrics"]["goal_distance_m"], abs=0.05)
    world = load_world("wall", 4)
    north, west = world.object("car").position[:2]
    ended = {"track": [[0.0, 0.0, 0.0, 1.0], [9.0, north, west - 3.0, 1.0]]}
    assert _remaining_m(mission_of(world), ended) == world.object("car").distance_m((north, west - 3.0)) < 3.0


def figure_of(page: str, name: str) -> dict[str, Any]:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_the_page_orders_the_branches_and_fetches_nothing(flown: Record) -> None:
    taken = branch(flown, 30, success=False, spl=0.9, remaining_m=8.0, taken=True)
    best = branch(flown, 10, success=True, spl=0.9, remaining_m=1.5)
    best.record["reason"] = "</summary><script>alert(1)</script>"
    slow = branch(flown, 20, success=True, spl=0.6, remaining_m=0.5)
    page = fork_page(
        [taken, slow, best], at=2, facts={"seed": "evaluation seed"}, flight_page="../flight.html"
    )
    calls = re.findall(r"turn_left\(angle_deg=\d+\)", page.split("<h2>Branches</h2>")[1].split("<script")[0])
    assert calls == [f"turn_left(angle_deg={angle})" for angle in (10, 20, 30)]
    assert "0.900 of SPL, 7.5 m of remaining distance" in page
    assert "evaluation seed" in page
    assert "<script>alert(1)" not in page
    assert not re.search(r"<(script|img|link)[^>]*\b(src|href)=\"?(https?:)?//", page)
    tree, paths = figure_of(page, "tree-figure"), figure_of(page, "paths-figure")
    assert tree["layout"]["yaxis"]["ticktext"][2] == "<b>turn_left(angle_deg=30)</b>"
    assert len(tree["data"]) == len(paths["data"]) == 4  # the branches and what they share
    assert set(figure_of(page, "views")) == {"0", "1", "2"}


def test_the_page_of_large_branches_stays_under_twenty_megabytes_with_the_taken_one(flown: Record) -> None:
    large = copy.deepcopy(flown)
    large["view"]["pictures"] = [{"t": float(n), "jpeg": "A" * 20_000} for n in range(40)]
    branches = [branch(large, n, success=n != 29, spl=0.5, remaining_m=1.0, taken=n == 29) for n in range(30)]
    page = fork_page(branches, at=1, facts={}, flight_page="../flight.html")
    assert len(page) < 20_000_000
    views = figure_of(page, "views")
    assert len(views) < 30
    assert "29" in views  # the worst, but the one that was taken


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["moon", "2001", "--at", "1"], "unknown scene 'moon'"),
        (["field", "2001-2002", "--at", "1"], "fork is of one flight"),
        (["field", "first", "--at", "1"], "seeds are 'first'"),
        (["field", "2001", "--at", "0"], "--at is 0: decisions are counted from 1"),
        (["field", "2001", "--at", "1", "--variant", "last-5"], "unknown variant 'last-5'"),
        (["field", "2001", "--at", "1", "--model", "/nowhere"], "model /nowhere: there is no such folder"),
        (["field", "2001", "--at", "1", "--processes", "0"], "--processes is 0"),
    ],
)
def test_what_cannot_be_forked_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["fork", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=4.0)
    ServingForm(width=112, height=84, max_cache_tokens=4096).save(folder)
    return folder


def command(model_folder: Path, at: int) -> list[str]:
    return [
        sys.executable, "-m", "nav_eval", "fork", "field", "7", "--at", str(at), "--model", str(model_folder),
        "--max-decisions", "2", "--time-limit-s", "60", "--processes", "1", "--out", "fork",
    ]  # fmt: skip


@pytest.mark.timeout(300)
def test_a_killed_fork_goes_on_and_each_branch_makes_its_call(model_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "fork" / "fork_at_2" / EPISODES_FILE
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            command(model_folder, 2), cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    while not (lines.exists() and lines.read_text().count("\n") >= 3):
        with contextlib.suppress(subprocess.TimeoutExpired):
            first.wait(0.05)
            pytest.fail(f"it ended by itself: {(tmp_path / 'log').read_text()}")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = lines.read_text()
    kept = kept[: kept.rfind("\n") + 1]
    assert kept.count("\n") < len(candidate_calls())

    again = subprocess.run(
        command(model_folder, 2), cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert lines.read_text().startswith(kept)
    flight = json.loads((tmp_path / "fork" / EPISODES_FILE).read_text())
    branches = [json.loads(line) for line in lines.read_text().splitlines()]
    made = []
    for branch_record in [flight, *branches]:
        decisions = branch_record["decisions"]
        assert decisions[0] == flight["decisions"][0]
        assert decisions[1]["time_s"] == flight["decisions"][1]["time_s"]
        if branch_record["job"]["forced"]:
            name, arguments = toolset.parse_call(branch_record["job"]["forced"]) or ("", {})
            assert (decisions[1]["tool"], decisions[1]["arguments"]) == (name, arguments)
        made.append(toolset.call_line(decisions[1]["tool"], decisions[1]["arguments"]))
    assert len(set(made)) == len(made)
    assert set(made) >= {toolset.call_line(*call) for call in candidate_calls()}
    page = (tmp_path / "fork" / "fork_at_2" / "fork.html").read_text()
    assert "development seed" in page
    assert 'href="../flight.html"' in page
    view = figure_of((tmp_path / "fork" / "flight.html").read_text(), "view")
    forked = [decision for decision in view["decisions"] if "fork" in decision]
    assert [decision["number"] for decision in forked] == [2]
    assert forked[0]["fork"]["page"] == "fork_at_2/fork.html"
    assert sum(forked[0]["fork"]["outcomes"].values()) == len(made)
    assert view["again"].startswith("field 7 --time-limit-s 60 --max-decisions 2 --model ")


@pytest.mark.timeout(300)
def test_a_decision_that_the_flight_does_not_have_is_refused(model_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(model_folder, 3), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "--at is 3, but the flight of field, seed 7, has 2 decisions: give one from 1 to 2" in done.stderr
    assert not (tmp_path / "fork" / "fork_at_3").exists()
