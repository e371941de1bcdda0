"""A graph that runs, live in Foxglove: its messages byte for byte, with their definitions, by foxglove-sdk's server.

What a recording holds is what is shown, so the layout of a recording fits. Viewers can only look: the server offers
neither publishing nor services nor parameters.
"""

from __future__ import annotations

import threading
from typing import Any

import foxglove

from nav_common.bag_writer import typestore
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE
from nav_eval.profile import PROFILE


class LiveError(ValueError):
    """The server cannot be started; the message says where and why."""


class LiveServer(foxglove.websocket.ServerListener):
    """Serves the recording profile's topics. `put` may be called from any thread and never waits: a viewer that is too
    slow loses messages.

    Args:
        host: address to listen on. Whoever reaches it can look.
        port: 0 takes a free one.

    Raises:
        LiveError: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int, *, vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE) -> None:
        context = self._context = foxglove.Context()  # its end would be that of the channels
        shown = {recorded.topic.resolve(vehicle_namespace): recorded.topic for recorded in PROFILE}
        self._channels = {name: _channel(name, topic.type, context) for name, topic in shown.items()}
        self._kept = {name: (0, b"") for name, topic in shown.items() if topic.qos.transient_local}
        self._lock = threading.Lock()
        try:
            self._server = foxglove.start_server(
                name="StreamPilot",
                host=host,
                port=port,
                context=context,
                capabilities=[],
                server_listener=self,
            )
        except RuntimeError as error:
            raise LiveError(f"cannot listen on {host}:{port}: {error}; choose another port") from error

    @property
    def port(self) -> int:
        return self._server.port

    def put(self, topic: str, time_ns: int, data: bytes) -> None:
        """One serialized message with its time, to whoever looks."""
        if topic in self._kept:
            with self._lock:
                self._kept[topic] = time_ns, data
        self._channels[topic].log(data, log_time=time_ns)

    def on_subscribe(self, client: Any, channel: Any) -> None:
        """Who comes later gets what a late subscriber of the topic would."""
        with self._lock:
            time_ns, data = self._kept.get(channel.topic, (0, b""))
        if data:
            self._channels[channel.topic].log(data, log_time=time_ns)

    def close(self) -> None:
        self._server.stop()


def _channel(name: str, type_name: str, context: foxglove.Context) -> foxglove.Channel:
    definition, _ = typestore().generate_msgdef(type_name, ros_version=2)
    schema = foxglove.Schema(name=type_name, encoding="ros2msg", data=definition.encode())
    return foxglove.Channel(name, schema=schema, message_encoding="cdr", context=context)
