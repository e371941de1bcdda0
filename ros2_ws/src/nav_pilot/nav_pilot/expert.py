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
from airsim_sim.true_map import CELL_M, NoWayError, Solid, TrueMap, Ways
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
# One metre is the shortest move, so the ring in which to finish is one metre wide. Success is 2 m, and whoever imitates
# misjudges that by some decimetres; an object and the drone touch at 0.7 m.
RING_M = 1.0
NEAREST_M = 0.8
NEAREST_LOW_M = 0.6  # of what is lower than the drone flies
LOW_M = 1.6
TURNS_DEG = (10, 20, 30, 45)
MOVES_M = (8, 4, 2, 1)
LANDED_WITHIN_M = 0.3
# For ways past obstacles. Tried in this order: a wide way is worth a detour, a narrow one is better than none.
KEPT_CLEARANCES_M = (1.2, 0.6, 0.35, 0.1)
OVERSHOOT_M = 0.3  # a motion may end this far beyond or beside its target
TURN_COST_M, DECISION_COST_M = 0.5, 0.15  # of a turn, and of 4 m of remaining way, against metres flown
NEAR_COST = 4.0  # of a metre less than `margin_m` from something, against metres flown
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


def margin_m(length_m: float) -> float:
    """The room that a straight flight should have on either side, m: whoever imitates misjudges where things stand by
    about 5 degrees, so a long flight needs more than a short one."""
    return 0.3 + 0.08 * length_m


class _Approach:
    """The calls that lead to one object: straight to it where the way is free, else by the shortest way past what is in
    the way."""

    def __init__(self, true_map: TrueMap, goal: str) -> None:
        self._map, self._name, self._goal = true_map, goal, true_map.world.object(goal)
        self._nearest_m = NEAREST_LOW_M if self._goal.height < LOW_M else NEAREST_M
        self._finish_m = self._nearest_m + RING_M

    def call(self, pose: NwuPose) -> Call:
        here = (pose.x, pose.y)
        distance = self._goal.distance_m(here)
        if distance <= self._finish_m:
            return REACHED
        north, west, _ = self._goal.position
        bearing = wrap(math.atan2(west - pose.y, north - pose.x) - pose.yaw)
        reach = max(distance - self._nearest_m, 0.5)
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
            if self._goal_distance(pose, pose.yaw, step) < self._nearest_m:
                continue
            if self._clearance(pose, pose.yaw, step + 0.4) <= margin_m(step):
                continue
            return "move_forward", {"distance_m": step}
        return turn(bearing) if abs(bearing) > math.radians(5) else REACHED

    def _past(self, pose: NwuPose) -> Call:
        """The call after which the remaining way is cheapest: what is flown, what remains, and the turn. NOT_FOUND:
        there is no way."""
        is_way = False
        for clearance_m in KEPT_CLEARANCES_M:
            ways = self._map.ways_to(
                self._name, within_m=self._finish_m - 0.3, clearance_m=clearance_m, without=[self._name]
            )
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
                near = NEAR_COST * max(0.0, margin_m(length) - about_m)
                cost = (
                    length
                    + remaining
                    + near
                    + TURN_COST_M * (turn_deg != 0)
                    + DECISION_COST_M * remaining / 4.0
                )
                if turn_deg:
                    yield cost, turn(math.radians(turn_deg), toolset.ANGLE_DEG)
                else:
                    yield cost, ("move_forward", {"distance_m": length})


def turn(bearing: float, angles: Sequence[int] = TURNS_DEG) -> Call:
    """The turn by one of `angles` (degrees) that comes nearest to the bearing."""
    degrees = math.degrees(abs(bearing))
    angle = min(angles, key=lambda a: abs(a - degrees))
    return ("turn_left" if bearing > 0 else "turn_right"), {"angle_deg": angle}
