"""Messages, services and state over real zenoh sessions on loopback."""

import struct
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import zenoh

from nav_common import conversions, topics
from nav_common.cdr import CdrError, stamp_ns
from nav_common.data import CompressedImage, DepthImage, DroneState, FrameRequest, ServiceReply
from nav_common.frames import Vector
from nav_common.testing import free_port
from zenoh_link import session, settings
from zenoh_link.calls import CallResult, CallStatus
from zenoh_link.errors import LinkError
from zenoh_link.link import DropReason, Link
from zenoh_link.settings import parse_address
from zenoh_link.testing.rig import End, command, image, odometry, stop, two_ends, until

TRIGGER = b"\x00\x01\x00\x00\x00"


@pytest.fixture(scope="module")
def ends():
    with two_ends() as (server, edge):
        server.wait_up()
        edge.wait_up()
        yield server, edge


def test_payloads_arrive_unchanged_in_both_directions(ends):
    server, edge = ends
    sent = odometry(12.5)
    edge.link.send(topics.ODOM, sent)
    assert server.receive(topics.ODOM) == sent
    sent = command(12.5, 1)
    server.link.send(topics.COMMAND, sent)
    assert edge.receive(topics.COMMAND) == sent


def test_keys_and_payloads_are_those_of_the_ros2dds_bridge(ends):
    """A session that knows nothing of the link hears the topic's name as key and the bare CDR."""
    server, edge = ends
    address = parse_address(server.link.addresses[0])
    heard = []
    with zenoh.open(session.client_config(server.link.settings, address, None)) as other:
        subscriber = other.declare_subscriber("drone/odom", lambda s: heard.append((str(s.key_expr), s)))
        sent = odometry(13.0)

        def arrived():
            edge.link.send(topics.ODOM, sent)
            return heard

        assert until(arrived)
        key, sample = heard[0]
        assert (key, sample.payload.to_bytes(), sample.attachment) == ("drone/odom", sent, None)
        subscriber.undeclare()


def test_a_picture_is_acknowledged_and_its_age_known(ends):
    server, edge = ends
    before = time.time()
    edge.link.send(topics.FRONT_IMAGE, image(before))
    assert stamp_ns(server.receive(topics.FRONT_IMAGE)) == pytest.approx(before * 1e9, abs=1000)
    lane = next(lane for lane in edge.link.lanes.values() if lane.route.topic.name == topics.FRONT_IMAGE.name)
    assert until(lambda: lane.window.under_way == 0)
    assert 0 < lane.window.delay_s < 5
    assert 0 <= server.link.state().image_age_ms <= 1000 * (time.time() - before)


def test_a_service_is_called_across_and_its_answer_comes_back(ends):
    server, edge = ends
    calls = []

    def take_off(request):
        calls.append(request)
        return CallResult(CallStatus.OK, conversions.encode(ServiceReply(True, "took off")))

    edge.link.serve("takeoff", take_off)
    result = server.link.call("takeoff", TRIGGER, timeout_s=10)
    assert result.status is CallStatus.OK, result
    assert conversions.decode(ServiceReply, result.payload) == ServiceReply(True, "took off")
    assert calls == [TRIGGER]


def test_a_service_that_nobody_serves_has_no_answer(ends):
    server, _ = ends
    assert server.link.call("land", TRIGGER, timeout_s=2).status is CallStatus.NO_ANSWER


def test_how_a_call_ended_comes_back_and_only_a_bad_request_counts_as_refused(ends):
    server, edge = ends
    counted = edge.link.state().refused
    unavailable = CallResult(CallStatus.NO_ANSWER, message="land is not offered")
    hurry = threading.Event()

    def late(request):
        hurry.wait(20)
        return unavailable

    def broken(request):
        raise CdrError("no such request")

    handlers = [lambda request: unavailable, late, broken]
    edge.link.serve("land", lambda request: handlers.pop(0)(request))
    assert server.link.call("land", TRIGGER, timeout_s=10) == unavailable
    nothing = server.link.call("land", TRIGGER, timeout_s=0.5)
    hurry.set()
    assert nothing == CallResult(CallStatus.NO_ANSWER, message="no answer to land within 0.5 s")
    assert edge.link.state().refused == counted
    refused = CallResult(CallStatus.REFUSED, message="no such request")
    assert server.link.call("land", TRIGGER, timeout_s=10) == refused
    assert edge.link.state().refused == counted + 1


