"""Recordings: what is written is read, a kill at any moment leaves a readable file, damage is named."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosTime
from rosbags.rosbag2.storage_mcap import McapReader

from nav_common import contract, topics
from nav_common.conversions import encode, type_name
from nav_common.data import CompressedImage, GoalState
from nav_eval.__main__ import main
from nav_eval.bags import Bag, BagError, BagWriter, repair
from nav_eval.testing.synthetic import flight, write

NOTE = topics.Topic("/note", type_name(GoalState), topics.EVENTS)


def note_data(text: str) -> bytes:
    return encode(GoalState(1.0, text))


def note(path: Path, count: int) -> Path:
    with BagWriter(path) as writer:
        writer.add_topic("/note", NOTE.type, NOTE.qos)
        for number in range(count):
            writer.put("/note", 10**9 + number * 10**8, note_data(f"note {number}"))
    return path


def texts(path: Path) -> list[str]:
    with Bag(path) as bag:
        return [row.data.goal_id for _, row in bag.rows(bag.types)]


def test_a_flight_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = flight()
    with Bag(write(tmp_path / "flight", rows)) as bag:
        read = list(bag.payloads())
        assert [row.data for _, row in bag.rows(bag.types)] == [row.data for row in rows]
        assert bag.vehicle_namespace() == "/drone"
        assert bag.types["/nav_agent/decision"] == "nav_msgs_ext/msg/Decision"
    assert [time_ns for _, time_ns, _ in read] == [round(row.time_s * 1e9) for row in rows]
    assert [payload for _, _, payload in read] == [encode(row.data) for row in rows]


def test_the_recording_carries_the_definitions_of_our_own_interfaces(tmp_path: Path) -> None:
    """Read by the library alone, which knows nothing of nav_msgs_ext."""
    with AnyReader([write(tmp_path / "flight", flight())]) as reader:
        connection = next(c for c in reader.connections if c.topic == "/nav_agent/decision")
        assert "float64 barrier_ms" in connection.msgdef.data
        assert connection.digest.startswith("RIHS01_")
        _, _, raw = next(reader.messages([connection]))
        assert reader.deserialize(raw, connection.msgtype).tool == "move_forward"  # type: ignore[attr-defined]


def test_metadata_has_what_rosbag2_reads(tmp_path: Path) -> None:
    bag = note(tmp_path / "notes", 3)
    information = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert information["version"] == 9
    assert information["storage_identifier"] == "mcap"
    assert information["relative_file_paths"] == ["notes.mcap"]
    assert information["message_count"] == 3
    assert information["duration"]["nanoseconds"] == 2 * 10**8
    topic = information["topics_with_message_count"][0]["topic_metadata"]
    assert topic["offered_qos_profiles"][0]["reliability"] == "reliable"


def test_no_chunk_is_without_messages_and_each_message_is_indexed(tmp_path: Path) -> None:
    """The genuine `ros2 bag play` refuses a file with a chunk that has no message index, and then plays nothing."""
    path = tmp_path / "notes"
    with BagWriter(path, checkpoint_s=1e9) as writer:
        writer.checkpoint()  # before any topic
        writer.add_topic("/note", NOTE.type, NOTE.qos)
        writer.checkpoint()  # before any message
        assert chunk_messages(path) == []
        assert texts(path) == []
        for number in range(5):
            writer.put("/note", number, note_data(f"note {number}"))
            writer.checkpoint()
            writer.checkpoint()  # nothing new
        writer.add_topic("/late", NOTE.type, NOTE.qos)
        writer.checkpoint()
        writer.put("/late", 5, note_data("late"))
        writer.put("/note", 6, note_data("x" * (2 << 20)))  # the library closes a chunk by its size
        writer.checkpoint()
    assert chunk_messages(path) == [{1: 1}] * 5 + [{2: 1, 1: 1}]
    assert len(texts(path)) == 7


def chunk_messages(path: Path) -> list[dict[int, int]]:
    """Of each chunk: the number of messages in its message index, by channel."""
    reader = McapReader(path / f"{path.name}.mcap")
    reader.open()
    counts = [dict(chunk.channel_count) for chunk in reader.chunks]
    reader.close()
    return counts


def test_a_recording_without_a_message_is_read(tmp_path: Path) -> None:
    bag = note(tmp_path / "notes", 0)
    assert texts(bag) == []
    information = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert information["starting_time"]["nanoseconds_since_epoch"] == 0


def test_the_lease_of_a_topic_is_kept(tmp_path: Path) -> None:
    """A player offers what the bag says: without the lease, perception's status would match no subscriber of ours."""
    lease_ns = round(contract.LIVELINESS_LEASE_S * 1e9)
    path = tmp_path / "leased"
    with BagWriter(path) as writer:
        for topic in (topics.ENGINE_STATUS, topics.ODOM):
            writer.add_topic(topic.resolve(), topic.type, topic.qos)
    with AnyReader([path]) as reader:
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}  # type: ignore[union-attr]
    assert qos[topics.ENGINE_STATUS.resolve()].liveliness_lease_duration == QosTime(0, lease_ns)
    assert qos[topics.ODOM.resolve()].liveliness_lease_duration.sec > 1e9
    text = (path / "metadata.yaml").read_text()
    assert f"nsec: {lease_ns}" in text


