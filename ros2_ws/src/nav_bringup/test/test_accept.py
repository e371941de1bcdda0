"""`make accept`: what it keeps, what it skips and why, what it goes on with, and its page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nav_bringup import accept, accept_page
from nav_bringup.accept import NOT_REACHED, Acceptance, Part
from nav_bringup.terminal import Terminal
from nav_common.data import Outcome
from nav_common.process import CONFIGURATION_ERROR, StopSignals
from nav_common.testing import load_script
from nav_eval import summary

ROOT = Path(__file__).resolve().parents[4]
KEYS = {"machine", "profile", "experiments", "bench", "replay", "mission", "skipped", "seconds"}


@pytest.fixture(scope="module")
def stop() -> StopSignals:
    return StopSignals()


def part(name: str, code: str, folder: Path, after: str = "") -> Part:
    """One that runs `code` and whose figures are what lies in NAME.json."""

    def read() -> tuple[bool, dict[str, Any]]:
        figures = json.loads((folder / f"{name}.json").read_text())
        return figures["good"], figures

    return Part(name, [sys.executable, "-c", f"where = {str(folder)!r}\n{code}"], read, after)


def says(name: str, good: bool) -> str:
    text = json.dumps({"good": good})
    return f"open(where + '/{name}.json', 'w').write({text!r})\nopen(where + '/ran', 'a').write({name!r})"


def run(folder: Path, stop: StopSignals, *parts: Part) -> dict[str, Any]:
    Acceptance(folder, parts, [], stop, Terminal()).run()
    found: dict[str, Any] = json.loads((folder / "accept.json").read_text())
    assert set(found) == KEYS
    return found


def why(found: dict[str, Any]) -> dict[str, str]:
    return {entry["what"]: entry["why"] for entry in found["skipped"]}


def test_a_part_that_refuses_is_skipped_with_its_reason_and_what_rests_on_it_too(
    tmp_path: Path, stop: StopSignals
) -> None:
    refuses = "import sys; print('a first line'); print('no GPU was found'); sys.exit(2)"
    found = run(
        tmp_path,
        stop,
        part("a", refuses, tmp_path),
        part("b", says("b", True), tmp_path, after="a"),
        part("bench", says("bench", True), tmp_path),
    )
    assert why(found)["a"] == "no GPU was found"
    assert "a has not passed" in why(found)["b"]
    assert found["experiments"] == {"a": None, "b": None, "c": None}
    assert found["bench"]["passed"]
    assert found["bench"]["figures"] == {"good": True}


@pytest.mark.parametrize(
    ("code", "said"),
    [("print('half way'); raise SystemExit(1)", "half way"), ("print('nothing written')", "nothing written")],
)
def test_a_part_that_leaves_no_result_has_failed_with_its_last_line(
    tmp_path: Path, stop: StopSignals, code: str, said: str
) -> None:
    found = run(tmp_path, stop, part("mission", code, tmp_path))
    assert not found["mission"]["passed"]
    assert said in found["mission"]["figures"]["error"]


def test_the_next_run_keeps_what_passed_and_repeats_what_failed(tmp_path: Path, stop: StopSignals) -> None:
    run(tmp_path, stop, part("a", says("a", True), tmp_path), part("b", says("b", False), tmp_path, "a"))
    found = run(
        tmp_path, stop, part("a", says("a", True), tmp_path), part("b", says("b", True), tmp_path, "a")
    )
    assert (tmp_path / "ran").read_text() == "abb"
    assert found["experiments"]["a"]["passed"]
    assert found["experiments"]["b"]["passed"]


def test_an_unfinished_run_with_the_same_settings_is_gone_on_with(tmp_path: Path) -> None:
    options = accept._options(["--quick", "--runs", str(tmp_path)])
    folder = accept._folder(options)
    (folder / "accept.json").write_text(json.dumps({"skipped": [{"what": "b", "why": NOT_REACHED}]}))
    assert accept._folder(accept._options(["--runs", str(tmp_path)])) != folder
    assert accept._folder(options) == folder
    assert (tmp_path / "latest").resolve() == folder
    (folder / "accept.json").write_text(json.dumps({"skipped": [{"what": "b", "why": "no GPU"}]}))
    assert accept._folder(options) != folder, "that one was complete"


def test_a_killed_run_leaves_what_was_reached(tmp_path: Path) -> None:
    """SIGTERM in the second part: the first one's figures are there, and the second's process is gone."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_accept as t;"
        "f = Path(sys.argv[2]); stop = t.StopSignals();"
        "t.run(f, stop, t.part('a', t.says('a', True), f),"
        " t.part('b', 'import os, time; open(where + \"/pid\", \"w\").write(str(os.getpid())); time.sleep(600)', f))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)])
    deadline = time.monotonic() + 200
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0
    found = json.loads((tmp_path / "accept.json").read_text())
    assert found["experiments"]["a"]["passed"]
    assert why(found)["b"] == NOT_REACHED
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "/nowhere"], "model is '/nowhere': no config.json there"),
        (["--video", "/nowhere.mp4"], "video is '/nowhere.mp4': there is no such file"),
    ],
)
def test_what_was_named_and_is_not_there_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert accept.main(["--runs", str(tmp_path / "runs"), *words]) == CONFIGURATION_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_page_shows_each_part_its_figures_and_what_was_not_run() -> None:
    def done(read: tuple[bool, dict[str, Any]]) -> dict[str, Any]:
        return {"passed": read[0], "seconds": 1.0, "commit": "", "figures": read[1]}

    results = ROOT / "experiments/results"
    flight = summary.summarize(None, None, Outcome.FINISHED, "reached", 10.0, 1.2)
    page = accept_page.page(
        {
            "machine": {"processor": "a processor"},
            "profile": {"class": "LOCAL_CPU_ONLY", "reason": "no GPU was found"},
            "experiments": {
                name: done(accept._experiment(results / f"test_eviction_exp_{name}_report.json"))
                for name in ("a", "b", "c")
            },
            "bench": done(accept._bench(ROOT / "benchmarks/results/engine.json")),
            "mission": done((True, flight)),
            "replay": None,
            "skipped": [
                {"what": "replay", "why": "no flight was recorded"},
                {"what": "a real video", "why": "no VIDEO was given & <none> is there"},
            ],
            "seconds": 5.0,
        }
    )
    assert "5 of 6 parts passed, 0 failed, 1 not run" in page
    assert "22.89 GB" not in page, "a small model's memory is beside no reference"
    for text in ("memory reserved", "decode: bytes moved", "no flight was recorded", "LOCAL_CPU_ONLY"):
        assert text in page
    assert "&amp; &lt;none&gt;" in page
    assert "<script" not in page


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script(ROOT / "benchmarks/engine.py")


