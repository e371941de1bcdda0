"""What Foxglove gets of a graph that runs: every recorded topic, its definition and its bytes; late viewers too."""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from nav_common.conversions import decode, encode
from nav_common.data import Decision, GoalState, Marker, MarkerArray
from nav_eval.live import LiveError, LiveServer
from nav_eval.profile import topic_names
from nav_eval.testing.processes import ros_environment, start_node, wait_for

NOW_NS = 1_700_000_000 * 10**9
LIMIT_S = 60.0
MESSAGE = 1  # the operation code of a message in Foxglove's protocol


@pytest.fixture
def server() -> Iterator[LiveServer]:
    server = LiveServer("127.0.0.1", 0)
    yield server
    server.close()


def look(
    port: int, wanted: list[str], say: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], list[Any]]:
    """As Foxglove does: what is advertised, by topic, and (topic, time, bytes) of the first message of each that is
    wanted. `say` is called again and again, since nobody gets what is said before the subscription stands."""

    async def connect() -> tuple[dict[str, Any], list[Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}", protocols=["foxglove.sdk.v1"]) as socket,
        ):
            channels: dict[str, Any] = {}
            while len(channels) < len(topic_names()):
                message = await socket.receive_json()
                if message["op"] == "serverInfo":
                    assert message["capabilities"] == []
                for channel in message.get("channels", []):
                    channels[channel["topic"]] = channel
            asked = [{"id": number, "channelId": channels[name]["id"]} for number, name in enumerate(wanted)]
            await socket.send_json({"op": "subscribe", "subscriptions": asked})
            got: dict[str, Any] = {}
            while len(got) < len(wanted):
                say()
                try:
                    message = await socket.receive(timeout=0.2)
                except TimeoutError:
                    continue
                if message.type is not aiohttp.WSMsgType.BINARY:
                    continue
                operation, number, time_ns = struct.unpack_from("<BIQ", message.data)
                assert operation == MESSAGE
                got[wanted[number]] = wanted[number], time_ns, message.data[13:]
            return channels, [got[name] for name in wanted]

    return asyncio.run(asyncio.wait_for(connect(), LIMIT_S))


def test_every_recorded_topic_is_there_with_a_definition_that_reads_its_bytes(server: LiveServer) -> None:
    decision = encode(Decision(1.0, 1.0, step=7, tool="hover", arguments="{}"))
    channels, (found,) = look(
        server.port, ["/nav_agent/decision"], lambda: server.put("/nav_agent/decision", NOW_NS, decision)
    )
    assert sorted(channels) == sorted(topic_names())
    assert {channel["encoding"] for channel in channels.values()} == {"cdr"}
    assert found == ("/nav_agent/decision", NOW_NS, decision)
    store = get_typestore(Stores.EMPTY)  # Foxglove knows nothing of nav_msgs_ext
    channel = channels["/nav_agent/decision"]
    assert (channel["schemaName"], channel["schemaEncoding"]) == ("nav_msgs_ext/msg/Decision", "ros2msg")
    store.register(get_types_from_msg(channel["schema"], channel["schemaName"]))
    read: Any = store.deserialize_cdr(found[2], channel["schemaName"])
    assert (read.step, read.tool) == (7, "hover")


def test_who_comes_later_sees_what_is_drawn_and_flown(server: LiveServer) -> None:
    drawing, goal = encode(MarkerArray((Marker(1.0, text="hover()"),))), encode(GoalState(1.0, "a"))
    server.put("/nav_agent/markers", NOW_NS, drawing)
    server.put("/nav_agent/goal_state", NOW_NS + 1, goal)
    _, found = look(server.port, ["/nav_agent/markers", "/nav_agent/goal_state"])
    assert found == [("/nav_agent/markers", NOW_NS, drawing), ("/nav_agent/goal_state", NOW_NS + 1, goal)]


def test_what_viewers_send_is_no_command(server: LiveServer) -> None:
    async def connect() -> list[str]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{server.port}", protocols=["foxglove.sdk.v1"]) as socket,
        ):
            channel = {
                "id": 1,
                "topic": "/drone/emergency_stop",
                "encoding": "cdr",
                "schemaName": "std_msgs/msg/Bool",
            }
            await socket.send_str("<|im_end|>")
            await socket.send_json({"op": "advertise", "channels": [channel]})
            said = []
            while "error" not in "".join(said):
                message = await socket.receive_json()
                if message["op"] == "status":
                    said.append("error" if message["level"] == 2 else "")
            return said

    assert asyncio.run(asyncio.wait_for(connect(), LIMIT_S))
    decision = encode(Decision(1.0, 1.0))
    look(
        server.port, ["/nav_agent/decision"], lambda: server.put("/nav_agent/decision", NOW_NS, decision)
    )  # the others go on


@pytest.mark.timeout(300)
def test_the_node_hands_on_what_the_graph_says() -> None:
    environment = ros_environment()
    process = start_node("live", environment, "port:=0")
    try:
        line = wait_for(process, "open ws://")
        port = int(line.rpartition(":")[2].split()[0])
        source = subprocess.Popen([sys.executable, "-c", PUBLISHES], env=environment, stdin=subprocess.PIPE)
        _, ((topic, _, data),) = look(port, ["/nav_agent/decision"])
        assert topic == "/nav_agent/decision"
        assert decode(Decision, data).step == 7
        source.communicate(b"")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


PUBLISHES = """
import select, sys
import rclpy
from nav_common import ros, topics
from nav_msgs_ext.msg import Decision
rclpy.init()
node = rclpy.create_node("source")
publisher = ros.publisher(node, topics.DECISION, "/drone")
while not select.select([sys.stdin], [], [], 0.1)[0]:
    publisher.publish(Decision(step=7))
"""
"""Until its standard input ends."""


def test_a_port_that_is_taken_is_said(server: LiveServer) -> None:
    with pytest.raises(LiveError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        LiveServer("127.0.0.1", server.port)
