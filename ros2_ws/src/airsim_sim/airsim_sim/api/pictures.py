"""Methods about cameras: pictures of every type, poses, fields of view."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import mujoco
import numpy as np

from airsim_sim.api.table import Where, method
from airsim_sim.api.values import check_vehicle, ned, number, pose, quaternion, rotation_in, vector, vector_in
from airsim_sim.drone import SimulatedDrone
from airsim_sim.flight import CallError
from airsim_sim.model import CAMERA_NUMBERS, IMAGE_TYPES, CameraSpec, vertical_fov_deg
from airsim_sim.render import pixel_rays
from airsim_sim.segmentation import colours_by_body, ids_by_body

STEREO_BASELINE_M = 0.25  # AirSim's distance between left and right eye
SHARES = ("depth_vis", "disparity")  # image types whose floats are from 0 to 1, the others are metres
PICTURES_AT_ONCE = 100  # chosen: far above what a client asks for, and an answer stays in memory
GREY_RANGE_M = 100.0  # depth that is white in eight bits


def _camera(sim: SimulatedDrone, name: Any) -> CameraSpec:
    wanted = CAMERA_NUMBERS.get(str(name), str(name))
    for camera in sim.cameras:
        if camera.name == wanted:
            return camera
    raise CallError(f"camera '{name}' does not exist; there are {', '.join(c.name for c in sim.cameras)}")


def _kind(image_type: Any) -> str:
    if image_type not in IMAGE_TYPES:
        raise CallError(f"image type {image_type} is not supported; there are {dict(IMAGE_TYPES)}")
    return IMAGE_TYPES[image_type]


def _picture(sim: SimulatedDrone, camera: CameraSpec, kind: str, qpos: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 R G B, or (H, W) float32: metres, for `SHARES` from 0 to 1."""
    renderer = sim.renderer()
    if kind in ("segmentation", "infrared"):
        bodies = renderer.draw(qpos, camera.name, "segmentation", camera.size(kind))
        colours = colours_by_body(sim) if kind == "segmentation" else ids_by_body(sim)[:, None].repeat(3, 1)
        picture: np.ndarray = colours[bodies]
        return picture
    if kind == "disparity":
        return disparity(renderer.draw(qpos, camera.name, "depth_planar", camera.size(kind)), camera.fov_deg)
    if kind == "surface_normals":
        depth = renderer.draw(qpos, camera.name, "depth_planar", camera.size(kind))
        return surface_normals(depth, camera.fov_deg)
    return renderer.draw(qpos, camera.name, kind)


def disparity(depth: np.ndarray, fov_deg: float) -> np.ndarray:
    """Shift between two cameras `STEREO_BASELINE_M` apart as a share of the picture's width; (H, W) float32."""
    focal = 0.5 / math.tan(math.radians(fov_deg) / 2)  # in picture widths
    shares: np.ndarray = np.clip(focal * STEREO_BASELINE_M / np.maximum(depth, 1e-3), 0, 1)
    return shares.astype(np.float32)


def surface_normals(depth: np.ndarray, fov_deg: float) -> np.ndarray:
    """Normals in the camera's frame (right, up, towards the camera) as (n + 1) / 2 in R G B; (H, W, 3) uint8."""
    height, width = depth.shape
    right, down = pixel_rays(fov_deg, width, height)
    points = np.stack([right * depth, -down * depth, -depth], axis=2).astype(np.float64)
    along_rows, along_columns = np.gradient(points, axis=1), -np.gradient(points, axis=0)
    normals = np.cross(along_rows, along_columns)
    normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-12)
    shades: np.ndarray = np.round((normals + 1) * 127.5).astype(np.uint8)
    return shades