WRITES_FOR_EVER = """
    import sys, time
    from nav_common.bag_writer import BagWriter
    from nav_common.topics import EVENTS
    data = bytes.fromhex(sys.argv[2])
    with BagWriter(sys.argv[1]) as writer:
        writer.add_topic("/note", "nav_msgs_ext/msg/GoalState", EVENTS)
        writer.checkpoint()
        print("begun", flush=True)
        while True:
            writer.put("/note", time.monotonic_ns(), data)
            time.sleep(0.002)
"""


def test_a_recorder_killed_at_any_time_loses_about_a_second(tmp_path: Path) -> None:
    data = note_data("x" * 500).hex()
    code = textwrap.dedent(WRITES_FOR_EVER)
    paths = [tmp_path / f"killed{number}" for number in range(6)]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), data], stdout=subprocess.PIPE, text=True)
        for path in paths
    ]
    spans_ns = []
    try:
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        begun_ns = time.monotonic_ns()
        for process in processes:
            time.sleep(random.uniform(0.1, 1.0))
            spans_ns.append((begun_ns, time.monotonic_ns()))
            process.kill()
            process.wait()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for path, (begun_ns, killed_ns) in zip(paths, spans_ns, strict=True):
        with Bag(path) as bag:
            times = [time_ns for _, time_ns, _ in bag.payloads()]
        assert times == sorted(times)
        assert killed_ns - max([begun_ns, *times]) < 1.6e9
    assert main(["check", str(paths[-1])]) == 2  # readable, but no flight


def test_repair_saves_what_is_whole_of_any_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "flight", flight())
    data = (whole / "flight.mcap").read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(
        BagError,
        match=r"cut off; its last whole .* offset \d+ of \d+.*nav_eval repair \S+/cut.mcap \S+/cut_repaired`",
    ):
        Bag(cut)
    saved = repair(cut, tmp_path / "saved")
    with Bag(tmp_path / "saved") as bag, Bag(whole) as original:
        pairs = zip(bag.payloads(), original.payloads(), strict=False)
        assert sum(a == b for a, b in pairs) == saved > 100


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 20_000))
def test_a_cut_recording_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    data = (note(folder / "notes", 40) / "notes.mcap").read_bytes()
    path = folder / "cut.mcap"
    path.write_bytes(data[: min(cut, len(data))])
    for refusal in (refusal_of(lambda: texts(path)), refusal_of(lambda: repair(path, folder / "saved"))):
        assert refusal is None or "cut.mcap" in refusal


