"""What AirSim's clients may ask besides flying: sensors, wind, cameras, segmentation, teleport, manual control."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest

from airsim_sim.flight import CallError
from airsim_sim.settings import GeoPoint
from airsim_sim.simulation import Simulation
from airsim_sim.world import parse_world

STEADY = {"is_rate": True, "yaw_or_rate": 0.0}
SCENE = (
    "name: one\nobjects:\n  - {name: Post, kind: pillar, radius: 0.5, height: 6, at: [8, 0]}\ngoals: [Post]\n"
)


@pytest.fixture
def sim() -> Simulation:
    """On the ground, a post 8 m ahead."""
    return Simulation(parse_world(SCENE, "one.yaml"))


@pytest.fixture
def flying(sim: Simulation) -> Simulation:
    sim.call("enableApiControl", True, "")
    sim.call("armDisarm", True, "")
    assert sim.run_until(sim.call("takeoff", 20.0, ""))
    sim.step(1.0)
    return sim


def test_what_only_a_window_would_show_is_noticed_once_for_each_method(
    sim: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        sim.call("simEnableWeather", True)
        sim.call("simFlushPersistentMarkers")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["simEnableWeather", "simFlushPersistentMarkers"]


def vector(x: float, y: float, z: float) -> dict[str, float]:
    return {"x_val": x, "y_val": y, "z_val": z}


def rotation(roll: float, pitch: float, yaw: float) -> dict[str, float]:
    """AirSim's to_quaternion, angles in radians."""
    cr, sr, cp, sp = math.cos(roll / 2), math.sin(roll / 2), math.cos(pitch / 2), math.sin(pitch / 2)
    cy, sy = math.cos(yaw / 2), math.sin(yaw / 2)
    return {
        "w_val": cr * cp * cy + sr * sp * sy, "x_val": sr * cp * cy - cr * sp * sy,
        "y_val": cr * sp * cy + sr * cp * sy, "z_val": cr * cp * sy - sr * sp * cy,
    }  # fmt: skip


def values(record: dict[str, float]) -> list[float]:
    return list(record.values())


# ---- sensors


def test_the_barometer_measures_the_standard_atmosphere(flying: Simulation) -> None:
    low = flying.call("getBarometerData", "", "")
    assert low["qnh"] == pytest.approx(1013.25)
    assert low["pressure"] == pytest.approx(101_325 - 12.0 * 124, abs=25), "12 Pa a metre above the sea"
    assert low["altitude"] == pytest.approx(122 + flying.position[2], abs=0.2)
    flying.run_until(flying.call("moveToZ", -12.0, 5.0, 60.0, STEADY, -1.0, 1.0, ""))
    high = flying.call("getBarometerData", "", "")
    assert high["altitude"] - low["altitude"] == pytest.approx(10, abs=0.3)
    environment = flying.call("simGetGroundTruthEnvironment", "")
    assert environment["air_pressure"] == high["pressure"]
    assert environment["air_density"] == pytest.approx(1.21, abs=0.01)


def test_the_magnetometer_turns_with_the_drone(flying: Simulation) -> None:
    north = flying.call("getMagnetometerData", "", "")["magnetic_field_body"]
    assert north["x_val"] > 0.1
    assert north["z_val"] > 0.4, "in the north the field points down"
    assert np.linalg.norm(values(north)) == pytest.approx(0.55, abs=0.05), "gauss, at AirSim's home"
    flying.run_until(flying.call("rotateToYaw", 90.0, 20.0, 0.2, ""))
    east = flying.call("getMagnetometerData", "", "")["magnetic_field_body"]
    assert east["y_val"] == pytest.approx(-north["x_val"], abs=0.01), "north is on the left"
    assert east["z_val"] == pytest.approx(north["z_val"])


