"""Success: every part of it counts."""

from __future__ import annotations

import pytest

from nav_common.contract import SUCCESS_RADIUS_M
from nav_common.data import Outcome
from nav_common.success import is_success


def test_reached_within_the_radius_and_touched_nothing() -> None:
    assert is_success(Outcome.FINISHED, "reached", SUCCESS_RADIUS_M, 0)
    assert is_success(Outcome.FINISHED, "reached", 2.5, 0, radius_m=3.0)


@pytest.mark.parametrize(
    ("outcome", "reason", "distance_m", "collisions"),
    [
        (Outcome.STEP_LIMIT, "reached", 1.0, 0),
        (None, "reached", 1.0, 0),
        (Outcome.FINISHED, "not_found", 1.0, 0),
        (Outcome.FINISHED, "reached", SUCCESS_RADIUS_M + 0.01, 0),
        (Outcome.FINISHED, "reached", 1.0, 1),
    ],
)
def test_each_part_is_needed(
    outcome: Outcome | None, reason: str, distance_m: float, collisions: int
) -> None:
    assert not is_success(outcome, reason, distance_m, collisions)
