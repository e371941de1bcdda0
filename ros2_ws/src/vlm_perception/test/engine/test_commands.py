"""The command lines: a video and a question, and the experiments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vlm_perception.engine import QwenModel
from vlm_perception.engine.__main__ import main
from vlm_perception.engine.preprocess import patchify
from vlm_perception.engine.video_file import video_frames
from vlm_perception.experiments import __main__ as experiments
from vlm_perception.experiments.setting import CHUNK_1080P, Report, Setting
from vlm_perception.testing.tiny_model import PICTURE_3B


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (112, 84))
    for i in range(31):
        writer.write(np.full((84, 112, 3), 8 * i, np.uint8))
    writer.release()
    return path


def test_frames_are_thinned_to_the_rate_asked_for(video: Path) -> None:
    stamps = [round(stamp, 3) for stamp, _ in video_frames(video, fps=2.0)]
    assert stamps == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_video_is_played_and_asked_about(
    folder: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(folder), "--video", str(video), "--ask", "What?", "--max-new-tokens", "4"]
    assert main([*arguments, "--size", "112x84", "--every", "2", "--max-cache-tokens", "70"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" chunks")[0] for line in lines] == ["[2", "[4"]
    assert "evictions" in lines[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "/nowhere"], "no config.json"),
        (["--video", "/nowhere.mp4"], "cannot be read as a video"),
        (["--size", "100x84"], "multiples of 28"),
        (["--device", "cuda"], 'device "cuda" was given, but there is none'),
    ],
)
def test_bad_arguments_end_with_one_clear_line(
    folder: Path,
    video: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--model", str(folder), "--video", str(video), "--ask", "What?", *change]) == 2
    assert message in capsys.readouterr().err


def test_an_experiment_writes_its_report_and_says_what_it_ran_on(folder: Path, tmp_path: Path) -> None:
    assert experiments.main(["time", "--model", str(folder), "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "test_eviction_exp_time_report.json").read_text())
    first = (tmp_path / "test_eviction_exp_time_report.txt").read_text().splitlines()[0]
    assert facts["passed"]
    assert folder.name in first
    assert "budget 100,000 tokens" in first


def test_experiments_run_in_order_and_stop_at_a_failure_with_its_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def stand_in(name: str, error: Exception | None) -> Callable[[Setting, Path | None, Report], None]:
        def experiment(given: Setting, video: Path | None, report: Report) -> None:
            ran.append(name)
            report.begin(given, "budget 100 tokens")
            if error:
                raise error

        return experiment

    no_memory = torch.OutOfMemoryError("CUDA out of memory")
    for name, error in (("a", None), ("b", no_memory), ("c", None)):
        monkeypatch.setitem(experiments.EXPERIMENTS, name, (name, stand_in(name, error)))
    assert experiments.main(["c", "b", "a", "--model", str(folder), "--out", str(tmp_path)]) == 1
    assert ran == ["a", "b"]
    report = json.loads((tmp_path / "test_eviction_exp_b_report.json").read_text())
    assert not report["passed"]
    assert "CUDA out of memory" in next(iter(report["checks"]))
    assert not (tmp_path / "test_eviction_exp_c_report.json").exists()
    assert "not run: c" in capsys.readouterr().out


def test_the_quality_experiment_evicts_in_the_middle_and_says_with_which_budget(
    folder: Path, tmp_path: Path
) -> None:
    given = Setting(QwenModel.load(folder, size=(112, 84), device="cpu"), "a tiny model", scaled=True)
    report = Report("c", "Experiment C")
    experiments.EXPERIMENTS["c"][1](given, None, report)
    assert report.passed, report.lines
    evicted = [bool(ask["evictions"]) for ask in report.facts["asks"]]
    assert evicted == [False, False, True, True, True]
    assert f"budget {report.facts['budget']:,} tokens" in report.lines[0]


def test_the_memory_experiment_counts_the_tokens_of_a_1080p_chunk_rightly() -> None:
    """Four frames of 1920x1080 in the 3B's picture format, which the default format would shrink to half."""
    _, grid = patchify([np.zeros((1080, 1920, 3), np.uint8)] * 4, PICTURE_3B)
    assert grid.tokens == 5382
    assert grid.tokens + 2 + 5 == CHUNK_1080P, "with its two marks and a tag of five tokens"


def test_an_unknown_experiment_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        experiments.main(["d"])
    assert "no experiment 'd'" in capsys.readouterr().err
