"""The node's parameters, as the settings of its parts. Needs ROS, as node.py does, which is its only user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airsim_bridge.bridge import CameraSettings, Settings, check_change
from airsim_bridge.client import DEFAULT_PORT
from airsim_bridge.gate import FRAME_TIMEOUT_S, GateLimits
from airsim_bridge.reflex import DepthReflex, ReflexSettings
from airsim_bridge.vehicle import SERVER_VERSIONS
from nav_common import topics
from nav_common.ros import LiveParameters, ParameterError, declare

if TYPE_CHECKING:
    from rclpy.node import Node

CAMERAS = "AirSim's name and the topic's name of each camera, the pilot's first"


@dataclass(frozen=True)
class Server:
    """Where AirSim is and how to talk to it."""

    host: str
    port: int
    flavor: str
    vehicle_name: str
    rgb: bool


@dataclass(frozen=True)
class Parameters:
    """Of the bridge's node. `settings` and `limits` can change in flight."""

    vehicle_namespace: str
    server: Server
    settings: LiveParameters[Settings]
    limits: LiveParameters[GateLimits]
    reflex: DepthReflex | None


def declare_all(node: Node) -> Parameters:
    """Declare them and check them.

    Raises:
        ValueError: a value that the node cannot start with, by name, with its value and what is allowed.
    """
    namespace = declare(
        node, "vehicle_namespace", topics.DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
    )
    _check_names("vehicle_namespace", namespace.strip("/").split("/"), namespace)
    server = Server(
        host=declare(node, "host", "127.0.0.1", "where AirSim runs"),
        port=declare(node, "port", DEFAULT_PORT, "AirSim's ApiServerPort", minimum=1, maximum=65535),
        flavor=declare(node, "api_flavor", "airsim", "which server answers", choices=tuple(SERVER_VERSIONS)),
        vehicle_name=declare(node, "vehicle_name", "", "AirSim's name of the vehicle; empty: its first one"),
        rgb=declare(node, "rgb", False, "raw pictures are R, G, B instead of B, G, R, as under Vulkan"),
    )
    reflex = _declare_reflex(node)
    settings = _declare_settings(node, reflex is not None)
    limits = _declare_limits(node, settings.make().cameras[0].rate_hz > 0)
    return Parameters(namespace, server, settings, limits, reflex)


def _declare_reflex(node: Node) -> DepthReflex | None:
    what = "limit forward speed to what can be stopped in the free distance ahead"
    wanted = declare(node, "reflex", True, what)
    what = "corridor that the reflex keeps free, to each side, m"
    half_width_m = declare(
        node, "reflex_half_width_m", ReflexSettings().half_width_m, what, minimum=0.1, maximum=5.0
    )
    return DepthReflex(ReflexSettings(half_width_m=half_width_m)) if wanted else None


def _declare_settings(node: Node, reflex: bool) -> LiveParameters[Settings]:
    cameras = _declare_cameras(node)
    camera, default = CameraSettings(), Settings()
    what = "compare raw pictures with PNG at start"
    check_colour_order = declare(node, "check_colour_order", default.check_colour_order, what)
    what = "before the names of all frames, such as drone1/"
    frame_prefix = declare(node, "frame_prefix", default.frame_prefix, what)
    fixed: dict[str, Any] = {"check_colour_order": check_colour_order, "frame_prefix": frame_prefix}
    started: list[Settings] = []

    def make(values: Mapping[str, Any]) -> Settings:
        if reflex and values["depth_rate_hz"] <= 0:
            raise ParameterError("parameter depth_rate_hz is 0, but reflex is true: the reflex needs depth")
        pictures = {name: values[name] for name in ("image_rate_hz", "depth_rate_hz", "jpeg_quality")}
        others = {name: value for name, value in values.items() if name not in pictures}
        settings = Settings(cameras=[replace(c, **pictures) for c in cameras], **others, **fixed)
        check_change(started[0] if started else settings, settings)
        return settings

    live = LiveParameters(node, make)
    for name, value, what, low, high in (
        ("image_rate_hz", camera.image_rate_hz, "colour pictures, Hz; 0: none", 0.0, 60.0),
        ("depth_rate_hz", camera.depth_rate_hz, "depth pictures, Hz; 0: none", 0.0, 30.0),
        ("odom_rate_hz", default.odom_rate_hz, "odometry, Hz", 10.0, 100.0),
        (
            "imu_rate_hz",
            default.imu_rate_hz,
            "inertial sensor, Hz, at most odom_rate_hz; 0: none",
            0.0,
            100.0,
        ),
        ("take_off_altitude_m", default.take_off_altitude_m, "height after take-off, m", 0.5, 50.0),
    ):
        live.declare(name, value, what, minimum=low, maximum=high)
    live.declare("jpeg_quality", camera.jpeg_quality, "JPEG quality", minimum=10, maximum=100)
    started.append(live.make())
    return live


def _declare_cameras(node: Node) -> Sequence[CameraSettings]:
    default = CameraSettings()
    given = declare(node, "cameras", [f"{default.name}:{default.topic}"], CAMERAS)
    cameras = []
    for entry in given:
        name, colon, topic = entry.partition(":")
        if not (name and colon and topic.isidentifier()):
            raise ParameterError(
                f"parameter cameras has {entry!r}, must be like 'front_center:front' ({CAMERAS})"
            )
        cameras.append(CameraSettings(name, topic))
    try:
        Settings(cameras=cameras)
    except ValueError as error:
        raise ParameterError(f"parameter {error} ({CAMERAS})") from error
    return cameras


def _declare_limits(node: Node, pictures: bool) -> LiveParameters[GateLimits]:
    default = GateLimits()
    what = "no new picture of the first camera for so long is a fault, s; 0: never"
    frame_timeout_s = declare(node, "frame_timeout_s", FRAME_TIMEOUT_S, what, minimum=0.0, maximum=10.0)
    what = "link lost in the air for so long: land, s"
    link_loss_land_s = declare(
        node, "link_loss_land_s", default.link_loss_land_s, what, minimum=1.0, maximum=3600.0
    )
    fixed = {
        "frame_timeout_s": frame_timeout_s if frame_timeout_s > 0 and pictures else None,
        "link_loss_land_s": link_loss_land_s,
    }
    live = LiveParameters(node, lambda values: GateLimits(**values, **fixed))
    for name, value, what, low, high in (
        ("max_speed", default.max_speed, "horizontal, m/s", 0.1, 20.0),
        ("max_vertical_speed", default.max_vertical_speed, "m/s", 0.1, 10.0),
        ("max_yaw_rate", default.max_yaw_rate, "rad/s", 0.1, math.pi),
        ("max_acceleration", default.max_acceleration, "of the commanded velocity, m/s^2", 0.1, 20.0),
        ("fence_radius_m", default.fence_radius_m, "geofence around the start, m", 1.0, 10000.0),
        ("fence_altitude_m", default.fence_altitude_m, "geofence above the start, m", 1.0, 1000.0),
    ):
        live.declare(name, value, what, minimum=low, maximum=high)
    return live


def _check_names(parameter: str, parts: Sequence[str], value: str) -> None:
    if not all(part.isidentifier() and part.isascii() for part in parts):
        raise ParameterError(
            f"parameter {parameter} is {value!r}, must be letters, digits and underscores, "
            "in parts between slashes, none beginning with a digit"
        )
