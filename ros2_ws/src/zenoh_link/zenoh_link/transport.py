"""The link as the edge's transport where ROS is not installed: messages by topic, services, and the gate's LINK_UP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from nav_common import cdr, topics
from nav_common.data import LinkState
from nav_common.topics import Topic
from zenoh_link import settings
from zenoh_link.calls import CallResult, CallStatus
from zenoh_link.link import Link
from zenoh_link.settings import Side, parse_address


class LinkTransport:
    """Publishes what the link's settings let cross and ignores the rest; subscribers hear what the server sends."""

    def __init__(
        self,
        server: Sequence[str],
        *,
        certificates_folder: Path | None = None,
        settings_file: Path | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        """server: its address, such as "tls/gpu.example.org:7447", or two, for commands and for pictures.

        Raises:
            LinkError: an address, certificates or settings that cannot be used.
        """
        self._lock = threading.Lock()
        self._subscribers: dict[str, list[Callable[[bytes], None]]] = {}
        self._reported_up: bool | None = None
        loaded = settings.load(settings_file or settings.DEFAULT_FILE)
        self._sent = {route.topic.name for route in loaded.sent_by(Side.EDGE)}
        self.link = Link(
            loaded,
            Side.EDGE,
            [parse_address(address) for address in server],
            certificates_folder=certificates_folder,
            deliver=self._deliver,
            on_state=self._on_state,
            log=log,
        )

    def publish(self, topic: Topic, payload: bytes) -> None:
        if topic.name in self._sent:
            self.link.send(topic, payload)

    def subscribe(self, topic: Topic, callback: Callable[[bytes], None]) -> None:
        with self._lock:
            self._subscribers.setdefault(topic.name, []).append(callback)
            self._reported_up = None  # a subscriber of LINK_UP hears at once how it is

    def serve(self, service: str, handler: Callable[[bytes], bytes]) -> None:
        """Answer the server's calls of a service, where the settings let it cross: CDR in, CDR out."""
        if service in self.link.settings.services:
            self.link.serve(service, lambda request: CallResult(CallStatus.OK, handler(request)))

    def close(self) -> None:
        self.link.close()

    def _deliver(self, topic: Topic, payload: bytes) -> None:
        with self._lock:
            callbacks = tuple(self._subscribers.get(topic.name, ()))
        for callback in callbacks:
            callback(payload)

    def _on_state(self, state: LinkState) -> None:
        with self._lock:
            if state.up == self._reported_up:
                return
            self._reported_up = state.up
        up = cdr.make(topics.LINK_UP.type, data=state.up)
        self._deliver(topics.LINK_UP, cdr.pack(topics.LINK_UP.type, up))
