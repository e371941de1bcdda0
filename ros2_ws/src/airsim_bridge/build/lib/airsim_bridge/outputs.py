"""Where what the bridge sees goes to: the protocol, and several such outputs as one that cannot fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from nav_common.clock import Clock
from nav_common.data import CameraInfo, CompressedImage, DepthImage, DroneState, Imu, Odometry

# The same trouble of the same output is logged again after this long.
LOG_AGAIN_S = 10.0


class Outputs(Protocol):
    """Takes what the bridge sees. Called from its threads; must not block.

    `camera` is the topic's name of a camera ("front"). Stamps are on the edge's clock.
    """

    def on_odometry(self, odometry: Odometry) -> None: ...
    def on_state(self, state: DroneState) -> None: ...
    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None: ...
    def on_depth(self, camera: str, depth: DepthImage) -> None: ...
    def on_imu(self, imu: Imu) -> None: ...
    def log(self, text: str) -> None: ...


class Throttle:
    """Lets the first of the same kind pass, and then one each `period_s`. Thread-safe."""

    def __init__(self, clock: Clock, period_s: float = LOG_AGAIN_S) -> None:
        self._clock = clock
        self._period_s = period_s
        self._passed_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def passes(self, kind: str) -> bool:
        now = self._clock.now()
        with self._lock:
            # A clock that was set back must not keep it shut.
            if 0.0 <= now - self._passed_at.get(kind, -1e9) < self._period_s:
                return False
            self._passed_at[kind] = now
            return True


class Fanout:
    """Several outputs as one.

    What one of them raises (a recorder's full disk) is that output's trouble: it is counted and logged, and keeps
    neither the others nor the bridge from their work.
    """

    def __init__(self, clock: Clock, *outputs: Outputs) -> None:
        self.failures = 0
        self._outputs = outputs
        self._throttle = Throttle(clock)

    def on_odometry(self, odometry: Odometry) -> None:
        self._each(lambda outputs: outputs.on_odometry(odometry))

    def on_state(self, state: DroneState) -> None:
        self._each(lambda outputs: outputs.on_state(state))

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        self._each(lambda outputs: outputs.on_image(camera, image, info))

    def on_depth(self, camera: str, depth: DepthImage) -> None:
        self._each(lambda outputs: outputs.on_depth(camera, depth))

    def on_imu(self, imu: Imu) -> None:
        self._each(lambda outputs: outputs.on_imu(imu))

    def log(self, text: str) -> None:
        self._each(lambda outputs: outputs.log(text))

    def _each(self, call: Callable[[Outputs], None]) -> None:
        for outputs in self._outputs:
            try:
                call(outputs)
            except Exception as error:
                self._failed(outputs, error)

    def _failed(self, failed: Outputs, error: Exception) -> None:
        self.failures += 1
        name = type(failed).__name__
        if not self._throttle.passes(f"{name} {type(error).__name__}"):
            return
        for outputs in self._outputs:
            try:
                outputs.log(f"{name} failed ({self.failures} times so far): {type(error).__name__}: {error}")
            except Exception:
                continue
