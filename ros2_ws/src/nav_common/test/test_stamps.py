"""Stamps survive the way to ROS and back."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav_common import stamps


@given(st.floats(0, 2**31 - 2))
def test_round_trip_within_a_microsecond(seconds):
    sec, nanosec = stamps.split(seconds)
    assert 0 <= nanosec < 10**9
    assert stamps.to_seconds(SimpleNamespace(sec=sec, nanosec=nanosec)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 3e9, -3e9])
def test_times_that_do_not_fit_are_named(seconds):
    with pytest.raises(ValueError, match="does not fit"):
        stamps.split(seconds)
