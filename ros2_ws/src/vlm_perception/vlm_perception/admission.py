"""Admission of a camera's frames to a stream: which frame is due, which replaces which, and what makes a chunk.

The rules themselves are in `frame_rule`; here is the state that they are applied to.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from nav_common.data import CompressedImage, Odometry
from vlm_perception import frame_rule, pictures
from vlm_perception.frame_rule import STAMP_JUMP_S, PoseTrack
from vlm_perception.serving_form import ServingForm

RING_CHUNKS = 64
"""Chunks kept as JPEGs to feed a new stream with: at 0.5 s the last 32 s of flight, about 1 MB at 320x240."""


@dataclass(frozen=True)
class Frame:
    """A compressed picture and when it arrived, s on the stream's clock."""

    image: CompressedImage
    received_s: float

    @property
    def stamp_s(self) -> float:
        return self.image.stamp_s


@dataclass(frozen=True)
class DecodedFrame:
    """`pixels`: RGB uint8 (height, width, 3). `pose`: where it was taken, if that is known."""

    frame: Frame
    pixels: np.ndarray
    pose: Odometry | None = None


@dataclass(frozen=True)
class FrameGroup:
    """Frames that enter the memory together, oldest first. replaces_newest: in place of the newest chunk, which was
    provisional."""

    frames: tuple[DecodedFrame, ...]
    replaces_newest: bool = False

    @property
    def stamps_s(self) -> list[float]:
        return [decoded.frame.stamp_s for decoded in self.frames]


@dataclass(frozen=True)
class FrameCounts:
    """Frames received, refused as broken or out of order, and replaced unread by a newer one."""

    received: int
    broken: int
    replaced: int


