"""When a mission is a success: decided here for live flights, lock-step and training alike."""

from __future__ import annotations

from nav_common.contract import SUCCESS_RADIUS_M
from nav_common.data import FinishReason, Outcome


def is_success(
    outcome: Outcome | None,
    reason: str,
    distance_m: float,
    collisions: int,
    radius_m: float = SUCCESS_RADIUS_M,
) -> bool:
    """Whether the pilot finished by saying that it reached the goal, is within `radius_m` of it, and touched nothing.

    Args:
        outcome: None: the goal had none (its agent was lost).
        reason: the model's, with FINISHED.
        distance_m: horizontal, from where the flight ended to the goal: from its outline, plus a beacon's radius of
            0.4 m, so that it is the distance from the axis of a beacon.
        collisions: contacts on the way.
    """
    said_reached = outcome is Outcome.FINISHED and reason == FinishReason.REACHED
    return said_reached and distance_m <= radius_m and collisions == 0


def is_rightly_not_found(
    outcome: Outcome | None, reason: str, looked_all_around: bool, collisions: int
) -> bool:
    """Whether a mission to something absent is a success: the pilot looked all around, finished by saying that it is
    not there, and touched nothing.

    Args:
        outcome, reason, collisions: see `is_success`.
        looked_all_around: whether its camera had looked in every direction until then.
    """
    said_not_found = outcome is Outcome.FINISHED and reason == FinishReason.NOT_FOUND
    return said_not_found and looked_all_around and collisions == 0
