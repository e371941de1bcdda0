"""Real flights in the embedded simulator, kept here: judged, replayed without ROS, and played through the real nodes.

Made in lock-step (`nav_eval.lockstep.fly(..., record=FOLDER)`): seeds 901 and 908, 9 decisions, 2 pictures a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nav_eval import judge
from nav_eval.bags import Bag
from nav_eval.lockstep import load_model
from nav_eval.replay import replay
from nav_eval.testing.processes import ros_environment, start_node, wait_for
from vlm_perception.serving_form import ServingForm
from vlm_perception.testing.tiny_model import make_tiny_model

RECORDINGS = sorted(path for path in (Path(__file__).parent / "recordings").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=4.0)
    ServingForm(width=112, height=84, max_cache_tokens=2200).save(folder)
    return folder


def test_there_are_recordings_and_each_is_small() -> None:
    assert len(RECORDINGS) >= 2
    for path in RECORDINGS:
        assert sum(file.stat().st_size for file in path.iterdir()) < 1_000_000


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_a_real_flight_has_no_breach(path: Path) -> None:
    report = judge.check(path)
    assert report.breaches == [], report.text()
    assert report.notes == []
    assert report.goals == 1
    assert report.decisions >= 2


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_a_real_flight_is_replayed_whole_and_the_same_twice(path: Path, model_folder: Path) -> None:
    def run() -> Any:
        return replay(path, *load_model(model_folder), every=10)

    def rows(result: Any) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.as_dict().items() if k != "latency_ms"} for row in result.rows]

    first = run()
    with Bag(path) as bag:
        assert first.frames == bag.counts["/drone/camera/front/image/compressed"]
        decisions = bag.counts["/nav_agent/decision"]
    assert first.error == ""
    assert not first.skipped
    assert sum(row.agrees is not None for row in first.rows) == decisions
    assert rows(run()) == rows(first)


MISSION = """
from nav_agent.navigator import Navigator
with Navigator() as navigator:
    navigator.fly("fly to the red beacon", max_decisions=2, timeout_s=60)
    print(navigator.result(timeout_s=250))
"""


@pytest.mark.timeout(400)
def test_a_real_flight_goes_through_perception_and_an_agent_that_flies_nothing(
    tmp_path: Path, model_folder: Path
) -> None:
    environment = ros_environment()
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        processes.append(start_node(*arguments, **options))
        return processes[-1]

    try:
        recorder = start("record", environment, f"output:={tmp_path / 'dry'}")
        start("main", environment, f"model:={model_folder}", module="vlm_perception.node")
        start("main", environment, "dry_run:=true", "outage_timeout_s:=200.0", module="nav_agent.node")
        wait_for(recorder, "recording to")
        player = start("play", environment, f"bag:={RECORDINGS[0]}", "rate:=1.0", "wait_s:=120.0")
        mission = subprocess.run(
            [sys.executable, "-c", MISSION],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        player.send_signal(signal.SIGINT)
        assert "decisions=2" in mission.stdout
        recorder.send_signal(signal.SIGINT)
        wait_for(recorder, "messages in")
        recorder.wait(timeout=60)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
    with Bag(tmp_path / "dry") as bag:
        assert bag.counts["/nav_agent/decision"] == 2
        assert bag.counts["/drone/command"] == 0
        decisions = [row.data for _, row in bag.rows(["/nav_agent/decision"])]
        statuses = [row.data for _, row in bag.rows(["/vlm_perception/status"])]
    assert all(decision.frame_stamp_s > 0 for decision in decisions)
    last = statuses[-1]
    assert last.frames_received > 0
    # Every frame that arrived is accounted for: in memory, replaced by a newer one, broken, or not due yet.
    assert last.frames_appended + last.frames_replaced + last.frames_broken <= last.frames_received
