"""The expert flies well in worlds that it knows, and its rules are what a policy can see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from airsim_sim.instructions import Instruction, Task, candidates, go_to, land, mission, wait
from airsim_sim.true_map import TrueMap
from airsim_sim.world import World, load_world, parse_world
from nav_pilot.expert import Call, Expert, NwuPose, Sight, turn
from nav_pilot.testing import before


def asked_of(world: World) -> Expert:
    expert = Expert(TrueMap(world))
    expert.begin(go_to(world, "beacon", np.random.default_rng(1)))
    return expert


def field_without_trees() -> World:
    world = load_world("field", 1)
    return replace(world, objects=tuple(item for item in world.objects if item.kind != "tree"))


@pytest.mark.parametrize(("distance", "step"), [(9.5, 8), (5.5, 4), (3.4, 2), (2.2, 1)])
def test_moves_by_the_largest_step_that_stops_short_of_the_pillar(distance: float, step: int) -> None:
    world = field_without_trees()
    assert asked_of(world)(before(world, distance)) == ("move_forward", {"distance_m": step})


ROW = """name: row
objects:
  - {name: beacon, kind: pillar, at: [12, 0]}
  - {name: car, kind: car, at: [0, 12], yaw_deg: 0}
goals: [beacon]
"""


@pytest.mark.parametrize(("name", "near"), [("beacon", 1.75), ("car", 1.55)])
def test_comes_nearer_than_it_must_and_nearer_to_what_it_can_look_over(name: str, near: float) -> None:
    """Whoever imitates it misjudges by some decimetres what is two metres."""
    world = parse_world(ROW, "row.yaml")
    expert = Expert(TrueMap(world))
    expert.begin(go_to(world, name, np.random.default_rng(1)))
    north, west, _ = world.object(name).position
    yaw, outline = math.atan2(west, north), 0.4 if name == "beacon" else 0.88
    for away, call in (
        (near, ("finish", {"reason": "reached"})),
        (near + 0.15, ("move_forward", {"distance_m": 1})),
    ):
        left = math.hypot(north, west) - (away - 0.4 + outline)
        assert expert(NwuPose(left * math.cos(yaw), left * math.sin(yaw), 2.0, yaw)) == call


def test_turns_right_by_quarters_while_nothing_is_seen() -> None:
    world = load_world("field", 1)
    expert, pose = asked_of(world), before(world, 12.0, off_deg=170)
    calls = []
    for _ in range(4):
        calls.append(expert(pose))
        expert.executed(calls[-1])
    assert calls[:3] == [("turn_right", {"angle_deg": 90})] * 3
    assert calls[3] != calls[0]  # all four directions are seen: look from elsewhere


@pytest.mark.parametrize(("degrees", "call"), [(12, ("turn_left", 10)), (-33, ("turn_right", 30))])
def test_turns_by_the_nearest_angle(degrees: float, call: tuple[str, int]) -> None:
    assert turn(math.radians(degrees)) == (call[0], {"angle_deg": call[1]})


def test_a_beacon_behind_the_camera_is_not_seen() -> None:
    world = load_world("field", 1)
    sight = Sight(TrueMap(world))
    assert sight.pixels("beacon", before(world, 4.0)) > 100
    assert sight.pixels("beacon", before(world, 4.0, off_deg=90)) == 0.0


def flown(scene: str, seed: int) -> tuple[str, float, list[Call]]:
    """How the expert's flight without physics ended, its smallest clearance, and its calls."""
    world = load_world(scene, seed)
    true_map, rng = TrueMap(world), np.random.default_rng(seed)
    expert, calls, smallest = Expert(true_map), [], math.inf
    pose = NwuPose(0.0, 0.0, 2.0, math.radians(world.start_yaw_deg))
    for instruction in mission(world):
        expert.begin(instruction)
        while True:
            call = expert(pose)
            expert.executed(call)
            calls.append(call)
            if call[0] == "finish" or len(calls) > 45:
                break
            name, arguments = call
            if name == "move_forward":
                length = float(arguments["distance_m"]) + rng.normal(0, 0.08)
                place = (pose.x, pose.y, pose.z)
                smallest = min(smallest, true_map.segment_clearance(place, pose.yaw, length))
                pose = pose.moved(length, rng.normal(0, 0.03))
            else:
                sign = 1.0 if name == "turn_left" else -1.0
                pose = pose.moved(
                    0, 0, sign * math.radians(float(arguments["angle_deg"])) + rng.normal(0, 0.02)
                )
        if instruction.goal and world.object(instruction.goal).distance_m((pose.x, pose.y)) > 2.0:
            return "elsewhere", smallest, calls
    return str(calls[-1][1].get("reason", "limit")), smallest, calls


