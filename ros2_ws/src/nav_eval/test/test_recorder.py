"""The recorder: its profile, its bounded queue, its rates; and a real one over ROS, killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nav_common import topics
from nav_common.conversions import encode, type_name
from nav_common.data import GoalState
from nav_common.diagnostics import Level
from nav_eval.bags import Bag, BagError, BagWriteError
from nav_eval.profile import PROFILE, RecordedTopic, qos_overrides, ros2_bag_command, topic_names
from nav_eval.recorder import Recorder
from nav_eval.testing.processes import ros_environment, start_node, wait_for
from nav_eval.testing.synthetic import flight

NOTE = topics.Topic("/note", type_name(GoalState), topics.EVENTS)


def message(text: str) -> bytes:
    return encode(GoalState(1.0, text))


def test_the_profile_names_every_topic_once_with_both_commands_and_decisions() -> None:
    names = topic_names("/drone7")
    assert len(set(names)) == len(names) == len(PROFILE)
    assert {"/drone7/command", "/drone7/camera/front/image/compressed", "/nav_agent/decision"} <= set(names)
    assert ros2_bag_command("out", "qos.yaml", "/drone7")[-len(names) :] == names
    qos = qos_overrides("/drone7")
    assert list(qos) == names
    assert qos["/drone7/odom"]["reliability"] == "best_effort"
    assert qos["/nav_agent/goal_state"]["durability"] == "transient_local"
    assert qos["/drone7/emergency_stop"]["durability"] == "volatile"  # as a plain `ros2 topic pub` sends it


def test_what_is_put_is_recorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "flight")
    rows = flight()
    for row in rows:
        recorder.put(row.topic.resolve(), round(row.time_s * 1e9), encode(row.data))
    recorder.close()
    assert recorder.error is None
    assert (recorder.written, recorder.dropped) == (len(rows), {})
    with Bag(tmp_path / "flight") as bag:
        assert sum(bag.counts.values()) == len(rows)
        assert set(bag.types) == set(topic_names())


def test_a_rate_thins_out_by_time(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "thin", profile=[RecordedTopic(NOTE, max_rate_hz=1.0)])
    for number in range(100):
        recorder.put("/note", 10**9 + number * 10**8, message(str(number)))
    recorder.close()
    assert 10 <= recorder.written <= 12  # 9.9 s, a tenth of a period of grace each


def test_a_full_queue_drops_counts_and_never_blocks(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "bounded", profile=[RecordedTopic(NOTE)], queue_bytes=100_000)
    held = threading.Event()
    put = recorder._writer.put
    recorder._writer.put = lambda *a: (held.wait(10), put(*a))[1]  # type: ignore[method-assign] # a disk that stalls
    started = time.monotonic()
    for number in range(50):
        recorder.put("/note", number, message("x" * 10_000))
    assert time.monotonic() - started < 1.0
    assert recorder.dropped["/note"] >= 39
    assert recorder.health().level is Level.WARN
    assert recorder.health().values["dropped"] == recorder.dropped["/note"]
    held.set()
    recorder.close()
    assert recorder.written + recorder.dropped["/note"] == 50


def test_what_was_put_is_on_disk_within_the_checkpoint_though_nothing_follows(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "idle", profile=[RecordedTopic(NOTE)], checkpoint_s=0.1)
    recorder.put("/note", 1, message("last for a while"))
    deadline = time.monotonic() + 10.0
    while not read_notes(tmp_path / "idle"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    recorder.close()


def read_notes(path: Path) -> list[str]:
    try:
        with Bag(path) as bag:
            return [row.data.goal_id for _, row in bag.rows(["/note"])]
    except BagError:
        return []  # read in the middle of a checkpoint


def test_what_comes_after_the_end_is_neither_written_nor_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ended", profile=[RecordedTopic(NOTE)])
    recorder.put("/note", 1, message("in"))
    recorder.close()
    recorder.put("/note", 2, message("late"))
    assert (recorder.written, recorder.dropped) == (1, {})


def test_a_disk_that_refuses_stops_the_recording_and_nobody_else(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "full", profile=[RecordedTopic(NOTE)], checkpoint_s=0.0)
    put = recorder._writer.put

    def refuses(topic: str, time_ns: int, data: bytes) -> None:
        if time_ns == 3:
            raise BagWriteError("stopped: No space left on device")
        put(topic, time_ns, data)

    recorder._writer.put = refuses  # type: ignore[method-assign]
    for number in range(1, 6):
        recorder.put("/note", number, message(str(number)))
    recorder.close()
    assert "No space left" in str(recorder.error)
    assert recorder.health().level is Level.ERROR
    assert read_notes(tmp_path / "full") == ["1", "2"]


def test_a_recording_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BagError, match="exists already"):
        Recorder(tmp_path / "there")


@pytest.fixture
def environment() -> dict[str, str]:
    return ros_environment()


PUBLISHES = """
import sys, time
import rclpy
from nav_common import ros, topics
from nav_msgs_ext.msg import Decision
rclpy.init()
node = rclpy.create_node("source")
# Reliable and with a deep memory: whatever is missing, the recorder lost.
deep = ros.qos_profile(topics.Qos(reliable=True, depth=2000))
publisher = node.create_publisher(Decision, topics.DECISION.name, deep)
while publisher.get_subscription_count() == 0:
    time.sleep(0.02)
