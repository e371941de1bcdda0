"""Pictures in, calls out: a few plain situations of development worlds, with pictures and without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from airsim_sim.true_map import TrueMap
from airsim_sim.world import load_world
from nav_pilot.data import Camera, through_jpeg
from nav_pilot.evaluate import EnginePilot, EpisodeEnd, fly_mission
from nav_pilot.expert import Call
from nav_pilot.learn import patches_of, to_pixels
from nav_pilot.testing import before
from nav_pilot.train import augmented
from vlm_perception.engine.preprocess import patchify

MISSION = "fly to the red beacon"


def calls_at(
    pilot: EnginePilot,
    renderer: Any,
    distance: float,
    off_deg: float,
    colour: str = "red",
    mission: str = MISSION,
) -> list[Call]:
    """What the pilot does in three worlds where nothing stands between it and the beacon."""
    found = []
    for seed in (905, 911, 923, 924, 937, 940):
        world = load_world("field", seed, colour=colour)
        pose = before(world, distance, off_deg)
        place = (pose.x, pose.y, pose.z)
        free = TrueMap(world).segment_clearance(place, pose.yaw, distance, without=["beacon"])
        if free < 1.0 or len(found) == 3:
            continue
        renderer.load(world)
        pilot.begin()
        picture = Camera(renderer, np.random.default_rng(0)).picture(pose)
        found.append(pilot([picture], mission, []))
    assert len(found) == 3
    return found


@pytest.mark.parametrize(
    ("distance", "off_deg", "expected"),
    [
        (14.0, 0, ("move_forward", {"distance_m": 8})),
        (6.0, 0, ("move_forward", {"distance_m": 4})),
        (1.4, 0, ("finish", {"reason": "reached"})),
        (10.0, 30, ("turn_left", {"angle_deg": 30})),
        (10.0, -30, ("turn_right", {"angle_deg": 30})),
        (10.0, 180, ("turn_right", {"angle_deg": 90})),
    ],
)
def test_does_what_the_picture_asks_for(
    pilot: EnginePilot, renderer: Any, distance: float, off_deg: float, expected: Call
) -> None:
    calls = calls_at(pilot, renderer, distance, off_deg)
    assert calls.count(expected) >= 2, calls


def test_does_not_do_so_with_blank_pictures(pilot: EnginePilot, renderer: Any) -> None:
    pilot.blank = True
    try:
        blind = {
            str(calls_at(pilot, renderer, d, o)) for d, o in [(14.0, 0), (1.4, 0), (10.0, 30), (10.0, -30)]
        }
    finally:
        pilot.blank = False
    assert len(blind) == 1


def test_flies_a_mission_in_closed_loop(pilot: EnginePilot, renderer: Any) -> None:
    ends = [fly_mission(pilot, renderer, seed).end for seed in (951, 952, 953)]
    assert ends.count(EpisodeEnd.REACHED) >= 2, ends


def test_a_picture_through_jpeg_is_what_the_engine_makes_of_it(pilot: EnginePilot) -> None:

    smooth = np.add.outer(np.arange(240) // 2, np.arange(320) // 3).astype(np.uint8)
    rgb = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=-1)
    small = through_jpeg(rgb, 100)
    ours = patches_of(to_pixels(small[None]))[0]
    theirs, _ = patchify([small], pilot.stream.qwen.picture)
    assert torch.allclose(ours, theirs.view(len(theirs), 3, 2, -1)[:, :, 0].flatten(1), atol=1e-5)


def test_augmented_pictures_of_one_owner_share_their_light() -> None:
    pixels = torch.full((3, 3, 84, 112), 120.0)
    out = augmented(pixels, torch.tensor([0, 0, 1]), np.random.default_rng(1))
    means = out.mean(dim=(2, 3))
    assert torch.allclose(means[0], means[1], atol=1.0)
    assert not torch.allclose(means[0], means[2], atol=1.0)
    assert math.isfinite(float(out.sum()))
