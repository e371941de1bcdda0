"""Sensors: inertial unit, barometer, magnetometer, GPS, distance, lidar. Free of noise and delay, so repeatable.

Every name is answered, as if AirSim's settings had named a sensor so; the settings' `Sensors` are not followed.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np

from airsim_sim.api.table import method
from airsim_sim.api.values import check_vehicle, geo_point, ned, pose, quaternion, vector
from airsim_sim.atmosphere import SEA_LEVEL_PRESSURE_PA, magnetic_field, pressure, pressure_altitude
from airsim_sim.drone import SimulatedDrone

DISTANCE_RANGE_M = (0.2, 40.0)  # AirSim's distance sensor
LIDAR_CHANNELS, LIDAR_COLUMNS, LIDAR_RANGE_M = 16, 90, 40.0  # chosen: 1,440 rays a call
GPS_DILUTION_START, GPS_DILUTION_END, GPS_DILUTION_TIME_S = 100.0, 0.1, 0.9  # AirSim's GPS after its start
GPS_3D_FIX, GPS_2D_FIX = 3.0, 4.0  # dilution below which AirSim reports such a fix


@method("getImuData", 2)
def _imu(sim: SimulatedDrone, name: str, vehicle: str) -> dict[str, Any]:
    """Angular velocity and specific force (gravity shows as -9.81 down at rest) in the front-right-down body frame."""
    check_vehicle(sim, vehicle)
    force = np.array(sim.acceleration) + np.array((0.0, 0.0, 9.81))
    body = sim.data.body("drone").xmat.reshape(3, 3).T @ force
    return {
        "time_stamp": sim.time_ns,
        "orientation": quaternion(sim.data.qpos[3:7]),
        "angular_velocity": vector(ned(sim.data.qvel[3:6])),
        "linear_acceleration": vector(ned(body)),
    }


@method("getBarometerData", 2)
def _barometer(sim: SimulatedDrone, name: str, vehicle: str) -> dict[str, Any]:
    """Altitude in metres above sea level, pressure in pascal, sea level's pressure in hectopascal."""
    check_vehicle(sim, vehicle)
    measured = pressure(geo_point(sim.home, ned(sim.data.qpos[:3]))["altitude"])
    return {
        "time_stamp": sim.time_ns, "altitude": pressure_altitude(measured), "pressure": measured,
        "qnh": SEA_LEVEL_PRESSURE_PA / 100,
    }  # fmt: skip


@method("getMagnetometerData", 2)
def _magnetometer(sim: SimulatedDrone, name: str, vehicle: str) -> dict[str, Any]:
    """The earth's field at home in the front-right-down body frame, gauss."""
    check_vehicle(sim, vehicle)
    north_west_up = ned(magnetic_field(sim.home.latitude, sim.home.longitude))
    body = sim.data.body("drone").xmat.reshape(3, 3).T @ np.array(north_west_up)
    return {
        "time_stamp": sim.time_ns, "magnetic_field_body": vector(ned(body)), "magnetic_field_covariance": [],
    }  # fmt: skip


@method("getGpsData", 2)
def _gps(sim: SimulatedDrone, name: str, vehicle: str) -> dict[str, Any]:
    """Position and velocity, with AirSim's dilution, which falls from 100 to 0.1 after the start."""
    check_vehicle(sim, vehicle)
    fallen = math.exp(-sim.time_s / GPS_DILUTION_TIME_S)
    dilution = GPS_DILUTION_END + (GPS_DILUTION_START - GPS_DILUTION_END) * fallen
    fix = 3 if dilution <= GPS_3D_FIX else 2 if dilution <= GPS_2D_FIX else 0
    report = {
        "geo_point": geo_point(sim.home, ned(sim.data.qpos[:3])), "eph": dilution, "epv": dilution,
        "velocity": vector(ned(sim.data.qvel[:3])), "fix_type": fix, "time_utc": sim.time_ns // 1000,
    }  # fmt: skip
    return {"time_stamp": sim.time_ns, "gnss": report, "is_valid": True}


def _rays(sim: SimulatedDrone, directions: np.ndarray, limit_m: float) -> np.ndarray:
    """Distances along unit directions (n, 3) in the drone's forward-left-up frame; -1 where nothing is hit."""
    rotation = sim.data.body("drone").xmat.reshape(3, 3)
    rays = np.ascontiguousarray(directions @ rotation.T)
    count = len(rays)
    geoms, distances = np.empty(count, np.int32), np.empty(count)
    groups = np.ones(6, np.uint8)
    body = sim.model.body("drone").id
    mujoco.mj_multiRay(
        sim.model, sim.data, sim.data.qpos[:3].copy(), rays.reshape(-1), groups, True, body, geoms, distances,
        None, count, limit_m,
    )  # fmt: skip
    distances[(geoms < 0) | (distances > limit_m)] = -1
    return distances


@method("getDistanceSensorData", 2)
def _distance(sim: SimulatedDrone, name: str, vehicle: str) -> dict[str, Any]:
    """Straight ahead, as AirSim's default distance sensor."""
    check_vehicle(sim, vehicle)
    low, high = DISTANCE_RANGE_M
    found = float(_rays(sim, np.array([[1.0, 0.0, 0.0]]), high)[0])
    return {
        "time_stamp": sim.time_ns, "distance": high if found < 0 else max(low, found), "min_distance": low,
        "max_distance": high, "relative_pose": pose((0, 0, 0), (1, 0, 0, 0)),
    }  # fmt: skip


@method("getLidarData", 2)
def _lidar(sim: SimulatedDrone, name: str, vehicle: str) -> dict[str, Any]:
    """One turn: points x, y, z after one another in the drone's front-right-down frame, at most 40 m away."""
    check_vehicle(sim, vehicle)
    around = np.linspace(-math.pi, math.pi, LIDAR_COLUMNS, endpoint=False)
    tilt = np.radians(np.linspace(-30, 10, LIDAR_CHANNELS))
    a, t = (grid.ravel() for grid in np.meshgrid(around, tilt))
    directions = np.stack([np.cos(t) * np.cos(a), np.cos(t) * np.sin(a), np.sin(t)], axis=1)
    distances = _rays(sim, directions, LIDAR_RANGE_M)
    hit = distances > 0
    points = directions[hit] * distances[hit, None] * (1.0, -1.0, -1.0)
    last: dict[str, Any] = {"groundtruth": ""} if sim.flavor == "cosys" else {"segmentation": []}
    return {
        "point_cloud": points.ravel().tolist(), "time_stamp": sim.time_ns,
        "pose": pose(sim.data.qpos[:3], sim.data.qpos[3:7]), **last,
    }  # fmt: skip
