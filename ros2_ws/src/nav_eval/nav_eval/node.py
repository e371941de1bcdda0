"""ROS nodes of nav_eval: `record` writes the graph's topics to a recording, `play` sends one into the topics."""

from __future__ import annotations

import sys
from typing import Any

from rclpy.node import Node

from nav_common import ros
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE, Qos, Topic
from nav_eval.bags import BagError
from nav_eval.profile import PROFILE
from nav_eval.recorder import Recorder


class RecorderNode(Node):
    """Subscribes to the recording profile's topics without decoding them."""

    def __init__(self) -> None:
        super().__init__("recorder")
        output = ros.declare(self, "output", "", "directory to make for the recording; must not exist")
        namespace = ros.declare(
            self, "vehicle_namespace", DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        queue_mib = ros.declare(
            self, "queue_mib", 64, "most MiB that wait in memory for the disk", minimum=1, maximum=4096
        )
        if not output:
            raise ros.ParameterError(
                "parameter output is empty: give the directory to make for the recording"
            )
        try:
            self._recorder = Recorder(output, vehicle_namespace=namespace, queue_bytes=queue_mib << 20)
        except BagError as error:
            raise ros.ParameterError(f"parameter output is {output!r}: {error}") from error
        for recorded in PROFILE:
            self._subscribe(recorded.topic, namespace)
        self._told_error = False
        self.create_timer(1.0, self._report_trouble)
        self.get_logger().info(f"recording to {output}")

    def _subscribe(self, topic: Topic, namespace: str) -> None:
        name = topic.resolve(namespace)

        def take(data: bytes, info: dict[str, Any]) -> None:
            self._recorder.put(name, info["received_timestamp"], bytes(data))

        # As offered, but deeper: a recorder that is late for a moment must lose nothing.
        qos = Qos(topic.qos.reliable, max(topic.qos.depth, 100), topic.qos.transient_local)
        message_type = ros.message_type(topic.type)
        # rclpy's annotation knows only callbacks without the message's info.
        self.create_subscription(message_type, name, take, ros.qos_profile(qos), raw=True)  # type: ignore[arg-type]

    def _report_trouble(self) -> None:
        if self._recorder.error and not self._told_error:
            self._told_error = True
            self.get_logger().error(str(self._recorder.error))

    def destroy_node(self) -> None:
        self._recorder.close()
        dropped = sum(self._recorder.dropped.values())
        self.get_logger().info(
            f"{self._recorder.written} messages in {self._recorder.path}, {dropped} dropped"
        )
        super().destroy_node()


def record() -> None:
    """Entry point of the executable `record`."""
    sys.exit(ros.run(RecorderNode, threads=1))
