"""The expert: the call to imitate, computed from the true map. Only training and its tests use it.

A policy can infer each of its decisions from the pictures and its last calls: the goal's bearing and distance and the
trees in the way are visible, and where nothing is visible the rule is always the same (turn right by 90).
Frames: the world's north-west-up; bearings are counter-clockwise (left positive) from the drone's heading, radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from airsim_sim.model import DRONE_RADIUS_M
from airsim_sim.world import World, WorldObject

Call = tuple[str, dict[str, Any]]

CAMERA_AHEAD_M = 0.33  # airsim_sim.model, front_center
HALF_VIEW = math.radians(45.0)  # of the front camera
TREE_MARGIN_M = 0.55  # chosen: the policy misjudges a heading by up to 8 degrees over 4 m
# One metre is the shortest move, so the ring in which to finish is one metre wide. Success is 2 m; the pillar and the
# drone touch at 0.7 m.
FINISH_M = 1.88
NEAREST_M = 0.9
TURNS_DEG = (10, 20, 30, 45)
MOVES_M = (8, 4, 2, 1)
SEEN_PIXELS = 5.0  # of a picture of 112 x 84: fewer are lost in JPEG
FOCAL_PIXELS = 56.0


@dataclass(frozen=True)
class NwuPose:
    """Where the drone is: metres north-west-up, yaw in radians counter-clockwise from north."""

    x: float
    y: float
    z: float
    yaw: float

    def moved(self, forward: float, left: float = 0.0, turn: float = 0.0) -> NwuPose:
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return NwuPose(
            self.x + forward * c - left * s, self.y + forward * s + left * c, self.z, wrap(self.yaw + turn)
        )


def wrap(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


class ObstacleMap:
    """The true map: the goal, and the other objects as upright cylinders to be avoided."""

    def __init__(self, world: World, goal: str):
        solid = [item for item in world.objects if item.radius > 0 and item.name != goal]
        self.goal: WorldObject = world.object(goal)
        self.trees = [item for item in solid if item.kind != "hill"]
        self.centres = np.array([item.position[:2] for item in self.trees]).reshape(-1, 2)
        self.radii = np.array([item.radius for item in self.trees])

    def bearing(self, pose: NwuPose) -> tuple[float, float]:
        """Bearing (left positive) and horizontal distance of the goal's axis."""
        dx, dy = self.goal.position[0] - pose.x, self.goal.position[1] - pose.y
        return wrap(math.atan2(dy, dx) - pose.yaw), math.hypot(dx, dy)

    def clearance(self, pose: NwuPose, heading: float, length: float) -> float:
        """Smallest distance between the drone's hull and any obstacle but the goal, along a straight flight."""
        if not len(self.radii):
            return math.inf
        direction = np.array([math.cos(heading), math.sin(heading)])
        to = self.centres - (pose.x, pose.y)
        along = np.clip(to @ direction, 0.0, length)
        gap = np.linalg.norm(to - along[:, None] * direction, axis=1) - self.radii - DRONE_RADIUS_M
        return float(gap.min())

    def is_clear(self, pose: NwuPose, heading: float, length: float, margin: float = TREE_MARGIN_M) -> bool:
        """Whether a straight flight keeps `margin` from every obstacle, or, beside one already, comes no closer."""
        here = self.clearance(pose, heading, 0.0)
        return self.clearance(pose, heading, length) > min(margin, here - 0.05)

    def free_distances(self, pose: NwuPose, angles: np.ndarray, reach: float) -> np.ndarray:
        """How far (metres, at most `reach`) one may fly at each angle from the heading, keeping the margin to trees."""
        if not len(self.radii):
            return np.full(len(angles), reach)
        headings = pose.yaw + np.asarray(angles)
        to = self.centres - (pose.x, pose.y)
        along = np.outer(np.cos(headings), to[:, 0]) + np.outer(np.sin(headings), to[:, 1])
        beside = (to**2).sum(axis=1) - along**2
        depth = (self.radii + DRONE_RADIUS_M + TREE_MARGIN_M) ** 2 - beside
        entry = np.where((depth > 0) & (along > 0), along - np.sqrt(np.maximum(depth, 0)), reach)
        free: np.ndarray = np.clip(entry.min(axis=1), 0.0, reach)
        return free

    def goal_clearance(self, pose: NwuPose, heading: float, length: float) -> float:
        """Smallest distance of the drone's centre to the goal's axis along a straight flight."""
        bearing, distance = self.bearing(pose)
        angle = wrap(pose.yaw + bearing - heading)
        along = min(max(distance * math.cos(angle), 0.0), length)
        return math.hypot(distance * math.cos(angle) - along, distance * math.sin(angle))

    def visible_pixels(self, pose: NwuPose) -> float:
        """About how many pixels of a 112 x 84 picture show the goal: its outline, less what is hidden or outside."""
        radius, height = self.goal.radius, self.goal.height
        eye = np.array(
            [
                pose.x + CAMERA_AHEAD_M * math.cos(pose.yaw),
                pose.y + CAMERA_AHEAD_M * math.sin(pose.yaw),
                pose.z,
            ]
        )
        base = np.array(self.goal.position[:2])
        away = base - eye[:2]
        distance = float(np.linalg.norm(away))
        if distance < radius:
            return 0.0
        across = np.array([-away[1], away[0]]) / distance
        sides = np.linspace(-0.9, 0.9, 5) * radius
        heights = np.linspace(0.03, 0.97, 12) * height
        side, level = (grid.ravel() for grid in np.meshgrid(sides, heights))
        points = np.column_stack([base + side[:, None] * across, level])
        rays = points - eye
        ahead = rays[:, 0] * math.cos(pose.yaw) + rays[:, 1] * math.sin(pose.yaw)
        left = rays[:, 1] * math.cos(pose.yaw) - rays[:, 0] * math.sin(pose.yaw)
        seen = (ahead > 0.05) & (np.abs(left) < ahead) & (np.abs(rays[:, 2]) < 0.75 * ahead)
        for tree in self.trees:
            seen &= ~_occluded(eye, rays, tree)
        area = 2 * radius * height * (FOCAL_PIXELS / distance) ** 2
        return float(seen.mean()) * area


