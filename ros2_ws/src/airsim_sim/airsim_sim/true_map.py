"""The true map of a world: distances to its solids, and the shortest way past them. For judging and for the expert of
a pilot, never for the pilot.

World frame of `airsim_sim.world`: north, west, up, m; headings in rad, counter-clockwise from north.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from airsim_sim.model import DRONE_RADIUS_M
from airsim_sim.world import Part, World, WorldObject

CELL_M = 0.25
"""Of the planning grid: a little under the drone's radius, so that no gap that it fits through is missed by much."""
BORDER_M = 10.0
"""How far the planning grid reaches beyond everything that stands in the world."""

FAR_M = 1.5
"""Clearances up to here are exact on a grid; nothing keeps farther away than that."""

Point = tuple[float, float]


class NoWayError(ValueError):
    """There is no way between two points that keeps the clearance; the message names both."""


@dataclass(frozen=True)
class Solid:
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
        local = self._local(points - self.centre)
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

    def blocks(self, eye: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Which of the lines of sight (n,) from `eye` (3,) to `targets` (n, 3) go through the solid."""
        start, ways = self._local((eye - self.centre)[None])[0], self._local(targets - eye)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.shape == "ellipsoid":
                enter, leave = _through_ball(start / self.half_size, ways / self.half_size)
            elif self.shape == "box":
                enter, leave = _through_slabs(start, ways, self.half_size)
            else:
                across = self.half_size[:2]
                enter, leave = _through_ball(start[:2] / across, ways[:, :2] / across)
                low, high = _through_slabs(start[2:], ways[:, 2:], self.half_size[2:])
                enter, leave = np.maximum(enter, low), np.minimum(leave, high)
        blocked: np.ndarray = (enter <= leave) & (leave > 0.0) & (enter < 1.0)
        return blocked

    def _local(self, vectors: np.ndarray) -> np.ndarray:
        x, y, z = vectors.T
        return np.column_stack([x * self.cos + y * self.sin, y * self.cos - x * self.sin, z])


def _through_slabs(start: np.ndarray, ways: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where lines start + t * ways enter and leave |x| < half, as t (n,); they never do where enter > leave."""
    ways = np.where(np.abs(ways) < 1e-12, 1e-12, ways)
    a, b = (-half - start) / ways, (half - start) / ways
    return np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)