class FrameAdmission:
    """Frames of one camera on their way into one stream.

    `receive`, `add_odometry`, `has_frame_from` and `counts` may be called from any thread, the rest by the thread that
    steps the stream. A chunk that `take_chunk` or `flush` gave must be answered by `accept` or `refuse`.

    live: a new frame replaces an unread older one; else (replay) every frame is looked at, in order.
    on_warning: gets a line for each frame that is refused.
    """

    def __init__(self, form: ServingForm, *, live: bool, on_warning: Callable[[str], None]) -> None:
        self._interval_s = form.frame_interval_s
        self._frames_per_chunk = form.frames_per_chunk
        self._live = live
        self._on_warning = on_warning
        self._ring: deque[tuple[Frame, ...]] = deque(maxlen=RING_CHUNKS)
        self._pending: list[DecodedFrame] = []
        """Frames of a chunk that is not full yet."""
        self._closed: list[DecodedFrame] = []
        """Frames of a chunk that ends before it is full, as the next frame has another size."""
        self._newest_admitted_s: float | None = None
        """Stamp of the newest frame in memory, in `_pending`, or (before priming) in the ring."""
        self._newest_pose: Odometry | None = None
        """Where the newest chunk was taken, when it is provisional."""
        self.last_problem = ""
        """Why the last frame that was refused was."""

        self._lock = threading.Lock()  # guards what follows
        self._received = self._broken = self._replaced = 0
        self._track = PoseTrack()
        self._vehicle_offset_s: float | None = None
        """The vehicle's clock, by its newest odometry, minus the stream's clock."""
        self._unread: deque[Frame] = deque()
        self._not_due: Frame | None = None
        """Newest frame that was looked at and not due: a barrier may yet want it."""

    # -- from any thread

    def receive(self, frame: Frame, edge_offset_s: float | None = None) -> None:
        """A frame from the camera. One that is broken, has no stamp or one from the future is counted and refused.

        edge_offset_s: the clock that stamps the frames minus the stream's; None: nothing is known of it. Odometry,
        which that clock stamps too, says it better.
        """
        problem = ""
        try:
            pictures.check(frame.image.data)
            if not (math.isfinite(frame.stamp_s) and frame.stamp_s > 0):
                problem = f"its stamp is {frame.stamp_s}"
        except pictures.BrokenPictureError as error:
            problem = str(error)
        with self._lock:
            self._received += 1
            problem = problem or self._future_problem(frame, edge_offset_s)
            if not problem:
                if self._live and self._unread:
                    self._unread.clear()
                    self._replaced += 1
                self._unread.append(frame)
        if problem:
            self._refuse_frames(1, problem)

    def _future_problem(self, frame: Frame, edge_offset_s: float | None) -> str:
        """With the lock held: why a frame cannot have been taken yet, or "".

        It would end the wait for a frame from after a motion, and all that come after it would be old. A recording
        without odometry says nothing of its camera's clock: there any stamp counts.
        """
        offset_s, whose = self._vehicle_offset_s, "the vehicle's odometry"
        if offset_s is None:
            if edge_offset_s is None or not self._live:
                return ""
            offset_s, whose = edge_offset_s, "this machine's clock"
        ahead_s = frame.stamp_s - frame.received_s - offset_s
        if ahead_s <= STAMP_JUMP_S:
            return ""
        return f"its stamp {frame.stamp_s:.3f} is {ahead_s:.3f} s ahead of {whose}: one clock must stamp both"

    def add_odometry(self, odometry: Odometry, received_s: float) -> bool:
        """Where the vehicle was; tells hovering from flying. False: refused, as it is not finite or its stamp jumps.

        received_s: when it arrived, on the stream's clock.
        """
        if not all(map(math.isfinite, (odometry.stamp_s, *odometry.position, odometry.yaw))):
            return False
        with self._lock:
            follows = self._track.add(odometry)
            if follows:
                self._vehicle_offset_s = odometry.stamp_s - received_s
            return follows

    def has_frame_from(self, earliest_s: float) -> bool:
        """Whether an unread frame is at least so new."""
        with self._lock:
            waiting = [*self._unread, *([self._not_due] if self._not_due else [])]
        return any(frame.stamp_s >= earliest_s for frame in waiting)

    def counts(self) -> FrameCounts:
        with self._lock:
            return FrameCounts(self._received, self._broken, self._replaced)

    # -- by the stepping thread

    @property
    def newest_admitted_s(self) -> float | None:
        """Stamp of the newest frame that is in memory or waits for its chunk to be full."""
        return self._newest_admitted_s

    def next_due_s(self, barrier_s: float | None) -> float:
        """The earliest stamp of the next frame that would be admitted; 0: any. From any thread."""
        return frame_rule.next_due_s(self._newest_admitted_s, self._interval_s, barrier_s)

    def examine(self, barrier_s: float | None) -> bool:
        """Look at one unread frame and admit it if it is due; False: there was none.

        barrier_s: the earliest frame that a generation waits for.
        """
        newest_s = self._newest_admitted_s
        with self._lock:
            frame = self._next_unread(barrier_s)
            if frame is None:
                return False
            out_of_order = newest_s is not None and frame.stamp_s <= newest_s
            if not out_of_order and not self._is_due(frame, barrier_s):
                self._not_due = frame
                return True
            pose = self._track.at(frame.stamp_s)
        if out_of_order:
            problem = f"its stamp {frame.stamp_s:.3f} is not later than {newest_s:.3f}, the newest"
            self._refuse_frames(1, problem)
        else:
            self._admit(frame, pose)
        return True

    def _next_unread(self, barrier_s: float | None) -> Frame | None:
        """With the lock held: the frame to look at; one that was not due may be due for a barrier now."""
        if self._live and self._unread:
            self._not_due = None
        kept = self._not_due
        if kept and self._is_due(kept, barrier_s):
            self._not_due = None
            return kept
        if not self._unread:
            return None
        self._not_due = None
        return self._unread.popleft()

    def _is_due(self, frame: Frame, barrier_s: float | None) -> bool:
        return frame_rule.is_due(frame.stamp_s, self._newest_admitted_s, self._interval_s, barrier_s)

    def _admit(self, frame: Frame, pose: Odometry | None) -> None:
        try:
            decoded = DecodedFrame(frame, pictures.decode(frame.image.data), pose)
        except pictures.BrokenPictureError as error:
            self._refuse_frames(1, str(error))
            return
        if self._pending and self._pending[0].pixels.shape != decoded.pixels.shape:
            self._closed, self._pending = self._pending, []
        self._pending.append(decoded)
        self._newest_admitted_s = frame.stamp_s

    def take_chunk(self) -> FrameGroup | None:
        """A chunk that is complete, once."""
        if self._closed:
            frames, self._closed = self._closed, []
            return self._chunk(frames)
        return self.flush() if len(self._pending) >= self._frames_per_chunk else None

    def flush(self) -> FrameGroup | None:
        """The frames that wait for their chunk to be full, as they are."""
        if not self._pending:
            return None
        frames, self._pending = self._pending, []
        return self._chunk(frames)

    def flush_from(self, earliest_s: float) -> FrameGroup | None:
        """The chunk being filled, if a frame at least so new is in it."""
        return self.flush() if self._pending and self._pending[-1].frame.stamp_s >= earliest_s else None

    def _chunk(self, frames: list[DecodedFrame]) -> FrameGroup:
        poses = [decoded.pose for decoded in frames]
        replaces = bool(self._ring) and frame_rule.replaces(self._newest_pose, poses)
        return FrameGroup(tuple(frames), replaces)

    def accept(self, chunk: FrameGroup) -> None:
        """The chunk is in memory, or would be if a prompt were primed: it is history now."""
        if chunk.replaces_newest:
            self._ring.pop()
        else:
            self._newest_pose = frame_rule.chunk_pose([decoded.pose for decoded in chunk.frames])
        self._ring.append(tuple(decoded.frame for decoded in chunk.frames))

    def refuse(self, chunk: FrameGroup, newest_in_memory_s: float | None, problem: str) -> None:
        """The chunk could not enter the memory, whose newest frame is of `newest_in_memory_s`. The next one is history
        in any case."""
        self._newest_pose = None
        self._newest_admitted_s = self._pending[-1].frame.stamp_s if self._pending else newest_in_memory_s
        self._refuse_frames(len(chunk.frames), problem)

    def history(self) -> Iterable[FrameGroup]:
        """The chunks of the ring, decoded, oldest first: what a new stream is fed with."""
        for frames in list(self._ring):
            yield FrameGroup(
                tuple(DecodedFrame(frame, pictures.decode(frame.image.data)) for frame in frames)
            )

    def clear(self) -> None:
        """Forget every frame and pose: a memory that begins anew."""
        self._ring.clear()
        self._pending, self._closed = [], []
        self._newest_admitted_s = self._newest_pose = None
        with self._lock:
            self._unread.clear()
            self._not_due = None
            self._track = PoseTrack()
            self._vehicle_offset_s = None

    def _refuse_frames(self, frames: int, problem: str) -> None:
        with self._lock:
            self._broken += frames
            self.last_problem = problem
        self._on_warning(f"frame skipped: {problem}")
