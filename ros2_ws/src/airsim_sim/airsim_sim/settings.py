"""The part of AirSim's settings.json that this simulator honours; other keys are ignored, as AirSim does.

`ClockSpeed`, `ApiServerPort`, `CameraDefaults.CaptureSettings`, and for one vehicle its name, `Yaw` and
`Cameras.<name>` with `X Y Z` (front, right, down, metres), `Roll Pitch Yaw` (degrees) and `CaptureSettings`
(`ImageType`, `Width`, `Height`, `FOV_Degrees`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airsim_sim.api import DEFAULT_SETTINGS
from airsim_sim.model import CAMERA_NUMBERS, DEFAULT_CAMERAS, IMAGE_TYPES, CameraSpec


class SettingsError(ValueError):
    """settings.json is wrong; the text names file and field."""


@dataclass(frozen=True)
class Settings:
    """What the file asks for, with AirSim's defaults for what it does not say."""

    vehicle: str = "SimpleFlight"
    start_yaw_deg: float | None = None  # counter-clockwise; None: the world's
    cameras: tuple[CameraSpec, ...] = DEFAULT_CAMERAS
    clock_speed: float = 1.0
    port: int = 41451
    text: str = DEFAULT_SETTINGS


def load_settings(path: str | Path) -> Settings:
    """Reads settings.json. Raises SettingsError with file and field."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})") from error
    try:
        top = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    return _Reader(str(path)).settings(top, text)


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, field: str, message: str) -> SettingsError:
        return SettingsError(f"{self.source}, field {field}: {message}")

    def mapping(self, value: Any, field: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(field, "must be an object {...}")
        return value

    def number(
        self, values: dict[str, Any], key: str, field: str, default: float, low: float, high: float
    ) -> float:
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"{field}.{key}".lstrip("."), f"must be a number, is {value!r}")
        if not low <= value <= high:
            raise self.error(f"{field}.{key}".lstrip("."), f"must be from {low:g} to {high:g}, is {value:g}")
        return float(value)

    def settings(self, top: Any, text: str) -> Settings:
        top = self.mapping(top, "(top)")
        if top.get("SimMode", "Multirotor") not in ("Multirotor", ""):
            raise self.error("SimMode", f"only Multirotor is simulated here, is {top['SimMode']!r}")
        cameras = {camera.name: camera for camera in DEFAULT_CAMERAS}
        defaults = self.mapping(top.get("CameraDefaults", {}), "CameraDefaults")
        for name in cameras:
            cameras[name] = self.captured(cameras[name], defaults, "CameraDefaults")
        vehicles = self.mapping(top.get("Vehicles", {}), "Vehicles")
        if len(vehicles) > 1:
            raise self.error("Vehicles", f"this simulator flies one drone, the file has {sorted(vehicles)}")
        vehicle, yaw = "SimpleFlight", None
        for vehicle, value in vehicles.items():
            field = f"Vehicles.{vehicle}"
            fields = self.mapping(value, field)
            if fields.get("VehicleType", "SimpleFlight").lower() != "simpleflight":
                raise self.error(f"{field}.VehicleType", "only SimpleFlight is simulated here")
            for axis in "XYZ":
                if self.number(fields, axis, field, 0.0, -math.inf, math.inf) != 0:
                    raise self.error(f"{field}.{axis}", "must be 0: the world's origin is the drone's start")
            if "Yaw" in fields:
                yaw = -self.number(fields, "Yaw", field, 0.0, -360, 360)
            given = self.mapping(fields.get("Cameras", {}), f"{field}.Cameras")
            for name, camera in given.items():
                name = CAMERA_NUMBERS.get(name, name)
                base = cameras.get(name) or self.captured(
                    CameraSpec(name, (0.33, 0.0, 0.0)), defaults, "CameraDefaults"
                )
                cameras[name] = self.camera(base, camera, f"{field}.Cameras.{name}")
        return Settings(
            vehicle,
            yaw,
            tuple(cameras.values()),
            self.number(top, "ClockSpeed", "", 1.0, 0.01, 100),
            int(self.number(top, "ApiServerPort", "", 41451, 0, 65535)),
            text,
        )

    def camera(self, camera: CameraSpec, value: Any, field: str) -> CameraSpec:
        fields = self.mapping(value, field)
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
        if not isinstance(captures, list):
            raise self.error(f"{field}.CaptureSettings", "must be a list [...]")
        sizes, fov = dict(camera.sizes), camera.fov_deg
        for index, value in enumerate(captures):
            here = f"{field}.CaptureSettings[{index}]"
            capture = self.mapping(value, here)
            number = capture.get("ImageType", 0)
            if number not in IMAGE_TYPES:
                raise self.error(f"{here}.ImageType", f"must be one of {sorted(IMAGE_TYPES)}, is {number!r}")
            kind = IMAGE_TYPES[number]
            width, height = camera.size(kind)
            sizes[kind] = (
                int(self.number(capture, "Width", here, width, 1, 4096)),
                int(self.number(capture, "Height", here, height, 1, 4096)),
            )
            fov = self.number(capture, "FOV_Degrees", here, fov, 5, 170)
        return replace(camera, sizes=MappingProxyType(sizes), fov_deg=fov)
