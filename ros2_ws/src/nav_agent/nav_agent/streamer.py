"""The one place from which commands leave: hover at a steady rate, motion only for the goal that holds the permit."""

from __future__ import annotations

import math
import threading

from nav_agent.ports import HOVER, Command, Drone, Velocity
from nav_common.clock import Clock

PERIOD_S = 0.05
"""20 Hz: six commands within the gate's 0.3 s of patience."""
MOTION_VALID_S = 0.3
"""A velocity not renewed for this long becomes hover, whatever happened to the tool that asked for it."""
LINGER_S = 1.0
"""Hover goes on this long after a goal's end, so that the last word the gate hears is hover."""


class CommandStreamer:
    """Sends a command each `tick`: hover, or the velocity set last while it is fresh.

    `begin` hands out a permit and voids all earlier ones. Setting a velocity and sending happen under one lock, so
    when `begin` or `revoke` has returned, nothing of an older goal is sent any more. Silent without a goal.
    """

    def __init__(self, drone: Drone, clock: Clock) -> None:
        self._drone = drone
        self._clock = clock
        self._lock = threading.Lock()
        self._permit = 0
        self._sequence = 0
        self._silent_from = -math.inf
        self._velocity = HOVER
        self._epoch = 0
        self._valid_until = -math.inf
        self._last_motion_s = -math.inf

    def begin(self) -> int:
        """A new permit; hover is sent before this returns."""
        with self._lock:
            self._permit += 1
            self._velocity = HOVER
            self._silent_from = math.inf
            self._send()
            return self._permit

    def revoke(self, permit: int) -> None:
        """Void the permit if it is the current one: hover at once, then for LINGER_S."""
        with self._lock:
            if permit != self._permit:
                return
            self._permit += 1
            self._velocity = HOVER
            self._silent_from = self._clock.now() + LINGER_S
            self._send()

    def move(self, permit: int, velocity: Velocity, epoch: int) -> None:
        """Send this velocity, of this epoch, from now on; without effect if the permit is void.

        Raises:
            ValueError: a component is not finite.
        """
        components = (velocity.forward, velocity.left, velocity.up, velocity.yaw_rate)
        if not all(math.isfinite(value) for value in components):
            raise ValueError(f"velocity {components} is not finite")
        with self._lock:
            if permit != self._permit:
                return
            self._velocity, self._epoch = velocity, epoch
            self._valid_until = self._clock.now() + MOTION_VALID_S

    def hover(self, permit: int) -> None:
        """Hover at once and from now on; without effect if the permit is void."""
        with self._lock:
            if permit != self._permit:
                return
            self._velocity = HOVER
            self._send()

    def tick(self) -> None:
        """To be called each PERIOD_S."""
        with self._lock:
            if self._clock.now() < self._silent_from:
                self._send()

    def only_hover_since(self, time_s: float) -> bool:
        """Whether every command sent after `time_s` (own clock) was hover."""
        with self._lock:
            return self._last_motion_s <= time_s

    def _send(self) -> None:
        odometry, status = self._drone.odometry(), self._drone.status()
        if odometry is None or status is None:
            return  # nothing to echo yet: the gate would refuse it
        velocity, now = self._velocity, self._clock.now()
        if now > self._valid_until or self._epoch != status.epoch:
            velocity = HOVER
        if velocity.is_hover:
            self._velocity = HOVER  # motion does not come back by itself
        else:
            self._last_motion_s = now
        self._sequence += 1
        self._drone.send(Command(odometry.stamp, status.epoch, self._sequence, velocity))
