"""Training flights: repeatable, complete, stored as they were, and labelled with what the pictures truly show."""

from __future__ import annotations

import errno
import inspect
import json
import math
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
import pytest
import torch

from airsim_sim.instructions import COLOURS, NOUNS, Instruction, Task
from airsim_sim.world import load_world
from nav_agent import toolset
from nav_common import result_lines
from nav_pilot import data, expert, sight
from nav_pilot.data import (
    Camera,
    KinematicFlight,
    Place,
    Sample,
    TrainingStream,
    fly,
    fly_world,
    open_place,
)
from nav_pilot.expert import CAMERA_AHEAD_M, NwuPose
from nav_pilot.learn import layout, mirrored, recalled
from nav_pilot.model import CHUNK_TOKENS, HEIGHT, WIDTH, WINDOW_FRAMES
from nav_pilot.optimise import orthogonal
from nav_pilot.shards import TrainingFolderError, _source_digest, is_whole, load_streams, save_streams
from nav_pilot.sight import (
    BINS,
    COLOUR,
    COLOUR_WORDS,
    DISTANCE,
    FARTHEST_M,
    KIND,
    KINDS,
    SightLabels,
    distance_code,
    showing,
)
from vlm_perception import prompting
from vlm_perception.prompting import RECALLED_LABEL, decision_text, question_text, sees_question


@pytest.mark.parametrize("number", [0, 1])
def test_a_flight_is_the_same_each_time(renderer: Any, number: int) -> None:
    (first, *_), (again, *_) = (fly(17, open_place(17, renderer, number), number) for _ in range(2))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.sights, again.sights)
    assert first.samples == again.samples


def test_a_stream_has_what_learning_needs(renderer: Any) -> None:
    for stream in fly_world(12, renderer):
        assert stream.frames.shape == (len(stream.sights), HEIGHT, WIDTH, 3)
        frames = [a.frame for a in stream.samples]
        assert frames == sorted(frames)
        assert not frames or 0 <= frames[0] <= frames[-1] < len(stream.frames)
        assert not frames or any(a.flown for a in stream.samples)


@pytest.mark.parametrize("frames", [1, 48, 49, 96, 97, 150])
def test_each_decision_of_a_long_flight_stands_in_one_stream_behind_its_frame(
    renderer: Any, frames: int
) -> None:
    place = open_place(5, renderer)
    rng = np.random.default_rng(0)
    flight = KinematicFlight(place, Camera(renderer, rng), NwuPose(0.0, 0.0, 2.0, 0.0), rng)
    for number in range(frames):
        flight.frames.append(np.full((1, 1, 3), number, np.uint8))
        flight.poses.append(flight.pose)
        flight.sights.append(SightLabels(np.zeros((4, BINS), np.uint8), {}, 1.0))
        flight.samples.append(Sample(number, str(number), ""))
    streams = flight.streams()
    assert [sample.text for stream in streams for sample in stream.samples] == [str(n) for n in range(frames)]
    for stream in streams:
        assert len(stream.frames) <= WINDOW_FRAMES
        assert all(a.frame >= 0 and str(stream.frames[a.frame, 0, 0, 0]) == a.text for a in stream.samples)


def test_the_same_pictures_with_other_words_have_other_answers(renderer: Any) -> None:
    """Else words could be ignored: in worlds of several objects, decisions about what is seen on two sides."""
    differ = 0
    for seed in range(1, 40):
        place = open_place(seed, renderer)
        if place.world.name not in ("field-decoys", "field-mixed"):
            continue
        stream = fly(seed, place)[0]
        for frame in {a.frame for a in stream.samples}:
            seen = [a for a in stream.samples if a.frame == frame and a.goal[0] and a.is_call]
            far_apart = [(a, b) for a in seen for b in seen if a.goal[2] - b.goal[2] > math.radians(40)]
            differ += sum(a.answer != b.answer for a, b in far_apart)
            assert all(a.answer != b.answer or "move" in a.answer for a, b in far_apart)
        if differ > 5:
            return
    raise AssertionError(f"only {differ} decisions differ by their words")


