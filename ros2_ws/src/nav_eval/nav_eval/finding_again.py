"""Whether a mission that names an object again at its end found it again, and how long that had been out of sight.

How long is counted in chunks of the memory, since frames taken while hovering push nothing out of it: from the last
moment before that instruction at which the object was in sight, by the true map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from airsim_sim.true_map import TrueMap
from nav_common.data import EngineStatus, Odometry, Outcome
from nav_common.success import is_success
from nav_eval.bags import Logged
from nav_eval.flight_log import FlightLog
from nav_pilot.expert import SEEN_PIXELS, NwuPose, Sight

LOOK_PERIOD_S = 0.5


@dataclass(frozen=True)
class FindingAgain:
    """The last instruction of a mission whose goal an earlier one named too.

    Attributes:
        chunks_out_of_sight: that entered the memory since the object was last seen, when the instruction began.
        window_chunks: that the memory holds at most.
        found: by nav_common.success, of the contacts since the instruction began.
    """

    chunks_out_of_sight: int
    window_chunks: int
    found: bool

    @property
    def windows_out_of_sight(self) -> float:
        return self.chunks_out_of_sight / self.window_chunks if self.window_chunks else 0.0


def finding_again(
    true_map: TrueMap, goals: Sequence[str], log: FlightLog, contact_times_s: Sequence[float]
) -> FindingAgain | None:
    """What became of the last instruction; None: it did not begin, or none before it has the same goal.

    contact_times_s: on the log's clock.
    """
    finishes = [row for row in log.decisions if row.data.tool == "finish"]
    if not goals or goals[-1] not in goals[:-1] or len(finishes) < len(goals) - 1:
        return None
    goal, begun_s = goals[-1], finishes[len(goals) - 2].time_s
    if not any(row.time_s > begun_s and row.data.tool for row in log.decisions):
        return None
    seen_s = _last_seen_s(true_map, goal, [row for row in log.odometry if row.time_s <= begun_s])
    return FindingAgain(
        _chunks(log.statuses, begun_s) - _chunks(log.statuses, seen_s),
        max((row.data.chunks for row in log.statuses), default=0),
        len(finishes) == len(goals)
        and is_success(
            Outcome.FINISHED,
            json.loads(finishes[-1].data.arguments)["reason"],
            true_map.world.object(goal).distance_m(_pose(log.odometry[-1].data)[:2]),
            sum(time_s >= begun_s for time_s in contact_times_s),
        ),
    )


def _last_seen_s(true_map: TrueMap, goal: str, odometry: Sequence[Logged[Odometry]]) -> float:
    """Log time of the last pose from which the goal is in sight; -inf: it never was."""
    sight, looked_s = Sight(true_map), math.inf
    for row in reversed(odometry):
        if looked_s - row.time_s < LOOK_PERIOD_S:
            continue
        looked_s = row.time_s
        if sight.pixels(goal, NwuPose(*_pose(row.data))) >= SEEN_PIXELS:
            return row.time_s
    return -math.inf


def _pose(odometry: Odometry) -> tuple[float, float, float, float]:
    """North, west, up, m, and yaw counter-clockwise from north, of a pose in the odometry's frame (east, north, up)."""
    east, north, up = odometry.position
    return north, -east, up, odometry.yaw - math.pi / 2


def _chunks(statuses: Sequence[Logged[EngineStatus]], time_s: float) -> int:
    """How many chunks had entered the memory for good by a log time."""
    before = [row.data for row in statuses if row.time_s <= time_s]
    return before[-1].chunks + before[-1].evictions if before else 0
