"""ROS nodes of nav_eval: `record` writes the graph's topics to a recording, `live` shows them in Foxglove, `play` sends
a recording into the topics."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rclpy.node import Node

from nav_common import ros, topics
from nav_common.data import Odometry
from nav_common.frames import Vector, enu_from_ned
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE, Topic
from nav_eval.bags import Bag, BagError
from nav_eval.ground_truth import SAMPLE_PERIOD_S, Point, Simulator
from nav_eval.player import INPUTS, inputs
from nav_eval.profile import HISTORY, LIVE_PORT, PROFILE
from nav_eval.recorder import Recorder

GOAL_PERIOD_S = 2.0


def _subscribe(
    node: Node, topic: Topic, namespace: str, depth: int, put: Callable[[str, int, bytes], None]
) -> None:
    """Each message of `topic` as its name, when it came (ns) and its bytes."""
    name = topic.resolve(namespace)

    def take(data: bytes, info: dict[str, Any]) -> None:
        put(name, info["received_timestamp"], bytes(data))

    # Without the lease: a recorder takes what any publisher offers.
    qos = ros.qos_profile(replace(topic.qos, depth=depth, lease_s=0.0), subscriber=True)
    message_type = ros.message_type(topic.type)
    # rclpy's annotation knows only callbacks without the message's info.
    node.create_subscription(message_type, name, take, qos, raw=True)  # type: ignore[arg-type]


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
            _subscribe(self, recorded.topic, namespace, HISTORY, self._recorder.put)
        self.failed = False
        """Whether the recording ended before the flight did."""
        self.create_timer(0.5, self._end_on_failure)
        ros.publish_diagnostics(self, str(output), self._recorder.health)
        self.get_logger().info(f"recording to {output}")

    def _end_on_failure(self) -> None:
        """A disk that refuses ends this process alone: the flight goes on without a recording."""
        if self._recorder.error and not self.failed:
            self.failed = True
            self.get_logger().error(str(self._recorder.error))
            os.kill(os.getpid(), signal.SIGINT)  # the way that ros.run ends

    def destroy_node(self) -> None:
        self._recorder.close()
        dropped = sum(self._recorder.dropped.values())
        self.get_logger().info(
            f"{self._recorder.written} messages in {self._recorder.path}, {dropped} dropped"
        )
        if self._recorder.error and not self.failed:
            self.failed = True
            self.get_logger().error(str(self._recorder.error))
        super().destroy_node()


def record() -> None:
    """Entry point of the executable `record`; exit status 1 when the disk refused a part of the recording."""
    made: list[RecorderNode] = []

    def make() -> RecorderNode:
        made.append(RecorderNode())
        return made[0]

    status = ros.run(make, threads=1)
    sys.exit(status or int(any(node.failed for node in made)))


class LiveNode(Node):
    """Hands the recording profile's topics to Foxglove, without decoding them."""

    def __init__(self) -> None:
        from nav_eval.live import LiveError, LiveServer  # foxglove-sdk, which the recorder does without

        super().__init__("live")
        host = ros.declare(self, "host", "127.0.0.1", "address to listen on; whoever reaches it can look")
        port = ros.declare(self, "port", LIVE_PORT, "port to listen on", minimum=0, maximum=65535)
        namespace = ros.declare(
            self, "vehicle_namespace", DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        try:
            self._server = LiveServer(host, port, vehicle_namespace=namespace)
        except LiveError as error:
            raise ros.ParameterError(str(error)) from error
        for recorded in PROFILE:
            _subscribe(self, recorded.topic, namespace, recorded.topic.qos.depth, self._server.put)
        self.get_logger().info(f"open ws://{host}:{self._server.port} in Foxglove")

    def destroy_node(self) -> None:
        self._server.close()
        super().destroy_node()


def live() -> None:
    """Entry point of `python -m nav_eval live`."""
    sys.exit(ros.run(LiveNode, threads=1))


class TruthNode(Node):
    """Publishes the simulator's truth, for evaluation on another machine."""

    def __init__(self) -> None:
        super().__init__("truth")
        host = ros.declare(self, "host", "127.0.0.1", "where the simulator runs")
        port = ros.declare(self, "port", 41451, "port of its RPC", minimum=1, maximum=65535)
        goal = ros.declare(self, "goal", "", "object that the mission asks for; empty: unknown")
        namespace = ros.declare(
            self, "vehicle_namespace", DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        self._simulator = Simulator(host, port, goal)
        self._position = ros.publisher(self, topics.TRUTH, namespace)
        self._goal = ros.publisher(self, topics.TRUTH_GOAL, namespace)
        self.create_timer(SAMPLE_PERIOD_S, lambda: self._publish(self._position, self._simulator.position()))
        self.create_timer(GOAL_PERIOD_S, lambda: self._publish(self._goal, self._simulator.goal()))

    def _publish(self, outlet: Any, point: Point | None) -> None:
        if point is not None:
            now_s = self.get_clock().now().nanoseconds * 1e-9
            outlet.publish(ros.to_ros(Odometry(now_s, enu_from_ned(Vector(*point)), frame_id="world")))

    def destroy_node(self) -> None:
        self._simulator.close()
        super().destroy_node()


def truth() -> None:
    """Entry point of the executable `truth`."""
    sys.exit(ros.run(TruthNode, threads=1))


class PlayerNode(Node):
    """Publishes a recording's inputs at a chosen rate, then reports how many of its frames perception used."""

    def __init__(self) -> None:
        super().__init__("player")
        bag = ros.declare(self, "bag", "", "recording to play")
        self._rate: float = ros.declare(
            self, "rate", 1.0, "speed; 1 is the recording's own", minimum=0.01, maximum=100.0
        )
        namespace = ros.declare(
            self, "vehicle_namespace", DEFAULT_VEHICLE_NAMESPACE, "namespace of the topics to play into"
        )
        self._wait_s: float = ros.declare(
            self,
            "wait_s",
            60.0,
            "longest wait for a subscriber of the pictures, and then for perception, s",
            minimum=0.0,
            maximum=600.0,
        )
        self._for_perception: bool = ros.declare(
            self, "for_perception", True, "wait for perception; false: any subscriber of the pictures will do"
        )
        if not bag:
            raise ros.ParameterError("parameter bag is empty: give the recording to play")
        self._bag = Path(bag)
        try:
            with Bag(self._bag) as recording:
                recording.require(
                    topics.FRONT_IMAGE.resolve(recording.vehicle_namespace()), topics.FRONT_IMAGE.type
                )
        except BagError as error:
            raise ros.ParameterError(f"parameter bag: {error}") from error
        self._outlets = {topic: ros.publisher(self, topic, namespace) for topic in INPUTS}
        self._status: Any = None
        ros.subscription(self, topics.ENGINE_STATUS, namespace, self._on_status)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="player", daemon=True)
        self._thread.start()

    def _on_status(self, status: Any) -> None:
        self._status = status

    def _play(self) -> None:
        try:
            self._play_all()
        except BagError as error:
            self.get_logger().error(str(error))
        if not self._stopping.is_set():
            os.kill(os.getpid(), signal.SIGINT)  # the way that ros.run ends

    def _play_all(self) -> None:
        images = self._outlets[topics.FRONT_IMAGE]
        self._wait(lambda: images.get_subscription_count() > 0)
        self._wait(lambda: self._status is not None or not self._for_perception)
        before, start, late_s, frames = self._status, math.nan, 0.0, 0
        for message in inputs(self._bag):
            start = time.monotonic() if math.isnan(start) else start
            wait_s = start + message.offset_s / self._rate - time.monotonic()
            if wait_s < 0:  # lost time is not made up for: frames in a burst would only replace each other
                start -= wait_s
                late_s -= wait_s
            elif self._stopping.wait(wait_s):
                break
            self._outlets[message.topic].publish(message.payload)
            frames += message.topic is topics.FRONT_IMAGE
        self._stopping.wait(2.0)  # the last status
        self.get_logger().info(
            f"{frames} frames sent, {late_s:.2f} s behind the rate; {self._kept_up(before)}"
        )

    def _wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + self._wait_s
        while not condition() and time.monotonic() < end and not self._stopping.wait(0.05):
            pass

    def _kept_up(self, before: Any) -> str:
        if self._status is None:
            return "no status of perception was received"
        counts = {
            name: int(getattr(self._status, name)) - (int(getattr(before, name)) if before else 0)
            for name in ("frames_received", "frames_appended", "frames_replaced", "frames_broken")
        }
        return "perception: " + ", ".join(f"{count} {name[7:]}" for name, count in counts.items())

    def destroy_node(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=5.0)
        super().destroy_node()


def play() -> None:
    """Entry point of the executable `play`."""
    sys.exit(ros.run(PlayerNode, threads=2))
