"""Which odometry can be the vehicle's own: it continues what came before."""

from __future__ import annotations

import math
from enum import Enum

from nav_common import contract
from nav_common.data import Odometry

# Stamps run with the agent's clock but for delays on the way.
_STAMP_JUMP_S = 1.0
# Faster than any multirotor that is simulated here, and what noise and a late sample may add.
_HIGHEST_SPEED_M_S = 30.0
_POSITION_JUMP_M = 2.0
_LATEST_STAMP_S = 2.0**31 - 1.0


class RejectedSample(Enum):
    """Why a sample is not taken; the value is for a log line."""

    OUT_OF_ORDER = "out of order"
    INVALID = "a value is not finite, or the stamp is out of range"
    STAMP_JUMPS = "its stamp jumps"
    POSITION_JUMPS = "its position jumps"


class OdometryFilter:
    """Takes odometry that continues the last sample taken, or any after an outage.

    A second publisher would otherwise mix its stamps and positions into those of the vehicle: with stamps from the
    future all commands would be refused, with positions of its own the drone would fly somewhere. A vehicle that was
    restarted or moved by hand is taken again once nothing else came for contract.ODOMETRY_TIMEOUT_S.
    """

    def __init__(self) -> None:
        self.newest: Odometry | None = None
        self.arrived_s = -math.inf
        """When the newest came, on the caller's clock."""

    def take(self, odometry: Odometry, now_s: float) -> RejectedSample | None:
        """Make it the newest, or say why not."""
        refused = self._check(odometry, now_s)
        if refused is None:
            self.newest, self.arrived_s = odometry, now_s
        return refused

    def _check(self, odometry: Odometry, now_s: float) -> RejectedSample | None:
        values = (
            *odometry.position,
            *odometry.orientation,
            *odometry.velocity,
            *odometry.angular_velocity,
        )
        if not all(map(math.isfinite, values)) or not 0.0 <= odometry.stamp_s < _LATEST_STAMP_S:
            return RejectedSample.INVALID
        last, elapsed_s = self.newest, now_s - self.arrived_s
        if last is None or elapsed_s > contract.ODOMETRY_TIMEOUT_S:
            return None
        step_s = odometry.stamp_s - last.stamp_s
        if step_s > elapsed_s + _STAMP_JUMP_S or step_s < -_STAMP_JUMP_S:
            return RejectedSample.STAMP_JUMPS
        if step_s <= 0:
            return RejectedSample.OUT_OF_ORDER
        reach_m = _POSITION_JUMP_M + _HIGHEST_SPEED_M_S * step_s
        if math.dist(odometry.position, last.position) > reach_m:
            return RejectedSample.POSITION_JUMPS
        return None
