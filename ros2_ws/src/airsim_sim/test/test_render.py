"""Pictures: right geometry, right colours, both renderers alike, and a fallback where EGL is missing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from airsim_sim.flight import CallError
from airsim_sim.model import DEFAULT_CAMERAS
from airsim_sim.render import SKY_DEPTH_M, Renderer, RenderError, open_renderer, pixel_rays
from airsim_sim.segmentation import PALETTE
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world, parse_world

# North-west-up: a red box ahead on the left, a blue one ahead on the right, a yellow one behind.
BOXES = """name: boxes
objects:
  - {name: left, kind: box, colour: red, length: 1, width: 2, height: 4, at: [6, 3]}
  - {name: right, kind: box, colour: blue, length: 1, width: 2, height: 4, at: [6, -3]}
  - {name: behind, kind: box, colour: yellow, length: 1, width: 2, height: 4, at: [-6, 0]}
goals: [left]
"""
WORLD = parse_world(BOXES, "boxes.yaml")
HERE = (0.0, 0.0, 2.0)


@pytest.fixture(scope="module", params=["egl", "rays"])
def renderer(request: pytest.FixtureRequest) -> Iterator[Renderer]:
    try:
        made = open_renderer(WORLD, backend=request.param)
    except RenderError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def test_left_is_left_and_colours_are_red_green_blue(renderer: Renderer) -> None:
    picture = renderer.render(HERE, 0.0)
    assert picture.shape == (240, 320, 3)
    assert picture.dtype == np.uint8
    left, right = picture[120, 80].astype(int), picture[120, 240].astype(int)
    assert left[0] > 2 * max(left[1], left[2]), "red box"
    assert right[2] > 2 * max(right[0], right[1]), "blue box"
    sky, ground = picture[5, 160].astype(int), picture[235, 160].astype(int)
    assert sky[2] > sky[0], "the sky is blue"
    assert ground[0] > ground[2], "the ground is not"


def test_turning_left_moves_the_picture_right(renderer: Renderer) -> None:
    straight, turned = renderer.render(HERE, 0.0), renderer.render(HERE, 20.0)
    columns = [
        int(np.argmax((p[120, :, 0] > 2 * p[120, :, 2]) & (p[120, :, 0] > 90))) for p in (straight, turned)
    ]
    assert columns[1] > columns[0] + 20


def test_planar_depth_is_the_distance_along_the_axis(renderer: Renderer) -> None:
    depth = renderer.render(HERE, 0.0, image_type="depth_planar")
    assert depth.shape == (120, 160)
    assert depth.dtype == np.float32
    # The boxes' faces are 5.5 m ahead of the drone, the camera 0.33 m ahead of it.
    assert depth[60, 40] == pytest.approx(5.17, abs=0.02)
    assert depth[60, 120] == pytest.approx(5.17, abs=0.02)
    assert depth[5, 80] == SKY_DEPTH_M
    _, down = pixel_rays(90.0, 160, 120)
    height = 2.0 + 0.02
    for row in (80, 100, 119):
        assert depth[row, 80] == pytest.approx(height / down[row, 80], rel=0.01), "the ground"


def test_perspective_depth_is_the_distance_along_the_ray_and_depth_vis_runs_to_100_m(
    renderer: Renderer,
) -> None:
    planar = renderer.render(HERE, 0.0, image_type="depth_planar")
    ray = renderer.render(HERE, 0.0, image_type="depth_perspective")
    vis = renderer.render(HERE, 0.0, image_type="depth_vis")
    right, down = pixel_rays(90.0, 160, 120)
    near = planar < 50
    assert ray[near] == pytest.approx((planar * np.sqrt(1 + right**2 + down**2))[near], rel=1e-4)
    assert vis[60, 40] == pytest.approx(0.0517, abs=0.001)
    assert vis[5, 80] == 1.0


def test_the_field_of_view_is_ninety_degrees_across(renderer: Renderer) -> None:
    """A box whose inner face ends 45 degrees to the left touches the picture's left edge and no more."""
    numbers = renderer.render((6.5 - 2.0 - 0.33, 0.0, 2.0), 0.0, image_type="segmentation")
    row = numbers[60]
    body = renderer.model.body("left").id
    assert (row == body).sum() <= 1
    closer = renderer.render((6.5 - 2.4 - 0.33, 0.0, 2.0), 0.0, image_type="segmentation")[60]
    assert (closer == body).sum() > 5
    assert closer[0] == body


