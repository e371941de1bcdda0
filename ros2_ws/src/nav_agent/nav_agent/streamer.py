"""The one place from which commands leave: hover at a steady rate, motion only for the goal that holds the permit."""

from __future__ import annotations

import math
import threading

from nav_agent.ports import Drone
from nav_common.clock import Clock
from nav_common.contract import COMMAND_TIMEOUT_S
from nav_common.data import HOVER, Twist, VelocityCommand

MOTION_VALID_S = COMMAND_TIMEOUT_S
"""A velocity not renewed for this long becomes hover, whatever happened to the tool that asked for it."""
LINGER_S = 1.0
"""Hover goes on this long after a goal's end, so that the last commands that the gate receives are hover."""


class CommandStreamer:
    """Sends a command each `tick`: hover, or the velocity set last while it is fresh.

    `begin` hands out a permit and voids all earlier ones. Setting a velocity and sending happen under one lock, so
    when `begin` or `revoke` has returned, nothing of an older goal is sent any more. Without a goal nothing is sent.
    """

    def __init__(self, drone: Drone, clock: Clock) -> None:
        self._drone = drone
        self._clock = clock
        self._lock = threading.Lock()
        self._permit = 0
        self._sequence = 0
        self._sends_until_s = -math.inf
        self._twist = HOVER
        self._epoch = 0
        self._valid_until_s = -math.inf
        self._last_motion_s = -math.inf

    def begin(self) -> int:
        """A new permit; hover is sent before this returns."""
        with self._lock:
            self._permit += 1
            self._twist = HOVER
            self._sends_until_s = math.inf
            self._send()
            return self._permit

    def revoke(self, permit: int) -> None:
        """Void the permit if it is the current one: hover at once, then for LINGER_S."""
        with self._lock:
            if permit != self._permit:
                return
            self._permit += 1
            self._twist = HOVER
            self._sends_until_s = self._clock.now() + LINGER_S
            self._send()

    def move(self, permit: int, twist: Twist, epoch: int) -> None:
        """Send this velocity, in this epoch, from now on; without effect if the permit is void.

        Raises:
            ValueError: a component is not finite.
        """
        if not twist.is_finite:
            raise ValueError(f"velocity {twist} is not finite")
        with self._lock:
            if permit != self._permit:
                return
            self._twist, self._epoch = twist, epoch
            self._valid_until_s = self._clock.now() + MOTION_VALID_S

    def hover(self, permit: int) -> None:
        """Hover at once and from now on; without effect if the permit is void."""
        with self._lock:
            if permit != self._permit:
                return
            self._twist = HOVER
            self._send()

    def tick(self) -> None:
        """To be called each contract.COMMAND_PERIOD_S."""
        with self._lock:
            if self._clock.now() < self._sends_until_s:
                self._send()

    def only_hover_since(self, time_s: float) -> bool:
        """Whether every command sent after `time_s` (own clock) was hover."""
        with self._lock:
            return self._last_motion_s <= time_s

    def _send(self) -> None:
        odometry, state = self._drone.odometry(), self._drone.state()
        if odometry is None or state is None:
            return  # nothing to echo yet: the gate would refuse it
        twist, now_s = self._twist, self._clock.now()
        if now_s > self._valid_until_s or self._epoch != state.epoch:
            twist = HOVER
        if twist.is_hover:
            self._twist = HOVER  # motion does not come back by itself
        else:
            self._last_motion_s = now_s
        self._sequence += 1
        self._drone.send(VelocityCommand(odometry.stamp_s, state.epoch, self._sequence, twist))
