"""Between the wire's values and ours: frames, AirSim's records, checks of what clients send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from airsim_sim.drone import SimulatedDrone
from airsim_sim.flight import CallError, Vector, YawMode
from airsim_sim.settings import GeoPoint

METRES_A_DEGREE = 111_319.49  # on the equator, WGS-84; the east-west one shrinks with the latitude


def vector(v: Sequence[float]) -> dict[str, float]:
    """A Vector3r."""
    return {"x_val": float(v[0]), "y_val": float(v[1]), "z_val": float(v[2])}


def ned(v: Any) -> Vector:
    """World (north-west-up) to north-east-down; its own inverse."""
    return float(v[0]), -float(v[1]), -float(v[2])


def quaternion(q: Any) -> dict[str, float]:
    """A Quaternionr in north-east-down from (w, x, y, z) in north-west-up."""
    return {"w_val": float(q[0]), "x_val": float(q[1]), "y_val": -float(q[2]), "z_val": -float(q[3])}


def pose(position: Any, q: Any) -> dict[str, Any]:
    """A Pose from position and quaternion in the world frame."""
    return {"position": vector(ned(position)), "orientation": quaternion(q)}


def number(value: Any, what: str) -> float:
    """A finite number, or CallError."""
    result = float(value)
    if not math.isfinite(result):
        raise CallError(f"{what} must be finite, is {result}")
    return result


def seconds(value: Any, what: str) -> float:
    """A duration; clients pass 3e38 for "no limit"."""
    result = float(value)
    if math.isnan(result):
        raise CallError(f"{what} must not be NaN")
    return result


def vector_in(value: Any, what: str) -> Vector:
    """A finite Vector3r from the wire, or CallError."""
    return (
        number(value["x_val"], f"{what}.x_val"),
        number(value["y_val"], f"{what}.y_val"),
        number(value["z_val"], f"{what}.z_val"),
    )


def rotation_in(value: Any, what: str) -> tuple[float, float, float, float]:
    """A Quaternionr from the wire as (w, x, y, z) in north-west-up, normalised, or CallError."""
    w, x, y, z = (number(value[key], f"{what}.{key}") for key in ("w_val", "x_val", "y_val", "z_val"))
    length = math.sqrt(w * w + x * x + y * y + z * z)
    if length < 1e-6:
        raise CallError(f"{what} must be a rotation, its length is {length:g}")
    return w / length, x / length, -y / length, -z / length


def yaw_mode_in(value: Any) -> YawMode:
    """AirSim's yaw mode from the wire."""
    return YawMode(bool(value["is_rate"]), number(value["yaw_or_rate"], "yaw_or_rate"))


def check_vehicle(sim: SimulatedDrone, name: str) -> None:
    """Raises CallError unless the name is the drone's, or empty."""
    if name not in ("", sim.vehicle):
        raise CallError(
            f"Vehicle API for '{name}' is not available. This could either because this is simulation-only API "
            f"or this vehicle does not exist (there is '{sim.vehicle}')"
        )


def note(sim: SimulatedDrone, name: str, *values: Any) -> None:
    """Enters the call into the simulation's log of commands."""
    sim.log.commands.append((sim.time_s, name, values))


def geo_point(home: GeoPoint, position: Vector) -> dict[str, float]:
    """A GeoPoint from a position in north-east-down, on the plane that touches the earth at home."""
    east = METRES_A_DEGREE * math.cos(math.radians(home.latitude))
    return {
        "latitude": home.latitude + position[0] / METRES_A_DEGREE,
        "longitude": home.longitude + position[1] / east,
        "altitude": home.altitude - position[2],
    }


def from_geo_point(home: GeoPoint, value: Any) -> Vector:
    """Inverse of `geo_point`, from the wire."""
    latitude, longitude, altitude = (number(value[key], key) for key in ("latitude", "longitude", "altitude"))
    east = METRES_A_DEGREE * math.cos(math.radians(home.latitude))
    return (
        (latitude - home.latitude) * METRES_A_DEGREE,
        (longitude - home.longitude) * east,
        home.altitude - altitude,
    )
