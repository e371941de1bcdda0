"""One side of the link: sends what the graph here publishes, delivers what the other side sends, knows how the link is.

Keys and payloads are those of zenoh-bridge-ros2dds (the topic's name, CDR with its header, nothing else), so that
bridge can stand at either end. Beside them the two sides exchange pings, acknowledgements and repeats of latched
messages on keys below `link/`.
"""

from __future__ import annotations

import math
import os
import queue
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import zenoh
import zenoh.handlers

from nav_common import cdr, conversions, stamps, topics
from nav_common.clock import Clock, WallClock, wait_until
from nav_common.data import LinkState, Odometry
from nav_common.topics import Topic
from zenoh_link import calls, certificates, pictures, session
from zenoh_link.calls import CallResult, CallStatus
from zenoh_link.certificates import Usage
from zenoh_link.errors import LinkError, SettingsError
from zenoh_link.flow import PeerClock, RateCap
from zenoh_link.lane import Lane, is_depth
from zenoh_link.settings import LARGEST_MESSAGE, Address, Direction, Priority, Route, Settings, Side

PING_PERIOD_S = 0.1
FIRST_REPEAT_S = 0.3
"""So long after a latched message it is sent again: where its queue is full zenoh drops a message and says nothing."""
LATCHED_PERIOD_S = 1.0
"""From then on it is sent again so often, for a receiver that came later; a receiver drops what it knows."""
ACCEPTED_RATE = 2.0
"""What arrives faster than so many times its rate is a flood."""
STALE_CALL_S = 2.0
"""A service call that was under way for longer is refused: the connection had kept it through an outage."""
SERVED_S = 1.0
"""So long a call waits for news of who serves it, which travel behind the connection's opening."""
SERVICE_BYTES = 64
VERSION = 1
_PING = struct.Struct("<BQd")  # version, number, time of sending
_PONG = struct.Struct("<BQddd")  # the same, times of arrival and of the reply
_ACK = struct.Struct("<BQ")  # version, stamp (ns)
_SENT_AT = struct.Struct("<d")
_BLOCK = struct.Struct("<BQ")  # version, number; what follows is there to be large


class DropReason(Enum):
    """Why something that arrived was dropped."""

    TOO_LARGE = "too large"
    BROKEN = "broken"
    TOO_MANY = "too many"
    UNKNOWN = "unknown key"
    STALE = "stale"