def test_a_call_kept_through_an_outage_is_refused(ends):
    """Nobody waits for its answer any more, and the vehicle may not take off seconds later."""
    server, edge = ends
    calls = []
    edge.link.serve("reset", lambda request: calls.append(request) or CallResult(CallStatus.OK, TRIGGER))
    address = parse_address(server.link.addresses[0])
    with zenoh.open(session.client_config(server.link.settings, address, None)) as other:

        def answer(attachment):
            replies = other.get("drone/reset", payload=TRIGGER, attachment=attachment, timeout=5)
            return [reply.err.payload.to_string() for reply in replies if reply.err is not None]

        assert until(lambda: answer(struct.pack("<d", time.time() - 8)))
        assert "old" in answer(struct.pack("<d", time.time() - 8))[0]
        assert "time of sending" in answer(None)[0]
    assert not calls
    assert edge.link.refusals[DropReason.STALE, "drone/reset", "somebody on this machine"] >= 1


def test_what_this_side_does_not_send_is_an_error(ends):
    server, edge = ends
    with pytest.raises(LinkError, match="command is not sent by the edge"):
        edge.link.send(topics.COMMAND, command(1.0, 1))
    with pytest.raises(LinkError, match="arm_cmd_vel"):
        server.link.call("arm_cmd_vel", TRIGGER)


def test_round_trip_and_clock_offset_are_measured(ends):
    _, edge = ends
    assert until(lambda: edge.link.state().clock_offset_bound_s < 0.05)
    state = edge.link.state()
    assert state.up
    assert state.peer == "server"
    assert 0 < state.round_trip_ms < 1000
    # Two clocks of one machine.
    assert abs(state.clock_offset_s) <= state.clock_offset_bound_s + 1e-3


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (bytes(300), DropReason.TOO_LARGE),
        (command(1.0, 1)[:-8], DropReason.BROKEN),
        (b"", DropReason.BROKEN),
        (stop(True), DropReason.BROKEN),
        (b"\x00\x03\x00\x00" + bytes(72), DropReason.BROKEN),
    ],
    ids=["oversized", "truncated", "empty", "another type", "another encoding"],
)
def test_bad_messages_are_refused_and_counted_with_their_sender(ends, payload, reason):
    server, edge = ends
    counted = (reason, "drone/command", "somebody on this machine")
    before = edge.link.refusals[counted]
    address = parse_address(server.link.addresses[0])
    with zenoh.open(session.client_config(server.link.settings, address, None)) as other:

        def refused():
            other.put("drone/command", payload)
            return edge.link.refusals[counted] > before

        assert until(refused)
    assert edge.inbox.empty() or topics.COMMAND.name not in {t.name for t, _ in edge.inbox.queue}
    assert until(lambda: edge.link.state().refused > 0)


def test_an_unknown_key_is_counted(ends):
    server, _ = ends
    address = parse_address(server.link.addresses[0])
    with zenoh.open(session.client_config(server.link.settings, address, None)) as other:

        def refused():
            other.put("drone/secret", b"x")
            return server.link.refusals[DropReason.UNKNOWN, "drone/secret", "somebody on this machine"]

        assert until(refused)


def test_a_flood_is_cut_to_twice_the_rate():
    with two_ends() as (server, edge):
        edge.wait_up()
        address = parse_address(server.link.addresses[0])
        with zenoh.open(session.client_config(server.link.settings, address, None)) as other:
            sent = command(1.0, 1)

            def flooded():
                for _ in range(50):
                    other.put("drone/command", sent, congestion_control=zenoh.CongestionControl.BLOCK)
                return (
                    edge.link.refusals[DropReason.TOO_MANY, "drone/command", "somebody on this machine"] > 200
                )

            started = time.monotonic()
            assert until(flooded)
            elapsed_s = time.monotonic() - started
        assert edge.inbox.qsize() <= 30 + 60 * (elapsed_s + 0.5)


def test_an_emergency_stop_reaches_an_edge_that_comes_later_and_counts_each_time_it_is_sent():
    with two_ends() as (server, edge):
        edge.wait_up()
        server.wait_up()
        server.link.send(topics.EMERGENCY_STOP, stop(True))
        assert edge.receive(topics.EMERGENCY_STOP) == stop(True)
        # The repeats, one a second, are not delivered again.
        repeats = server.link.state().sent
        assert until(lambda: server.link.state().sent >= repeats + 3)
        assert edge.inbox.empty()
        # Sent anew it counts, although it is equal: the edge may have released the stop by its keyboard.
        server.link.send(topics.EMERGENCY_STOP, stop(True))
        assert edge.receive(topics.EMERGENCY_STOP) == stop(True)
        edge.link.close()
        later = End(settings.Side.EDGE, server.link.addresses)
        try:
            assert later.receive(topics.EMERGENCY_STOP) == stop(True)
        finally:
            later.link.close()


