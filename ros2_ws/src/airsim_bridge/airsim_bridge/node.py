"""The bridge as a ROS node: parameters, services, and ROS as the transport of its topics."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import rclpy
from geometry_msgs.msg import Quaternion as QuaternionMessage
from geometry_msgs.msg import TransformStamped, Vector3
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from airsim_bridge.bridge import Bridge, Settings
from airsim_bridge.client import AirSimClient
from airsim_bridge.parameters import declare_all
from airsim_bridge.vehicle import Vehicle
from airsim_bridge.wire import Wire
from nav_common import frames, topics
from nav_common.clock import Clock, WallClock
from nav_common.conversions import to_message
from nav_common.data import CameraInfo, CompressedImage, Odometry, ServiceReply
from nav_common.diagnostics import PERIOD_S, Health, Level
from nav_common.frames import Quaternion, Vector
from nav_common.ros import Spinner, publish_diagnostics, publisher, run, subscription, to_time
from nav_common.topics import Topic


class AirSimBridge(Node):
    """Parameters: airsim_bridge.parameters; topics and services: nav_common.topics.

    For an executor of one thread: no callback blocks.
    """

    def __init__(self) -> None:
        super().__init__("airsim_bridge")
        parameters = declare_all(self)
        self._vehicle_namespace = parameters.vehicle_namespace
        clock, settings = WallClock(), parameters.settings.make()
        self._client = AirSimClient(parameters.server.host, parameters.server.port)
        vehicle = Vehicle(
            self._client,
            clock,
            name=parameters.server.vehicle_name,
            flavor=parameters.server.flavor,
            rgb=parameters.server.rgb,
        )
        wire = self._make_wire(settings, clock)
        self.bridge = Bridge(
            vehicle, clock, wire, settings, parameters.limits.make(), reflex=parameters.reflex
        )
        wire.connect(self.bridge)
        parameters.settings.on_change(self.bridge.change_settings)
        parameters.limits.on_change(self.bridge.gate.change_limits)
        self._make_services()
        self._frames_reported = dict(self.bridge.frames)
        publish_diagnostics(self, f"AirSim at {self._client.host}:{self._client.port}", self._health)
        self.bridge.start()

    def destroy_node(self) -> None:
        self.bridge.stop()
        self._client.close()
        super().destroy_node()

    def _make_wire(self, settings: Settings, clock: Clock) -> Wire:
        transport = RosTransport(self, self._vehicle_namespace)
        log = self.get_logger().info
        try:
            return TransformingWire(self, transport, settings.cameras, clock, log)
        except ImportError:
            log("tf2_ros is not installed: transforms are not published")
            return Wire(transport, settings.cameras, clock, log)

    def _make_services(self) -> None:
        group = ReentrantCallbackGroup()

        def serve(name: str, kind: Any, act: Callable[[Any], ServiceReply]) -> None:
            async def callback(request: Any, response: Any) -> Any:
                return to_message(await self._in_thread(name, lambda: act(request)), response)

            full_name = topics.resolve(name, self._vehicle_namespace)
            self.create_service(kind, full_name, callback, callback_group=group)

        bridge = self.bridge
        serve(topics.TAKEOFF_SERVICE, Trigger, lambda request: bridge.take_off())
        serve(topics.LAND_SERVICE, Trigger, lambda request: bridge.land())
        serve(topics.RESET_VEHICLE_SERVICE, Trigger, lambda request: bridge.reset())
        serve(topics.API_CONTROL_SERVICE, SetBool, lambda request: bridge.enable_api_control(request.data))
        serve(topics.ARM_CMD_VEL_SERVICE, SetBool, lambda request: bridge.arm_cmd_vel(request.data))

    def _in_thread(self, name: str, act: Callable[[], ServiceReply]) -> Future:
        """What `act` returns, from a thread of its own: commands do not wait for the end of a landing."""
        future = Future(executor=self.executor)
        # With a callback to run the executor wakes when it is done; otherwise it would notice at its next message.
        future.add_done_callback(lambda done: None)

        def run_it() -> None:
            try:
                future.set_result(act())
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run_it, name=name, daemon=True).start()
        return future

    def _health(self) -> Health:
        state = self.bridge.state()
        counts = dict(self.bridge.frames)
        rates = {
            camera: (count - self._frames_reported[camera]) / PERIOD_S for camera, count in counts.items()
        }
        self._frames_reported = counts
        level = Level.OK
        if state.fault:
            level = Level.WARN if state.connected else Level.ERROR
        values = {
            "vehicle": self._vehicle_namespace,
            "gate": f"{state.gate_mode.name}: {state.gate_reason}",
            "gate tick late ms": f"{1e3 * self.bridge.gate_tick_late_s():.1f}",
            "epoch": state.epoch,
            "flying": state.flying_mode.name,
            "collisions": state.collision_count,
            "reflex interventions": state.reflex_interventions,
            "commands refused": state.commands_refused,
            "last refusal": state.last_refusal,
            **{f"{camera} image Hz": f"{rate:.1f}" for camera, rate in rates.items()},
        }
        return Health(level, state.fault or f"{state.flying_mode.name}, {state.gate_mode.name}", values)


class RosTransport:
    """Serialised messages to and from ROS: the Wire has packed them already, byte for byte as rclpy would."""

    def __init__(self, node: Node, vehicle_namespace: str) -> None:
        self._node = node
        self._vehicle_namespace = vehicle_namespace
        self._publishers: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._group = MutuallyExclusiveCallbackGroup()  # a command does not overtake another

    def publish(self, topic: Topic, payload: bytes) -> None:
        with self._lock:
            known = self._publishers.get(topic.name)
            if known is None:
                known = self._publishers[topic.name] = publisher(self._node, topic, self._vehicle_namespace)
        known.publish(payload)

    def subscribe(self, topic: Topic, callback: Callable[[bytes], None]) -> None:
        """What was sent before this node came, and is kept, arrives too."""
        qos_of_each = [topic.qos]
        if topic.qos.any_publisher and topic.qos.transient_local:
            # A subscription that matches every publisher gets nothing kept, so there is another one for that: a bridge
            # that was restarted must know of an emergency stop that is engaged.
            qos_of_each.append(replace(topic.qos, any_publisher=False))
        taken: deque[int] = deque(maxlen=2 * topic.qos.depth)

        def take(data: bytes, info: dict[str, Any]) -> None:
            stamp = info["source_timestamp"]
            if len(qos_of_each) > 1:
                if stamp in taken:
                    return  # from the other subscription
                taken.append(stamp)
            callback(data)

        for qos in qos_of_each:
            subscription(
                self._node,
                replace(topic, qos=qos),
                self._vehicle_namespace,
                take,
                raw=True,
                callback_group=self._group,
            )


@contextlib.contextmanager
def ros_transport(
    node_name: str, vehicle_namespace: str = topics.DEFAULT_VEHICLE_NAMESPACE
) -> Iterator[RosTransport]:
    """A RosTransport on a node of its own, which a thread serves."""
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.create_node(node_name)
    spinner = Spinner(node)
    try:
        yield RosTransport(node, vehicle_namespace)
    finally:
        spinner.stop()
        node.destroy_node()
        rclpy.try_shutdown()


class TransformingWire(Wire):
    """A Wire that also publishes the transforms odom -> base_link -> <camera>_optical."""

    def __init__(self, node: Node, *args: Any, **kwargs: Any) -> None:
        """Raises ImportError where tf2_ros is not installed."""
        from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

        super().__init__(*args, **kwargs)
        self._moving = TransformBroadcaster(node)
        self._fixed = StaticTransformBroadcaster(node)
        self._mounts: dict[str, TransformStamped] = {}
        self._bridge: Bridge | None = None

    def connect(self, bridge: Bridge) -> None:
        super().connect(bridge)
        self._bridge = bridge

    def on_odometry(self, odometry: Odometry) -> None:
        super().on_odometry(odometry)
        self._moving.sendTransform(
            _transform(
                odometry.stamp_s,
                odometry.frame_id,
                odometry.child_frame_id,
                odometry.position,
                odometry.orientation,
            )
        )

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        super().on_image(camera, image, info)
        model = self._bridge.camera_model(camera) if self._bridge is not None else None
        if self._bridge is not None and model is not None and camera not in self._mounts:
            parent = self._bridge.settings.frame_prefix + topics.BASE_FRAME
            rotation = frames.multiply(model.orientation, frames.OPTICAL_IN_FLU)
            self._mounts[camera] = _transform(image.stamp_s, parent, image.frame_id, model.position, rotation)
            self._fixed.sendTransform(list(self._mounts.values()))


def _transform(
    stamp_s: float, parent: str, child: str, position: Vector, orientation: Quaternion
) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.stamp = to_time(stamp_s)
    message.header.frame_id = parent
    message.transform.translation = Vector3(**position._asdict())
    message.transform.rotation = QuaternionMessage(**orientation._asdict())
    return message


def main() -> int:
    return run(AirSimBridge, threads=1)


if __name__ == "__main__":
    sys.exit(main())