def _eight_bit(picture: np.ndarray, kind: str) -> np.ndarray:
    """What AirSim sends when floats are not asked for: B, G, R; depth as grey over 0 to 100 m."""
    if picture.ndim == 3:
        return np.ascontiguousarray(picture[..., ::-1])
    scale = 255.0 if kind in SHARES else 255.0 / GREY_RANGE_M
    grey = np.clip(picture * scale, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _png(picture: np.ndarray, kind: str) -> bytes:
    done, data = cv2.imencode(".png", _eight_bit(picture, kind), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise CallError("the picture could not be encoded as PNG")
    return data.tobytes()


def _response(sim: SimulatedDrone, request: Any, qpos: np.ndarray, stamp_ns: int) -> dict[str, Any]:
    camera, kind = _camera(sim, request["camera_name"]), _kind(request["image_type"])
    floats, compress = bool(request["pixels_as_float"]), bool(request["compress"])
    picture = _picture(sim, camera, kind, qpos)
    height, width = picture.shape[:2]
    # An empty vector is sent as one zero: AirSim works around a fault of rpclib that way, and clients know it.
    data8, data_float = b"\0", [0.0]
    if floats:
        grey = picture if picture.ndim == 2 else picture.astype(np.float32).mean(axis=2)
        data_float = grey.ravel().tolist()
    else:
        data8 = _png(picture, kind) if compress else _eight_bit(picture, kind).tobytes()
    position, orientation = camera_pose(camera, qpos)
    return {
        "image_data_uint8": data8, "image_data_float": data_float, "camera_name": request["camera_name"],
        "camera_position": vector(ned(position)), "camera_orientation": quaternion(orientation),
        "time_stamp": stamp_ns, "message": "", "pixels_as_float": floats, "compress": compress and not floats,
        "width": width, "height": height, "image_type": request["image_type"],
        **({"annotation_name": request.get("annotation_name", "")} if sim.flavor == "cosys" else {}),
    }  # fmt: skip


def camera_pose(camera: CameraSpec, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera's position and orientation (forward-left-up body) in the world frame."""
    body, local, result = np.zeros(9), np.zeros(4), np.zeros(4)
    mujoco.mju_quat2Mat(body, qpos[3:7])
    mujoco.mju_mat2Quat(local, camera.rotation().reshape(9))
    mujoco.mju_mulQuat(result, qpos[3:7], local)
    return qpos[:3] + body.reshape(3, 3) @ np.array(camera.position), result


@method("simGetImages", 3, cosys=2, where=Where.RENDER)
def _get_images(
    sim: SimulatedDrone, requests: Any, vehicle: str, external: bool = False
) -> list[dict[str, Any]]:
    check_vehicle(sim, vehicle)
    if len(requests) > PICTURES_AT_ONCE:
        raise CallError(f"at most {PICTURES_AT_ONCE} pictures in one call, these are {len(requests)}")
    qpos, stamp_ns = sim.snapshot()
    return [_response(sim, request, qpos, stamp_ns) for request in requests]


@method("simGetImage", 4, where=Where.RENDER)
def _get_image(
    sim: SimulatedDrone, camera: Any, image_type: Any, vehicle: str, external_or_annotation: Any
) -> bytes:
    check_vehicle(sim, vehicle)
    kind = _kind(image_type)
    return _png(_picture(sim, _camera(sim, camera), kind, sim.snapshot()[0]), kind)


@method("simGetCameraInfo", 3, cosys=2)
def _camera_info(sim: SimulatedDrone, name: Any, vehicle: str, external: bool = False) -> dict[str, Any]:
    check_vehicle(sim, vehicle)
    camera = _camera(sim, name)
    position, orientation = camera_pose(camera, sim.data.qpos[:7])
    width, height = camera.size("scene")
    across = 1 / math.tan(math.radians(camera.fov_deg) / 2)
    up = 1 / math.tan(math.radians(vertical_fov_deg(camera.fov_deg, width, height)) / 2)
    # Unreal's projection: reversed depth, near plane 10 cm.
    matrix = [[across, 0.0, 0.0, 0.0], [0.0, up, 0.0, 0.0], [0.0, 0.0, 0.0, 10.0], [0.0, 0.0, 1.0, 0.0]]
    return {"pose": pose(position, orientation), "fov": camera.fov_deg, "proj_mat": {"matrix": matrix}}


@method("simSetCameraPose", 4, cosys=3, where=Where.RENDER)
def _set_camera_pose(
    sim: SimulatedDrone, name: Any, wanted: Any, vehicle: str, external: bool = False
) -> None:
    """Pose on the drone, front-right-down; NaN in position or orientation keeps what it is."""
    check_vehicle(sim, vehicle)
    camera = _camera(sim, name)
    if not any(math.isnan(float(wanted["position"][key])) for key in ("x_val", "y_val", "z_val")):
        position = vector_in(wanted["position"], "position")
        if not all(abs(component) <= 10 for component in position):
            raise CallError(f"a camera must be at most 10 m from the drone's centre, is at {position}")
        camera = replace(camera, position=ned(position))
    if not any(math.isnan(float(wanted["orientation"][key])) for key in ("w_val", "x_val", "y_val", "z_val")):
        roll, pitch, yaw = _angles_deg(*rotation_in(wanted["orientation"], "orientation"))
        camera = replace(camera, roll_deg=roll, pitch_deg=pitch, yaw_deg=yaw)
    sim.set_camera(camera)


@method("simSetCameraFov", 4, cosys=3, where=Where.RENDER)
def _set_camera_fov(
    sim: SimulatedDrone, name: Any, fov_deg: Any, vehicle: str, external: bool = False
) -> None:
    check_vehicle(sim, vehicle)
    angle = number(fov_deg, "fov_degrees")
    if not 5 <= angle <= 170:
        raise CallError(f"fov_degrees must be from 5 to 170, is {angle:g}")
    sim.set_camera(replace(_camera(sim, name), fov_deg=angle))


def _angles_deg(w: float, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Roll, pitch and yaw in AirSim's sense (front-right-down) of a quaternion in forward-left-up."""
    y, z = -y, -z
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return math.degrees(roll), math.degrees(pitch), math.degrees(yaw)
