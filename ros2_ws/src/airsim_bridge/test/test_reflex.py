"""The reflex: what it sees, what it allows, and that nothing is hit."""

import math

import numpy as np
import pytest

from airsim_bridge.reflex import DepthReflex, ReflexSettings, obstacle_points, rotation_matrix
from airsim_bridge.stopping import speed_that_stops
from airsim_bridge.testing.lockstep import Lockstep
from nav_common.data import Twist
from nav_common.frames import Quaternion, Vector

FOV = math.radians(90.0)
FAR = 65504.0  # what AirSim gives for the sky


def wall(distance_m: float, columns=slice(None), rows=slice(None)) -> np.ndarray:
    depth = np.full((120, 160), FAR, np.float32)
    depth[rows, columns] = distance_m
    return depth


def reflex_that_sees(depth: np.ndarray, stamp: float = 10.0, **kwargs) -> DepthReflex:
    reflex = DepthReflex()
    reflex.update(depth, stamp, FOV, **kwargs)
    return reflex


@pytest.mark.parametrize("speed", [0.0, 0.5, 2.0, 10.0])
def test_the_speed_that_stops_just_stops(speed):
    distance = speed * 0.3 + speed**2 / (2 * 2.5)
    assert speed_that_stops(distance, 2.5, 0.3) == pytest.approx(speed)
    assert speed_that_stops(-1.0, 2.5, 0.3) == 0.0


def test_free_air_limits_nothing():
    reflex = reflex_that_sees(wall(FAR))
    assert reflex.limit(Vector(5.0, 1.0, -1.0), 10.1) == Vector(5.0, 1.0, -1.0)
    assert (reflex.interventions, reflex.reason) == (0, "")


def test_a_wall_allows_what_can_be_stopped_with_the_latency_in_it():
    reflex = reflex_that_sees(wall(6.0))
    settings = reflex.settings
    limited = reflex.limit(Vector(5.0, 0.0, 0.0), 10.1)
    assert limited.x == pytest.approx(
        speed_that_stops(6.0 - settings.margin_m, settings.deceleration, settings.latency_s + 0.1), rel=1e-4
    )
    assert "6.0 m free" in reflex.reason
    older = reflex.limit(Vector(5.0, 0.0, 0.0), 10.4)
    assert older.x < limited.x  # an older picture allows less


def test_within_the_margin_forward_is_over_and_back_is_free():
    reflex = reflex_that_sees(wall(0.8))
    assert reflex.limit(Vector(3.0, 0.0, 0.0), 10.0).x == 0.0
    assert reflex.limit(Vector(-3.0, 1.0, 0.5), 10.0) == Vector(-3.0, 1.0, 0.5)


def test_what_is_beside_the_corridor_does_not_matter():
    beside = wall(4.0, columns=slice(0, 40))  # 2 to 4 m to the left, at 4 m
    assert reflex_that_sees(beside).limit(Vector(3.0, 0.0, 0.0), 10.0).x == 3.0
    # but flying towards it does
    assert reflex_that_sees(beside).limit(Vector(3.0, 3.0, 0.0), 10.0).x < 3.0


def test_a_thin_pole_counts():
    assert reflex_that_sees(wall(3.0, columns=slice(80, 81))).limit(Vector(4.0, 0.0, 0.0), 10.0).x < 3.0


def test_a_tilted_camera_does_not_take_the_ground_for_a_wall():
    """Nose down by 20 degrees, 2 m above flat ground."""
    pitch = math.radians(20.0)
    rows = (59.5 - np.arange(120)) / 80.0  # up over forward, of each row
    down = math.sin(pitch) - rows * math.cos(pitch)  # of the ray with forward 1
    depth = np.where(down > 1e-3, 2.0 / np.maximum(down, 1e-3), FAR)
    depth = np.repeat(depth[:, None], 160, axis=1).astype(np.float32)
    tilt = Quaternion(math.cos(pitch / 2), 0.0, math.sin(pitch / 2), 0.0)
    assert reflex_that_sees(depth).limit(Vector(5.0, 0.0, 0.0), 10.0).x < 5.0
    assert reflex_that_sees(depth, tilt=tilt).limit(Vector(5.0, 0.0, 0.0), 10.0).x == 5.0


