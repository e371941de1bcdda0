"""Vehicle, gate and cameras together with the simulator, in lock-step."""

import math
from unittest import mock

import cv2
import numpy as np
import pytest
from lockstep import Lockstep

from airsim_bridge.bridge import Flying
from airsim_bridge.gate import GateLimits, Mode
from nav_common.frames import Vector, yaw

FORWARD = Vector(2.0, 0.0, 0.0)


def test_take_off_flight_and_landing():
    flight = Lockstep()
    assert flight.seen.state.flying is Flying.LANDED
    done, words = flight.bridge.take_off()
    assert done, words
    assert flight.simulation.position[2] == pytest.approx(2.1, abs=0.3)
    flight.stream(3.0, FORWARD)
    assert flight.simulation.position[0] > 4.0
    assert flight.seen.odometry.velocity.x == pytest.approx(2.0, abs=0.1)
    done, words = flight.bridge.land()
    assert done, words
    flight.clock.sleep(0.2)
    assert (flight.seen.state.flying, flight.seen.state.armed) == (Flying.LANDED, False)
    assert flight.simulation.collisions == []


def test_the_drones_frames_are_those_of_ros():
    flight = Lockstep()
    flight.place(1.0, 2.0, 3.0, yaw_deg=30.0)  # north, west, up; counter-clockwise from north
    odometry = flight.seen.odometry
    assert odometry.position == pytest.approx((-2.0, 1.0, 3.0), abs=0.01)  # east, north, up
    assert math.degrees(yaw(odometry.orientation)) == pytest.approx(120.0, abs=0.1)
    flight.stream(2.0, Vector(0.0, 1.0, 0.5), yaw_rate=0.0)
    _, west, up = flight.simulation.velocity
    assert west == pytest.approx(math.cos(math.radians(30.0)), abs=0.1)  # left
    assert up == pytest.approx(0.5, abs=0.05)
    before = flight.simulation.yaw_deg
    flight.stream(1.0, Vector(0.0, 0.0, 0.0), yaw_rate=0.5)
    assert 15.0 < flight.simulation.yaw_deg - before < 35.0


def test_silence_stops_it_in_time_whatever_the_phase():
    flight = Lockstep()
    flight.place(0.0, 0.0, 10.0)
    longest = 0.0
    for k in range(20):
        flight.clock.sleep(0.0007 * k)  # another phase of the gate's period each time
        flight.stream(0.5, Vector(2.0 if k % 2 else -2.0, 0.0, 0.0))
        last = flight.clock.now() - 0.05
        flight.clock.sleep(1.5)
        longest = max(longest, flight.first_zero(last) - last)
        assert flight.speed < 0.2
    assert longest <= 0.5


def test_hovering_it_stays_where_it_is():
    flight = Lockstep()
    flight.place(0.0, 0.0, 5.0)
    flight.stream(2.0, Vector(1.0, 0.5, 0.0))
    flight.stream(1.0, Vector(0.0, 0.0, 0.0))
    where = flight.simulation.position
    flight.stream(10.0, Vector(0.0, 0.0, 0.0))
    assert math.dist(flight.simulation.position, where) < 0.1


def test_contacts_are_counted_once_with_the_objects_name():
    flight = Lockstep()
    flight.place(0.0, 0.0, 8.0)
    flight.stream(6.0, Vector(0.0, 0.0, -2.0))
    assert flight.seen.state.collision_count == 1
    assert flight.seen.state.last_collision_object == "ground"


def test_pictures_are_new_and_stamped_on_the_edges_clock():
    flight = Lockstep(image_rate_hz=10.0, depth_rate_hz=5.0)
    flight.clock.sleep(2.0)
    stamps = flight.seen.frames
    assert 18 <= len(stamps) <= 25
    assert stamps == sorted(set(stamps))
    assert 0.0 <= flight.clock.now() - stamps[-1] < 0.2
    frame = flight.seen.frame
    picture = cv2.imdecode(np.frombuffer(frame.jpeg, np.uint8), cv2.IMREAD_COLOR)
    truth = flight.simulation.render("front_center", "scene")[..., ::-1]
    assert np.abs(picture.astype(int) - truth).mean() < 5.0  # B, G, R, and the same view
    assert flight.seen.depth.metres.shape == (120, 160)


def test_a_frozen_camera_stops_the_drone():
    flight = Lockstep(image_rate_hz=10.0, limits=GateLimits(frame_age_s=1.0))
    flight.place(0.0, 0.0, 5.0)
    flight.stream(1.0, FORWARD)
    assert flight.bridge.gate.mode is Mode.ACTIVE
    stuck = flight.simulation.time_ns
    with mock.patch.object(type(flight.simulation), "time_ns", property(lambda self: stuck)):
        flight.stream(2.5, FORWARD)
    assert "no new picture" in flight.bridge.gate.fault
    assert flight.speed < 0.2