def _occluded(eye: np.ndarray, rays: np.ndarray, item: WorldObject) -> np.ndarray:
    """Which rays from the camera to their targets are blocked by one of the object's solids."""
    hidden = np.zeros(len(rays), bool)
    for part in item.parts:
        if not part.solid:
            continue
        centre = np.array(item.position) + np.array(part.centre)
        if part.shape == "ellipsoid":
            scale = np.array(part.half_size)
            start, direction = (eye - centre) / scale, rays / scale
            hidden |= _reaches_unit_ball(start, direction)
        else:  # upright cylinders and boxes, as cylinders
            scale = np.array([part.half_size[0], part.half_size[0]])
            hidden |= _reaches_unit_ball((eye - centre)[:2] / scale, rays[:, :2] / scale)
    return hidden


def _reaches_unit_ball(start: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Which of the segments start + t * direction, t in 0..1, intersect the unit ball."""
    squared = (direction**2).sum(axis=1)
    t = np.clip(-(direction @ start) / np.maximum(squared, 1e-9), 0.0, 1.0)
    inside: np.ndarray = ((start + t[:, None] * direction) ** 2).sum(axis=1) < 1.0
    return inside


SEARCH: Call = ("turn_right", {"angle_deg": 90})


@dataclass
class ExpertState:
    """What the policy can know from its memory, as far as the expert relies on it."""

    seen_ago: int = 99  # decisions since the goal was last in sight
    searched: int = 0  # quarter turns to the right in a row

    def record(self, call: Call) -> None:
        """The call that was executed, the expert's or a mistake."""
        self.searched = self.searched + 1 if call == SEARCH else 0


def decide(obstacles: ObstacleMap, pose: NwuPose, state: ExpertState) -> Call:
    """The call to make at this pose. Updates the state, which belongs to one flight."""
    bearing, distance = obstacles.bearing(pose)
    if obstacles.visible_pixels(pose) >= SEEN_PIXELS:
        state.seen_ago = 0
    else:
        state.seen_ago += 1
    if distance <= FINISH_M and state.seen_ago <= 2:
        return "finish", {"reason": "reached"}
    if state.seen_ago == 0 or (state.seen_ago <= 2 and abs(bearing) < HALF_VIEW):
        return _approach(obstacles, pose, bearing, distance)
    if state.seen_ago <= 3:
        return turn(bearing, (45, 90))
    return _search(obstacles, pose, state)


def turn(bearing: float, angles: Sequence[int] = TURNS_DEG) -> Call:
    """The turn by one of `angles` (degrees) that comes nearest to the bearing."""
    degrees = math.degrees(abs(bearing))
    angle = min(angles, key=lambda a: abs(a - degrees))
    return ("turn_left" if bearing > 0 else "turn_right"), {"angle_deg": angle}


def _search(obstacles: ObstacleMap, pose: NwuPose, state: ExpertState) -> Call:
    """Turn right by quarters; when all four directions are seen without the goal, look from elsewhere."""
    if state.searched >= 3:
        if obstacles.is_clear(pose, pose.yaw, 4.5):
            return "move_forward", {"distance_m": 4}
        return "turn_right", {"angle_deg": 45}
    return SEARCH


def _approach(obstacles: ObstacleMap, pose: NwuPose, bearing: float, distance: float) -> Call:
    """Straight to the goal where the way is clear, else past the tree on the side that costs less."""
    if abs(bearing) > HALF_VIEW + 0.1:
        return turn(bearing, (45, 90))
    reach = max(distance - NEAREST_M, 0.5)
    direct = obstacles.is_clear(pose, pose.yaw + bearing, reach)
    if direct:
        # Within 3 m a step of one metre passes at the pillar's side even when it is not quite ahead.
        tolerance = math.radians(7.0 if distance > 5 else 9.0 if distance > 3 else 15.0)
        if abs(bearing) > tolerance:
            return turn(bearing)
    else:
        way = _detour_deg(obstacles, pose, bearing, reach)
        if way is None:
            return "turn_left", {"angle_deg": 90}
        if way:
            return turn(math.radians(way))
    for step in MOVES_M:
        end = pose.moved(step)
        if obstacles.goal_clearance(pose, pose.yaw, step) < NEAREST_M:
            continue
        if not obstacles.is_clear(pose, pose.yaw, step + 0.4, TREE_MARGIN_M - 0.15):
            continue
        if not direct and step > 4:
            continue
        if not direct and step > 1:
            shorter = pose.moved(step / 2)
            b, d = obstacles.bearing(shorter)
            if obstacles.is_clear(shorter, shorter.yaw + b, max(d - NEAREST_M, 0.5)):
                continue
        b, _ = obstacles.bearing(end)
        if step > 2 and abs(b) > math.radians(40):
            continue  # keep the goal in sight
        return "move_forward", {"distance_m": step}
    if not direct:
        return turn(math.copysign(math.radians(30), -bearing or 1.0))
    return turn(bearing) if abs(bearing) > math.radians(5) else ("finish", {"reason": "reached"})


def _detour_deg(obstacles: ObstacleMap, pose: NwuPose, bearing: float, reach: float) -> int | None:
    """The turn (degrees, left positive, 0 for none) to the clear heading nearest to the goal's bearing; the farther
    it is clear the better. None: trees on all sides."""
    for length in (7.0, 4.5, 2.5):
        best, least = None, math.inf
        for angle in (0, *TURNS_DEG, *(-a for a in TURNS_DEG)):
            off = abs(math.degrees(bearing) - angle)
            if off > 55 or not obstacles.is_clear(pose, pose.yaw + math.radians(angle), min(reach, length)):
                continue
            cost = off + (0 if angle == 0 else 4)  # going on as one flies is worth a little
            if cost < least:
                best, least = angle, cost
        if best is not None:
            return best
    return None


def is_collision_free(obstacles: ObstacleMap, pose: NwuPose, call: Call) -> bool:
    """Whether executing a call is collision-free."""
    name, arguments = call
    if name != "move_forward":
        return True
    length = float(arguments["distance_m"]) + 0.2
    return (
        obstacles.clearance(pose, pose.yaw, length) > 0.15
        and obstacles.goal_clearance(pose, pose.yaw, length) > obstacles.goal.radius + DRONE_RADIUS_M + 0.1
    )
