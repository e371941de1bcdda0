"""The figures of an episode on worlds whose geometry is plain."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airsim_sim.model import DRONE_RADIUS_M
from airsim_sim.true_map import TrueMap
from airsim_sim.world import parse_world
from nav_eval import metrics
from nav_eval.metrics import Contact, TakenDecision, TrackPoint

WORLD = """
name: two
objects:
  - {name: red, kind: pillar, radius: 0.4, height: 5, at: [20, 0]}
  - {name: blue, kind: pillar, radius: 0.4, height: 5, at: [0, 15]}
  - {name: wall, kind: box, length: 1, width: 6, height: 4, at: [10, 0]}
goals: [red]
"""


@pytest.fixture(scope="module")
def true_map():
    return TrueMap(parse_world(WORLD, "two"))


def track(*places):
    return [TrackPoint(float(i), (*place, 2.0)) for i, place in enumerate(places)]


def decision(tool, place=(0.0, 0.0), heading_deg=0.0, **arguments):
    return TakenDecision(tool, arguments, (*place, 2.0), math.radians(heading_deg))


def measured(true_map, flown, decisions=(), contacts=(), goal="red", goals=()):
    return metrics.measure(
        true_map, goals or [goal], goal, ["red", "blue"], flown, decisions, contacts, within_m=2.0
    )


def test_a_detour_costs_spl_and_the_right_goal_is_named(true_map):
    flown = track((0, 0), (0, 8), (20, 8), (20, 1.5))
    figures = measured(true_map, flown)
    assert figures.path_m == pytest.approx(8 + 20 + 6.5)
    assert figures.goal_distance_m == pytest.approx(1.5)
    assert figures.nearest_object == "red"
    assert 18.0 < figures.shortest_m < 20.5
    assert figures.spl_weight == pytest.approx(figures.shortest_m / figures.path_m)
    assert measured(true_map, track((0, 0), (0, 13.5)))
    assert measured(true_map, track((0, 0), (0, 13.5))).nearest_object == "blue"


def test_with_several_goals_the_shortest_way_leads_past_all_of_them(true_map):
    one = measured(true_map, track((0, 0), (0, 13)), goal="blue")
    both = measured(true_map, track((0, 0), (0, 13), (18, 0)), goal="red", goals=["blue", "red"])
    assert both.shortest_m > one.shortest_m + math.dist((0, 13), (20, 0)) - 2.5


def test_spl_is_never_above_one(true_map):
    assert measured(true_map, track((0, 0), (19, 0))).spl_weight <= 1.0


def test_clearance_near_misses_and_contacts(true_map):
    close = 9.5 - DRONE_RADIUS_M - 0.2
    flown = track((0, 0), (close, 0), (0, 0), (close, 0), (0, 0))
    figures = measured(
        true_map, flown, contacts=[Contact(3.1, "wall"), Contact(3.8, "wall"), Contact(4.5, "wall")]
    )
    assert figures.smallest_clearance_m == pytest.approx(0.2)
    assert (figures.contacts, figures.near_misses) == (1, 1)


def test_coming_close_to_the_goal_is_no_near_miss(true_map):
    figures = measured(true_map, track((15, 3), (19.2, 0.0)))
    assert figures.near_misses == 0
    assert figures.smallest_clearance_m > 1.0


def test_contacts_far_enough_apart_count_each():
    times = [0.0, 0.5, 1.4, 2.5, 2.6]
    assert [c.time_s for c in metrics.merged_contacts([Contact(t, "tree") for t in times])] == [0.0, 2.5]


def test_traversability_is_the_share_of_chosen_ways_that_were_free(true_map):
    decisions = [
        decision("move_forward", distance_m=8),
        decision("move_forward", distance_m=8, place=(4.0, 0.0)),
        decision("turn_left", angle_deg=30),
        decision("fly_towards", u=500, v=500, distance_m=8, place=(8.9, 0.0)),
        decision("finish", reason="reached"),
    ]
    figures = measured(true_map, track((0, 0), (1, 0)), decisions)
    assert (figures.ways_chosen, figures.ways_free) == (3, 1)


def test_fly_towards_the_left_of_the_picture_goes_left(true_map):
    left = decision("fly_towards", u=50, v=500, distance_m=1, place=(8.4, 0.0))
    figures = measured(true_map, track((0, 0), (1, 0)), [left])
    assert (figures.ways_chosen, figures.ways_free) == (1, 1)


def test_a_turn_taken_back_is_undone_and_a_pose_seen_before_is_a_revisit(true_map):
    decisions = [
        decision("turn_left", angle_deg=30),
        decision("turn_right", heading_deg=30, angle_deg=20),
        decision("turn_right", heading_deg=10, angle_deg=90),
        decision("turn_left", heading_deg=-80, angle_deg=10),
        decision("move_forward", heading_deg=-70, distance_m=1),
    ]
    figures = metrics.coherence(decisions, true_map, ["red", "blue"])
    assert (figures.turns, figures.turns_undone) == (4, 1)
    assert figures.revisits == 1  # the third, near the first's heading
    assert figures.score == pytest.approx(1 - 2 / 5)


def test_changes_of_the_object_flown_to_are_counted(true_map):
    decisions = [
        decision("move_forward", distance_m=2),
        decision("move_forward", heading_deg=90, distance_m=2),
        decision("move_forward", heading_deg=180, distance_m=2),
        decision("move_forward", heading_deg=5, distance_m=2),
    ]
    assert metrics.coherence(decisions, true_map, ["red", "blue"]).goal_changes == 2


def test_without_decisions_there_is_no_score(true_map):
    assert metrics.coherence([], true_map, ["red"]).score is None


def test_an_empty_track_is_refused(true_map):
    with pytest.raises(ValueError, match="the track is empty"):
        measured(true_map, [])


TOOLS = st.sampled_from(
    [("turn_left", {"angle_deg": 30}), ("turn_right", {"angle_deg": 90}), ("move_forward", {"distance_m": 2})]
)


@given(st.lists(st.tuples(TOOLS, st.floats(-5, 5), st.floats(-180, 180)), max_size=8))
def test_the_score_is_between_0_and_1(drawn):
    decisions = [decision(tool, (x, 0.0), heading, **arguments) for (tool, arguments), x, heading in drawn]
    score = metrics.coherence(decisions, TrueMap(parse_world(WORLD, "two")), ["red", "blue"]).score
    assert score is None or 0.0 <= score <= 1.0
