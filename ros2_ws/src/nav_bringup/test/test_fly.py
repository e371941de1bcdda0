"""One mission from nothing: what it refuses, what it shows, and a real flight."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from airsim_sim import instructions
from airsim_sim.instructions import called
from airsim_sim.world import World, load_world
from nav_bringup import mission
from nav_bringup.terminal import Terminal
from nav_common import topics
from nav_common.data import NavigateFeedback, NavigateState
from nav_common.process import CONFIGURATION_ERROR
from nav_common.testing import free_port, unique_domain_id
from nav_eval.bags import Bag
from nav_pilot import model_folder

# ---- what it refuses


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that only looks like one: these flights end before it is loaded."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "broken.yaml").write_text("nav_agnet: {ros__parameters: {speed: 1.0}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mission", "  "], "mission is empty: say where to fly"),
        (["--mission-file", "none.jsonl"], "mission file none.jsonl cannot be read"),
        (["--scene", "moon"], "unknown scene 'moon': choose one of"),
        (["--seed", "one"], "seed is 'one', must be a whole number"),
        (["--set", "colour=ultraviolet"], "ultraviolet"),
        (["--model", "/nowhere"], "model is '/nowhere': no config.json there"),
        (["--params-file", "/nowhere.yaml"], "params_file is '/nowhere.yaml': there is no such file"),
        (["--side", "server"], "side is 'server' and link '': one of two machines needs the link's address"),
        (["--link", "tls/gpu.example.org:7447"], "side is 'both' and link 'tls/gpu.example.org:7447'"),
        (["--side", "edge", "--link", "tcp/192.0.2.1:7447"], "only this machine's own addresses are allowed"),
        (["--side", "server", "--link", "tcp/127.0.0.1:1", "--internet", "wan"], "internet is 'wan'"),
        (["--params-file", "broken.yaml"], "broken.yaml: there is no node 'nav_agnet'; the nodes are "),
    ],
)
def test_a_wrong_argument_is_refused_with_a_message_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert (
        mission.main(["--model", "model", "--airsim-port", str(free_port()), *words]) == CONFIGURATION_ERROR
    )
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_port_in_use_is_refused_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert (
            mission.main(["--model", "model", "--airsim-port", str(other.getsockname()[1])])
            == CONFIGURATION_ERROR
        )
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


def test_on_a_terminal_one_line_changes_and_other_lines_stay_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = Tty()
    terminal = Terminal(output)
    terminal.status("1 s", key="a")
    terminal.say("bridge died")
    terminal.end_status()
    assert output.getvalue() == "\r\x1b[2K1 s\r\x1b[2Kbridge died\n1 s\n"


def test_the_changing_line_is_dim_and_no_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    output = Tty()
    Terminal(output).status("x" * 200)
    assert output.getvalue() == "\r\x1b[2K\x1b[2m" + "x" * 79 + "\x1b[0m"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    output = Tty()
    Terminal(output).status("1 s", key="a")
    assert output.getvalue() == "1 s\n"


def test_each_decision_is_one_line_with_its_own_result_within_80_columns() -> None:
    lines, decisions = [], mission.Decisions()
    for number, state, call, result in (
        (0, NavigateState.THINKING, "", ""),
        (1, NavigateState.MOVING, "turn_right(angle_deg=30)", ""),
        (1, NavigateState.THINKING, "turn_right(angle_deg=30)", "turned right 30 deg"),
        (2, NavigateState.MOVING, "fly_towards(u=450, v=550, distance_m=4)", "turned right 30 deg"),
        (
            2,
            NavigateState.LOOKING,
            "fly_towards(u=450, v=550, distance_m=4)",
            "flew 0.5 m, stopped by the reflex",
        ),
        (3, NavigateState.ENDED, "finish(reason=reached)", "finished: reached"),
    ):
        feedback = NavigateFeedback(state, number, last_tool_call=call, last_result=result)
        lines += decisions.finished(feedback)
        assert len(mission._shown(feedback, 1234.5)) <= 79
    lines += decisions.last()
    assert lines == [
        "#1   turn_right(angle_deg=30)           turned right 30 deg",
        "#2   fly_towards(u=450, v=550, distance_m=4) flew 0.5 m, stopped by the reflex",
        "#3   finish(reason=reached)             finished: reached",
    ]
    assert max(map(len, lines)) <= 80
    assert decisions.last() == []


def test_a_closed_terminal_is_noticed_and_raises_nothing() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        terminal = Terminal(stream)
        terminal.say("bridge died")
        assert not terminal.lost
        os.close(master)
        terminal.status("1 s", key="a")
        assert terminal.lost
        terminal.say("bridge died again")


def test_a_pipe_without_a_reader_is_no_lost_terminal() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        terminal = Terminal(stream)
        terminal.say("bridge died")
        assert not terminal.lost


# ---- what it judges by


def world_of(*words: str) -> World | None:
    options = mission._options(words)
    scene = mission._scene(options)
    return mission._judged(scene, mission._planned(options, scene))


def planned(*words: str) -> tuple[tuple[str, ...], str]:
    """The instructions of the mission, and perception's memory bank."""
    options = mission._options(words)
    (one,) = missions = mission._planned(options, mission._scene(options))
    return one.instructions, mission._bank(options, missions)


def test_without_words_the_scene_says_where_to_fly() -> None:
    assert planned("--scene", "field", "--set", "colour=blue") == (("fly to the blue beacon",), "off")
    assert planned("--scene", "field", "--mission", "go home") == (("go home",), "off")
    out, back = own = instructions.mission(load_world("memory", 5))
    assert planned("--scene", "memory", "--seed", "5") == ((out.text, back.text), "several")
    judged = world_of("--scene", "memory", "--seed", "5")
    assert judged is not None
    assert judged.goal.name == own[-1].goal != out.goal


