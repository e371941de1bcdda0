"""One vehicle of AirSim, in ROS's frames and units: state, motions, pictures. Works on any Rpc."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from airsim_bridge.client import Refused, Rpc
from airsim_bridge.gate import Setpoint, VehicleState
from nav_common import frames
from nav_common.clock import Clock
from nav_common.contract import COMMAND_DURATION_S, STANDSTILL_M_S
from nav_common.data import Imu, Odometry
from nav_common.frames import Quaternion, Vector

# AirSim's getServerVersion.
SERVER_VERSIONS = {"airsim": 1, "cosys": 4}
# AirSim's ImageType.
SCENE, DEPTH_PLANAR = 0, 1
# AirSim's DrivetrainType.MaxDegreeOfFreedom: fly one way and look another.
_FREE_YAW = 0
# AirSim stamps a state at its last physics step, at most this long before it answers.
STEP_S = 0.02
# Contacts closer together than this count once.
CONTACT_GAP_S = 1.0


class VehicleError(ValueError):
    """AirSim answers, but not as this vehicle, camera or version should; the message says what to change."""


class StampMapper:
    """Stamps of AirSim's clock as times of the edge's.

    A stamp read in an exchange that began at `sent` and ended at `received` was taken in between (or up to `STEP_S`
    before), which bounds the difference of the clocks on both sides. The difference moves only as far as the bounds
    demand: so it is steady, and still follows a simulator that is paused, slow, restarted, or drifts.
    """

    def __init__(self) -> None:
        self.offset_s: float | None = None

    def update(self, stamp_s: float, sent: float, received: float) -> None:
        low, high = sent - stamp_s - STEP_S, received - stamp_s
        if self.offset_s is None:
            self.offset_s = high
        self.offset_s = min(max(self.offset_s, low), high)

    def edge_time(self, stamp_s: float) -> float:
        """The edge's time of a stamp.

        Raises:
            RuntimeError: before the first `update`.
        """
        if self.offset_s is None:
            raise RuntimeError("no stamp of the vehicle has been compared with the edge's clock yet")
        return stamp_s + self.offset_s


@dataclass(frozen=True)
class Telemetry:
    """State of the vehicle as AirSim reports it."""

    odometry: Odometry
    landed: bool
    """AirSim's own judgement, also true of a vehicle that slides over the ground."""

    def for_gate(self, api_control: bool) -> VehicleState:
        landed = self.landed and self.odometry.speed < STANDSTILL_M_S
        return VehicleState(self.odometry, landed, api_control)


@dataclass(frozen=True)
class Picture:
    """A picture of a camera. `pixels`: of SCENE [height, width, 3] uint8 in B, G, R; of DEPTH_PLANAR [height, width]
    float32 in metres. `stamp_s` on the edge's clock, `vehicle_stamp_s` on AirSim's."""

    kind: int
    stamp_s: float
    vehicle_stamp_s: float
    pixels: np.ndarray
    tilt: Quaternion
    """Of the camera (FLU) against a level one that looks the same way."""


@dataclass(frozen=True)
class CameraModel:
    """A pinhole without distortion. `position` and `orientation` of its mount in base_link (FLU)."""

    fov: float
    """Horizontal, rad."""
    position: Vector
    orientation: Quaternion

    def focal_length(self, width: int) -> float:
        """In pixels of a picture that is `width` wide; the pixels are square."""
        return 0.5 * width / math.tan(0.5 * self.fov)


