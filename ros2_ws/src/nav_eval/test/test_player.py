"""The player: inputs only, in order, at the rate asked for; and through real topics into the recorder."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from ros_processes import ros_environment, start_node, wait_for
from synthetic import flight, write

from nav_common import topics
from nav_eval.bags import Bag, BagError, BagWriter, make, serialize
from nav_eval.player import INPUTS, inputs


def test_inputs_come_in_order_and_nothing_that_was_decided(tmp_path: Path) -> None:
    rows = flight()
    due = list(inputs(write(tmp_path / "flight", rows)))
    assert [one.after_s for one in due] == sorted(one.after_s for one in due)
    assert due[0].after_s == 0.0
    assert {one.topic for one in due} == {topics.FRONT_IMAGE, topics.ODOM, topics.STATE}
    assert len(due) == sum(row.topic in INPUTS for row in rows)


def test_a_recording_without_pictures_is_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.add_topic("/drone/odom", topics.ODOM.type, topics.ODOM.qos)
        writer.put("/drone/odom", 1, serialize(make(topics.ODOM.type)))
    with pytest.raises(BagError, match="has no topic /drone/camera/front/image/compressed"):
        list(inputs(tmp_path / "bag"))


@pytest.mark.timeout(300)
def test_a_recording_played_twice_as_fast_arrives_whole(tmp_path: Path) -> None:
    environment = ros_environment()
    bag = write(tmp_path / "flight", flight())
    recorder = start_node("record", environment, f"output:={tmp_path / 'again'}")
    player = start_node("play", environment, f"bag:={bag}", "rate:=2.0", "for_perception:=false")
    try:
        wait_for(recorder, "recording to")
        line = wait_for(player, "frames sent")
        assert "140 frames sent" in line
        assert "nobody told what became of them" in line
        assert player.wait(timeout=60) == 0
        recorder.send_signal(signal.SIGINT)
        recorder.wait(timeout=60)
    finally:
        player.kill()
        recorder.kill()
    image = topics.FRONT_IMAGE.resolve()
    with Bag(bag) as sent, Bag(tmp_path / "again") as received:
        assert received.counts["/nav_agent/decision"] == received.counts["/drone/command"] == 0
        before = [message.data.header.stamp for message in sent.messages([image])]
        messages = list(received.messages([image]))
    after = [message.data.header.stamp for message in messages]
    # Best effort and newest only, as from a camera: a frame may be lost on a busy machine, none comes twice or late.
    assert len(after) >= 0.9 * len(before)
    assert [s.sec + s.nanosec * 1e-9 for s in after] == sorted(s.sec + s.nanosec * 1e-9 for s in after)
    assert messages[-1].time_s - messages[0].time_s > 0.8 * 7.0


@pytest.mark.timeout(120)
def test_the_node_names_what_is_wrong(tmp_path: Path) -> None:
    for parameters, words in (
        ((), "parameter bag is empty"),
        ((f"bag:={tmp_path / 'no'}",), "no recording at"),
    ):
        process = start_node("play", ros_environment(), *parameters)
        wait_for(process, words)
        assert process.wait(timeout=60) == 2
