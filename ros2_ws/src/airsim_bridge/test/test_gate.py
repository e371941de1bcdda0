"""The command gate: what it lets through, what it refuses and why, and every way into rest."""

import math
from typing import Any

import pytest

from airsim_bridge.gate import (
    Cause,
    CommandGate,
    CommandRefusal,
    GateLimits,
    RefusalKind,
    Transition,
    VehicleState,
)
from nav_common.clock import VirtualClock
from nav_common.contract import COMMAND_PERIOD_S, COMMAND_TIMEOUT_S
from nav_common.data import ZERO, GateMode, Odometry, Twist, VelocityCommand
from nav_common.frames import Vector

FORWARD = Vector(2.0, 0.0, 0.0)


def text(refusal) -> str:
    return refusal.text if refusal else ""


def stands(setpoint) -> bool:
    return not any(setpoint.velocity) and setpoint.yaw_rate == 0.0


class Flight:
    """A gate with a vehicle that follows it perfectly, in the air 10 m above the origin, looking east."""

    def __init__(
        self, *, limits: GateLimits | None = None, landed: bool = False, follow: bool = True
    ) -> None:
        self.clock = VirtualClock(1000.0)
        self.transitions: list[Transition] = []
        self.gate = CommandGate(self.clock, limits, on_transition=self.transitions.append)
        self.position = Vector(0.0, 0.0, 0.0 if landed else 10.0)
        self.landed = landed
        self.api_control = True
        self.follow = follow
        self.velocity = ZERO
        self.sequence = 0
        self.setpoint: Any = None  # a Setpoint, or None on the ground
        self.refusal: CommandRefusal | None = None
        self.observe()

    def observe(self) -> None:
        self.stamp_s = self.clock.now()
        odometry = Odometry(self.stamp_s, self.position, velocity=self.velocity)
        self.gate.observe(VehicleState(odometry, self.landed, self.api_control))

    def step(self, *, observe: bool = True) -> None:
        self.clock.sleep(COMMAND_PERIOD_S)
        if observe:
            self.observe()
        self.setpoint = self.gate.tick()
        if self.follow:
            self.velocity = self.setpoint.velocity if self.setpoint else ZERO
        self.position = Vector(
            *(p + v * COMMAND_PERIOD_S for p, v in zip(self.position, self.velocity, strict=True))
        )
        self.landed = self.position.z <= 0.0

    def command(self, linear=FORWARD, *, yaw_rate=0.0, **changes) -> str:
        """Why it was refused, or ""."""
        self.sequence += 1
        fields = {
            "stamp_s": self.stamp_s,
            "epoch": self.gate.epoch,
            "sequence": self.sequence,
            "twist": Twist(linear, Vector(0.0, 0.0, yaw_rate)),
        }
        self.refusal = self.gate.submit(VelocityCommand(**{**fields, **changes}))
        return text(self.refusal)

    def manual(self, linear=ZERO, stamp_s=None) -> str:
        stamp_s = self.clock.now() if stamp_s is None else stamp_s
        return text(self.gate.submit_manual(stamp_s, Twist(linear)))

    def fly(self, seconds: float, linear=FORWARD, **kwargs) -> None:
        for _ in range(round(seconds / COMMAND_PERIOD_S)):
            assert self.command(linear, **kwargs) == ""
            self.step()

    def rest(self, seconds: float) -> None:
        for _ in range(round(seconds / COMMAND_PERIOD_S)):
            self.step()


@pytest.fixture
def flight() -> Flight:
    return Flight()


def test_the_first_acceptable_command_makes_it_active_and_is_followed(flight):
    assert flight.gate.mode is GateMode.HOLD
    flight.fly(1.0)
    assert flight.gate.mode is GateMode.ACTIVE
    assert flight.setpoint.velocity == FORWARD


def test_a_hover_holds_the_position_once_the_vehicle_stands(flight):
    flight.fly(1.0)
    flight.follow = False
    flight.velocity = Vector(1.0, 0.0, 0.0)
    flight.fly(0.1, ZERO)
    assert stands(flight.setpoint)
    assert not flight.setpoint.hold  # still sliding: brake first
    flight.velocity = ZERO
    flight.fly(0.1, ZERO)
    assert flight.setpoint.hold
    assert flight.gate.mode is GateMode.ACTIVE