class Link:
    """Starts at once and goes on trying; `close` ends it. Callbacks come from the link's own threads."""

    def __init__(
        self,
        settings: Settings,
        side: Side,
        addresses: Sequence[Address],
        *,
        certificates_folder: Path | None = None,
        deliver: Callable[[Topic, bytes], None] = lambda topic, payload: None,
        on_state: Callable[[LinkState], None] = lambda state: None,
        log: Callable[[str], None] = print,
        clock: Clock | None = None,
    ) -> None:
        """addresses: where the server listens, or where the edge connects to (one address, or two: control, bulk).

        deliver: called with each message that arrived and passed the checks.
        on_state: called ten times a second, and when the link is lost or back.

        Raises:
            LinkError: settings or certificates that it cannot start with.
            zenoh.ZError: an address that cannot be listened on.
        """
        if not 1 <= len(addresses) <= 2:
            raise SettingsError(f"{len(addresses)} addresses given, must be one, or two (control and bulk)")
        self.settings, self.side = settings, side
        self.addresses = [str(address) for address in addresses]
        self._peer_side = Side.SERVER if side is Side.EDGE else Side.EDGE
        self._deliver, self._on_state, self._log = deliver, on_state, log
        self._clock = clock or WallClock()
        name = settings.name_of(side)
        self._files = certificates.files_of(certificates_folder, name) if certificates_folder else None
        usage = Usage.SERVE if side is Side.SERVER else Usage.CONNECT
        for warning in (
            *session.check_security(addresses, self._files, name, usage),
            *session.warn_of_plain_addresses(addresses),
        ):
            log(warning)
        self._authenticated = all(address.needs_certificates for address in addresses)
        self.on_block: Callable[[int], None] = lambda number: None
        """Called with the number of each block of `send_block` that arrived."""
        self.failure: certificates.Failure | None = None
        """Why the last attempt to connect failed, where TCP or TLS says so."""
        self.refusals: Counter[tuple[DropReason, str, str]] = Counter()
        """By reason, key and sender."""
        self._counts = _Counts()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._peer = PeerClock()
        self._ping_number = 0
        self._up = False
        self._outages = 0
        self._fault = "not connected yet"
        self._image_age_s = self._command_age_s = -1.0
        self._standing_still = False
        self._outlets: dict[str, zenoh.Publisher] = {}
        self._declared: list[Any] = []
        self._handlers: dict[str, Callable[[bytes], CallResult]] = {}
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="service")
        self._caps = {route.key: RateCap(route.rate_hz, 2) for route in settings.sent_by(side)}
        self._accepted = {
            route.key: RateCap(ACCEPTED_RATE * route.rate_hz, max(10, int(route.rate_hz)))
            for route in settings.received_by(side)
        }
        self._routes = {route.topic.name: route for route in settings.sent_by(side)}
        self._latched: dict[str, _Latched] = {}
        """Last message of each latched topic, by key."""
        self._latched_order = threading.Lock()
        self._delivered_latched: dict[str, tuple[bytes, bytes]] = {}
        """Identity and payload of the last one delivered, by key."""
        self._in_order: queue.SimpleQueue[tuple[Callable[[zenoh.Sample], None], zenoh.Sample] | None]
        self._in_order = queue.SimpleQueue()
        self._orderly = threading.Thread(target=self._act_in_order, name="link latched", daemon=True)
        self.lanes = {route.key: _NewestLane(self, route) for route in settings.sent_by(side) if route.newest}
        self._control: zenoh.Session | None = None
        self._connections: list[session.Connection] = []
        self._server: zenoh.Session | None = None
        self._open(addresses)
        self._orderly.start()
        self._timer = threading.Thread(target=self._run_timer, name="link timer", daemon=True)
        self._timer.start()

    # --- sessions

    def _open(self, addresses: Sequence[Address]) -> None:
        if self.side is Side.SERVER:
            self._server = zenoh.open(session.server_config(self.settings, addresses, self._files))
            self._declare_bulk(self._server)
            self._declare_control(self._server)
            return
        for name, address, declare in (
            ("control", addresses[0], self._declare_control),
            ("bulk", addresses[-1], self._declare_bulk),
        ):
            config = session.client_config(self.settings, address, self._files)
            self._connections.append(
                session.Connection(name, config, declare, partial(self._explain, address))
            )

    def _explain(self, address: Address) -> None:
        self.failure = failure = certificates.explain_failure(address, self._files)
        fault = f"not connected: {failure.text if failure else f'{address} does not take the connection'}"
        if fault != self._fault:
            self._fault = fault
            self._log(fault)

    def _declare_control(self, opened: zenoh.Session) -> None:
        for route in self.settings.sent_by(self.side):
            if not route.is_bulk:
                self._declare_publisher(opened, route.key, route.priority)
            if route.topic.qos.transient_local:
                # Of the same priority: what has another one may overtake.
                self._declare_publisher(opened, self._repeat_key(route), route.priority)
        for what, priority in (("ping", Priority.REAL_TIME), ("pong", Priority.REAL_TIME)):
            self._declare_publisher(opened, self.settings.link_key(self.side, what), priority)
        received = {route.key: route for route in self.settings.received_by(self.side)}
        for key, route in received.items():
            if route.topic.qos.transient_local:
                self._subscribe_in_order(opened, key, partial(self._on_sample, route))
                self._subscribe_in_order(opened, self._repeat_key(route), partial(self._on_repeat, route))
            else:
                self._subscribe(opened, key, partial(self._on_sample, route))
            if route.newest:
                self._declare_publisher(opened, self._ack_key(self.side, route), Priority.INTERACTIVE_HIGH)
        peer = self._peer_side
        self._subscribe(opened, self.settings.link_key(peer, "ping"), self._on_ping)
        self._subscribe(opened, self.settings.link_key(peer, "pong"), self._on_pong)
        for lane in self.lanes.values():
            self._subscribe(opened, self._ack_key(peer, lane.route), lane.on_ack)
        if self.side is Side.SERVER:
            self._declare_publisher(
                opened, self.settings.link_key(self.side, "probed"), Priority.INTERACTIVE_HIGH
            )
            self._subscribe(opened, self.settings.link_key(peer, "probe"), self._on_block)
        else:
            self._subscribe(opened, self.settings.link_key(peer, "probed"), self._on_probed)
        if self.side is Side.SERVER and not self._authenticated:
            # With access control, zenoh refuses unknown keys itself.
            known = {*received, *self._routes_keys(), *map(self.settings.service_key, self.settings.services)}
            everything = f"{self.settings.vehicle.strip('/')}/**"
            self._subscribe(opened, everything, lambda sample: self._on_any(known, sample))
        with self._lock:
            self._control = opened
            for service in self._handlers:
                self._declare_queryable(service)

    def _declare_bulk(self, opened: zenoh.Session) -> None:
        for route in self.settings.sent_by(self.side):
            if route.is_bulk:
                self._declare_publisher(opened, route.key, route.priority)
        if self.side is Side.EDGE:
            self._declare_publisher(opened, self.settings.link_key(self.side, "probe"), Priority.BACKGROUND)

    def _declare_publisher(self, opened: zenoh.Session, key: str, priority: Priority) -> None:
        self._outlets[key] = opened.declare_publisher(
            key,
            priority=getattr(zenoh.Priority, priority.name),
            # Never BLOCK: zenoh would hold the caller, and close the connection after 5 s.
            congestion_control=zenoh.CongestionControl.DROP,
            express=priority <= Priority.INTERACTIVE_LOW,
            reliability=zenoh.Reliability.RELIABLE,
        )

    def _subscribe(self, opened: zenoh.Session, key: str, act: Callable[[zenoh.Sample], None]) -> None:
        self._declared.append(opened.declare_subscriber(key, act))

    def _subscribe_in_order(
        self, opened: zenoh.Session, key: str, act: Callable[[zenoh.Sample], None]
    ) -> None:
        """Each subscriber of zenoh's has a thread of its own, so that one key's messages may overtake another's. What
        is subscribed here is acted on by one thread, in the order of arrival."""
        arrived: zenoh.handlers.Callback[zenoh.Sample] = zenoh.handlers.Callback(
            lambda sample: self._in_order.put((act, sample)), indirect=False
        )
        self._declared.append(opened.declare_subscriber(key, arrived))

    def _act_in_order(self) -> None:
        while (arrived := self._in_order.get()) is not None:
            act, sample = arrived
            act(sample)

    def _ack_key(self, side: Side, route: Route) -> str:
        return self.settings.link_key(side, f"ack/{route.key}")

    def _repeat_key(self, route: Route) -> str:
        """Repeats travel apart, since a plain zenoh-bridge-ros2dds would deliver each of them."""
        if route.direction is Direction.TO_VIEWERS:
            return route.key
        sender = Side.EDGE if route.direction is Direction.TO_SERVER else Side.SERVER
        return self.settings.link_key(sender, f"latched/{route.key}")

    def _routes_keys(self) -> set[str]:
        return {route.key for route in self._routes.values()}

    def close(self) -> None:
        self._closing.set()
        for lane in self.lanes.values():
            lane.close()
        self._timer.join(2.0)
        for connection in self._connections:
            connection.close()
        if self._server is not None:
            self._server.close()
        self._in_order.put(None)
        self._orderly.join(2.0)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- sending

    def send(self, topic: Topic, payload: bytes) -> None:
        """Send a message of this side's graph; never waits. What is over its rate, or too large, is dropped.

        Raises:
            LinkError: the topic is none that this side sends.
        """
        route = self._routes.get(topic.name)
        if route is None:
            raise LinkError(f"{topic.name} is not sent by the {self.side} (link settings)")
        if topic.name == topics.ODOM.name:
            self._watch_motion(payload)
        if topic.qos.transient_local:
            identity = None if self.settings.plain_peer else os.urandom(8)
            with self._latched_order:  # no repeat of the one before may follow this one
                self._latched[route.key] = _Latched(payload, identity)
                self._send_latched(route, self._latched[route.key])
        else:
            self._send_now(route, payload)

    def _send_latched(self, route: Route, latched: _Latched) -> None:
        if self._send_now(route, latched.payload, latched.identity):
            latched.due_s = self._clock.now() + FIRST_REPEAT_S

    def _send_now(self, route: Route, payload: bytes, identity: bytes | None = None) -> bool:
        """Whether it is on its way (of a lane: or waits)."""
        if route.direction is not Direction.TO_VIEWERS and not self._up:
            self._counts.dropped()
            return False
        lane = self.lanes.get(route.key)
        if lane is not None:
            lane.offer_now(payload)
            return True
        if self._caps[route.key].allow(self._clock.now()):
            return self._put(route.key, payload, route.max_bytes, identity)
        self._counts.dropped()
        return False

    def _put(self, key: str, payload: bytes, max_bytes: int, identity: bytes | None = None) -> bool:
        publisher = self._outlets.get(key)
        if publisher is None or len(payload) > max_bytes:
            self._counts.dropped()
            if len(payload) > max_bytes:
                self._refuse(DropReason.TOO_LARGE, key, "this side", f"{len(payload)} bytes")
            return False
        try:
            publisher.put(payload, attachment=identity)
        except zenoh.ZError:  # closing
            self._counts.dropped()
            return False
        self._counts.sent(len(payload))
        return True

    def _watch_motion(self, payload: bytes) -> None:
        try:
            odometry = conversions.decode(Odometry, payload)
        except conversions.ConversionError:
            return
        self._standing_still = odometry.stands_still

    # --- receiving

    def _on_repeat(self, route: Route, sample: zenoh.Sample) -> None:
        if self._delivered_latched.get(route.key) != _identified(sample):
            self._on_sample(route, sample)

    def _on_sample(self, route: Route, sample: zenoh.Sample) -> None:
        size = len(sample.payload)
        sender = self._sender
        if size > route.max_bytes:
            self._refuse(DropReason.TOO_LARGE, route.key, sender, f"{size} bytes, at most {route.max_bytes}")
            return
        now = self._clock.now()
        if not self._accepted[route.key].allow(now):
            self._refuse(
                DropReason.TOO_MANY, route.key, sender, f"more than {ACCEPTED_RATE * route.rate_hz:g} Hz"
            )
            return
        payload = sample.payload.to_bytes()
        try:
            if sample.kind != zenoh.SampleKind.PUT:
                raise cdr.CdrError("a deletion")
            if is_depth(route):
                payload = pictures.expand_depth(payload)
            message = cdr.unpack(route.topic.type, payload)
        except (cdr.CdrError, pictures.PictureError) as error:
            self._refuse(DropReason.BROKEN, route.key, sender, str(error))
            return
        self._counts.received(size)
        if route.newest:
            stamp = message.header.stamp
            self._acknowledge(route, stamp)
            if route.topic.type == topics.FRONT_IMAGE.type:
                self._image_age_s = now + self._peer.offset(now)[0] - stamps.to_seconds(stamp)
        elif route.topic.name == topics.COMMAND.name:
            self._command_age_s = now - stamps.to_seconds(message.stamp)
        for lane in self.lanes.values():
            if lane.route.requested_by == route.topic.name:
                lane.want_now(stamps.to_nanoseconds(message.stamp))
        if route.topic.qos.transient_local:
            self._delivered_latched[route.key] = _identified(sample)
        self._deliver(route.topic, payload)

    def _acknowledge(self, route: Route, stamp: Any) -> None:
        publisher = self._outlets.get(self._ack_key(self.side, route))
        if publisher is not None:
            publisher.put(_ACK.pack(VERSION, stamps.to_nanoseconds(stamp)))

    def _on_any(self, known: set[str], sample: zenoh.Sample) -> None:
        key = str(sample.key_expr)
        if key not in known and not key.startswith(self.settings.link_key(self._peer_side, "")):
            if key.startswith(self.settings.link_key(self.side, "")):
                return  # our own
            self._refuse(DropReason.UNKNOWN, key, self._sender, "not in the link's settings")

    @property
    def _sender(self) -> str:
        """Access control lets nobody else send to this side."""
        return self.settings.name_of(self._peer_side) if self._authenticated else "somebody on this machine"

    def _refuse(self, reason: DropReason, key: str, sender: str, detail: str) -> None:
        with self._lock:
            self.refusals[reason, key, sender] += 1
            count = self.refusals[reason, key, sender]
        if count == 1 or count % 1000 == 0:
            self._log(f"{key} from {sender}: {reason.value} ({detail}), {count} so far")

    # --- pings

    def _run_timer(self) -> None:
        while not self._closing.wait(PING_PERIOD_S):
            now = self._clock.now()
            self._send_ping(now)
            self._update(now)
            self._repeat_latched()
            self._on_state(self.state())

    def _send_ping(self, now: float) -> None:
        publisher = self._outlets.get(self.settings.link_key(self.side, "ping"))
        if publisher is None:
            return
        self._ping_number += 1
        self._peer.ping(self._ping_number, now)
        publisher.put(_PING.pack(VERSION, self._ping_number, now))

    def _on_ping(self, sample: zenoh.Sample) -> None:
        now = self._clock.now()
        publisher = self._outlets.get(self.settings.link_key(self.side, "pong"))
        ping = self._own_message(_PING, sample)
        if publisher is not None and ping is not None:
            publisher.put(_PONG.pack(VERSION, ping[1], ping[2], now, self._clock.now()))

    def _on_pong(self, sample: zenoh.Sample) -> None:
        now = self._clock.now()
        pong = self._own_message(_PONG, sample)
        if pong is not None:
            self._peer.answer(pong[1], pong[2], pong[3], pong[4], now)

    def _own_message(self, layout: struct.Struct, sample: zenoh.Sample) -> tuple[Any, ...] | None:
        payload = sample.payload.to_bytes() if len(sample.payload) == layout.size else b""
        if not payload or payload[0] != VERSION:
            self._refuse(
                DropReason.BROKEN, str(sample.key_expr), self._sender, f"{len(sample.payload)} bytes"
            )
            return None
        return layout.unpack(payload)

    def _update(self, now: float) -> None:
        up = self._connected() if self.settings.plain_peer else self._peer.is_up(now)
        age_s = self._peer.answer_age_s(now)
        if up:
            self._fault = ""
        elif age_s >= 0:
            self._fault = f"no answer from {self.settings.name_of(self._peer_side)} for {age_s:.1f} s"
        if up == self._up:
            return
        self._up = up
        if up:
            self._log(f"link to {self.settings.name_of(self._peer_side)} is up")
            self._repeat_latched(at_once=True)
        else:
            self._outages += 1
            self._log(f"link lost: {self._fault}")
            for lane in self.lanes.values():
                lane.reset()

    def round_trips_s(self, since_s: float) -> list[float]:
        """Of the pings answered since then (on this side's clock), in order of size."""
        return self._peer.round_trips_s(self._clock.now(), since_s)

    def _connected(self) -> bool:
        opened = self._control
        return opened is not None and bool(opened.info.links())

    def _repeat_latched(self, at_once: bool = False) -> None:
        """Repeat what is due, or all; what could not be sent before is sent."""
        now = self._clock.now()
        for route in self._routes.values():
            with self._latched_order:
                latched = self._latched.get(route.key)
                may_send = self._up or route.direction is Direction.TO_VIEWERS
                if latched is None or not may_send or not (at_once or now >= latched.due_s):
                    continue
                if not latched.was_sent:
                    self._send_latched(route, latched)
                elif self._put(self._repeat_key(route), latched.payload, route.max_bytes, latched.identity):
                    latched.due_s = now + LATCHED_PERIOD_S

    # --- measuring the rate

    def send_block(self, number: int, size: int) -> bool:
        """Send `size` bytes that the other side only acknowledges; returns whether they were sent."""
        block = _BLOCK.pack(VERSION, number).ljust(size, b"\0")
        return self._put(self.settings.link_key(self.side, "probe"), block, LARGEST_MESSAGE)

    def _on_block(self, sample: zenoh.Sample) -> None:
        head = sample.payload.to_bytes()[: _BLOCK.size]
        outlet = self._outlets.get(self.settings.link_key(self.side, "probed"))
        if len(head) == _BLOCK.size and outlet is not None:
            outlet.put(head)

    def _on_probed(self, sample: zenoh.Sample) -> None:
        head = self._own_message(_BLOCK, sample)
        if head is not None:
            self.on_block(head[1])

    # --- services

    def serve(self, service: str, handler: Callable[[bytes], CallResult]) -> None:
        """Answer the other side's calls: `handler` gets the request's CDR; ValueError says that it is none.

        Raises:
            LinkError: the settings let no such service cross.
        """
        if service not in self.settings.services:
            raise LinkError(f"service {service!r} does not cross the link (link settings)")
        with self._lock:
            self._handlers[service] = handler
            if self._control is not None:
                self._declare_queryable(service)

    def _declare_queryable(self, service: str) -> None:
        assert self._control is not None
        key = self.settings.service_key(service)
        queryable = self._control.declare_queryable(
            key, lambda query: self._pool.submit(self._answer, service, key, query)
        )
        self._declared.append(queryable)

    def _answer(self, service: str, key: str, query: zenoh.Query) -> None:
        with query:
            payload = query.payload.to_bytes() if query.payload is not None else b""
            refusal = self._call_refusal(payload, query)
            if refusal is None:
                try:
                    result = self._handlers[service](payload)
                except ValueError as error:
                    refusal = DropReason.BROKEN, str(error)
            if refusal is not None:
                reason, text = refusal
                self._refuse(reason, key, self._sender, text)
                result = CallResult(CallStatus.REFUSED, message=text)
            calls.send_back(result, query, key)

    def _call_refusal(self, payload: bytes, query: zenoh.Query) -> tuple[DropReason, str] | None:
        if len(payload) > SERVICE_BYTES:
            return DropReason.TOO_LARGE, f"request has {len(payload)} bytes, at most {SERVICE_BYTES}"
        attached = query.attachment.to_bytes() if query.attachment is not None else b""
        if len(attached) != _SENT_AT.size:
            if self.settings.plain_peer:
                return None
            return DropReason.BROKEN, "request without its time of sending"
        now = self._clock.now()
        offset_s, bound_s = self._peer.offset(now)
        age_s = now + offset_s - _SENT_AT.unpack(attached)[0]
        if not -bound_s - STALE_CALL_S <= age_s <= STALE_CALL_S + bound_s:
            return DropReason.STALE, f"request is {age_s:.1f} s old, at most {STALE_CALL_S:g} s"
        return None

    def call(self, service: str, payload: bytes, timeout_s: float = 30.0) -> CallResult:
        """Call a service of the other side and wait for its answer.

        Raises:
            LinkError: the settings let no such service cross.
        """
        if service not in self.settings.services:
            raise LinkError(f"service {service!r} does not cross the link (link settings)")
        opened = self._control
        if opened is None or not self._up:
            return CallResult(CallStatus.NO_ANSWER, message=f"link lost: {self._fault}")
        querier = opened.declare_querier(
            self.settings.service_key(service), timeout=timeout_s, priority=zenoh.Priority.INTERACTIVE_HIGH
        )
        with querier:
            served = wait_until(self._clock, lambda: _matches(querier), SERVED_S)
            if not served:
                return CallResult(CallStatus.NO_ANSWER, message=f"{service} is served by nobody")
            for reply in querier.get(payload=payload, attachment=_SENT_AT.pack(self._clock.now())):
                if (result := calls.result_of(reply)) is not None:
                    return result
        return CallResult(CallStatus.NO_ANSWER, message=f"no answer to {service} within {timeout_s:g} s")

    # --- state

    def state(self) -> LinkState:
        now = self._clock.now()
        lane = next((lane for lane in self.lanes.values() if not is_depth(lane.route)), None)
        with self._lock:
            offset_s, bound_s = self._peer.offset(now)
            counts = self._counts.take(now)
            return LinkState(
                stamp_s=now,
                up=self._up,
                peer=self.settings.name_of(self._peer_side),
                fault=self._fault,
                outages=self._outages,
                answer_age_s=self._peer.answer_age_s(now),
                round_trip_ms=1000 * self._peer.round_trip_s(now),
                jitter_ms=1000 * self._peer.jitter_s(now),
                loss=self._peer.loss(now),
                clock_offset_s=offset_s,
                clock_offset_bound_s=bound_s,
                image_age_ms=1000 * self._image_age_s if self._image_age_s >= 0 else -1.0,
                command_age_ms=1000 * self._command_age_s if self._command_age_s >= 0 else -1.0,
                window=lane.window.size if lane else 0,
                jpeg_quality=lane.ladder.level.quality if lane else 0,
                image_rate_hz=lane.ladder.level.rate_hz if lane else 0.0,
                refused=sum(self.refusals.values()),
                **counts,
            )


