"""What perception says of its health on /diagnostics, from its status, its guard and the time. Without ROS."""

from __future__ import annotations

import math

from nav_common.data import EngineStatus
from nav_common.diagnostics import Health, Level
from vlm_perception.guard import Guard, Record

NO_FRAMES_S = 5.0
"""A camera at 1 Hz with a bad link still brings a frame in this time; a decision waits 10 s for one."""


class HealthReport:
    """Compares each status with the one before. Times in seconds of any steady clock."""

    def __init__(self, now_s: float) -> None:
        self._last = EngineStatus()
        self._guarded = Record()
        self._received_s = now_s

    def __call__(self, status: EngineStatus, guard: Guard, now_s: float) -> Health:
        last, self._last = self._last, status
        guarded, self._guarded = self._guarded, guard.record()
        if status.frames_received != last.frames_received:
            self._received_s = now_s
        broken = status.frames_broken - last.frames_broken
        silence_s = now_s - self._received_s
        values = {
            "backend": status.backend,
            "primed": bool(status.cached_tokens),
            "cached_tokens": f"{status.cached_tokens} of {status.budget_tokens} ({100 * status.cache_use:.0f} %)",
            "frame_age_s": f"{status.frame_age_s:.2f}",
            "since_last_frame_s": f"{silence_s:.1f}",
            "append_ms": f"{status.append_ms:.1f}",
            "ask_ms": f"{status.ask_ms:.1f}",
            "frames_received": status.frames_received,
            "frames_broken": status.frames_broken,
            "frames_replaced": status.frames_replaced,
            "memory_resets": status.memory_resets,
            "rss_mib": f"{status.rss_mib:.0f}",
            "gpu_mib": f"{status.gpu_mib:.0f}",
            **{f"guard {name}": value for name, value in _counters(self._guarded).items()},
        }
        if guard.restart_due:
            return Health(Level.ERROR, f"about to be started anew: {guard.restart_due}", values)
        if self._guarded.errors != guarded.errors:
            return Health(Level.ERROR, f"a request failed: {self._guarded.last_error}", values)
        if broken and status.frames_received - last.frames_received == broken:
            return Health(Level.ERROR, f"all of the last {broken} frames were refused: see the log", values)
        if broken:
            return Health(Level.WARN, f"{broken} frames were refused: see the log", values)
        if self._guarded.breaks != guarded.breaks or self._guarded.alerts != guarded.alerts:
            slow = f"at most {self._guarded.latencies.max_ms:.0f} ms so far"
            return Health(Level.WARN, f"the model is slow ({slow}): see the log", values)
        if silence_s > NO_FRAMES_S:
            camera = "check the camera and the link"
            return Health(Level.WARN, f"no frame for {math.floor(silence_s)} s: {camera}", values)
        if not status.cached_tokens:
            return Health(Level.OK, "no prompt is primed yet", values)
        return Health(Level.OK, "serving", values)


def _counters(record: Record) -> dict[str, object]:
    """The guard's flat numbers; latencies in ms."""
    flat = {name: value for name, value in record.counters().items() if not isinstance(value, dict)}
    return {name: f"{value:.1f}" if isinstance(value, float) else value for name, value in flat.items()}
