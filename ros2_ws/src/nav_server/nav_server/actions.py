"""The four actions of a simple client, as the coarse reading of the nine tools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from nav_agent import toolset

CAMERA_HALF_ANGLE_RAD = math.radians(45.0)
"""Half the horizontal field of view of AirSim's cameras, whose default is 90 degrees."""
CLIENT_TURN_RAD = math.radians(30.0)
"""What the four-action client turns at a time."""


class Action(StrEnum):
    """What the four-action client can do."""

    MOVE_FORWARD = "move_forward"
    TURN_LEFT = "turn_left"
    TURN_RIGHT = "turn_right"
    HOVER = "hover"


def coarse(tool: str, arguments: Mapping[str, Any]) -> Action:
    """The action nearest to a call: pointing to the side is a turn, looking around a turn, and what is none of the four
    (up, down, finish, no call) is to hover."""
    match tool:
        case "fly_towards":
            return _towards(int(arguments["u"]))
        case "look_around":
            return Action.TURN_LEFT
        case "move_forward" | "turn_left" | "turn_right":
            return Action(tool)
    return Action.HOVER


def _towards(u: int) -> Action:
    """u: thousandths of the picture's width from the left."""
    bearing_rad = math.atan((u - 500) / 500 * math.tan(CAMERA_HALF_ANGLE_RAD))
    if abs(bearing_rad) <= CLIENT_TURN_RAD / 2:
        return Action.MOVE_FORWARD
    return Action.TURN_LEFT if bearing_rad < 0 else Action.TURN_RIGHT


def allowed_tools(names: Sequence[str] | None) -> tuple[dict[str, Any], ...]:
    """Schemas of the tools that a request allows, by their names; None: no limit."""
    if names is None:
        return ()
    return tuple(schema for schema in toolset.tool_schemas() if schema["function"]["name"] in names)