BAD = {
    "NaN": ({"twist": Twist(Vector(math.nan, 0.0, 0.0))}, RefusalKind.NOT_FINITE, "not finite"),
    "infinite": ({"twist": Twist(Vector(0.0, -math.inf, 0.0))}, RefusalKind.NOT_FINITE, "not finite"),
    "NaN yaw rate": (
        {"twist": Twist(FORWARD, Vector(0.0, 0.0, math.nan))},
        RefusalKind.NOT_FINITE,
        "not finite",
    ),
    "roll rate": ({"twist": Twist(FORWARD, Vector(0.1, 0.0, 0.0))}, RefusalKind.AXIS, "roll or pitch"),
    "NaN stamp": ({"stamp_s": math.nan}, RefusalKind.NOT_FINITE, "stamp is nan"),
    "old": ({"stamp_s": 1000.0 - 0.6}, RefusalKind.TOO_OLD, "s old"),
    "stamp of the future": ({"stamp_s": 1007.0}, RefusalKind.NO_ECHO, "no echo"),
    "old epoch": ({"epoch": 1}, RefusalKind.EPOCH, "epoch 1"),
    "future epoch": ({"epoch": 2**63}, RefusalKind.EPOCH, "epoch 9223372036854775808"),
    "out of order": ({"sequence": 0}, RefusalKind.OUT_OF_ORDER, "out of order"),
}


