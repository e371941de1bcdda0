"""What the monitoring page shows, as data: the newest of each topic, short histories, and lamps. No ROS, no page."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import cv2
import numpy as np

from nav_common.data import (
    ActiveFrames,
    CompressedImage,
    Decision,
    DroneState,
    EngineStatus,
    FlyingMode,
    GateMode,
    GoalState,
    LinkState,
    NavigateState,
    Odometry,
    WatchEvent,
)
from nav_common.track import Track

T = TypeVar("T")

SILENT_S = 1.5
"""A source that sent nothing for so long counts as silent: three periods of the slowest one, perception's status, which
comes each 0.5 s (vlm_perception.node.STATUS_PERIOD_S)."""
HISTORY_S = 120.0
_PATH_STEP_M = 0.1
_PATH_POINTS = 1000
_PLOT_PERIOD_S = 0.5
_RECENT_PICTURES = 60
_SAME_PICTURE_S = 0.2
"""The board and the memory take their pictures apart from each other: the nearest within this time stands for it."""
_WATCH_LINES = 20
_THUMBNAIL_WIDTH = 160
_THUMBNAILS_KEPT = 300

Data = (
    ActiveFrames
    | CompressedImage
    | Odometry
    | DroneState
    | EngineStatus
    | Decision
    | GoalState
    | LinkState
    | WatchEvent
)


class Level(StrEnum):
    """Of a lamp. OFF: there is nothing to judge."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    OFF = "off"


@dataclass(frozen=True)
class Lamp:
    """One state, in a colour and in words."""

    name: str
    level: Level
    text: str


@dataclass(frozen=True)
class CacheStrip:
    """Tokens in the cache by what they are; `recalled`: brought back from the archive; `budget`: the most there are."""

    sink: int = 0
    window: int = 0
    recalled: int = 0
    budget: int = 0

    @property
    def free(self) -> int:
        return max(self.budget - self.sink - self.window - self.recalled, 0)


@dataclass(frozen=True)
class Series:
    """A curve: (seconds of this machine's clock, value)."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class MemoryFrame:
    """A frame that answers rest on. `stamp_s` on the edge's clock; `entities`: what it shows, as the identity memory
    knows; `recalled`: brought back from the archive; `seen`: whether the board has a thumbnail of it."""

    stamp_s: float
    entities: str = ""
    recalled: bool = False
    seen: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Everything that the page shows, at `at_s` of this machine's clock."""

    at_s: float
    lamps: tuple[Lamp, ...]
    picture: CompressedImage | None
    decision: Decision | None
    goal: GoalState | None
    state: DroneState | None
    odometry: Odometry | None
    engine: EngineStatus | None
    link: LinkState | None
    cache: CacheStrip
    latencies: tuple[Series, ...]
    ages: tuple[Series, ...]
    path: tuple[tuple[float, ...], ...]
    """East and north of the vehicle, m."""
    watches: tuple[WatchEvent, ...]
    """The newest event of each question, newest first."""
    frames: tuple[MemoryFrame, ...]

    @property
    def emergency(self) -> bool:
        return self.state is not None and self.state.gate_mode is GateMode.EMERGENCY

    @property
    def flying(self) -> bool:
        """Whether a mission is under way."""
        return self.goal is not None and self.goal.state is not NavigateState.ENDED


