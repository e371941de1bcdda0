"""The command gate: the only road to the actuators. Plain Python on an injected clock; see CommandGate."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from airsim_bridge.stopping import speed_that_stops
from nav_common.clock import Clock
from nav_common.contract import (
    COMMAND_MAX_AGE_S,
    COMMAND_TIMEOUT_S,
    LINK_LOSS_LAND_S,
    STAMP_TOLERANCE_S,
    STANDSTILL_M_S,
)
from nav_common.data import ZERO, GateMode, Odometry, Twist, VelocityCommand
from nav_common.frames import Vector

# A joystick's node reads this machine's clock too, by another road: so much may it be ahead.
JOYSTICK_AHEAD_S = 1e-3
# A vehicle that has not come to rest after this long is not braking but being pushed: hold it anyway.
BRAKE_LIMIT_S = 3.0
# A late tick must not buy a leap in velocity.
LONGEST_TICK_S = 0.1
# Gain of the climb towards the take-off altitude, 1/s; the climb never gets slower than TAKE_OFF_CREEP_M_S.
TAKE_OFF_GAIN = 1.5
TAKE_OFF_CREEP_M_S = 0.2
TAKE_OFF_REACHED_M = 0.1
TAKE_OFF_LIMIT_S = 20.0
# `frame_timeout_s` where pictures are taken (chosen: twenty at the default rate).
FRAME_TIMEOUT_S = 2.0


class Cause(Enum):
    """Why the gate changed its mode or raised the epoch."""

    STARTED = auto()
    COMMAND = auto()
    """A command was accepted."""
    COMMAND_TIMEOUT = auto()
    """No acceptable command for COMMAND_TIMEOUT_S."""
    TAKE_OFF = auto()
    TOOK_OFF = auto()
    TAKE_OFF_TIMEOUT = auto()
    LANDING = auto()
    LANDED = auto()
    LINK_LOSS = auto()
    """Lost for so long that the vehicle lands."""
    FAULT = auto()
    FAULT_OVER = auto()
    GEOFENCE = auto()
    EMERGENCY = auto()
    EMERGENCY_RESET = auto()
    MANUAL = auto()
    """cmd_vel was armed or disarmed."""
    CALLER = auto()
    """The bridge stopped the vehicle for a reason of its own."""


class FaultSource(Enum):
    """What keeps the gate from accepting commands; one fault of each at a time."""

    VEHICLE = auto()
    """It cannot be reached, or its state is old or not finite, or the edge's clock ran back."""
    CAMERA = auto()
    LINK = auto()


class RefusalKind(Enum):
    """Why a command, a take-off or a landing is refused."""

    NOT_FINITE = auto()
    AXIS = auto()
    """An angular velocity about another axis than the third."""
    EPOCH = auto()
    OUT_OF_ORDER = auto()
    TOO_OLD = auto()
    NO_ECHO = auto()
    """A stamp that the edge has not published yet."""
    MANUAL = auto()
    """cmd_vel is armed, or not armed, or has not passed through zero."""
    MODE = auto()
    """LAND and EMERGENCY follow no command."""
    FAULT = auto()
    TAKING_OFF = auto()
    LANDED = auto()
    AIRBORNE = auto()
    API_CONTROL = auto()
    GEOFENCE = auto()
    ALTITUDE = auto()
    """Of a take-off: outside what is allowed."""


@dataclass(frozen=True)
class CommandRefusal:
    """What the gate does not do, and why; `text` is for people."""

    kind: RefusalKind
    text: str


@dataclass(frozen=True)
class GateLimits:
    """What the gate allows, beside the safety numbers of nav_common.contract. The speeds are chosen for a vehicle that
    brakes with 6 m/s^2 in the simulator and about half of that in SimpleFlight."""

    max_speed: float = 5.0
    """Horizontal, m/s."""
    max_vertical_speed: float = 2.0
    """Up or down, m/s."""
    max_yaw_rate: float = math.radians(90.0)
    """Either way, rad/s."""
    max_acceleration: float = 4.0
    """Of the commanded velocity, m/s^2. Zero velocity is commanded at once."""
    state_timeout_s: float = 0.5
    """No state from the vehicle for so long is a fault."""
    frame_timeout_s: float | None = None
    """No new picture for so long is a fault; None: pictures do not matter."""
    link_loss_land_s: float = LINK_LOSS_LAND_S
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
class VehicleState:
    """What the gate must know about the vehicle. Commands echo the stamp of the odometry."""

    odometry: Odometry
    landed: bool
    api_control: bool = True


