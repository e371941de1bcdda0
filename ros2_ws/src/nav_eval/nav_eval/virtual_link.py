"""The link between edge and server in lock-step, on the virtual clock: the same emulation of a bad internet, and the
same choice of pictures, as in the real graph.

Odometry, the vehicle's state and pictures take time to the server; commands and requests for pictures take time to the
edge. What is left out: outages (a flight over `cut` belongs into the real graph), TCP's slow start, depth pictures
(they cross at standstill only), and the services.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from nav_common import topics
from nav_common.cdr import stamp_ns
from nav_common.clock import VirtualClock
from nav_common.conversions import decode, encode
from nav_common.data import CompressedImage, FrameRequest
from zenoh_link import settings as link_settings
from zenoh_link.emulator import delay_s, lines
from zenoh_link.lane import Lane
from zenoh_link.profile import Profile

OVERHEAD_BYTES = 110
"""A message's zenoh key and header, its TLS record and the headers of its TCP packet."""
ACKNOWLEDGEMENT_BYTES = 9
GRAPH_IMAGE_RATE_HZ = 10.0
"""The camera's in the graph's parameter files: it sets how old a picture is that has just been asked for."""
REQUEST_PERIOD_S = 0.5
"""Perception repeats its request so often."""


class Direction(Enum):
    UP = "up"
    DOWN = "down"


class Connection(Enum):
    """Messages of one connection keep their order; nothing waits for another connection's."""

    CONTROL = "control"
    BULK = "bulk"


@dataclass(frozen=True)
class LinkSettings:
    """What lies between edge and server, and the best that pictures are sent at.

    seed: of the losses and the jitter.
    """

    profile: Profile
    jpeg_quality: int = 85
    picture_rate_hz: float = 10.0
    seed: int = 0


class VirtualLink:
    """Delivers by callbacks of the clock."""

    def __init__(
        self,
        settings: LinkSettings,
        clock: VirtualClock,
        wanted_s: Callable[[], float],
        deliver_image: Callable[[CompressedImage], None],
    ) -> None:
        """wanted_s: the earliest stamp of the picture that the server takes next. deliver_image: at the server."""
        self.settings = settings
        self.ages_s: list[float] = []
        """Of the pictures on arrival."""
        self._clock = clock
        self._wanted_s = wanted_s
        self._deliver_image = deliver_image
        self._chance = random.Random(settings.seed)
        self._lines = dict(zip(Direction, lines(settings.profile), strict=True))
        self._due_s: dict[tuple[Direction, Connection], float] = {}
        self._lane = _lane(settings)
        self._asked_s, self._asked_at_s = -1.0, float("-inf")

    def send(
        self, direction: Direction, connection: Connection, size: int, deliver: Callable[[], None]
    ) -> None:
        """`deliver` is called when a message of `size` bytes has arrived."""
        now, size, way = self._clock.now(), size + OVERHEAD_BYTES, (direction, connection)
        left_s = self._lines[direction].occupy(size, now)
        due_s = left_s + delay_s(self.settings.profile, size, self._chance)
        self._due_s[way] = max(due_s, self._due_s.get(way, 0.0))
        self._clock.call_at(self._due_s[way], deliver)

    def offer_image(self, image: CompressedImage) -> None:
        """At the edge: a new picture."""
        self._lane.offer(encode(image), self._clock.now())
        self._send_due()

    def tick(self) -> None:
        """At both ends, often: what is to be asked for, and what may be sent by now."""
        wanted_s, now = self._wanted_s(), self._clock.now()
        if wanted_s != self._asked_s or now - self._asked_at_s >= REQUEST_PERIOD_S:
            self._asked_s, self._asked_at_s = wanted_s, now
            request = encode(FrameRequest(wanted_s))
            self.send(Direction.DOWN, Connection.CONTROL, len(request), lambda: self._want(stamp_ns(request)))
        self._send_due()

    def _want(self, stamp: int) -> None:
        self._lane.want(stamp, self._clock.now())
        self._send_due()

    def _send_due(self) -> None:
        payload = self._lane.take(self._clock.now())
        if payload is not None:
            sent = self._lane.prepare(payload)
            self.send(Direction.UP, Connection.BULK, len(sent), lambda: self._arrived(sent))

    def _arrived(self, sent: bytes) -> None:
        image = decode(CompressedImage, sent)
        self.ages_s.append(self._clock.now() - image.stamp_s)
        self.send(
            Direction.DOWN,
            Connection.CONTROL,
            ACKNOWLEDGEMENT_BYTES,
            lambda: self._acknowledged(stamp_ns(sent)),
        )
        self._deliver_image(image)

    def _acknowledged(self, stamp: int) -> None:
        self._lane.acknowledged(stamp, self.settings.profile.rtt_ms / 1000, self._clock.now())
        self._send_due()


def _lane(settings: LinkSettings) -> Lane:
    """Of the front camera, as the link's own settings file has it, with these best values."""
    loaded = link_settings.load()
    lowest_quality, lowest_hz = loaded.jpeg_quality[0], loaded.picture_rate_hz[0]
    loaded = replace(
        loaded,
        jpeg_quality=(min(lowest_quality, settings.jpeg_quality), settings.jpeg_quality),
        picture_rate_hz=(min(lowest_hz, settings.picture_rate_hz), settings.picture_rate_hz),
    )
    route = next(route for route in loaded.routes if route.topic.name == topics.FRONT_IMAGE.name)
    return Lane(route, loaded)