def test_segmentation_names_every_pixels_body(renderer: Renderer) -> None:
    numbers = renderer.render(HERE, 0.0, image_type="segmentation")
    names = {(-1 if n < 0 else renderer.model.body(int(n)).name) for n in np.unique(numbers)}
    assert names == {-1, "ground", "left", "right"}


@pytest.mark.parametrize(
    ("camera", "name"), [("back_center", "behind"), ("front_left", "left"), ("front_right", "right")]
)
def test_every_camera_looks_where_its_name_says(renderer: Renderer, camera: str, name: str) -> None:
    numbers = renderer.render(HERE, 0.0, camera, "segmentation")
    assert renderer.model.body(name).id in numbers
    if camera == "back_center":
        assert renderer.model.body("left").id not in numbers


def test_the_bottom_camera_sees_the_ground_below(renderer: Renderer) -> None:
    depth = renderer.render(HERE, 0.0, "bottom_center", "depth_planar")
    assert depth[60, 80] == pytest.approx(2.0 - 0.09, abs=0.01)


def test_any_size_can_be_asked_for(renderer: Renderer) -> None:
    for size in ((112, 84), (64, 64), (640, 480)):
        assert renderer.render(HERE, 0.0, size=size).shape == (size[1], size[0], 3)


def test_unknown_camera_and_image_type_are_named(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match=r"camera 'nose' does not exist; there are front_center"):
        renderer.render(HERE, 0.0, "nose")
    with pytest.raises(RenderError, match="image type 'infrared' does not exist"):
        renderer.render(HERE, 0.0, image_type="infrared")


def test_the_same_pose_gives_the_same_picture_also_after_another_world(renderer: Renderer) -> None:
    first = renderer.render(HERE, 15.0)
    renderer.load(load_world("field", 1))
    other = renderer.render(HERE, 15.0)
    renderer.load(WORLD)
    assert (renderer.render(HERE, 15.0) == first).all()
    assert not (other == first).all()


NAMED_KINDS = ("pillar", "car", "tree", "shed", "house", "globe_lamp")


@pytest.fixture
def outlines(renderer: Renderer) -> Iterator[dict[str, np.ndarray]]:
    """What each kind that words name covers of a small pilot's picture, 15 m ahead."""
    covered = {}
    renderer.load(
        parse_world("name: bare\nobjects: [{name: a, kind: strip, at: [-9, 0]}]\ngoals: [a]\n", "bare")
    )
    bare = renderer.render(HERE, 0.0, size=(112, 84)).astype(int)
    for kind in NAMED_KINDS:
        text = f"name: one\nobjects: [{{name: a, kind: {kind}, colour: red, at: [15, 0], yaw_deg: 30}}]\ngoals: [a]\n"
        renderer.load(parse_world(text, kind))
        picture = renderer.render(HERE, 0.0, size=(112, 84)).astype(int)
        covered[kind] = np.abs(picture - bare).max(axis=2) > 25
    yield covered
    renderer.load(WORLD)


def test_the_kinds_that_words_name_look_different_at_a_small_pilots_size(
    outlines: dict[str, np.ndarray],
) -> None:
    for kind, covered in outlines.items():
        assert covered.sum() >= 8, kind
        for other, theirs in outlines.items():
            if other != kind:
                shared = (covered & theirs).sum() / (covered | theirs).sum()
                assert shared < 0.6, (kind, other, shared)


def test_both_renderers_draw_the_same_scene() -> None:
    world = load_world("field", 6)
    bearing = math.degrees(math.atan2(world.goal.position[1], world.goal.position[0]))
    egl, rays = open_renderer(world, backend="egl"), open_renderer(world, backend="rays")
    depth = [r.render(HERE, bearing, image_type="depth_planar") for r in (egl, rays)]
    near = (depth[0] < 50) & (depth[1] < 50)
    assert np.percentile(np.abs(depth[0] - depth[1])[near], 98) < 0.25
    numbers = [r.render(HERE, bearing, image_type="segmentation") for r in (egl, rays)]
    assert (numbers[0] == numbers[1]).mean() > 0.97
    colours = [
        cv2.resize(r.render(HERE, bearing), (40, 30), interpolation=cv2.INTER_AREA) for r in (egl, rays)
    ]
    assert np.abs(colours[0].astype(int) - colours[1]).mean() < 30
    egl.close()


