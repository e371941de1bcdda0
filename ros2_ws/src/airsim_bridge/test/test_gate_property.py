"""Law of the gate: under any order of commands, delays, garbage, faults and clock jumps, nothing unsafe is sent."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airsim_bridge.gate import CommandGate, GateLimits, VehicleState
from nav_common.clock import VirtualClock
from nav_common.contract import COMMAND_MAX_AGE_S, COMMAND_TIMEOUT_S
from nav_common.data import ZERO, GateMode, Odometry, Twist, VelocityCommand
from nav_common.frames import Quaternion, Vector

LIMITS = GateLimits(fence_radius_m=30.0, fence_altitude_m=20.0, frame_timeout_s=1.0, link_loss_land_s=5.0)
NUMBERS = st.one_of(
    st.floats(-6.0, 6.0), st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e308, -1e308])
)
VECTORS = st.builds(Vector, NUMBERS, NUMBERS, NUMBERS)


class Gate(RuleBasedStateMachine):
    """Every command offered carries its own forward speed, so that what is sent can be traced to it."""

    @initialize()
    def begin(self):
        self.clock = VirtualClock(50.0)
        self.gate = CommandGate(self.clock, LIMITS, on_transition=self.on_transition)
        self.position = Vector(0.0, 0.0, 5.0)
        self.yaw = 0.0
        self.landed = False
        self.speed = 0.0
        self.stamps = [self.clock.now()]
        self.in_flight = []  # commands on their way, to arrive late, twice or never
        self.sequence = 0
        self.last_sequence = {}
        self.last_output = ZERO
        self.last_tick = self.clock.now()
        self.accepted_at = -math.inf
        self.accepted = None
        self.faults_at = [self.clock.now()]
        self.unsafe_until_epoch = 0
        self.jumped = False
        self.observe()

    def on_transition(self, transition):
        assert transition.reason
        assert transition.epoch >= getattr(self, "epoch_seen", 0)
        if transition.before is GateMode.ACTIVE and transition.after is not GateMode.ACTIVE:
            assert transition.epoch > self.epoch_seen
            self.accepted = None
        if transition.before is GateMode.EMERGENCY and transition.after is not GateMode.EMERGENCY:
            assert self.resetting
        if transition.epoch > self.epoch_seen:
            self.last_output = ZERO  # standing still is allowed at once, and motion begins from there
        self.epoch_seen = transition.epoch

    epoch_seen = 0
    resetting = False

    @rule(dt=st.floats(0.0, 0.1))
    def observe(self, dt=0.01):
        self.clock.sleep(dt)
        turned = Quaternion(math.cos(self.yaw / 2), 0.0, 0.0, math.sin(self.yaw / 2))
        odometry = Odometry(self.clock.now(), self.position, turned, Vector(self.speed, 0.0, 0.0))
        self.gate.observe(VehicleState(odometry, self.landed))
        self.stamps.append(self.clock.now())

    @rule(steps=st.integers(1, 12), forward=st.floats(-5.0, 5.0), linger=st.booleans())
    def flies_in_peace(self, steps, forward, linger):
        """Nothing is wrong for a while: what random events alone would seldom give."""
        self.resetting = True
        self.gate.emergency_stop(False)
        self.resetting = False
        self.gate.arm_manual(False)
        self.gate.link(True)
        self.landed, self.position = False, Vector(0.0, 0.0, 5.0)
        for _ in range(steps):
            self.gate.frame_arrived()
            self.observe(0.02)
            if linger:  # the network keeps this one for later
                self.sender_issues(Vector(forward, 0.0, 0.0), 0.0, 0)
            self.sender_issues(Vector(forward, 0.0, 0.0), 0.0, 0)
            self.command_arrives(len(self.in_flight) - 1, True)
            self.tick(0.03)

    @rule(speed=st.sampled_from([0.0, 0.1, 2.0, 5.0]), landed=st.booleans(), yaw=st.floats(-3.1, 3.1),
          x=st.floats(-40.0, 40.0), z=st.floats(0.0, 25.0))  # fmt: skip
    def vehicle_changes(self, speed, landed, yaw, x, z):
        self.speed, self.landed, self.yaw = speed, landed, yaw
        self.position = Vector(x, 0.0, z)

    @rule(linear=VECTORS, yaw_rate=NUMBERS, behind=st.integers(0, 3))
    def sender_issues(self, linear, yaw_rate, behind):
        """A command with what the sender knows now: the newest epoch, an odometry stamp."""
        self.sequence += 1
        stamp = self.stamps[max(-1 - behind, -len(self.stamps))]
        command = VelocityCommand(
            stamp, self.gate.epoch, self.sequence, Twist(linear, Vector(0.0, 0.0, yaw_rate))
        )
        self.in_flight.append((self.clock.now(), command))

    @rule(newest=st.integers(1, 30), keep=st.booleans())
    def a_late_command_arrives(self, newest, keep):
        self.command_arrives(max(len(self.in_flight) - newest, 0), keep)

    @rule(which=st.integers(0, 50), keep=st.booleans())
    def command_arrives(self, which, keep):
        """Any of those on their way, in any order, perhaps again later."""
        if not self.in_flight:
            return
        index = which % len(self.in_flight)
        issued, command = self.in_flight[index] if keep else self.in_flight.pop(index)
        epoch = self.gate.epoch
        if self.gate.submit(command) is None:
            assert command.twist.is_finite
            assert command.epoch == epoch
            assert command.sequence > self.last_sequence.get(epoch, -1)
            self.last_sequence[epoch] = command.sequence
            assert not self.gate.fault
            assert self.gate.mode is GateMode.ACTIVE
            # Age counts from the stamp, whatever the network did since.
            assert self.clock.now() - command.stamp_s <= COMMAND_MAX_AGE_S + 1e-9
            # Nothing issued before a fault, a stop or a silence is accepted after it.
            assert issued >= max(self.faults_at) or self.jumped
            self.accepted_at, self.accepted = self.clock.now(), command

    @rule(stamp=NUMBERS, epoch=st.integers(0, 2**64 - 1), sequence=st.integers(0, 2**64 - 1), linear=VECTORS)
    def garbage_arrives(self, stamp, epoch, sequence, linear):
        assert self.gate.submit(VelocityCommand(stamp, epoch, sequence, Twist(linear)))

    @rule(source=st.sampled_from(["vehicle", "camera", "link"]))
    def fault_begins(self, source):
        {"vehicle": lambda: self.gate.vehicle_lost("gone"), "camera": lambda: self.gate.camera_lost("dark"),
         "link": lambda: self.gate.link(False)}[source]()  # fmt: skip
        self.faults_at.append(self.clock.now())
        self.clock.sleep(1e-6)

    @rule(source=st.sampled_from(["camera", "link"]))
    def fault_ends(self, source):
        self.gate.frame_arrived() if source == "camera" else self.gate.link(True)

    @rule(engaged=st.booleans())
    def emergency(self, engaged):
        self.resetting = not engaged
        self.gate.emergency_stop(engaged)
        self.resetting = False
        if engaged:
            assert self.gate.mode is GateMode.EMERGENCY
            self.faults_at.append(self.clock.now())
            self.clock.sleep(1e-6)

    @rule(altitude_m=st.floats(0.0, 30.0))
    def take_off(self, altitude_m):
        self.gate.take_off(altitude_m)

    @rule()
    def land(self):
        self.gate.land()

    @rule(armed=st.booleans())
    def arm_manual(self, armed):
        self.gate.arm_manual(armed)

    @rule(linear=VECTORS, age=st.floats(-0.1, 1.0))
    def joystick(self, linear, age):
        refusal = self.gate.submit_manual(self.clock.now() - age, Twist(linear))
        if not refusal:
            assert self.gate.manual
            assert self.gate.mode is GateMode.ACTIVE
            self.accepted_at = self.clock.now()
            self.accepted = VelocityCommand(0.0, 0, 0, Twist(linear))

    @rule(jump=st.sampled_from([-10.0, -0.2, 0.3, 100.0]))
    def clock_jumps(self, jump):
        self.clock._now += jump
        self.faults_at = [self.clock.now()] if jump < 0 else self.faults_at
        self.jumped = self.jumped or jump < 0
        self.stamps = [s for s in self.stamps if s <= self.clock.now()] or [self.clock.now()]
        self.gate.tick()
        self.last_output, self.last_tick = ZERO, self.clock.now()
        if jump < -0.1 or jump > COMMAND_TIMEOUT_S:
            assert self.gate.mode is not GateMode.ACTIVE or self.gate.taking_off
        self.accepted_at = -math.inf if jump < 0 else self.accepted_at

    @rule(dt=st.floats(0.01, 0.2))
    def tick(self, dt):
        self.clock.sleep(dt)
        setpoint = self.gate.tick()
        now, gate = self.clock.now(), self.gate
        output = setpoint.velocity if setpoint else ZERO
        yaw_rate = setpoint.yaw_rate if setpoint else 0.0
        assert all(map(math.isfinite, (*output, yaw_rate)))
        assert math.hypot(output.x, output.y) <= LIMITS.max_speed + 1e-6
        assert abs(output.z) <= LIMITS.max_vertical_speed + 1e-6
        assert abs(yaw_rate) <= LIMITS.max_yaw_rate + 1e-9
        if gate.mode in (GateMode.HOLD, GateMode.BRAKE, GateMode.EMERGENCY):
            assert not any(output)
            assert yaw_rate == 0.0
        if gate.mode is GateMode.LAND:
            assert output.x == output.y == yaw_rate == 0.0
            assert output.z <= 0.0
        if gate.mode is GateMode.ACTIVE and not gate.taking_off and (any(output) or yaw_rate):
            # There is a motion: then it was accepted, recently, and nothing went wrong since.
            assert self.accepted is not None
            assert not self.accepted.twist.is_hover
            assert now - self.accepted_at <= COMMAND_TIMEOUT_S + 1e-9
            assert not gate.fault or gate.manual
            fenced = math.hypot(*self.position[:2]) > 25.0 or self.position.z > 15.0
            if any(self.last_output) and not fenced:
                allowed = LIMITS.max_acceleration * (now - self.last_tick)
                assert math.dist(output, self.last_output) <= allowed + 1e-6
        self.last_output, self.last_tick = output, now

    @invariant()
    def the_epoch_never_falls(self):
        if hasattr(self, "gate"):
            assert self.gate.epoch >= self.epoch_seen


TestGate = Gate.TestCase
TestGate.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
