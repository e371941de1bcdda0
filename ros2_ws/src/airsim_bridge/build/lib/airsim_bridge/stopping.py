"""How fast one may go and still stop in time."""

from __future__ import annotations

import math


def speed_that_stops(distance_m: float, deceleration: float, latency_s: float) -> float:
    """Highest speed in m/s from which a vehicle comes to rest within `distance_m`, 0 when that is not positive.

    It keeps its speed for `latency_s` and then slows by `deceleration` (m/s^2), so v t + v^2 / 2a = d.
    """
    if distance_m <= 0:
        return 0.0
    lag = deceleration * latency_s
    return math.sqrt(lag * lag + 2.0 * deceleration * distance_m) - lag
