"""Vehicle, gate and cameras together with the simulator, in lock-step."""

import math
import threading
import time
from unittest import mock

import cv2
import numpy as np
import pytest

from airsim_bridge.bridge import Bridge, CameraSettings, Settings
from airsim_bridge.gate import CommandGate, GateLimits
from airsim_bridge.testing.lockstep import Lockstep, Seen
from airsim_bridge.vehicle import Vehicle
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.clock import WallClock, wait_until
from nav_common.contract import COMMAND_PERIOD_S, ZERO_VELOCITY_WITHIN_S
from nav_common.data import HOVER, FlyingMode, GateMode, Twist

FORWARD = Twist.body(forward_m_s=2.0)


def test_take_off_flight_and_landing():
    flight = Lockstep()
    assert flight.seen.state.flying_mode is FlyingMode.LANDED
    reply = flight.bridge.take_off()
    assert reply.success, reply
    assert flight.simulation.position[2] == pytest.approx(2.1, abs=0.3)
    flight.stream(3.0, FORWARD)
    assert flight.simulation.position[0] > 4.0
    assert flight.seen.odometry.velocity.x == pytest.approx(2.0, abs=0.1)
    reply = flight.bridge.land()
    assert reply.success, reply
    flight.clock.sleep(0.2)
    assert (flight.seen.state.flying_mode, flight.seen.state.armed) == (FlyingMode.LANDED, False)
    assert flight.simulation.collisions == []


def test_the_drones_frames_are_those_of_ros():
    flight = Lockstep()
    flight.place(1.0, 2.0, 3.0, yaw_deg=30.0)  # north, west, up; counter-clockwise from north
    odometry = flight.seen.odometry
    assert odometry.position == pytest.approx((-2.0, 1.0, 3.0), abs=0.01)  # east, north, up
    assert math.degrees(odometry.yaw) == pytest.approx(120.0, abs=0.1)
    flight.stream(2.0, Twist.body(left_m_s=1.0, up_m_s=0.5))
    _, west, up = flight.simulation.velocity
    assert west == pytest.approx(math.cos(math.radians(30.0)), abs=0.1)  # left
    assert up == pytest.approx(0.5, abs=0.05)
    before = flight.simulation.yaw_deg
    flight.stream(1.0, Twist.body(yaw_rate_rad_s=0.5))
    assert 15.0 < flight.simulation.yaw_deg - before < 35.0


def test_silence_stops_it_in_time_whatever_the_phase():
    flight = Lockstep()
    flight.place(0.0, 0.0, 10.0)
    longest = 0.0
    for k in range(20):
        flight.clock.sleep(0.0007 * k)  # another phase of the gate's period each time
        flight.stream(0.5, Twist.body(2.0 if k % 2 else -2.0))
        last = flight.clock.now() - COMMAND_PERIOD_S
        flight.clock.sleep(1.5)
        longest = max(longest, flight.first_zero(last) - last)
        assert flight.speed < 0.2
    assert longest <= ZERO_VELOCITY_WITHIN_S


def test_hovering_it_stays_where_it_is():
    flight = Lockstep()
    flight.place(0.0, 0.0, 5.0)
    flight.stream(2.0, Twist.body(1.0, 0.5))
    flight.stream(1.0, HOVER)
    where = flight.simulation.position
    flight.stream(10.0, HOVER)
    assert math.dist(flight.simulation.position, where) < 0.1


class SlowOnce(Seen):
    """Holds up the first state that it gets after `hold` is set, until `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.hold, self.held, self.go_on = threading.Event(), threading.Event(), threading.Event()

    def on_state(self, state):
        if self.hold.is_set() and not self.held.is_set():
            self.held.set()
            assert self.go_on.wait(20.0)
        super().on_state(state)


def test_states_of_several_threads_go_out_in_the_order_of_their_stamps():
    slow = SlowOnce()
    flight = Lockstep(outputs=slow)
    flight.place(0.0, 0.0, 5.0)
    flight.stream(0.2, FORWARD)
    slow.hold.set()
    sender = threading.Thread(target=flight.bridge._publish_state, daemon=True)
    sender.start()
    assert slow.held.wait(20.0)
    flight.clock.sleep(0.01)
    epoch = flight.bridge.gate.epoch
    flight.bridge.gate.stop("meanwhile, in another thread")
    slow.go_on.set()
    sender.join(20.0)
    assert slow.state.epoch > epoch, "what happened while a state was being sent is sent too"
    stamps = [state.stamp_s for state in slow.states]
    assert stamps == sorted(stamps)


def test_contacts_are_counted_once_with_the_objects_name():
    flight = Lockstep()
    flight.place(0.0, 0.0, 8.0)
    flight.stream(6.0, Twist.body(up_m_s=-2.0))
    assert flight.seen.state.collision_count == 1
    assert flight.seen.state.last_collision_object == "ground"


def test_pictures_are_new_and_stamped_on_the_edges_clock():
    flight = Lockstep(image_rate_hz=10.0, depth_rate_hz=5.0)
    flight.clock.sleep(2.0)
    stamps = flight.seen.image_stamps_s
    assert 18 <= len(stamps) <= 25
    assert stamps == sorted(set(stamps))
    assert 0.0 <= flight.clock.now() - stamps[-1] < 0.2
    picture = cv2.imdecode(np.frombuffer(flight.seen.image.data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    truth = flight.simulation.render("front_center", "scene")[..., ::-1]
    assert picture is not None
    assert np.abs(picture.astype(int) - truth).mean() < 5.0  # B, G, R, and the same view
    assert flight.seen.depth.depth_m.shape == (120, 160)


def test_a_frozen_camera_stops_the_drone():
    flight = Lockstep(image_rate_hz=10.0, limits=GateLimits(frame_timeout_s=1.0))
    flight.place(0.0, 0.0, 5.0)
    flight.stream(1.0, FORWARD)
    assert flight.bridge.gate.mode is GateMode.ACTIVE
    stuck = flight.simulation.time_ns
    with mock.patch.object(type(flight.simulation), "time_ns", property(lambda self: stuck)):
        flight.stream(2.5, FORWARD)
    assert "no new picture" in flight.bridge.gate.fault
    assert flight.speed < 0.2


def test_a_gate_tick_that_comes_late_is_measured(monkeypatch):
    """One tick is held up for 0.4 s of the wall's clock: what comes after it is late."""
    simulation = Simulation(load_world("field", 1))
    clock = WallClock()
    bridge = Bridge(
        Vehicle(simulation, clock), clock, Seen(), Settings(cameras=[CameraSettings("front_center")])
    )
    blocked_s, tick = [0.4], CommandGate.tick

    def slow_once(gate):
        if blocked_s:
            time.sleep(blocked_s.pop())
        return tick(gate)

    monkeypatch.setattr(CommandGate, "tick", slow_once)
    monkeypatch.setattr(Bridge, "grab", lambda self, topic: None)
    bridge.start()
    try:
        assert wait_until(clock, lambda: bridge._gate_tick_late_s > 0.3, 10.0)
        assert bridge.gate_tick_late_s() > 0.3
    finally:
        bridge.stop()
