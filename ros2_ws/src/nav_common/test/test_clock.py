"""The virtual clock runs what is due, in order, and nothing else."""

import pytest

from nav_common.clock import VirtualClock, WallClock, wait_until


def test_callbacks_run_in_time_order_and_ties_in_order_of_scheduling():
    clock = VirtualClock()
    seen = []
    clock.call_at(2.0, lambda: seen.append(("b", clock.now())))
    clock.call_at(1.0, lambda: seen.append(("a", clock.now())))
    clock.call_at(2.0, lambda: seen.append(("c", clock.now())))
    clock.sleep(1.5)
    assert seen == [("a", 1.0)]
    clock.sleep(0.5)
    assert seen == [("a", 1.0), ("b", 2.0), ("c", 2.0)]
    assert clock.now() == 2.0


def test_periodic_callbacks_do_not_drift():
    clock = VirtualClock(start_s=10.0)
    seen = []
    timer = clock.call_every(0.25, lambda: seen.append(clock.now()))
    clock.sleep(1.0)
    assert seen == [10.25, 10.5, 10.75, 11.0]
    timer.cancel()
    clock.sleep(1.0)
    assert len(seen) == 4


def test_a_callback_that_sleeps_is_an_error():
    clock = VirtualClock()
    clock.call_at(0.5, lambda: clock.sleep(1.0))
    with pytest.raises(RuntimeError, match="must not sleep"):
        clock.sleep(1.0)


def test_a_period_must_be_positive():
    with pytest.raises(ValueError, match="period_s is 0"):
        VirtualClock().call_every(0, lambda: None)


def test_wait_until_sees_the_condition_and_times_out():
    clock = VirtualClock()
    done = []
    clock.call_at(0.3, lambda: done.append(True))
    assert wait_until(clock, lambda: bool(done), timeout_s=1.0)
    assert clock.now() == pytest.approx(0.3, abs=0.0101)
    start = clock.now()
    assert not wait_until(clock, lambda: False, timeout_s=0.5)
    assert clock.now() == pytest.approx(start + 0.5)


def test_the_wall_clock_never_runs_backwards():
    clock = WallClock()
    readings = [clock.now() for _ in range(1000)]
    assert readings == sorted(readings)
