"""A dry run, for replays: what would have been flown is noted, and nothing is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from nav_agent import toolset
from nav_agent.motion import pause
from nav_agent.tool_calling import ToolResult
from nav_common import result_lines
from nav_common.clock import Clock


class DryRun:
    """A FlightControl that notes each call, lets the time of a decision pass and reports success."""

    path_m = 0.0
    collisions = 0

    def __init__(self, clock: Clock, check: Callable[[], None], decision_interval_s: float = 5.0) -> None:
        self._clock = clock
        self._check = check
        self._interval_s = decision_interval_s
        self.calls: list[tuple[float, str]] = []
        """When (own clock, s) which call would have been flown."""

    def take_off(self) -> None:
        """Nothing to do."""

    def barrier(self) -> float:
        """Any frame will do: nothing moves."""
        return 0.0

    def perform(self, name: str, arguments: Mapping[str, toolset.Value]) -> ToolResult:
        self.calls.append((self._clock.now(), toolset.call_line(name, arguments)))
        self.pause(self._interval_s)
        number = {key: float(value) for key, value in arguments.items() if not isinstance(value, str)}
        match name:
            case "move_forward" | "fly_towards":
                return ToolResult(result_lines.flew(number["distance_m"]), number["distance_m"])
            case "turn_left" | "turn_right":
                left_rad = math.radians(number["angle_deg"]) * (1 if name == "turn_left" else -1)
                return ToolResult(result_lines.turned(left_rad), turned_rad=abs(left_rad))
            case "climb" | "descend":
                up_m = number["distance_m"] * (1 if name == "climb" else -1)
                return ToolResult(result_lines.climbed(up_m), abs(up_m))
            case "hover":
                return ToolResult(result_lines.hovered(number["seconds"]))
        return ToolResult(result_lines.LOOKED_AROUND)

    def pause(self, duration_s: float) -> None:
        pause(self._clock, duration_s, self._check)

    def end(self) -> None:
        """Nothing to bring to rest."""

    def only_hover_since(self, time_s: float) -> bool:
        return True

    def edge_time_s(self) -> float:
        return 0.0

    def odometry_age_s(self) -> float:
        return -1.0
