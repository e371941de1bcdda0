"""Pictures of a world: colour, depth and segmentation, drawn by EGL, or by casting rays where EGL is missing.

Fast pictures without physics, for training data:

    renderer = open_renderer(load_world("field", seed=1))
    rgb = renderer.render((0.0, 0.0, 2.0), yaw_deg=30.0)                       # (240, 320, 3) uint8, R G B
    depth = renderer.render((0.0, 0.0, 2.0), 30.0, image_type="depth_planar")   # (120, 160) float32, metres
    small = renderer.render((0.0, 0.0, 2.0), 30.0, size=(112, 84))              # width, height
    renderer.load(load_world("field", seed=2))                                  # the next world, same context
    renderer.close()

Position is the drone's in the world frame (north-west-up, metres), yaw counter-clockwise from north in degrees.
A GL context belongs to one thread: use a renderer only in the thread that made it.
"""

from __future__ import annotations

import atexit
import math
import os
import weakref
from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from airsim_sim.model import (
    DEFAULT_CAMERAS,
    FAR_PLANE_M,
    FOG_END_M,
    FOG_START_M,
    GROUND_TILE_M,
    HEADLIGHT,
    HIDDEN_GROUP,
    SUNLIGHT,
    CameraSpec,
    build_model,
    ground_picture,
    vertical_fov_deg,
)
from airsim_sim.world import World

SKY_DEPTH_M = 65504.0  # AirSim's value for "nothing there": the largest half-precision float
DEPTH_VIS_RANGE_M = 100.0  # AirSim's DepthVis shows 0 to 100 m


class RenderError(RuntimeError):
    """Pictures cannot be drawn here, or the request names a camera or image type that does not exist."""


def open_renderer(
    world: World,
    cameras: Sequence[CameraSpec] = DEFAULT_CAMERAS,
    model: mujoco.MjModel | None = None,
    backend: str = "auto",
) -> Renderer:
    """A renderer for the world. `backend`: "egl", "rays", or "auto" (EGL where it works, else rays, said once).

    `model` spares compiling the world again. Raises RenderError when "egl" is asked for and not there.
    """
    if backend not in ("auto", "egl", "rays"):
        raise RenderError(f"renderer {backend!r} does not exist: choose auto, egl or rays")
    model = model or build_model(world, cameras)
    if backend == "rays":
        return RayRenderer(world, cameras, model)
    try:
        return EglRenderer(world, cameras, model)
    except RenderError as error:
        if backend == "egl":
            raise
        print(f"airsim_sim: {error}; casting rays instead (slower).", flush=True)
        return RayRenderer(world, cameras, model)


