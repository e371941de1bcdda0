"""Odometry that cannot be the vehicle's own is refused, whatever a second publisher sends."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav_agent.odometry_filter import OdometryFilter, RejectedSample
from nav_common.data import Odometry
from nav_common.frames import Vector

PERIOD_S = 1 / 30


def sample(stamp_s: float, x: float = 0.0) -> Odometry:
    return Odometry(stamp_s, Vector(x, 0.0, 2.0))


def started() -> OdometryFilter:
    one = OdometryFilter()
    assert one.take(sample(100.0), 5.0) is None
    return one


def test_samples_in_order_are_taken_and_late_ones_are_not() -> None:
    one = started()
    assert one.take(sample(100.1, 0.2), 5.1) is None
    assert one.take(sample(100.05), 5.11) is RejectedSample.OUT_OF_ORDER
    assert one.take(sample(100.1), 5.12) is RejectedSample.OUT_OF_ORDER
    assert one.newest == sample(100.1, 0.2)
    assert one.arrived_s == 5.1


@pytest.mark.parametrize(
    ("intruder", "why"),
    [
        (sample(10_000.0), RejectedSample.STAMP_JUMPS),
        (sample(102.0), RejectedSample.STAMP_JUMPS),
        (sample(1.0), RejectedSample.STAMP_JUMPS),
        (sample(100.05, 50.0), RejectedSample.POSITION_JUMPS),
        (sample(2.0**31 + 5), RejectedSample.INVALID),
        (sample(-1.0), RejectedSample.INVALID),
        (sample(math.nan), RejectedSample.INVALID),
        (sample(100.05, math.inf), RejectedSample.INVALID),
    ],
)
def test_what_jumps_is_refused_and_says_why(intruder: Odometry, why: RejectedSample) -> None:
    one = started()
    assert one.take(intruder, 5.05) is why
    assert one.newest == sample(100.0)


def test_a_link_that_stalls_and_then_delivers_all_at_once_loses_nothing_new() -> None:
    one = started()
    taken = [one.take(sample(100.0 + 0.1 * k), 5.9) for k in range(1, 10)]
    assert taken == [None] * 9


def test_after_an_outage_another_clock_and_another_place_are_taken() -> None:
    one = started()
    assert one.take(sample(3.0, 70.0), 5.5) is RejectedSample.STAMP_JUMPS
    assert one.take(sample(3.6, 70.0), 6.1) is None
    assert one.newest == sample(3.6, 70.0)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 4e9), st.floats(-1e4, 1e4), st.floats(0.0, PERIOD_S)),
        max_size=60,
    )
)
def test_beside_a_steady_vehicle_the_newest_is_never_an_intruders(
    intrusions: list[tuple[float, float, float]],
) -> None:
    """Stamps beyond the tolerated jump, or places out of reach: whatever comes between, the vehicle is taken."""
    one = started()
    now_s, stamp_s = 5.0, 100.0
    for their_stamp_s, their_x, delay_s in intrusions:
        near_in_time = -1.0 <= their_stamp_s - stamp_s <= 1.0 + PERIOD_S
        if near_in_time and abs(their_x) <= 2.0 + 30.0 * (1.0 + PERIOD_S):
            continue  # could be the vehicle itself
        one.take(sample(their_stamp_s, their_x), now_s + delay_s)
        now_s, stamp_s = now_s + PERIOD_S, stamp_s + PERIOD_S
        assert one.take(sample(stamp_s), now_s) is None
        assert one.newest == sample(stamp_s)
