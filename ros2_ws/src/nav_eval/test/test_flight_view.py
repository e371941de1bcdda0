"""The flight viewer's data and page, and the demonstration video."""

from __future__ import annotations

import base64
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from airsim_sim.instructions import mission
from airsim_sim.true_map import TrueMap
from airsim_sim.world import load_world
from nav_common import topics
from nav_common.contract import SUCCESS_RADIUS_M
from nav_common.data import ActiveFrames, CompressedImage
from nav_eval.__main__ import main
from nav_eval.bags import Logged
from nav_eval.demo_video import PANEL_WIDTH, PICTURE_SIZE, write_demo
from nav_eval.flight_log import FlightLog
from nav_eval.flight_view import GROUND, RIM, at_time, map_shapes, view_of, view_of_recording
from nav_eval.html_pages import flight_page
from nav_eval.lockstep import fly
from nav_eval.policies import experts
from nav_eval.testing.synthetic import flight, write

RECORDING = Path(__file__).parent / "recordings" / "field_901"


def test_a_recorded_flight_is_seen_whole() -> None:
    view = view_of_recording(RECORDING, load_world("field", 901))
    assert view["duration_s"] > 10.0
    assert [decision["step"] for decision in view["decisions"]] == list(range(1, len(view["decisions"]) + 1))
    assert view["decisions"][0]["call"].endswith(")")
    assert view["decisions"][0]["result"]  # what the next decision was given
    times = [picture["t"] for picture in view["pictures"]]
    assert times == sorted(times)
    assert len(times) > len(view["decisions"])
    pixels = cv2.imdecode(
        np.frombuffer(base64.b64decode(view["pictures"][0]["jpeg"]), np.uint8), cv2.IMREAD_COLOR
    )
    assert pixels is not None
    assert pixels.shape[1] <= 320
    assert sum(item["goal"] for item in view["objects"]) == 1
    assert view["cache"]["budget"] > 0
    assert all(sink + rest <= view["cache"]["budget"] for _, sink, rest, _ in view["cache"]["rows"])


def test_the_goal_on_the_map_is_where_the_flight_ended() -> None:
    """Track and objects share one frame: a flight that ends at the beacon ends there on the map."""
    world = load_world("field", 7)
    flown = fly(world, ["fly to the red beacon"], experts(TrueMap(world), mission(world)))
    view = view_of(flown.log, [], world)
    goal = next(item for item in view["objects"] if item["goal"])
    start, end = view["track"][0], view["track"][-1]

    def distance(row: list[float]) -> float:
        return float(np.hypot(row[1] - goal["x"], row[2] - goal["y"]))

    assert distance(end) < 4.0 < distance(start)


def test_what_a_memory_bank_held_is_seen_with_its_pictures(tmp_path: Path) -> None:
    log, jpeg = (
        FlightLog(tmp_path, "/drone"),
        cv2.imencode(".jpg", np.zeros((6, 8, 3), np.uint8))[1].tobytes(),
    )
    pictures = [Logged(100.02 + 0.1 * i, CompressedImage(100.0 + 0.1 * i, jpeg)) for i in range(40)]
    for row in pictures:
        log.add(topics.FRONT_IMAGE, row.time_s, row.data)
    names = ("p1_c3_f0", "p1_c4_f0")
    held = ActiveFrames(
        103.0, names, (100.7, 101.3), ("car_1", "car_1,tree_1"), names[:1], archived=2, retrievals=1
    )
    log.add(topics.ACTIVE_FRAMES, 103.0, held)
    view = view_of(log, pictures, period_s=1e9)
    (active,) = view["active_frames"]
    assert [(one["name"], one["entities"], one["recalled"]) for one in active["frames"]] == [
        ("p1_c3_f0", "car_1", True),
        ("p1_c4_f0", "car_1,tree_1", False),
    ]
    assert (active["archived"], active["retrievals"]) == (2, 1)
    shown = [picture["stamp_s"] for picture in view["pictures"]]
    assert shown[1:] == pytest.approx([100.7, 101.3]), "whatever the period, an active frame has its picture"


@pytest.mark.parametrize(("scene", "seed"), [("wall", 4), ("corridor", 2), ("field", 7)])
def test_outlines_on_the_map_are_where_the_solids_end(scene: str, seed: int) -> None:
    world = load_world(scene, seed)
    true_map = TrueMap(world)
    filled = [shape for shape in map_shapes(world) if "fillcolor" in shape]
    assert any(len(corners_of(shape)) == 4 for shape in filled) == (scene != "field")
    for east, north in np.concatenate([corners_of(shape) for shape in filled]):
        column = np.array([[north, -east, up] for up in np.arange(0.0, 12.0, 0.05)])
        assert true_map.distance(column).min() == pytest.approx(0.0, abs=0.02) or any(
            item.distance_m((north, -east)) <= 0.42 for item in world.objects
        )


