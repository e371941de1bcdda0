"""The link in lock-step: what crosses it takes its time, in order, and pictures cross when they are asked for."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nav_common.clock import VirtualClock
from nav_common.data import CompressedImage
from nav_eval.virtual_link import Connection, Direction, LinkSettings, VirtualLink
from zenoh_link.profile import PROFILES, Profile

NOISE = cv2.imencode(".jpg", np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8))[1].tobytes()


class Memory:
    """Wants a picture each `interval_s`."""

    def __init__(self, profile: Profile, interval_s: float, **settings: Any) -> None:
        self.clock = VirtualClock(100.0)
        self.stamps_s: list[float] = []
        self.interval_s = interval_s
        self.link = VirtualLink(LinkSettings(profile, **settings), self.clock, self.wanted_s, self.take)

    def wanted_s(self) -> float:
        return self.stamps_s[-1] + self.interval_s if self.stamps_s else 0.0

    def take(self, image: CompressedImage) -> None:
        self.stamps_s.append(image.stamp_s)

    def fly(self, seconds: float, data: bytes = NOISE) -> None:
        self.clock.call_every(0.1, lambda: self.link.offer_image(CompressedImage(self.clock.now(), data)))
        self.clock.call_every(0.01, self.link.tick)
        self.clock.sleep(seconds)


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0, 300),
    st.floats(0, 100),
    st.floats(0, 0.3),
    st.sampled_from([0.0, 1.0, 20.0]),
    st.integers(0, 9),
)
def test_a_connection_keeps_its_order_and_nothing_is_faster_than_the_way(
    rtt_ms: float, jitter_ms: float, loss: float, up_mbit_s: float, seed: int
) -> None:
    memory = Memory(Profile(rtt_ms, jitter_ms, loss, up_mbit_s), 0.5, seed=seed)
    arrived: list[tuple[int, float]] = []

    def send(number: int) -> None:
        sent_s = memory.clock.now()

        def arrive() -> None:
            arrived.append((number, memory.clock.now() - sent_s))

        memory.link.send(Direction.UP, Connection.CONTROL, 700, arrive)

    for number in range(40):
        send(number)
        memory.clock.sleep(0.033)
    memory.clock.sleep(20.0)
    assert [number for number, _ in arrived] == list(range(40))
    assert min(delay_s for _, delay_s in arrived) >= rtt_ms / 2000 - 1e-9


def test_pictures_cross_as_often_as_they_are_wanted() -> None:
    memory = Memory(PROFILES["wan"], 0.5)
    memory.fly(20.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(memory.stamps_s)]
    assert 35 <= len(memory.stamps_s) <= 41
    assert min(gaps) > 0.45


def test_pictures_on_a_slow_line_stay_young_and_odometry_beside_them_too() -> None:
    """24 Mbit/s are offered, 2 are there: without newest-only and the ladder the queue would grow."""
    memory = Memory(PROFILES["slow"], 0.1)
    odometry: list[float] = []

    def send() -> None:
        sent_s = memory.clock.now()
        memory.link.send(
            Direction.UP, Connection.CONTROL, 700, lambda: odometry.append(memory.clock.now() - sent_s)
        )

    memory.clock.call_every(1 / 30, send)
    memory.fly(30.0)
    late = memory.link.ages_s[len(memory.link.ages_s) // 2 :]
    assert sorted(late)[len(late) // 2] < 0.4
    assert max(odometry[len(odometry) // 2 :]) < 0.5


def test_the_same_seed_loses_the_same_packets() -> None:
    flown = []
    for seed in (1, 1, 2):
        memory = Memory(PROFILES["wan"], 0.5, seed=seed)
        memory.fly(10.0)
        flown.append(memory.link.ages_s)
    assert flown[0] == flown[1] != flown[2]


def test_a_rate_and_a_quality_are_limits() -> None:
    memory = Memory(Profile(rtt_ms=10.0), 0.01, picture_rate_hz=2.0)
    memory.fly(10.0)
    assert len(memory.stamps_s) == pytest.approx(20, abs=3)
