"""The part of AirSim's settings.json that this simulator honours; what else the file says is named as ignored.

`ClockSpeed`, `ApiServerPort`, `Wind`, `OriginGeopoint`, `CameraDefaults.CaptureSettings`, and of the first vehicle its
name, `DefaultVehicleState`, `Yaw` and `Cameras.<name>` with `X Y Z` (front, right, down, metres), `Roll Pitch Yaw`
(degrees) and `CaptureSettings` (`ImageType`, `Width`, `Height`, `FOV_Degrees`). NaN stands for the default, and so does
null.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airsim_sim.model import CAMERA_NUMBERS, DEFAULT_CAMERAS, IMAGE_TYPES, CameraSpec

DEFAULT_SETTINGS = '{"SettingsVersion": 1.2, "SimMode": "Multirotor"}'


class SettingsError(ValueError):
    """settings.json is wrong; the text names file, field, value and what is allowed."""


@dataclass(frozen=True)
class GeoPoint:
    """Degrees (WGS-84) and metres above the sea."""

    latitude: float
    longitude: float
    altitude: float


AIRSIM_HOME = GeoPoint(47.641468, -122.140165, 122.0)  # AirSim's default origin


@dataclass(frozen=True)
class Settings:
    """What the file asks for, with AirSim's defaults for what it does not say."""

    vehicle: str = "SimpleFlight"
    start_yaw_deg: float | None = None  # counter-clockwise; None: the world's
    cameras: tuple[CameraSpec, ...] = DEFAULT_CAMERAS
    clock_speed: float = 1.0
    port: int = 41451
    armed_by_default: bool = True  # `DefaultVehicleState`
    wind: tuple[float, float, float] = (0.0, 0.0, 0.0)  # north-west-up, m/s
    home: GeoPoint = AIRSIM_HOME
    text: str = DEFAULT_SETTINGS
    ignored: tuple[str, ...] = ()
    """Fields that the file has and this simulator does not follow, in the file's order."""