def test_without_words_a_simulator_elsewhere_is_asked_for_what_the_default_scene_asks() -> None:
    assert planned("--airsim-host", "192.0.2.1") == planned("--scene", "field")


BARE = """
name: bare
ground: {texture: grass}
objects: [{name: post, kind: pillar, colour: red, radius: 0.4, height: 5, at: [10, 0]}]
goals: [post]
"""


def test_a_scene_that_asks_for_nothing_needs_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bare.yaml").write_text(BARE)
    assert mission.main(["--scene", "bare.yaml", "--model", "model"]) == CONFIGURATION_ERROR
    assert "scene 'bare' has no `instructions`" in capsys.readouterr().err
    assert planned("--scene", "bare.yaml", "--mission", "land") == (("land",), "off")


@pytest.mark.parametrize(
    ("scene", "words", "goal"),
    [
        ("field-mixed", "fly to the blue beacon", "the blue beacon"),
        ("field-mixed", "fly to the white car", "the white car"),
        ("field-mixed", "fly to the green house", ""),
        ("field", "fly to the red beacon", "the red beacon"),
    ],
)
def test_the_object_that_is_named_is_the_one_to_be_reached(scene: str, words: str, goal: str) -> None:
    world = world_of("--scene", scene, "--seed", "595", "--mission", words)
    assert world is not None
    assert [called(world, one.name) for one in world.goals] == ([goal] if goal else [])


def test_of_a_file_of_missions_the_last_instruction_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "missions.jsonl"
    path.write_text('{"prompts": ["fly to the blue beacon", "go to the white car"]}\n')
    world = world_of("--scene", "field-mixed", "--seed", "595", "--mission-file", str(path))
    assert world is not None
    assert called(world, world.goal.name) == "the white car"


def test_the_distance_is_from_what_was_named() -> None:
    class Truth:
        track = ((0.0, 0.0, -2.0), (3.0, -4.0, -2.0))  # north, east, down

    world = world_of("--scene", "field-mixed", "--seed", "595", "--mission", "the white car")
    assert world is not None
    assert mission._distance_m(Truth(), world) == world.object(world.goal.name).distance_m((3.0, 4.0))  # type: ignore[arg-type]
    absent = replace(world, goals=())
    assert mission._distance_m(Truth(), absent) is None  # type: ignore[arg-type]


# ---- a real flight


NEEDS_WEIGHTS = pytest.mark.skipif(
    not (model_folder() / "config.json").is_file(), reason="no weights: python -m nav_pilot.train"
)


def flown(folder: Path, *words: str) -> tuple[str, Path]:
    """What a flight said, and its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "nav_bringup.fly", *words, "--airsim-port", str(free_port())],
        cwd=folder,
        env={**os.environ, "ROS_DOMAIN_ID": str(unique_domain_id())},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, folder / done.stdout.splitlines()[-1]


@NEEDS_WEIGHTS
def test_a_mission_from_nothing_leaves_summary_recording_and_pictures(tmp_path: Path) -> None:
    _, path = flown(tmp_path, "--mission", "fly to the red beacon", "--max-decisions", "2")
    assert path.parent.resolve() == (tmp_path / "runs" / "latest").resolve()
    figures = json.loads(path.read_text())
    assert figures["outcome"] in ("step_limit", "finished")
    assert figures["decisions"] == 2 or figures["outcome"] == "finished"
    assert (figures["hover_violations"], figures["collisions"]) == (0, 0)
    assert figures["distance_to_goal_m"] > 0
    assert figures["frames"] > 0
    assert figures["decision_latency_ms"]["p50"] > 0
    assert (path.parent / "flight" / "metadata.yaml").is_file()
    with Bag(path.parent / "flight") as bag:
        ((_, drawing),) = list(bag.rows([topics.MARKERS.name]))[-1:]
    words = [marker.text for marker in drawing.data.markers if marker.text]
    assert len(words) == figures["decisions"] + 1, "each decision, and the end"
    viewer = (path.parent / "flight.html").read_text(encoding="utf-8")
    said = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", viewer))
    assert said["mission"] == "fly to the red beacon"
    assert said["started"] == f"{figures['start_s']} s after the command"
    assert all(said.values())
    assert not any("_" in name for name in said)
    assert (path.parent / "pictures" / "map.png").is_file()
    assert list((path.parent / "pictures").glob("01_*.jpg"))


@NEEDS_WEIGHTS
def test_of_two_instructions_each_decision_is_shown_and_how_near_each_one_ended(tmp_path: Path) -> None:
    missions = tmp_path / "missions.jsonl"
    missions.write_text('{"prompts": ["fly to the blue beacon", "go to the red tree"]}\n')
    said, path = flown(tmp_path, "--scene", "field-mixed", "--seed", "595", "--mission-file", str(missions))
    figures = json.loads(path.read_text())
    shown = [int(number) for number in re.findall(r"^#(\d+) ", said, re.MULTILINE)]
    assert shown == list(range(1, figures["decisions"] + 1))
    finishes = re.findall(r"^#\d+ +finish\(reason=(\w+)\) +finished: \1$", said, re.MULTILINE)
    ends = figures["instructions"]
    assert finishes == [end["reason"] for end in ends]
    assert [end["instruction"] for end in ends] == ["fly to the blue beacon", "go to the red tree"][
        : len(ends)
    ]
    assert all(end["distance_m"] > 0 for end in ends)
    near = len(ends) == 2 and all(end["reason"] == "reached" and end["distance_m"] <= 2.0 for end in ends)
    assert figures["success"] == (near and not figures["collisions"])
    assert (path.parent / "mapping.json").is_file()
