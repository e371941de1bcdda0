"""Which frames enter the memory: one each interval by stamp, the barrier frame at once, and no history lost while
hovering.

Pure rules, shared by the worker and by whoever trains a model on the streams that it will see.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

# A 10 Hz camera with jittering stamps would miss an interval of 0.5 s by microseconds and then be 0.1 s late each
# time.
INTERVAL_SLACK = 0.1
"""Part of the interval by which a frame may be early."""

# Hovering in the simulator sways by under 0.05 m and 0.5 deg; the smallest motion offered is 1 m or 10 deg.
STILL_DISTANCE_M = 0.15
STILL_YAW_RAD = math.radians(3.0)


@dataclass(frozen=True)
class Pose:
    """Where the camera was: stamp in seconds, position in metres and yaw in radians, in any fixed frame."""

    stamp: float
    x: float
    y: float
    z: float
    yaw: float


def is_still(a: Pose | None, b: Pose | None) -> bool:
    """Whether nothing moved from `a` to `b`. Without knowledge: something did."""
    if a is None or b is None:
        return False
    return (
        math.dist((a.x, a.y, a.z), (b.x, b.y, b.z)) <= STILL_DISTANCE_M
        and abs(math.remainder(b.yaw - a.yaw, 2 * math.pi)) <= STILL_YAW_RAD
    )


def is_due(stamp: float, newest: float | None, interval_s: float, barrier: float | None = None) -> bool:
    """Whether a frame goes into the memory whose newest frame is of `newest` (seconds; None: empty).

    barrier: somebody waits for the first frame at least this new.
    """
    if newest is None:
        return True
    if stamp <= newest:
        return False
    return stamp - newest >= interval_s * (1 - INTERVAL_SLACK) or (
        barrier is not None and newest < barrier <= stamp
    )


def chunk_pose(poses: Sequence[Pose | None]) -> Pose | None:
    """The one pose at which all frames of a chunk were taken, or None where it moved or nothing is known."""
    first = poses[0]
    return first if all(is_still(first, pose) for pose in poses) else None


def replaces(newest: Pose | None, poses: Sequence[Pose | None]) -> bool:
    """Whether a chunk taken at `poses` takes the place of the newest one, taken at `newest` (see `chunk_pose`).

    While the drone hovers, the newest chunk is provisional. It keeps the pose of the first of those it replaced, so
    that a slow drift is seen.
    """
    return all(is_still(newest, pose) for pose in poses)


class PoseTrack:
    """The last few poses, to be found by stamp. A pose counts for a frame when taken within `tolerance_s` of it."""

    def __init__(self, tolerance_s: float = 0.15, length: int = 400) -> None:
        self._poses: deque[Pose] = deque(maxlen=length)
        self._tolerance_s = tolerance_s

    def add(self, pose: Pose) -> None:
        """Later than all before; an earlier one begins the track anew (the clock was set back)."""
        if self._poses and pose.stamp < self._poses[-1].stamp:
            self._poses.clear()
        self._poses.append(pose)

    def at(self, stamp: float) -> Pose | None:
        """The pose nearest to the stamp, or None."""
        index = bisect.bisect_left(self._poses, stamp, key=lambda pose: pose.stamp)
        near = [self._poses[i] for i in (index - 1, index) if 0 <= i < len(self._poses)]
        best = min(near, key=lambda pose: abs(pose.stamp - stamp), default=None)
        return best if best and abs(best.stamp - stamp) <= self._tolerance_s else None
