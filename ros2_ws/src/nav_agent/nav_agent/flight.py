"""What each tool does with the drone: velocities streamed by odometry to a target pose, then hover until it stands.

Every motion is the same loop: fly to a point and a heading. What differs is the point. A motion is broken off, always
into hover, when the gate's epoch changes, on a contact, when it gets no further, when the memory that is to decide next
dies, or when the goal is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nav_agent import toolset
from nav_agent.outcome import MissionOver, Outcome
from nav_agent.ports import Depth, Drone, Flying, Gate, Memory, Odometry, Pending, Reply, Velocity
from nav_agent.streamer import CommandStreamer
from nav_common.clock import Clock
from nav_common.frames import wrap_angle


@dataclass(frozen=True)
class FlightSettings:
    """Speeds are the mission's defaults; the rest was chosen for a drone that follows velocities with a lag of about
    0.4 s."""

    speed_m_s: float = 2.0
    vertical_speed_m_s: float = 1.0
    yaw_rate_rad_s: float = math.radians(30.0)
    # Standing still: slower than this by odometry.
    still_m_s: float = 0.15
    still_rad_s: float = 0.05
    # A drone that never gets that slow (wind) is taken as it is after this long.
    settle_s: float = 4.0
    # Hover after each quarter turn of look_around: one frame interval of the memory (0.5 s) and the way there.
    look_s: float = 0.7
    # Free distance left before an obstacle that fly_towards points at; a little under the 2 m that count as reached.
    standoff_m: float = 1.5
    # No tool flies lower above the start: a drone that touches the ground has landed, and its goal is over.
    lowest_m: float = 0.7
    # Odometry older than this is an outage, and one that lasts longer than the patience ends the goal.
    odometry_timeout_s: float = 1.0
    patience_s: float = 30.0
    take_off_s: float = 30.0


PERIOD_S = 0.05
_POSITION_GAIN = 1.2  # 1/s; with a lag of 0.4 s the approach is well damped
_YAW_GAIN = 2.0
_ARRIVED_M = 0.15
_ARRIVED_RAD = math.radians(2.5)
# Less progress than this within this time is none.
_STALL_M, _STALL_RAD, _STALL_S = 0.1, math.radians(3.0), 2.0
_STALE_IN_MOTION_S = 0.5  # the age at which the gate refuses a command
_STATE_LATE_S = 0.5  # the state is sent at 10 Hz
_GRACE_S = 0.5  # the gate needs a few commands to become active
_PATCH = 0.03  # of the picture's width and height, around the point whose depth is asked


@dataclass(frozen=True)
class Performed:
    """What a tool call came to: its result line, metres moved, radians turned (absolute)."""

    line: str
    moved_m: float = 0.0
    turned_rad: float = 0.0


class Body(Protocol):
    """What a mission moves: the drone, or the record of what would have been moved."""

    def take_off(self) -> None:
        """Return in the air."""
        ...

    def barrier(self) -> float:
        """Hover, ready and still; then the stamp that a frame must not be older than. Fixes the epoch of the motion
        that follows."""
        ...

    def perform(self, name: str, arguments: Mapping[str, int | str]) -> Performed:
        """Carry out a call with valid arguments; hovers and stands still on return."""
        ...

    def pause(self, duration_s: float) -> None:
        """Let time pass. Raises MissionOver when the goal is over."""
        ...

    def end(self) -> None:
        """The goal is over: hover."""
        ...

    def only_hover_since(self, time_s: float) -> bool: ...

    def edge_time(self) -> float:
        """About now on the edge's clock, from the newest odometry and its age; 0 while unknown."""
        ...

    @property
    def path_m(self) -> float: ...

    @property
    def collisions(self) -> int: ...


