"""A topic of which only the newest message counts: what is sent of it, when, and how small. Pure; time is passed in.

One message waits at most, and only as many are under way as the link carries. Where the other side asks for each
message, the newest is kept until it is asked for.
"""

from __future__ import annotations

from dataclasses import replace

from nav_common import topics
from nav_common.cdr import stamp_ns
from zenoh_link import pictures
from zenoh_link.flow import CreditWindow, FrameRequests, Ladder, RateCap, levels
from zenoh_link.settings import Route, Settings


class Lane:
    """Of one route. Not safe for several threads."""

    def __init__(self, route: Route, settings: Settings) -> None:
        self.route = route
        self.window = CreditWindow()
        self._plain_peer = settings.plain_peer
        lowest_hz, highest_hz = settings.picture_rate_hz
        self._levels = levels(settings.jpeg_quality, highest_hz)
        if settings.plain_peer:
            self._levels = (replace(self._levels[-1], rate_hz=lowest_hz),)
        self.ladder = Ladder(self._levels)
        self._cap = RateCap(route.rate_hz)
        asked = bool(route.requested_by) and not settings.plain_peer
        self._requests = FrameRequests(settings.preview_hz) if asked else None
        self._waiting: bytes | None = None

    def offer(self, payload: bytes, now_s: float) -> bool:
        """A new message; whether one that was to be sent is overtaken by it."""
        overtaken = self.has_due(now_s)
        self._waiting = payload
        return overtaken

    def want(self, stamp_ns: int, now_s: float) -> None:
        """The other side asks for the first message of that stamp or later."""
        if self._requests is not None:
            self._requests.want(stamp_ns, now_s)

    def has_due(self, now_s: float) -> bool:
        """Whether a message waits that is to be sent, as soon as window and rate let it."""
        if self._waiting is None:
            return False
        return self._requests is None or self._requests.is_due(stamp_ns(self._waiting), now_s)

    def take(self, now_s: float) -> bytes | None:
        """The message to send now, unprepared. It counts as sent; `forget` takes that back."""
        if not self.has_due(now_s) or not self._may_send(now_s):
            return None
        payload, self._waiting = self._waiting, None
        assert payload is not None
        number = stamp_ns(payload)
        self.window.sent(number, now_s)
        if self._requests is not None:
            self._requests.sent(number, now_s)
        return payload

    def _may_send(self, now_s: float) -> bool:
        lost = self.window.lost
        if not self._plain_peer and not self.window.may_send(now_s):
            return False
        if self.window.lost > lost:
            self.ladder.lost(now_s)
        self._cap.rate_hz = min(self.ladder.level.rate_hz, self.route.rate_hz)
        return self._cap.allow(now_s)

    def prepare(self, payload: bytes) -> bytes:
        """The message as it is sent: smaller.

        Raises:
            PictureError: it holds no picture.
        """
        if is_depth(self.route):
            return pictures.compress_depth(payload)
        return pictures.shrink(payload, self.ladder.level, self._levels[0].quality)

    def forget(self, payload: bytes) -> None:
        """It was not sent after all."""
        self.window.forget(stamp_ns(payload))

    def acknowledged(self, stamp: int, round_trip_s: float, now_s: float) -> None:
        """The other side has the message of that stamp, ns."""
        if self.window.acknowledged(stamp, now_s):
            self.ladder.delay(self.window.delay_s, round_trip_s, now_s)

    def reset(self) -> None:
        """The connection was lost."""
        self.window.reset()
        if self._requests is not None:
            self._requests.reset()
        self._waiting = None


def is_depth(route: Route) -> bool:
    return route.topic.type == topics.CAMERA_DEPTH.type
