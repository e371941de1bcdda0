"""Receives what one side's graph publishes, in a ROS domain of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.node import Node

from nav_common import conversions, topics
from nav_common.ros import Spinner, subscription
from nav_common.topics import Topic


@dataclass(frozen=True)
class Received:
    """Data and when it arrived, s on this machine's clock."""

    at_s: float
    data: Any


class Watch:
    """Keeps, from now on, what is published on some topics, in order of arrival."""

    def __init__(self, domain: int | None, watched: Mapping[Topic, type[Any]], name: str = "watch") -> None:
        """domain: None for the shell's. watched: the dataclass of each topic."""
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = Node(name, context=self._context)
        self._received: dict[Topic, list[Received]] = {topic: [] for topic in watched}
        for topic, cls in watched.items():
            self._listen(topic, cls)
        self._spinner = Spinner(self._node, name="watch")

    def _listen(self, topic: Topic, cls: type[Any]) -> None:
        def keep(payload: bytes) -> None:
            self._received[topic].append(Received(time.time(), conversions.decode(cls, payload)))

        subscription(self._node, topic, topics.DEFAULT_VEHICLE_NAMESPACE, keep, raw=True)

    def received(self, topic: Topic) -> list[Received]:
        return list(self._received[topic])

    def of(self, topic: Topic) -> list[Any]:
        """The data alone."""
        return [received.data for received in self.received(topic)]

    def close(self) -> None:
        self._spinner.stop()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)
