"""The bridge as a ROS node: messages into calls of `Bridge`, what it sees into messages."""

from __future__ import annotations

import array
import math
import sys
from dataclasses import replace
from typing import Any

import diagnostic_msgs.msg
import geometry_msgs.msg
import nav_msgs.msg
import sensor_msgs.msg
import std_msgs.msg
import std_srvs.srv
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from nav_msgs_ext.msg import DroneState, VelocityCommand
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node

from airsim_bridge.bridge import Bridge, BridgeState, CameraSettings, Depth, Frame, Settings
from airsim_bridge.client import DEFAULT_PORT, AirSimClient
from airsim_bridge.gate import Command, GateLimits
from airsim_bridge.reflex import DepthReflex, ReflexSettings
from airsim_bridge.vehicle import SERVER_VERSIONS, CameraModel, Imu, Telemetry, Vehicle
from nav_common import frames, stamps, topics
from nav_common.clock import WallClock
from nav_common.frames import Quaternion, Vector
from nav_common.ros import declare, publisher, run, subscription, to_time

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
        self._frame_prefix: str = declare(
            self, "frame_prefix", "", "before the names of all frames, such as drone1/"
        )
        self._make_publishers(settings)
        self.bridge = Bridge(vehicle, self._edge_clock, self, settings, limits, reflex=reflex)
        self._frames_reported = dict(self.bridge.frames)
        self._transforms = self._transform_broadcasters()
        self._make_inputs()
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
        if not cameras:
            raise ValueError(f"parameter cameras is empty, must name at least one camera ({what})")
        if len({camera.topic for camera in cameras}) < len(cameras):
            raise ValueError(f"parameter cameras is {list(given)}: a topic's name occurs twice")
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
        )
        frame_age_s = number(
            "frame_timeout_s",
            1.0,
            "no new picture of the first camera for so long is a fault, s; 0: never",
            0.0,
            10.0,
        )
        limits = GateLimits(
            max_speed=number("max_speed", 5.0, "horizontal, m/s", 0.1, 20.0),
            max_vertical_speed=number("max_vertical_speed", 2.0, "m/s", 0.1, 10.0),
            max_yaw_rate=number("max_yaw_rate", math.radians(90.0), "rad/s", 0.1, math.pi),
            max_acceleration=number("max_acceleration", 4.0, "of the commanded velocity, m/s^2", 0.1, 20.0),
            frame_age_s=frame_age_s if frame_age_s > 0 and settings.cameras[0].rate_hz > 0 else None,
            link_loss_land_s=number(
                "link_loss_land_s", 60.0, "link lost in the air for so long: land, s", 1.0, 3600.0
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

    def _make_publishers(self, settings: Settings) -> None:
        def by_camera(topic: topics.Topic) -> dict[str, Any]:
            return {
                camera.topic: publisher(
                    self, replace(topic, name=topic.name.format(camera=camera.topic)), self._vehicle_namespace
                )
                for camera in settings.cameras
            }

        self._images = by_camera(topics.CAMERA_IMAGE)
        self._infos = by_camera(topics.CAMERA_INFO)
        self._depths = by_camera(topics.CAMERA_DEPTH)
        self._odometry = publisher(self, topics.ODOM, self._vehicle_namespace)
        self._imu = publisher(self, topics.IMU, self._vehicle_namespace)
        self._state = publisher(self, topics.STATE, self._vehicle_namespace)
        self._diagnostics = publisher(self, topics.DIAGNOSTICS, self._vehicle_namespace)

    def _make_inputs(self) -> None:
        # Commands wait for nothing: neither for one another's turn nor for a service that lasts as long as a landing.
        commands = MutuallyExclusiveCallbackGroup()
        for topic, callback in (
            (topics.COMMAND, self._on_command),
            (topics.CMD_VEL, self._on_cmd_vel),
            (topics.EMERGENCY_STOP, self._on_emergency_stop),
            (topics.LINK_UP, self._on_link),
        ):
            subscription(self, topic, self._vehicle_namespace, callback, callback_group=commands)
        services = ReentrantCallbackGroup()

        def trigger(name: str, action: Any) -> None:
            def serve(request: Any, response: Any) -> Any:
                response.success, response.message = action()
                return response

            full_name = topics.resolve(name, self._vehicle_namespace)
            self.create_service(std_srvs.srv.Trigger, full_name, serve, callback_group=services)

        def switch(name: str, action: Any) -> None:
            def serve(request: Any, response: Any) -> Any:
                response.success, response.message = action(request.data)
                return response

            full_name = topics.resolve(name, self._vehicle_namespace)
            self.create_service(std_srvs.srv.SetBool, full_name, serve, callback_group=services)

        trigger(topics.TAKEOFF_SERVICE, self.bridge.take_off)
        trigger(topics.LAND_SERVICE, self.bridge.land)
        trigger(topics.RESET_VEHICLE_SERVICE, self.bridge.reset)
        switch(topics.API_CONTROL_SERVICE, self.bridge.enable_api_control)
        switch(topics.ARM_CMD_VEL_SERVICE, self._arm_cmd_vel)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)

    def _transform_broadcasters(self) -> tuple[Any, Any] | None:
        try:
            from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster
        except ImportError:
            self.get_logger().info("tf2_ros is not installed: transforms are not published")
            return None
        self._known_cameras: dict[str, Any] = {}
        return TransformBroadcaster(self), StaticTransformBroadcaster(self)

    # What comes in.

    def _on_command(self, message: VelocityCommand) -> None:
        self.bridge.gate.submit(
            Command(
                stamp=stamps.to_seconds(message.stamp),
                epoch=message.epoch,
                sequence=message.sequence,
                linear=_xyz(message.twist.linear),
                angular=_xyz(message.twist.angular),
            )
        )

    def _on_cmd_vel(self, message: geometry_msgs.msg.TwistStamped) -> None:
        stamp, twist = stamps.to_seconds(message.header.stamp), message.twist
        self.bridge.gate.submit_manual(stamp, _xyz(twist.linear), _xyz(twist.angular))

    def _on_emergency_stop(self, message: std_msgs.msg.Bool) -> None:
        self.bridge.gate.emergency_stop(message.data)

    def _on_link(self, message: std_msgs.msg.Bool) -> None:
        self.bridge.gate.link(message.data)

    def _arm_cmd_vel(self, armed: bool) -> tuple[bool, str]:
        self.bridge.gate.arm_manual(armed)
        return True, "cmd_vel is " + ("armed: it flies, command does not" if armed else "off")

    # What goes out (Outputs).

    def on_odometry(self, telemetry: Telemetry) -> None:
        message = nav_msgs.msg.Odometry()
        message.header.stamp = to_time(telemetry.stamp)
        message.header.frame_id = self._frame(topics.ODOM_FRAME)
        message.child_frame_id = self._frame(topics.BASE_FRAME)
        message.pose.pose.position = _point(telemetry.position)
        message.pose.pose.orientation = _orientation(telemetry.orientation)
        message.twist.twist.linear = _vector3(telemetry.velocity)
        message.twist.twist.angular = _vector3(telemetry.angular_velocity)
        self._odometry.publish(message)
        if self._transforms is not None:
            self._transforms[0].sendTransform(
                _transform(message.header, message.child_frame_id, telemetry.position, telemetry.orientation)
            )

    def on_frame(self, frame: Frame) -> None:
        header = std_msgs.msg.Header(
            stamp=to_time(frame.stamp), frame_id=self._frame(topics.optical_frame(frame.camera))
        )
        image = sensor_msgs.msg.CompressedImage(header=header, format="bgr8; jpeg compressed bgr8")
        image._data = _bytes(frame.jpeg)
        self._images[frame.camera].publish(image)
        self._infos[frame.camera].publish(_camera_info(header, frame))
        self._publish_mount(frame)

    def on_depth(self, depth: Depth) -> None:
        height, width = depth.metres.shape
        image = sensor_msgs.msg.Image(height=height, width=width, encoding="32FC1", step=4 * width)
        image.header.stamp = to_time(depth.stamp)
        image.header.frame_id = self._frame(topics.optical_frame(depth.camera))
        image.is_bigendian = int(sys.byteorder == "big")
        image._data = _bytes(depth.metres.tobytes())
        self._depths[depth.camera].publish(image)

    def on_imu(self, imu: Imu) -> None:
        message = sensor_msgs.msg.Imu()
        message.header.stamp = to_time(imu.stamp)
        message.header.frame_id = self._frame(topics.BASE_FRAME)
        message.orientation = _orientation(imu.orientation)
        message.angular_velocity = _vector3(imu.angular_velocity)
        message.linear_acceleration = _vector3(imu.linear_acceleration)
        self._imu.publish(message)

    def on_state(self, state: BridgeState) -> None:
        self._state.publish(
            DroneState(
                stamp=to_time(state.stamp),
                flying_mode=int(state.flying),
                gate_mode=int(state.gate_mode),
                gate_reason=state.gate_reason,
                epoch=state.epoch,
                connected=state.connected,
                fault=state.fault,
                api_control=state.api_control,
                armed=state.armed,
                landed=state.landed,
                collision_count=state.collision_count,
                last_collision_object=state.last_collision_object,
                reflex_interventions=state.reflex_interventions,
                reflex_reason=state.reflex_reason,
                commands_refused=state.commands_refused,
                last_refusal=state.last_refusal,
                clock_offset_s=float(state.clock_offset_s),
            )
        )

    def log(self, text: str) -> None:
        self.get_logger().info(text)

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
            "flying": state.flying.name,
            "collisions": state.collision_count,
            "reflex interventions": state.reflex_interventions,
            "commands refused": state.commands_refused,
            "last refusal": state.last_refusal,
            **{f"{camera} image Hz": f"{rate:.1f}" for camera, rate in rates.items()},
        }
        status = DiagnosticStatus(
            level=level,
            name=f"airsim_bridge: {self._vehicle_namespace.strip('/')}",
            message=state.fault or f"{state.flying.name}, {state.gate_mode.name}",
            hardware_id=f"AirSim at {self._client.host}:{self._client.port}",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = diagnostic_msgs.msg.DiagnosticArray(status=[status])
        message.header.stamp = to_time(state.stamp)
        self._diagnostics.publish(message)

    def _publish_mount(self, frame: Frame) -> None:
        """Where a camera sits in the vehicle, once."""
        if self._transforms is None or frame.camera in self._known_cameras:
            return
        header = std_msgs.msg.Header(stamp=to_time(frame.stamp), frame_id=self._frame(topics.BASE_FRAME))
        rotation = frames.multiply(frame.model.orientation, frames.OPTICAL_IN_FLU)
        self._known_cameras[frame.camera] = _transform(
            header, self._frame(topics.optical_frame(frame.camera)), frame.model.position, rotation
        )
        self._transforms[1].sendTransform(list(self._known_cameras.values()))

    def _frame(self, name: str) -> str:
        return self._frame_prefix + name


def _camera_info(header: std_msgs.msg.Header, frame: Frame) -> sensor_msgs.msg.CameraInfo:
    info = sensor_msgs.msg.CameraInfo(header=header, height=frame.height, width=frame.width)
    focal = CameraModel.focal_length(frame.model, frame.width)
    cx, cy = 0.5 * frame.width, 0.5 * frame.height
    info.distortion_model = "plumb_bob"
    info.d = [0.0] * 5
    info.k = [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def _bytes(data: bytes) -> Any:
    """An array of uint8 made by one copy: the field's setter would check each byte."""
    values = array.array("B")
    values.frombytes(data)
    return values


def _xyz(v: geometry_msgs.msg.Vector3) -> Vector:
    return Vector(v.x, v.y, v.z)


def _point(v: Vector) -> geometry_msgs.msg.Point:
    return geometry_msgs.msg.Point(x=v.x, y=v.y, z=v.z)


def _vector3(v: Vector) -> geometry_msgs.msg.Vector3:
    return geometry_msgs.msg.Vector3(x=v.x, y=v.y, z=v.z)


def _orientation(q: Quaternion) -> geometry_msgs.msg.Quaternion:
    return geometry_msgs.msg.Quaternion(w=q.w, x=q.x, y=q.y, z=q.z)


def _transform(
    header: std_msgs.msg.Header, child: str, position: Vector, orientation: Quaternion
) -> geometry_msgs.msg.TransformStamped:
    message = geometry_msgs.msg.TransformStamped(header=header, child_frame_id=child)
    message.transform.translation = _vector3(position)
    message.transform.rotation = _orientation(orientation)
    return message


def main() -> None:
    sys.exit(run(AirSimBridge))


if __name__ == "__main__":
    main()
