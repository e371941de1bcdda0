"""The command gate: the only road to the actuators. Plain Python on an injected clock; see CommandGate."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from airsim_bridge.stopping import speed_that_stops
from nav_common.clock import Clock
from nav_common.frames import Vector

ZERO = Vector(0.0, 0.0, 0.0)

# A command's stamp is one that this side published: it cannot be newer than the newest, save for rounding.
STAMP_TOLERANCE_S = 1e-3
# The measured speed below which the vehicle stands: SimpleFlight wobbles by a few cm/s when it holds a position.
STANDSTILL_M_S = 0.15
# A vehicle that has not come to rest after this long is not braking but being pushed: hold it anyway.
BRAKE_LIMIT_S = 3.0
# A late tick must not buy a leap in velocity.
LONGEST_TICK_S = 0.1
# Gain of the climb towards the take-off altitude, 1/s; the climb never gets slower than TAKE_OFF_CREEP_M_S.
TAKE_OFF_GAIN = 1.5
TAKE_OFF_CREEP_M_S = 0.2
TAKE_OFF_REACHED_M = 0.1
TAKE_OFF_LIMIT_S = 20.0


class Mode(IntEnum):
    """Values of nav_msgs_ext/DroneState.gate_mode."""

    HOLD = 0
    ACTIVE = 1
    BRAKE = 2
    LAND = 3
    EMERGENCY = 4


@dataclass(frozen=True)
class GateLimits:
    """What the gate allows. The times and their order of magnitude are those of DESIGN.md; the speeds are chosen for
    a vehicle that brakes with 6 m/s^2 in the simulator and about half of that in SimpleFlight."""

    max_speed: float = 5.0
    """Horizontal, m/s."""
    max_vertical_speed: float = 2.0
    """Up or down, m/s."""
    max_yaw_rate: float = math.radians(90.0)
    """Either way, rad/s."""
    max_acceleration: float = 4.0
    """Of the commanded velocity, m/s^2. Zero velocity is commanded at once."""
    command_age_s: float = 0.5
    """Oldest echoed stamp that is accepted."""
    silence_s: float = 0.3
    """No acceptable command for so long: zero velocity."""
    state_age_s: float = 0.5
    """No word from the vehicle for so long is a fault."""
    frame_age_s: float | None = None
    """No new picture for so long is a fault; None: pictures do not matter."""
    link_loss_land_s: float = 60.0
    """The link lost for so long in the air: land."""
    fence_radius_m: float = 200.0
    """Horizontal distance from the origin of odom."""
    fence_altitude_m: float = 50.0
    """Above the origin of odom."""
    fence_deceleration: float = 2.0
    """What the vehicle can be counted on to slow down by, m/s^2."""
    fence_latency_s: float = 0.2
    """From a command to its effect."""
    take_off_speed: float = 1.0
    """m/s"""
    land_speed: float = 0.7
    """m/s"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"gate limit {name} is {value}, must be positive and finite")


@dataclass(frozen=True)
class Command:
    """A velocity for the vehicle, as nav_msgs_ext/VelocityCommand carries it.

    `stamp`: newest odometry stamp that the sender had received, s. `linear`: forward, left, up in m/s.
    `angular`: rad/s about the same axes, of which only the third may be other than zero.
    """

    stamp: float
    epoch: int
    sequence: int
    linear: Vector
    angular: Vector

    @property
    def is_hover(self) -> bool:
        return not any(self.linear) and not any(self.angular)


@dataclass(frozen=True)
class VehicleState:
    """What the gate must know about the vehicle. Position in ENU from the origin of odom, m; yaw in ENU, rad."""

    stamp: float
    """Of the odometry message made of it: what commands echo."""
    position: Vector
    yaw: float
    speed: float
    """m/s"""
    landed: bool
    api_control: bool = True


@dataclass(frozen=True)
class Setpoint:
    """What to tell the vehicle now. `velocity`: forward, left, up, m/s. `hold`: keep this position instead."""

    velocity: Vector
    yaw_rate: float
    hold: bool = False

    @property
    def is_zero(self) -> bool:
        return not any(self.velocity) and self.yaw_rate == 0.0


