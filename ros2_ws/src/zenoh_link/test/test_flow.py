"""Rates, windows, levels and the other side's clock, on a clock of the test's own."""

import itertools
import math
import random
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenoh_link import settings as link_settings
from zenoh_link.flow import CreditWindow, FrameRequests, Ladder, PeerClock, RateCap, levels
from zenoh_link.lane import Lane
from zenoh_link.settings import Side
from zenoh_link.testing.rig import image

LEVELS = levels((40, 85), 10.0)


# --- rate


@given(st.floats(0.5, 50), st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.integers(1, 5))
def test_a_rate_is_never_exceeded(rate_hz, gaps_s, burst):
    cap = RateCap(rate_hz, burst)
    now, allowed = 100.0, 0
    for gap_s in gaps_s:
        now += gap_s
        allowed += cap.allow(now)
    assert allowed <= burst + 0.1 + rate_hz * sum(gaps_s[1:]) + 1e-6


def test_a_source_that_jitters_around_its_rate_loses_almost_nothing():
    cap, rng = RateCap(10.0), random.Random(1)
    times = [0.1 * i + rng.uniform(0, 0.008) for i in range(200)]
    assert sum(cap.allow(t) for t in times) >= 195


# --- window


class SlowLink:
    """A queue with a rate, a fixed delay on the way and one on the way back."""

    def __init__(self, mbit_s: float, one_way_s: float) -> None:
        self.bytes_s, self.one_way_s, self.free_s = mbit_s * 125_000, one_way_s, 0.0

    def carry(self, size: int, now: float) -> tuple[float, float]:
        """(arrival, acknowledged) of a message sent now."""
        self.free_s = max(self.free_s, now) + size / self.bytes_s
        return self.free_s + self.one_way_s, self.free_s + 2 * self.one_way_s


def fly(link: SlowLink, offered_hz: float, size: int, window: CreditWindow | None, seconds: float = 30.0):
    """Ages of the pictures on arrival, s, and how many arrived a second, in the last two thirds."""
    ages, acks, waiting, number = [], [], None, 0
    now, next_picture, step = 0.0, 0.0, 0.001
    while now < seconds:
        while window is not None and acks and acks[0][0] <= now:
            window.acknowledged(acks.pop(0)[1], now)
        if now >= next_picture:
            waiting, next_picture = now, next_picture + 1 / offered_hz
        if waiting is not None and (window is None or window.may_send(now)):
            number += 1
            arrival, acknowledged = link.carry(size, now)
            if window is not None:
                window.sent(number, now)
                acks.append((acknowledged, number))
            if now > seconds / 3:
                ages.append(arrival - waiting)
            waiting = None
        now += step
    return sorted(ages), len(ages) / (seconds * 2 / 3)


