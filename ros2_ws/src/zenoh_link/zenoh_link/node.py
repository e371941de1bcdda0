"""The link as a ROS node, for either side: serialised messages in and out, services, state, diagnostics."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message

from nav_common import cdr, conversions, topics
from nav_common.data import LinkState
from nav_common.diagnostics import Health, Level
from nav_common.ros import declare, message_type, publish_diagnostics, publisher, run, subscription
from nav_common.topics import Topic
from zenoh_link import settings
from zenoh_link.calls import CallResult, CallStatus
from zenoh_link.link import Link
from zenoh_link.settings import DEFAULT_PORT, Side, parse_address

CALL_TIMEOUT_S = 60.0
"""Take-off and landing last some seconds."""
LOSS_WARNED = 0.05
LINK_UP_PERIOD_S = 1.0
"""LINK_UP is published at each change, and so often without one, for subscribers that get nothing kept."""


class ZenohLink(Node):
    """Parameters: see `_make_link`; what crosses: the settings file."""

    def __init__(self) -> None:
        super().__init__("zenoh_link")
        self._outlets: dict[str, Any] = {}
        self._reported_up: bool | None = None
        self._next_report_s = 0.0
        self._ready = False
        self._link = self._make_link()
        vehicle = self._link.settings.vehicle
        sent, received = self._link.settings.sent_by, self._link.settings.received_by
        side = self._link.side
        for route in received(side):
            self._outlets[route.topic.name] = publisher(self, route.topic, vehicle)
        for topic in (topics.LINK_STATE, *([topics.LINK_UP] if side is Side.EDGE else [])):
            self._outlets[topic.name] = publisher(self, topic, vehicle)
        self._ready = True
        for route in sent(side):
            self._subscribe(route.topic, vehicle)
        services = ReentrantCallbackGroup()
        for service in self._link.settings.services:
            if side is Side.EDGE:
                self._serve(service, services)
            else:
                self._offer(service, services)
        publish_diagnostics(
            self, " ".join(self._link.addresses), lambda: health(self._link.state(), self._link)
        )

    def destroy_node(self) -> None:
        self._link.close()
        super().destroy_node()

    def _make_link(self) -> Link:
        side = Side(
            declare(self, "side", "edge", "which machine this is", choices=tuple(side.value for side in Side))
        )
        addresses = declare(
            self,
            "addresses",
            f"tcp/127.0.0.1:{DEFAULT_PORT}",
            "server: where it listens; edge: the server's address, or two with a comma, for commands and for pictures",
        )
        folder = declare(
            self,
            "certificates",
            "",
            "folder with ca.pem and this machine's .pem and .key; empty: loopback only",
        )
        file = declare(self, "settings", "", "what crosses (YAML); empty: the package's link.yaml")
        vehicle = declare(
            self, "vehicle_namespace", topics.DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        return Link(
            settings.load(file or settings.DEFAULT_FILE, vehicle),
            side,
            [parse_address(address) for address in addresses.split(",")],
            certificates_folder=Path(folder) if folder else None,
            deliver=self._on_message,
            on_state=self._on_state,
            log=self.get_logger().info,
        )

    # --- topics

    def _subscribe(self, topic: Topic, vehicle: str) -> None:
        """One callback group a topic: a picture that is being handed over delays no command."""
        group = MutuallyExclusiveCallbackGroup()
        qos_of_each = [topic.qos]
        if topic.qos.any_publisher and topic.qos.transient_local:
            # The first subscription matches every publisher and so gets nothing that was kept; the second one does.
            qos_of_each.append(replace(topic.qos, any_publisher=False))
        taken: deque[int] = deque(maxlen=2 * topic.qos.depth)

        def take(payload: bytes, info: dict[str, Any]) -> None:
            if len(qos_of_each) > 1:
                if info["source_timestamp"] in taken:
                    return
                taken.append(info["source_timestamp"])
            self._link.send(topic, payload)

        for qos in qos_of_each:
            subscription(
                self,
                replace(topic, qos=qos),
                vehicle,
                take,
                raw=True,
                callback_group=group,
            )

    def _on_message(self, topic: Topic, payload: bytes) -> None:
        if self._ready:
            self._outlets[topic.name].publish(payload)

    def _on_state(self, state: LinkState) -> None:
        if not self._ready:
            return
        self._outlets[topics.LINK_STATE.name].publish(conversions.encode(state))
        due = state.up != self._reported_up or state.stamp_s >= self._next_report_s
        if due and topics.LINK_UP.name in self._outlets:
            self._reported_up = state.up
            self._next_report_s = state.stamp_s + LINK_UP_PERIOD_S
            up = cdr.pack(topics.LINK_UP.type, cdr.make(topics.LINK_UP.type, data=state.up))
            self._outlets[topics.LINK_UP.name].publish(up)

    # --- services

    def _serve(self, service: str, group: ReentrantCallbackGroup) -> None:
        """The edge: calls from the other side become calls of the vehicle's service here."""
        kind = message_type(settings.SERVICES[service])
        client = self.create_client(
            kind, topics.resolve(service, self._link.settings.vehicle), callback_group=group
        )

        def call(request: bytes) -> CallResult:
            if not client.service_is_ready():
                message = f"{service} is not offered on the edge: is airsim_bridge running?"
                return CallResult(CallStatus.NO_ANSWER, message=message)
            response = client.call(deserialize_message(request, kind.Request), timeout_sec=CALL_TIMEOUT_S)
            if response is None:
                message = f"{service} took over {CALL_TIMEOUT_S:g} s on the edge"
                return CallResult(CallStatus.NO_ANSWER, message=message)
            return CallResult(CallStatus.OK, bytes(serialize_message(response)))

        self._link.serve(service, call)

    def _offer(self, service: str, group: ReentrantCallbackGroup) -> None:
        """The server: the vehicle's service appears here, and calls of it go across."""
        kind = message_type(settings.SERVICES[service])

        def forward(request: Any, response: Any) -> Any:
            result = self._link.call(service, bytes(serialize_message(request)), CALL_TIMEOUT_S)
            if result.status is CallStatus.OK:
                return deserialize_message(result.payload, kind.Response)
            response.success, response.message = False, result.message
            return response

        name = topics.resolve(service, self._link.settings.vehicle)
        self.create_service(kind, name, forward, callback_group=group)


def health(state: LinkState, link: Link) -> Health:
    """What the link says of itself on /diagnostics."""
    level = Level.OK if state.up else Level.ERROR
    if state.up and (state.loss > LOSS_WARNED or state.refused):
        level = Level.WARN
    values = {
        "round trip ms": f"{state.round_trip_ms:.0f} +{state.jitter_ms:.0f}",
        "loss": f"{state.loss:.3f}",
        "clock offset ms": f"{1000 * state.clock_offset_s:.1f} +-{1000 * state.clock_offset_bound_s:.1f}",
        "image age ms": f"{state.image_age_ms:.0f}",
        "command age ms": f"{state.command_age_ms:.0f}",
        "sent Mbit/s": f"{state.sent_mbit_s:.2f}",
        "received Mbit/s": f"{state.received_mbit_s:.2f}",
        "pictures": f"quality {state.jpeg_quality}, {state.image_rate_hz:.1f} Hz, window {state.window}",
        "dropped": state.dropped,
        "outages": state.outages,
        **{f"{reason.value}: {key} from {who}": n for (reason, key, who), n in list(link.refusals.items())},
    }
    return Health(level, state.fault or f"up, {state.round_trip_ms:.0f} ms to {state.peer}", values)


def main() -> int:
    return run(ZenohLink)
