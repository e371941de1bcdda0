"""Policies without a model: the expert with the true map shows what a scene allows, a random one what it gives away."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from airsim_sim.true_map import NoWayError, TrueMap, Ways
from nav_agent import toolset
from nav_common.data import FinishReason

Call = tuple[str, dict[str, toolset.Value]]

FINISH_WITHIN_M = 1.85
"""A little within the success radius of 2 m."""
KEPT_CLEARANCES_M = (0.6, 0.35, 0.1)
"""Tried in this order: a wide way is worth a detour, a narrow one is better than none."""
OVERSHOOT_M = 0.3
"""A motion may end this far beyond or beside its target."""
TURN_COST_M, DECISION_COST_M = 0.5, 0.15
"""What a turn, and a decision of 4 m of remaining way, cost against metres flown: few and straight motions."""


class Policy(Protocol):
    """Chooses the next call from the true pose."""

    def __call__(self, position: tuple[float, float, float], heading: float) -> Call: ...


class MapExpert:
    """Makes the call after which the remaining way on the true map is cheapest, and finishes at the goal."""

    def __init__(self, true_map: TrueMap, goal: str) -> None:
        self._map = true_map
        self._goal = goal
        self._object = true_map.world.object(goal)

    def __call__(self, position: tuple[float, float, float], heading: float) -> Call:
        if self._object.distance_m(position) <= FINISH_WITHIN_M:
            return "finish", {"reason": FinishReason.REACHED.value}
        for clearance_m in KEPT_CLEARANCES_M:
            ways = self._map.ways_to(self._goal, within_m=FINISH_WITHIN_M - 0.3, clearance_m=clearance_m)
            try:
                ways.length_m(position[:2])
            except NoWayError:
                continue
            best = min(self._options(ways, position, heading, clearance_m), default=None)
            if best is not None:
                return best[1]
        return "finish", {"reason": FinishReason.NOT_FOUND.value}

    def _options(
        self, ways: Ways, position: tuple[float, float, float], heading: float, clearance_m: float
    ) -> Iterator[tuple[float, Call]]:
        """Straight motions, now or after one turn, with their cost: what is flown, what remains, and the turn."""
        for turn_deg in (0, *toolset.ANGLE_DEG, *(-angle for angle in toolset.ANGLE_DEG)):
            course = heading + math.radians(turn_deg)
            for length in toolset.DISTANCE_M:
                if (
                    self._map.segment_clearance(position, course, length + OVERSHOOT_M)
                    < clearance_m - OVERSHOOT_M
                ):
                    break
                end = position[0] + length * math.cos(course), position[1] + length * math.sin(course)
                try:
                    remaining = ways.length_m(end)
                except NoWayError:
                    continue
                cost = length + remaining + TURN_COST_M * (turn_deg != 0) + DECISION_COST_M * remaining / 4.0
                yield (
                    cost,
                    ("move_forward", {"distance_m": length})
                    if turn_deg == 0
                    else _turn(math.radians(turn_deg)),
                )
        # Where only a half turn leads on, it takes two.
        yield 1e6, _turn(math.pi / 2)


class Searcher:
    """Looks all around by quarter turns, and says that it did not find anything."""

    def __init__(self) -> None:
        self._turns = 0

    def __call__(self, position: tuple[float, float, float], heading: float) -> Call:
        self._turns += 1
        return (
            _turn(-math.pi / 2) if self._turns < 4 else ("finish", {"reason": FinishReason.NOT_FOUND.value})
        )


def _turn(bearing: float) -> Call:
    angle = min(toolset.ANGLE_DEG, key=lambda degrees: abs(math.radians(degrees) - abs(bearing)))
    return ("turn_left" if bearing > 0 else "turn_right"), {"angle_deg": angle}


class RandomPolicy:
    """Any tool with any of its arguments, all equally likely."""

    def __init__(self, seed: int, tools: Sequence[toolset.ToolSpec] = toolset.TOOLS) -> None:
        self._rng = np.random.default_rng((seed, 0xD1CE))
        self._tools = tools

    def __call__(self, position: tuple[float, float, float], heading: float) -> Call:
        tool = self._tools[int(self._rng.integers(len(self._tools)))]
        return tool.name, {
            argument.name: argument.values[int(self._rng.integers(len(argument.values)))]
            for argument in tool.arguments
        }