@pytest.mark.parametrize("scene", ["field", "field-decoys", "field-mixed", "corridor", "wall", "memory"])
@pytest.mark.parametrize("seed", [10, 11, 13])
def test_comes_to_what_each_scene_asks_for_and_touches_nothing(scene: str, seed: int) -> None:
    reason, smallest, _ = flown(scene, seed)
    assert reason == "reached"
    assert smallest > 0.0


def test_looks_around_once_for_what_is_absent() -> None:
    for seed in range(1, 6):
        reason, _, calls = flown("field-absent", seed)
        assert reason == "not_found"
        assert calls[:3] == [("turn_right", {"angle_deg": 90})] * 3
        assert len(calls) == 4


def test_other_words_lead_elsewhere_in_the_same_world() -> None:
    world = load_world("field-mixed", 3)
    ends = set()
    for goal in candidates(world):
        expert, pose = Expert(TrueMap(world)), NwuPose(0.0, 0.0, 2.0, 0.0)
        expert.begin(go_to(world, goal, np.random.default_rng(1)))
        for _ in range(40):
            name, arguments = call = expert(pose)
            expert.executed(call)
            if name == "finish":
                break
            if name == "move_forward":
                pose = pose.moved(float(arguments["distance_m"]))
            else:
                sign = 1.0 if name == "turn_left" else -1.0
                pose = pose.moved(0, 0, sign * math.radians(float(arguments["angle_deg"])))
        assert world.object(goal).distance_m((pose.x, pose.y)) <= 2.0
        ends.add((round(pose.x), round(pose.y)))
    assert len(ends) == 4


def test_where_there_is_no_way_to_what_is_known_it_is_not_found() -> None:
    walled = (
        "name: walled\nobjects:\n"
        "  - {name: north, kind: box, length: 1, width: 12, height: 9, at: [5, 0]}\n"
        "  - {name: south, kind: box, length: 1, width: 12, height: 9, at: [-5, 0]}\n"
        "  - {name: west, kind: box, length: 12, width: 1, height: 9, at: [0, 5]}\n"
        "  - {name: east, kind: box, length: 12, width: 1, height: 9, at: [0, -5]}\n"
        "  - {name: goal, kind: pillar, at: [20, 0]}\n"
        "goals: [goal]\n"
    )
    expert = Expert(TrueMap(parse_world(walled, "walled")))
    expert.begin(Instruction("go back to the red beacon", Task.GO, "goal", guided=True))
    assert expert(NwuPose(0.0, 0.0, 2.0, 0.0)) == ("finish", {"reason": "not_found"})


def test_lands_and_waits() -> None:
    expert, rng = Expert(TrueMap(load_world("field", 1))), np.random.default_rng(1)
    expert.begin(land(rng))
    assert expert(NwuPose(0.0, 0.0, 2.0, 0.0)) == ("descend", {"distance_m": 2})
    assert expert(NwuPose(0.0, 0.0, 0.75, 0.0)) == ("finish", {"reason": "reached"})
    expert.begin(wait(rng))
    call = expert(NwuPose(0.0, 0.0, 2.0, 0.0))
    assert call[0] == "hover"
    expert.executed(call)
    assert expert(NwuPose(0.0, 0.0, 2.0, 0.0)) == ("finish", {"reason": "reached"})


def test_a_wall_hides_what_is_behind_it_and_a_car_does_not_hide_a_pillar() -> None:
    world = parse_world(
        "name: t\nobjects:\n  - {name: pillar, kind: pillar, at: [20, 0]}\n"
        "  - {name: car, kind: car, at: [10, 0]}\n"
        "  - {name: wall, kind: wall, length: 1, width: 20, height: 6, at: [-5, 0]}\n"
        "  - {name: hidden, kind: pillar, at: [-12, 0]}\ngoals: [pillar]\n",
        "t",
    )
    sight = Sight(TrueMap(world))
    assert sight.pixels("pillar", NwuPose(0.0, 0.0, 2.0, 0.0)) > 20
    assert sight.pixels("pillar", NwuPose(0.0, 0.0, 2.0, math.pi)) == 0
    assert sight.pixels("hidden", NwuPose(0.0, 0.0, 2.0, math.pi)) == 0
