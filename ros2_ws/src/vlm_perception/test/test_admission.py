"""Which stamps a frame may carry: the law that a sender from the future changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nav_common.data import CompressedImage, Odometry
from vlm_perception.admission import Frame, FrameAdmission
from vlm_perception.frame_rule import STAMP_JUMP_S
from vlm_perception.serving_form import ServingForm

MOST_DELAY_S = 0.8
"""Of odometry on its way, under the jump."""


class Camera:
    """Frames at 10 Hz with odometry, stamped by a vehicle's clock that is `offset_s` ahead of the stream's."""

    def __init__(self, picture: bytes, offset_s: float = 0.0, live: bool = True) -> None:
        self.picture = picture
        self.offset_s = offset_s
        self.warnings: list[str] = []
        self.admitted_s: list[float] = []
        self.frames = FrameAdmission(ServingForm(), live=live, on_warning=self.warnings.append)

    def odometry(self, now_s: float, delay_s: float = 0.0) -> None:
        self.frames.add_odometry(Odometry(now_s - delay_s + self.offset_s), now_s)

    def frame(self, now_s: float, ahead_s: float = 0.0, edge_offset_s: float | None = 0.0) -> None:
        stamp_s = now_s + self.offset_s + ahead_s
        self.frames.receive(Frame(CompressedImage(stamp_s, self.picture), now_s), edge_offset_s)
        while self.frames.examine(None):
            chunk = self.frames.take_chunk()
            if chunk:
                self.frames.accept(chunk)
                self.admitted_s += chunk.stamps_s


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offset_s=st.floats(-1e4, 1e6),
    ahead_s=st.floats(STAMP_JUMP_S + MOST_DELAY_S + 0.1, 1e6),
    others=st.lists(st.booleans(), min_size=5, max_size=30),
    delays_s=st.lists(st.floats(0.0, MOST_DELAY_S), min_size=30, max_size=30),
    live=st.booleans(),
)
def test_frames_from_the_future_change_nothing_whatever_the_clocks_and_the_delays(
    jpeg: Callable[[int], bytes],
    offset_s: float,
    ahead_s: float,
    others: list[bool],
    delays_s: list[float],
    live: bool,
) -> None:
    alone, beside = Camera(jpeg(0), offset_s, live), Camera(jpeg(0), offset_s, live)
    for number, (other, delay_s) in enumerate(zip(others, delays_s, strict=False)):
        now_s = 1e5 + 0.1 * number
        for camera in (alone, beside):
            camera.odometry(now_s, delay_s)
        if other:
            beside.frame(now_s, ahead_s)
        for camera in (alone, beside):
            camera.frame(now_s + 0.05)
    assert beside.admitted_s == alone.admitted_s
    assert len(alone.admitted_s) == (len(delays_s[: len(others)]) - 1) // 5 + 1
    assert beside.frames.counts().broken == sum(others)


def test_while_odometry_is_silent_the_vehicles_clock_goes_on(jpeg: Callable[[int], bytes]) -> None:
    camera = Camera(jpeg(0), offset_s=-700.0)
    camera.odometry(1000.0)
    camera.frame(1060.0)
    assert camera.admitted_s == [360.0]
    camera.frame(1061.0, ahead_s=1.1)
    assert camera.admitted_s == [360.0]


@pytest.mark.parametrize("offset_s", [0.0, 3600.0])
def test_before_odometry_comes_the_own_clock_and_the_links_offset_judge(
    jpeg: Callable[[int], bytes], offset_s: float
) -> None:
    camera = Camera(jpeg(0), offset_s)
    camera.frame(1000.0, 1.1, edge_offset_s=offset_s)
    assert camera.admitted_s == []
    assert "1.100 s ahead of this machine's clock" in camera.warnings[0]
    camera.frame(1000.1, edge_offset_s=offset_s)
    assert camera.admitted_s == [1000.1 + offset_s]


@pytest.mark.parametrize(("live", "edge_offset_s"), [(False, 0.0), (True, None)])
def test_without_odometry_frames_of_a_recording_or_of_an_unknown_clock_may_have_any_stamps(
    jpeg: Callable[[int], bytes], live: bool, edge_offset_s: float | None
) -> None:
    camera = Camera(jpeg(0), offset_s=1e6, live=live)
    camera.frame(10.0, edge_offset_s=edge_offset_s)
    assert camera.admitted_s == [1e6 + 10.0]
