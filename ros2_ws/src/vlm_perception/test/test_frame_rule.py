"""Which frames enter the memory, and when a newer one takes the place of the newest."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_perception.frame_rule import Pose, PoseTrack, chunk_pose, is_due, is_still, replaces

HERE = Pose(0.0, 1.0, 2.0, 3.0, 3.13)


def moved(stamp: float = 0.0, x: float = 0.0, yaw: float = 0.0) -> Pose:
    return Pose(stamp, HERE.x + x, HERE.y, HERE.z, HERE.yaw + yaw)


def test_the_first_frame_is_due_and_an_old_one_never() -> None:
    assert is_due(7.0, None, 0.5)
    assert not is_due(7.0, 7.0, 0.0)
    assert not is_due(6.9, 7.0, 0.0, barrier=6.0)


@pytest.mark.parametrize(
    ("age", "due"), [(0.1, False), (0.4, False), (0.4999999, True), (0.46, True), (3.0, True)]
)
def test_a_frame_is_due_each_interval_and_jitter_costs_no_frame(age: float, due: bool) -> None:
    assert is_due(100.0 + age, 100.0, 0.5) is due


def test_the_first_frame_past_the_barrier_is_due_at_once_and_the_next_is_not() -> None:
    assert not is_due(100.1, 100.0, 0.5, barrier=100.2)
    assert is_due(100.2, 100.0, 0.5, barrier=100.2)
    assert not is_due(100.3, 100.25, 0.5, barrier=100.2)


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
    track.add(moved(0.2))  # the clock was set back
    assert track.at(1.2) is None
    assert track.at(0.2) == moved(0.2)
