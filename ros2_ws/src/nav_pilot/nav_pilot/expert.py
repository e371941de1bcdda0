"""The expert: the call to imitate, computed from the true map. Training uses it, and evaluation as a control.

A policy can infer each of its decisions from the words, the pictures so far and its last calls: an object is flown to
when it is or was in sight, or when the words say how to come there; else the rule is the same (turn right by 90).
Frames: the world's north-west-up; bearings are counter-clockwise (left positive) from the drone's heading, radians.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from airsim_sim import instructions
from airsim_sim.instructions import Instruction, Task
from airsim_sim.model import DRONE_RADIUS_M
from airsim_sim.true_map import CELL_M, NoWayError, Solid, TrueMap, Ways
from airsim_sim.world import World, WorldObject
from nav_agent import toolset
from nav_common.contract import LOWEST_ALTITUDE_M
from nav_common.data import FinishReason

Call = tuple[str, dict[str, Any]]

SEARCH: Call = ("turn_right", {"angle_deg": 90})
DESCEND: Call = ("descend", {"distance_m": 2})
WAIT: Call = ("hover", {"seconds": 5})
REACHED: Call = ("finish", {"reason": FinishReason.REACHED.value})
NOT_FOUND: Call = ("finish", {"reason": FinishReason.NOT_FOUND.value})

CAMERA_AHEAD_M = 0.33  # airsim_sim.model, front_center
HALF_VIEW = math.radians(45.0)  # of the front camera
TREE_MARGIN_M = 0.55  # chosen: the policy misjudges a heading by up to 8 degrees over 4 m
# One metre is the shortest move, so the ring in which to finish is one metre wide. Success is 2 m; the pillar and the
# drone touch at 0.7 m.
FINISH_M = 1.88
NEAREST_M = 0.9
TURNS_DEG = (10, 20, 30, 45)
MOVES_M = (8, 4, 2, 1)
LANDED_WITHIN_M = 0.3
# For ways past obstacles. Tried in this order: a wide way is worth a detour, a narrow one is better than none.
KEPT_CLEARANCES_M = (0.6, 0.35, 0.1)
OVERSHOOT_M = 0.3  # a motion may end this far beyond or beside its target
TURN_COST_M, DECISION_COST_M = 0.5, 0.15  # of a turn, and of 4 m of remaining way, against metres flown
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


class Sight:
    """What the camera sees of a world's objects, by its true geometry."""

    def __init__(self, true_map: TrueMap) -> None:
        self._map = true_map

    def pixels(self, name: str, pose: NwuPose) -> float:
        """About how many pixels of a 112 x 84 picture show an object: its outline, less what is hidden or outside."""
        eye = np.array(
            [
                pose.x + CAMERA_AHEAD_M * math.cos(pose.yaw),
                pose.y + CAMERA_AHEAD_M * math.sin(pose.yaw),
                pose.z,
            ]
        )
        return sum(
            self._solid_pixels(solid, eye, pose.yaw) for solid in self._map.solids() if solid.owner == name
        )

    def _solid_pixels(self, solid: Solid, eye: np.ndarray, yaw: float) -> float:
        """Of one solid, as an upright rectangle that faces the camera."""
        away = solid.centre[:2] - eye[:2]
        distance = float(np.hypot(*away))
        half, tall = float(solid.half_size[0]), float(solid.half_size[2])
        if solid.shape == "box":
            along = away / max(distance, 1e-9)
            seen_from_front = abs(along[0] * solid.cos + along[1] * solid.sin)
            seen_from_side = abs(along[1] * solid.cos - along[0] * solid.sin)
            half = float(solid.half_size[0] * seen_from_side + solid.half_size[1] * seen_from_front)
        if distance <= half + 0.05:
            return 0.0
        across = np.array([-away[1], away[0]]) / distance
        side, level = (
            grid.ravel() for grid in np.meshgrid(np.linspace(-0.9, 0.9, 5), np.linspace(-0.94, 0.94, 8))
        )
        points = np.column_stack(
            [solid.centre[:2] + half * side[:, None] * across, solid.centre[2] + tall * level]
        )
        rays = points - eye
        ahead = rays[:, 0] * math.cos(yaw) + rays[:, 1] * math.sin(yaw)
        left = rays[:, 1] * math.cos(yaw) - rays[:, 0] * math.sin(yaw)
        seen = (ahead > 0.05) & (np.abs(left) < ahead) & (np.abs(rays[:, 2]) < 0.75 * ahead)
        if not seen.any():
            return 0.0
        seen[seen] = ~self._map.hidden(eye, points[seen], without=solid.owner)
        return float(seen.mean()) * 4 * half * tall * (FOCAL_PIXELS / distance) ** 2


