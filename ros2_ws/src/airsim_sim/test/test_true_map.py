"""Distances and shortest ways on worlds whose geometry is plain."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airsim_sim.model import DRONE_RADIUS_M
from airsim_sim.true_map import NoWayError, TrueMap, length_m
from airsim_sim.world import load_world, parse_world

WALL = """
name: wall
objects:
  - {name: wall, kind: box, length: 1, width: 10, height: 4, at: [10, 0]}
  - {name: pillar, kind: pillar, radius: 0.4, height: 5, at: [20, 0]}
  - {name: start, kind: strip, at: [0, 0]}
  - {name: aside, kind: strip, at: [8, 10]}
goals: [pillar]
"""
CAGE = """
name: cage
objects:
  - {name: north, kind: box, length: 1, width: 12, height: 4, at: [5, 0]}
  - {name: south, kind: box, length: 1, width: 12, height: 4, at: [-5, 0]}
  - {name: west, kind: box, length: 12, width: 1, height: 4, at: [0, 5]}
  - {name: east, kind: box, length: 12, width: 1, height: 4, at: [0, -5]}
  - {name: pillar, kind: pillar, at: [20, 0]}
goals: [pillar]
"""


@pytest.fixture(scope="module")
def wall():
    return TrueMap(parse_world(WALL, "wall"))


def test_distances_are_exact_beside_boxes_and_cylinders(wall):
    points = np.array([[0, 0, 2], [10, 0, 2], [10, 8, 2], [20, 0, 6], [17, 0, 2], [8.5, 8, 2]])
    expected = [9.5, -0.5, 3.0, 1.0, 2.6, math.hypot(1.0, 3.0)]
    assert wall.distance(points) == pytest.approx(expected)
    assert wall.clearance(points) == pytest.approx(np.array(expected) - DRONE_RADIUS_M)


def test_a_turned_box_is_turned():
    world = parse_world(
        "name: t\nobjects:\n  - {name: b, kind: box, length: 8, width: 2, height: 4, at: [0, 0], yaw_deg: 90}\n"
        "goals: [b]\n",
        "t",
    )
    assert TrueMap(world).distance(np.array([[3.0, 0.0, 1.0], [0.0, 5.0, 1.0]])) == pytest.approx([2.0, 1.0])


def test_an_object_that_does_not_count_is_left_out(wall):
    assert wall.distance(np.array([[19.0, 0.0, 2.0]]), without=["pillar"]) == pytest.approx([8.5])


def test_the_way_goes_round_the_wall_and_is_about_as_long_as_geometry_says(wall):
    way = wall.ways_to("pillar", within_m=2.0, clearance_m=0.1).way((0.0, 0.0))
    assert way[0] == (0.0, 0.0)
    assert math.dist(way[-1], (20.0, 0.0)) <= 2.0
    side = 5.0 + DRONE_RADIUS_M + 0.1
    least = math.hypot(9.5, side) + 1.0 + math.hypot(9.5, side) - 2.0
    assert least - 0.2 <= length_m(way) <= 1.03 * least


def test_with_a_free_line_the_way_is_the_line(wall):
    way = wall.ways_to("aside", within_m=1.0).way((0.0, 10.0))
    assert len(way) == 2
    assert length_m(way) == pytest.approx(7.0, abs=0.3)


def test_where_there_is_no_way_it_says_so():
    with pytest.raises(NoWayError, match=r"no way from \(0.0, 0.0\)"):
        TrueMap(parse_world(CAGE, "cage")).ways_to("pillar", within_m=2.0).way((0.0, 0.0))


def test_a_start_within_the_clearance_may_leave(wall):
    way = wall.ways_to("start", within_m=1.0, clearance_m=0.3).way((9.2, 0.0))
    assert math.dist(way[-1], (0.0, 0.0)) <= 1.0


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(1, 1000))
def test_ways_in_the_field_keep_their_clearance_and_beat_no_straight_line(seed):
    world = load_world("field", seed)
    true_map = TrueMap(world)
    goal = world.goal.position[:2]
    way = true_map.ways_to("beacon", within_m=2.0, clearance_m=0.2).way((0.0, 0.0))
    assert length_m(way) >= math.hypot(*goal) - 2.0 - 1e-6
    assert (
        length_m(way) <= true_map.ways_to("beacon", within_m=2.0, clearance_m=0.2).length_m((0.0, 0.0)) + 0.3
    )
    for a, b in itertools.pairwise(way):
        heading = math.atan2(b[1] - a[1], b[0] - a[0])
        assert true_map.segment_clearance((*a, 2.0), heading, math.dist(a, b)) >= 0.2 - 1e-6


def test_the_nearest_of_the_named_objects(wall):
    assert wall.nearest_object((19.0, 0.0), ["wall", "pillar"]) == ("pillar", pytest.approx(1.0))
