"""report.html: figures, controls, outcomes, episodes with their views, within 20 MB and fetching nothing."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from nav_eval import evaluation
from nav_eval.episodes import Control, EpisodeSettings
from nav_eval.evaluation_report import OUTCOMES, outcome_of, report_page
from nav_eval.harness import Job, Record


def changed(flown: Record, **values: Any) -> Record:
    return {**copy.deepcopy(flown), **values}


def failed(flown: Record, **values: Any) -> Record:
    return changed(flown, success={"1m": False, "2m": False, "3m": False}, **values)


def test_the_outcomes_are_told_apart(flown: Record) -> None:
    assert outcome_of(flown) == "success"
    touched = {**flown["metrics"], "contacts": 1}
    assert outcome_of(failed(flown, metrics=touched)) == "collision"
    assert outcome_of(failed(flown, wrong_goal=True)) == "wrong goal"
    assert outcome_of(failed(flown)) == "not reached"
    assert set(OUTCOMES) == {"success", "collision", "wrong goal", "not reached"}


def test_an_episodes_view_has_a_picture_for_each_decision(flown: Record) -> None:
    view = flown["view"]
    assert len(view["pictures"]) >= len({row["t"] for row in view["decisions"]}) - 1 > 0
    assert view["track"]
    assert any(item["goal"] for item in view["objects"])


def results_of(records: dict[Job, Record], seeds: list[int], variants: list[str]) -> dict[str, Any]:
    controls = [Control.BLANK] if any(job.control for job in records) else []
    return {
        **evaluation.summary(records, ["field"], variants, controls, seeds, EpisodeSettings()),
        "development": True,
        "model": "<i>model</i>",
        "machine": {"processor": "x"},
    }


def test_the_page_shows_figures_controls_and_every_episode(flown: Record) -> None:
    seeds = [11, 12]
    records = {
        Job("field", "streaming", "", 11): flown,
        Job("field", "streaming", "", 12): failed(flown, reason="</summary><script>alert(1)</script>"),
        Job("field", "streaming", "blank", 11): failed(flown),
        Job("field", "streaming", "blank", 12): failed(flown),
    }
    page = report_page(results_of(records, seeds, ["streaming"]), records)
    assert "success within 1, 2, 3 m" in page
    assert "success within 2 m, 95 % interval" in page
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert rows[0] == ["", "streaming", "control: blank"]
    assert ["success within 1, 2, 3 m", "0 / 0.5 / 0.5", "0 / 0 / 0"] in rows
    assert all(len(row) == 3 for row in rows)
    assert "Development seeds" in page
    assert re.findall(r'data-episode="([^"]+)"', page) == [
        "field/streaming/12",
        "field/blank/11",
        "field/blank/12",
        "field/streaming/11",
    ]
    assert "<script>alert(1)" not in page
    assert "<i>model" not in page
    assert not re.search(r"<(script|img|link)[^>]*\b(src|href)=\"?(https?:)?//", page)
    found = re.search(r'<script type="application/json" id="views">(.*?)</script>', page, re.DOTALL)
    assert found
    assert set(json.loads(found[1])) == {
        "field/streaming/11",
        "field/streaming/12",
        "field/blank/11",
        "field/blank/12",
    }


def test_paths_lie_over_the_map_of_their_own_world(flown: Record) -> None:
    other = failed(flown, view={**flown["view"], "shapes": [{"type": "path", "path": "M0,0L1,1L0,1Z"}]})
    records = {
        Job("field", "streaming", "", 11): flown,
        Job("field", "streaming", "", 12): other,
        Job("field", "streaming", "blank", 11): failed(flown),
        Job("field", "streaming", "blank", 12): other,
    }
    page = report_page(results_of(records, [11, 12], ["streaming"]), records)
    found = re.search(r'<script type="application/json" id="paths-data">(.*?)</script>', page, re.DOTALL)
    assert found
    maps = json.loads(found[1])["maps"]
    assert [one["name"] for one in maps] == ["field, seed 11", "field, seed 12"]
    assert [one["shapes"] for one in maps] == [flown["view"]["shapes"], other["view"]["shapes"]]
    assert [path["outcome"] for path in maps[0]["paths"]] == ["success", "not reached"]
    assert page.count("<option") == 3


def test_two_variants_stand_side_by_side_with_their_pairs(flown: Record) -> None:
    records = {
        Job("field", variant, "", seed): flown if variant == "streaming" else failed(flown)
        for variant in ("streaming", "last-1")
        for seed in (11, 12)
    }
    unlike = {"unlike_training": {"last-1": "recompute_frames 1, trained with 0"}}
    page = report_page(results_of(records, [11, 12], ["streaming", "last-1"]) | unlike, records)
    assert "<th>streaming</th><th>last-1 *</th>" in page
    assert "* last-1: served in another form than the model was trained for (recompute_frames 1, " in page
    assert "2 only streaming, 0 only" in page


def test_a_hundred_episodes_stay_under_twenty_megabytes_and_failures_keep_their_views(
    flown: Record,
) -> None:
    large = copy.deepcopy(flown)
    large["view"]["pictures"] = [{"t": float(n), "jpeg": "A" * 20_000} for n in range(20)]
    seeds = list(range(1, 101))
    records = {Job("field", "streaming", "", seed): failed(large) if seed > 98 else large for seed in seeds}
    page = report_page(results_of(records, seeds, ["streaming"]), records)
    assert len(page) < 20_000_000
    assert "episodes are listed without their views" in page
    found = re.search(r'<script type="application/json" id="views">(.*?)</script>', page, re.DOTALL)
    assert found
    assert {"field/streaming/99", "field/streaming/100"} <= set(json.loads(found[1]))


def test_records_of_an_earlier_version_have_no_view_and_are_listed(flown: Record) -> None:
    old = copy.deepcopy(flown)
    del old["view"]
    records = {Job("field", "streaming", "", 11): old}
    assert "No view of this episode" in report_page(results_of(records, [11], ["streaming"]), records)
