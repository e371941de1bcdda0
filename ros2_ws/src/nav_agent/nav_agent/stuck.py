"""Detects a mission without progress: the same call again and again, or turns left and right in alternation."""

from __future__ import annotations

import math
from enum import Enum, auto


class Verdict(Enum):
    FINE = auto()
    WARN = auto()
    STUCK = auto()


REPEATS = 3
"""Equal calls without progress, or turns there and back, that cause the warning; as many again end the goal."""
_MOVED_M = 0.5
_TURNED_RAD = math.radians(5.0)
_OPPOSITE = {"turn_left": "turn_right", "turn_right": "turn_left"}


class StuckDetector:
    """Counts steps without progress: WARN once, then STUCK. Progress resets the count."""

    def __init__(self) -> None:
        self._last_call = ""
        self._idle = 0
        self._last_turn = ""
        self._alternations = 0

    def step(self, tool: str, call: str, moved_m: float, turned_rad: float) -> Verdict:
        """One step: the tool ("" when no tool could be called), the call's line, and what it achieved."""
        progress = moved_m >= _MOVED_M or turned_rad >= _TURNED_RAD
        self._idle = 0 if progress else self._idle + 1 if call == self._last_call else 1
        self._last_call = call
        if moved_m >= _MOVED_M:
            self._last_turn, self._alternations = "", 0
        elif tool in _OPPOSITE:
            self._alternations = self._alternations + 1 if self._last_turn == _OPPOSITE[tool] else 0
            self._last_turn = tool
        worst = max(self._idle, self._alternations)
        if worst >= 2 * REPEATS:
            return Verdict.STUCK
        return Verdict.WARN if worst == REPEATS else Verdict.FINE