@pytest.mark.parametrize(("scene", "seed"), [("wall", 4), ("field-mixed", 595), ("field", 7)])
def test_the_ring_on_the_map_is_where_a_goal_is_reached(scene: str, seed: int) -> None:
    world = load_world(scene, seed)
    rings = [corners_of(shape) for shape in map_shapes(world) if "fillcolor" not in shape]
    assert len(rings) == len(world.goals)
    by_goal = {goal.name: world.object(goal.name) for goal in world.goals}
    for ring in rings:
        distances = [
            item.distances_m(np.column_stack([ring[:, 1], -ring[:, 0]])) for item in by_goal.values()
        ]
        nearest = min(distances, key=lambda of_goal: float(np.ptp(of_goal)))
        assert nearest == pytest.approx(SUCCESS_RADIUS_M, abs=0.03)
    middles = [(ring[:, 1].mean(), -ring[:, 0].mean()) for ring in rings]
    assert sorted(middles) == [
        pytest.approx(place, abs=0.02) for place in sorted(goal.position[:2] for goal in world.goals)
    ]
    if scene == "field":
        assert np.ptp(rings[0][:, 0]) == pytest.approx(2 * SUCCESS_RADIUS_M, abs=0.02)


def corners_of(shape: dict[str, Any]) -> np.ndarray:
    points = shape["path"].strip("MZ").split("L")
    return np.array([[float(value) for value in point.split(",")] for point in points])


def test_white_things_are_seen_on_a_map_and_all_maps_have_one_ground() -> None:
    shapes = map_shapes(load_world("field-mixed", 595))
    white = [shape for shape in shapes if shape.get("fillcolor") == "rgb(242,242,242)"]
    assert white
    assert all(shape["line"]["color"] == RIM for shape in white)
    assert f'plot_bgcolor: "{GROUND}"' in (files("nav_eval") / "templates/viewer.js").read_text()


def test_the_page_fetches_nothing_and_words_of_a_flight_are_no_markup(tmp_path: Path) -> None:
    rows = flight()
    for row in rows:
        if row.topic is topics.DECISION:
            row.change(instruction="</script><img src=x onerror=alert(1)>")
    view = view_of_recording(write(tmp_path / "flight", rows))
    page = flight_page(view, "<b>title</b>", {"<i>": "</dd><script>"})
    assert not re.search(r"<(script|img|link)[^>]*\b(src|href)=\"?(https?:)?//", page)
    assert "<img src=x" not in page
    assert "&lt;b&gt;title" in page
    found = re.search(r'<script type="application/json" id="view">(.*?)</script>', page, re.DOTALL)
    assert found
    assert json.loads(found[1])["decisions"] == view["decisions"]


def test_the_row_of_a_time() -> None:
    assert at_time("abc", [1.0, 2.0, 3.0], 2.5) == "b"
    assert at_time("abc", [1.0, 2.0, 3.0], 0.5) is None


def test_the_command_writes_the_viewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "flight.html"
    assert main(["view", str(RECORDING), str(out), "--scene", "field", "--seed", "901"]) == 0
    assert "showFlight(" in out.read_text()
    assert main(["view", str(RECORDING), str(out), "--scene", "moon"]) == 2
    assert "moon" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "nothing"), str(out)]) == 2


def test_the_demonstration_video_has_a_frame_for_each_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "flight.mp4"
    frames = write_demo(RECORDING, video)
    capture = cv2.VideoCapture(str(video))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == frames
    capture.set(cv2.CAP_PROP_POS_FRAMES, frames - 1)
    there, last = capture.read()
    capture.release()
    assert there
    assert last.shape == (PICTURE_SIZE[1], PICTURE_SIZE[0] + PANEL_WIDTH, 3)
    panel = last[:, PICTURE_SIZE[0] :]
    assert (panel > 128).any(axis=2).mean() > 0.005  # there is text
    assert main(["demo", str(tmp_path / "nothing"), str(video)]) == 2
    assert "no recording at" in capsys.readouterr().err
    assert main(["demo", str(RECORDING), str(tmp_path / "missing" / "flight.mp4")]) == 2
