"""Replay: every frame in order, the same answers each time, what broke is said and what was finished stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nav_common import topics
from nav_common.conversions import encode
from nav_common.data import CompressedImage
from nav_eval import pictures
from nav_eval.__main__ import main
from nav_eval.bags import BagWriter
from nav_eval.lockstep import load_model
from nav_eval.replay import Replay, ReplayError, replay
from nav_eval.testing.synthetic import START_S, flight, write
from vlm_perception.engine import QwenModel
from vlm_perception.serving_form import ServingForm
from vlm_perception.testing.tiny_model import make_tiny_model

BUDGET = 2200  # so small that a short recording evicts


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=4.0)
    ServingForm(width=112, height=84, max_cache_tokens=BUDGET).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> tuple[QwenModel, ServingForm]:
    return load_model(model_folder)


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = rng.integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (320, 240)))[1].tobytes()


@pytest.fixture(scope="module")
def folder_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of a folder of pictures: one each 0.5 s, and nothing else."""
    folder = tmp_path_factory.mktemp("frames")
    for number in range(60):
        (folder / f"{number:05d}.jpg").write_bytes(picture(number))
    bag = tmp_path_factory.mktemp("bags") / "frames"
    pictures.folder_to_bag(folder, bag)
    return bag


def flight_bag(path: Path, spoil: Callable[[list[Any]], None] = lambda rows: None) -> Path:
    rows = flight()
    for number, row in enumerate(rows):
        if row.topic is topics.FRONT_IMAGE:
            row.change(data=picture(number))
    spoil(rows)
    return write(path, rows)


def untimed(result: Replay) -> list[dict[str, Any]]:
    rows = [row.as_dict() for row in result.rows]
    for row in rows:
        del row["latency_ms"]
    return rows


def test_every_frame_is_read_and_two_replays_are_equal(folder_bag: Path, model: Any) -> None:
    first = replay(folder_bag, *model, every=10, instruction="fly to the red beacon")
    assert (first.frames, first.appended, len(first.rows), first.error) == (60, 60, 6, "")
    assert [row.frame for row in first.rows] == [9, 19, 29, 39, 49, 59]
    assert first.curve[-1].evictions > 0
    assert max(point.cached_tokens for point in first.curve) <= BUDGET
    assert first.agreement is None
    # Without a recorded agent each ask brings the calls before it, as in a dry run.
    assert [len(row.recent_calls) for row in first.rows] == [0, 1, 2, 3, 4, 4]
    again = replay(folder_bag, *model, every=10, instruction="fly to the red beacon")
    assert untimed(again) == untimed(first)


def test_asking_more_often_changes_no_answer(folder_bag: Path, model: Any) -> None:
    """A question leaves nothing behind."""
    often = {
        row.frame: row.answer for row in replay(folder_bag, *model, every=4, question="what do you see?").rows
    }
    seldom = {
        row.frame: row.answer
        for row in replay(folder_bag, *model, every=20, question="what do you see?").rows
    }
    assert set(seldom) == {19, 39, 59}
    assert all(often[frame] == answer for frame, answer in seldom.items())


def test_the_flights_own_decisions_are_asked_again_in_their_own_words(tmp_path: Path, model: Any) -> None:
    bag = flight_bag(tmp_path / "flight")
    once = replay(bag, *model, every=0)
    assert [row.asked for row in once.rows] == ["decision of the flight"] * 3
    assert [row.memory_stamp_s for row in once.rows] == pytest.approx([START_S + t for t in (2.0, 7.0, 12.0)])
    assert [row.recorded for row in once.rows][:2] == ["move_forward(distance_m=4)"] * 2
    assert [len(row.recent_calls) for row in once.rows] == [0, 1, 2]

    def as_replayed(rows: list[Any]) -> None:
        for row in rows:
            if row.topic is topics.DECISION:
                name, _, rest = once.rows[row.data.step - 1].answer.partition("(")
                arguments = dict(part.split("=") for part in rest.rstrip(")").split(", ") if part)
                values = {key: int(value) if value.isdigit() else value for key, value in arguments.items()}
                row.change(tool=name, arguments=json.dumps(values))

    def one_differs(rows: list[Any]) -> None:
        as_replayed(rows)
        last = next(r for r in rows if r.topic is topics.DECISION and r.data.step == 3)
        last.change(tool="hover", arguments='{"seconds": 5}')

    assert once.agreement is not None
    assert replay(flight_bag(tmp_path / "same", as_replayed), *model, every=0).rows[0].agrees
    differs = replay(flight_bag(tmp_path / "other", one_differs), *model, every=0)
    assert not differs.rows[2].agrees
    assert differs.agreement is not None
    assert differs.agreement < 1.0


