"""KV efficiency: what is measured around the first eviction, and its curves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_perception.engine import QwenModel
from vlm_perception.engine.budget import TAIL_TOKENS, bytes_per_token, capacity_tokens
from vlm_perception.experiments import kv
from vlm_perception.experiments.setting import Report, Setting

BUDGETS = (1_200, 2_400)


def test_each_budget_is_played_past_its_first_eviction_and_drawn(folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(folder), "--out", str(tmp_path)]
    kv.main([*arguments, "--budgets", ",".join(map(str, BUDGETS)), "--frames", "48"])
    facts = json.loads((tmp_path / "kv.json").read_text())
    checks = {what: holds for what, holds in facts["checks"].items() if "rss" not in what}
    assert len(checks) == 6
    assert all(checks.values())  # not the resident memory of a process that runs tests
    first = (tmp_path / "kv.txt").read_text().splitlines()[0]
    assert all(part in first for part in (folder.name, "cpu", "1,200, 2,400 tokens"))
    assert (tmp_path / "kv.svg").read_text().count("max_cache_tokens") >= 4
    for run, budget in zip(facts["runs"], BUDGETS, strict=True):
        rows = run["rows"]
        assert run["budget"] == budget
        assert rows[-1]["frames"] == 48
        for row in rows:
            assert (row["evictions"] > 0) == (row["frames"] >= run["first_eviction"])
            assert 0 < row["first_token_ms"] <= row["ask_ms"]
        assert run["summary"]["append_ms"]["before_eviction"] > 0
        assert run["summary"]["peak_allocated_bytes"] is None


def test_the_exact_bytes_are_those_of_the_buffers(model: QwenModel) -> None:
    report = Report("kv", "KV efficiency")
    (run,) = kv.experiment_kv(Setting(model, "tiny", True), [200], 40, report)
    token = bytes_per_token(model.decoder.shape, model.dtype)
    assert run.peak("cache_bytes") == token * capacity_tokens(200, TAIL_TOKENS)
    assert run.peak("live_bytes") == token * max(row.cache_tokens for row in run.rows)


ROW = kv.Row(8, 100, 0, 1.0, 4.0, 2.0, 900, 100, 5000, None, None)


def test_medians_are_of_the_asks_next_to_the_first_eviction() -> None:
    before = [replace(ROW, append_ms=float(i)) for i in range(10)]
    after = [replace(ROW, evictions=1, append_ms=100.0 + i) for i in range(10)]
    run = kv.Run(100, 88, before + after)
    assert run.median("append_ms", after=False) == 7.0
    assert run.median("append_ms", after=True) == 102.0
    assert kv.Run(100, None, before).median("append_ms", after=True) is None


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"cache_tokens": 101}, "within the budget"),
        ({"cache_bytes": 901}, "buffers never grow"),
        ({"rss_bytes": 5200}, "memory (rss) does not grow"),
        ({"evictions": 0}, "before and after the first eviction"),
    ],
)
def test_a_run_that_breaks_a_promise_fails(model: QwenModel, change: dict[str, int], failed: str) -> None:
    good = [ROW] * 4 + [replace(ROW, evictions=1)] * 8
    bad = good[:-4] + [replace(row, **change) for row in good[-4:]]
    if failed.startswith("before"):
        bad = [replace(row, evictions=0) for row in good]
    for rows, holds in ((good, True), (bad, False)):
        report = Report("kv", "KV efficiency")
        kv._judge(report, Setting(model, "tiny", True), kv.Run(100, 40, rows))
        failing = [what for what, held in report.facts["checks"].items() if not held]
        assert [failed in what for what in failing] == ([] if holds else [True])
        assert report.passed == holds


@pytest.mark.parametrize("budgets", ["0", "-5", "many", "", "1e3"])
def test_budgets_that_are_none_are_refused(budgets: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kv.main(["--budgets", budgets])
    assert "give positive numbers of tokens" in capsys.readouterr().err


def test_a_budget_below_one_chunk_is_refused_with_the_remedy(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kv.main(["--model", str(folder), "--budgets", "50", "--out", str(tmp_path)]) == 2
    assert "Raise max_cache_tokens" in capsys.readouterr().err