class Flight:
    """One goal's hold on the drone. `check` raises MissionOver when the goal is over; `waiting` is told of outages."""

    def __init__(
        self,
        drone: Drone,
        memory: Memory,
        streamer: CommandStreamer,
        permit: int,
        clock: Clock,
        settings: FlightSettings,
        check: Callable[[], None],
        waiting: Callable[[str], None],
    ) -> None:
        self._drone = drone
        self._memory = memory
        self._streamer = streamer
        self._permit = permit
        self._clock = clock
        self._settings = settings
        self._check = check
        self._waiting = waiting
        self._epoch = 0
        self._still_since: float | None = None
        self._path_m = 0.0
        self._at = drone.odometry()
        status = drone.status()
        self._collisions_before = status.collision_count if status else 0

    @property
    def path_m(self) -> float:
        return self._path_m

    @property
    def collisions(self) -> int:
        status = self._drone.status()
        return max(0, status.collision_count - self._collisions_before) if status else 0

    def only_hover_since(self, time_s: float) -> bool:
        return self._streamer.only_hover_since(time_s)

    def edge_time(self) -> float:
        odometry = self._drone.odometry()
        return odometry.stamp + self._drone.odometry_age() if odometry else 0.0

    def end(self) -> None:
        self._streamer.revoke(self._permit)

    def pause(self, duration_s: float) -> None:
        _pause(self._clock, duration_s, self._look)

    def _look(self) -> None:
        self._check()
        odometry = self._drone.odometry()
        if odometry is None:
            return
        if self._at is not None:
            self._path_m += _distance(self._at, odometry)
        self._at = odometry
        if not self._is_still(odometry):
            self._still_since = None

    # Ready.

    def take_off(self) -> None:
        end = self._clock.now() + self._settings.take_off_s
        pending: Pending[Reply] | None = None
        refused_since: float | None = None
        while True:
            status = self._drone.status()
            flying = status.flying if status else Flying.UNKNOWN
            if flying is Flying.AIRBORNE:
                return
            # A take-off that somebody has begun already, such as a goal cancelled meanwhile, is only awaited.
            if pending is None and flying is not Flying.TAKING_OFF:
                pending = self._drone.take_off()
            reply = pending.poll() if pending is not None else None
            now = self._clock.now()
            if reply is not None and not reply.ok and flying is not Flying.TAKING_OFF:
                # "Already in the air", perhaps: the state that says so may come later than the reply.
                refused_since = now if refused_since is None else refused_since
                if now - refused_since > _STATE_LATE_S:
                    raise MissionOver(Outcome.DRONE_LOST, f"take-off failed: {reply.message}")
            if now > end:
                fault = f": {status.fault}" if status and status.fault else ""
                raise MissionOver(
                    Outcome.DRONE_LOST, f"not in the air after {self._settings.take_off_s:g} s{fault}"
                )
            self.pause(PERIOD_S)

    def barrier(self) -> float:
        while True:
            self._wait_until_ready()
            if self._still_since is None:
                self._stand_still()
            status = self._drone.status()
            if self._trouble() is None and status is not None and self._still_since is not None:
                self._epoch = status.epoch
                return self._still_since

    def _wait_until_ready(self) -> None:
        began = self._clock.now()
        while (trouble := self._trouble()) is not None:
            outcome, words = trouble
            waited = self._clock.now() - began
            if waited > self._settings.patience_s:
                raise MissionOver(outcome, f"{words}, for {waited:.0f} s")
            if waited > _GRACE_S:
                self._waiting(words)
            self._still_since = None
            self.pause(PERIOD_S)

    def _trouble(self) -> tuple[Outcome, str] | None:
        """Why no decision could be flown at present."""
        status, age = self._drone.status(), self._drone.odometry_age()
        if age > self._settings.odometry_timeout_s:
            return Outcome.LINK_LOST, "no odometry"
        if status is None or not status.connected:
            return Outcome.DRONE_LOST, f"drone not connected: {status.fault if status else 'no state'}"
        if status.flying in (Flying.LANDED, Flying.LANDING):
            return Outcome.DRONE_LOST, f"the drone is {status.flying.name.lower()}"
        if not status.api_control:
            return Outcome.DRONE_LOST, "API control is off: somebody else flies"
        if status.gate is not Gate.ACTIVE:
            return Outcome.DRONE_LOST, f"the gate is in {status.gate.name}: {status.gate_reason}"
        return None

    def _stand_still(self) -> None:
        """Hover until a new odometry shows standstill; its stamp is the end of the motion."""
        self._streamer.hover(self._permit)
        began, before = self._clock.now(), self._drone.odometry()
        while True:
            self.pause(PERIOD_S / 5)
            odometry = self._drone.odometry()
            if odometry is None or (before is not None and odometry.stamp <= before.stamp):
                if self._clock.now() - began > self._settings.settle_s:
                    return  # no odometry at all: `_trouble` has the word
                continue
            if self._is_still(odometry) or self._clock.now() - began > self._settings.settle_s:
                self._still_since = odometry.stamp
                return

    def _is_still(self, odometry: Odometry) -> bool:
        settings = self._settings
        return odometry.speed < settings.still_m_s and abs(odometry.yaw_rate) < settings.still_rad_s

    # Tools.

    def perform(self, name: str, arguments: Mapping[str, int | str]) -> Performed:
        start = self._drone.odometry()
        if start is None:
            return Performed(toolset.result_line(toolset.flew(0.0), toolset.STOPPED_BY_GATE))
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

    def _fly(self, start: Odometry, yaw: float, slope: float, distance_m: float) -> Performed:
        """Straight along a ray: heading `yaw`, rising by `slope` rad."""
        level = distance_m * math.cos(slope)
        target = (
            start.x + level * math.cos(yaw),
            start.y + level * math.sin(yaw),
            max(start.z + distance_m * math.sin(slope), min(start.z, self._settings.lowest_m)),
        )
        stop = self._go(target, yaw)
        end = self._settle()
        moved = _distance(start, end)
        return Performed(toolset.result_line(toolset.flew(moved), stop), moved)

    def _rise(self, start: Odometry, up_m: float) -> Performed:
        target = max(start.z + up_m, min(start.z, self._settings.lowest_m))
        stop = self._go((start.x, start.y, target), start.yaw)
        if not stop and target > start.z + up_m:
            stop = toolset.LOWEST
        end = self._settle()
        # "climbed 0 m" when it could not, never "descended" by a centimetre of drift.
        moved = math.copysign(max(0.0, math.copysign(1.0, up_m) * (end.z - start.z)), up_m)
        return Performed(toolset.result_line(toolset.climbed(moved), stop), abs(moved))

    def _turn(self, start: Odometry, left_rad: float) -> Performed:
        stop = self._go((start.x, start.y, start.z), start.yaw + left_rad)
        end = self._settle()
        turned = wrap_angle(end.yaw - start.yaw)
        shown = turned if abs(turned) > math.radians(2.5) else math.copysign(0.0, left_rad)
        return Performed(toolset.result_line(toolset.turned(shown), stop), turned_rad=abs(turned))

    def _hover(self, seconds: float) -> Performed:
        self._streamer.hover(self._permit)
        self.pause(seconds)
        self._settle()
        return Performed(toolset.hovered(seconds))

    def _look_around(self, start: Odometry) -> Performed:
        for quarters in range(1, 5):
            stop = self._go((start.x, start.y, start.z), start.yaw + quarters * math.pi / 2)
            end = self._settle()
            if stop:
                turned = wrap_angle(end.yaw - start.yaw)
                return Performed(toolset.result_line(toolset.turned(turned), stop), turned_rad=abs(turned))
            self.pause(self._settings.look_s)
        # All the way round is where it began: no progress by itself.
        return Performed(toolset.LOOKED_AROUND)

    def _fly_towards(self, start: Odometry, u: float, v: float, distance_m: float) -> Performed:
        camera = self._drone.camera()
        if camera is None:
            return Performed(toolset.result_line(toolset.flew(0.0), "camera unknown"))
        right, down = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
        bearing, slope = -math.atan(right), -math.atan2(down, math.hypot(1.0, right))
        depth = self._fresh_depth()
        free = math.inf
        if depth is not None:
            free = _depth_at(depth, u, v) * math.hypot(1.0, right, down) - self._settings.standoff_m
        turn = ""
        turned = 0.0
        if abs(bearing) > _ARRIVED_RAD:
            stop = self._go((start.x, start.y, start.z), start.yaw + bearing)
            end = self._settle()
            turned = wrap_angle(end.yaw - start.yaw)
            turn = toolset.turned(turned)
            if stop:
                return Performed(toolset.result_line(turn, stop), turned_rad=abs(turned))
        reach = max(0.0, min(distance_m, free))
        flown = self._fly(self._newest(), start.yaw + bearing, slope, reach)
        shortened = toolset.SHORTENED if reach < distance_m else ""
        return Performed(toolset.result_line(turn, flown.line, shortened), flown.moved_m, abs(turned))

    def _fresh_depth(self) -> Depth | None:
        """A depth picture taken since the drone stands still, if the camera delivers any."""
        end = self._clock.now() + 1.0
        while (depth := self._drone.depth()) is not None:
            if self._still_since is not None and depth.stamp >= self._still_since:
                return depth
            if self._clock.now() > end:
                return None
            self.pause(PERIOD_S)
        return None

    # Motion.

    def _go(self, target: tuple[float, float, float], yaw: float) -> str:
        """Fly to a point and heading of the odometry frame. "" on arrival, otherwise why it was broken off."""
        settings = self._settings
        start, status = self._newest(), self._drone.status()
        contacts = status.collision_count if status else 0
        reflexes = status.reflex_interventions if status else 0
        began = progressed = self._clock.now()
        length = math.dist((start.x, start.y, start.z), target)
        limit_s = 5.0 + 2.0 * (
            length / min(settings.speed_m_s, settings.vertical_speed_m_s)
            + abs(wrap_angle(yaw - start.yaw)) / settings.yaw_rate_rad_s
        )
        best_m, best_rad = math.inf, math.inf
        while True:
            odometry, status, now = self._newest(), self._drone.status(), self._clock.now()
            if (
                status is None
                or status.epoch != self._epoch
                or self._drone.odometry_age() > _STALE_IN_MOTION_S
            ):
                return toolset.STOPPED_BY_GATE
            if status.collision_count != contacts:
                return toolset.COLLISION
            if not self._memory.alive():
                return toolset.MEMORY_LOST
            offset = (target[0] - odometry.x, target[1] - odometry.y, target[2] - odometry.z)
            error_m, error_rad = math.hypot(*offset), wrap_angle(yaw - odometry.yaw)
            if error_m < _ARRIVED_M and abs(error_rad) < _ARRIVED_RAD:
                return ""
            if error_m < best_m - _STALL_M or abs(error_rad) < best_rad - _STALL_RAD:
                best_m, best_rad, progressed = error_m, abs(error_rad), now
            if now - progressed > _STALL_S or now - began > limit_s:
                reflex = status.reflex_reason or status.reflex_interventions != reflexes
                return toolset.STOPPED_BY_REFLEX if reflex else toolset.TIMED_OUT
            self._streamer.move(self._permit, self._velocity(offset, error_rad, odometry.yaw), self._epoch)
            self.pause(PERIOD_S)

    def _velocity(self, offset: tuple[float, float, float], error_rad: float, heading: float) -> Velocity:
        """Proportional to the distance left, within the speed limits, in the body's frame."""
        settings = self._settings
        east, north, up = (_POSITION_GAIN * value for value in offset)
        scale = min(
            1.0,
            settings.speed_m_s / max(math.hypot(east, north), 1e-9),
            settings.vertical_speed_m_s / max(abs(up), 1e-9),
        )
        yaw_rate = max(-settings.yaw_rate_rad_s, min(settings.yaw_rate_rad_s, _YAW_GAIN * error_rad))
        cos, sin = math.cos(heading), math.sin(heading)
        return Velocity(
            forward=scale * (east * cos + north * sin),
            left=scale * (north * cos - east * sin),
            up=scale * up,
            yaw_rate=yaw_rate,
        )

    def _settle(self) -> Odometry:
        self._still_since = None
        self._stand_still()
        return self._newest()

    def _newest(self) -> Odometry:
        odometry = self._drone.odometry()
        assert odometry is not None, "a flight begins with odometry, and the newest is kept"
        return odometry