class Board:
    """Takes in what the graph says and hands out snapshots. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[type, Data] = {}
        self._received_s: dict[type, float] = {}
        self._pictures: deque[CompressedImage] = deque(maxlen=_RECENT_PICTURES)
        self._thumbnails: dict[int, bytes] = {}  # by frame_number
        self._memory: tuple[float, ...] = ()
        self._path = Track(_PATH_STEP_M, _PATH_POINTS)
        self._watches: dict[tuple[str, str], WatchEvent] = {}
        self._rejection: GoalState | None = None
        self._curves: dict[str, deque[tuple[float, float]]] = {
            name: deque(maxlen=int(HISTORY_S / _PLOT_PERIOD_S)) for name in (*_LATENCIES, *_AGES)
        }

    def take(self, data: Data, now_s: float) -> None:
        """Something that was said on a topic."""
        with self._lock:
            kind = type(data)
            if (
                isinstance(data, GoalState) and not data.goal_id
            ):  # a goal that was rejected: none of those that fly
                self._rejection = data
                return
            self._newest[kind], self._received_s[kind] = data, now_s
            if isinstance(data, CompressedImage):
                self._pictures.append(data)
            elif isinstance(data, Odometry):
                self._path.add(data.position[:2])
            elif isinstance(data, WatchEvent):
                self._note_watch(data)
            elif isinstance(data, Decision):
                self._plot("decision", now_s, data.total_ms, 0.0)
                self._plot("first token", now_s, data.ttft_ms, 0.0)
            elif isinstance(data, EngineStatus):
                self._plot("frame into memory", now_s, data.append_ms)
                self._plot("newest frame in memory", now_s, data.frame_age_s)

    def take_memory(self, stamps_s: Sequence[float]) -> None:
        """Which frames the memory holds now, by their stamps on the edge's clock, oldest first."""
        with self._lock:
            self._memory = tuple(stamps_s)
            for stamp_s in stamps_s:
                if frame_number(stamp_s) not in self._thumbnails and (picture := self._nearest(stamp_s)):
                    self._thumbnails[frame_number(stamp_s)] = _thumbnail(picture.data)
            # More than are in memory: some may be recalled later.
            while len(self._thumbnails) > len(stamps_s) + _THUMBNAILS_KEPT:
                del self._thumbnails[next(iter(self._thumbnails))]

    def tick(self, now_s: float) -> None:
        """Plot what nobody says: how long ago odometry came. To be called at least each 0.5 s."""
        with self._lock:
            if Odometry in self._received_s:
                self._plot("odometry", now_s, now_s - self._received_s[Odometry])

    def picture(self) -> CompressedImage | None:
        """The newest."""
        with self._lock:
            found = self._newest.get(CompressedImage)
            return found if isinstance(found, CompressedImage) else None

    def thumbnail(self, stamp_s: float) -> bytes | None:
        """A small JPEG of a frame in memory; None where the board never saw it."""
        return self.thumbnail_of(frame_number(stamp_s))

    def thumbnail_of(self, number: int) -> bytes | None:
        """The same, by its frame_number."""
        with self._lock:
            return self._thumbnails.get(number) or None

    def rejection(self) -> str:
        """Why the agent rejected the goal that it rejected last."""
        with self._lock:
            return self._rejection.reason if self._rejection else ""

    def forget_rejection(self) -> None:
        with self._lock:
            self._rejection = None

    def snapshot(self, now_s: float) -> Snapshot:
        with self._lock:
            received = _Received(self._newest, self._received_s, now_s)
            return Snapshot(
                at_s=now_s,
                lamps=_lamps(received),
                picture=received.get(CompressedImage),
                decision=received.get(Decision),
                goal=received.get(GoalState),
                state=received.get(DroneState),
                odometry=received.get(Odometry),
                engine=received.get(EngineStatus),
                link=received.get(LinkState),
                cache=_strip(received.get(EngineStatus)),
                latencies=self._series(_LATENCIES, "ms"),
                ages=self._series(_AGES, "s"),
                path=tuple(self._path.points()),
                watches=tuple(sorted(self._watches.values(), key=lambda event: -event.stamp_s)),
                frames=self._memory_frames(received.get(ActiveFrames)),
            )

    def _note_watch(self, event: WatchEvent) -> None:
        self._watches.pop((event.owner, event.watch), None)
        self._watches[event.owner, event.watch] = event
        while len(self._watches) > _WATCH_LINES:
            del self._watches[next(iter(self._watches))]

    def _plot(self, name: str, at_s: float, value: float, period_s: float = _PLOT_PERIOD_S) -> None:
        curve = self._curves[name]
        if math.isfinite(value) and (not curve or at_s - curve[-1][0] >= period_s):
            curve.append((at_s, value))

    def _series(self, names: Sequence[str], unit: str) -> tuple[Series, ...]:
        return tuple(Series(name, unit, tuple(self._curves[name])) for name in names)

    def _memory_frames(self, active: ActiveFrames | None) -> tuple[MemoryFrame, ...]:
        """Those in the memory and those that the identity memory holds active, each once."""
        known = {stamp_s: MemoryFrame(stamp_s) for stamp_s in self._memory}
        if active is not None:
            shown = zip(active.frames, active.frame_stamps_s, active.entities, strict=False)
            for name, stamp_s, entities in shown:
                known[stamp_s] = MemoryFrame(stamp_s, entities.replace(",", ", "), name in active.recalled)
        ordered = sorted(known.values(), key=lambda frame: frame.stamp_s)
        return tuple(
            replace(frame, seen=bool(self._thumbnails.get(frame_number(frame.stamp_s)))) for frame in ordered
        )

    def _nearest(self, stamp_s: float) -> CompressedImage | None:
        if not self._pictures or stamp_s < self._pictures[0].stamp_s - _SAME_PICTURE_S:
            return None
        nearest = min(self._pictures, key=lambda picture: abs(picture.stamp_s - stamp_s))
        return nearest if abs(nearest.stamp_s - stamp_s) <= _SAME_PICTURE_S else None


def frame_number(stamp_s: float) -> int:
    """What names a frame in an address: its stamp in ns, as which a float of seconds does not always come back."""
    return round(stamp_s * 1e9)


_LATENCIES = ("decision", "first token", "frame into memory")
_AGES = ("newest frame in memory", "odometry")