def test_a_sample_is_a_call_or_a_question(renderer: Any) -> None:
    place, rng = open_place(5, renderer), np.random.default_rng(0)
    flight = KinematicFlight(place, Camera(renderer, rng), NwuPose(0.0, 0.0, 2.0, 0.0), rng)
    flight.record_frame(flight.pose)
    flight.record_decision(Instruction("land", Task.LAND), ("descend", {"distance_m": 1}))
    for yes in (True, False):
        flight.record_question("is the way free?", yes)
    assert [(a.answer[0], a.is_call) for a in flight.samples] == [("{", True), ("y", False), ("n", False)]


@pytest.mark.parametrize("module", [data, expert, sight, toolset, result_lines, prompting])
def test_flights_of_changed_code_or_texts_are_not_taken_for_these(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, getsource = _source_digest(), inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda one: getsource(one) + ("#" if one is module else ""))
    assert _source_digest() != before


def test_streams_are_stored_as_they_were(renderer: Any, tmp_path: Path) -> None:
    streams = [*fly_world(5, renderer), *fly_world(6, renderer, 1)]
    save_streams(tmp_path / "shard.npz", streams)
    for stream, loaded in zip(streams, load_streams(tmp_path / "shard.npz"), strict=True):
        assert np.array_equal(stream.frames, loaded.frames)
        assert np.array_equal(stream.sights, loaded.sights)
        assert np.array_equal(stream.places, loaded.places)
        assert stream.samples == loaded.samples
        assert (stream.seed, stream.number, stream.scene) == (loaded.seed, loaded.number, loaded.scene)