def test_on_a_slow_link_pictures_stay_young_where_without_a_window_they_queue():
    """5 Mbit/s, 12 offered: the figures of the real link are benchmarks/link.py's."""
    ages, rate_hz = fly(SlowLink(5, 0.01), 30, 50_000, CreditWindow())
    assert ages[len(ages) // 2] < 0.2
    assert rate_hz > 0.9 * 5e6 / 8 / 50_000  # and the link is used
    queued, _ = fly(SlowLink(5, 0.01), 30, 50_000, None)
    assert queued[len(queued) // 2] > 1.0


def test_on_a_long_link_the_window_grows_until_nothing_waits():
    window = CreditWindow()
    _, rate_hz = fly(SlowLink(100, 0.04), 30, 50_000, window)
    assert window.size >= 3
    assert rate_hz > 29
    assert window.size < CreditWindow.HIGHEST


@given(
    st.lists(st.tuples(st.sampled_from(["send", "ack", "old ack", "wait"]), st.floats(0, 0.5)), max_size=80)
)
def test_the_window_stays_within_its_limits_and_never_sticks(actions):
    window, now, number, under_way = CreditWindow(), 0.0, 0, []
    for action, gap_s in actions:
        now += gap_s
        if action == "send" and window.may_send(now):
            number += 1
            window.sent(number, now)
            under_way.append(number)
        elif action == "ack" and under_way:
            window.acknowledged(under_way.pop(0), now)
        elif action == "old ack":
            assert not window.acknowledged(-1, now)
        assert CreditWindow.LOWEST <= window.size <= CreditWindow.HIGHEST
        assert window.under_way <= CreditWindow.HIGHEST
    assert window.may_send(now + CreditWindow.LOST_S + 0.1)


def test_an_acknowledgement_counts_for_what_was_sent_before():
    window = CreditWindow()
    window.sent(1, 0.0)
    window.sent(2, 0.1)
    assert not window.may_send(0.1)
    assert window.acknowledged(2, 0.2)
    assert window.under_way == 0
    assert not window.acknowledged(1, 0.3)


# --- requests


def camera(requests: FrameRequests, began_s: float, ended_s: float, rate_hz: float = 10.0) -> list[float]:
    """Stamps of the pictures sent of those that a camera offers."""
    sent = []
    for number in range(round((ended_s - began_s) * rate_hz)):
        stamp_s = began_s + number / rate_hz
        if requests.is_due(ns(stamp_s), stamp_s):
            requests.sent(ns(stamp_s), stamp_s)
            sent.append(stamp_s)
    return sent


def ns(stamp_s: float) -> int:
    return round(stamp_s * 1e9)


def test_unasked_only_a_preview_is_sent():
    sent = camera(FrameRequests(1.0), 0.0, 10.0)
    assert 10 <= len(sent) <= 12
    assert min(later - earlier for earlier, later in itertools.pairwise(sent)) >= 0.9 - 1e-9


def test_a_request_is_answered_once_by_the_first_picture_of_its_stamp_or_later():
    requests = FrameRequests(0.01)
    camera(requests, 0.0, 0.1)
    requests.want(ns(0.75), 0.2)
    assert camera(requests, 0.2, 1.9) == pytest.approx([0.8])


def test_repeats_of_a_request_change_nothing_until_its_answer_must_have_been_lost():
    requests = FrameRequests(0.01)
    camera(requests, 0.0, 0.1)
    sent = []
    for tenth in range(2, 30):
        requests.want(ns(0.2), tenth / 10)
        sent += camera(requests, tenth / 10, tenth / 10 + 0.1)
    assert sent == pytest.approx([0.2, 0.2 + FrameRequests.RETRY_S], abs=0.15)


def test_a_request_of_somebody_who_has_gone_is_void():
    requests = FrameRequests(0.01)
    camera(requests, 0.0, 0.1)
    requests.want(ns(9.0), 1.0)
    assert camera(requests, 8.0, 12.0) == []


def test_a_request_whose_answer_went_down_with_the_connection_is_answered_again():
    requests = FrameRequests(0.01)
    requests.want(ns(0.0), 0.0)
    assert camera(requests, 0.0, 0.3) == [0.0]
    requests.reset()
    assert camera(requests, 0.3, 0.6) == pytest.approx([0.3])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["picture", "ask now", "ask later", "reset"]), st.floats(0.01, 0.5)),
        max_size=80,
    )
)
def test_nobody_who_goes_on_asking_waits_for_ever_and_nothing_is_sent_that_nobody_wants(actions):
    requests, now, asked, previewed_s = FrameRequests(0.5), 0.0, None, -10.0
    for action, gap_s in actions:
        now += gap_s
        if action.startswith("ask"):
            asked = now + (0.3 if action == "ask later" else 0.0)
            requests.want(ns(asked), now)
        elif action == "reset":
            requests.reset()
            previewed_s = -10.0
        elif requests.is_due(ns(now), now):
            assert (asked is not None and now >= asked - 1e-9) or now - previewed_s >= 0.9 * 2.0
            requests.sent(ns(now), now)
            previewed_s = now
    requests.want(ns(now), now + 2.1)
    assert requests.is_due(ns(now + 2.1), now + 2.1)


# --- levels


def test_levels_go_from_best_to_least_between_the_named_limits():
    assert (LEVELS[0].quality, LEVELS[0].scale, LEVELS[0].rate_hz) == (85, 1.0, 10.0)
    assert (LEVELS[-1].quality, LEVELS[-1].rate_hz) == (40, 10.0)
    cost = [level.quality * level.scale**2 for level in LEVELS]
    assert cost == sorted(cost, reverse=True)


def test_pictures_that_grow_old_are_made_smaller_and_come_back_when_there_is_room():
    ladder, now = Ladder(LEVELS), 0.0
    for _ in range(100):
        now += 0.1
        ladder.delay(0.4, 0.02, now)
    assert ladder.level == LEVELS[-1]
    for _ in range(2000):
        now += 0.5
        ladder.delay(0.03, 0.02, now)
    assert ladder.level == LEVELS[0]


def test_a_long_round_trip_alone_costs_no_quality():
    ladder = Ladder(LEVELS)
    for i in range(100):
        ladder.delay(0.35, 0.3, 0.1 * i)
    assert ladder.level == LEVELS[0]


def test_one_late_picture_now_and_then_costs_no_quality():
    """A lost packet makes a picture a round trip late."""
    ladder = Ladder(LEVELS)
    for i in range(400):
        ladder.delay(0.25 if i % 12 == 0 else 0.09, 0.08, 0.5 * i)
    assert ladder.level == LEVELS[0]


