"""The bridge's topics over any transport: what it sees as CDR messages, and CDR messages as calls of its gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from airsim_bridge.bridge import Bridge, CameraSettings
from airsim_bridge.outputs import Throttle
from nav_common import cdr, conversions, stamps, topics
from nav_common.clock import Clock
from nav_common.conversions import ConversionError
from nav_common.data import (
    CameraInfo,
    CompressedImage,
    DepthImage,
    DroneState,
    Imu,
    Odometry,
    Twist,
    VelocityCommand,
    WatchEvent,
)
from nav_common.frames import Vector
from nav_common.topics import Topic


class Transport(Protocol):
    """Carries serialised messages (CDR with its header) by topic: ROS on this machine, or a link to another."""

    def publish(self, topic: Topic, payload: bytes) -> None:
        """Send; never blocks, may drop what `topic.qos` allows to be dropped."""
        ...

    def subscribe(self, topic: Topic, callback: Callable[[bytes], None]) -> None:
        """Call `callback` for each message, from any thread."""
        ...


class NoTransport:
    """For an edge that flies alone."""

    def publish(self, topic: Topic, payload: bytes) -> None:
        pass

    def subscribe(self, topic: Topic, callback: Callable[[bytes], None]) -> None:
        pass


class Wire:
    """Outputs of a Bridge as messages, and messages into its gate."""

    def __init__(
        self,
        transport: Transport,
        cameras: Sequence[CameraSettings],
        clock: Clock,
        log: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._log = log
        self._throttle = Throttle(clock)
        self.broken_messages = 0
        self._of_camera = {
            (topic, camera.topic): replace(topic, name=topic.name.format(camera=camera.topic))
            for topic in (topics.CAMERA_IMAGE, topics.CAMERA_INFO, topics.CAMERA_DEPTH)
            for camera in cameras
        }

    def connect(self, bridge: Bridge) -> None:
        """Let messages into the bridge's gate."""
        gate = bridge.gate

        def on_cmd_vel(payload: bytes) -> None:
            message = cdr.unpack(topics.CMD_VEL.type, payload)
            twist = Twist(_vector(message.twist.linear), _vector(message.twist.angular))
            gate.submit_manual(stamps.to_seconds(message.header.stamp), twist)

        def on_stop(payload: bytes) -> None:
            gate.emergency_stop(cdr.unpack(topics.EMERGENCY_STOP.type, payload).data)

        def on_link(payload: bytes) -> None:
            gate.link(cdr.unpack(topics.LINK_UP.type, payload).data)

        def on_watch(payload: bytes) -> None:
            event = conversions.decode(WatchEvent, payload)
            if event.holds and event.hover:
                gate.stop(f"watch: {event.watch}")

        self._subscribe(
            topics.COMMAND, lambda payload: gate.submit(conversions.decode(VelocityCommand, payload))
        )
        self._subscribe(topics.CMD_VEL, on_cmd_vel)
        self._subscribe(topics.EMERGENCY_STOP, on_stop)
        self._subscribe(topics.LINK_UP, on_link)
        self._subscribe(topics.WATCH_EVENT, on_watch)

    def _subscribe(self, topic: Topic, act: Callable[[bytes], object]) -> None:
        def on_message(payload: bytes) -> None:
            try:
                act(payload)
            except (cdr.CdrError, ConversionError) as error:
                self.broken_messages += 1
                if self._throttle.passes(topic.name):
                    self._log(f"broken message on {topic.name} ({self.broken_messages} so far): {error}")

        self._transport.subscribe(topic, on_message)

    def _publish(self, topic: Topic, value: object) -> None:
        self._transport.publish(topic, conversions.encode(value))

    # Outputs.

    def on_odometry(self, odometry: Odometry) -> None:
        self._publish(topics.ODOM, odometry)

    def on_state(self, state: DroneState) -> None:
        self._publish(topics.STATE, state)

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        self._publish(self._of_camera[topics.CAMERA_IMAGE, camera], image)
        self._publish(self._of_camera[topics.CAMERA_INFO, camera], info)

    def on_depth(self, camera: str, depth: DepthImage) -> None:
        self._publish(self._of_camera[topics.CAMERA_DEPTH, camera], depth)

    def on_imu(self, imu: Imu) -> None:
        self._publish(topics.IMU, imu)

    def log(self, text: str) -> None:
        self._log(text)


def _vector(message: Any) -> Vector:
    return Vector(message.x, message.y, message.z)