def _through_ball(start: np.ndarray, ways: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_through_slabs`, of the unit ball (in two dimensions: of the upright unit cylinder)."""
    squared = np.maximum((ways**2).sum(axis=1), 1e-12)
    middle = -(ways @ start) / squared
    depth = middle**2 - (start @ start - 1.0) / squared
    half = np.sqrt(np.maximum(depth, 0.0))
    return np.where(depth > 0, middle - half, np.inf), np.where(depth > 0, middle + half, -np.inf)


def _solid(item: WorldObject, part: Part) -> Solid:
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
    return Solid(part.shape, centre, half, math.cos(turned), math.sin(turned), item.name)


class TrueMap:
    """Distances and ways in one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._solids = [_solid(item, part) for item in world.objects for part in item.parts if part.solid]
        self._ways: dict[tuple[object, ...], Ways] = {}
        self._grids: dict[tuple[object, ...], ClearanceGrid] = {}

    def solids(self, without: Sequence[str] = ()) -> list[Solid]:
        """All solids but those of the objects `without`."""
        return [solid for solid in self._solids if solid.owner not in without]

    def distance(self, points: np.ndarray, without: Sequence[str] = ()) -> np.ndarray:
        """Signed distance (n,) of points (n, 3) to the nearest solid, m; infinite in an empty world. `without`: names
        of objects that do not count."""
        points = np.atleast_2d(np.asarray(points, float))
        nearest: np.ndarray = np.full(len(points), np.inf)
        for solid in self.solids(without):
            nearest = np.minimum(nearest, solid.distance(points))
        return nearest

    def clearance(self, points: np.ndarray, without: Sequence[str] = ()) -> np.ndarray:
        """As `distance`, of the drone's hull about each point."""
        return self.distance(points, without) - DRONE_RADIUS_M

    def nearest_object(self, point: Point, names: Sequence[str]) -> tuple[str, float]:
        """Which of the named objects is nearest on the map, and how far it is (`WorldObject.distance_m`), m.

        Raises:
            KeyError: an object that the world does not have.
            ValueError: no names.
        """
        distances = [(self.world.object(name).distance_m(point), name) for name in names]
        distance, name = min(distances)
        return name, distance

    def segment_clearance(
        self, start: Sequence[float], heading: float, length_m: float, without: Sequence[str] = ()
    ) -> float:
        """Smallest clearance on a straight level flight of `length_m` from `start` (north, west, up), m."""
        steps = np.linspace(0.0, length_m, max(2, math.ceil(length_m / 0.1) + 1))
        points = np.column_stack(
            [
                start[0] + steps * math.cos(heading),
                start[1] + steps * math.sin(heading),
                np.full(len(steps), start[2]),
            ]
        )
        return float(self.clearance(points, without).min())

    def hidden(self, eye: np.ndarray, targets: np.ndarray, without: str = "") -> np.ndarray:
        """Which of the points (n, 3) cannot be seen from `eye` (3,); the object `without` hides nothing."""
        blocked = np.zeros(len(targets), bool)
        for solid in self.solids([without]):
            blocked |= solid.blocks(eye, targets)
        return blocked

    def clearance_grid(self, altitude_m: float = 2.0, without: Sequence[str] = ()) -> ClearanceGrid:
        """The clearances at one altitude on a grid; kept, so that asking again costs nothing."""
        key = (altitude_m, *without)
        if key not in self._grids:
            self._grids[key] = ClearanceGrid(self, altitude_m, without)
        return self._grids[key]

    def ways_to(
        self,
        goal: str,
        *,
        within_m: float,
        altitude_m: float = 2.0,
        clearance_m: float = 0.1,
        without: Sequence[str] = (),
    ) -> Ways:
        """The shortest ways at one altitude from everywhere to within `within_m` of the object `goal`
        (`WorldObject.distance_m`); kept, so that asking again costs nothing.

        Args:
            clearance_m: between the hull and every solid but those of the objects `without`.
        """
        key = (goal, within_m, altitude_m, clearance_m, *without)
        if key not in self._ways:
            self._ways[key] = Ways(self, goal, within_m, altitude_m, clearance_m, without)
        return self._ways[key]

    def is_free(
        self, a: Point, b: Point, altitude_m: float, clearance_m: float, without: Sequence[str] = ()
    ) -> bool:
        """Whether the straight line keeps the clearance."""
        steps = np.linspace(0.0, 1.0, max(2, math.ceil(math.dist(a, b) / 0.1) + 1))[:, None]
        line = np.array(a) + steps * (np.array(b) - np.array(a))
        points = np.column_stack([line, np.full(len(line), altitude_m)])
        return bool((self.clearance(points, without) >= clearance_m).all())

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """South-east and north-west corner of everything that stands in the world, and of the start."""
        places = np.array([(0.0, 0.0), *(solid.centre[:2] for solid in self._solids)])
        return places.min(axis=0), places.max(axis=0)


class ClearanceGrid:
    """Clearances at one altitude: `places` (n, 2) of the cells of a `shape` (rows, columns), and there `clearance_m`
    (n,), exact where it is less than FAR_M."""

    def __init__(self, true_map: TrueMap, altitude_m: float, without: Sequence[str]) -> None:
        low, high = true_map.bounds()
        self.low = low - BORDER_M
        extent = high + BORDER_M - self.low
        self.shape = math.ceil(extent[0] / CELL_M) + 1, math.ceil(extent[1] / CELL_M) + 1
        self.places = self.low + CELL_M * np.indices(self.shape).reshape(2, -1).T
        self.clearance_m = np.full(len(self.places), np.inf)
        for solid in true_map.solids(without):
            cells = self._cells_near(solid)
            points = np.column_stack([self.places[cells], np.full(len(cells), altitude_m)])
            self.clearance_m[cells] = np.minimum(
                self.clearance_m[cells], solid.distance(points) - DRONE_RADIUS_M
            )

    def _cells_near(self, solid: Solid) -> np.ndarray:
        """Numbers of all cells at which the clearance to a solid may be less than FAR_M."""
        reach = math.hypot(*solid.half_size[:2]) + DRONE_RADIUS_M + FAR_M
        corners = [(solid.centre[:2] + side * reach - self.low) / CELL_M for side in (-1, 1)]
        first, last = (np.clip(np.rint(corner), 0, self.shape).astype(int) for corner in corners)
        rows, columns = np.arange(first[0], last[0]), np.arange(first[1], last[1])
        cells: np.ndarray = (rows[:, None] * self.shape[1] + columns).ravel()
        return cells

    def along(self, start: Sequence[float], heading: float, lengths_m: np.ndarray) -> np.ndarray:
        """About the clearance (n,) at `lengths_m` (n,) on a straight flight, of the nearest cells (0.18 m off at most);
        infinite beyond the grid."""
        places = np.array(start[:2]) + lengths_m[:, None] * np.array([math.cos(heading), math.sin(heading)])
        cells = np.rint((places - self.low) / CELL_M).astype(int)
        inside = ((cells >= 0) & (cells < self.shape)).all(axis=1)
        found = np.full(len(lengths_m), np.inf)
        found[inside] = self.clearance_m[cells[inside, 0] * self.shape[1] + cells[inside, 1]]
        return found


class Ways:
    """Shortest ways to one goal: Dijkstra's algorithm (scipy) outwards from it, on a grid of CELL_M with eight
    neighbours; a way is then straightened wherever the straight line keeps the clearance."""

    def __init__(
        self,
        true_map: TrueMap,
        goal: str,
        within_m: float,
        altitude_m: float,
        clearance_m: float,
        without: Sequence[str],
    ) -> None:
        self._map, self._goal, self._within_m = true_map, true_map.world.object(goal), within_m
        self._altitude_m, self._clearance_m, self._without = altitude_m, clearance_m, without
        grid = true_map.clearance_grid(altitude_m, without)
        self._low, self._shape, self._places = grid.low, grid.shape, grid.places
        self._free = grid.clearance_m >= clearance_m
        self._cost_m, self._next = self._search()

    def _search(self) -> tuple[np.ndarray, np.ndarray]:
        """For each cell the length of the way, m, and the next cell on it (negative: none)."""
        ends = np.flatnonzero(self._free & (self._goal.distances_m(self._places) <= self._within_m))
        if not len(ends):
            return np.full(len(self._free), np.inf), np.full(len(self._free), -1)
        number = np.arange(len(self._free)).reshape(self._shape)
        starts, targets, lengths = [], [], []
        for rows, columns in ((0, 1), (1, 0), (1, 1), (1, -1)):
            here = number[
                : self._shape[0] - rows, max(0, -columns) : self._shape[1] - max(0, columns)
            ].ravel()
            there = here + rows * self._shape[1] + columns
            both = self._free[here] & self._free[there]
            starts.append(here[both])
            targets.append(there[both])
            lengths.append(np.full(int(both.sum()), CELL_M * math.hypot(rows, columns)))
        size = len(self._free)
        graph = csr_array(
            (np.concatenate(lengths), (np.concatenate(starts), np.concatenate(targets))), shape=(size, size)
        )
        cost, towards, _ = dijkstra(
            graph, directed=False, indices=ends, min_only=True, return_predecessors=True
        )
        return cost, towards

    def _cell(self, start: Point) -> int:
        """The nearest cell that has a way, no farther than 1 m: whoever is within the clearance may leave it.

        Raises:
            NoWayError: there is none.
        """
        row, column = np.rint((np.array(start) - self._low) / CELL_M).astype(int)
        reach = round(1.0 / CELL_M)
        rows = np.arange(max(0, row - reach), min(self._shape[0], row + reach + 1))
        columns = np.arange(max(0, column - reach), min(self._shape[1], column + reach + 1))
        near = (rows[:, None] * self._shape[1] + columns).ravel()
        near = near[np.isfinite(self._cost_m[near])]
        cell = int(near[np.hypot(*(self._places[near] - start).T).argmin()]) if len(near) else -1
        if cell < 0:
            raise NoWayError(
                f"no way from {start} to within {self._within_m} m of {self._goal.name} at {self._altitude_m} m with "
                f"{self._clearance_m} m clearance"
            )
        return cell

    def length_m(self, start: Point) -> float:
        """About how long the way from `start` is, m (not straightened: up to 8 % long).

        Raises:
            NoWayError: there is none.
        """
        cell = self._cell(start)
        return float(self._cost_m[cell] + math.dist(self._places[cell], start))

    def way(self, start: Point) -> list[Point]:
        """Corners of the way, `start` first.

        Raises:
            NoWayError: there is none.
        """
        if self._goal.distance_m(start) <= self._within_m:
            return [start]
        cell, way = self._cell(start), [start]
        while cell >= 0:
            way.append((float(self._places[cell][0]), float(self._places[cell][1])))
            cell = int(self._next[cell])
        return self._straightened(way)

    def _straightened(self, way: list[Point]) -> list[Point]:
        corners, at = [way[0]], 0
        while at < len(way) - 1:
            reach = at + 1
            for end in range(len(way) - 1, at + 1, -1):
                if self._map.is_free(way[at], way[end], self._altitude_m, self._clearance_m, self._without):
                    reach = end
                    break
            corners.append(way[reach])
            at = reach
        return corners


def length_m(way: Sequence[Sequence[float]]) -> float:
    """Length of a way through its points, m."""
    return float(sum(math.dist(a, b) for a, b in itertools.pairwise(way)))