def test_an_emergency_stop_that_zenoh_drops_arrives_by_its_repeat_though_it_equals_the_one_before(
    monkeypatch,
):
    """Under congestion zenoh drops what is put without a word."""

    class Dropping:
        def put(self, payload, attachment=None):
            pass

    with two_ends() as (server, edge):
        edge.wait_up()
        server.wait_up()
        server.link.send(topics.EMERGENCY_STOP, stop(True))
        assert edge.receive(topics.EMERGENCY_STOP) == stop(True)
        monkeypatch.setitem(server.link._outlets, "drone/emergency_stop", Dropping())
        server.link.send(topics.EMERGENCY_STOP, stop(True))
        assert edge.receive(topics.EMERGENCY_STOP) == stop(True)
        repeats = server.link.state().sent
        assert until(lambda: server.link.state().sent >= repeats + 2)
        assert edge.inbox.empty()


def test_a_repeat_that_is_looked_at_late_does_not_undo_what_came_after_it(monkeypatch):
    """A release of the emergency stop must not come back over the stop that followed it."""
    original = Link._on_repeat

    def late(self, route, sample):
        time.sleep(0.5)
        original(self, route, sample)

    monkeypatch.setattr(Link, "_on_repeat", late)
    with two_ends() as (server, edge):
        edge.wait_up()
        server.wait_up()
        server.link.send(topics.EMERGENCY_STOP, stop(False))
        assert edge.receive(topics.EMERGENCY_STOP) == stop(False)
        server.link._repeat_latched(at_once=True)
        server.link.send(topics.EMERGENCY_STOP, stop(True))
        assert edge.receive(topics.EMERGENCY_STOP) == stop(True)
        time.sleep(1.5)
        assert edge.inbox.empty()


def test_what_is_sent_all_the_time_is_not_repeated():
    """A repeat of the state before could arrive after the newest one."""

    class Stepped:
        now_s = 1000.0

        def now(self):
            return self.now_s

    clock = Stepped()
    with two_ends(clock=clock) as (server, edge):
        edge.wait_up()
        repeats = []
        key = edge.link.settings.link_key(settings.Side.EDGE, "latched/drone/state")
        with zenoh.open(
            session.client_config(server.link.settings, parse_address(server.link.addresses[0]), None)
        ) as other:
            subscriber = other.declare_subscriber(
                key, lambda sample: repeats.append(sample.payload.to_bytes())
            )
            for number in range(20):
                last = conversions.encode(DroneState(1.0 + number))
                edge.link.send(topics.STATE, last)
                clock.now_s += 0.2
                time.sleep(0.1)
            assert repeats == []
            clock.now_s += 0.2  # and once nothing new comes, it is
            assert until(lambda: bool(repeats))
            assert set(repeats) == {last}
            subscriber.undeclare()


def test_the_edge_waits_for_a_server_and_says_so():
    port = free_port()
    edge = End(settings.Side.EDGE, [f"tcp/127.0.0.1:{port}"])
    try:
        assert until(lambda: "cannot be reached" in edge.link.state().fault)
        server = End(settings.Side.SERVER, [f"tcp/127.0.0.1:{port}"])
        try:
            edge.wait_up()
            assert edge.link.state().fault == ""
        finally:
            server.link.close()
        assert until(lambda: not edge.link.state().up)
        assert edge.link.state().outages == 1
        assert "no answer from server" in edge.link.state().fault
    finally:
        edge.link.close()


def test_both_sides_come_back_when_the_server_is_restarted():
    with two_ends() as (server, edge):
        edge.wait_up()
        server.link.close()
        assert until(lambda: not edge.link.state().up)
        again = End(settings.Side.SERVER, server.link.addresses)
        try:
            edge.wait_up()
            again.wait_up()
            sent = command(2.0, 2)
            again.link.send(topics.COMMAND, sent)
            assert edge.receive(topics.COMMAND) == sent
            sent = odometry(3.0)
            edge.link.send(topics.ODOM, sent)
            assert again.receive(topics.ODOM) == sent
            edge.link.send(topics.FRONT_IMAGE, image(4.0))
            again.receive(topics.FRONT_IMAGE)
        finally:
            again.link.close()