def load_settings(path: str | Path) -> Settings:
    """Reads settings.json. Raises SettingsError with file, field and value."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})") from error
    try:
        top = json.loads(text, object_hook=_without_null)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply") from error
    return _Reader(str(path)).settings(top, text)


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.ignored: list[str] = []

    def error(self, field: str, message: str) -> SettingsError:
        return SettingsError(f"{self.source}, field {field}: {message}")

    def mapping(self, value: Any, field: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(field, f"must be an object {{...}}, is {_shown(value)}")
        return value

    def number(
        self, values: dict[str, Any], key: str, field: str, default: float, low: float, high: float
    ) -> float:
        """The number, or the default for NaN and, named as ignored, for what is out of range."""
        value = values.get(key, default)
        where = f"{field}.{key}".lstrip(".")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(where, f"must be a number, is {_shown(value)}")
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            number = math.inf
        if math.isnan(number):
            return default
        if not low <= number <= high:
            self.ignore(f"{where} {_shown(value)} (must be from {low:g} to {high:g})")
            return default
        return number

    def required(self, top: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
        """A number on which client and simulator must agree: out of range is an error."""
        value = self.number(top, key, "", default, -math.inf, math.inf)
        if not low <= value <= high:
            raise self.error(key, f"must be from {low:g} to {high:g}, is {value:g}")
        return value

    def text(self, values: dict[str, Any], key: str, field: str, default: str) -> str:
        value = values.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"{field}.{key}".lstrip("."), f"must be a text, is {_shown(value)}")
        return value

    def ignore(self, what: str) -> None:
        if what not in self.ignored:
            self.ignored.append(what)

    def ignore_others(self, values: dict[str, Any], honoured: set[str], field: str) -> None:
        for key in values:
            if key not in honoured:
                self.ignore(f"{field}.{key}".lstrip("."))

    def settings(self, top: Any, text: str) -> Settings:
        top = self.mapping(top, "(top)")
        self.ignore_others(top, _TOP, "")
        mode = self.text(top, "SimMode", "", "Multirotor")
        if mode not in ("Multirotor", ""):
            self.ignore(f"SimMode {mode} (a multirotor is simulated)")
        cameras = {camera.name: camera for camera in DEFAULT_CAMERAS}
        defaults = self.mapping(top.get("CameraDefaults", {}), "CameraDefaults")
        self.ignore_others(defaults, {"CaptureSettings"}, "CameraDefaults")
        for name in cameras:
            cameras[name] = self.captured(cameras[name], defaults, "CameraDefaults")
        vehicle, yaw, armed = self.vehicle(top, cameras, defaults)
        return Settings(
            vehicle,
            yaw,
            tuple(cameras.values()),
            self.required(top, "ClockSpeed", 1.0, 0.01, 100),
            int(self.required(top, "ApiServerPort", 41451, 0, 65535)),
            armed,
            self.wind(top),
            self.home(top),
            text,
            tuple(self.ignored),
        )

    def wind(self, top: dict[str, Any]) -> tuple[float, float, float]:
        fields = self.mapping(top.get("Wind", {}), "Wind")
        north, east, down = (self.number(fields, axis, "Wind", 0.0, -100, 100) for axis in "XYZ")
        return north, -east, -down

    def home(self, top: dict[str, Any]) -> GeoPoint:
        fields = self.mapping(top.get("OriginGeopoint", {}), "OriginGeopoint")
        return GeoPoint(
            self.number(fields, "Latitude", "OriginGeopoint", AIRSIM_HOME.latitude, -89, 89),
            self.number(fields, "Longitude", "OriginGeopoint", AIRSIM_HOME.longitude, -180, 180),
            self.number(fields, "Altitude", "OriginGeopoint", AIRSIM_HOME.altitude, -1000, 10_000),
        )

    def vehicle(
        self, top: dict[str, Any], cameras: dict[str, CameraSpec], defaults: dict[str, Any]
    ) -> tuple[str, float | None, bool]:
        """Name, start yaw and armed or not of the first vehicle that AirSim would create; adds to `cameras`."""
        vehicles = {
            name: self.mapping(value, f"Vehicles.{name}")
            for name, value in self.mapping(top.get("Vehicles", {}), "Vehicles").items()
        }
        flown = next((name for name, fields in vehicles.items() if fields.get("AutoCreate", True)), None)
        for name in vehicles:
            if name != flown:
                self.ignore(f"Vehicles.{name} (one drone is simulated)")
        if flown is None:
            return "SimpleFlight", None, True
        fields, field = vehicles[flown], f"Vehicles.{flown}"
        self.ignore_others(fields, _VEHICLE, field)
        kind = self.text(fields, "VehicleType", field, "SimpleFlight")
        if kind.lower() != "simpleflight":
            self.ignore(f"{field}.VehicleType {kind} (flies as SimpleFlight)")
        for axis in "XYZ":
            if self.number(fields, axis, field, 0.0, -math.inf, math.inf) != 0:
                self.ignore(f"{field}.{axis} (the drone starts at the scene's origin)")
        yaw = self.number(fields, "Yaw", field, math.nan, -360, 360)
        for name, camera in self.mapping(fields.get("Cameras", {}), f"{field}.Cameras").items():
            name = CAMERA_NUMBERS.get(name, name)
            base = cameras.get(name) or self.captured(
                CameraSpec(name, (0.33, 0.0, 0.0)), defaults, "CameraDefaults"
            )
            cameras[name] = self.camera(base, camera, f"{field}.Cameras.{name}")
        armed = self.text(fields, "DefaultVehicleState", field, "Armed").lower() in ("", "armed")
        return flown, None if math.isnan(yaw) else -yaw, armed

    def camera(self, camera: CameraSpec, value: Any, field: str) -> CameraSpec:
        fields = self.mapping(value, field)
        self.ignore_others(fields, _CAMERA, field)
        x, y, z = camera.position
        return self.captured(
            replace(
                camera,
                position=(
                    self.number(fields, "X", field, x, -10, 10),
                    -self.number(fields, "Y", field, -y, -10, 10),
                    -self.number(fields, "Z", field, -z, -10, 10),
                ),
                roll_deg=self.number(fields, "Roll", field, camera.roll_deg, -360, 360),
                pitch_deg=self.number(fields, "Pitch", field, camera.pitch_deg, -360, 360),
                yaw_deg=self.number(fields, "Yaw", field, camera.yaw_deg, -360, 360),
            ),
            fields,
            field,
        )

    def captured(self, camera: CameraSpec, fields: dict[str, Any], field: str) -> CameraSpec:
        """The camera with CaptureSettings' sizes and field of view (one for all its image types)."""
        captures = fields.get("CaptureSettings", [])
        field = f"{field}.CaptureSettings"
        if captures == {}:  # of which AirSim makes an empty list
            captures = []
        if not isinstance(captures, list):
            raise self.error(field, f"must be a list [...], is {_shown(captures)}")
        sizes, fov = dict(camera.sizes), camera.fov_deg
        for index, value in enumerate(captures):
            here = f"{field}[{index}]"
            capture = self.mapping({} if value is None else value, here)
            self.ignore_others(capture, {"ImageType", "Width", "Height", "FOV_Degrees"}, field)
            number = self.number(capture, "ImageType", here, 0, -(2**31), 2**31)
            if number not in IMAGE_TYPES:
                self.ignore(f"{field} of image type {number:g}")
                continue
            kind = IMAGE_TYPES[int(number)]
            width, height = camera.size(kind)
            sizes[kind] = (
                int(self.number(capture, "Width", here, width, 1, 8192)),
                int(self.number(capture, "Height", here, height, 1, 8192)),
            )
            fov = self.number(capture, "FOV_Degrees", here, fov, 5, 170)
        return replace(camera, sizes=MappingProxyType(sizes), fov_deg=fov)


_TOP = {
    "SeeDocsAt", "SettingsVersion", "SimMode", "ClockSpeed", "ApiServerPort", "CameraDefaults", "Vehicles", "Wind",
    "OriginGeopoint",
}  # fmt: skip
_VEHICLE = {"VehicleType", "DefaultVehicleState", "AutoCreate", "X", "Y", "Z", "Yaw", "Cameras"}
_CAMERA = {"X", "Y", "Z", "Roll", "Pitch", "Yaw", "CaptureSettings"}


def _without_null(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