@pytest.mark.parametrize(("now", "words"), [(11.2, "1.2 s old"), (1e9, "s old")])
def test_an_old_picture_means_no_forward_motion(now, words):
    reflex = reflex_that_sees(wall(FAR))
    assert reflex.limit(Vector(2.0, 0.5, 0.0), now) == Vector(0.0, 0.5, 0.0)
    assert words in reflex.reason


def test_no_picture_means_no_forward_motion():
    reflex = DepthReflex()
    assert reflex.limit(Vector(2.0, 0.0, 0.0), 10.0).x == 0.0
    assert "missing" in reflex.reason


def test_a_frozen_picture_is_no_picture():
    reflex = reflex_that_sees(wall(FAR), 10.0)
    for _ in range(5):
        reflex.update(wall(FAR), 10.0, FOV)  # it comes again and again, its stamp stands
    assert reflex.limit(Vector(2.0, 0.0, 0.0), 11.2).x == 0.0


@pytest.mark.parametrize("value", [math.nan, 0.0, -1.0, -math.inf])
def test_pixels_that_are_no_distance_are_taken_for_an_obstacle(value):
    assert reflex_that_sees(wall(value, rows=slice(60, 61))).limit(Vector(2.0, 0.0, 0.0), 10.0).x == 0.0


def test_infinitely_far_is_far():
    assert reflex_that_sees(wall(math.inf)).limit(Vector(2.0, 0.0, 0.0), 10.0).x == 2.0


def test_interventions_are_counted_once_each():
    reflex = reflex_that_sees(wall(3.0))
    for _ in range(5):
        reflex.limit(Vector(5.0, 0.0, 0.0), 10.0)
    reflex.update(wall(FAR), 10.1, FOV)
    reflex.limit(Vector(5.0, 0.0, 0.0), 10.1)
    assert reflex.reason == ""
    reflex.update(wall(3.0), 10.2, FOV)
    reflex.limit(Vector(5.0, 0.0, 0.0), 10.2)
    assert reflex.interventions == 2


@pytest.mark.parametrize("shape", [(0, 0), (120,), (120, 160, 3)])
def test_a_picture_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="must be \\[height, width\\]"):
        obstacle_points(np.zeros(shape, np.float32), FOV, 40.0)


def test_points_are_where_the_pixels_say():
    depth = np.full((2, 2), 2.0, np.float32)
    points = obstacle_points(depth, FOV, 40.0)  # focal length 1 pixel
    assert points.tolist() == [[2, 1, 1], [2, -1, 1], [2, 1, -1], [2, -1, -1]]
    half = math.sqrt(0.5)
    left = rotation_matrix(Quaternion(half, 0.0, 0.0, half)) @ np.array([1.0, 0.0, 0.0])
    assert left == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_a_wrong_setting_is_refused_by_name():
    with pytest.raises(ValueError, match="reflex setting half_width_m is -1"):
        ReflexSettings(half_width_m=-1.0)


@pytest.mark.parametrize("speed", [2.0, 5.0])
def test_flown_straight_at_a_tree_it_stops_before(speed):
    flight = Lockstep(reflex=True, depth_rate_hz=5.0)
    tree = next(o for o in flight.simulation.world.objects if o.kind == "tree")
    x, y = tree.position[:2]
    bearing = math.atan2(y, x)
    start = max(math.hypot(x, y) - 14.0, 0.0)
    flight.place(start * math.cos(bearing), start * math.sin(bearing), 1.5, math.degrees(bearing))
    flight.stream(9.0, Twist.body(speed))
    assert flight.simulation.collisions == []
    assert flight.seen.state.reflex_interventions >= 1
    assert flight.speed < 0.1
    assert math.dist(flight.simulation.position[:2], (x, y)) < 4.0  # it did go there
