"""The true map of a world: distances to its solids, and the shortest way past them. For judging and for the teacher of
a pilot, never for the pilot.

World frame of `airsim_sim.world`: north, west, up, m; headings in rad, counter-clockwise from north.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from airsim_sim.world import Part, World, WorldObject

DRONE_RADIUS_M = 0.3
"""Of the simulated drone's hull (airsim_sim.model)."""
CELL_M = 0.25
"""Of the planning grid: a little under the drone's radius, so that no gap that it fits through is missed by much."""
BORDER_M = 10.0
"""How far the planning grid reaches beyond everything that stands in the world."""

Point = tuple[float, float]


class NoWayError(ValueError):
    """There is no way between two points that keeps the clearance; the message names both."""


@dataclass(frozen=True)
class _Solid:
    """One part in the world: `centre` (3,), `half_size` (3,), rotation about the vertical."""

    shape: str
    centre: np.ndarray
    half_size: np.ndarray
    cos: float
    sin: float
    owner: str

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance of points (n, 3) to the surface, m, negative inside. Exact for boxes and cylinders; for
        ellipsoids the usual first-order estimate (I. Quilez), exact on the surface."""
        d = points - self.centre
        local = np.column_stack(
            [d[:, 0] * self.cos + d[:, 1] * self.sin, d[:, 1] * self.cos - d[:, 0] * self.sin, d[:, 2]]
        )
        if self.shape == "ellipsoid":
            scaled = np.linalg.norm(local / self.half_size, axis=1)
            gradient = np.linalg.norm(local / self.half_size**2, axis=1)
            smallest = float(self.half_size.min())
            estimate: np.ndarray = np.where(
                gradient > 1e-9, scaled * (scaled - 1.0) / np.maximum(gradient, 1e-9), -smallest
            )
            return estimate
        if self.shape == "box":
            excess = np.abs(local) - self.half_size
        else:  # an upright cylinder: radius, half height
            across = np.hypot(local[:, 0], local[:, 1]) - self.half_size[0]
            excess = np.column_stack([across, np.abs(local[:, 2]) - self.half_size[2]])
        outside = np.linalg.norm(np.maximum(excess, 0.0), axis=1)
        signed: np.ndarray = outside + np.minimum(excess.max(axis=1), 0.0)
        return signed


def _solid(item: WorldObject, part: Part) -> _Solid:
    yaw = math.radians(item.yaw_deg)
    x, y, z = part.centre
    centre = np.array(
        [
            item.position[0] + x * math.cos(yaw) - y * math.sin(yaw),
            item.position[1] + x * math.sin(yaw) + y * math.cos(yaw),
            item.position[2] + z,
        ]
    )
    turned = yaw + math.radians(part.yaw_deg)
    a, b, c = part.half_size
    half = np.array([a, a, b]) if part.shape in ("cylinder", "capsule") else np.array([a, b, c])
    return _Solid(part.shape, centre, half, math.cos(turned), math.sin(turned), item.name)


class TrueMap:
    """Distances and ways in one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._solids = [_solid(item, part) for item in world.objects for part in item.parts if part.solid]

    def distance(self, points: np.ndarray, without: Sequence[str] = ()) -> np.ndarray:
        """Signed distance (n,) of points (n, 3) to the nearest solid, m; infinite in an empty world. `without`: names
        of objects that do not count."""
        points = np.atleast_2d(np.asarray(points, float))
        nearest: np.ndarray = np.full(len(points), np.inf)
        for solid in self._solids:
            if solid.owner not in without:
                nearest = np.minimum(nearest, solid.distance(points))
        return nearest

    def clearance(self, points: np.ndarray, without: Sequence[str] = ()) -> np.ndarray:
        """As `distance`, of the drone's hull about each point."""
        return self.distance(points, without) - DRONE_RADIUS_M

    def nearest_object(self, point: Point, names: Sequence[str]) -> tuple[str, float]:
        """Which of the named objects has the nearest centre on the map, and how far that is, m.

        Raises:
            KeyError: an object that the world does not have.
            ValueError: no names.
        """
        distances = [(math.dist(point, self.world.object(name).position[:2]), name) for name in names]
        distance, name = min(distances)
        return name, distance

    def segment_clearance(self, start: Sequence[float], heading: float, length_m: float) -> float:
        """Smallest clearance on a straight level flight of `length_m` from `start` (north, west, up), m."""
        steps = np.linspace(0.0, length_m, max(2, math.ceil(length_m / 0.1) + 1))
        points = np.column_stack(
            [
                start[0] + steps * math.cos(heading),
                start[1] + steps * math.sin(heading),
                np.full(len(steps), start[2]),
            ]
        )
        return float(self.clearance(points).min())

    def shortest_way(
        self,
        start: Point,
        goal: Point,
        *,
        within_m: float,
        altitude_m: float = 2.0,
        clearance_m: float = 0.1,
        without: Sequence[str] = (),
    ) -> list[Point]:
        """The shortest way at one altitude from `start` to any place within `within_m` of `goal`.

        A* (Hart, Nilsson, Raphael, 1968) on a grid of CELL_M with eight neighbours, then straightened wherever the
        straight line keeps the clearance.

        Args:
            clearance_m: between the hull and every solid, but for those of `without`; a start that is closer already
                may leave.

        Returns:
            Corners of the way, `start` first.

        Raises:
            NoWayError: there is none.
        """
        if math.dist(start, goal) <= within_m:
            return [start]
        grid = self._grid(start, goal, altitude_m, clearance_m, without)
        cells = grid.search(start, goal, within_m)
        if cells is None:
            raise NoWayError(
                f"no way from {start} to within {within_m} m of {goal} at {altitude_m} m with {clearance_m} m clearance"
            )
        return self._straightened([start, *cells[1:]], altitude_m, clearance_m, without)

    def _grid(
        self, start: Point, goal: Point, altitude_m: float, clearance_m: float, without: Sequence[str]
    ) -> _Grid:
        standing = [s.centre[:2] for s in self._solids if np.hypot(*s.centre[:2]) < 500.0]
        places = np.array([start, goal, *standing])
        low, high = places.min(axis=0) - BORDER_M, places.max(axis=0) + BORDER_M
        rows, columns = (math.ceil(extent / CELL_M) + 1 for extent in high - low)
        north, west = np.meshgrid(
            low[0] + CELL_M * np.arange(rows), low[1] + CELL_M * np.arange(columns), indexing="ij"
        )
        points = np.column_stack([north.ravel(), west.ravel(), np.full(north.size, altitude_m)])
        free = (self.clearance(points, without) >= clearance_m).reshape(rows, columns)
        return _Grid((float(low[0]), float(low[1])), free)

    def _straightened(
        self, way: list[Point], altitude_m: float, clearance_m: float, without: Sequence[str]
    ) -> list[Point]:
        corners = [way[0]]
        at = 0
        while at < len(way) - 1:
            reach = at + 1
            for end in range(len(way) - 1, at + 1, -1):
                if self._is_free(way[at], way[end], altitude_m, clearance_m, without):
                    reach = end
                    break
            corners.append(way[reach])
            at = reach
        return corners

    def _is_free(
        self, a: Point, b: Point, altitude_m: float, clearance_m: float, without: Sequence[str]
    ) -> bool:
        steps = np.linspace(0.0, 1.0, max(2, math.ceil(math.dist(a, b) / 0.1) + 1))[:, None]
        line = np.array(a) + steps * (np.array(b) - np.array(a))
        points = np.column_stack([line, np.full(len(line), altitude_m)])
        return bool((self.clearance(points, without) >= clearance_m).all())


