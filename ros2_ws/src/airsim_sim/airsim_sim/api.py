"""AirSim's RPC methods by name, with its exact argument counts, field names and error texts.

One table for both ways in: `Simulation.call` in process and the TCP server. Values are what msgpack carries: dicts with
AirSim's field names, north-east-down, quaternions of front-right-down bodies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import mujoco
import numpy as np

from airsim_sim.flight import CallError, Task, Vector, YawMode
from airsim_sim.model import CAMERA_NUMBERS, IMAGE_TYPES, CameraSpec, vertical_fov_deg

if TYPE_CHECKING:
    from airsim_sim.simulation import Simulation

DEFAULT_SETTINGS = '{"SettingsVersion": 1.2, "SimMode": "Multirotor"}'
HOME = {"latitude": 47.641468, "longitude": -122.140165, "altitude": 122.0}  # AirSim's default origin
METRES_A_DEGREE = 111_319.49  # on the equator, WGS-84; the east-west one shrinks with the latitude
FRAME_S = 1 / 60  # one "frame" of simContinueForFrames: Unreal's usual rate
DISTANCE_RANGE_M = (0.2, 40.0)  # AirSim's distance sensor
LIDAR_CHANNELS, LIDAR_COLUMNS, LIDAR_RANGE_M = 16, 90, 40.0  # chosen: 1,440 rays a call


@dataclass(frozen=True)
class Method:
    """One RPC method. `kind` says who may run it: "now" anywhere, "pictures" the render thread, "time" the stepper."""

    run: Callable[..., Any]
    counts: dict[str, int]  # arguments by flavor
    kind: str


METHODS: dict[str, Method] = {}


def method(
    name: str, arguments: int, cosys: int | None = None, kind: str = "now"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the table; `cosys` is Cosys-AirSim's argument count where it differs."""

    def enter(run: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = Method(
            run, {"airsim": arguments, "cosys": arguments if cosys is None else cosys}, kind
        )
        return run

    return enter


def find(flavor: str, name: str, arguments: int) -> Method:
    """The method, or CallError with rpclib's own words."""
    found = METHODS.get(name)
    if found is None:
        raise CallError(f"rpclib: server could not find function '{name}' with argument count {arguments}.")
    if found.counts[flavor] != arguments:
        raise CallError(
            f"rpclib: function '{name}' was called with an invalid number of arguments. "
            f"Expected: {found.counts[flavor]}, got: {arguments}"
        )
    return found


def call(sim: Simulation, name: str, args: tuple[Any, ...]) -> Any:
    """Runs a method. Raises CallError for anything wrong with the call."""
    found = find(sim.flavor, name, len(args))
    try:
        if found.kind != "now":
            return found.run(sim, *args)
        with sim.lock:
            return found.run(sim, *args)
    except CallError as error:
        reason: Exception = error
        text = str(error)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        reason = error
        text = f"a bad argument ({type(error).__name__}: {error})"
    raise CallError(
        f"rpclib: function '{name}' (called with {len(args)} arg(s)) threw an exception. "
        f"The exception contained this information: {text}."
    ) from reason


# ---- conversions


def vector(v: Vector) -> dict[str, float]:
    """A Vector3r."""
    return {"x_val": v[0], "y_val": v[1], "z_val": v[2]}


def ned(v: Any) -> Vector:
    """World (north-west-up) to north-east-down; its own inverse."""
    return float(v[0]), -float(v[1]), -float(v[2])


def quaternion(q: Any) -> dict[str, float]:
    """A Quaternionr in north-east-down from (w, x, y, z) in north-west-up."""
    return {"w_val": float(q[0]), "x_val": float(q[1]), "y_val": -float(q[2]), "z_val": -float(q[3])}


def _pose(position: Any, q: Any) -> dict[str, Any]:
    return {"position": vector(ned(position)), "orientation": quaternion(q)}


def _number(value: Any, what: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise CallError(f"{what} must be finite, is {number}")
    return number


def _yaw_mode(value: Any) -> YawMode:
    return YawMode(bool(value["is_rate"]), _number(value["yaw_or_rate"], "yaw_or_rate"))


def _vehicle(sim: Simulation, name: str) -> None:
    if name not in ("", sim.vehicle):
        raise CallError(
            f"Vehicle API for '{name}' is not available. This could either because this is simulation-only API "
            f"or this vehicle does not exist (there is '{sim.vehicle}')"
        )


def _seconds(value: Any, what: str) -> float:
    number = float(value)  # clients pass 3e38 for "no limit"
    if math.isnan(number):
        raise CallError(f"{what} must not be NaN")
    return number


def _note(sim: Simulation, name: str, *values: Any) -> None:
    sim.log.commands.append((sim.time_s, name, values))


# ---- connection, control


@method("ping", 0)
def _ping(sim: Simulation) -> bool:
    return True


@method("getServerVersion", 0)
def _server_version(sim: Simulation) -> int:
    return 4 if sim.flavor == "cosys" else 1


@method("getMinRequiredClientVersion", 0)
def _client_version(sim: Simulation) -> int:
    return 4 if sim.flavor == "cosys" else 1


@method("reset", 0)
def _reset(sim: Simulation) -> None:
    _note(sim, "reset")
    sim.reset()


@method("getSettingsString", 0)
def _settings(sim: Simulation) -> str:
    return sim.settings_text


@method("listVehicles", 0)
def _vehicles(sim: Simulation) -> list[str]:
    return [sim.vehicle]


@method("getHomeGeoPoint", 1)
def _home(sim: Simulation, vehicle: str) -> dict[str, float]:
    _vehicle(sim, vehicle)
    return dict(HOME)


@method("enableApiControl", 2)
def _enable_api(sim: Simulation, enabled: bool, vehicle: str) -> None:
    _vehicle(sim, vehicle)
    _note(sim, "enableApiControl", bool(enabled))
    sim.flight.api_control = bool(enabled)
    if not enabled:
        sim.flight.cancel()


@method("isApiControlEnabled", 1)
def _is_api(sim: Simulation, vehicle: str) -> bool:
    _vehicle(sim, vehicle)
    return sim.flight.api_control


@method("armDisarm", 2)
def _arm(sim: Simulation, arm: bool, vehicle: str) -> bool:
    _vehicle(sim, vehicle)
    _note(sim, "armDisarm", bool(arm))
    return sim.flight.arm(bool(arm))


@method("simPause", 1)
def _pause(sim: Simulation, paused: bool) -> None:
    sim.paused = bool(paused)


@method("simIsPaused", 0)
def _is_paused(sim: Simulation) -> bool:
    return sim.paused


@method("simContinueForTime", 1, kind="time")
def _continue_time(sim: Simulation, seconds: float) -> None:
    seconds = _number(seconds, "seconds")
    if seconds > 0:
        sim.step(seconds)
    sim.paused = True


@method("simContinueForFrames", 1, kind="time")
def _continue_frames(sim: Simulation, frames: int) -> None:
    _continue_time(sim, int(frames) * FRAME_S)


# ---- motion: each answers when its task ends


@method("takeoff", 2)
def _takeoff(sim: Simulation, timeout_s: float, vehicle: str) -> Task:
    _vehicle(sim, vehicle)
    _note(sim, "takeoff")
    return sim.flight.takeoff(sim.state(), _seconds(timeout_s, "timeout_sec"))


@method("land", 2)
def _land(sim: Simulation, timeout_s: float, vehicle: str) -> Task:
    _vehicle(sim, vehicle)
    _note(sim, "land")
    return sim.flight.land(sim.state(), _seconds(timeout_s, "timeout_sec"))


@method("goHome", 2)
def _go_home(sim: Simulation, timeout_s: float, vehicle: str) -> Task:
    _vehicle(sim, vehicle)
    _note(sim, "goHome")
    return sim.flight.move_on_path(
        sim.state(),
        "goHome",
        [ned(sim.start)],
        0.5,
        _seconds(timeout_s, "timeout_sec"),
        0,
        YawMode(True, 0.0),
    )


@method("hover", 1)
def _hover(sim: Simulation, vehicle: str) -> Task:
    _vehicle(sim, vehicle)
    _note(sim, "hover")
    return sim.flight.hover(sim.state())


@method("cancelLastTask", 1)
def _cancel(sim: Simulation, vehicle: str) -> None:
    _vehicle(sim, vehicle)
    _note(sim, "cancelLastTask")
    sim.flight.cancel()


def _move(sim: Simulation, name: str, body: bool, args: tuple[Any, ...]) -> Task:
    vx, vy, vz, duration, drivetrain, yaw_mode, vehicle = args
    _vehicle(sim, vehicle)
    velocity = (_number(vx, "vx"), _number(vy, "vy"), _number(vz, "vz"))
    yaw = _yaw_mode(yaw_mode)
    duration = _seconds(duration, "duration")
    _note(sim, name, *velocity, duration, yaw.is_rate, yaw.yaw_or_rate)
    return sim.flight.move_by_velocity(sim.state(), velocity, duration, int(drivetrain), yaw, body)


@method("moveByVelocity", 7)
def _move_by_velocity(sim: Simulation, *args: Any) -> Task:
    return _move(sim, "moveByVelocity", False, args)


@method("moveByVelocityBodyFrame", 7)
def _move_by_velocity_body(sim: Simulation, *args: Any) -> Task:
    return _move(sim, "moveByVelocityBodyFrame", True, args)


def _move_z(sim: Simulation, name: str, body: bool, args: tuple[Any, ...]) -> Task:
    vx, vy, z, duration, drivetrain, yaw_mode, vehicle = args
    _vehicle(sim, vehicle)
    vx, vy, z = _number(vx, "vx"), _number(vy, "vy"), _number(z, "z")
    yaw = _yaw_mode(yaw_mode)
    duration = _seconds(duration, "duration")
    _note(sim, name, vx, vy, z, duration, yaw.is_rate, yaw.yaw_or_rate)
    return sim.flight.move_by_velocity_z(sim.state(), vx, vy, z, duration, int(drivetrain), yaw, body)


@method("moveByVelocityZ", 7)
def _move_by_velocity_z(sim: Simulation, *args: Any) -> Task:
    return _move_z(sim, "moveByVelocityZ", False, args)


@method("moveByVelocityZBodyFrame", 7)
def _move_by_velocity_z_body(sim: Simulation, *args: Any) -> Task:
    return _move_z(sim, "moveByVelocityZBodyFrame", True, args)


def _path(
    sim: Simulation, name: str, path: list[Vector], velocity: Any, timeout_s: Any, drivetrain: Any, yaw_mode: Any,
    lookahead: Any,
) -> Task:  # fmt: skip
    speed = _number(velocity, "velocity")
    _note(sim, name, path, speed)
    return sim.flight.move_on_path(
        sim.state(), name, path, speed, _seconds(timeout_s, "timeout_sec"), int(drivetrain), _yaw_mode(yaw_mode),
        _number(lookahead, "lookahead"),
    )  # fmt: skip


@method("moveOnPath", 8)
def _move_on_path(
    sim: Simulation, path: Any, velocity: Any, timeout_s: Any, drivetrain: Any, yaw_mode: Any, lookahead: Any,
    adaptive: Any, vehicle: str,
) -> Task:  # fmt: skip
    _vehicle(sim, vehicle)
    points = [_vector_in(point, "path") for point in path]
    return _path(sim, "moveOnPath", points, velocity, timeout_s, drivetrain, yaw_mode, lookahead)


@method("moveToPosition", 10)
def _move_to_position(
    sim: Simulation, x: Any, y: Any, z: Any, velocity: Any, timeout_s: Any, drivetrain: Any, yaw_mode: Any,
    lookahead: Any, adaptive: Any, vehicle: str,
) -> Task:  # fmt: skip
    _vehicle(sim, vehicle)
    goal = (_number(x, "x"), _number(y, "y"), _number(z, "z"))
    return _path(sim, "moveToPosition", [goal], velocity, timeout_s, drivetrain, yaw_mode, lookahead)


@method("moveToZ", 7)
def _move_to_z(
    sim: Simulation,
    z: Any,
    velocity: Any,
    timeout_s: Any,
    yaw_mode: Any,
    lookahead: Any,
    adaptive: Any,
    vehicle: str,
) -> Task:
    _vehicle(sim, vehicle)
    x, y, _ = sim.state().position
    return _path(sim, "moveToZ", [(x, y, _number(z, "z"))], velocity, timeout_s, 0, yaw_mode, lookahead)


@method("rotateByYawRate", 3)
def _rotate(sim: Simulation, rate: Any, duration: Any, vehicle: str) -> Task:
    _vehicle(sim, vehicle)
    rate, duration = _number(rate, "yaw_rate"), _seconds(duration, "duration")
    _note(sim, "rotateByYawRate", rate, duration)
    return sim.flight.rotate_by_yaw_rate(sim.state(), rate, duration)


@method("rotateToYaw", 4)
def _rotate_to(sim: Simulation, yaw: Any, timeout_s: Any, margin: Any, vehicle: str) -> Task:
    _vehicle(sim, vehicle)
    yaw = _number(yaw, "yaw")
    _note(sim, "rotateToYaw", yaw)
    return sim.flight.rotate_to_yaw(
        sim.state(), yaw, _seconds(timeout_s, "timeout_sec"), _number(margin, "margin")
    )


def _vector_in(value: Any, what: str) -> Vector:
    return (
        _number(value["x_val"], f"{what}.x_val"),
        _number(value["y_val"], f"{what}.y_val"),
        _number(value["z_val"], f"{what}.z_val"),
    )


# ---- pictures


def _camera(sim: Simulation, name: Any) -> CameraSpec:
    wanted = CAMERA_NUMBERS.get(str(name), str(name))
    for camera in sim.cameras:
        if camera.name == wanted:
            return camera
    raise CallError(f"camera '{name}' does not exist; there are {', '.join(c.name for c in sim.cameras)}")


def _picture(sim: Simulation, camera: CameraSpec, image_type: Any, qpos: np.ndarray) -> np.ndarray:
    if image_type not in IMAGE_TYPES:
        raise CallError(f"image type {image_type} is not supported; there are {dict(IMAGE_TYPES)}")
    kind = IMAGE_TYPES[image_type]
    picture = sim.renderer().draw(qpos, camera.name, kind)
    if kind == "segmentation":
        return segmentation_colours(sim)[picture]
    return picture


def segmentation_colours(sim: Simulation) -> np.ndarray:
    """(bodies + 1, 3) uint8 R G B by body number; the last row, index -1, is the sky: black."""
    table = np.zeros((sim.model.nbody + 1, 3), np.uint8)
    for body in range(1, sim.model.nbody):
        table[body] = palette(_segmentation_id(sim, sim.model.body(body).name))
    return table


def palette(number: int) -> tuple[int, int, int]:
    """The colour of a segmentation id from 0 to 255: all different, 0 black."""
    red, green, blue = (
        (number * 67) & 255,
        (number * 151 + number // 3) & 255,
        (number * 211 + number // 7) & 255,
    )
    return red, green, blue


def _segmentation_id(sim: Simulation, name: str) -> int:
    return sim.segmentation_ids.get(name, sim.model.body(name).id % 256)


def _eight_bit(picture: np.ndarray) -> np.ndarray:
    """What AirSim sends when floats are not asked for: B, G, R; depth as grey over 0 to 100 m."""
    if picture.ndim == 3:
        return np.ascontiguousarray(picture[..., ::-1])
    scale = 255.0 if picture.max(initial=0.0) <= 1.0 else 2.55
    grey = np.clip(picture * scale, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _png(picture: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", _eight_bit(picture), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise CallError("the picture could not be encoded as PNG")
    return data.tobytes()


def _images(sim: Simulation, requests: Any) -> list[dict[str, Any]]:
    qpos, stamp = sim.snapshot()
    responses = []
    for request in requests:
        camera = _camera(sim, request["camera_name"])
        picture = _picture(sim, camera, request["image_type"], qpos)
        floats, compress = bool(request["pixels_as_float"]), bool(request["compress"])
        height, width = picture.shape[:2]
        # An empty vector is sent as one zero: AirSim works around a fault of rpclib that way, and clients know it.
        data8, data_float = b"\0", [0.0]
        if floats:
            grey = picture if picture.ndim == 2 else picture.astype(np.float32).mean(axis=2)
            data_float = grey.ravel().tolist()
        else:
            data8 = _png(picture) if compress else _eight_bit(picture).tobytes()
        position, orientation = _camera_pose(sim, camera, qpos)
        responses.append({
            "image_data_uint8": data8, "image_data_float": data_float, "camera_name": request["camera_name"],
            "camera_position": vector(ned(position)), "camera_orientation": quaternion(orientation),
            "time_stamp": stamp, "message": "", "pixels_as_float": floats, "compress": compress and not floats,
            "width": width, "height": height, "image_type": request["image_type"],
            **({"annotation_name": request.get("annotation_name", "")} if sim.flavor == "cosys" else {}),
        })  # fmt: skip
    return responses


def _camera_pose(sim: Simulation, camera: CameraSpec, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera's position and orientation (forward-left-up body) in the world frame."""
    body, local, result = np.zeros(9), np.zeros(4), np.zeros(4)
    mujoco.mju_quat2Mat(body, qpos[3:7])
    mujoco.mju_mat2Quat(local, camera.rotation().reshape(9))
    mujoco.mju_mulQuat(result, qpos[3:7], local)
    return qpos[:3] + body.reshape(3, 3) @ np.array(camera.position), result


@method("simGetImages", 3, cosys=2, kind="pictures")
def _get_images(sim: Simulation, requests: Any, vehicle: str, external: bool = False) -> list[dict[str, Any]]:
    _vehicle(sim, vehicle)
    return _images(sim, requests)


@method("simGetImage", 4, kind="pictures")
def _get_image(
    sim: Simulation, camera: Any, image_type: Any, vehicle: str, external_or_annotation: Any
) -> bytes:
    _vehicle(sim, vehicle)
    return _png(_picture(sim, _camera(sim, camera), image_type, sim.snapshot()[0]))


@method("simGetCameraInfo", 3, cosys=2)
def _camera_info(sim: Simulation, name: Any, vehicle: str, external: bool = False) -> dict[str, Any]:
    _vehicle(sim, vehicle)
    camera = _camera(sim, name)
    position, orientation = _camera_pose(sim, camera, sim.data.qpos[:7])
    width, height = camera.size("scene")
    across = 1 / math.tan(math.radians(camera.fov_deg) / 2)
    up = 1 / math.tan(math.radians(vertical_fov_deg(camera.fov_deg, width, height)) / 2)
    # Unreal's projection: reversed depth, near plane 10 cm.
    matrix = [[across, 0.0, 0.0, 0.0], [0.0, up, 0.0, 0.0], [0.0, 0.0, 0.0, 10.0], [0.0, 0.0, 1.0, 0.0]]
    return {"pose": _pose(position, orientation), "fov": camera.fov_deg, "proj_mat": {"matrix": matrix}}


@method("simSetSegmentationObjectID", 3)
def _set_segmentation(sim: Simulation, name: str, number: int, is_regex: bool) -> bool:
    names = list(_matching(sim, name)) if is_regex else [n for n in _names(sim) if n == name]
    for match in names:
        sim.segmentation_ids[match] = int(number) % 256
    return bool(names)


@method("simGetSegmentationObjectID", 1)
def _get_segmentation(sim: Simulation, name: str) -> int:
    return _segmentation_id(sim, name) if name in _names(sim) else -1


# ---- state


def _kinematics(sim: Simulation) -> dict[str, Any]:
    return {
        **_pose(sim.data.qpos[:3], sim.data.qpos[3:7]),
        "linear_velocity": vector(ned(sim.data.qvel[:3])),
        "angular_velocity": vector(ned(sim.data.qvel[3:6])),
        "linear_acceleration": vector(ned(sim.acceleration)),
        "angular_acceleration": vector((0.0, 0.0, 0.0)),
    }


def _geo_point(position: Vector) -> dict[str, float]:
    east = METRES_A_DEGREE * math.cos(math.radians(HOME["latitude"]))
    return {
        "latitude": HOME["latitude"] + position[0] / METRES_A_DEGREE,
        "longitude": HOME["longitude"] + position[1] / east,
        "altitude": HOME["altitude"] - position[2],
    }


NO_COLLISION = {
    "has_collided": False, "penetration_depth": 0.0, "time_stamp": 0, "normal": vector((0.0, 0.0, 0.0)),
    "impact_point": vector((0.0, 0.0, 0.0)), "position": vector((0.0, 0.0, 0.0)), "object_name": "", "object_id": -1,
}  # fmt: skip


@method("getMultirotorState", 1)
def _multirotor_state(sim: Simulation, vehicle: str) -> dict[str, Any]:
    _vehicle(sim, vehicle)
    sticks = {"pitch": 0.0, "roll": 0.0, "throttle": 0.0, "yaw": 0.0}
    switches = {f"switch{number}": 0 for number in range(1, 9)}
    return {
        "collision": NO_COLLISION,  # AirSim never fills it either
        "kinematics_estimated": _kinematics(sim),
        "gps_location": _geo_point(ned(sim.data.qpos[:3])),
        "timestamp": sim.time_ns,
        "landed_state": 0 if sim.flight.landed else 1,
        "rc_data": {"timestamp": 0, **sticks, **switches, "is_initialized": False, "is_valid": False},
        "ready": True,
        "ready_message": "",
        "can_arm": True,
    }


@method("simGetVehiclePose", 1)
def _vehicle_pose(sim: Simulation, vehicle: str) -> dict[str, Any]:
    _vehicle(sim, vehicle)
    return _pose(sim.data.qpos[:3], sim.data.qpos[3:7])


@method("simSetVehiclePose", 3)
def _set_vehicle_pose(sim: Simulation, pose: Any, ignore_collision: bool, vehicle: str) -> None:
    """NaN in position or orientation keeps what it is; roll and pitch are not kept up by this drone."""
    _vehicle(sim, vehicle)
    p, q = pose["position"], pose["orientation"]
    position = [float(p[key]) for key in ("x_val", "y_val", "z_val")]
    w, x, y, z = (float(q[key]) for key in ("w_val", "x_val", "y_val", "z_val"))
    goal = sim.position if any(map(math.isnan, position)) else ned(position)
    yaw_deg = sim.yaw_deg
    if not any(map(math.isnan, (w, x, y, z))):
        yaw_deg = -math.degrees(math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
    if not all(map(math.isfinite, (*goal, yaw_deg))):
        raise CallError("the pose must not be infinite")
    _note(sim, "simSetVehiclePose", goal, yaw_deg)
    sim.set_pose(goal, yaw_deg)


@method("simGetGroundTruthKinematics", 1)
def _ground_truth(sim: Simulation, vehicle: str) -> dict[str, Any]:
    _vehicle(sim, vehicle)
    return _kinematics(sim)


@method("simGetCollisionInfo", 1)
def _collision_info(sim: Simulation, vehicle: str) -> dict[str, Any]:
    """The newest contact; has_collided is cleared by reading."""
    _vehicle(sim, vehicle)
    hit, sim.unread_collision = sim.unread_collision, None
    if hit is None:
        return NO_COLLISION
    return {
        "has_collided": True, "penetration_depth": hit.depth, "time_stamp": sim.start_time_ns + round(hit.time_s * 1e9),
        "normal": vector(ned(hit.normal)), "impact_point": vector(ned(hit.position)),
        "position": vector(ned(sim.data.qpos[:3])), "object_name": hit.object_name,
        "object_id": sim.model.body(hit.object_name).id,
    }  # fmt: skip


# ---- objects


def _names(sim: Simulation) -> list[str]:
    return ["ground", *(item.name for item in sim.world.objects), sim.vehicle]


def _matching(sim: Simulation, pattern: str) -> Iterator[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CallError(f"{pattern!r} is not a regular expression: {error}") from error
    return (name for name in _names(sim) if compiled.fullmatch(name))


@method("simListSceneObjects", 1)
def _scene_objects(sim: Simulation, pattern: str) -> list[str]:
    return list(_matching(sim, pattern))


@method("simGetObjectPose", 1, cosys=2)
def _object_pose(sim: Simulation, name: str, is_ned: bool = True) -> dict[str, Any]:
    """NaN for an object that does not exist, as in AirSim."""
    if name == sim.vehicle:
        return _pose(sim.data.qpos[:3], sim.data.qpos[3:7])
    if name not in _names(sim):
        nothing = math.nan
        return {"position": vector((nothing,) * 3), "orientation": quaternion((nothing,) * 4)}
    body = sim.data.body(name)
    return _pose(body.xpos, body.xquat)


# ---- sensors


@method("getImuData", 2)
def _imu(sim: Simulation, name: str, vehicle: str) -> dict[str, Any]:
    """Angular velocity and specific force (gravity shows as -9.81 down at rest) in the front-right-down body frame."""
    _vehicle(sim, vehicle)
    force = np.array(sim.acceleration) + np.array((0.0, 0.0, 9.81))
    body = sim.data.body("drone").xmat.reshape(3, 3).T @ force
    return {
        "time_stamp": sim.time_ns,
        "orientation": quaternion(sim.data.qpos[3:7]),
        "angular_velocity": vector(ned(sim.data.qvel[3:6])),
        "linear_acceleration": vector(ned(body)),
    }


def _rays(sim: Simulation, directions: np.ndarray, limit_m: float) -> np.ndarray:
    """Distances along unit directions (n, 3) in the drone's forward-left-up frame; -1 where nothing is hit."""
    rotation = sim.data.body("drone").xmat.reshape(3, 3)
    rays = np.ascontiguousarray(directions @ rotation.T)
    count = len(rays)
    geoms, distances = np.empty(count, np.int32), np.empty(count)
    groups = np.ones(6, np.uint8)
    body = sim.model.body("drone").id
    mujoco.mj_multiRay(
        sim.model, sim.data, sim.data.qpos[:3].copy(), rays.reshape(-1), groups, True, body, geoms, distances,
        None, count, limit_m,
    )  # fmt: skip
    distances[(geoms < 0) | (distances > limit_m)] = -1
    return distances


@method("getDistanceSensorData", 2)
def _distance(sim: Simulation, name: str, vehicle: str) -> dict[str, Any]:
    """Straight ahead, as AirSim's default distance sensor."""
    _vehicle(sim, vehicle)
    low, high = DISTANCE_RANGE_M
    found = float(_rays(sim, np.array([[1.0, 0.0, 0.0]]), high)[0])
    return {
        "time_stamp": sim.time_ns, "distance": high if found < 0 else max(low, found), "min_distance": low,
        "max_distance": high, "relative_pose": _pose((0, 0, 0), (1, 0, 0, 0)),
    }  # fmt: skip


@method("getLidarData", 2)
def _lidar(sim: Simulation, name: str, vehicle: str) -> dict[str, Any]:
    """One turn: points x, y, z after one another in the drone's front-right-down frame, at most 40 m away."""
    _vehicle(sim, vehicle)
    around = np.linspace(-math.pi, math.pi, LIDAR_COLUMNS, endpoint=False)
    tilt = np.radians(np.linspace(-30, 10, LIDAR_CHANNELS))
    a, t = (grid.ravel() for grid in np.meshgrid(around, tilt))
    directions = np.stack([np.cos(t) * np.cos(a), np.cos(t) * np.sin(a), np.sin(t)], axis=1)
    distances = _rays(sim, directions, LIDAR_RANGE_M)
    hit = distances > 0
    points = directions[hit] * distances[hit, None] * (1.0, -1.0, -1.0)
    last: dict[str, Any] = {"groundtruth": ""} if sim.flavor == "cosys" else {"segmentation": []}
    return {
        "point_cloud": points.ravel().tolist(), "time_stamp": sim.time_ns,
        "pose": _pose(sim.data.qpos[:3], sim.data.qpos[3:7]), **last,
    }  # fmt: skip
