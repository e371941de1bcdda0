"""SimpleFlight's behaviours, on the simulator's own physics, in lock-step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from airsim_sim.flight import CallError
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world, parse_world

STEADY = {"is_rate": True, "yaw_or_rate": 0.0}
EMPTY = "name: empty\nobjects:\n  - {name: post, kind: pillar, radius: 0.5, height: 6, at: [8, 0]}\ngoals: [post]\n"


@pytest.fixture
def sim() -> Simulation:
    """Armed, on the ground, a post 8 m ahead."""
    simulation = Simulation(parse_world(EMPTY, "empty.yaml"))
    simulation.call("enableApiControl", True, "")
    assert simulation.call("armDisarm", True, "") is True
    return simulation


@pytest.fixture
def flying(sim: Simulation) -> Simulation:
    assert sim.run_until(sim.call("takeoff", 20.0, ""))
    sim.step(1.0)
    return sim


def velocity(
    sim: Simulation, *v: float, duration: float = 1.0, yaw: dict[str, Any] = STEADY, body: bool = False
) -> Any:
    name = "moveByVelocityBodyFrame" if body else "moveByVelocity"
    return sim.call(name, *v, duration, 0, yaw, "")


def test_takeoff_climbs_two_metres_at_half_a_metre_a_second(sim: Simulation) -> None:
    assert sim.call("getMultirotorState", "")["landed_state"] == 0
    start = sim.position[2]
    task = sim.call("takeoff", 20.0, "")
    sim.step(2.0)
    assert sim.velocity[2] == pytest.approx(0.5, abs=0.02)
    assert sim.run_until(task) is True
    sim.step(1.0)
    assert sim.position[2] - start == pytest.approx(2.0, abs=0.12)
    assert sim.call("getMultirotorState", "")["landed_state"] == 1


def test_takeoff_without_api_control_or_arming_does_not_move_and_answers_false() -> None:
    for arm in (False, True):
        sim = Simulation(parse_world(EMPTY, "empty.yaml"))
        if not arm:
            sim.call("enableApiControl", True, "")
        assert sim.call("armDisarm", True, "") is (not arm)
        sim.call("armDisarm", False, "")
        assert sim.run_until(sim.call("takeoff", 3.0, "")) is False
        assert sim.position[2] < 0.1


def test_an_inactive_vehicle_does_not_fly_until_it_is_armed() -> None:
    sim = Simulation(parse_world(EMPTY, "empty.yaml"), armed_by_default=False)
    sim.call("enableApiControl", True, "")
    assert sim.run_until(sim.call("takeoff", 3.0, "")) is False
    assert sim.call("armDisarm", True, "") is True
    assert sim.run_until(sim.call("takeoff", 20.0, "")) is True


def test_takeoff_while_moving_is_refused(flying: Simulation) -> None:
    velocity(flying, 2, 0, 0)
    flying.step(0.5)
    with pytest.raises(CallError, match="already moving"):
        flying.call("takeoff", 20.0, "")


def test_velocity_is_reached_and_the_task_answers_true_at_its_end(flying: Simulation) -> None:
    start = flying.time_s
    task = velocity(flying, 3, -1, -0.5, duration=2.0)
    assert flying.run_until(task) is True
    assert flying.time_s - start == pytest.approx(2.0, abs=0.011)
    assert flying.velocity == pytest.approx((3, 1, 0.5), abs=0.02)


def test_no_axis_accelerates_faster_than_six_metres_a_second_squared(flying: Simulation) -> None:
    velocity(flying, 9, -9, -2, duration=3.0)
    flying.step(3.0)
    rows = flying.log.rows()
    assert np.abs(np.diff(rows[:, 4:7], axis=0)).max() <= 6.0 * 0.005 + 1e-9


def test_sixty_milliseconds_after_its_goal_ends_the_drone_brakes_and_then_holds(flying: Simulation) -> None:
    flying.run_until(velocity(flying, 4, 0, 0, duration=1.0))
    end = flying.time_s
    flying.step(4.0)
    rows = flying.log.rows()
    after = rows[rows[:, 0] > end]
    goals = after[:, 8]
    assert goals[0] == 4.0, "the last goal is held a little longer"
    assert after[np.argmax(goals == 0), 0] - end == pytest.approx(0.06, abs=0.011)
    assert np.linalg.norm(flying.velocity) < 0.05
    assert after[:, 4].min() > -0.1, "it must not fly back"
    place = flying.position
    flying.step(10.0)
    assert flying.position == pytest.approx(place, abs=0.05)


def test_a_new_motion_task_cancels_the_old_one_which_answers_false(flying: Simulation) -> None:
    first = velocity(flying, 1, 0, 0, duration=5.0)
    flying.step(0.5)
    second = velocity(flying, 0, 1, 0, duration=0.5)
    assert (first.done, first.result, second.done) == (True, False, False)
    assert flying.run_until(second) is True


def test_cancel_last_task_and_hover_end_the_task_with_false(flying: Simulation) -> None:
    for method in ("cancelLastTask", "hover"):
        task = velocity(flying, 2, 0, 0, duration=60.0)
        flying.step(0.5)
        flying.call(method, "")
        assert (task.done, task.result) == (True, False)
        flying.step(2.0)
        assert np.linalg.norm(flying.velocity) < 0.05


def test_body_frame_velocity_is_turned_into_the_world_once(flying: Simulation) -> None:
    flying.run_until(flying.call("rotateToYaw", 90.0, 20.0, 0.5, ""))
    flying.run_until(
        velocity(flying, 2, 0, 0, duration=2.0, body=True, yaw={"is_rate": True, "yaw_or_rate": 45.0})
    )
    assert flying.velocity == pytest.approx((0, -2, 0), abs=0.1), "east, although the nose has turned on"
    assert abs(-flying.yaw_deg - 180) % 360 < 10 or abs(-flying.yaw_deg + 180) % 360 < 10


@pytest.mark.parametrize(("rate", "sign"), [(30.0, -1), (-30.0, 1)])
def test_positive_yaw_rate_turns_clockwise_from_above(flying: Simulation, rate: float, sign: int) -> None:
    flying.run_until(flying.call("rotateByYawRate", rate, 2.0, ""))
    assert flying.yaw_deg == pytest.approx(sign * 60, abs=3)
    assert math.dist(flying.position[:2], (0, 0)) < 0.1


def test_rotate_to_yaw_takes_the_short_way_and_answers_true(flying: Simulation) -> None:
    assert flying.run_until(flying.call("rotateToYaw", -170.0, 20.0, 1.0, "")) is True
    assert flying.run_until(flying.call("rotateToYaw", 170.0, 20.0, 1.0, "")) is True
    yaws = np.degrees(flying.log.rows()[-200:, 7])
    assert np.abs(yaws).min() > 160


def test_drivetrain_forward_only_points_the_nose_along_the_velocity(flying: Simulation) -> None:
    absolute = {"is_rate": False, "yaw_or_rate": 0.0}
    flying.run_until(flying.call("moveByVelocity", 0.0, 2.0, 0.0, 4.0, 1, absolute, ""))
    assert flying.yaw_deg == pytest.approx(-90, abs=3)
    with pytest.raises(CallError, match="Yaw cannot be specified as rate"):
        flying.call("moveByVelocity", 0.0, 2.0, 0.0, 4.0, 1, STEADY, "")


@pytest.mark.parametrize(
    ("name", "args", "result"),
    [
        ("moveByVelocity", (1.0, 0.0, 0.0, 0.0, 0, STEADY, ""), True),
        ("moveByVelocity", (1.0, 0.0, 0.0, -1.0, 0, STEADY, ""), True),
        ("rotateByYawRate", (10.0, 0.0, ""), True),
        ("moveByVelocityZ", (1.0, 0.0, -2.0, 0.0, 0, STEADY, ""), False),
        ("moveOnPath", ([], 2.0, 10.0, 0, STEADY, -1.0, 1.0, ""), True),
    ],
)
def test_nothing_to_do_answers_at_once(
    flying: Simulation, name: str, args: tuple[Any, ...], result: bool
) -> None:
    task = flying.call(name, *args)
    assert (task.done, task.result) == (True, result)


def test_move_to_position_path_and_z_arrive(flying: Simulation) -> None:
    assert flying.run_until(
        flying.call("moveToPosition", -3.0, 4.0, -3.0, 3.0, 30.0, 0, STEADY, -1.0, 1.0, "")
    )
    assert flying.position == pytest.approx((-3, -4, 3), abs=0.15)
    corners = [{"x_val": x, "y_val": y, "z_val": -3.0} for x, y in ((-6.0, 4.0), (-6.0, -2.0), (-2.0, -2.0))]
    assert flying.run_until(flying.call("moveOnPath", corners, 2.0, 60.0, 0, STEADY, -1.0, 1.0, ""))
    assert flying.position == pytest.approx((-2, 2, 3), abs=0.15)
    assert flying.log.rows()[:, 1].min() < -5, "cut the corner altogether"
    assert flying.run_until(flying.call("moveToZ", -5.0, 1.0, 30.0, STEADY, -1.0, 1.0, ""))
    assert flying.position[2] == pytest.approx(5, abs=0.15)


def test_a_motion_out_of_time_answers_false(flying: Simulation) -> None:
    assert (
        flying.run_until(flying.call("moveToPosition", -50.0, 0.0, -3.0, 1.0, 2.0, 0, STEADY, -1.0, 1.0, ""))
        is False
    )


def test_velocity_z_holds_the_height(flying: Simulation) -> None:
    flying.run_until(flying.call("moveByVelocityZBodyFrame", -1.0, 0.0, -4.0, 4.0, 0, STEADY, ""))
    assert flying.position[2] == pytest.approx(4, abs=0.1)
    assert flying.velocity[0] == pytest.approx(-1, abs=0.02)


def test_land_ends_on_the_ground_and_go_home_at_the_start(flying: Simulation) -> None:
    flying.run_until(velocity(flying, -2, 2, 0, duration=2.0))
    assert flying.run_until(flying.call("goHome", 60.0, "")) is True
    assert flying.position == pytest.approx(flying.start, abs=0.15)
    assert flying.run_until(flying.call("land", 60.0, "")) is True
    assert flying.call("getMultirotorState", "")["landed_state"] == 0
    assert flying.collisions == [], "landing is not a collision"


def test_disarmed_in_the_air_it_falls_and_that_is_a_collision_with_the_ground(flying: Simulation) -> None:
    flying.call("armDisarm", False, "")
    flying.step(1.5)
    assert flying.position[2] < 0.2
    assert [hit.object_name for hit in flying.collisions] == ["ground"]


def test_reset_drops_control_arming_task_and_collisions_and_returns_home(flying: Simulation) -> None:
    task = velocity(flying, 3, 0, 0, duration=60.0)
    flying.step(4.0)
    assert flying.collisions
    flying.call("reset")
    assert (task.done, task.result) == (True, False)
    assert flying.call("isApiControlEnabled", "") is False
    assert flying.flight.armed is False
    flying.call("enableApiControl", True, "")
    assert flying.flight.armed is True, "AirSim's SimpleFlight is armed by default"
    assert flying.position == flying.start
    assert flying.collisions == []
    assert flying.call("simGetCollisionInfo", "")["has_collided"] is False


def test_collision_tells_what_where_and_when_and_is_cleared_by_reading(flying: Simulation) -> None:
    start = flying.time_s
    velocity(flying, 3, 0, 0, duration=5.0)
    while not flying.collisions:
        flying.step()
    hit = flying.collisions[0]
    assert hit.object_name == "post"
    assert hit.position[0] == pytest.approx(7.5, abs=0.05)
    assert hit.normal == pytest.approx((-1, 0, 0), abs=0.01)
    assert hit.speed == pytest.approx(3, abs=0.1)
    info = flying.call("simGetCollisionInfo", "")
    assert info["has_collided"] is True
    assert info["object_name"] == "post"
    assert info["impact_point"]["x_val"] == pytest.approx(7.5, abs=0.05)
    assert info["time_stamp"] >= flying.start_time_ns + start * 1e9
    flying.call("hover", "")
    flying.step(1.0)
    flying.call("simGetCollisionInfo", "")
    flying.step(0.1)
    assert flying.call("simGetCollisionInfo", "")["has_collided"] is False
    assert len(flying.collisions) == 1, "one contact is one collision"


def test_releasing_api_control_ends_the_motion(flying: Simulation) -> None:
    task = velocity(flying, 2, 0, 0, duration=60.0)
    flying.step(0.5)
    flying.call("enableApiControl", False, "")
    assert (task.done, task.result) == (True, False)
    flying.step(2.0)
    assert np.linalg.norm(flying.velocity) < 0.05
    velocity(flying, 2, 0, 0)
    flying.step(0.5)
    assert np.linalg.norm(flying.velocity) < 0.05


def test_landed_it_stays_where_it_is_until_told_to_climb(sim: Simulation) -> None:
    velocity(sim, 2, 0, 0, duration=1.0)
    sim.step(1.0)
    assert sim.position == pytest.approx(sim.start, abs=0.01)


def test_pause_and_continue_for_time_advance_exactly(flying: Simulation) -> None:
    flying.call("simPause", True)
    steps = flying.steps
    flying.call("simContinueForTime", 0.25)
    assert flying.steps - steps == 50
    assert flying.call("simIsPaused") is True
    flying.call("simContinueForFrames", 6)
    assert flying.steps - steps == 70


def test_the_same_seed_and_commands_give_the_same_path() -> None:
    def path() -> np.ndarray:
        sim = Simulation(load_world("field", 5))
        sim.call("enableApiControl", True, "")
        sim.call("armDisarm", True, "")
        sim.run_until(sim.call("takeoff", 20.0, ""))
        for step in range(40):
            yaw = {"is_rate": True, "yaw_or_rate": 10.0 * math.sin(step)}
            sim.call("moveByVelocityBodyFrame", 3.0, math.cos(step), 0.2, 0.35, 0, yaw, "")
            sim.step(0.1)
        return sim.log.rows()

    first, second = path(), path()
    assert np.abs(first - second).max() <= 1e-9


def test_teleport_is_exact_and_the_drone_stays_there(flying: Simulation) -> None:
    pose = {
        "position": {"x_val": -4.0, "y_val": 3.0, "z_val": -6.0},
        "orientation": {"w_val": math.cos(0.5), "x_val": 0.0, "y_val": 0.0, "z_val": math.sin(0.5)},
    }
    flying.call("simSetVehiclePose", pose, True, "")
    assert flying.position == (-4.0, -3.0, 6.0)
    assert flying.yaw == pytest.approx(-1.0)
    assert flying.call("simGetVehiclePose", "")["orientation"] == pytest.approx(pose["orientation"])
    flying.step(2.0)
    assert flying.position == pytest.approx((-4, -3, 6), abs=0.05)
    pose["position"]["x_val"] = math.nan
    flying.call("simSetVehiclePose", pose, True, "")
    assert flying.position == pytest.approx((-4, -3, 6), abs=0.05)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("fly", (), r"rpclib: server could not find function 'fly' with argument count 0\."),
        (
            "ping",
            (1,),
            r"rpclib: function 'ping' was called with an invalid number of arguments\. Expected: 0, got: 1",
        ),
        ("getMultirotorState", ("Drone7",), "Vehicle API for 'Drone7' is not available"),
        ("moveByVelocity", (math.nan, 0.0, 0.0, 1.0, 0, STEADY, ""), "vx must be finite"),
        ("moveByVelocity", (0.0, 0.0, math.inf, 1.0, 0, STEADY, ""), "vz must be finite"),
        ("moveByVelocity", (0.0, 0.0, 0.0, 1.0, 0, {"is_rate": True}, ""), "yaw_or_rate"),
        ("moveByVelocity", ("fast", 0.0, 0.0, 1.0, 0, STEADY, ""), "bad argument"),
        ("moveByVelocity", (None, 0.0, 0.0, 1.0, 0, STEADY, ""), "bad argument"),
        (
            "moveToPosition",
            (1.0, 0.0, -2.0, 0.0, 9.0, 0, STEADY, -1.0, 1.0, ""),
            "velocity must be greater than 0",
        ),
        (
            "moveToPosition",
            (1.0, 0.0, -2.0, 1.0, 9.0, 0, STEADY, 0.0, 1.0, ""),
            "lookahead distance cannot be 0",
        ),
        ("simListSceneObjects", ("(",), "not a regular expression"),
        ("simSetVehiclePose", ({"position": 1}, True, ""), "bad argument"),
    ],
)
def test_bad_calls_are_refused_and_nothing_moves(
    sim: Simulation, name: str, args: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(CallError, match=message):
        sim.call(name, *args)
    sim.step(0.5)
    assert sim.position == pytest.approx(sim.start, abs=0.01)


def test_kinematics_and_imu_are_in_airsim_frames(flying: Simulation) -> None:
    flying.run_until(flying.call("rotateToYaw", 90.0, 20.0, 0.5, ""))
    flying.run_until(velocity(flying, 0, 2, 0.0, duration=2.0))
    state = flying.call("getMultirotorState", "")["kinematics_estimated"]
    assert state["linear_velocity"]["y_val"] == pytest.approx(2, abs=0.02), "east"
    assert state["position"]["y_val"] > 1
    assert state["position"]["z_val"] == pytest.approx(-flying.position[2])
    q = state["orientation"]
    yaw = math.atan2(2 * (q["w_val"] * q["z_val"]), 1 - 2 * q["z_val"] ** 2)
    assert math.degrees(yaw) == pytest.approx(90, abs=2)
    imu = flying.call("getImuData", "", "")
    assert imu["linear_acceleration"]["z_val"] == pytest.approx(-9.81, abs=0.1)
    gps = flying.call("getMultirotorState", "")["gps_location"]
    assert gps["longitude"] > flying.call("getHomeGeoPoint", "")["longitude"]


def test_distance_sensor_and_lidar_see_the_post(flying: Simulation) -> None:
    assert flying.call("getDistanceSensorData", "", "")["distance"] == pytest.approx(7.5, abs=0.2)
    cloud = np.array(flying.call("getLidarData", "", "")["point_cloud"]).reshape(-1, 3)
    ahead = cloud[(np.abs(cloud[:, 1]) < 0.5) & (cloud[:, 0] > 0) & (np.abs(cloud[:, 2]) < 1)]
    assert ahead[:, 0].min() == pytest.approx(7.5, abs=0.2)
    assert cloud[:, 2].max() == pytest.approx(flying.position[2], abs=0.05), "the ground, below"