@dataclass(frozen=True)
class Setpoint:
    """What to send to the vehicle now. `velocity`: forward, left, up, m/s. `hold`: keep this position instead."""

    velocity: Vector
    yaw_rate: float
    hold: bool = False


@dataclass(frozen=True)
class Transition:
    """A change of mode or a raised epoch, at `stamp_s` of the edge's clock; `reason` is for people."""

    stamp_s: float
    before: GateMode
    after: GateMode
    epoch: int
    cause: Cause
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
        self._mode = GateMode.HOLD
        self._cause = Cause.STARTED
        self._reason = "started"
        # Milliseconds, so that a bridge that was restarted does not reuse the epochs of the one before.
        self._epoch = int(max(now, 0.0) * 1000.0) + 1
        self._mode_since = now
        self._sequence = -1
        self._twist: Twist | None = None  # what the last accepted command asked for
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
        self._faults = {FaultSource.VEHICLE: "no state from the vehicle yet"}
        self._link_lost_at: float | None = None
        self._manual = False
        self._manual_neutral = False
        self._manual_stamp_s = -math.inf
        self._refused = 0
        self._last_refusal = ""

    def change_limits(self, limits: GateLimits) -> None:
        """Other limits, from the next command and tick on."""
        with self._lock:
            self.limits = limits

    # What others read.

    @property
    def mode(self) -> GateMode:
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
        """Whether the vehicle's state is known and fresh."""
        return FaultSource.VEHICLE not in self._faults

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
        o = state.odometry
        values = (o.stamp_s, *o.position, *o.orientation, *o.velocity, *o.angular_velocity)
        with self._lock:
            if not all(map(math.isfinite, values)):
                self._begin_fault(
                    FaultSource.VEHICLE, f"the vehicle reports numbers that are not finite: {state}"
                )
                return
            self._state = state
            self._state_at = self._clock.now()
            if state.landed:
                self._ground = o.position.z
            self._end_fault(FaultSource.VEHICLE)

    def vehicle_lost(self, reason: str) -> None:
        """The vehicle cannot be reached; ends with the next `observe`."""
        with self._lock:
            self._begin_fault(FaultSource.VEHICLE, reason)

    def frame_arrived(self) -> None:
        """A picture that is newer than the one before (by its own stamp) has come from the camera."""
        with self._lock:
            self._frame_at = self._clock.now()
            self._end_fault(FaultSource.CAMERA)

    def camera_lost(self, reason: str) -> None:
        """The camera gives no pictures; ends with the next `frame_arrived`."""
        with self._lock:
            self._begin_fault(FaultSource.CAMERA, reason)

    def link(self, up: bool) -> None:
        """The link to the side that sends commands is up, or lost."""
        with self._lock:
            if up:
                self._link_lost_at = None
                self._end_fault(FaultSource.LINK)
            elif self._link_lost_at is None:
                self._link_lost_at = self._clock.now()
                self._begin_fault(FaultSource.LINK, "link lost")

    # What others ask for.

    def submit(self, command: VelocityCommand) -> CommandRefusal | None:
        """Offer a command. Returns why it was refused, or None when it was accepted."""
        with self._lock:
            self._read_clock()
            refusal = (
                CommandRefusal(RefusalKind.MANUAL, "cmd_vel is armed, command is not followed")
                if self._manual
                else self._check_identity(command)
                or self._check_motion(command.twist)
                or self._check_state(command.twist)
            )
            if refusal is None:
                self._sequence = command.sequence
                self._take(command.twist, "command")
            return self._count(refusal)

    def submit_manual(self, stamp_s: float, twist: Twist) -> CommandRefusal | None:
        """Offer a joystick's twist, stamped on this machine's clock. Returns why it was refused, or None."""
        with self._lock:
            now = self._read_clock()
            refusal = (
                self._check_manual(stamp_s, twist, now)
                or self._check_motion(twist)
                or self._check_state(twist)
            )
            if refusal is None:
                self._manual_stamp_s = stamp_s
                self._manual_neutral = True
                self._take(twist, "cmd_vel")
            return self._count(refusal)

    def arm_manual(self, armed: bool) -> None:
        """Let `cmd_vel` fly and refuse `command`, or the other way round. Faults disarm it."""
        with self._lock:
            if armed == self._manual:
                return
            self._manual = armed
            self._manual_neutral = False
            self._stop(Cause.MANUAL, "cmd_vel armed" if armed else "cmd_vel disarmed")

    def emergency_stop(self, engaged: bool) -> None:
        """Stop and stay so, or reset the stop."""
        with self._lock:
            if engaged and self._mode is not GateMode.EMERGENCY:
                self._disarm_manual()
                self._leave_motion()
                self._go(GateMode.EMERGENCY, Cause.EMERGENCY, "emergency stop", raise_epoch=True)
            elif not engaged and self._mode is GateMode.EMERGENCY:
                self._go(GateMode.HOLD, Cause.EMERGENCY_RESET, "emergency stop reset", raise_epoch=True)

    def take_off(self, altitude_m: float) -> CommandRefusal | None:
        """Climb to `altitude_m` above where the vehicle stands, or stood when a take-off was interrupted on the way.
        Returns why not, or None.

        Meanwhile the mode is ACTIVE and `taking_off` is true, needs no commands, and ends in HOLD.
        """
        with self._lock:
            self._read_clock()
            refusal = self._check_take_off(altitude_m)
            if refusal is None:
                self._leave_motion()
                self._take_off_to = self._altitude(altitude_m)
                self._took_off = False
                self._go(GateMode.ACTIVE, Cause.TAKE_OFF, f"taking off to {altitude_m:g} m", raise_epoch=True)
            return refusal

    def land(self, reason: str = "asked to land") -> CommandRefusal | None:
        """Descend until the vehicle stands on something. Returns why not, or None. Ends in HOLD."""
        with self._lock:
            self._read_clock()
            refusal = self._check_landing()
            if refusal is None and self._mode is not GateMode.LAND:
                self._leave_motion()
                self._go(GateMode.LAND, Cause.LANDING, reason, raise_epoch=True)
            return refusal

    def stop(self, reason: str) -> None:
        """Stand still and raise the epoch, for a reason of the caller's (it shuts down, it resets the vehicle, a watch
        came true)."""
        with self._lock:
            self._stop(Cause.CALLER, reason)

    def tick(self) -> Setpoint | None:
        """The setpoint to send now; None when it stands on the ground and needs nothing. Call at 10-20 Hz."""
        with self._lock:
            now = self._read_clock()
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
            return Setpoint(
                ZERO,
                0.0,
                hold=state.odometry.speed < STANDSTILL_M_S and FaultSource.VEHICLE not in self._faults,
            )

    # Time.

    def _read_clock(self) -> float:
        """The time. A clock that ran backwards makes every age meaningless, so it is a fault."""
        now = self._clock.now()
        if now < self._now:
            back = self._now - now
            self._now = now
            self._mode_since = self._command_at = self._output_at = now
            self._frame_at = self._state_at = now
            self._manual_stamp_s = -math.inf
            if self._link_lost_at is not None:
                self._link_lost_at = now
            self._begin_fault(FaultSource.VEHICLE, f"the edge's clock ran back by {back:.3f} s")
        self._now = now
        return now

    def _change_mode(self, now: float) -> None:
        limits, state = self.limits, self._state
        if now - self._state_at > limits.state_timeout_s:
            self._begin_fault(
                FaultSource.VEHICLE, f"no state from the vehicle for {limits.state_timeout_s:g} s"
            )
        if limits.frame_timeout_s is not None and now - self._frame_at > limits.frame_timeout_s:
            self._begin_fault(FaultSource.CAMERA, f"no new picture for {limits.frame_timeout_s:g} s")
        if state is None:
            return
        self._watch_fence(state.odometry.position)
        if self._mode is GateMode.ACTIVE:
            altitude = state.odometry.position.z
            if self._take_off_to is not None:
                if altitude >= self._take_off_to - TAKE_OFF_REACHED_M:
                    self._took_off = True
                    self._stop(Cause.TOOK_OFF, "took off")
                elif now - self._mode_since > TAKE_OFF_LIMIT_S:
                    self._stop(
                        Cause.TAKE_OFF_TIMEOUT,
                        f"take-off given up: {altitude:.1f} m after {TAKE_OFF_LIMIT_S:g} s",
                    )
            elif now - self._command_at > COMMAND_TIMEOUT_S:
                self._stop(Cause.COMMAND_TIMEOUT, f"no acceptable command for {COMMAND_TIMEOUT_S:g} s")
        elif self._mode is GateMode.BRAKE:
            if state.odometry.speed < STANDSTILL_M_S or now - self._mode_since > BRAKE_LIMIT_S:
                self._go(GateMode.HOLD, self._cause, self._reason)
        elif self._mode is GateMode.LAND and state.landed:
            self._go(GateMode.HOLD, Cause.LANDED, "landed", raise_epoch=True)
        if (
            self._mode in (GateMode.HOLD, GateMode.BRAKE)
            and self._link_lost_at is not None
            and now - self._link_lost_at > limits.link_loss_land_s
            and not self._manual
            and FaultSource.VEHICLE not in self._faults
            and not state.landed
        ):
            reason = f"link lost for {limits.link_loss_land_s:g} s"
            self._go(GateMode.LAND, Cause.LINK_LOSS, reason, raise_epoch=True)

    # Modes, faults, epochs.

    def _go(self, mode: GateMode, cause: Cause, reason: str, *, raise_epoch: bool = False) -> None:
        before = self._mode
        if mode is not before:
            self._mode_since = self._clock.now()
        self._mode = mode
        self._cause = cause
        self._reason = reason
        if raise_epoch:
            self._epoch += 1
            self._sequence = -1
        self._on_transition(Transition(self._clock.now(), before, mode, self._epoch, cause, reason))

    def _leave_motion(self) -> None:
        self._twist = None
        self._take_off_to = None
        self._output = ZERO
        self._manual_neutral = False

    def _stop(self, cause: Cause, reason: str) -> None:
        """Away from ACTIVE by way of BRAKE. LAND and EMERGENCY stay what they are; the epoch rises in any case."""
        self._leave_motion()
        state = self._state
        moving = state is not None and state.odometry.speed >= STANDSTILL_M_S and not state.landed
        if self._mode is GateMode.ACTIVE:
            self._go(GateMode.BRAKE if moving else GateMode.HOLD, cause, reason, raise_epoch=True)
        elif self._mode in (GateMode.LAND, GateMode.EMERGENCY):
            self._go(self._mode, self._cause, self._reason, raise_epoch=True)
        else:
            self._go(self._mode, cause, reason, raise_epoch=True)

    def _begin_fault(self, source: FaultSource, reason: str) -> None:
        if source in self._faults:
            self._faults[source] = reason
            return
        self._faults[source] = reason
        self._disarm_manual()
        if source is FaultSource.VEHICLE and self._mode is GateMode.LAND:
            # Without its state the ground cannot be detected. A link that is still lost lands again by itself.
            self._go(GateMode.HOLD, Cause.FAULT, reason, raise_epoch=True)
        else:
            self._stop(Cause.FAULT, reason)

    def _end_fault(self, source: FaultSource) -> None:
        reason = self._faults.pop(source, None)
        if reason is not None:
            # Motion that was streamed during the fault must not be carried out the moment it is over.
            self._stop(Cause.FAULT_OVER, f"over: {reason}")

    def _disarm_manual(self) -> None:
        self._manual = False
        self._manual_neutral = False

    def _watch_fence(self, position: Vector) -> None:
        radius = math.hypot(position.x, position.y)
        outside = ""
        if radius > self.limits.fence_radius_m:
            outside = f"geofence: {radius:.1f} m from the origin, allowed {self.limits.fence_radius_m:g} m"
        elif position.z > self.limits.fence_altitude_m:
            outside = f"geofence: {position.z:.1f} m high, allowed {self.limits.fence_altitude_m:g} m"
        if outside and not self._outside_fence and self._mode is not GateMode.LAND:
            self._disarm_manual()
            self._stop(Cause.GEOFENCE, outside)
        self._outside_fence = outside

    # Commands.

    def _count(self, refusal: CommandRefusal | None) -> CommandRefusal | None:
        if refusal is not None:
            self._refused += 1
            self._last_refusal = refusal.text
        return refusal

    def _check_identity(self, command: VelocityCommand) -> CommandRefusal | None:
        """Fresh, of this epoch, in order."""
        if not math.isfinite(command.stamp_s):
            return CommandRefusal(RefusalKind.NOT_FINITE, f"stamp is {command.stamp_s}")
        if command.epoch != self._epoch:
            return CommandRefusal(RefusalKind.EPOCH, f"epoch {command.epoch}, the gate's is {self._epoch}")
        if command.sequence <= self._sequence:
            text = f"out of order: sequence {command.sequence} after {self._sequence}"
            return CommandRefusal(RefusalKind.OUT_OF_ORDER, text)
        age = self._now - command.stamp_s
        if age > COMMAND_MAX_AGE_S:
            return CommandRefusal(RefusalKind.TOO_OLD, f"{age:.2f} s old, allowed {COMMAND_MAX_AGE_S:g} s")
        if self._state is not None:
            ahead = command.stamp_s - self._state.odometry.stamp_s
            if ahead > STAMP_TOLERANCE_S:
                text = f"stamp is {ahead:.3f} s ahead of the newest odometry: it is no echo"
                return CommandRefusal(RefusalKind.NO_ECHO, text)
        return None

    def _check_manual(self, stamp_s: float, twist: Twist, now: float) -> CommandRefusal | None:
        """Armed, fresh, in order, and through zero first."""
        if not self._manual:
            return CommandRefusal(RefusalKind.MANUAL, "cmd_vel is not armed")
        if not math.isfinite(stamp_s) or stamp_s <= self._manual_stamp_s:
            text = f"cmd_vel out of order: stamp {stamp_s} after {self._manual_stamp_s}"
            return CommandRefusal(RefusalKind.OUT_OF_ORDER, text)
        age = now - stamp_s
        if not -JOYSTICK_AHEAD_S <= age <= COMMAND_MAX_AGE_S:
            return CommandRefusal(RefusalKind.TOO_OLD, f"cmd_vel is {age:.2f} s old by this machine's clock")
        if not self._manual_neutral and not twist.is_hover:
            return CommandRefusal(
                RefusalKind.MANUAL, "cmd_vel must pass through zero before it moves the vehicle"
            )
        return None

    def _check_motion(self, twist: Twist) -> CommandRefusal | None:
        linear, angular = tuple(twist.linear), tuple(twist.angular)
        if not twist.is_finite:
            return CommandRefusal(RefusalKind.NOT_FINITE, f"not finite: linear {linear}, angular {angular}")
        if twist.angular.x != 0.0 or twist.angular.y != 0.0:
            return CommandRefusal(RefusalKind.AXIS, f"roll or pitch rate is not zero: angular {angular}")
        return None

    def _check_state(self, twist: Twist) -> CommandRefusal | None:
        """Whether the vehicle can carry it out now."""
        if self._mode in (GateMode.LAND, GateMode.EMERGENCY):
            return CommandRefusal(RefusalKind.MODE, f"{self._mode.name}: {self._reason}")
        # The joystick's pilot stands beside the drone and needs no link.
        blocking = [
            reason
            for source, reason in self._faults.items()
            if not (self._manual and source is FaultSource.LINK)
        ]
        if blocking:
            return CommandRefusal(RefusalKind.FAULT, f"fault: {'; '.join(blocking)}")
        state = self._state
        assert state is not None  # or VEHICLE were a fault
        if twist.is_hover:
            return None
        if self.taking_off:
            return CommandRefusal(RefusalKind.TAKING_OFF, "taking off: only hover is accepted")
        if state.landed:
            return CommandRefusal(RefusalKind.LANDED, "on the ground: take off first")
        if not state.api_control:
            return CommandRefusal(RefusalKind.API_CONTROL, "API control is off: enable it first")
        if self._outside_fence and self._inside_fence(twist.linear, state.odometry) != twist.linear:
            return CommandRefusal(RefusalKind.GEOFENCE, f"{self._outside_fence}: only the way back is open")
        return None

    def _check_take_off(self, altitude_m: float) -> CommandRefusal | None:
        if not math.isfinite(altitude_m) or not 0.5 <= altitude_m <= self.limits.fence_altitude_m:
            allowed = f"0.5 to {self.limits.fence_altitude_m:g} m"
            return CommandRefusal(
                RefusalKind.ALTITUDE, f"take-off altitude is {altitude_m} m, must be {allowed}"
            )
        if self._mode not in (GateMode.HOLD, GateMode.ACTIVE):
            return CommandRefusal(RefusalKind.MODE, f"cannot take off: {self._mode.name}, {self._reason}")
        if self._faults:
            return CommandRefusal(RefusalKind.FAULT, f"cannot take off: {self.fault}")
        state = self._state
        assert state is not None  # or VEHICLE were a fault
        if not state.api_control:
            return CommandRefusal(RefusalKind.API_CONTROL, "cannot take off: API control is off")
        if not state.landed and state.odometry.position.z > self._altitude(altitude_m) - TAKE_OFF_REACHED_M:
            return CommandRefusal(RefusalKind.AIRBORNE, "cannot take off: already in the air")
        return None

    def _altitude(self, above_ground_m: float) -> float:
        """In odom, m; below everything while the ground's altitude is unknown."""
        return above_ground_m + (self._ground if self._ground is not None else -math.inf)

    def _check_landing(self) -> CommandRefusal | None:
        if self._mode is GateMode.EMERGENCY:
            return CommandRefusal(RefusalKind.MODE, "cannot land: EMERGENCY, reset the stop first")
        if FaultSource.VEHICLE in self._faults:
            return CommandRefusal(RefusalKind.FAULT, f"cannot land: {self.fault}")
        assert self._state is not None
        if self._state.landed:
            return CommandRefusal(RefusalKind.LANDED, "cannot land: already on the ground")
        if not self._state.api_control:
            return CommandRefusal(RefusalKind.API_CONTROL, "cannot land: API control is off")
        return None

    def _take(self, twist: Twist, source: str) -> None:
        self._command_at = self._now
        if self.taking_off:
            return
        self._twist = twist
        if self._mode is not GateMode.ACTIVE:
            self._output = ZERO
            self._go(GateMode.ACTIVE, Cause.COMMAND, f"{source} accepted")

    # Velocities.

    def _wanted(self) -> tuple[Vector, float]:
        """What the mode asks for: velocity and yaw rate."""
        limits = self.limits
        if self._mode is GateMode.LAND:
            return Vector(0.0, 0.0, -limits.land_speed), 0.0
        if self._mode is not GateMode.ACTIVE:
            return ZERO, 0.0
        if self._take_off_to is not None and self._state is not None:
            climb = TAKE_OFF_GAIN * (self._take_off_to - self._state.odometry.position.z)
            return Vector(0.0, 0.0, min(max(climb, TAKE_OFF_CREEP_M_S), limits.take_off_speed)), 0.0
        if self._twist is None:
            return ZERO, 0.0
        yaw_rate = self._twist.angular.z
        return self._twist.linear, min(max(yaw_rate, -limits.max_yaw_rate), limits.max_yaw_rate)

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
        if self._mode is GateMode.LAND:
            return target
        target = self._inside_fence(target, self._state.odometry)
        return self._reflex.limit(target, now) if self._reflex is not None else target

    def _inside_fence(self, velocity: Vector, odometry: Odometry) -> Vector:
        """`velocity` less whatever of it could not be stopped before the fence."""
        limits = self.limits

        def allowed(distance_m: float) -> float:
            return speed_that_stops(distance_m, limits.fence_deceleration, limits.fence_latency_s)

        up = min(velocity.z, allowed(limits.fence_altitude_m - odometry.position.z))
        east, north, _ = odometry.position
        radius = math.hypot(east, north)
        if radius < 1e-6:
            return velocity._replace(z=up)
        # The unit vector away from the origin, in the body's frame.
        bearing = math.atan2(north, east) - odometry.yaw
        ox, oy = math.cos(bearing), math.sin(bearing)
        excess = velocity.x * ox + velocity.y * oy - allowed(limits.fence_radius_m - radius)
        if excess <= 0.0:
            return velocity._replace(z=up)
        return Vector(velocity.x - excess * ox, velocity.y - excess * oy, up)
