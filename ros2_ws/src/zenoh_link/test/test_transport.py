"""The edge without ROS under a server's command, over mutual TLS."""

import argparse
import itertools
import time

import pytest

from airsim_bridge import edge, remote
from airsim_bridge.testing.graph import Simulator
from nav_common import conversions, topics
from nav_common.contract import COMMAND_PERIOD_S, STANDSTILL_M_S, ZERO_VELOCITY_WITHIN_S
from nav_common.data import DroneState, FlyingMode, GateMode, Odometry, Twist, VelocityCommand
from nav_common.testing import free_port
from zenoh_link.calls import CallStatus
from zenoh_link.emulator import Emulator
from zenoh_link.profile import Profile
from zenoh_link.settings import Side
from zenoh_link.testing.rig import End, make_certificates, until

SET_TRUE = b"\x00\x01\x00\x00\x01"
FORWARD = Twist.body(forward_m_s=1.0)
TRIGGER = b"\x00\x01\x00\x00\x00"


class Pilot:
    """The server's side: what it last heard, and commands that echo it."""

    def __init__(self, port: int, folder) -> None:
        self.end = End(Side.SERVER, [f"tls/127.0.0.1:{port}"], certificates_folder=folder)
        self.odometry: Odometry | None = None
        self.state: DroneState | None = None
        self._sequence = itertools.count(1)

    def look(self) -> None:
        while not self.end.inbox.empty():
            topic, payload = self.end.inbox.get()
            if topic.name == topics.ODOM.name:
                self.odometry = conversions.decode(Odometry, payload)
            elif topic.name == topics.STATE.name:
                self.state = conversions.decode(DroneState, payload)

    def sees(self, condition, timeout_s=20.0) -> bool:
        def seen() -> bool:
            self.look()
            return self.state is not None and self.odometry is not None and condition(self)

        return until(seen, timeout_s)

    def command(self, twist: Twist, epoch: int | None = None) -> None:
        """With the epoch given, as a sender that has not looked at the state since it decided."""
        self.look()
        assert self.odometry is not None
        assert self.state is not None
        epoch = self.state.epoch if epoch is None else epoch
        command = VelocityCommand(self.odometry.stamp_s, epoch, next(self._sequence), twist)
        self.end.link.send(topics.COMMAND, conversions.encode(command))


@pytest.fixture
def flight(tmp_path):
    folder, port, proxy_port = make_certificates(tmp_path), free_port(), free_port()
    simulator = Simulator()
    internet = Emulator(proxy_port, port, Profile(rtt_ms=20)).start()
    pilot = Pilot(port, folder)
    parser = argparse.ArgumentParser()
    edge.add_arguments(parser)
    remote.add_arguments(parser)
    quiet = ["--image-rate", "0", "--depth-rate", "0", "--no-reflex"]
    where = ["--port", str(simulator.port), "--server", f"tls/127.0.0.1:{proxy_port}"]
    options = parser.parse_args([*quiet, *where, "--certificates", str(folder)])
    transport = remote.connect(options, lambda text: None)
    assert transport is not None
    flying = edge.make_edge(options, transport)
    remote.offer_services(transport, flying.bridge)
    flying.bridge.start()
    try:
        yield simulator, pilot, flying, internet
    finally:
        flying.bridge.stop()
        flying.client.close()
        transport.close()
        pilot.end.link.close()
        internet.close()
        simulator.stop()


def take_off_and_move(pilot: Pilot) -> None:
    assert pilot.sees(lambda p: p.state.connected and p.end.link.state().up)
    for service, request in (("enable_api_control", SET_TRUE), ("takeoff", TRIGGER)):
        result = pilot.end.link.call(service, request, timeout_s=40)
        assert result.status is CallStatus.OK, result
    assert pilot.sees(lambda p: p.state.flying_mode is FlyingMode.AIRBORNE)
    assert pilot.sees(moving)


def moving(pilot: Pilot) -> bool:
    pilot.command(FORWARD)
    time.sleep(COMMAND_PERIOD_S)
    return pilot.odometry is not None and pilot.odometry.speed > 0.5


def test_a_server_takes_off_flies_and_the_vehicle_holds_when_it_dies(flight):
    simulator, pilot, flying, _ = flight
    take_off_and_move(pilot)
    epoch = pilot.state.epoch
    pilot.end.link.close()
    assert until(lambda: flying.bridge.state().gate_mode is not GateMode.ACTIVE, 2.0)
    assert until(lambda: simulator.speed() < STANDSTILL_M_S, 5.0)
    assert until(lambda: "link" in flying.bridge.state().gate_reason, 5.0)
    assert flying.bridge.state().gate_mode is GateMode.HOLD
    assert flying.bridge.state().epoch > epoch


def test_an_outage_in_flight_ends_in_hover_no_old_command_is_flown_and_a_new_decision_flies_again(flight):
    simulator, pilot, flying, internet = flight
    take_off_and_move(pilot)
    epoch = pilot.state.epoch
    cut_s = simulator.time_s
    internet.cut(True)
    end = time.monotonic() + 4.0
    while time.monotonic() < end:  # a sender that goes on regardless
        pilot.command(FORWARD, epoch)
        time.sleep(COMMAND_PERIOD_S)
    stopped_s = simulator.moving_demand_ends(cut_s) - cut_s
    assert stopped_s <= ZERO_VELOCITY_WITHIN_S, stopped_s
    assert flying.bridge.state().gate_mode is not GateMode.ACTIVE
    returned_s = simulator.time_s
    internet.cut(False)
    # What TCP kept arrives now, and the sender still does not know of the hold.
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        pilot.command(FORWARD, epoch)
        time.sleep(COMMAND_PERIOD_S)
    flown = [velocity for _, velocity in simulator.velocities_since(returned_s) if any(velocity)]
    assert flown == []
    assert flying.bridge.state().commands_refused > 0
    # A decision that has seen the new epoch flies.
    assert pilot.sees(lambda p: p.state.epoch > epoch and p.end.link.state().up)
    assert pilot.sees(moving, 5.0)


def test_bad_addresses_and_certificates_end_the_edge_with_one_line(tmp_path, capsys):
    assert edge.main(["--server", "tcp/gpu.example.org:7447"]) == 2
    assert "without encryption" in capsys.readouterr().err
    assert edge.main(["--server", "tls/127.0.0.1:7447"]) == 2
    assert "needs certificates" in capsys.readouterr().err
    assert edge.main(["--server", "tls/127.0.0.1:7447", "--certificates", str(tmp_path)]) == 2
    assert "ca.pem cannot be read" in capsys.readouterr().err