def test_frames_out_of_order_or_broken_are_skipped_and_counted(tmp_path: Path, model: Any) -> None:
    def spoil(rows: list[Any]) -> None:
        images = [row for row in rows if row.topic is topics.FRONT_IMAGE]
        images[40].change(data=b"\xff\xd8 broken")
        images[50].change(stamp_s=5.0)
        images[60].change(stamp_s=0.0)

    result = replay(flight_bag(tmp_path / "spoilt", spoil), *model, every=0)
    assert result.error == ""
    assert sum(result.skipped.values()) == 3
    assert any("has no end" in text for text in result.skipped)
    assert any("is not later than" in text for text in result.skipped)
    assert any("its stamp is 0" in text for text in result.skipped)


def test_frames_without_stamps_end_in_words(tmp_path: Path, model: Any) -> None:
    def spoil(rows: list[Any]) -> None:
        for row in rows:
            if row.topic is topics.FRONT_IMAGE:
                row.change(stamp_s=0.0)

    result = replay(flight_bag(tmp_path / "unstamped", spoil), *model, every=10)
    assert "none of 140 frames could be used: frame skipped: its stamp is 0" in result.error


def test_nothing_to_ask_is_refused(folder_bag: Path, model: Any) -> None:
    with pytest.raises(ReplayError, match=r"INSTRUCTION=.* or QUESTION="):
        replay(folder_bag, *model)
    with pytest.raises(ReplayError, match="EVERY is -1"):
        replay(folder_bag, *model, every=-1, question="what?")


def test_the_command_leaves_its_files_and_keeps_the_flights_summary(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = flight_bag(tmp_path / "flight")
    (tmp_path / "summary.json").write_text('{"outcome": "finished", "decisions": 3}')
    for _ in range(2):  # the second finds the first's
        assert main(["replay", str(bag), "--model", str(model_folder), "--every", "20"]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"outcome": "finished", "decisions": 3}
    summary = json.loads((tmp_path / "replay.json").read_text())
    assert summary["decisions"] == len(rows)
    for name in ("frames", "decisions", "agreement", "realtime_factor"):
        assert summary[name] is not None
        assert f"{name} " in out
    page = (tmp_path / "replay.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(rows)
    assert "http" not in page  # self-contained
    assert "decision of the flight" in page


def test_a_recording_that_breaks_off_keeps_what_was_finished(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = tmp_path / "flight"
    image = topics.FRONT_IMAGE
    with BagWriter(bag) as writer:
        writer.add_topic(image.resolve(), image.type, image.qos)
        for number in range(30):
            payload = encode(CompressedImage(10.0 + number, picture(number)))
            whole = payload if number != 25 else b"\x00\x01\x00\x00broken"
            writer.put(image.resolve(), (10 + number) * 10**9, whole)
    assert main(["replay", str(bag), "--model", str(model_folder), "--question", "what is there?"]) == 2
    assert "message 25 (/drone/camera/front/image/compressed" in capsys.readouterr().err
    assert len((tmp_path / "decisions.jsonl").read_text().splitlines()) == 2
    assert "message 25" in (tmp_path / "replay.html").read_text()
    assert json.loads((tmp_path / "replay.json").read_text())["frames"] == 25


def test_bad_arguments_are_named(
    tmp_path: Path, folder_bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(tmp_path / "nothing")]) == 2
    assert "no recording at" in capsys.readouterr().err
    output = ["--output", str(tmp_path)]
    assert main(["replay", str(folder_bag), "--model", str(tmp_path), "--question", "what?", *output]) == 2
    assert "config.json" in capsys.readouterr().err
