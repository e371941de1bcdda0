"""The bridge as a ROS node: parameters, services, and ROS as the transport of its topics."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Quaternion as QuaternionMessage
from geometry_msgs.msg import TransformStamped, Vector3
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from airsim_bridge.bridge import Bridge, CameraSettings, Settings
from airsim_bridge.client import DEFAULT_PORT, AirSimClient
from airsim_bridge.gate import GateLimits
from airsim_bridge.reflex import DepthReflex, ReflexSettings
from airsim_bridge.vehicle import SERVER_VERSIONS, Vehicle
from airsim_bridge.wire import Wire
from nav_common import frames, topics
from nav_common.clock import WallClock
from nav_common.contract import LINK_LOSS_LAND_S
from nav_common.conversions import to_message
from nav_common.data import CameraInfo, CompressedImage, Odometry, ServiceReply
from nav_common.frames import Quaternion, Vector
from nav_common.ros import declare, publisher, run, subscription, to_time
from nav_common.topics import Topic

DIAGNOSTICS_PERIOD_S = 1.0


class AirSimBridge(Node):
    """Parameters: see `_settings`; topics and services: nav_common.topics."""

    def __init__(self) -> None:
        super().__init__("airsim_bridge")
        self._edge_clock = WallClock()
        self._vehicle_namespace: str = declare(
            self, "vehicle_namespace", topics.DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        vehicle, settings, limits, reflex = self._settings()
        self._wire = self._make_wire(settings)
        self.bridge = Bridge(vehicle, self._edge_clock, self._wire, settings, limits, reflex=reflex)
        self._frames_reported = dict(self.bridge.frames)
        self._wire.connect(self.bridge)
        self._make_services()
        self._diagnostics = publisher(self, topics.DIAGNOSTICS, self._vehicle_namespace)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)
        self.bridge.start()

    def destroy_node(self) -> None:
        self.bridge.stop()
        self._client.close()
        super().destroy_node()

    # Parameters.

    def _settings(self) -> tuple[Vehicle, Settings, GateLimits, DepthReflex | None]:
        def number(name: str, default: float, what: str, low: float, high: float) -> float:
            return float(declare(self, name, default, what, minimum=low, maximum=high))

        host = declare(self, "host", "127.0.0.1", "where AirSim runs")
        port = declare(self, "port", DEFAULT_PORT, "AirSim's ApiServerPort", minimum=1, maximum=65535)
        flavor = declare(self, "api_flavor", "airsim", "which server answers", choices=tuple(SERVER_VERSIONS))
        name = declare(self, "vehicle_name", "", "AirSim's name of the vehicle; empty: its first one")
        rgb = declare(self, "rgb", False, "raw pictures are R, G, B instead of B, G, R, as under Vulkan")
        image_rate_hz = number("image_rate_hz", 10.0, "colour pictures, Hz; 0: none", 0.0, 60.0)
        depth_rate_hz = number("depth_rate_hz", 5.0, "depth pictures, Hz; 0: none", 0.0, 30.0)
        quality = declare(self, "jpeg_quality", 85, "JPEG quality", minimum=10, maximum=100)
        default_cameras = ["front_center:front"]
        what = "AirSim's name and the topic's name of each camera, the pilot's first"
        given = declare(self, "cameras", default_cameras, what)
        cameras = []
        for entry in given:
            airsim_name, colon, topic = entry.partition(":")
            if not (airsim_name and colon and topic.isidentifier()):
                raise ValueError(
                    f"parameter cameras has {entry!r}, must be like 'front_center:front' ({what})"
                )
            cameras.append(CameraSettings(airsim_name, topic, image_rate_hz, depth_rate_hz, int(quality)))
        settings = Settings(
            cameras=cameras,
            odom_rate_hz=number("odom_rate_hz", 30.0, "odometry, Hz", 10.0, 100.0),
            imu_rate_hz=number(
                "imu_rate_hz", 0.0, "inertial sensor, Hz, at most odom_rate_hz; 0: none", 0.0, 100.0
            ),
            take_off_altitude_m=number("take_off_altitude_m", 2.0, "height after take-off, m", 0.5, 50.0),
            check_colour_order=declare(
                self, "check_colour_order", True, "compare raw pictures with PNG at start"
            ),
            frame_prefix=declare(self, "frame_prefix", "", "before the names of all frames, such as drone1/"),
        )
        frame_timeout_s = number(
            "frame_timeout_s",
            2.0,
            "no new picture of the first camera for so long is a fault, s; 0: never",
            0.0,
            10.0,
        )
        limits = GateLimits(
            max_speed=number("max_speed", 5.0, "horizontal, m/s", 0.1, 20.0),
            max_vertical_speed=number("max_vertical_speed", 2.0, "m/s", 0.1, 10.0),
            max_yaw_rate=number("max_yaw_rate", math.radians(90.0), "rad/s", 0.1, math.pi),
            max_acceleration=number("max_acceleration", 4.0, "of the commanded velocity, m/s^2", 0.1, 20.0),
            frame_timeout_s=frame_timeout_s
            if frame_timeout_s > 0 and settings.cameras[0].rate_hz > 0
            else None,
            link_loss_land_s=number(
                "link_loss_land_s", LINK_LOSS_LAND_S, "link lost in the air for so long: land, s", 1.0, 3600.0
            ),
            fence_radius_m=number("fence_radius_m", 200.0, "geofence around the start, m", 1.0, 10000.0),
            fence_altitude_m=number("fence_altitude_m", 50.0, "geofence above the start, m", 1.0, 1000.0),
        )
        reflex = None
        if declare(
            self, "reflex", True, "limit forward speed to what can be stopped in the free distance ahead"
        ):
            if depth_rate_hz <= 0:
                raise ValueError("parameter reflex is True, but depth_rate_hz is 0: the reflex needs depth")
            half_width_m = number("reflex_half_width_m", 0.7, "corridor kept free, to each side, m", 0.1, 5.0)
            reflex = DepthReflex(ReflexSettings(half_width_m=half_width_m))
        self._client = AirSimClient(host, port)
        vehicle = Vehicle(self._client, self._edge_clock, name=name, flavor=flavor, rgb=rgb)
        return vehicle, settings, limits, reflex

    # Wiring.

    def _make_wire(self, settings: Settings) -> Wire:
        transport = RosTransport(self, self._vehicle_namespace)
        log = self.get_logger().info
        try:
            return TransformingWire(self, transport, settings.cameras, self._edge_clock, log)
        except ImportError:
            log("tf2_ros is not installed: transforms are not published")
            return Wire(transport, settings.cameras, self._edge_clock, log)

    def _make_services(self) -> None:
        group = ReentrantCallbackGroup()

        def serve(name: str, kind: Any, act: Callable[[Any], ServiceReply]) -> None:
            def callback(request: Any, response: Any) -> Any:
                return to_message(act(request), response)

            full_name = topics.resolve(name, self._vehicle_namespace)
            self.create_service(kind, full_name, callback, callback_group=group)

        bridge = self.bridge
        serve(topics.TAKEOFF_SERVICE, Trigger, lambda request: bridge.take_off())
        serve(topics.LAND_SERVICE, Trigger, lambda request: bridge.land())
        serve(topics.RESET_VEHICLE_SERVICE, Trigger, lambda request: bridge.reset())
        serve(topics.API_CONTROL_SERVICE, SetBool, lambda request: bridge.enable_api_control(request.data))
        serve(topics.ARM_CMD_VEL_SERVICE, SetBool, lambda request: bridge.arm_cmd_vel(request.data))

    def _publish_diagnostics(self) -> None:
        state = self.bridge.state()
        rates = {
            camera: (count - self._frames_reported[camera]) / DIAGNOSTICS_PERIOD_S
            for camera, count in self.bridge.frames.items()
        }
        self._frames_reported = dict(self.bridge.frames)
        level = DiagnosticStatus.OK
        if state.fault:
            level = DiagnosticStatus.WARN if state.connected else DiagnosticStatus.ERROR
        values = {
            "gate": f"{state.gate_mode.name}: {state.gate_reason}",
            "epoch": state.epoch,
            "flying": state.flying_mode.name,
            "collisions": state.collision_count,
            "reflex interventions": state.reflex_interventions,
            "commands refused": state.commands_refused,
            "last refusal": state.last_refusal,
            **{f"{camera} image Hz": f"{rate:.1f}" for camera, rate in rates.items()},
        }
        status = DiagnosticStatus(
            level=level,
            name=f"airsim_bridge: {self._vehicle_namespace.strip('/')}",
            message=state.fault or f"{state.flying_mode.name}, {state.gate_mode.name}",
            hardware_id=f"AirSim at {self._client.host}:{self._client.port}",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = to_time(state.stamp_s)
        self._diagnostics.publish(message)


class RosTransport:
    """Serialised messages to and from ROS: the Wire has packed them already, byte for byte as rclpy would."""

    def __init__(self, node: Node, vehicle_namespace: str) -> None:
        self._node = node
        self._vehicle_namespace = vehicle_namespace
        self._publishers: dict[str, Any] = {}
        self._lock = threading.Lock()
        # Commands wait neither for a service that lasts as long as a landing nor for the diagnostics.
        self._group = MutuallyExclusiveCallbackGroup()

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
                take,  # type: ignore[arg-type]  # rclpy's annotation knows no callback with the message's info
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
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin, name="executor", daemon=True)
    spinner.start()
    try:
        yield RosTransport(node, vehicle_namespace)
    finally:
        executor.shutdown(timeout_sec=1.0)
        spinner.join(timeout=2.0)
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
    return run(AirSimBridge)


if __name__ == "__main__":
    sys.exit(main())
