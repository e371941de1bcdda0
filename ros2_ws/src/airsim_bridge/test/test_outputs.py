"""A recorder's trouble is its own: it is logged, and neither gate nor vehicle nor the other outputs notice."""

import pytest

from airsim_bridge.gate import CommandGate
from airsim_bridge.outputs import LOG_AGAIN_S, Fanout, Throttle
from airsim_bridge.testing.lockstep import Lockstep, Seen
from nav_common.clock import VirtualClock
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import DroneState, GateMode, Odometry, Twist


class FullDisk:
    """Outputs that cannot write anything."""

    def __init__(self, log_fails: bool = False) -> None:
        self.log_fails = log_fails

    def on_odometry(self, odometry):
        raise OSError(28, "No space left on device")

    def on_state(self, state):
        raise OSError(28, "No space left on device")

    def on_image(self, camera, image, info):
        raise OSError(28, "No space left on device")

    def on_depth(self, camera, depth):
        raise OSError(28, "No space left on device")

    def on_imu(self, imu):
        raise OSError(28, "No space left on device")

    def log(self, text):
        if self.log_fails:
            raise OSError(28, "No space left on device")


def epochs_of_a_flight(outputs):
    """Take off, fly, land: the epoch of the gate after each, beside what it was at first."""
    flight = Lockstep(image_rate_hz=10.0, depth_rate_hz=5.0, outputs=outputs)
    first = flight.bridge.gate.epoch
    epochs = []
    assert flight.bridge.take_off().success
    epochs.append(flight.bridge.gate.epoch - first)
    flight.stream(2.0, Twist.body(1.0))
    flight.clock.sleep(1.0)
    epochs.append(flight.bridge.gate.epoch - first)
    assert flight.bridge.land().success
    epochs.append(flight.bridge.gate.epoch - first)
    return epochs, flight


def test_a_full_disk_flies_no_drone():
    healthy, _ = epochs_of_a_flight(None)
    epochs, flight = epochs_of_a_flight(FullDisk())
    assert epochs == healthy  # not one stop more
    trouble = [text for text in flight.seen.logged if "No space left on device" in text]
    assert 1 <= len(trouble) <= 2 + flight.clock.now() / LOG_AGAIN_S
    assert "FullDisk failed" in trouble[0]
    assert flight.seen.states[-1].landed


def test_an_error_of_the_bridges_own_still_stops(monkeypatch):
    flight = Lockstep()
    flight.place(0.0, 0.0, 5.0)
    flight.stream(0.5, Twist.body(1.0))
    assert flight.bridge.gate.mode is GateMode.ACTIVE
    broken = [ZeroDivisionError("in the gate's own step")]

    def tick(self):
        if broken:
            raise broken.pop()
        flight.bridge._stopping.set()

    monkeypatch.setattr(CommandGate, "tick", tick)
    monkeypatch.setattr(flight.clock, "sleep", lambda duration_s: None)
    monkeypatch.setattr(flight.bridge._stopping, "wait", lambda timeout_s: None)
    flight.bridge._every(lambda: COMMAND_PERIOD_S, flight.bridge.tick_gate)
    assert flight.bridge.gate.mode is not GateMode.ACTIVE
    assert "internal error" in flight.bridge.gate.reason


def test_the_others_get_everything_and_the_failure_once_in_a_while():
    clock, seen = VirtualClock(100.0), Seen()
    outputs = Fanout(clock, FullDisk(log_fails=True), seen)
    for k in range(100):
        outputs.on_odometry(Odometry(k))
    assert seen.odometry.stamp_s == 99
    assert outputs.failures == 100
    assert len(seen.logged) == 1
    clock.sleep(LOG_AGAIN_S)
    outputs.on_state(DroneState(0.0))
    assert "101 times" in seen.logged[-1]


@pytest.mark.parametrize("step_s", [0.5, -1000.0])
def test_a_throttle_lets_one_pass_and_a_clock_set_back_does_not_shut_it(step_s):
    clock = VirtualClock(100.0)
    throttle = Throttle(clock, 10.0)
    assert throttle.passes("a")
    assert not throttle.passes("a")
    assert throttle.passes("b")
    clock._now += step_s
    assert throttle.passes("a") is (step_s < 0)