def test_the_gpu_s_part_of_the_benchmark_runs_on_a_small_model_on_a_cpu(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first run on a rented GPU must not end in a mistyped name. Figures of a CPU say nothing and are not kept."""
    monkeypatch.setattr(benchmark, "measure_kernels", dict)
    monkeypatch.setattr(benchmark, "measure_bf16", dict)
    shape = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96}
    scale = replace(
        benchmark.Scale(shape),
        device="cpu",
        dtype=torch.float32,
        full=1500,
        half=900,
        short=600,
        chunks=10,
        repeats=2,
        copied_bytes=2**20,
        product_side=64,
    )
    found = benchmark.run_gpu(scale)
    assert set(found["roofline_fraction"]) == {
        "decode at 1,500",
        "640x480 pair at 900",
        "448x336 pair at 900",
        "448x336 pair at 600",
    }
    assert found["flat"]["evictions"] > 0
    json.dumps(found)


def test_the_page_sets_chunks_beside_their_target_and_decode_beside_none() -> None:
    figures = {
        "decode_ms": 20.0,
        "chunk_ms": {"decoded chunk": 40.0},
        "roofline_fraction": {"decode at 100,000": 0.5, "decoded chunk": 0.25},
    }
    assert [(row.what, row.limit, row.reference) for row in accept_page._bench(figures)] == [
        ("decode at 100,000", "10.0 ms (50% of it)", ""),
        ("decoded chunk", "10.0 ms (25% of it)", "200 to 500 ms a frame (target)"),
    ]