class DryFlight:
    """Stands in for the drone in a dry run: notes each call, lets the time of a decision pass and reports success."""

    path_m = 0.0
    collisions = 0

    def __init__(self, clock: Clock, check: Callable[[], None], decision_interval_s: float = 5.0) -> None:
        self._clock = clock
        self._check = check
        self._interval_s = decision_interval_s
        self.calls: list[tuple[float, str]] = []
        """When (own clock) which call would have been flown."""

    def take_off(self) -> None:
        """Nothing to do."""

    def barrier(self) -> float:
        """Any frame will do: nothing moves."""
        return 0.0

    def perform(self, name: str, arguments: Mapping[str, int | str]) -> Performed:
        self.calls.append((self._clock.now(), toolset.call_line(name, arguments)))
        self.pause(self._interval_s)
        number = {key: float(value) for key, value in arguments.items() if not isinstance(value, str)}
        match name:
            case "move_forward" | "fly_towards":
                return Performed(toolset.flew(number["distance_m"]), number["distance_m"])
            case "turn_left" | "turn_right":
                left = math.radians(number["angle_deg"]) * (1 if name == "turn_left" else -1)
                return Performed(toolset.turned(left), turned_rad=abs(left))
            case "climb" | "descend":
                up = number["distance_m"] * (1 if name == "climb" else -1)
                return Performed(toolset.climbed(up), abs(up))
            case "hover":
                return Performed(toolset.hovered(number["seconds"]))
        return Performed(toolset.LOOKED_AROUND)

    def pause(self, duration_s: float) -> None:
        _pause(self._clock, duration_s, self._check)

    def end(self) -> None:
        """Nothing to bring to rest."""

    def only_hover_since(self, time_s: float) -> bool:
        return True

    def edge_time(self) -> float:
        return 0.0


def _pause(clock: Clock, duration_s: float, look: Callable[[], None]) -> None:
    """Sleep in short pieces and `look` between them: a cancel must not wait for the end of a pause."""
    end = clock.now() + duration_s
    look()
    while (left := end - clock.now()) > 0:
        clock.sleep(min(PERIOD_S, left))
        look()


def _distance(a: Odometry, b: Odometry) -> float:
    return math.dist((a.x, a.y, a.z), (b.x, b.y, b.z))


def _depth_at(depth: Depth, u: float, v: float) -> float:
    """The nearest distance along the optical axis, m, in a small patch around the point; infinite where nothing is."""
    height, width = depth.metres.shape
    rows = slice(max(0, int((v - _PATCH) * height)), int((v + _PATCH) * height) + 1)
    columns = slice(max(0, int((u - _PATCH) * width)), int((u + _PATCH) * width) + 1)
    patch = depth.metres[rows, columns]
    seen = patch[np.isfinite(patch) & (patch > 0)]
    return float(seen.min()) if seen.size else math.inf
