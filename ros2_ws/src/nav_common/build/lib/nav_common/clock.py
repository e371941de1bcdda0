"""Time as a thing that is passed in: the wall's, or a virtual one that advances as fast as its callbacks run."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Seconds that never run backwards."""

    def now(self) -> float:
        """Seconds on this clock."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Return once `duration_s` seconds of this clock have passed."""
        ...


class WallClock:
    """The machine's monotonic clock, set once to Unix time, so that its readings serve as ROS stamps."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()

    def sleep(self, duration_s: float) -> None:
        if duration_s > 0:
            time.sleep(duration_s)


class Timer:
    """A callback of a VirtualClock, until cancelled."""

    def __init__(self, callback: Callable[[], None], period_s: float | None) -> None:
        self._callback = callback
        self._period_s = period_s
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True


class VirtualClock:
    """A clock for one thread that jumps from callback to callback; `sleep` runs all that falls due meanwhile.

    Callbacks that fall due at the same instant run in the order in which they were scheduled, so a run is repeatable.
    A callback must not sleep.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s
        self._order = itertools.count()
        self._due: list[tuple[float, int, Timer]] = []
        self._in_callback = False

    def now(self) -> float:
        return self._now

    def call_at(self, time_s: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once at `time_s`, or at the next sleep if that is past."""
        timer = Timer(callback, None)
        self._push(time_s, timer)
        return timer

    def call_every(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` each `period_s` seconds, first one period from now."""
        if period_s <= 0:
            raise ValueError(f"period_s is {period_s}, must be positive")
        timer = Timer(callback, period_s)
        self._push(self._now + period_s, timer)
        return timer

    def sleep(self, duration_s: float) -> None:
        if self._in_callback:
            raise RuntimeError("a callback of a VirtualClock must not sleep: schedule with call_at instead")
        end = self._now + max(duration_s, 0.0)
        while self._due and self._due[0][0] <= end:
            due_s, _, timer = heapq.heappop(self._due)
            if timer._cancelled:
                continue
            self._now = max(self._now, due_s)
            self._in_callback = True
            try:
                timer._callback()
            finally:
                self._in_callback = False
            if timer._period_s is not None and not timer._cancelled:
                self._push(due_s + timer._period_s, timer)
        self._now = end

    def _push(self, time_s: float, timer: Timer) -> None:
        heapq.heappush(self._due, (time_s, next(self._order), timer))


def wait_until(clock: Clock, condition: Callable[[], bool], timeout_s: float, period_s: float = 0.01) -> bool:
    """Whether `condition` came true within `timeout_s`, looked at each `period_s` of `clock`."""
    end = clock.now() + timeout_s
    while not condition():
        remaining = end - clock.now()
        if remaining <= 0:
            return False
        clock.sleep(min(period_s, remaining))
    return True