def _identified(sample: zenoh.Sample) -> tuple[bytes, bytes]:
    return sample.attachment.to_bytes() if sample.attachment is not None else b"", sample.payload.to_bytes()


def _matches(querier: zenoh.Querier) -> bool:
    return bool(querier.matching_status.matching)  # type: ignore[attr-defined]  # the stub says that it is a bool


@dataclass
class _Latched:
    """The last message of a latched topic. One that is sent anew counts although it equals the one before (an emergency
    stop that was released at the edge meanwhile): the identity tells it from a repeat."""

    payload: bytes
    identity: bytes | None
    due_s: float = -math.inf
    """When it is sent again; before it was sent at all: at once."""

    @property
    def was_sent(self) -> bool:
        return self.due_s > -math.inf


class _NewestLane(Lane):
    """A lane with a thread that sends: a picture is made smaller without holding anybody up."""

    def __init__(self, link: Link, route: Route) -> None:
        super().__init__(route, link.settings)
        self._link = link
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"send {route.topic.name}", daemon=True)
        self._thread.start()

    def offer_now(self, payload: bytes) -> None:
        if self.route.standstill and not self._link._standing_still:
            self._link._counts.dropped()
            return
        with self._changed:
            if self.offer(payload, self._link._clock.now()):
                self._link._counts.dropped()
            self._changed.notify()

    def want_now(self, stamp_ns: int) -> None:
        with self._changed:
            self.want(stamp_ns, self._link._clock.now())
            self._changed.notify()

    def on_ack(self, sample: zenoh.Sample) -> None:
        ack = self._link._own_message(_ACK, sample)
        if ack is None:
            return
        now = self._link._clock.now()
        round_trip_s = self._link._peer.round_trip_s(now)
        with self._changed:
            self.acknowledged(ack[1], round_trip_s, now)
            self._changed.notify()

    def reset(self) -> None:
        with self._changed:
            super().reset()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(2.0)

    def _run(self) -> None:
        while (payload := self._next()) is not None:
            try:
                smaller = self.prepare(payload)
            except pictures.PictureError as error:
                self._link._refuse(DropReason.BROKEN, self.route.key, "this side", str(error))
                self._forget_now(payload)
                continue
            if not self._link._put(self.route.key, smaller, self.route.max_bytes):
                self._forget_now(payload)

    def _forget_now(self, payload: bytes) -> None:
        with self._changed:
            self.forget(payload)

    def _next(self) -> bytes | None:
        """The message to send now; None at the end."""
        with self._changed:
            while not self._closing:
                now = self._link._clock.now()
                payload = self.take(now)
                if payload is not None:
                    return payload
                # A message, a request or an acknowledgement wakes this; what only time allows is looked at again soon.
                self._changed.wait(0.01 if self.has_due(now) else None)
            return None


class _Counts:
    """Messages and bytes, and the rates of the last second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = self._received = self._dropped = 0
        self._bytes_sent = self._bytes_received = 0
        self._since: tuple[float, int, int] | None = None
        self._rates = (0.0, 0.0)

    def sent(self, size: int) -> None:
        with self._lock:
            self._sent += 1
            self._bytes_sent += size

    def received(self, size: int) -> None:
        with self._lock:
            self._received += 1
            self._bytes_received += size

    def dropped(self) -> None:
        with self._lock:
            self._dropped += 1

    def take(self, now: float) -> dict[str, Any]:
        with self._lock:
            if self._since is None:
                self._since = (now, self._bytes_sent, self._bytes_received)
            elapsed_s = now - self._since[0]
            if elapsed_s >= 1.0:
                self._rates = (
                    8e-6 * (self._bytes_sent - self._since[1]) / elapsed_s,
                    8e-6 * (self._bytes_received - self._since[2]) / elapsed_s,
                )
                self._since = (now, self._bytes_sent, self._bytes_received)
            return {
                "sent_mbit_s": self._rates[0],
                "received_mbit_s": self._rates[1],
                "sent": self._sent,
                "received": self._received,
                "dropped": self._dropped,
            }
