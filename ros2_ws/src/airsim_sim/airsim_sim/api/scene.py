"""Methods about the objects of the scene: names, poses, segmentation ids, lines of sight."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np

from airsim_sim.api.table import method
from airsim_sim.api.values import check_vehicle, from_geo_point, geo_point, ned, pose, quaternion, vector
from airsim_sim.drone import SimulatedDrone
from airsim_sim.flight import CallError, Vector
from airsim_sim.segmentation import HIDDEN, body_number, object_id, object_names


def _named(sim: SimulatedDrone, name: str) -> str | None:
    """The object of that name, upper and lower case alike."""
    return next((known for known in object_names(sim) if known.lower() == name.lower()), None)


def _matching(sim: SimulatedDrone, pattern: str, flags: int = 0) -> Iterator[str]:
    try:
        compiled = re.compile(pattern, flags)
    except re.error as error:
        raise CallError(f"{pattern!r} is not a regular expression: {error}") from error
    return (name for name in object_names(sim) if compiled.fullmatch(name))


@method("simListSceneObjects", 1)
def _scene_objects(sim: SimulatedDrone, pattern: str) -> list[str]:
    return list(_matching(sim, pattern))


@method("simGetObjectPose", 1, cosys=2)
def _object_pose(sim: SimulatedDrone, name: str, is_ned: bool = True) -> dict[str, Any]:
    """NaN for an object that does not exist, as in AirSim."""
    known = _named(sim, name)
    if known is None:
        return {"position": vector((math.nan,) * 3), "orientation": quaternion((math.nan,) * 4)}
    body = sim.data.body(body_number(sim, known))
    return pose(body.xpos, body.xquat)


@method("simSetSegmentationObjectID", 3)
def _set_segmentation(sim: SimulatedDrone, name: str, number: int, is_regex: bool) -> bool:
    """Ids from 0 to 255, -1 hides the object. As in AirSim upper and lower case are alike here."""
    number = int(number)
    if not HIDDEN <= number <= 255:
        raise CallError(f"object_id must be from {HIDDEN} to 255, is {number}")
    known = _named(sim, name)
    names = list(_matching(sim, name, re.IGNORECASE)) if is_regex else [known] if known else []
    for match in names:
        sim.segmentation_ids[match] = number
    return bool(names)


@method("simGetSegmentationObjectID", 1)
def _get_segmentation(sim: SimulatedDrone, name: str) -> int:
    known = _named(sim, name)
    return -1 if known is None else object_id(sim, known)


# ---- lines of sight


def _in_sight(sim: SimulatedDrone, start: Vector, goal: Vector) -> bool:
    """Whether nothing solid is between two points of the world frame; the drone itself does not count."""
    if math.dist(start, goal) < 1e-6:
        return True  # MuJoCo ends the process over a ray without length
    ray = np.array(goal) - np.array(start)
    geom = np.zeros(1, np.int32)
    drone = int(sim.model.body("drone").id)
    found = mujoco.mj_ray(sim.model, sim.data, np.array(start), ray, None, 1, drone, geom, None)
    return not 0 <= found < 1


@method("simTestLineOfSightToPoint", 2)
def _sight_to_point(sim: SimulatedDrone, point: Any, vehicle: str) -> bool:
    check_vehicle(sim, vehicle)
    return _in_sight(sim, sim.position, ned(from_geo_point(sim.home, point)))


@method("simTestLineOfSightBetweenPoints", 2)
def _sight_between(sim: SimulatedDrone, one: Any, other: Any) -> bool:
    return _in_sight(sim, ned(from_geo_point(sim.home, one)), ned(from_geo_point(sim.home, other)))


@method("simGetWorldExtents", 0)
def _extents(sim: SimulatedDrone) -> list[dict[str, float]]:
    """The lowest and the highest corner of a box around start and solid objects."""
    low, high = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for item in sim.world.objects:
        x, y, z = item.position
        for axis, (near, far) in enumerate((
            (x - item.radius, x + item.radius), (y - item.radius, y + item.radius), (z, z + item.height),
        )):  # fmt: skip
            low[axis], high[axis] = min(low[axis], near), max(high[axis], far)
    # East is minus west: the lowest longitude belongs to the highest west.
    return [
        geo_point(sim.home, ned((low[0], high[1], low[2]))),
        geo_point(sim.home, ned((high[0], low[1], high[2]))),
    ]