def refusal_of(read: Callable[[], object]) -> str | None:
    try:
        read()
    except BagError as error:
        return str(error)
    return None


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    """The kernel refuses to let the file grow beyond a limit, as a full disk would."""
    code = """
        import random, resource, signal, sys
        import numpy as np
        from nav_common.bag_writer import BagWriteError, BagWriter
        from nav_common.topics import EVENTS
        from nav_common.conversions import encode
        from nav_common.data import GoalState
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        writer = BagWriter(sys.argv[1], checkpoint_s=0.0)
        writer.open()
        writer.add_topic("/note", "nav_msgs_ext/msg/GoalState", EVENTS)
        try:
            for number in range(100):
                data = f"note {number} " + random.randbytes(5000).hex()
                writer.put("/note", 10**9 + number * 10**8, encode(GoalState(1.0, data)))
        except BagWriteError as error:
            print(error)
    """
    path = tmp_path / "full"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, check=True
    )
    assert "stopped: File too large" in done.stdout
    assert "kept" in done.stdout
    assert len(texts(path)) >= 25


def test_bad_recordings_are_named(tmp_path: Path) -> None:
    def reason(path: Path) -> str:
        with pytest.raises(BagError) as caught:
            texts(path)
        return str(caught.value)

    assert "no recording at" in reason(tmp_path / "nothing")
    (tmp_path / "empty.mcap").touch()
    assert "empty (0 bytes)" in reason(tmp_path / "empty.mcap")
    (tmp_path / "folder").mkdir()
    assert "no metadata.yaml" in reason(tmp_path / "folder")
    (tmp_path / "text.mcap").write_text("this is no recording at all, but it is long enough to look at")
    assert "does not begin as an MCAP file" in reason(tmp_path / "text.mcap")
    (tmp_path / "picture.jpg").write_bytes(b"x")
    assert "is wanted" in reason(tmp_path / "picture.jpg")

    bag = note(tmp_path / "future", 2)
    metadata = bag / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("version: 9", "version: 99"))
    assert "version 99 not supported" in reason(bag)
    metadata.write_text("{{{")
    assert "metadata.yaml" in reason(bag)
    metadata.unlink()
    assert texts(bag) == ["note 0", "note 1"]


def test_a_broken_message_is_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    with BagWriter(path) as writer:
        writer.add_topic("/note", NOTE.type, NOTE.qos)
        writer.put("/note", 10**9, note_data("fine"))
        writer.put("/note", 2 * 10**9, b"\x00\x01\x00\x00\xff\xff\x00\x00")
    with pytest.raises(BagError, match=r"message 1 \(/note, 8 bytes, log time 2.000\)"):
        texts(path)


def test_other_topics_and_types_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(note(tmp_path / "notes", 2))]) == 2
    assert "no vehicle; its topics are /note" in capsys.readouterr().err
    path = tmp_path / "typed"
    with BagWriter(path) as writer:
        writer.add_topic("/drone/odom", NOTE.type, NOTE.qos)
        writer.add_topic("/drone/state", topics.STATE.type, topics.STATE.qos)
        writer.put("/drone/odom", 1, note_data("x"))
    assert main(["check", str(path)]) == 2
    assert (
        "/drone/odom is of type nav_msgs_ext/msg/GoalState, not nav_msgs/msg/Odometry"
        in capsys.readouterr().err
    )


def test_an_existing_recording_is_not_overwritten(tmp_path: Path) -> None:
    note(tmp_path / "notes", 1)
    with pytest.raises(BagError, match="exists already"):
        note(tmp_path / "notes", 1)


def test_checkpoints_cost_little_and_stay_bounded(tmp_path: Path) -> None:
    """Ten minutes of 640x480 JPEG at 20 Hz, as fast as it goes: under 15 % of one core at real pace, flat memory."""
    payload = encode(CompressedImage(1.0, bytes(60_000)))
    start = time.process_time()
    with BagWriter(tmp_path / "long", checkpoint_s=2.0) as writer:
        writer.add_topic("/image", type_name(CompressedImage), topics.SENSOR)
        for number in range(2400):  # two minutes of it; the benchmark does ten
            writer.put("/image", 10**9 + number * 50_000_000, payload)
            assert writer.pending_bytes < 8 << 20
    assert time.process_time() - start < 0.15 * 120