for number in range(int(sys.argv[1])):
    publisher.publish(Decision(step=number))
    time.sleep(0.005)
publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=100))
"""


def publish(environment: dict[str, str], count: int) -> None:
    subprocess.run([sys.executable, "-c", PUBLISHES, str(count)], env=environment, check=True, timeout=200)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_node_records_without_loss_and_ends_on_a_signal(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    process = start_node("record", environment, f"output:={tmp_path / 'flight'}")
    try:
        wait_for(process, "recording to")
        publish(environment, 200)
        process.send_signal(number)
        assert ", 0 dropped" in wait_for(process, "messages in")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    with Bag(tmp_path / "flight") as bag:
        assert [row.data.step for _, row in bag.rows(["/nav_agent/decision"])] == list(range(200))


@pytest.mark.timeout(300)
def test_the_node_killed_leaves_what_it_had(tmp_path: Path, environment: dict[str, str]) -> None:
    process = start_node("record", environment, f"output:={tmp_path / 'flight'}")
    try:
        wait_for(process, "recording to")
        publish(environment, 1000)  # 5 s and more
    finally:
        process.kill()
        process.wait()
    with Bag(tmp_path / "flight") as bag:
        steps = [row.data.step for _, row in bag.rows(["/nav_agent/decision"])]
    assert steps == list(range(len(steps)))
    assert len(steps) > 600  # all but about a second's 200


STANDS_IN_FOR_ROS2 = """#!/bin/sh
while [ "$1" != --qos-profile-overrides-path ]; do shift; done
cp "$2" "$QOS_SEEN"
trap 'echo interrupted >> "$QOS_SEEN"; exit 7' INT
touch "$QOS_SEEN.ready"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ros2_bag_record_is_ended_by_sigint_and_its_qos_file_removed(
    tmp_path: Path, number: signal.Signals
) -> None:
    """With a stand-in for the command, which only a ROS install has."""
    (tmp_path / "ros2").write_text(STANDS_IN_FOR_ROS2)
    (tmp_path / "ros2").chmod(0o755)
    (tmp_path / "rosbag2_py.py").touch()
    (tmp_path / "temporary").mkdir()
    seen = tmp_path / "seen.yaml"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "QOS_SEEN": str(seen),
        "TMPDIR": str(tmp_path / "temporary"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "nav_eval", "record", str(tmp_path / "bag")], env=environment
    )
    try:
        deadline = time.monotonic() + 60.0
        while not Path(f"{seen}.ready").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=60) == 7
    finally:
        process.kill()
    assert "/drone/odom" in seen.read_text()
    assert seen.read_text().endswith("interrupted\n")
    assert list((tmp_path / "temporary").iterdir()) == []


REFUSES = """
from nav_common.bag_writer import BagWriteError, BagWriter
from nav_eval import node
put = BagWriter.put
def refuses(self, topic, time_ns, data):
    put(self, topic, time_ns, data)
    if self.counts[self._by_topic[topic].id] == 100:
        raise BagWriteError("stopped: No space left on device")
BagWriter.put = refuses
node.record()
"""


@pytest.mark.timeout(300)
def test_the_node_on_a_full_disk_says_so_and_ends_with_a_status_of_its_own(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = ["--ros-args", "-p", f"output:={tmp_path / 'flight'}"]
    process = subprocess.Popen(
        [sys.executable, "-c", REFUSES, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(process, "recording to")
        publish(environment, 200)
        wait_for(process, "No space left on device")
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
    with Bag(tmp_path / "flight") as bag:
        steps = [row.data.step for _, row in bag.rows(["/nav_agent/decision"])]
    assert steps == list(range(len(steps)))
    assert len(steps) <= 100  # of those that the disk took: the rest was in memory when it refused


@pytest.mark.timeout(60)
def test_the_node_without_an_output_says_so(environment: dict[str, str]) -> None:
    process = start_node("record", environment)
    wait_for(process, "parameter output is empty")
    assert process.wait(timeout=60) == 2