def test_gps_gets_its_fix_after_the_start_and_follows_the_drone(sim: Simulation) -> None:
    first = sim.call("getGpsData", "", "")["gnss"]
    assert (first["fix_type"], first["eph"]) == (0, 100.0)
    sim.call("enableApiControl", True, "")
    sim.call("armDisarm", True, "")
    sim.run_until(sim.call("takeoff", 20.0, ""))
    sim.call("moveByVelocity", 0.0, 2.0, 0.0, 3.0, 0, STEADY, "")
    sim.step(2.9)
    later = sim.call("getGpsData", "", "")
    assert later["is_valid"] is True
    assert later["gnss"]["fix_type"] == 3
    assert later["gnss"]["velocity"]["y_val"] == pytest.approx(2, abs=0.02)
    east = (later["gnss"]["geo_point"]["longitude"] - first["geo_point"]["longitude"]) * 111_319.49
    assert east * math.cos(math.radians(47.641468)) == pytest.approx(-sim.position[1], abs=0.01)
    assert later["gnss"]["time_utc"] == later["time_stamp"] // 1000


def test_a_home_from_the_settings_moves_the_gps() -> None:
    sim = Simulation(parse_world(SCENE, "one.yaml"), home=GeoPoint(-10.0, 20.0, 500.0))
    assert sim.call("getHomeGeoPoint", "") == {"latitude": -10.0, "longitude": 20.0, "altitude": 500.0}
    assert sim.call("getGpsData", "", "")["gnss"]["geo_point"]["latitude"] == pytest.approx(-10)


# ---- wind


def test_wind_pushes_and_the_autopilot_comes_back(flying: Simulation) -> None:
    place = flying.position
    flying.call("simSetWind", vector(0.0, 10.0, 0.0))
    flying.step(0.7)
    pushed = flying.position[1] - place[1]
    assert -1.0 < pushed < -0.05, "to the east"
    flying.step(10.0)
    assert np.linalg.norm(flying.velocity) < 0.02
    flying.run_until(flying.call("moveToPosition", -3.0, 0.0, -2.0, 2.0, 60.0, 0, STEADY, -1.0, 1.0, ""))
    assert flying.position == pytest.approx((-3, 0, 2), abs=0.2)
    flying.call("simSetWind", vector(0.0, 0.0, 0.0))
    flying.step(10.0)
    assert np.linalg.norm(flying.velocity) < 0.02


def test_a_storm_carries_the_drone_away_but_not_off_the_ground(sim: Simulation) -> None:
    sim.call("simSetWind", vector(30.0, 0.0, 0.0))
    sim.step(2.0)
    assert sim.position == pytest.approx(sim.start, abs=0.01)
    sim.call("enableApiControl", True, "")
    sim.call("armDisarm", True, "")
    sim.call("takeoff", 20.0, "")
    sim.step(4.0)
    assert sim.position[0] > 3


@pytest.mark.parametrize("wind", [vector(math.nan, 0, 0), vector(1e6, 0, 0)])
def test_an_impossible_wind_is_refused(sim: Simulation, wind: dict[str, float]) -> None:
    with pytest.raises(CallError, match=r"wind.*(must be finite|at most 100 m/s)"):
        sim.call("simSetWind", wind)


# ---- pictures


def picture(sim: Simulation, kind: int, floats: bool = False) -> tuple[dict[str, Any], np.ndarray]:
    request = {"camera_name": "0", "image_type": kind, "pixels_as_float": floats, "compress": False}
    (answer,) = sim.call("simGetImages", [request], "", False)
    shape = (answer["height"], answer["width"])
    if floats:
        return answer, np.array(answer["image_data_float"]).reshape(shape)
    return answer, np.frombuffer(answer["image_data_uint8"], np.uint8).reshape(*shape, 3)[..., ::-1]


def test_disparity_normals_and_infrared(flying: Simulation) -> None:
    _, disparity = picture(flying, 4, floats=True)
    _, depth = picture(flying, 1, floats=True)
    row, column = 60, 80  # the post, 7.17 m before the camera
    assert depth[row, column] == pytest.approx(7.17, abs=0.05)
    assert disparity[row, column] == pytest.approx(0.5 * 0.25 / depth[row, column], rel=1e-3)
    assert disparity[5, 5] < 1e-4, "the sky"
    _, normals = picture(flying, 6)
    assert normals[row, column].tolist() == pytest.approx([127, 127, 255], abs=20), "faces the camera"
    assert normals[115, 80].tolist() == pytest.approx([127, 255, 127], abs=6), "the ground faces up"
    flying.call("simSetSegmentationObjectID", "Post", 42, False)
    _, infrared = picture(flying, 7)
    assert infrared[row, column].tolist() == [42, 42, 42]
    for kind in (-1, 8, 9, 99, None, "scene"):
        with pytest.raises(CallError, match=f"image type {kind} is not supported"):
            picture(flying, kind)  # type: ignore[arg-type]


