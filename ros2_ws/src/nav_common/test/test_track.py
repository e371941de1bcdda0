"""A track begins and ends where the way does, stays near it, and never grows over its limit."""

import math

from hypothesis import given
from hypothesis import strategies as st

from nav_common.track import Track

STEP_M = 0.25
STEPS = st.lists(st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)), min_size=1, max_size=400)


@given(STEPS, st.integers(2, 20))
def test_a_track_is_the_way_within_three_steps(steps, most):
    track, way, here = Track(STEP_M, most), [], (0.0, 0.0)
    for east, north in steps:
        here = (here[0] + east, here[1] + north)
        way.append(here)
        track.add(here)
    points = track.points()
    assert len(points) <= most
    assert (points[0], points[-1]) == (way[0], way[-1])
    assert all(min(math.dist(place, point) for point in points) < 3 * track.step_m for place in way)


def test_an_hour_at_two_metres_a_second_is_kept_whole():
    track = Track(STEP_M, 512)
    for tick in range(3600 * 20):
        track.add((tick * 0.1, 0.0, 5.0))
    points = track.points()
    assert 256 <= len(points) <= 512
    assert points[0] == (0.0, 0.0, 5.0)
    assert points[-1] == (7199.9, 0.0, 5.0) or math.isclose(points[-1][0], 7199.9)
    assert track.step_m == 16.0


def test_what_is_not_finite_is_no_place():
    track = Track(STEP_M, 10)
    assert not track.add((math.nan, 0.0))
    assert track.points() == []
    assert track.add((1.0, 0.0))
    assert not track.add((math.inf, 0.0))
    assert track.points() == [(1.0, 0.0)]


def test_standing_still_adds_nothing():
    track = Track(STEP_M, 10)
    assert track.add((0.0, 0.0))
    assert not any(track.add((0.1, 0.0)) for _ in range(100))
    assert track.points() == [(0.0, 0.0), (0.1, 0.0)]
