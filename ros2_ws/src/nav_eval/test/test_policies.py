"""The expert reaches every goal that a scene has, kinematically; the random policy makes every call there is."""

import math

import pytest

from airsim_sim.true_map import TrueMap
from airsim_sim.world import load_world, parse_world
from nav_agent import toolset
from nav_eval.policies import MapExpert, RandomPolicy


def fly(world, goal, most=60):
    """The last call, and the smallest clearance, of a flight without physics."""
    true_map = TrueMap(world)
    expert = MapExpert(true_map, goal)
    (x, y, z), heading, smallest = (0.0, 0.0, 2.0), math.radians(world.start_yaw_deg), math.inf
    for _ in range(most):
        tool, arguments = expert((x, y, z), heading)
        if tool == "finish":
            return arguments["reason"], smallest, (x, y)
        if tool == "move_forward":
            length = float(arguments["distance_m"])
            smallest = min(smallest, true_map.segment_clearance((x, y, z), heading, length))
            x, y = x + length * math.cos(heading), y + length * math.sin(heading)
        else:
            heading += math.radians(float(arguments["angle_deg"])) * (1 if tool == "turn_left" else -1)
    return "limit", smallest, (x, y)


@pytest.mark.parametrize("scene", ["field", "field-decoys", "corridor", "memory"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_expert_reaches_the_first_goal_and_touches_nothing(scene, seed):
    world = load_world(scene, seed)
    reason, smallest, place = fly(world, world.goals[0].name)
    assert reason == "reached"
    assert smallest > 0.0
    assert math.dist(place, world.goals[0].position[:2]) <= 2.0


def test_where_there_is_no_way_the_expert_says_so():
    walled = (
        "name: walled\nobjects:\n"
        "  - {name: north, kind: box, length: 1, width: 12, height: 9, at: [5, 0]}\n"
        "  - {name: south, kind: box, length: 1, width: 12, height: 9, at: [-5, 0]}\n"
        "  - {name: west, kind: box, length: 12, width: 1, height: 9, at: [0, 5]}\n"
        "  - {name: east, kind: box, length: 12, width: 1, height: 9, at: [0, -5]}\n"
        "  - {name: goal, kind: pillar, at: [20, 0]}\n"
        "goals: [goal]\n"
    )
    assert fly(parse_world(walled, "walled"), "goal")[0] == "not_found"


def test_the_random_policy_repeats_by_its_seed_and_makes_every_valid_call():
    calls = [RandomPolicy(3)((0, 0, 2), 0.0) for _ in range(2)]
    assert calls[0] == calls[1]
    policy = RandomPolicy(1)
    made = [policy((0, 0, 2), 0.0) for _ in range(600)]
    assert {tool for tool, _ in made} == set(toolset.BY_NAME)
    for tool, arguments in made:
        assert toolset.clamp(tool, arguments) == (arguments, [])
