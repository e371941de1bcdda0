"""Stamps as seconds and as the two integers of builtin_interfaces/Time."""

from __future__ import annotations

import math
from typing import Protocol


class TimeLike(Protocol):
    """builtin_interfaces/Time, or anything with its two fields."""

    sec: int
    nanosec: int


def to_seconds(stamp: TimeLike) -> float:
    """Seconds; float64 holds today's Unix time to about 0.2 microseconds."""
    return stamp.sec + stamp.nanosec * 1e-9


def to_nanoseconds(stamp: TimeLike) -> int:
    """Nanoseconds, exact."""
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def split(seconds: float) -> tuple[int, int]:
    """(sec, nanosec) of a time in seconds.

    Raises:
        ValueError: not finite, or outside what an int32 of seconds holds.
    """
    if not math.isfinite(seconds) or not -(2**31) <= seconds < 2**31:
        raise ValueError(f"time {seconds} s does not fit a ROS stamp (int32 seconds)")
    sec = math.floor(seconds)
    nanosec = round((seconds - sec) * 1e9)
    return (sec, nanosec) if nanosec < 10**9 else (sec + 1, 0)
