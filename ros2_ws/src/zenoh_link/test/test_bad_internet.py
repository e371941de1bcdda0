"""The link across a proxy that delays, stalls, limits the rate and cuts."""

import contextlib
import gc
import itertools
import socket
import statistics
import threading
import time

import pytest

from nav_common import conversions, topics
from nav_common.cdr import stamp_ns
from nav_common.contract import COMMAND_MAX_AGE_S
from nav_common.data import FrameRequest, VelocityCommand
from nav_common.testing import free_port
from zenoh_link import profile
from zenoh_link.emulator import Emulator
from zenoh_link.errors import SettingsError
from zenoh_link.profile import Profile
from zenoh_link.testing.rig import command, image, noisy_picture, odometry, stop, two_ends, until


class Way:
    """Two ends with an emulator between; odometry from the edge, commands that echo it from the server."""

    def __init__(self, given: Profile) -> None:
        port, proxy_port = free_port(), free_port()
        self.emulator = Emulator(proxy_port, port, given).start()
        self._ends = two_ends(port=port, edge_port=proxy_port)
        self.server, self.edge = self._ends.__enter__()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def every(self, period_s: float, act) -> None:
        def work() -> None:
            while not self._closing.wait(period_s):
                act()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def fly(self) -> None:
        """Odometry at 30 Hz; commands at 20 Hz that echo the newest odometry heard; every picture is wanted."""
        self.newest_stamp_s = self.newest_picture_s = 0.0
        sequence = itertools.count(1)
        self.every(1 / 30, lambda: self.edge.link.send(topics.ODOM, odometry(time.time())))

        def answer() -> None:
            while not self.server.inbox.empty():
                topic, payload = self.server.inbox.get()
                if topic.name == topics.ODOM.name:
                    self.newest_stamp_s = max(self.newest_stamp_s, stamp_ns(payload) / 1e9)
                elif topic.name == topics.FRONT_IMAGE.name:
                    self.newest_picture_s = stamp_ns(payload) / 1e9
            wanted = FrameRequest(self.newest_picture_s + 0.01)
            self.server.link.send(topics.FRAME_WANTED, conversions.encode(wanted))
            if self.newest_stamp_s:
                self.server.link.send(topics.COMMAND, command(self.newest_stamp_s, next(sequence)))

        self.every(0.05, answer)

    def commands(self, seconds: float) -> list[tuple[float, float, int]]:
        """(time of arrival, age, sequence) of the commands that arrive within `seconds`."""
        found, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            while not self.edge.inbox.empty():
                topic, payload = self.edge.inbox.get()
                if topic.name == topics.COMMAND.name:
                    received = conversions.decode(VelocityCommand, payload)
                    now = time.time()
                    found.append((now, now - received.stamp_s, received.sequence))
            time.sleep(0.002)
        return found

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(2)
        self._ends.__exit__(None, None, None)
        self.emulator.close()