_NEIGHBOURS = [(i, j, math.hypot(i, j)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


class _Grid:
    """Cells of CELL_M; `free` (rows, columns): where the drone may be."""

    def __init__(self, origin: Point, free: np.ndarray) -> None:
        self._origin = origin
        self._free = free

    def _cell(self, point: Point) -> tuple[int, int]:
        return round((point[0] - self._origin[0]) / CELL_M), round((point[1] - self._origin[1]) / CELL_M)

    def _point(self, cell: tuple[int, int]) -> Point:
        return self._origin[0] + CELL_M * cell[0], self._origin[1] + CELL_M * cell[1]

    def search(self, start: Point, goal: Point, within_m: float) -> list[Point] | None:
        first = self._cell(start)
        rows, columns = self._free.shape
        cost = {first: 0.0}
        came_from: dict[tuple[int, int], tuple[int, int]] = {}
        closed: set[tuple[int, int]] = set()
        queue = [(self._remaining(first, goal, within_m), first)]
        while queue:
            _, cell = heapq.heappop(queue)
            if cell in closed:
                continue
            if math.dist(self._point(cell), goal) <= within_m:
                way = [cell]
                while way[-1] in came_from:
                    way.append(came_from[way[-1]])
                return [self._point(one) for one in reversed(way)]
            closed.add(cell)
            escaping = not self._free[cell]
            for i, j, step in _NEIGHBOURS:
                after = cell[0] + i, cell[1] + j
                if not (0 <= after[0] < rows and 0 <= after[1] < columns) or after in closed:
                    continue
                if not (self._free[after] or (escaping and math.dist(self._point(after), start) < 1.0)):
                    continue
                through = cost[cell] + step * CELL_M
                if through < cost.get(after, math.inf):
                    cost[after], came_from[after] = through, cell
                    heapq.heappush(queue, (through + self._remaining(after, goal, within_m), after))
        return None

    def _remaining(self, cell: tuple[int, int], goal: Point, within_m: float) -> float:
        return max(0.0, math.dist(self._point(cell), goal) - within_m)


def length_m(way: Sequence[Sequence[float]]) -> float:
    """Length of a way through its points, m."""
    return float(sum(math.dist(a, b) for a, b in itertools.pairwise(way)))