@pytest.mark.parametrize(("changes", "kind", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_command_is_refused_with_its_reason_and_changes_nothing(flight, changes, kind, reason):
    if "sequence" in changes:
        flight.command(ZERO)
        changes = {"sequence": flight.sequence}
    mode, epoch = flight.gate.mode, flight.gate.epoch
    assert reason in flight.command(**changes)
    assert flight.refusal is not None
    assert flight.refusal.kind is kind
    assert reason in flight.gate.last_refusal
    assert flight.gate.refused == 1
    assert (flight.gate.mode, flight.gate.epoch) == (mode, epoch)
    flight.step()
    assert stands(flight.setpoint)


def test_speed_acceleration_and_yaw_rate_are_clamped(flight):
    limits = flight.gate.limits
    flight.follow = False
    previous = ZERO
    for _ in range(60):
        assert flight.command(Vector(30.0, 40.0, -99.0), yaw_rate=-9.0) == ""
        flight.step()
        velocity = flight.setpoint.velocity
        assert math.dist(velocity, previous) <= limits.max_acceleration * COMMAND_PERIOD_S + 1e-9
        previous = velocity
    assert math.hypot(velocity.x, velocity.y) == pytest.approx(limits.max_speed)
    assert velocity.x / velocity.y == pytest.approx(3 / 4)
    assert velocity.z == -limits.max_vertical_speed
    assert flight.setpoint.yaw_rate == -limits.max_yaw_rate


def test_enormous_finite_numbers_are_clamped_too(flight):
    flight.follow = False
    for _ in range(40):
        flight.command(Vector(1e308, -1e308, 1e308), yaw_rate=1e308)
        flight.step()
        assert all(map(math.isfinite, flight.setpoint.velocity))
        assert math.hypot(*flight.setpoint.velocity[:2]) <= flight.gate.limits.max_speed + 1e-9


@pytest.mark.parametrize("linear", [FORWARD, ZERO], ids=["motion", "hover"])
def test_silence_stops_and_raises_the_epoch(flight, linear):
    flight.fly(1.0, linear)
    epoch, last = flight.gate.epoch, flight.clock.now() - COMMAND_PERIOD_S
    while flight.gate.mode is GateMode.ACTIVE:
        flight.step()
    assert stands(flight.setpoint)
    assert flight.clock.now() - last <= COMMAND_TIMEOUT_S + COMMAND_PERIOD_S + 1e-9
    assert flight.gate.epoch == epoch + 1
    assert "no acceptable command" in flight.gate.reason
    assert "epoch" in flight.command(epoch=epoch)  # what was on its way is dead
    assert flight.command() == ""  # what has seen the new epoch may go on


def test_refused_commands_do_not_keep_it_moving(flight):
    flight.fly(1.0)
    for _ in range(8):
        flight.command(Vector(math.nan, 0.0, 0.0))
        flight.step()
    assert flight.gate.mode is not GateMode.ACTIVE


def test_it_brakes_until_the_vehicle_stands_and_then_holds(flight):
    flight.follow = False
    flight.velocity = Vector(3.0, 0.0, 0.0)
    flight.fly(0.2)
    flight.rest(0.5)
    assert flight.gate.mode is GateMode.BRAKE
    flight.velocity = ZERO
    flight.rest(0.1)
    assert flight.gate.mode is GateMode.HOLD
    assert flight.setpoint.hold


FAULTS = {
    "vehicle": (lambda f: f.gate.vehicle_lost("AirSim is gone"), lambda f: f.observe(), "AirSim is gone"),
    "camera": (lambda f: f.gate.camera_lost("lens cap"), lambda f: f.gate.frame_arrived(), "lens cap"),
    "link": (lambda f: f.gate.link(False), lambda f: f.gate.link(True), "link lost"),
}


@pytest.mark.parametrize(("begin", "end", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_no_motion_issued_before_or_during_a_fault_outlives_it(flight, begin, end, reason):
    flight.fly(1.0)
    before = flight.gate.epoch
    begin(flight)
    during = flight.gate.epoch
    assert during > before
    flight.step(observe=False)
    assert stands(flight.setpoint)
    assert reason in flight.gate.reason
    assert reason in flight.command()
    end(flight)
    flight.observe()
    assert flight.gate.epoch > during
    for epoch in (before, during):
        assert "epoch" in flight.command(epoch=epoch)
    assert flight.command() == ""


def test_a_vehicle_that_says_nothing_or_nonsense_is_a_fault(flight):
    flight.fly(1.0)
    for _ in range(11):
        flight.command(stamp_s=flight.clock.now())
        flight.step(observe=False)
    assert "no state from the vehicle" in flight.gate.fault
    flight.step()
    assert flight.gate.fault == ""
    flight.gate.observe(VehicleState(Odometry(flight.clock.now(), Vector(math.nan, 0.0, 0.0)), False))
    assert "not finite" in flight.gate.fault


def test_pictures_that_stop_coming_are_a_fault():
    flight = Flight(limits=GateLimits(frame_timeout_s=1.0))
    for _ in range(40):
        flight.gate.frame_arrived()
        flight.fly(COMMAND_PERIOD_S)
    for _ in range(21):
        flight.command()
        flight.step()
    assert "no new picture" in flight.gate.fault
    flight.gate.frame_arrived()
    assert flight.gate.fault == ""


def test_a_clock_that_jumps_back_stops_it(flight):
    flight.fly(1.0)
    epoch = flight.gate.epoch
    flight.clock._now -= 5.0
    assert stands(flight.gate.tick())
    assert flight.gate.epoch > epoch
    assert "ran back" in flight.gate.reason
    flight.observe()
    assert flight.command() == ""


def test_a_clock_that_jumps_ahead_stops_it(flight):
    flight.fly(1.0)
    flight.clock.sleep(3600.0)
    assert stands(flight.gate.tick())
    assert flight.gate.mode is not GateMode.ACTIVE


class TestEmergency:
    def test_it_stops_whatever_the_mode_and_only_a_reset_ends_it(self, flight):
        flight.fly(1.0)
        flight.gate.emergency_stop(True)
        flight.step()
        assert stands(flight.setpoint)
        for _ in range(30):
            assert "EMERGENCY" in flight.command()
            flight.step()
            assert stands(flight.setpoint)
        assert flight.gate.mode is GateMode.EMERGENCY
        during = flight.gate.epoch
        assert "EMERGENCY" in text(flight.gate.land())
        assert "EMERGENCY" in text(flight.gate.take_off(2.0))
        flight.gate.emergency_stop(False)
        assert flight.gate.mode is GateMode.HOLD
        assert "epoch" in flight.command(epoch=during)
        assert flight.command() == ""

    def test_a_link_lost_meanwhile_does_not_land_it(self, flight):
        flight.gate.emergency_stop(True)
        flight.gate.link(False)
        flight.rest(70.0)
        assert flight.gate.mode is GateMode.EMERGENCY

    def test_a_reset_without_a_stop_changes_nothing(self, flight):
        flight.fly(1.0)
        flight.gate.emergency_stop(False)
        assert flight.gate.mode is GateMode.ACTIVE


class TestLinkLoss:
    def test_lands_after_a_minute_in_the_air_and_not_before(self, flight):
        flight.gate.link(False)
        flight.rest(59.9)
        assert flight.gate.mode is GateMode.HOLD
        flight.rest(0.3)
        assert flight.gate.mode is GateMode.LAND
        assert "link lost for 60 s" in flight.gate.reason
        assert flight.setpoint.velocity.z < 0.0
        flight.rest(20.0)
        assert flight.gate.mode is GateMode.HOLD
        assert flight.landed
        assert flight.setpoint is None

    def test_an_interruption_starts_the_minute_again(self, flight):
        flight.gate.link(False)
        flight.rest(50.0)
        flight.gate.link(True)
        flight.gate.link(False)
        flight.rest(50.0)
        assert flight.gate.mode is GateMode.HOLD

    def test_on_the_ground_it_stays(self):
        flight = Flight(landed=True)
        flight.gate.link(False)
        flight.rest(100.0)
        assert flight.gate.mode is GateMode.HOLD

    def test_idling_with_a_link_never_lands(self, flight):
        flight.rest(600.0)
        assert flight.gate.mode is GateMode.HOLD

    def test_a_joystick_may_fly_without_the_link(self, flight):
        flight.gate.link(False)
        flight.gate.arm_manual(True)
        assert flight.manual() == ""


class TestTakeOffAndLand:
    def test_climbs_to_the_altitude_and_holds(self):
        flight = Flight(landed=True)
        flight.rest(0.1)
        assert not flight.setpoint
        assert "take off first" in flight.command()
        assert flight.command(ZERO) == ""  # a goal hovers from its first moment
        assert flight.gate.take_off(2.0) is None
        epoch = flight.gate.epoch
        while flight.gate.taking_off:
            flight.command(ZERO)
            assert "taking off" in flight.command()
            flight.step()
            assert flight.setpoint.velocity.z <= flight.gate.limits.take_off_speed
        assert 1.8 < flight.position.z < 2.2
        assert flight.gate.epoch > epoch

    def test_needs_no_stream_of_commands_but_stops_at_a_fault(self):
        flight = Flight(landed=True)
        flight.gate.take_off(5.0)
        flight.rest(2.0)
        assert flight.gate.taking_off
        flight.gate.camera_lost("lens cap")
        flight.step()
        assert not flight.gate.taking_off
        assert stands(flight.setpoint)

    def test_goes_on_to_the_same_altitude_after_an_interruption(self):
        flight = Flight(landed=True)
        flight.gate.take_off(2.0)
        flight.rest(1.0)
        flight.gate.camera_lost("lens cap")
        flight.rest(0.5)
        assert not flight.gate.took_off
        flight.gate.frame_arrived()
        assert 0.3 < flight.position.z < 1.5
        assert flight.gate.take_off(2.0) is None
        flight.rest(5.0)
        assert flight.gate.took_off
        assert 1.8 < flight.position.z < 2.2

    def test_is_given_up_when_nothing_lifts(self):
        flight = Flight(landed=True)
        flight.gate.take_off(2.0)
        for _ in range(round(20.1 / COMMAND_PERIOD_S)):
            flight.step()
            flight.position = ZERO
        assert not flight.gate.taking_off
        assert any("given up" in t.reason for t in flight.transitions)

    @pytest.mark.parametrize("altitude_m", [math.nan, 0.0, -2.0, 1e6])
    def test_a_wrong_altitude_is_refused(self, altitude_m):
        assert "must be 0.5 to 50 m" in text(Flight(landed=True).gate.take_off(altitude_m))

    def test_each_refusal_has_its_reason(self, flight):
        assert "already in the air" in text(flight.gate.take_off(2.0))
        ground = Flight(landed=True)
        assert "already on the ground" in text(ground.gate.land())
        ground.gate.camera_lost("lens cap")
        assert "lens cap" in text(ground.gate.take_off(2.0))
        flight.api_control = False
        flight.observe()
        assert "API control is off" in flight.command()
        assert "API control is off" in text(flight.gate.land())

    def test_landing_ends_on_the_ground_and_refuses_commands_meanwhile(self, flight):
        flight.fly(0.5)
        assert flight.gate.land() is None
        assert "LAND" in flight.command()
        flight.rest(20.0)
        assert flight.landed
        assert flight.gate.mode is GateMode.HOLD

    def test_a_landing_ends_for_that_cause_and_no_other(self, flight):
        flight.gate.land()
        flight.rest(20.0)
        assert flight.transitions[-1].cause is Cause.LANDED

    def test_landing_blind_is_given_up(self, flight):
        flight.gate.land()
        flight.gate.vehicle_lost("AirSim is gone")
        flight.step(observe=False)
        assert flight.gate.mode is GateMode.HOLD
        assert stands(flight.setpoint)


class TestFence:
    def test_it_cannot_be_flown_through(self):
        flight = Flight(limits=GateLimits(fence_radius_m=20.0))
        for _ in range(600):
            if flight.command(Vector(5.0, 1.0, 0.0)):
                break
            flight.step()
        assert 18.0 < math.hypot(flight.position.x, flight.position.y) <= 20.0
        assert abs(flight.position.y) > 2.0  # along the fence one may go

    def test_nor_flown_over(self):
        flight = Flight(limits=GateLimits(fence_altitude_m=15.0))
        flight.fly(10.0, Vector(0.0, 0.0, 2.0))
        assert 14.0 < flight.position.z <= 15.0

    def test_outside_it_stops_and_only_the_way_back_is_open(self, flight):
        flight.fly(1.0)
        epoch = flight.gate.epoch
        flight.position = Vector(300.0, 0.0, 10.0)  # blown there
        flight.step()
        assert flight.gate.epoch > epoch
        assert stands(flight.setpoint)
        assert "geofence: 300.0 m" in flight.gate.reason
        assert "only the way back" in flight.command()
        flight.fly(1.0, Vector(-2.0, 0.0, 0.0))
        assert flight.position.x < 300.0


class TestManual:
    def test_is_off_unless_armed(self, flight):
        assert "not armed" in flight.manual()

    def test_flies_after_neutral_and_command_does_not(self, flight):
        flight.gate.arm_manual(True)
        assert "cmd_vel is armed" in flight.command()
        assert "through zero" in flight.manual(FORWARD)
        assert flight.manual() == ""
        for _ in range(20):
            flight.step()
            assert flight.manual(FORWARD) == ""
        assert flight.setpoint.velocity == FORWARD
        flight.rest(0.5)
        assert "through zero" in flight.manual(FORWARD)

    def test_a_fault_disarms_it(self, flight):
        flight.gate.arm_manual(True)
        flight.gate.camera_lost("lens cap")
        flight.gate.frame_arrived()
        assert "not armed" in flight.manual()

    @pytest.mark.parametrize(
        ("stamp", "reason"), [(0.0, "s old"), (1e6, "s old"), (math.nan, "out of order")], ids=str
    )
    def test_a_wrong_stamp_is_refused(self, flight, stamp, reason):
        flight.gate.arm_manual(True)
        assert reason in flight.manual(stamp_s=stamp)

    def test_a_repeated_stamp_is_refused(self, flight):
        flight.gate.arm_manual(True)
        now = flight.clock.now()
        assert flight.manual(stamp_s=now) == ""
        assert "out of order" in flight.manual(stamp_s=now)


def test_every_change_of_mode_is_told_with_its_reason(flight):
    flight.fly(0.5)
    flight.rest(1.0)
    flight.gate.emergency_stop(True)
    flight.gate.emergency_stop(False)
    modes = [flight.transitions[0].before] + [t.after for t in flight.transitions]
    assert modes[-5:] == [GateMode.ACTIVE, GateMode.BRAKE, GateMode.HOLD, GateMode.EMERGENCY, GateMode.HOLD]
    causes = [t.cause for t in flight.transitions]
    timeout = Cause.COMMAND_TIMEOUT
    assert causes[-5:] == [Cause.COMMAND, timeout, timeout, Cause.EMERGENCY, Cause.EMERGENCY_RESET]
    assert all(t.reason for t in flight.transitions)
    epochs = [t.epoch for t in flight.transitions]
    assert epochs == sorted(epochs)


def test_a_restarted_gate_reuses_no_epoch():
    clock = VirtualClock(1000.0)
    first = CommandGate(clock)
    for _ in range(100):
        first.stop("again")
    clock.sleep(0.5)
    assert CommandGate(clock).epoch > first.epoch


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_limit_is_refused_by_name(value):
    with pytest.raises(ValueError, match="max_speed is"):
        GateLimits(max_speed=value)
