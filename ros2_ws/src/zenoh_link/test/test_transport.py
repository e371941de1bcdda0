"""The edge without ROS under a server's command, over mutual TLS."""

import argparse
import itertools
import time

import pytest
from rig import End, make_certificates, until

from airsim_bridge import edge, remote
from airsim_bridge.testing.graph import Simulator
from nav_common import conversions, topics
from nav_common.data import DroneState, FlyingMode, GateMode, Odometry, Twist, VelocityCommand
from nav_common.testing import free_port
from zenoh_link.link import CallStatus
from zenoh_link.settings import Side

SET_TRUE = b"\x00\x01\x00\x00\x01"
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

    def command(self, twist: Twist) -> None:
        self.look()
        assert self.odometry is not None
        assert self.state is not None
        command = VelocityCommand(self.odometry.stamp_s, self.state.epoch, next(self._sequence), twist)
        self.end.link.send(topics.COMMAND, conversions.encode(command))


@pytest.fixture
def flight(tmp_path):
    folder, port = make_certificates(tmp_path), free_port()
    simulator = Simulator()
    pilot = Pilot(port, folder)
    parser = argparse.ArgumentParser()
    edge.add_arguments(parser)
    remote.add_arguments(parser)
    quiet = ["--image-rate", "0", "--depth-rate", "0", "--no-reflex"]
    where = ["--port", str(simulator.port), "--server", f"tls/127.0.0.1:{port}"]
    options = parser.parse_args([*quiet, *where, "--certificates", str(folder)])
    transport = remote.connect(options, lambda text: None)
    assert transport is not None
    flying = edge.make_edge(options, transport)
    remote.offer_services(transport, flying.bridge)
    flying.bridge.start()
    try:
        yield simulator, pilot, flying
    finally:
        flying.bridge.stop()
        flying.client.close()
        transport.close()
        pilot.end.link.close()
        simulator.stop()


def test_a_server_takes_off_flies_and_the_vehicle_holds_when_the_link_is_lost(flight):
    simulator, pilot, flying = flight
    assert pilot.sees(lambda p: p.state.connected and p.end.link.state().up)
    result = pilot.end.link.call("enable_api_control", SET_TRUE, timeout_s=20)
    assert result.status is CallStatus.OK, result
    result = pilot.end.link.call("takeoff", TRIGGER, timeout_s=40)
    assert result.status is CallStatus.OK, result
    assert pilot.sees(lambda p: p.state.flying_mode is FlyingMode.AIRBORNE)

    def moving(p):
        p.command(Twist.body(forward_m_s=1.0))
        time.sleep(0.05)
        return p.odometry.speed > 0.5

    assert pilot.sees(moving)
    epoch = pilot.state.epoch
    pilot.end.link.close()
    lost = time.monotonic()
    assert until(lambda: flying.bridge.state().gate_mode is not GateMode.ACTIVE, 2.0)
    assert until(lambda: simulator.speed() < 0.15, 5.0)
    assert until(lambda: "link" in flying.bridge.state().gate_reason, 5.0)
    assert flying.bridge.state().gate_mode is GateMode.HOLD
    assert flying.bridge.state().epoch > epoch
    assert time.monotonic() - lost < 10


def test_bad_addresses_and_certificates_end_the_edge_with_one_line(tmp_path, capsys):
    assert edge.main(["--server", "tcp/gpu.example.org:7447"]) == 2
    assert "without encryption" in capsys.readouterr().err
    assert edge.main(["--server", "tls/127.0.0.1:7447"]) == 2
    assert "needs certificates" in capsys.readouterr().err
    assert edge.main(["--server", "tls/127.0.0.1:7447", "--certificates", str(tmp_path)]) == 2
    assert "ca.pem cannot be read" in capsys.readouterr().err
