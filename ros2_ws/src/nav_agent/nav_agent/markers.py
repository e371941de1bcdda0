"""The flight as markers, which Foxglove and RViz draw in three dimensions: the way flown, each decision where it was
taken, and where each goal ended.

A marker array holds the whole drawing, not what is new: a viewer that jumps to some moment of a recording is given
only the last message before it. Its size is bounded.
"""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from dataclasses import dataclass, replace

from nav_agent import toolset
from nav_common import topics
from nav_common.data import (
    LEVEL,
    ZERO,
    Color,
    Decision,
    GenerateStatus,
    GoalState,
    Marker,
    MarkerAction,
    MarkerArray,
    MarkerType,
    NavigateState,
    Odometry,
    Outcome,
)
from nav_common.frames import Quaternion, Vector
from nav_common.track import Track

PERIOD_S = 1.0
"""At most so often, while the vehicle moves."""
MOST_PLACES = 64
"""Decisions and goals' ends that are drawn, the newest: with MOST_POINTS about 40 KB."""
MOST_POINTS = 512
"""Of the way flown: one each 0.25 m up to 128 m, each 16 m after an hour at 2 m/s."""
STEP_M = 0.25
_LONGEST_TEXT = 80

_WAY = Color(0.25, 0.5, 1.0)
_DECISION = Color(1.0, 0.75, 0.0)
_FAILED = Color(1.0, 0.25, 0.25)
_FINISHED = Color(0.25, 0.75, 0.25)
_LINE = Vector(0.08, 0.0, 0.0)
_ARROW = Vector(1.2, 0.12, 0.12)
_BALL = Vector(0.5, 0.5, 0.5)
_TEXT = Vector(0.0, 0.0, 0.4)
_ABOVE_M = 0.6
_SAME_PLACE_M = 0.5
_MOST_LEVELS = 8


@dataclass(frozen=True)
class _Place:
    """Where something was decided or ended. `level`: how many texts of the same place stand below its own."""

    position: Vector
    orientation: Quaternion
    text: str
    color: Color
    end: bool
    level: int


class FlightMarkers:
    """Takes in what happens and draws it. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._track = Track(STEP_M, MOST_POINTS)
        self._places: deque[_Place] = deque(maxlen=MOST_PLACES)
        self._odometry: Odometry | None = None
        self._changed = False

    def take_odometry(self, odometry: Odometry) -> None:
        with self._lock:
            self._odometry = odometry
            self._changed |= self._track.add(odometry.position)

    def take_decision(self, decision: Decision) -> None:
        """Drawn where the vehicle is: it hovers where it decides."""
        failed = decision.status is not GenerateStatus.OK
        words = decision.status.name.lower() if failed else _call_words(decision)
        self._add(f"{decision.step}: {words}", _FAILED if failed else _DECISION, end=False)

    def take_goal_state(self, state: GoalState) -> None:
        """Drawn when it says that a goal ended; one that was rejected has no id, and no end."""
        if state.state is not NavigateState.ENDED or not state.goal_id:
            return
        finished = state.outcome is Outcome.FINISHED
        words = f"{state.instruction}: {state.reason or state.outcome.name.lower()}"
        self._add(words, _FINISHED if finished else _FAILED, end=True)

    def draw(self, stamp_s: float) -> MarkerArray | None:
        """Everything, or None where nothing is new. `stamp_s` on the agent's clock."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            way = tuple(Vector(*point) for point in self._track.points())
            places = tuple(self._places)
            frame_id = self._odometry.frame_id if self._odometry else topics.ODOM_FRAME

        drawn = [Marker(stamp_s, action=MarkerAction.DELETEALL, frame_id=frame_id)]
        if len(way) > 1:  # viewers take a line of one point for a mistake
            line = Marker(
                stamp_s, "way", type=MarkerType.LINE_STRIP, scale=_LINE, color=_WAY, frame_id=frame_id
            )
            drawn.append(replace(line, points=way))
        for number, place in enumerate(places):
            drawn += _marks(place, Marker(stamp_s, id=number, color=place.color, frame_id=frame_id))
        return MarkerArray(tuple(drawn))

    def _add(self, text: str, color: Color, *, end: bool) -> None:
        with self._lock:
            here = self._odometry
            position, orientation = (here.position, here.orientation) if here else (ZERO, LEVEL)
            before = self._places[-1] if self._places else None
            stays = before is not None and math.dist(before.position, position) < _SAME_PLACE_M
            level = (before.level + 1) % _MOST_LEVELS if before is not None and stays else 0
            shown = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
            self._places.append(_Place(position, orientation, shown, color, end, level))
            self._changed = True


def _marks(place: _Place, mark: Marker) -> tuple[Marker, Marker]:
    """A shape and its words, made of `mark`."""
    ns, shape, size = (
        ("ends", MarkerType.SPHERE, _BALL) if place.end else ("decisions", MarkerType.ARROW, _ARROW)
    )
    east, north, up = place.position
    above = Vector(east, north, up + _ABOVE_M * (1 + place.level))
    return (
        replace(mark, ns=ns, type=shape, scale=size, position=place.position, orientation=place.orientation),
        replace(
            mark,
            ns=f"{ns}: words",
            type=MarkerType.TEXT_VIEW_FACING,
            scale=_TEXT,
            position=above,
            text=place.text,
        ),
    )


def _call_words(decision: Decision) -> str:
    return toolset.call_line(decision.tool, json.loads(decision.arguments)) if decision.tool else "no call"
