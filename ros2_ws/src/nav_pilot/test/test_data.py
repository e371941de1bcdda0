"""Training flights: repeatable, complete, and stored as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nav_pilot.data import Camera, fly, load_streams, sample_mission, save_streams, start_pose_behind_tree
from nav_pilot.expert import CAMERA_AHEAD_M
from nav_pilot.learn import EXPERT_CALLS, colour_of, expert_calls, frame_positions
from nav_pilot.model import CHUNK_TOKENS, COLOURS, HEIGHT, WIDTH
from nav_pilot.train import _orthogonal


@pytest.mark.parametrize("number", [0, 1])
def test_a_flight_is_the_same_each_time(renderer: Any, number: int) -> None:
    first, again = (fly(17, renderer, number) for _ in range(2))
    assert np.array_equal(first.frames, again.frames)
    assert first.samples == again.samples


def test_a_stream_has_what_learning_needs(renderer: Any) -> None:
    stream = fly(12, renderer)
    assert stream.frames.shape == (len(stream.labels), HEIGHT, WIDTH, 3)
    assert stream.samples
    assert [ask.frame for ask in stream.samples] == sorted({ask.frame for ask in stream.samples})
    assert all(ask.call in EXPERT_CALLS for ask in stream.samples)
    assert int((expert_calls(stream) >= 0).sum()) == len(stream.samples)
    assert COLOURS[colour_of(stream)] in stream.samples[0].text


def test_streams_are_stored_as_they_were(renderer: Any, tmp_path: Path) -> None:
    streams = [fly(5, renderer), fly(6, renderer, 1)]
    save_streams(tmp_path / "shard.npz", streams)
    for stream, loaded in zip(streams, load_streams(tmp_path / "shard.npz"), strict=True):
        assert np.array_equal(stream.frames, loaded.frames)
        assert (stream.samples, stream.seed, stream.number) == (loaded.samples, loaded.seed, loaded.number)


def test_where_the_expert_sees_the_beacon_the_picture_shows_its_colour(renderer: Any) -> None:
    told, shown = [], []
    for seed in range(20, 60):
        rng = np.random.default_rng(seed)
        mission = sample_mission(seed, rng)
        if mission.colour != "red":
            continue
        renderer.load(mission.world)
        pose = start_pose_behind_tree(mission, rng)
        r, g, b = np.moveaxis(Camera(renderer, rng).picture(pose).astype(int), -1, 0)
        shown.append(float(((r > 1.7 * g) & (r > 1.7 * b) & (r > 40)).sum()))
        told.append(mission.obstacles.visible_pixels(pose))
    assert len(told) > 20
    assert np.corrcoef(told, shown)[0, 1] > 0.85  # 0.94 over 180 poses


def test_positions_of_a_chunk_are_those_of_the_engine(pilot: Any) -> None:
    pilot.begin()
    start = pilot.stream.model.stream_state.next_position
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    from vlm_perception.engine.stream_qwen_model import Image

    tokens = pilot.stream.model.prepare([Image(frame), Image(frame)])
    assert len(tokens) == 2 * CHUNK_TOKENS
    assert torch.equal(tokens.positions, frame_positions(2, start))


def test_orthogonalised_momentum_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((40, 16), (16, 40)):
        values = torch.linalg.svdvals(_orthogonal(torch.randn(shape)))
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_the_camera_is_where_the_simulator_has_it() -> None:
    from airsim_sim.model import DEFAULT_CAMERAS

    front = next(camera for camera in DEFAULT_CAMERAS if camera.name == "front_center")
    assert front.position[0] == CAMERA_AHEAD_M
    assert json.dumps(front.fov_deg) == "90.0"