def test_a_camera_can_be_turned_moved_and_zoomed(flying: Simulation) -> None:
    _, before = picture(flying, 1, floats=True)
    nan = vector(math.nan, math.nan, math.nan)
    flying.call(
        "simSetCameraPose", "0", {"position": nan, "orientation": rotation(0, -math.pi / 2, 0)}, "", False
    )
    _, down = picture(flying, 1, floats=True)
    assert down[60, 80] == pytest.approx(flying.position[2] + 0.02, abs=0.03), "straight down to the ground"
    pose = {"position": vector(0.83, 0, -0.02), "orientation": rotation(0, 0, 0)}
    flying.call("simSetCameraPose", "0", pose, "", False)
    _, ahead = picture(flying, 1, floats=True)
    assert before[60, 80] - ahead[60, 80] == pytest.approx(0.5, abs=0.02)
    flying.call("simSetCameraFov", "0", 30.0, "", False)
    assert flying.call("simGetCameraInfo", "0", "", False)["fov"] == 30
    _, near = picture(flying, 1, floats=True)
    assert (near < 8)[:60].sum() > 3 * (ahead < 8)[:60].sum()
    with pytest.raises(CallError, match="must be from 5 to 170, is 0"):
        flying.call("simSetCameraFov", "0", 0.0, "", False)


def test_names_do_not_depend_on_case_and_minus_one_hides(flying: Simulation) -> None:
    assert flying.call("simSetSegmentationObjectID", "pOST", 9, False) is True
    assert flying.call("simGetSegmentationObjectID", "post") == 9
    assert flying.call("simSetSegmentationObjectID", "po.*", 11, True) is True
    assert flying.call("simGetSegmentationObjectID", "Post") == 11
    assert flying.call("simGetObjectPose", "POST")["position"]["x_val"] == 8
    flying.call("simSetSegmentationObjectID", "Post", -1, False)
    _, segmentation = picture(flying, 5)
    assert segmentation[60, 80].tolist() == [0, 0, 0]
    with pytest.raises(CallError, match="object_id must be from -1 to 255, is 256"):
        flying.call("simSetSegmentationObjectID", "Post", 256, False)


# ---- teleport, time, lines of sight


def test_roll_and_pitch_of_a_teleport_are_taken(flying: Simulation) -> None:
    wanted = {"position": vector(-2.0, 1.0, -5.0), "orientation": rotation(0.3, -0.2, 1.0)}
    flying.call("simSetVehiclePose", wanted, True, "")
    pose = flying.call("simGetVehiclePose", "")
    assert pose["orientation"] == pytest.approx(wanted["orientation"], abs=1e-9)
    twice = {key: 2 * value for key, value in wanted["orientation"].items()}
    flying.call("simSetVehiclePose", {**wanted, "orientation": twice}, True, "")
    assert flying.call("simGetVehiclePose", "")["orientation"] == pytest.approx(wanted["orientation"])
    flying.step(3.0)
    level = flying.call("simGetVehiclePose", "")["orientation"]
    assert (level["x_val"], level["y_val"]) == pytest.approx((0, 0), abs=1e-3), "in flight it levels out"


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (vector(0, 0, 0.5), "under the ground: z_val must be at most 0, is 0.5"),
        (vector(1e11, 0, -2), "at most 10000 m"),
        (vector(0, -math.inf, -2), "at most 10000 m"),
        (vector(0, 0, -20_000), "at most 10000 m"),
    ],
)
def test_an_impossible_teleport_is_refused(flying: Simulation, position: Any, message: str) -> None:
    before = flying.position
    with pytest.raises(CallError, match=message):
        flying.call("simSetVehiclePose", {"position": position, "orientation": rotation(0, 0, 0)}, True, "")
    nothing = dict.fromkeys(("w_val", "x_val", "y_val", "z_val"), 0.0)
    with pytest.raises(CallError, match="must be a rotation"):
        flying.call("simSetVehiclePose", {"position": vector(0, 0, -2), "orientation": nothing}, True, "")
    assert flying.position == before