class Vehicle:
    """A multirotor of AirSim.

    Methods raise `RpcError` when AirSim cannot be asked, and `VehicleError` when its answer makes no sense.
    """

    def __init__(self, rpc: Rpc, clock: Clock, *, name: str = "", flavor: str = "airsim", rgb: bool = False):
        """`flavor`: "airsim" or "cosys". `rgb`: raw pictures are R, G, B, as AirSim under Vulkan may send them."""
        if flavor not in SERVER_VERSIONS:
            raise ValueError(f"api_flavor is {flavor!r}, must be one of {', '.join(SERVER_VERSIONS)}")
        self.name = name
        self.rgb = rgb
        self.armed = False
        self.collisions = 0
        self.last_collision_object = ""
        self.clock_offset_s = 0.0
        self._rpc = rpc
        # The simulator in this process begins motions by `call`.
        self._begin = getattr(rpc, "begin", rpc.call)
        self._clock = clock
        self._flavor = flavor
        self._stamps = StampMapper()
        self._last_stamp = -math.inf
        self._last_contact_s = -math.inf

    # Asking.

    def check(self) -> None:
        """Whether the server is of the flavour, and has this vehicle.

        Raises:
            VehicleError: it is not, or has not.
        """
        version = self._rpc.call("getServerVersion")
        if version != SERVER_VERSIONS[self._flavor]:
            fits = [flavor for flavor, number in SERVER_VERSIONS.items() if number == version]
            remedy = (
                f"set api_flavor to {fits[0]}" if fits else "this bridge supports 1 (AirSim) and 4 (Cosys)"
            )
            raise VehicleError(
                f"the server's version is {version}, {self._flavor} has {SERVER_VERSIONS[self._flavor]}: {remedy}"
            )
        if self.name:
            try:
                names = self._rpc.call("listVehicles")
            except Refused:
                return  # older servers cannot list them; the first call by name will fail then
            if self.name not in names:
                raise VehicleError(
                    f"there is no vehicle {self.name!r}, the server has {', '.join(names) or 'none'}: "
                    "correct vehicle_name, or leave it empty for the first one"
                )

    def telemetry(self) -> Telemetry:
        """The vehicle's state, with a stamp newer than the one before."""
        sent = self._clock.now()
        state = self._rpc.call("getMultirotorState", self.name)
        received = self._clock.now()
        try:
            kinematics = state["kinematics_estimated"]
            position = _vector(kinematics["position"])
            orientation = _quaternion(kinematics["orientation"])
            velocity = _vector(kinematics["linear_velocity"])
            angular = _vector(kinematics["angular_velocity"])
            landed = int(state["landed_state"]) == 0
            vehicle_stamp_s = float(state["timestamp"]) * 1e-9
        except (KeyError, TypeError, ValueError) as error:
            raise VehicleError(
                f"getMultirotorState answered without a usable {error}: {state!r:.200}"
            ) from error
        values = (*position, *orientation, *velocity, *angular, vehicle_stamp_s)
        if not all(map(math.isfinite, values)):
            raise VehicleError(
                f"getMultirotorState answered with numbers that are not finite: {state!r:.400}"
            )
        self._stamps.update(vehicle_stamp_s, sent, received)
        # A paused simulator repeats its stamp, and mapping may step back by some milliseconds: neither must be seen.
        stamp = max(self._stamps.edge_time(vehicle_stamp_s), self._last_stamp + 1e-6)
        self._last_stamp = stamp
        self.clock_offset_s = stamp - vehicle_stamp_s
        odometry = Odometry(
            stamp_s=stamp,
            position=frames.enu_from_ned(position),
            orientation=frames.enu_flu_from_ned_frd(orientation),
            velocity=frames.body_velocity_from_ned(orientation, velocity),
            angular_velocity=frames.flu_from_frd(angular),
        )
        return Telemetry(odometry, landed)

    def api_control(self) -> bool:
        return bool(self._rpc.call("isApiControlEnabled", self.name))

    def look_for_collision(self) -> bool:
        """Read and clear AirSim's collision flag; whether a new contact was counted."""
        info = self._rpc.call("simGetCollisionInfo", self.name)
        if not info["has_collided"]:
            return False
        now = self._clock.now()
        new = now - self._last_contact_s > CONTACT_GAP_S
        self._last_contact_s = now
        self.last_collision_object = str(info["object_name"])
        self.collisions += new
        return new

    def imu(self) -> Imu:
        """The vehicle's first inertial sensor.

        Raises:
            Refused: it has none.
        """
        data = self._rpc.call("getImuData", "", self.name)
        return Imu(
            stamp_s=self._stamps.edge_time(float(data["time_stamp"]) * 1e-9),
            orientation=frames.enu_flu_from_ned_frd(_quaternion(data["orientation"])),
            angular_velocity=frames.flu_from_frd(_vector(data["angular_velocity"])),
            linear_acceleration=frames.flu_from_frd(_vector(data["linear_acceleration"])),
        )

    # Moving. Only what the gate has let through comes here.

    def send(self, setpoint: Setpoint) -> None:
        """Carry out the gate's setpoint until the next, at most for `COMMAND_DURATION_S`. Returns at once.

        60 ms after that SimpleFlight holds its position: if the bridge is killed, the vehicle stops by itself.
        """
        if setpoint.hold:
            self._begin("hover", self.name)
            return
        velocity = frames.frd_from_flu(setpoint.velocity)
        yaw = {"is_rate": True, "yaw_or_rate": frames.airsim_yaw_rate_deg(setpoint.yaw_rate)}
        self._begin(
            "moveByVelocityBodyFrame", *map(float, velocity), COMMAND_DURATION_S, _FREE_YAW, yaw, self.name
        )

    def enable_api_control(self, enabled: bool) -> None:
        self._rpc.call("enableApiControl", enabled, self.name)

    def arm(self, armed: bool) -> None:
        """Raises VehicleError when the vehicle does not."""
        if self._rpc.call("armDisarm", armed, self.name) is False:
            raise VehicleError(f"the vehicle refused to {'arm' if armed else 'disarm'}")
        self.armed = armed

    def reset(self) -> None:
        """Back to the start. AirSim drops API control and arming with it."""
        self._rpc.call("reset")
        self.armed = False

    # Pictures.

    def camera_model(self, camera: str) -> CameraModel:
        """Field of view and mount of a camera, from AirSim, while the vehicle is level.

        Raises:
            VehicleError: there is no such camera.
        """
        try:
            info = self._rpc.call("simGetCameraInfo", camera, self.name, *self._external())
            fov = math.radians(float(info["fov"]))
            position, orientation = (
                _vector(info["pose"]["position"]),
                _quaternion(info["pose"]["orientation"]),
            )
        except (Refused, KeyError, TypeError) as error:
            raise VehicleError(
                f"there is no camera {camera!r}: {error}: correct the parameter cameras"
            ) from error
        if not 0.01 < fov < math.pi - 0.01:
            raise VehicleError(f"camera {camera!r} has a field of view of {info['fov']} degrees")
        # AirSim gives the camera's pose in the world: transform it back into the body.
        pose = self._rpc.call("simGetVehiclePose", self.name)
        body = frames.conjugate(_quaternion(pose["orientation"]))
        offset = Vector(*(c - v for c, v in zip(position, _vector(pose["position"]), strict=True)))
        in_body = frames.multiply(body, orientation)
        return CameraModel(
            fov,
            frames.flu_from_frd(frames.rotate(body, offset)),
            Quaternion(in_body.w, in_body.x, -in_body.y, -in_body.z),
        )

    def picture(self, camera: str) -> Picture:
        """What the camera sees, in colour.

        Raises:
            VehicleError: no picture, or one of size zero or with a wrong number of bytes.
        """
        return self._decode(camera, SCENE, *self._images(self._request(camera, SCENE)))

    def depth(self, camera: str) -> Picture:
        """Planar depth: metres along the optical axis. Raises as `picture`."""
        request = self._request(camera, DEPTH_PLANAR, as_float=True)
        return self._decode(camera, DEPTH_PLANAR, *self._images(request))

    def _images(self, *requests: dict[str, Any]) -> list[Any]:
        answers = self._rpc.call("simGetImages", list(requests), self.name, *self._external())
        if not isinstance(answers, (list, tuple)) or len(answers) != len(requests):
            camera = requests[0]["camera_name"]
            raise VehicleError(f"camera {camera!r}: {len(requests)} pictures asked for, got {answers!r:.80}")
        return list(answers)

    def check_colour_order(self, camera: str) -> bool:
        """Whether raw pictures are R, G, B instead of B, G, R, by comparing one with AirSim's own PNG of it.

        Both are taken in one call, so they show the same moment. A picture without colours decides nothing and keeps
        the setting. Sets `rgb` and returns it.
        """
        raw, png = self._images(self._request(camera, SCENE), self._request(camera, SCENE, compress=True))
        order = self.rgb
        self.rgb = False
        try:
            pixels = self._decode(camera, SCENE, raw).pixels
        finally:
            self.rgb = order
        data = np.frombuffer(bytes(png["image_data_uint8"]), np.uint8)
        truth = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if truth is None or truth.shape != pixels.shape:
            raise VehicleError(f"camera {camera!r}: AirSim's PNG cannot be read")
        as_is = float(np.abs(pixels.astype(np.int16) - truth).mean())
        swapped = float(np.abs(pixels[..., ::-1].astype(np.int16) - truth).mean())
        if abs(as_is - swapped) > 0.5:
            self.rgb = swapped < as_is
        return self.rgb

    def _decode(self, camera: str, kind: int, answer: Any) -> Picture:
        try:
            width, height = int(answer["width"]), int(answer["height"])
            vehicle_stamp_s = float(answer["time_stamp"]) * 1e-9
            as_float = bool(answer["pixels_as_float"])
            orientation = frames.enu_flu_from_ned_frd(_quaternion(answer["camera_orientation"]))
            data = answer["image_data_float" if as_float else "image_data_uint8"]
        except (KeyError, TypeError, ValueError) as error:
            raise VehicleError(f"camera {camera!r}: an answer without a usable {error}") from error
        if width <= 0 or height <= 0:
            said = f" ({answer['message']})" if answer.get("message") else ""
            raise VehicleError(f"camera {camera!r} gave a picture of {width}x{height}{said}: does it exist?")
        if as_float:
            pixels = np.asarray(data, dtype=np.float32)
            shape: tuple[int, ...] = (height, width)
        else:
            pixels = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data, np.uint8)
            shape = (height, width, 3)
        if pixels.size != math.prod(shape):
            raise VehicleError(
                f"camera {camera!r}: {pixels.size} values for {width}x{height}, must be {math.prod(shape)}"
            )
        pixels = pixels.reshape(shape)
        if self.rgb and not as_float:
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        stamp = min(self._stamps.edge_time(vehicle_stamp_s), self._clock.now())
        half_yaw = 0.5 * frames.yaw(orientation)
        level = Quaternion(math.cos(half_yaw), 0.0, 0.0, -math.sin(half_yaw))
        return Picture(kind, stamp, vehicle_stamp_s, pixels, frames.multiply(level, orientation))

    def _request(
        self, camera: str, kind: int, *, as_float: bool = False, compress: bool = False
    ) -> dict[str, Any]:
        request = {
            "camera_name": camera,
            "image_type": kind,
            "pixels_as_float": as_float,
            "compress": compress,
        }
        return {**request, "annotation_name": ""} if self._flavor == "cosys" else request

    def _external(self) -> tuple[bool, ...]:
        """AirSim's last argument of image methods, which Cosys has not."""
        return (False,) if self._flavor == "airsim" else ()


def _vector(value: Any) -> Vector:
    return Vector(float(value["x_val"]), float(value["y_val"]), float(value["z_val"]))


def _quaternion(value: Any) -> Quaternion:
    return Quaternion(
        float(value["w_val"]), float(value["x_val"]), float(value["y_val"]), float(value["z_val"])
    )