class Expert:
    """Makes the call to imitate, from the true map and what was seen of it: one flight, one instruction after another.

    What it goes by can be known from the pictures so far and the words: an object is flown to when it is or was in
    sight, or when the words say how to come there. Else it is searched by quarter turns to the right.
    """

    def __init__(self, true_map: TrueMap) -> None:
        self._map = true_map
        self._sight = Sight(true_map)
        self._seen: set[str] = set()
        self._searched = 0  # quarter turns to the right in a row
        self._waited = False
        self._instruction = Instruction("", Task.ABSENT)

    def begin(self, instruction: Instruction) -> None:
        """The next instruction. What was seen before stays known."""
        self._instruction, self._searched, self._waited = instruction, 0, False

    def executed(self, call: Call) -> None:
        """The call that was executed, the expert's or a mistake."""
        self._searched = self._searched + 1 if call == SEARCH else 0
        self._waited = self._waited or call[0] == "hover"

    def looks(self, pose: NwuPose) -> None:
        """Whatever is in sight from here counts as seen from now on. Called by itself at each decision."""
        for name in instructions.candidates(self._map.world):
            if name not in self._seen and self._sight.pixels(name, pose) >= SEEN_PIXELS:
                self._seen.add(name)

    def __call__(self, pose: NwuPose) -> Call:
        """The call to make at this pose."""
        self.looks(pose)
        task, goal = self._instruction.task, self._instruction.goal
        if task is Task.LAND:
            return REACHED if pose.z <= LOWEST_ALTITUDE_M + LANDED_WITHIN_M else DESCEND
        if task is Task.WAIT:
            return REACHED if self._waited else WAIT
        if task is Task.ABSENT or not (goal in self._seen or self._instruction.guided):
            return self._search(pose, may_be_hidden=task is Task.GO)
        return _Approach(self._map, goal).call(pose)

    def _search(self, pose: NwuPose, may_be_hidden: bool) -> Call:
        """Quarter turns to the right. After four directions it is not there, or to be looked for from elsewhere."""
        if self._searched < 3:
            return SEARCH
        if not may_be_hidden:
            return NOT_FOUND
        free = self._map.segment_clearance((pose.x, pose.y, pose.z), pose.yaw, 4.5) > TREE_MARGIN_M
        return ("move_forward", {"distance_m": 4}) if free else ("turn_right", {"angle_deg": 45})