class Renderer:
    """Common part: poses, cameras, image types. Subclasses draw colour, planar depth and geom numbers."""

    backend = ""

    def __init__(self, world: World, cameras: Sequence[CameraSpec], model: mujoco.MjModel) -> None:
        self.cameras = {camera.name: camera for camera in cameras}
        self._set(world, model)

    def load(self, world: World) -> None:
        """Replaces the world, keeping the graphics context."""
        self._set(world, build_model(world, list(self.cameras.values())))

    def _set(self, world: World, model: mujoco.MjModel) -> None:
        self.world, self.model = world, model
        self.data = mujoco.MjData(model)
        self.data.qpos[:7] = model.qpos0[:7]

    def render(
        self,
        position: Sequence[float],
        yaw_deg: float,
        camera: str = "front_center",
        image_type: str = "scene",
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """The picture from a level drone at that pose; shapes as in `draw`."""
        half = math.radians(yaw_deg) / 2
        return self.draw(
            np.array([*position, math.cos(half), 0.0, 0.0, math.sin(half)]), camera, image_type, size
        )

    def draw(
        self,
        qpos: np.ndarray,
        camera: str = "front_center",
        image_type: str = "scene",
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """The picture from pose `qpos` (x, y, z, qw, qx, qy, qz in the world frame).

        Returns "scene" (H, W, 3) uint8 R G B; "depth_planar" and "depth_perspective" (H, W) float32 metres with
        65504 for the sky; "depth_vis" (H, W) float32 from 0 (near) to 1 (100 m); "segmentation" (H, W) int32
        body numbers, -1 for the sky. `size` is (width, height); default the camera's own.
        """
        if camera not in self.cameras:
            raise RenderError(f"camera {camera!r} does not exist; there are {', '.join(self.cameras)}")
        spec = self.cameras[camera]
        width, height = size or spec.size(image_type)
        self.data.qpos[:7] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        number = self.model.camera(camera).id
        if image_type == "scene":
            return self._colour(spec, number, width, height)
        if image_type == "segmentation":
            geoms = self._geoms(spec, number, width, height)
            return np.where(geoms < 0, -1, self.model.geom_bodyid[geoms]).astype(np.int32)
        if image_type not in ("depth_planar", "depth_perspective", "depth_vis"):
            raise RenderError(f"image type {image_type!r} does not exist")
        depth = self._depth(spec, number, width, height)
        if image_type == "depth_perspective":
            x, y = pixel_rays(spec.fov_deg, width, height)
            sky = depth >= SKY_DEPTH_M
            depth = depth * np.sqrt(1 + x * x + y * y).astype(np.float32)
            depth[sky] = SKY_DEPTH_M
        elif image_type == "depth_vis":
            depth = np.clip(depth / np.float32(DEPTH_VIS_RANGE_M), 0, 1)
        return depth

    def close(self) -> None:
        """Frees the graphics context, if there is one."""

    def _colour(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        raise NotImplementedError

    def _depth(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        raise NotImplementedError

    def _geoms(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        raise NotImplementedError


def pixel_rays(fov_deg: float, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Right and down components (height, width) of each pixel centre's ray whose forward component is 1."""
    scale = math.tan(math.radians(fov_deg) / 2) * 2 / width
    right = (np.arange(width) - (width - 1) / 2) * scale
    down = (np.arange(height) - (height - 1) / 2) * scale
    return np.broadcast_to(right, (height, width)), np.broadcast_to(down[:, None], (height, width))


class EglRenderer(Renderer):
    """Draws by OpenGL on an EGL device (a GPU, or Mesa's software renderer)."""

    backend = "egl"

    def __init__(self, world: World, cameras: Sequence[CameraSpec], model: mujoco.MjModel) -> None:
        self._context: mujoco.MjrContext | None = None
        self._gl = _egl_context()
        self._option = mujoco.MjvOption()
        self._option.geomgroup[HIDDEN_GROUP] = 0
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        super().__init__(world, cameras, model)
        # Freed before PyOpenGL ends EGL at exit, or its destructor complains.
        self._at_exit = _closer(weakref.ref(self))
        atexit.register(self._at_exit)

    def _set(self, world: World, model: mujoco.MjModel) -> None:
        super()._set(world, model)
        self._gl.make_current()
        if self._context is not None:
            self._context.free()
        sizes = [camera.size(kind) for camera in self.cameras.values() for kind in ("scene", "depth_planar")]
        model.vis.global_.offwidth = max(width for width, _ in sizes)
        model.vis.global_.offheight = max(height for _, height in sizes)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 16)
        flags = self._scene.flags
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            flags[flag] = False

    def _draw(self, spec: CameraSpec, number: int, width: int, height: int, fancy: bool) -> mujoco.MjrRect:
        self._gl.make_current()
        context = self._context
        assert context is not None
        if width > context.offWidth or height > context.offHeight:
            mujoco.mjr_resizeOffscreen(max(width, context.offWidth), max(height, context.offHeight), context)
        self.model.cam_fovy[number] = vertical_fov_deg(spec.fov_deg, width, height)
        self._camera.fixedcamid = number
        mujoco.mjv_updateScene(
            self.model,
            self.data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        for flag in (
            mujoco.mjtRndFlag.mjRND_SKYBOX,
            mujoco.mjtRndFlag.mjRND_FOG,
            mujoco.mjtRndFlag.mjRND_HAZE,
        ):
            self._scene.flags[flag] = fancy
        rect = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rect, self._scene, context)
        return rect

    def _colour(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        rect = self._draw(spec, number, width, height, fancy=True)
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, rect, self._context)
        return np.ascontiguousarray(picture[::-1])

    def _depth(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        rect = self._draw(spec, number, width, height, fancy=False)
        buffer = np.empty((height, width), np.float32)
        mujoco.mjr_readPixels(None, buffer, rect, self._context)
        near, far = float(self.model.vis.map.znear), float(self.model.vis.map.zfar)  # extent is 1
        # Reversed depth: 1 at the near plane, 0 at the far plane and in the sky.
        depth = near * far / (near + buffer[::-1].astype(np.float64) * (far - near))
        return np.where(depth > 0.99 * far, SKY_DEPTH_M, depth).astype(np.float32)

    def _geoms(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        try:
            rect = self._draw(spec, number, width, height, fancy=False)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, rect, self._context)
        coded = picture[::-1].astype(np.int32)
        drawn = (
            coded[..., 0] + 256 * coded[..., 1] + 65536 * coded[..., 2]
        )  # 0 is nothing, else scene geom + 1
        table = np.full(self._scene.ngeom + 1, -1, np.int32)
        for index in range(self._scene.ngeom):
            geom = self._scene.geoms[index]
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                table[geom.segid + 1] = geom.objid
        geoms: np.ndarray = table[np.clip(drawn, 0, self._scene.ngeom)]
        return geoms

    def close(self) -> None:
        if self._context is not None:
            atexit.unregister(self._at_exit)
            self._gl.make_current()
            self._context.free()
            self._context = None
            self._gl.free()


def _closer(renderer: weakref.ref[EglRenderer]) -> Callable[[], None]:
    def close() -> None:
        alive = renderer()
        if alive is not None:
            alive.close()

    return close


def _egl_context() -> mujoco.GLContext:
    """A current EGL context. Raises RenderError that says what is missing and how to get it."""
    os.environ["MUJOCO_GL"] = "egl"  # read when MuJoCo loads OpenGL, which is at its first context
    try:
        from mujoco.egl import GLContext

        context = GLContext(16, 16)
        context.make_current()
    except Exception as error:  # PyOpenGL raises whatever its missing library made of it
        raise RenderError(
            f"EGL does not work here ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "on Debian or Ubuntu: apt-get install libegl1 libopengl0 libgl1-mesa-dri"
        ) from error
    return context


class RayRenderer(Renderer):
    """Casts a ray a pixel (mj_multiRay); needs no graphics library, gives the same geometry and plainer colours."""

    backend = "rays"

    def _set(self, world: World, model: mujoco.MjModel) -> None:
        super()._set(world, model)
        self._ground = ground_picture(world).astype(np.float32) / 255
        self._ground_geom = model.geom("ground_seen").id
        material = model.geom_matid
        plain = model.geom_rgba[:, :3]
        self._rgb = np.where(material[:, None] >= 0, model.mat_rgba[material, :3], plain).astype(np.float32)
        self._groups = np.ones(6, np.uint8)
        self._groups[HIDDEN_GROUP] = 0

    def _cast(
        self, spec: CameraSpec, number: int, width: int, height: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Geoms, distances in units of the ray (planar depth), normals, rays and origin, flat over pixels."""
        right, down = pixel_rays(spec.fov_deg, width, height)
        local = np.stack(
            [right.ravel(), -down.ravel(), -np.ones(width * height)]
        )  # camera: x right, y up, -z ahead
        rays = np.ascontiguousarray((self.data.cam_xmat[number].reshape(3, 3) @ local).T)
        origin = self.data.cam_xpos[number].copy()
        count = len(rays)
        geoms, depth, normals = np.empty(count, np.int32), np.empty(count), np.empty((count, 3))
        mujoco.mj_multiRay(
            self.model, self.data, origin, rays.reshape(-1), self._groups, True, -1, geoms, depth,
            normals.reshape(-1), count, FAR_PLANE_M,
        )  # fmt: skip
        return geoms, depth, normals, rays, origin

    def _colour(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        geoms, depth, normals, rays, origin = self._cast(spec, number, width, height)
        hit = geoms >= 0
        rgb = self._rgb[geoms]
        ground = geoms == self._ground_geom
        at = (origin + rays[ground] * depth[ground, None])[:, :2]
        size = self._ground.shape[0]
        pixel = np.floor(at / GROUND_TILE_M % 1.0 * size).astype(int) % size
        rgb[ground] = self._ground[pixel[:, 1], pixel[:, 0]]
        light = np.maximum(0, -(normals @ np.array(self.world.sun_direction)))[:, None] * SUNLIGHT + HEADLIGHT
        rgb = np.minimum(1, rgb * light)
        length = np.linalg.norm(rays, axis=1)
        zenith, horizon = (np.array(colour) for colour in self.world.sky)
        fog = np.clip((depth * length - FOG_START_M) / (FOG_END_M - FOG_START_M), 0, 1)[:, None]
        up = np.clip(rays[:, 2] / length, 0, 1)[:, None]
        sky = horizon + (zenith - horizon) * np.minimum(1, up * 1.6)
        rgb = np.where(hit[:, None], rgb + (horizon - rgb) * fog, sky)
        picture: np.ndarray = (rgb * 255).astype(np.uint8).reshape(height, width, 3)
        return picture

    def _depth(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        geoms, depth, *_ = self._cast(spec, number, width, height)
        return np.where(geoms >= 0, depth, SKY_DEPTH_M).astype(np.float32).reshape(height, width)

    def _geoms(self, spec: CameraSpec, number: int, width: int, height: int) -> np.ndarray:
        return self._cast(spec, number, width, height)[0].reshape(height, width)
