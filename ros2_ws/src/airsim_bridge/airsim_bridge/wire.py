"""The bridge's topics over any transport: what it sees as CDR messages, and CDR messages as calls of its gate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from airsim_bridge.bridge import BridgeState, CameraSettings, Depth, Frame
from airsim_bridge.gate import Command, CommandGate
from airsim_bridge.vehicle import Imu, Telemetry
from nav_common import cdr, stamps, topics
from nav_common.cdr import Message
from nav_common.conversions import from_message
from nav_common.data import VelocityCommand
from nav_common.frames import Vector
from nav_common.topics import Topic


class Transport(Protocol):
    """Carries serialised messages (CDR with its header) by topic: ROS on this machine, or a link to another."""

    def publish(self, topic: Topic, data: bytes) -> None:
        """Send; never blocks, may drop what `topic.qos` allows to be dropped."""
        ...

    def subscribe(self, topic: Topic, callback: Callable[[bytes], None]) -> None:
        """Call `callback` for each message, from any thread."""
        ...


class NoTransport:
    """For an edge that flies alone."""

    def publish(self, topic: Topic, data: bytes) -> None:
        pass

    def subscribe(self, topic: Topic, callback: Callable[[bytes], None]) -> None:
        pass


class Wire:
    """Outputs of a Bridge as messages, and messages into its gate."""

    def __init__(
        self,
        transport: Transport,
        cameras: Sequence[CameraSettings],
        *,
        frame_prefix: str = "",
        log: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._prefix = frame_prefix
        self._log = log
        self.broken_messages = 0
        self._of_camera = {
            (topic.name, camera.topic): replace(topic, name=topic.name.format(camera=camera.topic))
            for topic in (topics.CAMERA_IMAGE, topics.CAMERA_INFO, topics.CAMERA_DEPTH)
            for camera in cameras
        }

    def connect(self, gate: CommandGate) -> None:
        """Let messages into `gate`."""

        def on_command(message: Message) -> None:
            command = from_message(VelocityCommand, message)
            gate.submit(
                Command(
                    command.stamp_s,
                    command.epoch,
                    command.sequence,
                    command.twist.linear,
                    command.twist.angular,
                )
            )

        def on_cmd_vel(message: Message) -> None:
            gate.submit_manual(
                stamps.to_seconds(message.header.stamp),
                Vector(**vars(message.twist.linear)),
                Vector(**vars(message.twist.angular)),
            )

        self._subscribe(topics.COMMAND, on_command)
        self._subscribe(topics.CMD_VEL, on_cmd_vel)
        self._subscribe(topics.EMERGENCY_STOP, lambda message: gate.emergency_stop(message.data))
        self._subscribe(topics.LINK_UP, lambda message: gate.link(message.data))

    def _subscribe(self, topic: Topic, act: Callable[[Message], Any]) -> None:
        def on_data(data: bytes) -> None:
            try:
                message = cdr.unpack(topic.type, data)
            except cdr.CdrError as error:
                self.broken_messages += 1
                self._log(f"broken message on {topic.name}: {error}")
                return
            act(message)

        self._transport.subscribe(topic, on_data)

    def publish(self, topic: Topic, values: Mapping[str, Any]) -> None:
        self._transport.publish(topic, cdr.pack(topic.type, cdr.make(topic.type, **values)))

    # Outputs.

    def log(self, text: str) -> None:
        self._log(text)

    def on_odometry(self, telemetry: Telemetry) -> None:
        self.publish(
            topics.ODOM,
            {
                "header": self.header(telemetry.stamp, topics.ODOM_FRAME),
                "child_frame_id": self._prefix + topics.BASE_FRAME,
                "pose": {
                    "pose": {
                        "position": telemetry.position._asdict(),
                        "orientation": telemetry.orientation._asdict(),
                    }
                },
                "twist": {
                    "twist": {
                        "linear": telemetry.velocity._asdict(),
                        "angular": telemetry.angular_velocity._asdict(),
                    }
                },
            },
        )

    def on_frame(self, frame: Frame) -> None:
        header = self.header(frame.stamp, topics.optical_frame(frame.camera))
        focal = frame.model.focal_length(frame.width)
        cx, cy = 0.5 * frame.width, 0.5 * frame.height
        info = {
            "header": header,
            "height": frame.height,
            "width": frame.width,
            "distortion_model": "plumb_bob",
            "d": [0.0] * 5,
            "k": [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0],
            "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            "p": [focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
        }
        image = {"header": header, "format": "bgr8; jpeg compressed bgr8", "data": frame.jpeg}
        self.publish(self._of_camera[topics.CAMERA_IMAGE.name, frame.camera], image)
        self.publish(self._of_camera[topics.CAMERA_INFO.name, frame.camera], info)

    def on_depth(self, depth: Depth) -> None:
        height, width = depth.metres.shape
        self.publish(
            self._of_camera[topics.CAMERA_DEPTH.name, depth.camera],
            {
                "header": self.header(depth.stamp, topics.optical_frame(depth.camera)),
                "height": height,
                "width": width,
                "encoding": "32FC1",
                "is_bigendian": int(sys.byteorder == "big"),
                "step": 4 * width,
                "data": depth.metres.tobytes(),
            },
        )

    def on_imu(self, imu: Imu) -> None:
        self.publish(
            topics.IMU,
            {
                "header": self.header(imu.stamp, topics.BASE_FRAME),
                "orientation": imu.orientation._asdict(),
                "angular_velocity": imu.angular_velocity._asdict(),
                "linear_acceleration": imu.linear_acceleration._asdict(),
            },
        )

    def on_state(self, state: BridgeState) -> None:
        message = dict(vars(state))
        message["stamp"] = _stamp(state.stamp)
        message["flying_mode"] = message.pop("flying")
        self.publish(topics.STATE, message)

    def header(self, stamp: float, frame: str) -> dict[str, Any]:
        return {"stamp": _stamp(stamp), "frame_id": self._prefix + frame}


def _stamp(seconds: float) -> dict[str, int]:
    sec, nanosec = stamps.split(seconds)
    return {"sec": sec, "nanosec": nanosec}
