"""Methods about the drone's state, its pose and its contacts."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

from airsim_sim.api.table import method
from airsim_sim.api.values import (
    check_vehicle,
    geo_point,
    ned,
    note,
    pose,
    rotation_in,
    vector,
)
from airsim_sim.drone import SimulatedDrone
from airsim_sim.flight import CallError, Vector
from airsim_sim.model import DRONE_HALF_HEIGHT_M

TELEPORT_LIMIT_M = 10_000.0  # chosen: far beyond any scene, near enough that a millimetre is still a number


def _kinematics(sim: SimulatedDrone) -> dict[str, Any]:
    return {
        **pose(sim.data.qpos[:3], sim.data.qpos[3:7]),
        "linear_velocity": vector(ned(sim.data.qvel[:3])),
        "angular_velocity": vector(ned(sim.data.qvel[3:6])),
        "linear_acceleration": vector(ned(sim.acceleration)),
        "angular_acceleration": vector((0.0, 0.0, 0.0)),
    }


NO_COLLISION = MappingProxyType({
    "has_collided": False, "penetration_depth": 0.0, "time_stamp": 0, "normal": vector((0.0, 0.0, 0.0)),
    "impact_point": vector((0.0, 0.0, 0.0)), "position": vector((0.0, 0.0, 0.0)), "object_name": "", "object_id": -1,
})  # fmt: skip


@method("getMultirotorState", 1)
def _multirotor_state(sim: SimulatedDrone, vehicle: str) -> dict[str, Any]:
    check_vehicle(sim, vehicle)
    sticks = sim.flight.remote_control
    return {
        "collision": dict(NO_COLLISION),  # AirSim never fills it either
        "kinematics_estimated": _kinematics(sim),
        "gps_location": geo_point(sim.home, ned(sim.data.qpos[:3])),
        "timestamp": sim.time_ns,
        "landed_state": 0 if sim.flight.landed else 1,
        "rc_data": {
            "timestamp": 0, "pitch": sticks.pitch, "roll": sticks.roll, "throttle": sticks.throttle,
            "yaw": sticks.yaw, **{f"switch{number}": 0 for number in range(1, 9)},
            "is_initialized": sticks.is_initialized, "is_valid": sticks.is_valid,
        },
        "ready": True,
        "ready_message": "",
        "can_arm": True,
    }  # fmt: skip


@method("simGetVehiclePose", 1)
def _vehicle_pose(sim: SimulatedDrone, vehicle: str) -> dict[str, Any]:
    check_vehicle(sim, vehicle)
    return pose(sim.data.qpos[:3], sim.data.qpos[3:7])


@method("simSetVehiclePose", 3)
def _set_vehicle_pose(sim: SimulatedDrone, wanted: Any, ignore_collision: bool, vehicle: str) -> None:
    """NaN in position or orientation keeps what it is. Roll and pitch are taken; in flight it levels out again."""
    check_vehicle(sim, vehicle)
    position = [float(wanted["position"][key]) for key in ("x_val", "y_val", "z_val")]
    rotation = [float(wanted["orientation"][key]) for key in ("w_val", "x_val", "y_val", "z_val")]
    goal = sim.position if any(map(math.isnan, position)) else _place(ned(position))
    if any(map(math.isnan, rotation)):
        orientation = tuple(sim.data.qpos[3:7].tolist())
    else:
        orientation = rotation_in(wanted["orientation"], "orientation")
    note(sim, "simSetVehiclePose", goal, orientation)
    sim.set_full_pose(goal, orientation)


def _place(position: Vector) -> Vector:
    """The position (world frame) if a drone can be there; just above the ground it is lifted to stand on it."""
    x, y, z = position
    if not all(abs(c) <= TELEPORT_LIMIT_M for c in position):
        raise CallError(
            f"the position must be at most {TELEPORT_LIMIT_M:g} m from the origin in each direction, "
            f"is ({x:g}, {-y:g}, {-z:g})"
        )
    if z < 0:
        raise CallError(f"the position is under the ground: z_val must be at most 0, is {-z:g}")
    return x, y, max(z, DRONE_HALF_HEIGHT_M)


@method("simGetGroundTruthKinematics", 1)
def _ground_truth(sim: SimulatedDrone, vehicle: str) -> dict[str, Any]:
    check_vehicle(sim, vehicle)
    return _kinematics(sim)


@method("simGetCollisionInfo", 1)
def _collision_info(sim: SimulatedDrone, vehicle: str) -> dict[str, Any]:
    """The newest contact; has_collided is cleared by reading."""
    check_vehicle(sim, vehicle)
    hit, sim.unread_collision = sim.unread_collision, None
    if hit is None:
        return dict(NO_COLLISION)
    return {
        "has_collided": True, "penetration_depth": hit.depth,
        "time_stamp": sim.start_time_ns + round(hit.time_s * 1e9),
        "normal": vector(ned(hit.normal)), "impact_point": vector(ned(hit.position)),
        "position": vector(ned(sim.data.qpos[:3])), "object_name": hit.object_name,
        "object_id": int(sim.model.body(hit.object_name).id),
    }  # fmt: skip
