"""The player: inputs only, in order, at the rate asked for; and through real topics into the recorder."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from nav_common import topics
from nav_common.conversions import encode
from nav_common.data import Odometry
from nav_eval.bags import Bag, BagError, BagWriter
from nav_eval.player import INPUTS, inputs
from nav_eval.testing.processes import ros_environment, start_node, wait_for
from nav_eval.testing.synthetic import flight, write


def test_inputs_come_in_order_and_nothing_that_was_decided(tmp_path: Path) -> None:
    rows = flight()
    played = list(inputs(write(tmp_path / "flight", rows)))
    assert [one.offset_s for one in played] == sorted(one.offset_s for one in played)
    assert played[0].offset_s == 0.0
    assert {one.topic for one in played} == {topics.FRONT_IMAGE, topics.ODOM, topics.STATE}
    assert len(played) == sum(row.topic in INPUTS for row in rows)


def test_a_recording_without_pictures_is_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.add_topic("/drone/odom", topics.ODOM.type, topics.ODOM.qos)
        writer.put("/drone/odom", 1, encode(Odometry(1.0)))
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
        assert "no status of perception was received" in line
        assert player.wait(timeout=60) == 0
        recorder.send_signal(signal.SIGINT)
        recorder.wait(timeout=60)
    finally:
        player.kill()
        recorder.kill()
    image = topics.FRONT_IMAGE.resolve()
    with Bag(bag) as sent, Bag(tmp_path / "again") as received:
        assert received.counts["/nav_agent/decision"] == received.counts["/drone/command"] == 0
        before = [row.data.stamp_s for _, row in sent.rows([image])]
        rows = [row for _, row in received.rows([image])]
    after = [row.data.stamp_s for row in rows]
    # Best effort and newest only, as from a camera: a frame may be lost on a busy machine, none comes twice or late.
    assert len(after) >= 0.9 * len(before)
    assert after == sorted(after)
    assert rows[-1].time_s - rows[0].time_s > 0.8 * 7.0


@pytest.mark.timeout(120)
def test_the_node_names_what_is_wrong(tmp_path: Path) -> None:
    for parameters, words in (
        ((), "parameter bag is empty"),
        ((f"bag:={tmp_path / 'no'}",), "no recording at"),
    ):
        process = start_node("play", ros_environment(), *parameters)
        wait_for(process, words)
        assert process.wait(timeout=60) == 2
