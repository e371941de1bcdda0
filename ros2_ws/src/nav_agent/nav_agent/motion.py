"""What each tool does with the drone: velocities streamed by odometry to a target pose, then hover until it stands.

Every motion is the same loop: fly to a point and a heading. What differs is the point. A motion is broken off, always
into hover, when the gate's epoch changes, on a contact, when it gets no further, when the process of the memory is lost
that is to decide next, or when the goal is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nav_agent import toolset
from nav_agent.ending import GoalEnded
from nav_agent.ports import Drone, Memory, Pending
from nav_agent.streamer import CommandStreamer
from nav_agent.tool_calling import ToolResult
from nav_common import contract, result_lines
from nav_common.clock import Clock
from nav_common.data import (
    CameraInfo,
    DepthImage,
    FlyingMode,
    GateMode,
    Odometry,
    Outcome,
    ServiceReply,
    Twist,
)
from nav_common.frames import Vector, wrap_angle
from nav_common.result_lines import StopReason


@dataclass(frozen=True)
class MotionSettings:
    """Chosen for a drone that follows velocities with a lag of about 0.4 s, in scenes of tens of metres."""

    speed_m_s: float = 2.0
    vertical_speed_m_s: float = 1.0
    yaw_rate_rad_s: float = math.radians(30.0)
    # A drone that never stands still (wind) is taken as it is after this long.
    settle_s: float = 4.0
    # Hover after each quarter turn of look_around: one frame interval of the memory (0.5 s) and the way there.
    look_s: float = 0.7
    # An outage that lasts longer ends the goal.
    outage_timeout_s: float = contract.OUTAGE_TIMEOUT_S
    take_off_s: float = 30.0


PERIOD_S = contract.COMMAND_PERIOD_S
_STANDSTILL_PERIOD_S = 0.02  # odometry comes at 30 Hz
_POSITION_GAIN = 1.2  # 1/s; with a lag of 0.4 s the approach is well damped
_YAW_GAIN = 2.0
_ARRIVED_M = 0.15
_ARRIVED_RAD = math.radians(2.5)
# Less progress than this within this time is none.
_STALL_M, _STALL_RAD, _STALL_S = 0.1, math.radians(3.0), 2.0
_STATE_LATE_S = 5 * contract.STATE_PERIOD_S
_GRACE_S = 0.5  # the gate needs a few commands to become active
_PATCH = 0.03  # of the picture's width and height, around the point whose depth is asked
_DEPTH_WAIT_S = 1.0


class FlightControl(Protocol):
    """What a mission moves: the drone, or the record of what would have been moved."""

    def take_off(self) -> None:
        """Return in the air."""
        ...

    def barrier(self) -> float:
        """Hover, ready and still; then the stamp that a frame must not be older than. Fixes the epoch and the settings
        of the motion that follows."""
        ...

    def perform(self, name: str, arguments: Mapping[str, toolset.Value]) -> ToolResult:
        """Carry out a call with valid arguments; hovers and stands still on return."""
        ...

    def pause(self, duration_s: float) -> None:
        """Let time pass. Raises GoalEnded when the goal is over."""
        ...

    def end(self) -> None:
        """The goal is over: hover."""
        ...

    def only_hover_since(self, time_s: float) -> bool:
        """Whether every command sent after `time_s` (the agent's clock) was hover."""
        ...

    def edge_time_s(self) -> float:
        """About now on the edge's clock, from the newest odometry and its age; 0 while unknown."""
        ...

    def odometry_age_s(self) -> float:
        """Negative while there is none."""
        ...

    @property
    def path_m(self) -> float:
        """The length of the path flown."""
        ...

    @property
    def collisions(self) -> int:
        """Counted since the goal began."""
        ...


class MotionExecutor:
    """One goal's hold on the drone. `check` raises GoalEnded when the goal is over; `on_outage` gets its reason."""

    def __init__(
        self,
        drone: Drone,
        memory: Memory,
        streamer: CommandStreamer,
        permit: int,
        clock: Clock,
        settings: Callable[[], MotionSettings],
        check: Callable[[], None],
        on_outage: Callable[[str], None],
    ) -> None:
        self._drone = drone
        self._memory = memory
        self._streamer = streamer
        self._permit = permit
        self._clock = clock
        self._read_settings = settings
        self._settings = settings()
        self._check = check
        self._on_outage = on_outage
        self._epoch = 0
        self._still_since_s: float | None = None
        self._path_m = 0.0
        self._last = drone.odometry()
        state = drone.state()
        self._collisions_before = state.collision_count if state else 0

    @property
    def path_m(self) -> float:
        return self._path_m

    @property
    def collisions(self) -> int:
        state = self._drone.state()
        return max(0, state.collision_count - self._collisions_before) if state else 0

    def only_hover_since(self, time_s: float) -> bool:
        return self._streamer.only_hover_since(time_s)

    def edge_time_s(self) -> float:
        odometry = self._drone.odometry()
        return odometry.stamp_s + self._drone.odometry_age_s() if odometry else 0.0

    def odometry_age_s(self) -> float:
        age_s = self._drone.odometry_age_s()
        return age_s if math.isfinite(age_s) else -1.0

    def end(self) -> None:
        self._streamer.revoke(self._permit)

    def pause(self, duration_s: float) -> None:
        pause(self._clock, duration_s, self._observe)

    def _observe(self) -> None:
        self._check()
        odometry = self._drone.odometry()
        if odometry is None:
            return
        if self._last is not None:
            self._path_m += math.dist(self._last.position, odometry.position)
        self._last = odometry
        if not _is_still(odometry):
            self._still_since_s = None

    # Ready.

    def take_off(self) -> None:
        end_s = self._clock.now() + self._settings.take_off_s
        pending: Pending[ServiceReply] | None = None
        reply: ServiceReply | None = None
        refused_since_s: float | None = None
        while True:
            state = self._drone.state()
            flying = state.flying_mode if state else FlyingMode.UNKNOWN
            if flying is FlyingMode.AIRBORNE:
                return
            # A take-off that somebody has begun already, such as a goal cancelled meanwhile, is only awaited.
            if pending is None and flying is not FlyingMode.TAKING_OFF:
                pending = self._drone.take_off()
            if pending is not None and reply is None:
                reply = pending.wait(0.0)
            now_s = self._clock.now()
            if reply is not None and not reply.success and flying is not FlyingMode.TAKING_OFF:
                # "Already in the air", perhaps: the state that says so may come later than the reply.
                refused_since_s = now_s if refused_since_s is None else refused_since_s
                if now_s - refused_since_s > _STATE_LATE_S:
                    raise GoalEnded(Outcome.DRONE_LOST, f"take-off failed: {reply.message}")
            if now_s > end_s:
                fault = f": {state.fault}" if state and state.fault else ""
                limit = f"not in the air after {self._settings.take_off_s:g} s{fault}"
                raise GoalEnded(Outcome.DRONE_LOST, limit)
            self.pause(PERIOD_S)

    def barrier(self) -> float:
        while True:
            self._wait_until_ready()
            if self._still_since_s is None:
                self._stand_still()
            state = self._drone.state()
            if self._outage() is None and state is not None and self._still_since_s is not None:
                self._epoch = state.epoch
                self._settings = self._read_settings()
                return self._still_since_s

    def _wait_until_ready(self) -> None:
        began_s = self._clock.now()
        while (outage := self._outage()) is not None:
            outcome, reason = outage
            waited_s = self._clock.now() - began_s
            if waited_s > self._settings.outage_timeout_s:
                raise GoalEnded(outcome, f"{reason}, for {waited_s:.0f} s")
            if waited_s > _GRACE_S:
                self._on_outage(reason)
            self._still_since_s = None
            self.pause(PERIOD_S)

    def _outage(self) -> tuple[Outcome, str] | None:
        """Why no decision could be flown at present."""
        state = self._drone.state()
        if self._drone.odometry_age_s() > contract.ODOMETRY_TIMEOUT_S:
            return Outcome.LINK_LOST, "no odometry"
        if state is None or not state.connected:
            return Outcome.DRONE_LOST, f"drone not connected: {state.fault if state else 'no state'}"
        if state.flying_mode in (FlyingMode.LANDED, FlyingMode.LANDING):
            return Outcome.DRONE_LOST, f"the drone is {state.flying_mode.name.lower()}"
        if not state.api_control:
            return Outcome.DRONE_LOST, "API control is off: somebody else flies"
        if state.gate_mode is not GateMode.ACTIVE:
            return Outcome.DRONE_LOST, f"the gate is in {state.gate_mode.name}: {state.gate_reason}"
        return None

    def _stand_still(self) -> None:
        """Hover until a new odometry shows standstill; its stamp is the end of the motion."""
        self._streamer.hover(self._permit)
        began_s, before = self._clock.now(), self._drone.odometry()
        while True:
            self.pause(_STANDSTILL_PERIOD_S)
            odometry = self._drone.odometry()
            waited_s = self._clock.now() - began_s
            if odometry is None or (before is not None and odometry.stamp_s <= before.stamp_s):
                if waited_s > self._settings.settle_s:
                    return  # no odometry at all: `_outage` says so
                continue
            if _is_still(odometry) or waited_s > self._settings.settle_s:
                self._still_since_s = odometry.stamp_s
                return

    # Tools.

    def perform(self, name: str, arguments: Mapping[str, toolset.Value]) -> ToolResult:
        start = self._drone.odometry()
        if start is None:
            return ToolResult(result_lines.result_line(result_lines.flew(0.0), StopReason.GATE))
        number = {key: float(value) for key, value in arguments.items() if not isinstance(value, str)}
        try:
            match name:
                case "move_forward":
                    return self._fly(start, start.yaw, 0.0, number["distance_m"])
                case "turn_left":
                    return self._turn(start, math.radians(number["angle_deg"]))
                case "turn_right":
                    return self._turn(start, -math.radians(number["angle_deg"]))
                case "climb":
                    return self._rise(start, number["distance_m"])
                case "descend":
                    return self._rise(start, -number["distance_m"])
                case "hover":
                    return self._hover(number["seconds"])
                case "look_around":
                    return self._look_around(start)
                case "fly_towards":
                    return self._fly_towards(
                        start, number["u"] / 1000, number["v"] / 1000, number["distance_m"]
                    )
            raise ValueError(f"no motion for tool {name!r}")
        finally:
            self._streamer.hover(self._permit)

    def _fly(self, start: Odometry, yaw: float, slope: float, distance_m: float) -> ToolResult:
        """Straight along a ray: heading `yaw`, rising by `slope` rad."""
        level_m = distance_m * math.cos(slope)
        x, y, z = start.position
        target = Vector(
            x + level_m * math.cos(yaw),
            y + level_m * math.sin(yaw),
            max(z + distance_m * math.sin(slope), min(z, contract.LOWEST_ALTITUDE_M)),
        )
        stop = self._go(target, yaw)
        end = self._settle()
        moved_m = math.dist(start.position, end.position)
        return ToolResult(result_lines.result_line(result_lines.flew(moved_m), stop), moved_m)

    def _rise(self, start: Odometry, up_m: float) -> ToolResult:
        z = start.position.z
        target_z = max(z + up_m, min(z, contract.LOWEST_ALTITUDE_M))
        stop = self._go(start.position._replace(z=target_z), start.yaw)
        lowest = result_lines.LOWEST if stop is None and target_z > z + up_m else ""
        end = self._settle()
        # "climbed 0 m" when it could not, never "descended" by a centimetre of drift.
        moved_m = math.copysign(max(0.0, math.copysign(1.0, up_m) * (end.position.z - z)), up_m)
        return ToolResult(result_lines.result_line(result_lines.climbed(moved_m), stop, lowest), abs(moved_m))

    def _turn(self, start: Odometry, left_rad: float) -> ToolResult:
        stop = self._go(start.position, start.yaw + left_rad)
        end = self._settle()
        turned_rad = wrap_angle(end.yaw - start.yaw)
        shown_rad = turned_rad if abs(turned_rad) > _ARRIVED_RAD else math.copysign(0.0, left_rad)
        return ToolResult(
            result_lines.result_line(result_lines.turned(shown_rad), stop), turned_rad=abs(turned_rad)
        )

    def _hover(self, seconds: float) -> ToolResult:
        self._streamer.hover(self._permit)
        self.pause(seconds)
        self._settle()
        return ToolResult(result_lines.hovered(seconds))

    def _look_around(self, start: Odometry) -> ToolResult:
        for quarters in range(1, 5):
            stop = self._go(start.position, start.yaw + quarters * math.pi / 2)
            end = self._settle()
            if stop is not None:
                turned_rad = wrap_angle(end.yaw - start.yaw)
                line = result_lines.result_line(result_lines.turned(turned_rad), stop)
                return ToolResult(line, turned_rad=abs(turned_rad))
            self.pause(self._settings.look_s)
        # All the way round is where it began: no progress by itself.
        return ToolResult(result_lines.LOOKED_AROUND)

    def _fly_towards(self, start: Odometry, u: float, v: float, distance_m: float) -> ToolResult:
        """`u`, `v`: a point of the picture, in fractions of its width and height."""
        camera = self._drone.camera()
        if camera is None:
            return ToolResult(result_lines.result_line(result_lines.flew(0.0), result_lines.CAMERA_UNKNOWN))
        right, down = _ray(camera, u, v)
        bearing, slope = -math.atan(right), -math.atan2(down, math.hypot(1.0, right))
        depth = self._fresh_depth()
        free_m = math.inf
        if depth is not None:
            free_m = _depth_at(depth, u, v) * math.hypot(1.0, right, down) - contract.OBSTACLE_STANDOFF_M
        turn_line, turned_rad = "", 0.0
        if abs(bearing) > _ARRIVED_RAD:
            stop = self._go(start.position, start.yaw + bearing)
            end = self._settle()
            turned_rad = wrap_angle(end.yaw - start.yaw)
            turn_line = result_lines.turned(turned_rad)
            if stop is not None:
                return ToolResult(result_lines.result_line(turn_line, stop), turned_rad=abs(turned_rad))
        reach_m = max(0.0, min(distance_m, free_m))
        flown = self._fly(self._newest(), start.yaw + bearing, slope, reach_m)
        shortened = result_lines.SHORTENED if reach_m < distance_m else ""
        line = result_lines.result_line(turn_line, flown.line, shortened)
        return ToolResult(line, flown.moved_m, abs(turned_rad))

    def _fresh_depth(self) -> DepthImage | None:
        """A depth picture taken since the drone stands still, if the camera delivers any."""
        end_s = self._clock.now() + _DEPTH_WAIT_S
        while (depth := self._drone.depth()) is not None:
            if self._still_since_s is not None and depth.stamp_s >= self._still_since_s:
                return depth
            if self._clock.now() > end_s:
                return None
            self.pause(PERIOD_S)
        return None

    # Motion.

    def _go(self, target: Vector, yaw: float) -> StopReason | None:
        """Fly to a point and heading of the world frame. None on arrival, otherwise why it was broken off."""
        settings = self._settings
        start, state = self._newest(), self._drone.state()
        contacts = state.collision_count if state else 0
        reflexes = state.reflex_interventions if state else 0
        began_s = progressed_s = self._clock.now()
        limit_s = 5.0 + 2.0 * (
            math.dist(start.position, target) / min(settings.speed_m_s, settings.vertical_speed_m_s)
            + abs(wrap_angle(yaw - start.yaw)) / settings.yaw_rate_rad_s
        )
        best_m, best_rad = math.inf, math.inf
        while True:
            odometry, state, now_s = self._newest(), self._drone.state(), self._clock.now()
            stale = self._drone.odometry_age_s() > contract.COMMAND_MAX_AGE_S
            if state is None or state.epoch != self._epoch or stale:
                return StopReason.GATE
            if state.collision_count != contacts:
                return StopReason.COLLISION
            if not self._memory.alive():
                return StopReason.MEMORY_LOST
            offset = Vector(*(to - at for to, at in zip(target, odometry.position, strict=True)))
            error_m, error_rad = math.hypot(*offset), wrap_angle(yaw - odometry.yaw)
            if error_m < _ARRIVED_M and abs(error_rad) < _ARRIVED_RAD:
                return None
            if error_m < best_m - _STALL_M or abs(error_rad) < best_rad - _STALL_RAD:
                best_m, best_rad, progressed_s = error_m, abs(error_rad), now_s
            if now_s - progressed_s > _STALL_S or now_s - began_s > limit_s:
                reflex = state.reflex_reason or state.reflex_interventions != reflexes
                return StopReason.REFLEX if reflex else StopReason.TIMED_OUT
            self._streamer.move(self._permit, self._twist(offset, error_rad, odometry.yaw), self._epoch)
            self.pause(PERIOD_S)

    def _twist(self, offset: Vector, error_rad: float, heading: float) -> Twist:
        """Proportional to the distance left, within the speed limits, in the body's frame."""
        settings = self._settings
        east, north, up = (_POSITION_GAIN * value for value in offset)
        scale = min(
            1.0,
            settings.speed_m_s / max(math.hypot(east, north), 1e-9),
            settings.vertical_speed_m_s / max(abs(up), 1e-9),
        )
        cos, sin = math.cos(heading), math.sin(heading)
        return Twist.body(
            forward_m_s=scale * (east * cos + north * sin),
            left_m_s=scale * (north * cos - east * sin),
            up_m_s=scale * up,
            yaw_rate_rad_s=max(-settings.yaw_rate_rad_s, min(settings.yaw_rate_rad_s, _YAW_GAIN * error_rad)),
        )

    def _settle(self) -> Odometry:
        self._still_since_s = None
        self._stand_still()
        return self._newest()

    def _newest(self) -> Odometry:
        odometry = self._drone.odometry()
        assert odometry is not None, "a flight begins with odometry, and the newest is kept"
        return odometry


def pause(clock: Clock, duration_s: float, observe: Callable[[], None]) -> None:
    """Sleep in short pieces and `observe` between them: a cancel must not wait for the end of a pause."""
    end_s = clock.now() + duration_s
    observe()
    while (left_s := end_s - clock.now()) > 0:
        clock.sleep(min(PERIOD_S, left_s))
        observe()


def _is_still(odometry: Odometry) -> bool:
    return odometry.speed < contract.STANDSTILL_M_S and abs(odometry.yaw_rate) < contract.STANDSTILL_RAD_S


def _ray(camera: CameraInfo, u: float, v: float) -> tuple[float, float]:
    """Right and down at unit distance ahead, of the point at these fractions of the picture."""
    return (u * camera.width - camera.cx) / camera.fx, (v * camera.height - camera.cy) / camera.fy


def _depth_at(depth: DepthImage, u: float, v: float) -> float:
    """The nearest distance along the optical axis, m, in a small patch around the point; infinite where nothing is."""
    height, width = depth.depth_m.shape
    rows = slice(max(0, int((v - _PATCH) * height)), int((v + _PATCH) * height) + 1)
    columns = slice(max(0, int((u - _PATCH) * width)), int((u + _PATCH) * width) + 1)
    patch = depth.depth_m[rows, columns]
    seen = patch[np.isfinite(patch) & (patch > 0)]
    return float(seen.min()) if seen.size else math.inf
