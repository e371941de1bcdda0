"""The list of past flights: what is damaged is said, and nothing but a run's pages is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nav_server.page import drawing
from nav_server.page.flights import past_flights, viewer_page

WHOLE = b"\x89MCAP0\r\n" + b"records" + b"\x89MCAP0\r\n"


def make_run(runs: Path, name: str, *, recording: bytes | None = WHOLE, summary: object = None) -> Path:
    run = runs / name
    (run / "flight").mkdir(parents=True)
    if recording is not None:
        (run / "flight" / "flight.mcap").write_bytes(recording)
    facts = {"mission": "fly to the red beacon", "outcome": "finished", "reason": "reached", "success": True}
    (run / "summary.json").write_text(json.dumps(facts if summary is None else summary))
    (run / "flight.html").write_text("<!doctype html><title>Flight</title>")
    return run


def test_newest_first_with_outcome_and_pages(tmp_path: Path) -> None:
    make_run(tmp_path, "20260101-120000")
    make_run(tmp_path, "20260102-120000")
    (tmp_path / "latest").symlink_to("20260102-120000")
    flights = past_flights(tmp_path)
    assert [flight.name for flight in flights] == ["20260102-120000", "20260101-120000"]
    assert flights[0].outcome == "finished: reached"
    assert flights[0].success is True
    assert flights[0].recording == "complete"
    assert flights[0].pages == ("flight.html",)


@pytest.mark.parametrize(
    ("recording", "said"),
    [
        (None, "none"),
        (b"", "damaged"),
        (b"no recording", "damaged"),
        (WHOLE[:-3], "cut off"),
        (WHOLE, "complete"),
    ],
)
def test_a_damaged_recording_is_said(tmp_path: Path, recording: bytes | None, said: str) -> None:
    make_run(tmp_path, "a", recording=recording)
    assert past_flights(tmp_path)[0].recording == said


def test_a_recording_that_cannot_be_opened_is_said_beside_the_others(tmp_path: Path) -> None:
    make_run(tmp_path, "b")
    (make_run(tmp_path, "a", recording=None) / "flight" / "flight.mcap").mkdir()
    assert [flight.recording for flight in past_flights(tmp_path)] == ["complete", "cannot be read"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '"x"',
        "\x00",
        '{"outcome": {"a": 1}, "success": "yes"}',
        "[" * 100_000,
        " " * (1 << 20) + "{}",
    ],
)
def test_a_damaged_summary_is_said(tmp_path: Path, text: str) -> None:
    (make_run(tmp_path, "a") / "summary.json").write_text(text)
    (flight,) = past_flights(tmp_path)
    assert flight.outcome
    assert flight.success is None
    assert "a/flight.html" in drawing.flights([flight], "runs", "/flights")


def test_no_folder_is_no_flights(tmp_path: Path) -> None:
    assert past_flights(tmp_path / "none") == []
    (tmp_path / "file").touch()
    assert past_flights(tmp_path / "file") == []


@pytest.mark.parametrize(
    ("run", "page"),
    [
        ("..", "flight.html"),
        (".", "flight.html"),
        ("", "flight.html"),
        ("../outside", "flight.html"),
        ("a", "../secret.html"),
        ("a", "summary.json"),
        ("a/../a", "flight.html"),
        ("latest", "flight.html"),
        ("b", "flight.html"),
        ("a\x00", "flight.html"),
    ],
)
def test_only_a_listed_runs_own_pages_are_served(tmp_path: Path, run: str, page: str) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "a")
    make_run(tmp_path, "outside")
    (tmp_path / "flight.html").touch()
    (runs / "flight.html").touch()
    (runs / "latest").symlink_to("a")
    # A page that is a link could lead anywhere.
    linked = make_run(runs, "b") / "flight.html"
    linked.unlink()
    linked.symlink_to(tmp_path / "flight.html")
    assert viewer_page(runs, "a", "flight.html") == runs / "a" / "flight.html"
    assert viewer_page(runs, run, page) is None