class _Received:
    """The newest of each kind, and how long ago it came."""

    def __init__(self, newest: dict[type, Data], received_s: dict[type, float], now_s: float) -> None:
        self._newest = newest
        self._received_s = received_s
        self._now_s = now_s

    def get(self, kind: type[T]) -> T | None:
        found = self._newest.get(kind)
        return found if isinstance(found, kind) else None

    def fresh(self, kind: type[T]) -> T | None:
        """None where it was never received, or not for SILENT_S."""
        return self.get(kind) if self._now_s - self._received_s.get(kind, -math.inf) <= SILENT_S else None

    def silence(self, kind: type) -> str:
        if kind not in self._received_s:
            return "no message received"
        return f"silent for {self._now_s - self._received_s[kind]:.0f} s"


def _lamps(received: _Received) -> tuple[Lamp, ...]:
    return (
        _drone_lamp(received),
        _gate_lamp(received),
        _camera_lamp(received),
        _memory_lamp(received),
        _mission_lamp(received.get(GoalState)),
        _link_lamp(received),
    )


def _drone_lamp(received: _Received) -> Lamp:
    state = received.fresh(DroneState)
    if state is None:
        return Lamp("Drone", Level.ERROR, received.silence(DroneState))
    if not state.connected:
        return Lamp("Drone", Level.ERROR, "not connected")
    if state.fault:
        return Lamp("Drone", Level.ERROR, state.fault)
    if received.fresh(Odometry) is None:
        return Lamp("Drone", Level.ERROR, f"odometry: {received.silence(Odometry)}")
    mode = FlyingMode(state.flying_mode).name.lower().replace("_", " ")
    if state.collision_count:
        return Lamp("Drone", Level.WARNING, f"{mode}, {state.collision_count} contacts")
    return Lamp("Drone", Level.OK, mode)


_GATE_LEVELS = {
    GateMode.ACTIVE: Level.OK,
    GateMode.HOLD: Level.WARNING,
    GateMode.BRAKE: Level.WARNING,
    GateMode.LAND: Level.WARNING,
    GateMode.EMERGENCY: Level.ERROR,
}


def _gate_lamp(received: _Received) -> Lamp:
    state = received.fresh(DroneState)
    if state is None:
        return Lamp("Gate", Level.OFF, "unknown")
    mode = GateMode(state.gate_mode)
    if mode is GateMode.HOLD and state.landed:
        return Lamp("Gate", Level.OFF, "HOLD, landed")
    reason = f": {state.gate_reason}" if state.gate_reason and mode is not GateMode.ACTIVE else ""
    return Lamp("Gate", _GATE_LEVELS[mode], mode.name + reason)


def _camera_lamp(received: _Received) -> Lamp:
    if received.fresh(CompressedImage) is None:
        return Lamp("Camera", Level.ERROR, received.silence(CompressedImage))
    return Lamp("Camera", Level.OK, "live")


def _memory_lamp(received: _Received) -> Lamp:
    engine = received.fresh(EngineStatus)
    if engine is None:
        return Lamp("Memory", Level.ERROR, received.silence(EngineStatus))
    if not engine.chunks:
        return Lamp("Memory", Level.OFF, "empty")
    return Lamp("Memory", Level.OK, f"{engine.chunks} chunks, {engine.cache_use:.0%} full")


def _mission_lamp(goal: GoalState | None) -> Lamp:
    if goal is None:
        return Lamp("Mission", Level.OFF, "none")
    if goal.state is NavigateState.ENDED:
        return Lamp("Mission", Level.OFF, f"ended: {goal.outcome.name.lower().replace('_', ' ')}")
    return Lamp("Mission", Level.OK, goal.state.name.lower().replace("_", " "))


def _link_lamp(received: _Received) -> Lamp:
    link = received.get(LinkState)
    if link is None:
        return Lamp("Link", Level.OFF, "one machine")
    if not link.up:
        return Lamp("Link", Level.ERROR, link.fault or "down")
    return Lamp("Link", Level.OK, f"{link.round_trip_ms:.0f} ms")


def _strip(engine: EngineStatus | None) -> CacheStrip:
    if engine is None:
        return CacheStrip()
    others = engine.cached_tokens - engine.sink_tokens - engine.window_tokens
    return CacheStrip(engine.sink_tokens, engine.window_tokens, max(others, 0), engine.budget_tokens)


def _thumbnail(jpeg: bytes) -> bytes:
    """A JPEG of the picture in _THUMBNAIL_WIDTH; b"" for what is no picture."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_2) if jpeg else None
    if pixels is None:
        return b""
    height, width = pixels.shape[:2]
    size = (_THUMBNAIL_WIDTH, max(1, round(height * _THUMBNAIL_WIDTH / width)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()
