"""A World as a MuJoCo model: solids, textures, light, the drone's body and its cameras.

Frames: MuJoCo's world is the project's north-west-up; the drone's body is forward-left-up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import mujoco
import numpy as np

from airsim_sim.world import World

TIMESTEP_S = 0.005  # 200 Hz, chosen: ten steps for each command
DRONE_RADIUS_M = 0.3  # chosen: a small camera drone of 0.6 m
DRONE_HALF_HEIGHT_M = 0.08
DRONE_MASS_KG = 1.0  # SimpleFlight's quadrotor
FAR_PLANE_M = 400.0
HIDDEN_GROUP = 4  # geoms that are felt but not seen
GROUND_CONTACT = 2  # bit of contype and conaffinity between ground and keel; bit 1 is between all others
FOG_START_M, FOG_END_M = 40.0, 300.0
GROUND_TILE_M = 8.0  # edge of the ground's repeated picture
SUNLIGHT = (0.72, 0.70, 0.64)
HEADLIGHT = (0.46, 0.46, 0.48)
IMAGE_TYPES = MappingProxyType(
    {
        0: "scene",
        1: "depth_planar",
        2: "depth_perspective",
        3: "depth_vis",
        4: "disparity",
        5: "segmentation",
        6: "surface_normals",
        7: "infrared",
    }
)

# AirSim also answers to these numbers for its five standard cameras.
CAMERA_NUMBERS = MappingProxyType(
    {"0": "front_center", "1": "front_right", "2": "front_left", "3": "bottom_center", "4": "back_center"}
)


@dataclass(frozen=True)
class CameraSpec:
    """One camera on the drone. Position forward-left-up in metres, angles in AirSim's sense (front-right-down)."""

    name: str
    position: tuple[float, float, float]
    roll_deg: float = 0.0
    pitch_deg: float = 0.0
    yaw_deg: float = 0.0
    fov_deg: float = 90.0  # horizontal
    sizes: MappingProxyType[str, tuple[int, int]] = field(
        default_factory=lambda: MappingProxyType({"scene": (320, 240)})
    )

    def size(self, image_type: str) -> tuple[int, int]:
        """Width and height in pixels of that image type; depth and segmentation default to 160x120."""
        return self.sizes.get(image_type, (320, 240) if image_type == "scene" else (160, 120))

    def rotation(self) -> np.ndarray:
        """3x3 rotation: columns are the camera's forward, left and up in the body's forward-left-up frame."""
        # Front-right-down angles: yaw and pitch change their sign in forward-left-up, roll keeps it.
        r, p, y = math.radians(self.roll_deg), math.radians(-self.pitch_deg), math.radians(-self.yaw_deg)
        cr, sr, cp, sp, cy, sy = math.cos(r), math.sin(r), math.cos(p), math.sin(p), math.cos(y), math.sin(y)
        about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        rotation: np.ndarray = about_z @ about_y @ about_x
        return rotation


DEFAULT_CAMERAS = (
    CameraSpec("front_center", (0.33, 0.0, 0.02)),
    CameraSpec("front_right", (0.30, -0.15, 0.02)),
    CameraSpec("front_left", (0.30, 0.15, 0.02)),
    CameraSpec("bottom_center", (0.0, 0.0, -0.09), pitch_deg=-90.0),
    CameraSpec("back_center", (-0.33, 0.0, 0.02), yaw_deg=180.0),
)
# Not AirSim's, for recordings: the drone from behind and above, and straight down from wherever it is put.
CHASE_CAMERA = CameraSpec("chase", (-3.2, 0.0, 1.5), pitch_deg=-17.0)
MAP_CAMERA = CameraSpec(
    "map", (0.0, 0.0, 0.0), pitch_deg=-90.0, sizes=MappingProxyType({"scene": (800, 800)})
)


def build_model(world: World, cameras: Sequence[CameraSpec] = DEFAULT_CAMERAS) -> mujoco.MjModel:
    """Compiles the world. Geoms belong to bodies named like the world's objects; "ground" is the ground's body."""
    spec = mujoco.MjSpec()
    spec.modelname = world.name
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
    spec.stat.extent = 1.0  # so that near and far plane are metres
    spec.stat.center = (0, 0, 0)
    spec.visual.map.znear = 0.05
    spec.visual.map.zfar = FAR_PLANE_M
    spec.visual.map.fogstart, spec.visual.map.fogend = FOG_START_M, FOG_END_M
    spec.visual.rgba.fog = (*world.sky[1], 1.0)
    spec.visual.rgba.haze = (*world.sky[1], 1.0)
    quality = spec.visual.quality
    quality.shadowsize, quality.offsamples = 0, 0  # software rendering: both cost more than they show
    quality.numslices, quality.numstacks = 16, 8
    spec.visual.headlight.ambient = HEADLIGHT
    spec.visual.headlight.diffuse = (0.10, 0.10, 0.10)
    spec.visual.headlight.specular = (0, 0, 0)
    spec.worldbody.add_light(
        name="sun", type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=world.sun_direction, pos=(0, 0, 50),
        diffuse=SUNLIGHT, specular=(0.05, 0.05, 0.05), castshadow=False,
    )  # fmt: skip
    materials = _Materials(spec)
    _add_sky(spec, world)
    _add_ground(spec, world)
    for item in world.objects:
        body = spec.worldbody.add_body(name=item.name, pos=item.position, quat=_yaw_quat(item.yaw_deg))
        for part in item.parts:
            geom = body.add_geom(
                type=_SHAPES[part.shape], pos=part.centre, size=part.half_size, quat=_yaw_quat(part.yaw_deg)
            )
            geom.material = materials.named(part.texture, part.rgb)
            geom.contype = geom.conaffinity = int(part.solid)
    _add_drone(spec, cameras)
    return spec.compile()


_SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}


def _yaw_quat(yaw_deg: float) -> tuple[float, float, float, float]:
    half = math.radians(yaw_deg) / 2
    return math.cos(half), 0.0, 0.0, math.sin(half)


def camera_quat(camera: CameraSpec) -> np.ndarray:
    """MuJoCo's camera orientation (looking along -z, y up) in the body frame, as w, x, y, z."""
    forward, left, up = camera.rotation().T
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([-left, up, -forward]).reshape(9))
    return quat


def vertical_fov_deg(horizontal_deg: float, width: int, height: int) -> float:
    """MuJoCo counts the field of view vertically, AirSim horizontally."""
    return math.degrees(2 * math.atan(math.tan(math.radians(horizontal_deg) / 2) * height / width))


def _add_drone(spec: mujoco.MjSpec, cameras: Sequence[CameraSpec]) -> None:
    body = spec.worldbody.add_body(name="drone", pos=(0, 0, DRONE_HALF_HEIGHT_M), gravcomp=1.0)
    body.add_freejoint(name="drone")
    hull = body.add_geom(
        name="drone_hull", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=(DRONE_RADIUS_M, DRONE_HALF_HEIGHT_M, 0)
    )
    hull.mass = DRONE_MASS_KG
    # The ground is touched by an ellipsoid inside the hull. MuJoCo's test of a plane against a cylinder that stands
    # upright normalises a vector of rounding errors and can find the contact 0.3 m too deep; plane against ellipsoid
    # has no such case.
    keel = body.add_geom(
        name="drone_keel",
        type=mujoco.mjtGeom.mjGEOM_ELLIPSOID,
        size=(DRONE_RADIUS_M, DRONE_RADIUS_M, DRONE_HALF_HEIGHT_M),
        mass=0.0,
    )
    keel.contype, keel.conaffinity = 0, GROUND_CONTACT
    for geom in (hull, keel):
        geom.rgba, geom.group = (0, 0, 0, 0), HIDDEN_GROUP  # felt, not seen
        geom.friction, geom.condim = (0.4, 0.005, 0.0001), 3
    look = {"contype": 0, "conaffinity": 0, "mass": 0.0}
    body.add_geom(type=_SHAPES["box"], size=(0.14, 0.07, 0.035), rgba=(0.9, 0.9, 0.92, 1), **look)
    body.add_geom(
        type=_SHAPES["box"], pos=(0.13, 0, 0.0), size=(0.02, 0.03, 0.02), rgba=(0.1, 0.1, 0.1, 1), **look
    )
    for angle in (45, 135, 225, 315):
        x, y = 0.21 * math.cos(math.radians(angle)), 0.21 * math.sin(math.radians(angle))
        front = (0.9, 0.25, 0.1, 1) if x > 0 else (0.15, 0.15, 0.17, 1)
        body.add_geom(type=_SHAPES["capsule"], fromto=(0, 0, 0, x, y, 0.02), size=(0.012, 0, 0),
                      rgba=(0.2, 0.2, 0.2, 1), **look)  # fmt: skip
        body.add_geom(type=_SHAPES["cylinder"], pos=(x, y, 0.04), size=(0.11, 0.004, 0), rgba=front, **look)
    for camera in cameras:
        body.add_camera(name=camera.name, pos=camera.position, quat=camera_quat(camera), fovy=60.0)


class _Materials:
    """Materials by texture and colour, made when first asked for."""

    def __init__(self, spec: mujoco.MjSpec) -> None:
        self.spec = spec
        self.made: set[str] = set()

    def named(self, texture: str, rgb: tuple[float, float, float]) -> str:
        name = f"{texture or 'plain'}_" + "_".join(f"{channel:.3f}" for channel in rgb)
        if name not in self.made:
            self.made.add(name)
            material = self.spec.add_material(name=name, rgba=(*rgb, 1.0), specular=0.0, shininess=0.0)
            if texture:
                self._texture(texture)
                material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture
        return name

    def _texture(self, name: str) -> None:
        if name in self.made:
            return
        self.made.add(name)
        face = _FACES[name](np.random.default_rng(7))
        size = face.shape[0]
        faces = np.concatenate([face] * 6)
        if name == "windows":  # no windows on the roof
            faces[4 * size :] = 235
        made = self.spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_CUBE, width=size, height=6 * size, nchannel=3
        )
        made.data = np.ascontiguousarray(faces).tobytes()


