"""The way flown as a line of bounded size, however long the flight."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Track:
    """Points of a way, `step_m` apart. When there are `most` of them every second one is dropped and the step doubles:
    a long way is kept whole, and more coarsely.

    Args:
        step_m: the least distance between two points at first, m.
        most: points, at least 2.
    """

    def __init__(self, step_m: float, most: int) -> None:
        self.step_m = step_m
        self._most = most
        self._points: list[tuple[float, ...]] = []
        self._newest: tuple[float, ...] = ()

    def add(self, position: Sequence[float]) -> bool:
        """Go on to `position`, in m; whether a point was added. One that is not finite is left out."""
        if not all(map(math.isfinite, position)):
            return False
        self._newest = tuple(position)
        if self._points and math.dist(self._points[-1], position) < self.step_m:
            return False
        # One place is the newest position's.
        if len(self._points) >= self._most - 1:
            self._points = self._points[::2]
            self.step_m *= 2
        self._points.append(self._newest)
        return True

    def points(self) -> list[tuple[float, ...]]:
        """From the first to the newest position."""
        if not self._points or self._points[-1] == self._newest:
            return list(self._points)
        return [*self._points, self._newest]