def test_pictures_of_which_many_are_late_are_made_smaller():
    """p95 counts: every fifth picture late is too many, though never two in a row."""
    ladder = Ladder(LEVELS)
    for i in range(20):
        ladder.delay(0.25 if i % 5 == 0 else 0.09, 0.08, 0.5 * i)
    assert ladder.level != LEVELS[0]


def test_a_step_up_that_failed_is_tried_less_and_less_often():
    """A link that carries level 2 and not level 1."""
    ladder, now, ups = Ladder(LEVELS), 0.0, []
    before = ladder.level
    while now < 300:
        now += 0.1
        ladder.delay(0.4 if LEVELS.index(ladder.level) < 2 else 0.05, 0.02, now)
        if LEVELS.index(ladder.level) < LEVELS.index(before):
            ups.append(now)
        before = ladder.level
    gaps = [later - earlier for earlier, later in itertools.pairwise(ups)]
    assert 3 <= len(ups) <= 12
    assert gaps[-1] > 5 * gaps[0]


def test_pictures_on_request_are_made_smaller_but_never_wait_for_a_rate():
    """At a rate below that of the requests each would wait, and be older than before."""
    loaded = link_settings.load()
    lane = Lane(next(route for route in loaded.sent_by(Side.EDGE) if route.requested_by), loaded)
    for i in range(100):
        now, stamp_ns = 0.2 * i, 200_000_000 * i
        lane.want(stamp_ns, now)
        lane.offer(image(now), now)
        assert lane.take(now) is not None
        lane.acknowledged(stamp_ns, 0.02, now + 0.15)
    assert (lane.ladder.level.quality, lane.ladder.level.scale) == (40, 0.5)


# --- clock


def exchange(
    clock: PeerClock, number: int, now: float, out_s: float, back_s: float, offset_s: float
) -> float:
    """A ping sent at `now` and its answer; returns when it arrived."""
    clock.ping(number, now)
    there = now + out_s + offset_s
    after = now + out_s + back_s
    clock.answer(number, now, there, there, after)
    return after


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(1e-4, 0.9), st.floats(1e-4, 0.9)), min_size=1, max_size=50),
)
def test_the_clock_offset_is_within_its_bound_however_lopsided_the_ways_are(offset_s, delays):
    clock, now = PeerClock(), 1000.0
    for number, (out_s, back_s) in enumerate(delays):
        now = max(now + 0.1, exchange(clock, number, now, out_s, back_s, offset_s))
    estimate_s, bound_s = clock.offset(now)
    assert math.isfinite(bound_s)
    assert abs(estimate_s - offset_s) <= bound_s + 1e-6


def test_the_offset_is_unknown_before_the_first_answer():
    assert PeerClock().offset(1.0) == (0.0, math.inf)
    assert not PeerClock().is_up(1.0)
    assert PeerClock().answer_age_s(1.0) == -1.0


def test_unanswered_pings_are_the_loss_and_the_link_is_lost_after_a_second():
    clock, now = PeerClock(), 0.0
    for number in range(100):
        if number % 4:
            exchange(clock, number, now, 0.02, 0.02, 5.0)
        else:
            clock.ping(number, now)
        now += 0.1
    assert clock.is_up(now)
    assert clock.loss(now) == pytest.approx(0.25, abs=0.02)
    assert clock.round_trip_s(now) == pytest.approx(0.04)
    assert not clock.is_up(now + 1.1)


def test_an_answer_that_the_connection_kept_for_seconds_does_not_bring_the_link_up():
    clock = PeerClock()
    clock.ping(1, 0.0)
    assert clock.answer(1, 0.0, 8.0, 8.0, 8.0)
    assert not clock.is_up(8.0)


def test_answers_to_no_ping_of_ours_are_ignored():
    clock = PeerClock()
    clock.ping(1, 10.0)
    assert not clock.answer(2, 10.0, 10.0, 10.0, 10.1)
    assert not clock.answer(1, 9.0, 10.0, 10.0, 10.1)
    assert not clock.answer(1, 10.0, 10.0, 99.0, 10.1)
    assert clock.answer(1, 10.0, 10.0, 10.0, 10.1)
    assert not clock.answer(1, 10.0, 10.0, 10.0, 10.2)


def test_one_thread_reads_the_clock_while_another_answers():
    """Acknowledgements, pongs and the timer come from three threads of the link."""
    clock, failures, closing = PeerClock(), [], threading.Event()

    def read() -> None:
        now = 0.0
        while not closing.is_set():
            try:
                clock.round_trip_s(1e6)
                clock.round_trips_s(1e9, 0.0)
                clock.offset(now)
                clock.loss(now)
            except RuntimeError as error:
                failures.append(error)
                return

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(4000):
            exchange(clock, number, 0.1 * number, 0.01, 0.01, 0.0)
    finally:
        closing.set()
        reader.join()
        sys.setswitchinterval(interval_s)
    assert not failures