def _leaves(rng: np.random.Generator) -> np.ndarray:
    return _grey(_noise(rng, 64, (16, 5), 0.78, 0.34))


def _bark(rng: np.random.Generator) -> np.ndarray:
    return _grey(np.tile(_noise(rng, 64, (16, 6), 0.82, 0.25)[:1], (64, 1)))


def _windows(rng: np.random.Generator) -> np.ndarray:
    face = np.full((128, 128, 3), 235, np.uint8)
    for row in range(5):
        for column in range(6):
            y, x = 8 + row * 24, 5 + column * 21
            face[y : y + 15, x : x + 12] = (70, 84, 104) if rng.random() < 0.8 else (150, 150, 120)
            face[y + 15 : y + 17, x - 1 : x + 13] = 190
    return face


def _brick(rng: np.random.Generator) -> np.ndarray:
    face = np.full((256, 256, 3), 200, np.uint8)
    for row in range(16):
        for column in range(-1, 16):
            x = column * 16 + (8 if row % 2 else 0)
            face[row * 16 + 2 : row * 16 + 16, max(0, x + 1) : max(0, x + 16)] = int(
                rng.uniform(0.8, 1.0) * 255
            )
    return face


_FACES = {"leaves": _leaves, "bark": _bark, "windows": _windows, "brick": _brick}


def _noise(
    rng: np.random.Generator, size: int, cells: Sequence[int], base: float, swing: float
) -> np.ndarray:
    """Seamless smooth noise of several cell sizes, around `base`."""
    total = np.zeros((size, size))
    for n in cells:
        grid = rng.uniform(-1, 1, (n, n))
        at = np.arange(size) * n / size
        low, part = np.floor(at).astype(int) % n, at - np.floor(at)
        smooth = part * part * (3 - 2 * part)
        high = (low + 1) % n
        rows = grid[low] * (1 - smooth)[:, None] + grid[high] * smooth[:, None]
        total += rows[:, low] * (1 - smooth) + rows[:, high] * smooth
    total += rng.uniform(-0.6, 0.6, (size, size))
    return np.clip(base + swing * total / (len(cells) + 0.6), 0, 1)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat((values * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _add_sky(spec: mujoco.MjSpec, world: World) -> None:
    zenith, horizon = world.sky
    # The gradient runs from straight up to straight down; below the horizon only the fog is seen.
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=zenith, rgb2=horizon, width=64, height=384,
    )  # fmt: skip


def _add_ground(spec: mujoco.MjSpec, world: World) -> None:
    picture = ground_picture(world)
    size = picture.shape[0]
    texture = spec.add_texture(
        name="ground", type=mujoco.mjtTexture.mjTEXTURE_2D, width=size, height=size, nchannel=3
    )
    texture.data = np.ascontiguousarray(picture).tobytes()
    material = spec.add_material(
        name="ground", texrepeat=(1 / GROUND_TILE_M, 1 / GROUND_TILE_M), texuniform=True, specular=0.0
    )
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "ground"
    body = spec.worldbody.add_body(name="ground")
    plane = body.add_geom(name="ground", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(0, 0, 1))
    plane.group = HIDDEN_GROUP
    plane.contype, plane.conaffinity = GROUND_CONTACT, 0
    # What is seen is a slab: MuJoCo draws an infinite plane as 40,000 squares, ten times the cost of all the rest.
    slab = body.add_geom(
        name="ground_seen", type=_SHAPES["box"], pos=(0, 0, -0.5), size=(FAR_PLANE_M, FAR_PLANE_M, 0.5)
    )
    slab.material, slab.contype, slab.conaffinity = "ground", 0, 0


def ground_picture(world: World) -> np.ndarray:
    """The ground's repeated tile, (256, 256, 3) uint8."""
    return _GROUNDS[world.ground](np.random.default_rng(11))


def _grass(rng: np.random.Generator) -> np.ndarray:
    # Dry meadow: straw and earth more than green, so that crowns stand out from it.
    mix = _noise(rng, 256, (4, 9, 32), 0.5, 0.75)[:, :, None]
    return ((mix * (0.70, 0.66, 0.42) + (1 - mix) * (0.42, 0.47, 0.24)) * 255).astype(np.uint8)


def _asphalt(rng: np.random.Generator) -> np.ndarray:
    return _grey(_noise(rng, 256, (5, 24, 64), 0.36, 0.14))


def _sand(rng: np.random.Generator) -> np.ndarray:
    mix = _noise(rng, 256, (4, 12, 48), 0.5, 0.6)[:, :, None]
    return ((mix * (0.86, 0.76, 0.56) + (1 - mix) * (0.68, 0.57, 0.40)) * 255).astype(np.uint8)


_GROUNDS = {"grass": _grass, "asphalt": _asphalt, "sand": _sand}