@dataclass(frozen=True)
class Transition:
    """A change of mode or a raised epoch."""

    stamp: float
    before: Mode
    after: Mode
    epoch: int
    reason: str


class Reflex(Protocol):
    """Something that may slow a motion down, last of all."""

    def limit(self, velocity: Vector, now: float) -> Vector:
        """`velocity` (forward, left, up), or a slower one."""
        ...


class CommandGate:
    """Decides at each tick what velocity the vehicle gets. Thread-safe.

    HOLD: stands. ACTIVE: follows commands, or takes off. BRAKE: has left ACTIVE and is not yet at rest.
    LAND: descends. EMERGENCY: stands until the stop is reset.

    Leaving ACTIVE raises the epoch, and so do the beginning and the end of every fault and of an emergency: no
    command issued before can move the vehicle afterwards. While a fault lasts, every command is refused.
    """

    def __init__(
        self,
        clock: Clock,
        limits: GateLimits | None = None,
        *,
        reflex: Reflex | None = None,
        on_transition: Callable[[Transition], None] | None = None,
    ) -> None:
        self.limits = limits or GateLimits()
        self._clock = clock
        self._reflex = reflex
        self._on_transition = on_transition or (lambda transition: None)
        self._lock = threading.RLock()
        now = clock.now()
        self._now = now
        self._mode = Mode.HOLD
        self._reason = "started"
        # Milliseconds, so that a bridge that was restarted does not reuse the epochs of the one before.
        self._epoch = int(max(now, 0.0) * 1000.0) + 1
        self._mode_since = now
        self._sequence = -1
        self._command: Command | None = None
        self._command_at = now
        self._output = ZERO
        self._output_at = now
        self._state: VehicleState | None = None
        self._state_at = now
        self._frame_at = now
        self._ground: float | None = None  # where the vehicle last stood, altitude in odom, m
        self._take_off_to: float | None = None  # altitude in odom, m
        self._took_off = False
        self._outside_fence = ""
        self._faults: dict[str, str] = {"vehicle": "no word from the vehicle yet"}
        self._link_lost_at: float | None = None
        self._manual = False
        self._manual_neutral = False
        self._manual_stamp = -math.inf
        self._refused = 0
        self._last_refusal = ""

    # What others read.

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def refused(self) -> int:
        """Commands refused so far."""
        return self._refused

    @property
    def last_refusal(self) -> str:
        return self._last_refusal

    @property
    def fault(self) -> str:
        """What keeps the gate from accepting commands, or ""."""
        return "; ".join(self._faults.values())

    @property
    def sees_vehicle(self) -> bool:
        """Whether the vehicle has been heard lately."""
        return "vehicle" not in self._faults

    @property
    def taking_off(self) -> bool:
        return self._take_off_to is not None

    @property
    def took_off(self) -> bool:
        """Whether the last take-off came to its end."""
        return self._took_off

    @property
    def manual(self) -> bool:
        """Whether `cmd_vel` is armed."""
        return self._manual

    # What the edge reports.

    def observe(self, state: VehicleState) -> None:
        """The vehicle's newest state. Its stamp must be the one that is published with the odometry."""
        values = (state.stamp, *state.position, state.yaw, state.speed)
        with self._lock:
            if not all(map(math.isfinite, values)):
                self._begin_fault("vehicle", f"the vehicle reports numbers that are not finite: {state}")
                return
            self._state = state
            self._state_at = self._clock.now()
            if state.landed:
                self._ground = state.position.z
            self._end_fault("vehicle")

    def vehicle_lost(self, reason: str) -> None:
        """The vehicle cannot be reached; ends with the next `observe`."""
        with self._lock:
            self._begin_fault("vehicle", reason)

    def frame_arrived(self) -> None:
        """A picture that is newer than the one before (by its own stamp) has come from the camera."""
        with self._lock:
            self._frame_at = self._clock.now()
            self._end_fault("camera")

    def camera_lost(self, reason: str) -> None:
        """The camera gives no pictures; ends with the next `frame_arrived`."""
        with self._lock:
            self._begin_fault("camera", reason)

    def link(self, up: bool) -> None:
        """The link to the side that sends commands is up, or lost."""
        with self._lock:
            if up:
                self._link_lost_at = None
                self._end_fault("link")
            elif self._link_lost_at is None:
                self._link_lost_at = self._clock.now()
                self._begin_fault("link", "link lost")

    # What others ask for.

    def submit(self, command: Command) -> str:
        """Offer a command. Returns why it was refused, or "" when it was accepted."""
        with self._lock:
            self._look_at_the_clock()
            return self._count(self._accept(command))

    def submit_manual(self, stamp: float, linear: Vector, angular: Vector) -> str:
        """Offer a joystick's twist, stamped on this machine's clock. Returns why it was refused, or ""."""
        with self._lock:
            now = self._look_at_the_clock()
            if not self._manual:
                return self._count("cmd_vel is not armed")
            if not math.isfinite(stamp) or stamp <= self._manual_stamp:
                return self._count(f"cmd_vel out of order: stamp {stamp} after {self._manual_stamp}")
            if not -STAMP_TOLERANCE_S <= now - stamp <= self.limits.command_age_s:
                return self._count(f"cmd_vel is {now - stamp:.2f} s old by this machine's clock")
            command = Command(stamp, self._epoch, self._sequence + 1, linear, angular)
            if not self._manual_neutral and not command.is_hover:
                return self._count("cmd_vel must pass through zero before it moves the vehicle")
            refusal = self._check_motion(command) or self._check_state(command)
            if not refusal:
                self._manual_stamp = stamp
                self._manual_neutral = True
                self._take(command, "cmd_vel")
            return self._count(refusal)

    def arm_manual(self, armed: bool) -> None:
        """Let `cmd_vel` fly and refuse `command`, or the other way round. Faults disarm it."""
        with self._lock:
            if armed == self._manual:
                return
            self._manual = armed
            self._manual_neutral = False
            self._stop("cmd_vel armed" if armed else "cmd_vel disarmed")

    def emergency_stop(self, engaged: bool) -> None:
        """Stop and stay so, or reset the stop."""
        with self._lock:
            if engaged and self._mode is not Mode.EMERGENCY:
                self._disarm_manual()
                self._leave_motion()
                self._go(Mode.EMERGENCY, "emergency stop", raise_epoch=True)
            elif not engaged and self._mode is Mode.EMERGENCY:
                self._go(Mode.HOLD, "emergency stop reset", raise_epoch=True)

    def take_off(self, altitude_m: float) -> str:
        """Climb to `altitude_m` above where the vehicle stands, or stood when a take-off was interrupted on the way.
        Returns why not, or "".

        Meanwhile the mode is ACTIVE and `taking_off` is true, needs no commands, and ends in HOLD.
        """
        with self._lock:
            self._look_at_the_clock()
            if not math.isfinite(altitude_m) or not 0.5 <= altitude_m <= self.limits.fence_altitude_m:
                allowed = f"0.5 to {self.limits.fence_altitude_m:g} m"
                return f"take-off altitude is {altitude_m} m, must be {allowed}"
            if self._mode not in (Mode.HOLD, Mode.ACTIVE):
                return f"cannot take off: {self._mode.name}, {self._reason}"
            if self._faults:
                return f"cannot take off: {self.fault}"
            assert self._state is not None  # or "vehicle" were a fault
            if not self._state.api_control:
                return "cannot take off: API control is off"
            target = altitude_m + (self._ground if self._ground is not None else -math.inf)
            if not self._state.landed and self._state.position.z > target - TAKE_OFF_REACHED_M:
                return "cannot take off: already in the air"
            self._leave_motion()
            self._take_off_to = target
            self._took_off = False
            self._go(Mode.ACTIVE, f"taking off to {altitude_m:g} m", raise_epoch=True)
            return ""

    def land(self, reason: str = "asked to land") -> str:
        """Descend until the vehicle stands on something. Returns why not, or "". Ends in HOLD."""
        with self._lock:
            self._look_at_the_clock()
            if self._mode is Mode.EMERGENCY:
                return "cannot land: EMERGENCY, reset the stop first"
            if "vehicle" in self._faults:
                return f"cannot land: {self.fault}"
            assert self._state is not None
            if self._state.landed:
                return "cannot land: already on the ground"
            if not self._state.api_control:
                return "cannot land: API control is off"
            if self._mode is not Mode.LAND:
                self._leave_motion()
                self._go(Mode.LAND, reason, raise_epoch=True)
            return ""

    def stop(self, reason: str) -> None:
        """Stand still and raise the epoch, for a reason of the caller's (it shuts down, it resets the vehicle)."""
        with self._lock:
            self._stop(reason)

    def tick(self) -> Setpoint | None:
        """What the vehicle must be told now; None when it stands on the ground and needs nothing. Call at 10-20 Hz."""
        with self._lock:
            now = self._look_at_the_clock()
            self._change_mode(now)
            dt = min(max(now - self._output_at, 0.0), LONGEST_TICK_S)
            self._output_at = now
            wanted, yaw_rate = self._wanted()
            self._output = self._shape(wanted, dt, now)
            state = self._state
            if state is None or (state.landed and not self.taking_off):
                return None
            if self.taking_off or any(self._output) or yaw_rate != 0.0:
                return Setpoint(self._output, yaw_rate)
            # Brake first, then hold the position where the vehicle came to rest.
            return Setpoint(ZERO, 0.0, hold=state.speed < STANDSTILL_M_S and "vehicle" not in self._faults)

    # Time.

    def _look_at_the_clock(self) -> float:
        """The time. A clock that ran backwards makes every age meaningless, so it is a fault."""
        now = self._clock.now()
        if now < self._now:
            back = self._now - now
            self._now = now
            self._mode_since = self._command_at = self._output_at = now
            self._frame_at = self._state_at = now
            self._manual_stamp = -math.inf
            if self._link_lost_at is not None:
                self._link_lost_at = now
            self._begin_fault("vehicle", f"the edge's clock ran back by {back:.3f} s")
        self._now = now
        return now

    def _change_mode(self, now: float) -> None:
        limits, state = self.limits, self._state
        if now - self._state_at > limits.state_age_s:
            self._begin_fault("vehicle", f"no word from the vehicle for {limits.state_age_s:g} s")
        if limits.frame_age_s is not None and now - self._frame_at > limits.frame_age_s:
            self._begin_fault("camera", f"no new picture for {limits.frame_age_s:g} s")
        if state is None:
            return
        self._watch_fence(state)
        if self._mode is Mode.ACTIVE:
            if self._take_off_to is not None:
                if state.position.z >= self._take_off_to - TAKE_OFF_REACHED_M:
                    self._took_off = True
                    self._stop("took off")
                elif now - self._mode_since > TAKE_OFF_LIMIT_S:
                    self._stop(f"take-off given up: {state.position.z:.1f} m after {TAKE_OFF_LIMIT_S:g} s")
            elif now - self._command_at > limits.silence_s:
                self._stop(f"no acceptable command for {limits.silence_s:g} s")
        elif self._mode is Mode.BRAKE:
            if state.speed < STANDSTILL_M_S or now - self._mode_since > BRAKE_LIMIT_S:
                self._go(Mode.HOLD, self._reason)
        elif self._mode is Mode.LAND and state.landed:
            self._go(Mode.HOLD, "landed", raise_epoch=True)
        if (
            self._mode in (Mode.HOLD, Mode.BRAKE)
            and self._link_lost_at is not None
            and now - self._link_lost_at > limits.link_loss_land_s
            and not self._manual
            and "vehicle" not in self._faults
            and not state.landed
        ):
            self._go(Mode.LAND, f"link lost for {limits.link_loss_land_s:g} s", raise_epoch=True)

    # Modes, faults, epochs.

    def _go(self, mode: Mode, reason: str, *, raise_epoch: bool = False) -> None:
        before = self._mode
        if mode is not before:
            self._mode_since = self._clock.now()
        self._mode = mode
        self._reason = reason
        if raise_epoch:
            self._epoch += 1
            self._sequence = -1
        self._on_transition(Transition(self._clock.now(), before, mode, self._epoch, reason))

    def _leave_motion(self) -> None:
        self._command = None
        self._take_off_to = None
        self._output = ZERO
        self._manual_neutral = False

    def _stop(self, reason: str) -> None:
        """Away from ACTIVE by way of BRAKE. LAND and EMERGENCY stay what they are; the epoch rises in any case."""
        self._leave_motion()
        moving = self._state is not None and self._state.speed >= STANDSTILL_M_S and not self._state.landed
        if self._mode is Mode.ACTIVE:
            self._go(Mode.BRAKE if moving else Mode.HOLD, reason, raise_epoch=True)
        elif self._mode in (Mode.LAND, Mode.EMERGENCY):
            self._go(self._mode, self._reason, raise_epoch=True)
        else:
            self._go(self._mode, reason, raise_epoch=True)

    def _begin_fault(self, source: str, reason: str) -> None:
        if source in self._faults:
            self._faults[source] = reason
            return
        self._faults[source] = reason
        self._disarm_manual()
        if source == "vehicle" and self._mode is Mode.LAND:
            # Blind, nobody can tell when the ground is reached. A link that is still lost lands again by itself.
            self._go(Mode.HOLD, reason, raise_epoch=True)
        else:
            self._stop(reason)

    def _end_fault(self, source: str) -> None:
        reason = self._faults.pop(source, None)
        if reason is not None:
            # Whoever streamed motion into the fault must not see it carried out the moment the fault is over.
            self._stop(f"over: {reason}")

    def _disarm_manual(self) -> None:
        self._manual = False
        self._manual_neutral = False

    def _watch_fence(self, state: VehicleState) -> None:
        radius = math.hypot(state.position.x, state.position.y)
        outside = ""
        if radius > self.limits.fence_radius_m:
            outside = f"geofence: {radius:.1f} m from the origin, allowed {self.limits.fence_radius_m:g} m"
        elif state.position.z > self.limits.fence_altitude_m:
            outside = f"geofence: {state.position.z:.1f} m high, allowed {self.limits.fence_altitude_m:g} m"
        if outside and not self._outside_fence and self._mode is not Mode.LAND:
            self._disarm_manual()
            self._stop(outside)
        self._outside_fence = outside

    # Commands.

    def _count(self, refusal: str) -> str:
        if refusal:
            self._refused += 1
            self._last_refusal = refusal
        return refusal

    def _accept(self, command: Command) -> str:
        refusal = (
            ("cmd_vel is armed, command is not followed" if self._manual else "")
            or self._check_identity(command)
            or self._check_motion(command)
            or self._check_state(command)
        )
        if refusal:
            return refusal
        self._sequence = command.sequence
        self._take(command, "command")
        return ""

    def _check_identity(self, command: Command) -> str:
        """Fresh, of this epoch, in order."""
        if not math.isfinite(command.stamp):
            return f"stamp is {command.stamp}"
        if command.epoch != self._epoch:
            return f"epoch {command.epoch}, the gate's is {self._epoch}"
        if command.sequence <= self._sequence:
            return f"out of order: sequence {command.sequence} after {self._sequence}"
        age = self._now - command.stamp
        if age > self.limits.command_age_s:
            return f"{age:.2f} s old, allowed {self.limits.command_age_s:g} s"
        if self._state is not None and command.stamp > self._state.stamp + STAMP_TOLERANCE_S:
            ahead = command.stamp - self._state.stamp
            return f"stamp is {ahead:.3f} s ahead of the newest odometry: it is no echo"
        return ""

    def _check_motion(self, command: Command) -> str:
        if not all(map(math.isfinite, (*command.linear, *command.angular))):
            return f"not finite: linear {tuple(command.linear)}, angular {tuple(command.angular)}"
        if command.angular.x != 0.0 or command.angular.y != 0.0:
            return f"roll or pitch rate is not zero: angular {tuple(command.angular)}"
        return ""

    def _check_state(self, command: Command) -> str:
        if self._mode in (Mode.LAND, Mode.EMERGENCY):
            return f"{self._mode.name}: {self._reason}"
        # Whoever holds the joystick stands beside the drone and needs no link.
        blocking = [
            reason for source, reason in self._faults.items() if not (self._manual and source == "link")
        ]
        if blocking:
            return f"fault: {'; '.join(blocking)}"
        state = self._state
        assert state is not None  # or "vehicle" were a fault
        if command.is_hover:
            return ""
        if self.taking_off:
            return "taking off: only hover is accepted"
        if state.landed:
            return "on the ground: take off first"
        if not state.api_control:
            return "API control is off: enable it first"
        if self._outside_fence and self._inside_fence(command.linear, state) != command.linear:
            return f"{self._outside_fence}: only the way back is open"
        return ""

    def _take(self, command: Command, source: str) -> None:
        self._command_at = self._now
        if self.taking_off:
            return
        self._command = command
        if self._mode is not Mode.ACTIVE:
            self._output = ZERO
            self._go(Mode.ACTIVE, f"{source} accepted")

    # Velocities.

    def _wanted(self) -> tuple[Vector, float]:
        """What the mode asks for: velocity and yaw rate."""
        limits = self.limits
        if self._mode is Mode.LAND:
            return Vector(0.0, 0.0, -limits.land_speed), 0.0
        if self._mode is not Mode.ACTIVE:
            return ZERO, 0.0
        if self._take_off_to is not None and self._state is not None:
            climb = TAKE_OFF_GAIN * (self._take_off_to - self._state.position.z)
            return Vector(0.0, 0.0, min(max(climb, TAKE_OFF_CREEP_M_S), limits.take_off_speed)), 0.0
        if self._command is None:
            return ZERO, 0.0
        yaw_rate = self._command.angular.z
        return self._command.linear, min(max(yaw_rate, -limits.max_yaw_rate), limits.max_yaw_rate)

    def _shape(self, wanted: Vector, dt: float, now: float) -> Vector:
        """`wanted` within the limits of speed, acceleration, fence and reflex. Standing still is always allowed."""
        if not any(wanted) or self._state is None:
            return ZERO
        limits = self.limits
        horizontal = math.hypot(wanted.x, wanted.y)
        scale = min(1.0, limits.max_speed / horizontal) if horizontal > 0 else 1.0
        up = min(max(wanted.z, -limits.max_vertical_speed), limits.max_vertical_speed)
        target = Vector(wanted.x * scale, wanted.y * scale, up)
        change = Vector(*(t - o for t, o in zip(target, self._output, strict=True)))
        size = math.hypot(*change)
        if size > limits.max_acceleration * dt:
            part = limits.max_acceleration * dt / size
            target = Vector(*(o + part * c for o, c in zip(self._output, change, strict=True)))
        if self._mode is Mode.LAND:
            return target
        target = self._inside_fence(target, self._state)
        return self._reflex.limit(target, now) if self._reflex is not None else target

    def _inside_fence(self, velocity: Vector, state: VehicleState) -> Vector:
        """`velocity` less whatever of it could not be stopped before the fence."""
        limits = self.limits

        def allowed(distance_m: float) -> float:
            return speed_that_stops(distance_m, limits.fence_deceleration, limits.fence_latency_s)

        up = min(velocity.z, allowed(limits.fence_altitude_m - state.position.z))
        radius = math.hypot(state.position.x, state.position.y)
        if radius < 1e-6:
            return velocity._replace(z=up)
        # The unit vector away from the origin, in the body's frame.
        bearing = math.atan2(state.position.y, state.position.x) - state.yaw
        ox, oy = math.cos(bearing), math.sin(bearing)
        excess = velocity.x * ox + velocity.y * oy - allowed(limits.fence_radius_m - radius)
        if excess <= 0.0:
            return velocity._replace(z=up)
        return Vector(velocity.x - excess * ox, velocity.y - excess * oy, up)
