"""The command lines: a video and a question, and the experiments."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vlm_perception.engine.__main__ import main
from vlm_perception.engine.video_file import video_frames
from vlm_perception.experiments import __main__ as experiments


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
    ],
)
def test_bad_arguments_end_with_one_clear_line(
    folder: Path, video: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert main(["--model", str(folder), "--video", str(video), "--ask", "What?", *change]) == 2
    assert message in capsys.readouterr().err


def test_an_experiment_writes_its_report_and_says_what_it_ran_on(folder: Path, tmp_path: Path) -> None:
    assert experiments.main(["time", "--model", str(folder), "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "time.json").read_text())
    first = (tmp_path / "time.txt").read_text().splitlines()[0]
    assert facts["passed"]
    assert facts["scaled"]
    assert folder.name in first
    assert "budgets scaled" in first


def test_an_unknown_experiment_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        experiments.main(["d"])
    assert "no experiment 'd'" in capsys.readouterr().err
