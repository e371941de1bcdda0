"""The fixed form of a tool's result, as the model reads it, from the agent's motions and the edge's pilot over HTTP.

Whatever is trained to fly is trained on exactly these lines, so a change here means training again. Distances to half a
metre and angles to five degrees: what a model can use, and no noise in its history. Exact figures are in the flight's
recording.
"""

from __future__ import annotations

import math
from enum import StrEnum


class StopReason(StrEnum):
    """Why a motion ended before its target; the value is what the model reads."""

    GATE = "stopped by the gate"
    REFLEX = "stopped by the reflex"
    COLLISION = "collision"
    MEMORY_LOST = "memory lost"
    TIMED_OUT = "timed out"


SHORTENED = "shortened by an obstacle"
LOWEST = "no lower"
NO_PROGRESS = "no progress, try another way"
NO_TOOL_CALL = "no tool call"
CAMERA_UNKNOWN = "camera unknown"
LOOKED_AROUND = "looked around"


def flew(distance_m: float) -> str:
    return f"flew {_half_metres(distance_m)} m"


def turned(left_rad: float) -> str:
    """From the angle turned, counter-clockwise positive."""
    degrees = 5 * round(math.degrees(abs(left_rad)) / 5)
    return f"turned {'left' if math.copysign(1.0, left_rad) > 0 else 'right'} {degrees} deg"


def climbed(up_m: float) -> str:
    return f"{'climbed' if math.copysign(1.0, up_m) > 0 else 'descended'} {_half_metres(abs(up_m))} m"


def hovered(seconds: float) -> str:
    return f"hovered {round(seconds)} s"


def finished(reason: str) -> str:
    return f"finished: {reason}"


def result_line(*parts: str | None) -> str:
    """Parts of a result in one line, empty ones left out: `turned right 20 deg, flew 4 m, collision`."""
    return ", ".join(part for part in parts if part)


def _half_metres(distance_m: float) -> str:
    return f"{round(2 * max(distance_m, 0.0)) / 2:g}"