def test_a_teleport_to_the_ground_stands_on_it(flying: Simulation) -> None:
    flying.call(
        "simSetVehiclePose", {"position": vector(3, 3, 0), "orientation": rotation(0, 0, 0)}, True, ""
    )
    flying.step(1.0)
    assert flying.position == pytest.approx((3, -3, 0.08), abs=0.01)


def test_pause_interrupts_continue_for_time(flying: Simulation) -> None:
    flying.call("simPause", True)
    steps = flying.steps
    running = threading.Thread(target=flying.call, args=("simContinueForTime", 1e6))
    running.start()
    while flying.steps == steps:
        pass
    assert flying.call("simIsPaused") is False, "as in AirSim"
    flying.call("simPause", True)
    running.join(timeout=30)
    assert not running.is_alive()
    assert flying.call("simIsPaused") is True


def test_lines_of_sight_and_the_extents_of_the_world(flying: Simulation) -> None:
    def point(north: float, east: float, up: float) -> dict[str, float]:
        home = flying.home
        metres = 111_319.49
        return {
            "latitude": home.latitude + north / metres,
            "longitude": home.longitude + east / (metres * math.cos(math.radians(home.latitude))),
            "altitude": home.altitude + up,
        }

    assert flying.call("simTestLineOfSightToPoint", point(20, 0, 2), "") is False, "behind the post"
    assert flying.call("simTestLineOfSightToPoint", point(20, 10, 2), "") is True
    assert flying.call("simTestLineOfSightBetweenPoints", point(8, -5, 3), point(8, 5, 3)) is False
    assert flying.call("simTestLineOfSightBetweenPoints", point(8, -5, 7), point(8, 5, 7)) is True
    assert flying.call("simTestLineOfSightBetweenPoints", point(8, 5, 3), point(8, 5, 3)) is True, (
        "the same point"
    )
    low, high = flying.call("simGetWorldExtents")
    assert low == pytest.approx(point(0, -0.5, 0))
    assert high == pytest.approx(point(8.5, 0.5, 6))


# ---- manual control, GPS goals, what only AirSim's window shows


def sticks(**values: float) -> dict[str, Any]:
    names = ("timestamp", "pitch", "roll", "throttle", "yaw", *(f"switch{n}" for n in range(1, 9)))
    return {**dict.fromkeys(names, 0), "is_initialized": True, "is_valid": True, **values}


def test_manual_control_follows_the_sticks(flying: Simulation) -> None:
    task = flying.call("moveByManual", 1e4, 1e4, -1e4, 20.0, 0, STEADY, "")
    flying.step(1.0)
    assert np.linalg.norm(flying.velocity) < 0.05, "no sticks yet"
    flying.call("moveByRC", sticks(pitch=-1.0), "")
    flying.step(2.0)
    assert flying.velocity[0] == pytest.approx(-1, abs=0.05)
    flying.call("moveByRC", sticks(throttle=1.0), "")
    flying.step(2.0)
    assert flying.velocity[2] == pytest.approx(1.5, abs=0.1)
    assert flying.call("getMultirotorState", "")["rc_data"]["throttle"] == 1
    with pytest.raises(CallError, match="Yaw cannot be specified as rate if drivetrain is ForwardOnly"):
        flying.call("moveByManual", 1e4, 1e4, -1e4, 20.0, 1, STEADY, "")
    with pytest.raises(CallError, match="roll must be from -1 to 1, is 2"):
        flying.call("moveByRC", sticks(roll=2.0), "")
    assert not task.done


def test_move_to_gps_arrives(flying: Simulation) -> None:
    home = flying.home
    goal = (home.latitude - 5 / 111_319.49, home.longitude, home.altitude + 4)
    assert flying.run_until(flying.call("moveToGPS", *goal, 3.0, 30.0, 0, STEADY, -1.0, 1.0, ""))
    assert flying.position == pytest.approx((-5, 0, 4), abs=0.15)


def test_what_is_only_shown_is_accepted_and_named_once(
    sim: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        sim.call("simSetTraceLine", [1.0, 0.0, 0.0, 1.0], 5.0, "")
        sim.call("simEnableWeather", True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["simSetTraceLine", "simEnableWeather"]
    with pytest.raises(CallError, match="'Drone2' cannot be added: this simulator flies one drone"):
        sim.call("simAddVehicle", "Drone2", "simpleflight", {}, "")
