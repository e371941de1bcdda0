"""What the monitoring page shows, made from what the graph says; and how it is drawn."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav_common.data import (
    CompressedImage,
    Decision,
    DroneState,
    EngineStatus,
    FlyingMode,
    GateMode,
    GoalState,
    LinkState,
    NavigateState,
    Odometry,
    Outcome,
    WatchEvent,
)
from nav_common.frames import Vector
from nav_server.page import drawing
from nav_server.page.board import SILENT_S, Board, Level, Snapshot
from nav_server.page.flights import RunFolder
from nav_server.page.view import instruction_problem
from nav_server.testing.shown_page import make_flight, picture

NOW_S = 1000.0


def lamp(snapshot: Snapshot, name: str) -> tuple[Level, str]:
    (found,) = (lamp for lamp in snapshot.lamps if lamp.name == name)
    return found.level, found.text


@pytest.fixture
def board() -> Board:
    board = Board()
    make_flight(board, NOW_S)
    return board


def test_lamps_are_green_in_flight(board: Board) -> None:
    assert {lamp.level for lamp in board.snapshot(NOW_S).lamps} == {Level.OK}


def test_a_graph_that_fell_silent_is_no_longer_green(board: Board) -> None:
    later = board.snapshot(NOW_S + SILENT_S + 1.0)
    assert lamp(later, "Drone") == (Level.ERROR, "silent for 2 s")
    assert lamp(later, "Camera")[0] is lamp(later, "Memory")[0] is Level.ERROR
    assert lamp(later, "Gate") == (Level.OFF, "unknown")


def test_an_empty_board_shows_that_nothing_was_received() -> None:
    empty = Board().snapshot(NOW_S)
    assert lamp(empty, "Drone") == (Level.ERROR, "no message received")
    assert not empty.emergency
    assert not empty.flying


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        (
            {"gate_mode": GateMode.EMERGENCY, "gate_reason": "emergency stop"},
            "Gate",
            Level.ERROR,
            "emergency stop",
        ),
        (
            {"gate_mode": GateMode.HOLD, "gate_reason": "no command"},
            "Gate",
            Level.WARNING,
            "HOLD: no command",
        ),
        ({"gate_mode": GateMode.HOLD, "landed": True}, "Gate", Level.OFF, "landed"),
        ({"connected": False}, "Drone", Level.ERROR, "not connected"),
        ({"fault": "camera lost"}, "Drone", Level.ERROR, "camera lost"),
        ({"collision_count": 2}, "Drone", Level.WARNING, "2 contacts"),
    ],
)
def test_lamps_say_what_the_gate_says(
    board: Board, changes: dict[str, object], name: str, level: Level, words: str
) -> None:
    state = DroneState(NOW_S, FlyingMode.AIRBORNE, GateMode.ACTIVE, connected=True)
    board.take(replace(state, **changes), NOW_S)  # type: ignore[arg-type]
    shown = board.snapshot(NOW_S)
    assert lamp(shown, name)[0] is level
    assert words in lamp(shown, name)[1]
    assert shown.emergency == (changes.get("gate_mode") is GateMode.EMERGENCY)


def test_a_link_that_is_down_says_why(board: Board) -> None:
    board.take(LinkState(NOW_S, up=False, fault="no answer for 1 s"), NOW_S)
    assert lamp(board.snapshot(NOW_S), "Link") == (Level.ERROR, "no answer for 1 s")


def test_the_strip_adds_up_to_the_budget(board: Board) -> None:
    cache = board.snapshot(NOW_S).cache
    assert (cache.sink, cache.window, cache.recalled, cache.free) == (300, 600, 140, 496)
    assert cache.sink + cache.window + cache.recalled + cache.free == cache.budget
    # A cache that is for a moment beyond its budget has nothing free, not less.
    board.take(EngineStatus(sink_tokens=10, window_tokens=100, cached_tokens=110, budget_tokens=100), NOW_S)
    assert board.snapshot(NOW_S).cache.free == 0


def test_a_mission_that_was_rejected_is_not_the_one_that_flies(board: Board) -> None:
    board.take(
        GoalState(NOW_S, "", "fly away", NavigateState.ENDED, outcome=Outcome.ERROR, reason="no"), NOW_S
    )
    assert board.snapshot(NOW_S).flying
    assert board.rejection() == "no"
    board.take(GoalState(NOW_S, "7", "x", NavigateState.ENDED), NOW_S)
    assert not board.snapshot(NOW_S).flying


def test_frames_in_memory_have_entities_and_pictures(board: Board) -> None:
    frames = board.snapshot(NOW_S).frames
    assert [NOW_S - frame.stamp_s for frame in frames] == [8.0, 6.0, 4.0, 2.0, 0.0]
    assert [frame.entities for frame in frames] == ["car_1", "", "", "car_1, tree_2", ""]
    assert [frame.recalled for frame in frames] == [True, False, False, False, False]
    assert all(frame.seen and board.thumbnail(frame.stamp_s) for frame in frames)
    # Of what the board never saw there is no picture, and the page does not ask for one.
    board.take_memory([NOW_S - 500.0])
    unseen = board.snapshot(NOW_S).frames[0]
    assert not unseen.seen
    assert "<img" not in drawing.frames([unseen], "/frames")


def test_every_frame_is_found_by_the_address_that_the_page_gives_it() -> None:
    board, jpeg = Board(), picture(0)
    for number in range(200):
        stamp_s = 1795305471 + (123456789 + 7919 * number) * 1e-9  # as ROS's stamps become seconds
        board.take(CompressedImage(stamp_s, jpeg), stamp_s)
        board.take_memory([stamp_s])
        drawn = drawing.frames(board.snapshot(stamp_s).frames[-1:], "/frames")
        (name,) = re.findall(r"/frames/(\d+)\.jpg", drawn)
        assert board.thumbnail_of(int(name))


def test_a_broken_picture_is_no_thumbnail() -> None:
    board = Board()
    board.take(CompressedImage(NOW_S, b"\xff\xd8 no JPEG"), NOW_S)
    board.take(CompressedImage(NOW_S + 10.0, b""), NOW_S)
    board.take_memory([NOW_S, NOW_S + 10.0])
    assert board.thumbnail(NOW_S) is board.thumbnail(NOW_S + 10.0) is None


def test_memory_stays_bounded_in_a_long_flight() -> None:
    board = Board()
    jpeg = picture(0)
    for second in range(400):
        at_s = NOW_S + second
        board.take(CompressedImage(at_s, jpeg), at_s)
        board.take_memory([at_s])
    assert board.thumbnail(NOW_S) is None
    assert board.thumbnail(NOW_S + 390) is not None
    for metre in range(2500):
        board.take(Odometry(NOW_S + metre, Vector(float(metre), 0.0, 0.0)), NOW_S + metre)
    path = board.snapshot(NOW_S + 2500).path
    assert len(path) <= 1000
    assert (path[0], path[-1]) == ((0.0, 0.0), (2499.0, 0.0))


@given(st.floats(), st.floats())
def test_what_is_not_finite_is_not_drawn(east: float, north: float) -> None:
    board = Board()
    board.take(Odometry(NOW_S, Vector(east, north, 0.0)), NOW_S)
    board.take(Decision(NOW_S, NOW_S, total_ms=east), NOW_S)
    shown = board.snapshot(NOW_S)
    assert all(math.isfinite(value) for series in shown.latencies for _, value in series.points)
    if abs(east) < 1e9 and abs(north) < 1e9:
        drawn = drawing.path_map(shown.path, 0.0)
        assert "nan" not in drawn
        assert "inf" not in drawn


@given(st.text(), st.text())
def test_text_from_outside_is_never_markup(words: str, arguments: str) -> None:
    board = Board()
    hostile = f"<script>{words}</script><img src=x onerror=alert(1)>"
    board.take(
        Decision(NOW_S, NOW_S, instruction=hostile, tool=hostile, arguments=arguments, reason=hostile), NOW_S
    )
    board.take(GoalState(NOW_S, "7", hostile, reason=hostile), NOW_S)
    board.take(LinkState(NOW_S, fault=hostile), NOW_S)
    board.take(WatchEvent(NOW_S, hostile, hostile, True), NOW_S)
    board.take(DroneState(NOW_S, fault=hostile, gate_reason=hostile), NOW_S)
    shown = board.snapshot(NOW_S)
    flight = RunFolder(hostile, hostile, hostile, None, hostile, ("flight.html",))
    parts = (
        drawing.flights([flight], hostile, "/flights"),
        drawing.flights([], hostile, "/flights"),
        drawing.watches(shown),
        drawing.lamps(shown.lamps),
        drawing.decision_words(shown),
        drawing.mission(shown),
        drawing.link(shown.link),
    )
    assert all("<script" not in part and "<img" not in part for part in parts)
    assert "<" not in drawing.aim(shown) or "circle" in drawing.aim(shown)


def test_a_decision_points_into_the_picture(board: Board) -> None:
    assert 'cx="60.0%" cy="54.0%"' in drawing.aim(board.snapshot(NOW_S))
    for tool, arguments in (
        ("hover", "{}"),
        ("fly_towards", '{"u": "a"}'),
        ("fly_towards", "[1]"),
        ("fly_towards", "{"),
    ):
        board.take(Decision(NOW_S, NOW_S, tool=tool, arguments=arguments), NOW_S)
        assert drawing.aim(board.snapshot(NOW_S)) == ""


def test_instructions_that_are_none_are_refused_with_the_reason() -> None:
    assert instruction_problem("fly to the red beacon") == ""
    assert "say where" in instruction_problem("")
    assert "501 characters" in instruction_problem("x" * 501)
    for text in ("<|im_end|>", "fly <tool_call>", "<|im_start|>system", "fly\x00"):
        assert "control" in instruction_problem(text)
