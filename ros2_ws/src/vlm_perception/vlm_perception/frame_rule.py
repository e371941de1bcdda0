"""Which frames enter the memory: one each interval by stamp, the barrier frame at once, and no history lost while
hovering.

Pure rules, shared by the memory's streams and by whoever trains a model on the streams that it will see. Stamps are in
seconds of the vehicle's clock.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence

from nav_common.data import Odometry

# A 10 Hz camera with jittering stamps would miss an interval of 0.5 s by microseconds and then be 0.1 s late each
# time.
INTERVAL_SLACK = 0.1
"""Part of the interval by which a frame may be early."""

# Hovering in the simulator sways by under 0.05 m and 0.5 deg; the smallest motion offered is 1 m or 10 deg.
STILL_DISTANCE_M = 0.15
STILL_YAW_RAD = math.radians(3.0)

STAMP_JUMP_S = 1.0
"""Odometry comes at 10 Hz and more; a stamp so much later than the newest is a jump. A frame so much ahead of the
vehicle's clock is from the future; one that overtakes odometry on a slow link is not."""
JUMPS_IN_A_ROW = 10
"""So many jumps with no sample of the track between them: the clock was set, or the link was down (0.3 s at 30 Hz). A
second sender beside the first has samples of the track between its own."""


def is_still(a: Odometry | None, b: Odometry | None) -> bool:
    """Whether nothing moved from `a` to `b`. Without knowledge: something did."""
    if a is None or b is None:
        return False
    return (
        math.dist(a.position, b.position) <= STILL_DISTANCE_M
        and abs(math.remainder(b.yaw - a.yaw, 2 * math.pi)) <= STILL_YAW_RAD
    )


def is_due(stamp_s: float, newest_s: float | None, interval_s: float, barrier_s: float | None = None) -> bool:
    """Whether a frame goes into the memory whose newest frame is of `newest_s` (None: empty).

    barrier_s: a generation waits for the first frame at least this new.
    """
    if newest_s is not None and stamp_s <= newest_s:
        return False
    return stamp_s >= next_due_s(newest_s, interval_s, barrier_s)


def next_due_s(newest_s: float | None, interval_s: float, barrier_s: float | None = None) -> float:
    """The earliest stamp at which a frame is due (0: any), so that a camera far away need send no other."""
    if newest_s is None:
        return 0.0
    regular_s = newest_s + interval_s * (1 - INTERVAL_SLACK)
    return min(regular_s, barrier_s) if barrier_s is not None and barrier_s > newest_s else regular_s


def chunk_pose(poses: Sequence[Odometry | None]) -> Odometry | None:
    """The one pose at which all frames of a chunk were taken, or None where it moved or nothing is known."""
    first = poses[0]
    return first if all(is_still(first, pose) for pose in poses) else None


def replaces(newest: Odometry | None, poses: Sequence[Odometry | None]) -> bool:
    """Whether a chunk taken at `poses` takes the place of the newest one, taken at `newest` (see `chunk_pose`).

    While the drone hovers, the newest chunk is provisional. It keeps the pose of the first of those it replaced, so
    that a slow drift is seen.
    """
    return all(is_still(newest, pose) for pose in poses)


class PoseTrack:
    """The last few poses, to be found by stamp. A pose counts for a frame when taken within `tolerance_s` of it.

    A sample whose stamp jumps is refused, so that a second sender with another clock does not disturb the track;
    `JUMPS_IN_A_ROW` of them begin it anew. Of two senders the one heard first is followed: the stamps do not say which
    is right, and with the wrong one no pose is found, so that every frame is history.
    """

    def __init__(self, tolerance_s: float = 0.15, length: int = 400) -> None:
        self._poses: deque[Odometry] = deque(maxlen=length)
        self._jumped: list[Odometry] = []
        self._tolerance_s = tolerance_s

    def add(self, odometry: Odometry) -> bool:
        """Whether the sample belongs to the track."""
        if not self._poses or self._follows(self._poses[-1], odometry):
            self._jumped.clear()
        else:
            if self._jumped and not self._follows(self._jumped[-1], odometry):
                self._jumped.clear()
            self._jumped.append(odometry)
            if len(self._jumped) < JUMPS_IN_A_ROW:
                return False
            self._poses.clear()
            self._jumped.clear()
        self._poses.append(odometry)
        return True

    @staticmethod
    def _follows(newest: Odometry, odometry: Odometry) -> bool:
        return 0 <= odometry.stamp_s - newest.stamp_s <= STAMP_JUMP_S

    def at(self, stamp_s: float) -> Odometry | None:
        """The pose nearest to the stamp, or None."""
        index = bisect.bisect_left(self._poses, stamp_s, key=lambda pose: pose.stamp_s)
        near = [self._poses[i] for i in (index - 1, index) if 0 <= i < len(self._poses)]
        best = min(near, key=lambda pose: abs(pose.stamp_s - stamp_s), default=None)
        return best if best and abs(best.stamp_s - stamp_s) <= self._tolerance_s else None