def test_without_egl_pictures_come_from_rays_and_say_why() -> None:
    code = (
        "from airsim_sim.render import open_renderer\n"
        "from airsim_sim.world import load_world\n"
        "r = open_renderer(load_world('field', 1))\n"
        "print(r.backend, r.render((0, 0, 2), 0.0).mean() > 20)\n"
    )
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent", "MUJOCO_GL": "egl"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "libegl1" in done.stdout
    assert done.stdout.splitlines()[-1] == "rays True"


def test_unknown_renderer_is_refused() -> None:
    with pytest.raises(RenderError, match="choose auto, egl or rays"):
        open_renderer(WORLD, backend="vulkan")


# ---- pictures as RPC answers


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulation]:
    simulation = Simulation(WORLD)
    simulation.set_pose(HERE)
    yield simulation
    simulation.close()


def ask(sim: Simulation, *requests: tuple[Any, ...]) -> list[dict[str, Any]]:
    keys = ("camera_name", "image_type", "pixels_as_float", "compress")
    answers: list[dict[str, Any]] = sim.call(
        "simGetImages", [dict(zip(keys, r, strict=True)) for r in requests], "", False
    )
    return answers


def decoded(png: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


def test_raw_pictures_are_blue_green_red_and_png_is_right(sim: Simulation) -> None:
    raw, png = ask(sim, ("0", 0, False, False), ("front_center", 0, False, True))
    picture = np.frombuffer(raw["image_data_uint8"], np.uint8).reshape(raw["height"], raw["width"], 3)
    assert np.array_equal(picture[..., ::-1], sim.render())
    assert np.array_equal(decoded(png["image_data_uint8"]), picture)
    assert raw["image_data_float"] == [0.0]
    assert raw["time_stamp"] == sim.time_ns


def test_depth_as_float_is_an_array_of_metres(sim: Simulation) -> None:
    (answer,) = ask(sim, ("front_center", 1, True, False))
    assert (answer["width"], answer["height"], len(answer["image_data_float"])) == (160, 120, 19200)
    assert answer["image_data_float"][60 * 160 + 40] == pytest.approx(5.17, abs=0.02)
    assert answer["image_data_uint8"] == b"\0"


def test_segmentation_colours_follow_the_ids(sim: Simulation) -> None:
    assert sim.call("simSetSegmentationObjectID", "left", 42, False) is True
    assert sim.call("simGetSegmentationObjectID", "left") == 42
    assert sim.call("simSetSegmentationObjectID", "no.*thing", 1, True) is False
    assert sim.call("simGetSegmentationObjectID", "nothing") == -1
    (answer,) = ask(sim, ("front_center", 5, False, True))
    picture = decoded(answer["image_data_uint8"])
    assert picture[60, 40][::-1].tolist() == PALETTE[42].tolist()
    assert PALETTE[[0, 1, 42, 255]].tolist() == [[0, 0, 0], [153, 108, 6], [92, 31, 106], [255, 255, 255]], (
        "AirSim's"
    )
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 256


def test_camera_pose_moves_with_the_drone(sim: Simulation) -> None:
    (answer,) = ask(sim, ("front_center", 0, False, False))
    assert answer["camera_position"] == pytest.approx({"x_val": 0.33, "y_val": 0.0, "z_val": -2.02})
    assert answer["camera_orientation"]["w_val"] == pytest.approx(1)
    info = sim.call("simGetCameraInfo", "bottom_center", "", False)
    q = info["pose"]["orientation"]
    assert (q["w_val"], q["y_val"]) == pytest.approx((math.sqrt(0.5), -math.sqrt(0.5)))
    assert info["fov"] == 90


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("nose", 0, False, False), "camera 'nose' does not exist"),
        (("0", 8, False, False), "image type 8 is not supported"),
        (("0", "scene", False, False), "image type scene is not supported"),
    ],
)
def test_bad_image_requests_are_refused(sim: Simulation, request_: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CallError, match=message):
        ask(sim, request_)
    with pytest.raises(CallError, match="bad argument"):
        sim.call("simGetImages", [{"camera_name": "0"}], "", False)
    with pytest.raises(CallError, match="Vehicle API for 'Drone7'"):
        sim.call("simGetImages", [], "Drone7", False)


def test_cosys_flavor_counts_arguments_as_cosys_does() -> None:
    sim = Simulation(WORLD, DEFAULT_CAMERAS, flavor="cosys")
    assert sim.call("getServerVersion") == 4
    assert sim.call("simGetImages", [], "") == []
    with pytest.raises(CallError, match="Expected: 2, got: 3"):
        sim.call("simGetImages", [], "", False)
