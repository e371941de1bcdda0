"""The pictures of a flight: the map with its track, the frames of its decisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from airsim_sim.world import load_world
from nav_common import topics
from nav_common.conversions import encode
from nav_common.data import CompressedImage, Decision
from nav_eval import flight_pictures
from nav_eval.bags import Bag, BagWriter
from nav_eval.flight_log import load


def test_the_map_shows_track_and_goal() -> None:
    world = load_world("field", 1)
    goal = world.goal.position
    empty = flight_pictures.draw_map(world, [])
    picture = flight_pictures.draw_map(world, [(0.0, 0.0, -2.0), (goal[0], -goal[1], -2.0)])
    assert picture.shape == (flight_pictures.MAP_SIZE, flight_pictures.MAP_SIZE, 3)
    changed = (empty != picture).any(axis=2)
    assert changed[
        flight_pictures.MAP_SIZE // 2 - 8 : flight_pictures.MAP_SIZE // 2 + 8
    ].any()  # the start is the middle
    assert (picture[changed] == flight_pictures.TRACK).all(axis=1).sum() > 50


def test_a_car_is_as_long_and_as_wide_on_the_map_as_it_is() -> None:
    world = load_world("field-mixed", 595)
    car = next(item for item in world.objects if item.kind == "car" and item.colour == "white")
    without = replace(world, objects=tuple(item for item in world.objects if item is not car))
    picture, other = flight_pictures.draw_map(world, []), flight_pictures.draw_map(without, [])
    rows, columns = np.nonzero((picture != other).any(axis=2))
    box = cv2.minAreaRect(np.column_stack([columns, rows]).astype(np.float32))
    assert max(box[1]) / min(box[1]) == pytest.approx(2.1 / 0.88, rel=0.15)


def test_the_frames_of_decisions_are_kept_as_they_were_recorded(tmp_path: Path) -> None:
    jpeg = bytes(cv2.imencode(".jpg", np.full((24, 32, 3), 90, np.uint8))[1])
    writer = BagWriter(tmp_path / "flight")
    writer.open()
    image, decision = topics.FRONT_IMAGE.resolve("/drone"), topics.DECISION.resolve("/drone")
    writer.add_topic(image, topics.FRONT_IMAGE.type, topics.FRONT_IMAGE.qos)
    writer.add_topic(decision, topics.DECISION.type, topics.DECISION.qos)
    for second in range(1, 4):
        writer.put(image, second * 10**9, encode(CompressedImage(float(second), jpeg)))
    made = Decision(2.5, 2.2, frame_stamp_s=2.0, step=1, tool="turn_left")
    writer.put(decision, 4 * 10**9, encode(made))
    writer.close()
    with Bag(tmp_path / "flight") as bag:
        assert bag.counts[image] == 3
    written = flight_pictures.write_frames(tmp_path / "flight", load(tmp_path / "flight", "/drone"), tmp_path)
    assert [path.name for path in written] == ["01_turn_left.jpg"]
    assert written[0].read_bytes() == jpeg
