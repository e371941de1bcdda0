"""The expert flies well in worlds that it knows, and its rules are what a policy can see."""

from __future__ import annotations

import math

import numpy as np
import pytest

from airsim_sim.world import load_world
from nav_pilot.expert import ExpertState, NwuPose, ObstacleMap, decide, turn, wrap


def field_of(seed: int) -> tuple[ObstacleMap, NwuPose]:
    world = load_world("field", seed)
    return ObstacleMap(world, "beacon"), NwuPose(0.0, 0.0, 2.0, math.radians(world.start_yaw_deg))


def before(obstacles: ObstacleMap, distance: float, off_deg: float = 0.0) -> NwuPose:
    """A pose `distance` from the goal on the side of the start, with the goal `off_deg` to the left of the heading."""
    x, y, _ = obstacles.goal.position
    angle = math.atan2(y, x)
    return NwuPose(
        x - distance * math.cos(angle),
        y - distance * math.sin(angle),
        2.0,
        wrap(angle - math.radians(off_deg)),
    )


@pytest.mark.parametrize("first", [1, 301, 601, 951])
def test_reaches_the_beacon_without_touching_anything(first: int) -> None:
    for seed in range(first, first + 15):
        obstacles, pose = field_of(seed)
        state, rng = ExpertState(), np.random.default_rng(seed)
        for _ in range(40):
            name, arguments = call = decide(obstacles, pose, state)
            state.record(call)
            if name == "finish":
                break
            if name == "move_forward":
                length = arguments["distance_m"] + rng.normal(0, 0.05)
                assert obstacles.clearance(pose, pose.yaw, length) > 0, f"seed {seed}: into a tree"
                assert obstacles.goal_clearance(pose, pose.yaw, length) > 0.7, f"seed {seed}: into the beacon"
                pose = pose.moved(length)
            else:
                sign = 1 if name == "turn_left" else -1
                pose = pose.moved(0, 0, sign * math.radians(arguments["angle_deg"] + rng.normal(0, 1)))
        assert obstacles.bearing(pose)[1] < 2.0, (
            f"seed {seed}: {obstacles.bearing(pose)[1]:.1f} m from the beacon"
        )


@pytest.mark.parametrize(("distance", "step"), [(9.5, 8), (5.5, 4), (3.4, 2), (2.2, 1)])
def test_moves_by_the_largest_step_that_stops_short_of_the_pillar(distance: float, step: int) -> None:
    obstacles, _ = field_of(1)
    obstacles.radii = obstacles.radii[:0]
    obstacles.centres, obstacles.trees = obstacles.centres[:0], []
    assert decide(obstacles, before(obstacles, distance), ExpertState()) == (
        "move_forward",
        {"distance_m": step},
    )


def test_finishes_within_two_metres() -> None:
    obstacles, _ = field_of(1)
    assert decide(obstacles, before(obstacles, 1.5), ExpertState()) == ("finish", {"reason": "reached"})


def test_turns_right_by_quarters_while_nothing_is_seen() -> None:
    obstacles, _ = field_of(1)
    pose = before(obstacles, 12.0, off_deg=170)
    state = ExpertState()
    calls = []
    for _ in range(4):
        calls.append(decide(obstacles, pose, state))
        state.record(calls[-1])
    assert calls[:3] == [("turn_right", {"angle_deg": 90})] * 3
    assert calls[3] != calls[0]  # all four directions are seen: look from elsewhere


@pytest.mark.parametrize(("degrees", "call"), [(12, ("turn_left", 10)), (-33, ("turn_right", 30))])
def test_turns_by_the_nearest_angle(degrees: float, call: tuple[str, int]) -> None:
    assert turn(math.radians(degrees)) == (call[0], {"angle_deg": call[1]})


def test_free_distances_agree_with_clearance() -> None:
    obstacles, pose = field_of(4)
    for angle in np.radians(np.arange(0, 360, 15)):
        free = float(obstacles.free_distances(pose, np.array([angle]), 30.0)[0])
        assert obstacles.clearance(pose, pose.yaw + angle, max(free - 0.05, 0.0)) > 0.5
        if free < 30.0:
            assert obstacles.clearance(pose, pose.yaw + angle, free + 0.5) < 0.55


def test_a_beacon_behind_the_camera_is_not_seen() -> None:
    obstacles, _ = field_of(1)
    assert obstacles.visible_pixels(before(obstacles, 4.0)) > 100
    assert obstacles.visible_pixels(before(obstacles, 4.0, off_deg=90)) == 0.0
