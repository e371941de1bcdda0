"""settings.json: what is honoured, and errors that name the field."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from airsim_sim.model import IMAGE_TYPES
from airsim_sim.settings import SettingsError, load_settings


def written(folder: Path, value: object) -> Path:
    path = folder / "settings.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_everything_that_is_honoured(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, {
        "SettingsVersion": 1.2, "SimMode": "Multirotor", "ClockSpeed": 2.5, "ApiServerPort": 41500,
        "ViewMode": "NoDisplay",
        "CameraDefaults": {"CaptureSettings": [{"ImageType": 0, "Width": 640, "Height": 480, "FOV_Degrees": 80}]},
        "Vehicles": {"Drone1": {"VehicleType": "SimpleFlight", "Yaw": 90, "Cameras": {
            "0": {"CaptureSettings": [{"ImageType": 1, "Width": 80, "Height": 60}]},
            "tail": {"X": -0.5, "Y": 0.1, "Z": -0.2, "Pitch": -10, "Roll": 0, "Yaw": 180},
        }}},
    }))  # fmt: skip
    assert (settings.vehicle, settings.start_yaw_deg) == ("Drone1", -90)
    assert (settings.clock_speed, settings.port) == (2.5, 41500)
    cameras = {camera.name: camera for camera in settings.cameras}
    assert cameras["front_center"].size("scene") == (640, 480)
    assert cameras["front_center"].size("depth_planar") == (80, 60)
    assert cameras["back_center"].fov_deg == 80
    assert cameras["tail"].position == (-0.5, -0.1, 0.2)
    assert (cameras["tail"].yaw_deg, cameras["tail"].size("scene")) == (180, (640, 480))


def test_an_empty_object_gives_airsims_defaults(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, {}))
    assert (settings.vehicle, settings.port, settings.clock_speed) == ("SimpleFlight", 41451, 1.0)
    assert len(settings.cameras) == 5


@pytest.mark.parametrize(
    "value",
    [
        {"ClockSpeed": None, "ApiServerPort": None, "SimMode": None, "Wind": None, "OriginGeopoint": None},
        {"OriginGeopoint": {"Latitude": None}, "CameraDefaults": None, "Vehicles": None, "ViewMode": None},
        {
            "Vehicles": {
                "SimpleFlight": {"VehicleType": None, "AutoCreate": None, "Yaw": None, "Cameras": None}
            }
        },
        {"Vehicles": {"A": None}},
        {"CameraDefaults": {"CaptureSettings": None}},
        {"CameraDefaults": {"CaptureSettings": {}}},
        {
            "CameraDefaults": {
                "CaptureSettings": [None, {"ImageType": None, "Width": None, "FOV_Degrees": None}]
            }
        },
    ],
)
def test_null_is_as_if_the_field_were_absent_and_an_empty_object_of_captures_is_none(
    tmp_path: Path, value: object
) -> None:
    settings, default = load_settings(written(tmp_path, value)), load_settings(written(tmp_path, {}))
    assert replace(settings, text="", cameras=()) == replace(default, text="", cameras=())
    for camera, usual in zip(settings.cameras, default.cameras, strict=True):
        assert (camera.size("scene"), camera.fov_deg) == (usual.size("scene"), usual.fov_deg)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"ApiServerPort": 41500}).encode())
    assert load_settings(path).port == 41500


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", r"settings\.json, line 1: not valid JSON"),
        ([], r"field \(top\): must be an object"),
        ({"ClockSpeed": 0}, "field ClockSpeed: must be from 0.01 to 100, is 0"),
        ({"ClockSpeed": 101}, "field ClockSpeed: must be from 0.01 to 100, is 101"),
        ({"ApiServerPort": -1}, "field ApiServerPort: must be from 0 to 65535, is -1"),
        ({"ApiServerPort": 65536}, "field ApiServerPort: must be from 0 to 65535, is 65536"),
        ("null", r"field \(top\): must be an object"),
        ({"ApiServerPort": 10**400}, "field ApiServerPort: must be from 0 to 65535, is inf"),
        ({"ClockSpeed": "fast"}, "field ClockSpeed: must be a number, is 'fast'"),
        ({"Vehicles": {"A": {"VehicleType": 5}}}, r"Vehicles\.A\.VehicleType: must be a text, is 5"),
        ({"Vehicles": {"A": []}}, r"field Vehicles\.A: must be an object \{\.\.\.\}, is \[\]"),
        (
            {"CameraDefaults": {"CaptureSettings": {"Width": 9}}},
            r"CameraDefaults\.CaptureSettings: must be a list",
        ),
        (
            {"CameraDefaults": {"CaptureSettings": [{"ImageType": "scene"}]}},
            r"CaptureSettings\[0\]\.ImageType: must be a number, is 'scene'",
        ),
        ({"Vehicles": {"A": {"Cameras": {"0": {"X": True}}}}}, r"Cameras\.front_center\.X: must be a number"),
    ],
)
def test_bad_settings_name_file_and_field(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(written(tmp_path, value))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.json: cannot be read"):
        load_settings(tmp_path / "nothing.json")


def test_what_airsim_starts_with_is_taken_or_named_as_ignored(tmp_path: Path) -> None:
    """The kinds of fields that AirSim's documentation lists: NaN for defaults, all image types, several vehicles."""
    settings = load_settings(written(tmp_path, {
        "SettingsVersion": 1.2, "SimMode": "ComputerVision", "ViewMode": "Fpv",
        "PhysicsEngineName": "FastPhysicsEngine",
        "Wind": {"X": 3, "Y": -2, "Z": 0.5},
        "OriginGeopoint": {"Latitude": 10, "Longitude": 20, "Altitude": 30},
        "ExternalCameras": {"far": {"X": 1}},
        "CameraDefaults": {
            "CaptureSettings": [{"ImageType": number, "Width": 64, "Height": 48, "FOV_Degrees": math.nan,
                                 "TargetGamma": 1.5} for number in range(-1, 10)],
            "NoiseSettings": [{"Enabled": False}],
        },
        "Vehicles": {
            "Parked": {"AutoCreate": False},
            "One": {"VehicleType": "PX4Multirotor", "DefaultVehicleState": "Inactive",
                    "X": 4, "Y": math.nan, "Z": -2, "Yaw": math.nan,
                    "Sensors": {"Lidar": {}},
                    "Cameras": {"0": {"X": math.nan, "Pitch": math.nan, "Gimbal": {}}}},
            "Two": {"VehicleType": "SimpleFlight"},
        },
    }))  # fmt: skip
    assert settings.vehicle == "One"
    assert settings.start_yaw_deg is None
    assert settings.armed_by_default is False
    assert settings.wind == (3, 2, -0.5), "north-west-up"
    assert (settings.home.latitude, settings.home.longitude, settings.home.altitude) == (10, 20, 30)
    camera = settings.cameras[0]
    assert (camera.position, camera.fov_deg) == ((0.33, 0.0, 0.02), 90)
    assert all(camera.size(kind) == (64, 48) for kind in IMAGE_TYPES.values())
    assert settings.ignored == (
        "ViewMode", "PhysicsEngineName", "ExternalCameras", "SimMode ComputerVision (a multirotor is simulated)",
        "CameraDefaults.NoiseSettings", "CameraDefaults.CaptureSettings.TargetGamma",
        "CameraDefaults.CaptureSettings of image type -1", "CameraDefaults.CaptureSettings of image type 8",
        "CameraDefaults.CaptureSettings of image type 9",
        "Vehicles.Parked (one drone is simulated)", "Vehicles.Two (one drone is simulated)", "Vehicles.One.Sensors",
        "Vehicles.One.VehicleType PX4Multirotor (flies as SimpleFlight)",
        "Vehicles.One.X (the drone starts at the scene's origin)",
        "Vehicles.One.Z (the drone starts at the scene's origin)",
        "Vehicles.One.Cameras.front_center.Gimbal",
    )  # fmt: skip


def test_numbers_out_of_range_are_named_and_the_default_holds(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, {
        "Wind": {"X": 500},
        "CameraDefaults": {"CaptureSettings": [{"Width": 0, "Height": 100_000, "FOV_Degrees": 180}]},
        "Vehicles": {"A": {"X": 10**400, "Cameras": {"0": {"X": 50}}}},
    }))  # fmt: skip
    camera = settings.cameras[0]
    assert (camera.size("scene"), camera.fov_deg, camera.position[0]) == ((320, 240), 90, 0.33)
    assert settings.wind == (0, 0, 0)
    named = " ".join(settings.ignored)
    for field in (
        "Wind.X 500",
        "Width 0",
        "Height 100000",
        "FOV_Degrees 180",
        "Vehicles.A.X",
        "front_center.X 50",
    ):
        assert field in named