@pytest.fixture
def way(request):
    made = Way(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("way", [Profile(rtt_ms=60)], indirect=True)
def test_the_round_trip_is_measured(way):
    way.edge.wait_up()
    assert until(lambda: way.edge.link.state().round_trip_ms > 55)
    state = way.edge.link.state()
    assert state.round_trip_ms < 200
    assert state.clock_offset_bound_s >= 0.03
    assert abs(state.clock_offset_s) <= state.clock_offset_bound_s


@pytest.mark.parametrize("way", [Profile(rtt_ms=20, up_mbit_s=4)], indirect=True)
def test_pictures_on_a_slow_uplink_stay_young_and_commands_do_not_wait_for_them(way):
    """14 Mbit/s offered on 4: what queues is neither the pictures nor the commands beside them."""
    way.edge.wait_up()
    way.server.wait_up()
    way.fly()
    way.every(1 / 30, lambda: way.edge.link.send(topics.FRONT_IMAGE, noisy_picture(time.time())))
    ages_ms, commands = [], way.commands(3.0)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        commands += way.commands(0.1)
        ages_ms.append(way.server.link.state().image_age_ms)
    # Without newest-only and the window the queue would grow by 2 s each second.
    assert 0 < statistics.median(ages_ms) < 600
    assert statistics.median(age for _, age, _ in commands) < 0.4
    assert way.server.link.state().up


@pytest.mark.parametrize("way", [Profile(rtt_ms=20)], indirect=True)
def test_after_an_outage_no_flood_of_old_commands_and_soon_fresh_ones(way):
    way.edge.wait_up()
    way.server.wait_up()
    way.fly()
    before = way.commands(2.0)
    assert before
    way.emulator.cut(True)
    during = way.commands(6.0)
    assert not way.edge.link.state().up
    assert not way.server.link.state().up
    way.emulator.cut(False)
    restored = time.time()
    way.edge.wait_up()
    after = way.commands(3.0)
    # What TCP kept from before the link was known to be lost may arrive; the gate drops it by its age. It is little:
    # nothing was sent while the link was down.
    stale = [c for c in (*during, *after) if c[1] > COMMAND_MAX_AGE_S]
    assert len(stale) <= 1.5 / 0.05
    fresh = [c for c in after if c[1] <= COMMAND_MAX_AGE_S]
    assert fresh
    assert fresh[0][0] - restored < 6.0
    sequences = [c[2] for c in fresh]
    assert sequences == sorted(sequences)
    assert way.edge.link.state().outages == 1


@pytest.mark.parametrize("way", [Profile(rtt_ms=10)], indirect=True)
def test_an_emergency_stop_pressed_again_during_an_outage_counts(way):
    """It equals the one before, which the edge may have released meanwhile: it is no repeat of it."""
    way.edge.wait_up()
    way.server.wait_up()
    way.server.link.send(topics.EMERGENCY_STOP, stop(True))
    assert way.edge.receive(topics.EMERGENCY_STOP) == stop(True)
    way.emulator.cut(True)
    assert until(lambda: not way.server.link.state().up)
    way.server.link.send(topics.EMERGENCY_STOP, stop(True))
    way.emulator.cut(False)
    assert way.edge.receive(topics.EMERGENCY_STOP) == stop(True)


@pytest.mark.parametrize("way", [Profile(rtt_ms=10)], indirect=True)
def test_pictures_go_on_after_an_outage(way):
    way.edge.wait_up()
    way.every(0.1, lambda: way.edge.link.send(topics.FRONT_IMAGE, image(time.time(), 20_000)))
    way.server.receive(topics.FRONT_IMAGE)
    way.emulator.cut(True)
    assert until(lambda: not way.edge.link.state().up)
    way.emulator.cut(False)
    way.edge.wait_up()
    cut_ended_ns = time.time() * 1e9
    assert until(lambda: stamp_ns(way.server.receive(topics.FRONT_IMAGE)) > cut_ended_ns)


def test_an_emulator_ends_quietly_with_connections_open(caplog):
    port, proxy_port = free_port(), free_port()
    emulator = Emulator(proxy_port, port, Profile()).start()
    with socket.create_server(("127.0.0.1", port)) as server, contextlib.ExitStack() as opened:
        for cut in (False, True):
            emulator.cut(cut)
            client = opened.enter_context(socket.create_connection(("127.0.0.1", proxy_port)))
            if not cut:
                client.sendall(b"x")
                assert opened.enter_context(server.accept()[0]).recv(1) == b"x"
        time.sleep(0.1)  # the second one waits for the end of the outage
        emulator.close()
        del emulator
        gc.collect()  # where a task that was left is noticed
    assert caplog.messages == []


# --- profiles


def test_a_profile_is_kept_in_a_file(tmp_path):
    given = Profile(rtt_ms=33.0, jitter_ms=4.0, loss=0.02, up_mbit_s=7.5, down_mbit_s=40.0)
    profile.save(given, tmp_path / "mine.json")
    assert profile.find(str(tmp_path / "mine.json")) == given
    assert profile.find("wan") == profile.PROFILES["wan"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rtt_ms": -1}, "rtt_ms is -1, must be a number from 0 to 5000"),
        ({"loss": "many"}, "loss is 'many'"),
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss": True}, "loss is True"),
        ({"delay": 3}, "delay is not known"),
        ({"cut_s": 10, "cut_every_s": 5}, "cut_every_s is 5"),
        ([1], "must hold an object"),
    ],
)
def test_a_profile_with_nonsense_in_it_is_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        profile.parse(values)


def test_a_profile_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(SettingsError, match="'mars' is none of lan, wan"):
        profile.find("mars")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SettingsError, match=r"broken\.json cannot be read"):
        profile.find(str(tmp_path / "broken.json"))