def test_a_full_folder_is_said_and_leaves_nothing_half_written(
    renderer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: IO[bytes], **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    streams = fly_world(5, renderer)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(TrainingFolderError, match=r"No space left on device.*make room"):
        save_streams(tmp_path / "shard.npz", streams)
    assert not list(tmp_path.iterdir())


def test_a_damaged_shard_is_said_and_flown_again(
    renderer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shard.npz"
    save_streams(path, fly_world(5, renderer))
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert not is_whole(path)
    assert "is damaged" in capsys.readouterr().out
    assert not path.exists()


def distance_of(code: np.ndarray) -> np.ndarray:
    """The inverse of `distance_code`, m."""
    metres: np.ndarray = 0.5 * np.exp(code / 255 * math.log(FARTHEST_M / 0.5))
    return metres


def test_what_a_column_is_said_to_show_is_what_it_shows(renderer: Any) -> None:
    world = load_world("field", 911)
    place = Place(world, renderer)
    north, west, _ = world.object("beacon").position
    pose = NwuPose(0.0, 0.0, 2.0, math.atan2(west, north) - math.radians(20))
    labels = place.sights.labels(pose)
    shown = (labels.bins[KIND] == KINDS.index("beacon")) & (labels.bins[COLOUR] == COLOUR_WORDS.index("red"))
    picture = Camera(renderer, np.random.default_rng(0)).picture(pose).astype(int)
    r, g, b = np.moveaxis(picture, -1, 0)
    red = ((r > 1.7 * g) & (r > 1.7 * b) & (r > 40)).reshape(HEIGHT, len(shown), -1).sum(axis=(0, 2))
    assert labels.sees("beacon")
    assert shown.sum() in (1, 2, 3)
    assert set(np.flatnonzero(shown)) <= set(np.flatnonzero(red))
    far = distance_of(labels.bins[DISTANCE][shown])
    assert far == pytest.approx(math.hypot(north, west) * math.cos(math.radians(20)), rel=0.1)


def test_distances_are_coded_to_two_percent() -> None:
    metres = np.geomspace(0.5, 60, 50)
    assert distance_of(distance_code(metres)) == pytest.approx(metres, rel=0.02)


def test_mirrored_twice_is_as_it_was_where_something_is_known(renderer: Any) -> None:
    stream = fly_world(12, renderer)[0]
    twice = mirrored(mirrored(stream))
    assert np.array_equal(twice.frames, stream.frames)
    assert np.array_equal(twice.sights, stream.sights)
    known = [a for a in stream.samples if a.goal[1] or not a.is_call]
    assert twice.samples == known
    assert all(
        "left" not in b.answer
        for a, b in zip(known, mirrored(stream).samples, strict=True)
        if "left" in a.answer
    )


def test_every_noun_and_colour_has_its_class() -> None:
    assert set(NOUNS) <= set(KINDS)
    assert set(COLOURS) <= set(COLOUR_WORDS)


def test_positions_of_a_chunk_are_those_of_the_engine(pilot: Any) -> None:
    pilot.begin()
    start = pilot.stream.model.stream_state.next_position
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    from vlm_perception.engine.stream_qwen_model import Image

    tokens = pilot.stream.model.prepare([Image(frame), Image(frame)])
    assert len(tokens) == 2 * CHUNK_TOKENS
    assert torch.equal(tokens.positions, torch.from_numpy(start + layout([[], []]).positions))


@pytest.mark.parametrize("seed", range(1, 9))
def test_nothing_but_the_first_picture_tells_the_two_cars_of_the_memory_scene_apart(
    renderer: Any, seed: int
) -> None:
    """Else who forgets it could find the way back."""
    place = Place(load_world("memory", seed), renderer)
    first = place.sights.labels(NwuPose(0.0, 0.0, 2.0, math.radians(place.world.start_yaw_deg)))
    assert first.sees("car")
    assert first.sees("beacon")
    assert not first.sees("like_car")
    north, west, _ = place.world.object("beacon").position
    for heading_deg in (-20.0, 0.0, 20.0):
        there = place.sights.labels(NwuPose(north - 1.5, west, 2.0, math.radians(heading_deg)))
        assert not there.sees("car")
        assert not there.sees("like_car")


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_flight_of_the_memory_scene_goes_out_and_comes_back_to_the_car_it_saw(
    renderer: Any, seed: int
) -> None:
    place, rng = Place(load_world("memory", seed), renderer), np.random.default_rng(seed)
    flight = KinematicFlight(place, Camera(renderer, rng), data.start_pose(place, rng, ""), rng)
    flight.record_frame(flight.pose)
    data._fly_out_and_back(flight)
    ends = [a for a in flight.samples if a.flown and "finish" in a.answer and "reached" in a.answer]
    assert [a.looks for a in ends] == sorted((a.looks for a in ends), reverse=True), (
        "first the beacon, then the car"
    )
    assert {a.looks for a in ends} == {place.looks_of("beacon"), (0, 0)}
    assert all(a.goal[3] < 2.0 for a in ends)
    back = [
        a for a in flight.samples if a.flown and a.frame > next(e.frame for e in reversed(ends) if e.looks[0])
    ]
    assert back
    assert all(a.goal[1] for a in back), "known from the first picture"
    assert {a.looks for a in back} == {(0, 0)}, (
        "no column of a picture is said to show it: another looks like it"
    )
    assert not any("see the red car" in a.text for a in flight.samples)


def test_what_has_left_the_window_is_brought_back_behind_its_label(renderer: Any) -> None:
    """A car was seen at frame 1 and not since; the decision at frame 5 asks for it, the one at frame 3 for something
    that was seen before and is not brought back."""
    car, beacon = (KINDS.index("car"), 1), (KINDS.index("beacon"), 2)
    sights = np.zeros((7, 4, 16), np.uint8)
    sights[1, KIND, 3], sights[1, COLOUR, 3] = car
    sights[0, KIND, 9], sights[0, COLOUR, 9] = beacon
    places = np.array([(float(i), 0.0, math.pi - math.radians(15)) for i in range(7)], np.float32)
    frames = np.stack([np.full((HEIGHT, WIDTH, 3), i, np.uint8) for i in range(7)])
    known = (0.0, 1.0, 1.0, 9.0)
    samples = [
        Sample(3, "beacon", "{}", known, beacon, flown=False),
        Sample(4, "absent", "{}"),
        Sample(5, decision_text("go back to the red car"), "{}", known, car),
        Sample(6, "do you see the red car?", "no", known, car, flown=False),
    ]
    stream = TrainingStream(frames, samples, sights, places)
    with_recall = recalled(stream, np.random.default_rng(0))
    assert [int(frame[0, 0, 0]) for frame in with_recall.frames] == [2, 3, 4, 5, 1, 5, 6]
    assert [i for i, label in enumerate(with_recall.labels) if label] == [4]
    # It looks south, 15 degrees to the right of where it came from.
    line = "the red car was seen 15 deg to the left, 4 m from here"
    asked = decision_text("go back to the red car").replace("car<", f"car\n{line}<")
    assert [(a.frame, a.text) for a in with_recall.samples] == [
        (2, "absent"),
        (5, asked),
        (6, "do you see the red car?"),
        (5, question_text(sees_question("the red car"))),
    ]
    assert with_recall.samples[-1].answer == "no", "the recalled frame shows it, the newest does not"
    assert "15 deg to the right" in mirrored(with_recall).samples[0].text


def test_a_few_pixels_far_away_are_not_what_is_brought_back() -> None:
    """Else the line says that it was seen here, where it cannot be."""
    car = (KINDS.index("car"), 1)
    sights = np.zeros((5, 4, 16), np.uint8)
    for frame, away_m in ((1, 4.0), (3, 50.0)):
        sights[frame, KIND, 3], sights[frame, COLOUR, 3] = car
        sights[frame, DISTANCE, 3] = distance_code(np.array(away_m))
    places = np.array([(20.0 * i, 0.0, math.pi) for i in range(5)], np.float32)
    frames = np.stack([np.full((HEIGHT, WIDTH, 3), i, np.uint8) for i in range(5)])
    asked = Sample(4, decision_text("go back to the red car"), "{}", (0.0, 1.0, 0.0, 60.0), car)
    with_recall = recalled(TrainingStream(frames, [asked], sights, places), np.random.default_rng(0))
    assert [int(frame[0, 0, 0]) for frame in with_recall.frames] == [2, 3, 4, 1, 4]
    assert "the red car was seen straight ahead, 60 m from here" in with_recall.samples[0].text


def test_each_stream_of_a_flight_back_begins_with_the_look_that_it_rests_on(renderer: Any) -> None:
    place = Place(load_world("recall", 3), renderer)
    rng = np.random.default_rng(5)
    streams: list[TrainingStream] = []
    while len(streams) < 2:  # until a flight is longer than one window
        flight = KinematicFlight(place, Camera(renderer, rng), NwuPose(0.0, 0.0, 2.0, 0.0), rng)
        data._fly_back(flight)
        streams = flight.streams()
    lamp = (KINDS.index("lamp"), COLOUR_WORDS.index("red"))
    for stream in streams:
        assert np.array_equal(stream.frames[0], flight.frames[0])
        assert showing(stream.sights[:1], lamp).any()
        back = [a for a in stream.samples if a.flown and a.looks == lamp]
        assert back
        assert all(a.goal[1] for a in back), "known from the kept frame, however long ago"
        with_recall = recalled(stream, rng)
        if with_recall is not stream:
            assert np.count_nonzero([bool(label) for label in with_recall.labels]) == 1
            asked = [a for a in with_recall.samples if a.text == question_text(sees_question("the red lamp"))]
            behind = [a for a in asked if a.frame > with_recall.labels.index(RECALLED_LABEL)]
            assert behind, "what is sought is asked of what follows the recalled frame"
            for a in behind:
                assert (a.answer == "yes") == bool(a.goal[0])


def test_orthogonalised_momentum_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((40, 16), (16, 40)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(3, *shape)))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.3


def test_the_camera_is_where_the_simulator_has_it() -> None:
    from airsim_sim.model import DEFAULT_CAMERAS

    front = next(camera for camera in DEFAULT_CAMERAS if camera.name == "front_center")
    assert front.position[0] == CAMERA_AHEAD_M
    assert json.dumps(front.fov_deg) == "90.0"
