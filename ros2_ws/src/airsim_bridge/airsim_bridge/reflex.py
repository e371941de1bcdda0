"""The reflex: from the depth camera, no faster than one can stop. Plain Python; see DepthReflex."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np

from airsim_bridge.stopping import speed_that_stops
from nav_common.data import LEVEL
from nav_common.frames import Quaternion, Vector, rotate

# A motion slowed by less than this is not counted as an intervention, m/s.
NOTICEABLE_M_S = 0.05


@dataclass(frozen=True)
class ReflexSettings:
    """How the reflex sees its corridor and its vehicle."""

    half_width_m: float = 0.7
    """Of the corridor, to each side: half the vehicle (0.4 m) and a margin for drift while stopping."""
    half_height_m: float = 0.5
    """Of the corridor, up and down."""
    margin_m: float = 1.0
    """Left between the camera and the obstacle at rest: the vehicle's nose, and an overshoot."""
    deceleration: float = 2.5
    """What the vehicle can be counted on to slow down by, m/s^2; the simulator brakes with up to 6."""
    latency_s: float = 0.25
    """From a command to its effect. The age of the picture is measured and added."""
    picture_age_s: float = 1.0
    """With a picture older than this there is no forward motion."""
    range_m: float = 40.0
    """Depth beyond this is no depth."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"reflex setting {name} is {value}, must be positive and finite")


class DepthReflex:
    """Limits forward speed by the free distance ahead. Thread-safe.

    The corridor is a box along the camera's axis, as wide and high as the vehicle with a margin. Sideways motion
    bends it: the box is sheared along the direction of flight, so that what one drifts towards counts too.
    """

    def __init__(self, settings: ReflexSettings | None = None) -> None:
        self.settings = settings or ReflexSettings()
        self.interventions = 0
        self.reason = ""
        self._lock = threading.Lock()
        self._stamp = -math.inf
        self._points = np.zeros((0, 3), np.float32)

    def update(self, depth: np.ndarray, stamp: float, fov: float, tilt: Quaternion = LEVEL) -> None:
        """A picture of planar depth [height, width] in m, taken at `stamp` with a horizontal field of view `fov` (rad)
        by a camera that was tilted against the horizon by `tilt`.

        A stamp that does not advance is a frozen picture: it counts as no picture.
        """
        points = obstacle_points(depth, fov, self.settings.range_m) @ rotation_matrix(tilt).T
        with self._lock:
            if stamp > self._stamp:
                self._stamp = stamp
                self._points = points

    def limit(self, velocity: Vector, now: float) -> Vector:
        """`velocity` (forward, left, up) such that the vehicle can stop before what it sees. Only its size and its
        forward part change: backwards, sideways, up and down are not seen by this camera."""
        with self._lock:
            limited, reason = self._limit(velocity, now)
            if reason and not self.reason:
                self.interventions += 1
            self.reason = reason
            return limited

    def _limit(self, velocity: Vector, now: float) -> tuple[Vector, str]:
        settings = self.settings
        if velocity.x <= 0.0:
            return velocity, ""
        age = now - self._stamp
        if age > settings.picture_age_s:
            words = f"{age:.1f} s old" if math.isfinite(age) else "missing"
            return velocity._replace(x=0.0), f"no forward motion: depth picture is {words}"
        free = self.free_distance(velocity) - settings.margin_m
        slant = math.hypot(*velocity) / velocity.x  # way flown for each metre forward
        latency_s = settings.latency_s + max(age, 0.0)
        allowed = speed_that_stops(free * slant, settings.deceleration, latency_s) / slant
        if velocity.x <= allowed + NOTICEABLE_M_S:
            return velocity._replace(x=min(velocity.x, allowed)), ""
        scale = allowed / velocity.x
        reason = f"{free + settings.margin_m:.1f} m free: {velocity.x:.1f} m/s limited to {allowed:.1f}"
        return Vector(allowed, velocity.y * scale, velocity.z * scale), reason

    def free_distance(self, velocity: Vector) -> float:
        """Metres ahead of the camera until something stands in the corridor along `velocity`; `range_m` at most."""
        if self._points.shape[0] == 0:
            return self.settings.range_m
        forward, left, up = self._points.T
        sideways, rise = velocity.y / velocity.x, velocity.z / velocity.x
        # The corridor is as wide across its own direction; across the camera's it is wider by the slant.
        width = self.settings.half_width_m * math.hypot(1.0, sideways)
        height = self.settings.half_height_m * math.hypot(1.0, rise)
        inside = (np.abs(left - sideways * forward) < width) & (np.abs(up - rise * forward) < height)
        return float(forward[inside].min()) if inside.any() else self.settings.range_m


def obstacle_points(depth: np.ndarray, fov: float, range_m: float) -> np.ndarray:
    """Points of a planar depth picture as [n, 3]: forward, left, up from the camera, m.

    What is farther than `range_m` is left out. A pixel that is no distance (NaN, zero, negative) is taken for an
    obstacle at the lens: what one cannot see, one does not fly into.

    Raises:
        ValueError: the picture has another shape than [height, width], or no pixels.
    """
    if depth.ndim != 2 or depth.size == 0:
        raise ValueError(f"depth picture has shape {depth.shape}, must be [height, width]")
    height, width = depth.shape
    focal = 0.5 * width / math.tan(0.5 * fov)
    near = np.where(depth > 0.0, depth, 0.0)
    rows, columns = np.nonzero(near < range_m)
    forward = near[rows, columns].astype(np.float32)
    left = ((0.5 * width - 0.5) - columns) * forward / focal
    up = ((0.5 * height - 0.5) - rows) * forward / focal
    return np.stack([forward, left, up], axis=1).astype(np.float32)


def rotation_matrix(q: Quaternion) -> np.ndarray:
    """Of a unit quaternion, [3, 3] float32."""
    columns = [rotate(q, Vector(*axis)) for axis in np.eye(3).tolist()]
    return np.array(columns, dtype=np.float32).T
