"""What stands in a world, seen from above: polygons (n, 2) in the frame of a flight's track, east and north of where
the vehicle starts, metres."""

from __future__ import annotations

import numpy as np

from airsim_sim.world import Part, World, WorldObject, in_turned_frame
from nav_common.contract import SUCCESS_RADIUS_M

CORNERS = 32  # of what is round
RING_CORNERS = 72
STEP_M = 0.02  # of the ring


def standing(world: World) -> list[WorldObject]:
    """What stands in the way."""
    return [item for item in world.objects if item.height > 0 and any(part.solid for part in item.parts)]


def outline(item: WorldObject, part: Part) -> np.ndarray:
    """Of one part: four corners of a box, else a regular polygon in the circle of its largest section."""
    length, width = part.half_size[:2]
    if part.shape == "box":
        corners = np.array([(length, width), (length, -width), (-length, -width), (-length, width)])
    else:
        corners = length * _directions(CORNERS)
    in_object = part.centre[:2] + in_turned_frame(corners, -part.yaw_deg)
    return _east_north(item.position[:2] + in_turned_frame(in_object, -item.yaw_deg))


def reached_ring(item: WorldObject) -> np.ndarray:
    """Where the object is just near enough to count as reached (contract.SUCCESS_RADIUS_M, by its distance_m)."""
    radii = np.arange(0.0, item.radius + SUCCESS_RADIUS_M, STEP_M)
    points = item.position[:2] + _directions(RING_CORNERS)[:, None] * radii[:, None]
    reached = item.distances_m(points.reshape(-1, 2)).reshape(points.shape[:2]) <= SUCCESS_RADIUS_M
    last = len(radii) - 1 - np.argmax(reached[:, ::-1], axis=1)
    return _east_north(points[np.arange(RING_CORNERS), last])


def _directions(count: int) -> np.ndarray:
    angles = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def _east_north(points: np.ndarray) -> np.ndarray:
    """Of (north, west)."""
    return np.column_stack([-points[:, 1], points[:, 0]])
