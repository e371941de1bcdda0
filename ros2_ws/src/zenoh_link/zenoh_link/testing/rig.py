"""Two sides of a link in one process, over loopback, and what each delivered."""

from __future__ import annotations

import contextlib
import functools
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nav_common import conversions
from nav_common.clock import WallClock, wait_until
from nav_common.data import CompressedImage, Odometry, Twist, VelocityCommand
from nav_common.testing import free_port
from nav_common.topics import Topic
from zenoh_link import certificates, settings
from zenoh_link.link import Link
from zenoh_link.settings import Side

WAIT_S = 15.0


class End:
    """One side, with its deliveries in order of arrival."""

    def __init__(self, side: Side, addresses: list[str], **kwargs: Any) -> None:
        self.inbox: queue.Queue[tuple[Topic, bytes]] = queue.Queue()
        self.log: list[str] = []
        kwargs.setdefault("settings", settings.load())
        self.link = Link(
            kwargs.pop("settings"),
            side,
            [settings.parse_address(address) for address in addresses],
            deliver=lambda topic, payload: self.inbox.put((topic, payload)),
            log=self.log.append,
            **kwargs,
        )

    def receive(self, topic: Topic, timeout_s: float = WAIT_S) -> bytes:
        """The next message of `topic`; others are passed over."""
        end = time.monotonic() + timeout_s
        while True:
            found, payload = self.inbox.get(timeout=max(end - time.monotonic(), 0.001))
            if found.name == topic.name:
                return payload

    def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
        return until(condition, timeout_s)

    def wait_up(self, timeout_s: float = WAIT_S) -> None:
        assert until(lambda: self.link.state().up, timeout_s), (self.link.state(), self.log)


def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
    return wait_until(WallClock(), condition, timeout_s, 0.005)


@contextlib.contextmanager
def two_ends(
    folder: Path | None = None, *, edge_port: int | None = None, port: int | None = None, **kwargs: Any
) -> Iterator[tuple[End, End]]:
    """(server, edge) over loopback, with TLS if a folder of certificates is given; `edge_port`: of a proxy between."""
    protocol = "tls" if folder else "tcp"
    port = port or free_port()
    server = End(Side.SERVER, [f"{protocol}/127.0.0.1:{port}"], certificates_folder=folder, **kwargs)
    try:
        edge = End(
            Side.EDGE, [f"{protocol}/127.0.0.1:{edge_port or port}"], certificates_folder=folder, **kwargs
        )
        try:
            yield server, edge
        finally:
            edge.link.close()
    finally:
        server.link.close()


def make_certificates(folder: Path, **kwargs: Any) -> Path:
    certificates.make(folder, "server", ["edge", "viewer"], [], **kwargs)
    return folder


def image(stamp_s: float, size: int = 50_000) -> bytes:
    return conversions.encode(CompressedImage(stamp_s, bytes(size)))


def noisy_picture(stamp_s: float) -> bytes:
    """A JPEG of about 60 KB."""
    return conversions.encode(CompressedImage(stamp_s, _noise()))


@functools.cache
def _noise() -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def odometry(stamp_s: float, **kwargs: Any) -> bytes:
    return conversions.encode(Odometry(stamp_s, **kwargs))


def command(stamp_s: float, sequence: int, epoch: int = 1) -> bytes:
    return conversions.encode(VelocityCommand(stamp_s, epoch, sequence, Twist.body(forward_m_s=1.0)))


def stop(engaged: bool) -> bytes:
    return b"\x00\x01\x00\x00" + bytes([engaged])
