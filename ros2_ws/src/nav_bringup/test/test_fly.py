"""One mission from nothing: what it refuses, what it shows, what it sums up, and a real flight."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from airsim_sim.server import Server
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_bringup import fly, pictures
from nav_bringup.summary import percentiles, summarize, text
from nav_bringup.terminal import Terminal
from nav_bringup.truth import Truth
from nav_common import topics
from nav_common.testing import free_port, unique_domain_id
from nav_eval.bags import Bag, BagWriter, make, serialize
from nav_eval.flight import Flight, Stamped, load
from nav_eval.judge import Report
from nav_pilot import model_folder

# ---- what it refuses


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that only looks like one: these flights end before it is loaded."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mission", "  "], "mission is empty: say where to fly"),
        (["--scene", "moon"], "unknown scene 'moon': choose one of"),
        (["--seed", "one"], "seed is 'one', must be a whole number"),
        (["--set", "colour=ultraviolet"], "ultraviolet"),
        (["--model", "/nowhere"], "model is '/nowhere': no config.json there"),
        (["--params-file", "/nowhere.yaml"], "params_file is '/nowhere.yaml': there is no such file"),
    ],
)
def test_a_wrong_wish_is_refused_in_words_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert fly.main(["--model", "model", "--airsim-port", str(free_port()), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_port_in_use_is_refused_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert fly.main(["--model", "model", "--airsim-port", str(other.getsockname()[1])]) == 1
    assert "another simulator runs, perhaps another flight" in capsys.readouterr().err
    assert not (folder / "runs").exists()


# ---- what it shows


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_line_appears_only_when_something_changed() -> None:
    output = io.StringIO()
    terminal = Terminal(output)
    for second in range(3):
        terminal.status(f"{second} s", key="same")
    terminal.status("3 s", key="other")
    terminal.say("done")
    assert output.getvalue() == "0 s\n3 s\ndone\n"


def test_on_a_terminal_one_line_changes_and_other_lines_stay_above_it() -> None:
    output = Tty()
    terminal = Terminal(output)
    terminal.status("1 s", key="a")
    terminal.say("bridge died")
    terminal.end_status()
    assert output.getvalue() == "\r\x1b[2K1 s\r\x1b[2Kbridge died\n1 s\n"


# ---- what it sums up


def flight(collisions: int = 0) -> Flight:
    result = Flight(Path("flight"), "/drone", start_s=10.0, end_s=40.0)
    for step in range(1, 12):
        parts = {"barrier_ms": 100.0, "ttft_ms": 10.0 * step, "generate_ms": 20.0 * step, "framework_ms": 2.0}
        decision = make("nav_msgs_ext/msg/Decision", step=step, total_ms=100.0 * step, **parts)
        result.decisions.append(Stamped(10.0 + step, decision))
    for count in (3, 3 + collisions):
        result.states.append(Stamped(10.0, make("nav_msgs_ext/msg/DroneState", collision_count=count)))
    for frames, latency_ms in ((0, 0.0), (69, 30.0), (69, 30.0), (70, 50.0)):
        fields = {"frames_appended": frames, "frame_latency_ms": latency_ms}
        status = make("nav_msgs_ext/msg/EngineStatus", frames_replaced=5, evictions=4, **fields)
        result.statuses.append(Stamped(40.0, status))
    return result


def summary(
    outcome: str = "finished", reason: str = "reached", distance_m: float | None = 1.5, collisions: int = 0
):  # type: ignore[no-untyped-def]
    return summarize(
        flight(collisions), Report("flight", 30.0, 9, 1, 11, 9), outcome, reason, 21.234, distance_m
    )


def test_the_figures_come_from_the_recording() -> None:
    figures = summary()
    assert figures["decisions"] == 11
    assert figures["decision_latency_ms"]["p50"] == 600.0
    assert figures["decision_latency_ms"]["p95"] == 1050.0
    assert figures["decision_latency_ms"]["parts"]["ttft"] == {"p50": 60.0, "p95": 105.0}
    assert (figures["frames"], figures["evictions"], figures["collisions"]) == (70, 4, 0)
    assert figures["frame_latency_ms"]["p50"] == 40.0
    assert (figures["path_m"], figures["duration_s"], figures["hover_violations"]) == (21.23, 30.0, 0)
    assert figures["success"] is True
    assert "finished (reached): success" in text(figures)


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "step_limit", "reason": "40 decisions"},
        {"reason": "not_found"},
        {"distance_m": 2.01},
        {"collisions": 1},
    ],
)
def test_success_is_reached_near_and_untouched(change: dict[str, object]) -> None:
    assert summary(**change)["success"] is False


def test_what_nobody_knows_is_null() -> None:
    figures = summarize(None, None, "cancelled", "interrupted", 0.0, None)
    assert json.loads(json.dumps(figures))["success"] is None
    assert figures["collisions"] is figures["hover_violations"] is figures["frames"] is None
    assert percentiles([]) == {"p50": None, "p95": None}
    assert "success unknown" in text(figures)


def test_the_way_flown_and_the_goal_are_asked_of_the_simulator() -> None:
    world = load_world("field", 1)
    simulation = Simulation(world)
    server = Server(simulation, "127.0.0.1", free_port(), 1.0)
    server.start()
    try:
        truth = Truth("127.0.0.1", server.port, world.goal.name)
        truth.stop()  # looks once more
        north, west, _ = world.goal.position
        assert truth.distance_m == pytest.approx(math.hypot(north, west), abs=0.05)
        assert truth.path_m == 0.0
    finally:
        server.stop()


def test_a_simulator_that_is_not_there_gives_no_truth_and_no_error() -> None:
    truth = Truth("127.0.0.1", free_port(), "beacon")
    truth.stop()
    assert truth.distance_m is None
    assert truth.path_m == 0.0


# ---- pictures


def test_the_map_shows_the_way_and_the_goal() -> None:
    world = load_world("field", 1)
    goal = world.goal.position
    empty = pictures.draw_map(world, [])
    picture = pictures.draw_map(world, [(0.0, 0.0, -2.0), (goal[0], -goal[1], -2.0)])
    assert picture.shape == (pictures.MAP_SIZE, pictures.MAP_SIZE, 3)
    changed = (empty != picture).any(axis=2)
    assert changed[pictures.MAP_SIZE // 2 - 8 : pictures.MAP_SIZE // 2 + 8].any()  # the start is the middle
    assert (picture[changed] == pictures.TRACK).all(axis=1).sum() > 50


def test_the_frames_of_decisions_are_kept_as_they_were_recorded(tmp_path: Path) -> None:
    jpeg = bytes(cv2.imencode(".jpg", np.full((24, 32, 3), 90, np.uint8))[1])
    writer = BagWriter(tmp_path / "flight")
    writer.open()
    image, decision = topics.FRONT_IMAGE.resolve("/drone"), topics.DECISION.resolve("/drone")
    writer.add_topic(image, topics.FRONT_IMAGE.type, topics.FRONT_IMAGE.qos)
    writer.add_topic(decision, topics.DECISION.type, topics.DECISION.qos)
    for second in range(1, 4):
        stamp = make("builtin_interfaces/msg/Time", sec=second)
        header = make("std_msgs/msg/Header", stamp=stamp)
        frame = make("sensor_msgs/msg/CompressedImage", header=header, data=np.frombuffer(jpeg, np.uint8))
        writer.put(image, second * 10**9, serialize(frame))
    chosen = make("builtin_interfaces/msg/Time", sec=2)
    made = make("nav_msgs_ext/msg/Decision", stamp=chosen, step=1, tool="turn_left", frame_stamp=chosen)
    writer.put(decision, 4 * 10**9, serialize(made))
    writer.close()
    with Bag(tmp_path / "flight") as bag:
        assert bag.counts[image] == 3
    written = pictures.write_frames(tmp_path / "flight", load(tmp_path / "flight", "/drone"), tmp_path)
    assert [path.name for path in written] == ["01_turn_left.jpg"]
    assert written[0].read_bytes() == jpeg


# ---- a real flight


@pytest.mark.skipif(
    not (model_folder() / "config.json").is_file(), reason="no weights: python -m nav_pilot.train"
)
def test_a_mission_from_nothing_leaves_summary_recording_and_pictures(tmp_path: Path) -> None:
    words = ["--mission", "fly to the red beacon", "--max-decisions", "2", "--airsim-port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "nav_bringup.fly", *words],
        cwd=tmp_path,
        env={**os.environ, "ROS_DOMAIN_ID": str(unique_domain_id())},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / done.stdout.splitlines()[-1]
    assert path.parent.resolve() == (tmp_path / "runs" / "latest").resolve()
    figures = json.loads(path.read_text())
    assert figures["outcome"] in ("step_limit", "finished")
    assert figures["decisions"] == 2 or figures["outcome"] == "finished"
    assert (figures["hover_violations"], figures["collisions"]) == (0, 0)
    assert figures["distance_to_goal_m"] > 0
    assert figures["frames"] > 0
    assert figures["decision_latency_ms"]["p50"] > 0
    assert (path.parent / "flight" / "metadata.yaml").is_file()
    assert (path.parent / "pictures" / "map.png").is_file()
    assert list((path.parent / "pictures").glob("01_*.jpg"))