class _Approach:
    """The calls that lead to one object: straight to it where the way is free, else by the shortest way past what is in
    the way."""

    def __init__(self, true_map: TrueMap, goal: str) -> None:
        self._map, self._name, self._goal = true_map, goal, true_map.world.object(goal)

    def call(self, pose: NwuPose) -> Call:
        here = (pose.x, pose.y)
        distance = self._goal.distance_m(here)
        if distance <= FINISH_M:
            return REACHED
        north, west, _ = self._goal.position
        bearing = wrap(math.atan2(west - pose.y, north - pose.x) - pose.yaw)
        reach = max(distance - NEAREST_M, 0.5)
        if self._clearance(pose, pose.yaw + bearing, reach) > TREE_MARGIN_M:
            return self._straight(pose, bearing, distance)
        return self._past(pose)

    def _clearance(self, pose: NwuPose, heading: float, length: float) -> float:
        """Smallest clearance from all but the goal along a straight flight, m."""
        return self._map.segment_clearance((pose.x, pose.y, pose.z), heading, length, without=[self._name])

    def _goal_distance(self, pose: NwuPose, heading: float, length: float) -> float:
        """Smallest distance of the drone's centre from the goal along a straight flight, m."""
        steps = np.linspace(0.0, length, max(2, math.ceil(length / 0.25) + 1))[:, None]
        points = np.array([pose.x, pose.y]) + steps * np.array([math.cos(heading), math.sin(heading)])
        return float(self._goal.distances_m(points).min())

    def _straight(self, pose: NwuPose, bearing: float, distance: float) -> Call:
        """Nothing is in the way: turn to the goal, and fly as far as one may."""
        if abs(bearing) > HALF_VIEW + 0.1:
            return turn(bearing, (45, 90))
        # Within 3 m a step of one metre ends beside the goal even when it is not quite ahead.
        tolerance = math.radians(7.0 if distance > 5 else 9.0 if distance > 3 else 15.0)
        if abs(bearing) > tolerance:
            return turn(bearing)
        for step in MOVES_M:
            if self._goal_distance(pose, pose.yaw, step) < NEAREST_M:
                continue
            if self._clearance(pose, pose.yaw, step + 0.4) <= TREE_MARGIN_M - 0.15:
                continue
            return "move_forward", {"distance_m": step}
        return turn(bearing) if abs(bearing) > math.radians(5) else REACHED

    def _past(self, pose: NwuPose) -> Call:
        """The call after which the remaining way is cheapest: what is flown, what remains, and the turn. NOT_FOUND:
        there is no way."""
        is_way = False
        for clearance_m in KEPT_CLEARANCES_M:
            ways = self._map.ways_to(self._name, within_m=FINISH_M - 0.3, clearance_m=clearance_m)
            try:
                ways.length_m((pose.x, pose.y))
            except NoWayError:
                continue
            is_way = True
            best = min(self._options(ways, pose, clearance_m), default=None)
            if best is not None:
                return best[1]
        # Where only a half turn leads on, it takes two.
        return ("turn_left", {"angle_deg": 90}) if is_way else NOT_FOUND

    def _options(self, ways: Ways, pose: NwuPose, clearance_m: float) -> Iterator[tuple[float, Call]]:
        grid, place = self._map.clearance_grid(), (pose.x, pose.y, pose.z)
        # Whoever is nearer to something already may leave it.
        here = float(self._map.clearance(np.array([place]))[0])
        kept_m = min(clearance_m - OVERSHOOT_M, here - 0.05)
        for turn_deg in (0, *toolset.ANGLE_DEG, *(-angle for angle in toolset.ANGLE_DEG)):
            course = pose.yaw + math.radians(turn_deg)
            for length in toolset.DISTANCE_M:
                steps = np.linspace(0.0, length + OVERSHOOT_M, 2 + 4 * length)
                about_m = grid.along(place, course, steps).min()
                if about_m < kept_m - CELL_M:
                    break
                if (
                    about_m < kept_m + CELL_M
                    and self._map.segment_clearance(place, course, length + OVERSHOOT_M) < kept_m
                ):
                    break
                end = pose.x + length * math.cos(course), pose.y + length * math.sin(course)
                try:
                    remaining = ways.length_m(end)
                except NoWayError:
                    continue
                cost = length + remaining + TURN_COST_M * (turn_deg != 0) + DECISION_COST_M * remaining / 4.0
                if turn_deg:
                    yield cost, turn(math.radians(turn_deg), toolset.ANGLE_DEG)
                else:
                    yield cost, ("move_forward", {"distance_m": length})


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
