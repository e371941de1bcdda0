"""Which frames enter the memory, and when a newer one takes the place of the newest."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav_common.data import Odometry
from nav_common.frames import Quaternion, Vector
from vlm_perception.frame_rule import (
    JUMPS_IN_A_ROW,
    PoseTrack,
    chunk_pose,
    is_due,
    is_still,
    next_due_s,
    replaces,
)


def heading(yaw: float) -> Quaternion:
    return Quaternion(math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))


HERE = Odometry(0.0, Vector(1.0, 2.0, 3.0), heading(3.13))


def moved(stamp_s: float = 0.0, x: float = 0.0, yaw: float = 0.0) -> Odometry:
    return Odometry(stamp_s, HERE.position._replace(x=HERE.position.x + x), heading(3.13 + yaw))


def test_the_first_frame_is_due_and_an_old_one_never() -> None:
    assert is_due(7.0, None, 0.5)
    assert not is_due(7.0, 7.0, 0.0)
    assert not is_due(6.9, 7.0, 0.0, barrier_s=6.0)


@pytest.mark.parametrize(
    ("age", "due"), [(0.1, False), (0.4, False), (0.4999999, True), (0.46, True), (3.0, True)]
)
def test_a_frame_is_due_each_interval_and_jitter_costs_no_frame(age: float, due: bool) -> None:
    assert is_due(100.0 + age, 100.0, 0.5) is due


def test_the_first_frame_past_the_barrier_is_due_at_once_and_the_next_is_not() -> None:
    assert not is_due(100.1, 100.0, 0.5, barrier_s=100.2)
    assert is_due(100.2, 100.0, 0.5, barrier_s=100.2)
    assert not is_due(100.3, 100.25, 0.5, barrier_s=100.2)


@given(
    st.floats(0.001, 1e6),
    st.none() | st.floats(0.001, 1e6),
    st.floats(0.0, 10.0),
    st.none() | st.floats(0.001, 1e6),
)
def test_a_frame_that_is_due_is_one_that_would_be_asked_for(
    stamp_s: float, newest_s: float | None, interval_s: float, barrier_s: float | None
) -> None:
    """Whoever sends only the frames asked for misses none that would be taken."""
    if is_due(stamp_s, newest_s, interval_s, barrier_s):
        assert stamp_s >= next_due_s(newest_s, interval_s, barrier_s)
    elif newest_s is None or stamp_s > newest_s:
        assert stamp_s < next_due_s(newest_s, interval_s, barrier_s)


def test_a_barrier_is_asked_for_before_the_next_frame_in_turn() -> None:
    assert next_due_s(None, 0.5) == 0.0
    assert next_due_s(100.0, 0.5) == pytest.approx(100.45)
    assert next_due_s(100.0, 0.5, barrier_s=100.1) == 100.1
    assert next_due_s(100.0, 0.5, barrier_s=99.0) == pytest.approx(100.45)


def test_hovering_sways_and_flying_moves() -> None:
    assert is_still(HERE, moved(x=0.1))
    assert is_still(HERE, moved(yaw=math.radians(2)))  # across the seam of the angle
    assert not is_still(HERE, moved(x=0.5))
    assert not is_still(HERE, moved(yaw=math.radians(10)))
    assert not is_still(HERE, None)
    assert not is_still(None, HERE)


def test_a_chunk_during_which_it_moved_is_history() -> None:
    assert chunk_pose([HERE, moved(x=0.05)]) == HERE
    assert chunk_pose([HERE, moved(x=1.0)]) is None
    assert chunk_pose([None]) is None
    assert not replaces(None, [HERE])
    assert replaces(HERE, [HERE, moved(x=0.1)])
    assert not replaces(HERE, [HERE, moved(x=1.0)])


@given(st.lists(st.floats(0.01, 0.14), min_size=1, max_size=20))
def test_a_slow_drift_is_seen_since_the_first_pose_is_kept(steps: list[float]) -> None:
    x = 0.0
    for step in steps:
        x += step
        assert replaces(HERE, [moved(x=x)]) is (x <= 0.15) or math.isclose(x, 0.15)


def test_poses_are_found_by_stamp() -> None:
    track = PoseTrack(tolerance_s=0.15)
    assert track.at(1.0) is None
    for stamp in (1.0, 1.1, 1.2):
        track.add(moved(stamp))
    assert track.at(1.12) == moved(1.1)
    assert track.at(1.3) == moved(1.2)
    assert track.at(1.5) is None
    assert track.at(0.5) is None


def test_a_clock_that_was_set_begins_the_track_anew() -> None:
    for begin_s in (0.2, 500.0):
        track = PoseTrack()
        track.add(moved(100.0))
        stamps = [begin_s + 0.03 * i for i in range(JUMPS_IN_A_ROW)]
        assert [track.add(moved(stamp)) for stamp in stamps] == [False] * (JUMPS_IN_A_ROW - 1) + [True]
        assert track.at(100.0) is None
        assert track.at(stamps[-1]) == moved(stamps[-1])


@given(
    ahead_s=st.floats(1.1, 1e6) | st.floats(-1e6, -3.1),
    others=st.lists(st.integers(0, JUMPS_IN_A_ROW - 1), min_size=20, max_size=100),
)
def test_a_second_sender_with_another_clock_does_not_disturb_the_track(
    ahead_s: float, others: list[int]
) -> None:
    """Between two samples of the track, at 30 Hz, some of the other's."""
    track = PoseTrack()
    for number, count in enumerate(others):
        stamp_s = 1e7 + number / 30
        assert track.add(moved(stamp_s))
        for i in range(count):
            assert not track.add(moved(stamp_s + ahead_s + i / 300, x=50.0))
        assert track.at(stamp_s) == moved(stamp_s)