def test_depth_crosses_at_standstill_only_and_compressed():
    depth = np.full((72, 128), 7.5, np.float32)
    depth[:10] = np.nan
    depth[-10:] = 500.0
    sent = conversions.encode(DepthImage(5.0, depth, "front_optical"))
    with two_ends() as (server, edge):
        edge.wait_up()
        server.wait_up()
        edge.link.send(topics.ODOM, odometry(5.0, velocity=Vector(1.0, 0.0, 0.0)))
        dropped = edge.link.state().dropped
        edge.link.send(topics.FRONT_DEPTH, sent)
        assert edge.link.state().dropped == dropped + 1
        edge.link.send(topics.ODOM, odometry(5.1))
        edge.link.send(topics.FRONT_DEPTH, sent)
        arrived = conversions.decode(DepthImage, server.receive(topics.FRONT_DEPTH))
    assert (arrived.stamp_s, arrived.frame_id) == (5.0, "front_optical")
    np.testing.assert_allclose(arrived.depth_m[10:-10], 7.5, atol=0.01)
    assert np.isnan(arrived.depth_m[:10]).all()
    np.testing.assert_allclose(arrived.depth_m[-10:], 100.0, rtol=0.01)


def test_a_plain_peer_gets_pictures_at_the_lowest_rate():
    """Nothing answers pings or acknowledges: still everything crosses."""
    plain = replace(settings.load(), plain_peer=True)
    edge_only = threading.Event()
    port_config = zenoh.Config()
    port = free_port()
    for key, value in (("mode", '"router"'), ("listen/endpoints", f'["tcp/127.0.0.1:{port}"]')):
        port_config.insert_json5(key, value)
    heard = []
    with zenoh.open(port_config) as bridge:
        subscriber = bridge.declare_subscriber("drone/**", lambda s: heard.append(str(s.key_expr)))
        edge = End(settings.Side.EDGE, [f"tcp/127.0.0.1:{port}"], settings=plain)
        try:
            edge.wait_up()
            started = time.monotonic()
            while time.monotonic() - started < 3:
                edge.link.send(topics.FRONT_IMAGE, _jpeg(time.time()))
                edge_only.wait(0.02)
            frames = heard.count("drone/camera/front/image/compressed")
            assert 4 <= frames <= 8  # 2 Hz for 3 s
        finally:
            edge.link.close()
        subscriber.undeclare()


def _jpeg(stamp_s):
    data = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    return conversions.encode(CompressedImage(stamp_s, data))


def test_pictures_cross_when_they_are_asked_for_and_a_preview_between():
    with two_ends() as (server, edge):
        edge.wait_up()
        server.wait_up()
        began_s = time.time()

        def fly_until(stamp_s: float) -> list[float]:
            """Pictures at 20 Hz until then; the stamps of those that arrived."""
            while time.time() < stamp_s:
                edge.link.send(topics.FRONT_IMAGE, image(time.time(), 5_000))
                time.sleep(0.05)
            found = []
            while not server.inbox.empty():
                topic, payload = server.inbox.get()
                if topic.name == topics.FRONT_IMAGE.name:
                    found.append(stamp_ns(payload) / 1e9)
            return found

        assert len(fly_until(began_s + 2.0)) in (1, 2, 3)  # nobody asked: 1 Hz
        arrived = []
        for number in range(1, 9):  # four a second
            server.link.send(topics.FRAME_WANTED, wanted := request(began_s + 2.0 + 0.25 * number))
            server.link.send(topics.FRAME_WANTED, wanted)  # a repeat is no second request
            arrived += fly_until(began_s + 2.0 + 0.25 * (number + 1))
        assert 6 <= len(arrived) <= 10
        # The newest picture is kept: a request for the past is answered at once.
        server.inbox.queue.clear()
        edge.link.send(topics.FRONT_IMAGE, image(last_s := time.time(), 5_000))
        server.link.send(topics.FRAME_WANTED, request(last_s - 0.01))
        assert stamp_ns(server.receive(topics.FRONT_IMAGE)) == pytest.approx(last_s * 1e9, abs=1000)


def request(stamp_s):
    return conversions.encode(FrameRequest(stamp_s))
