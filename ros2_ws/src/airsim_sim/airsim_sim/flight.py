"""The flight controller: AirSim's SimpleFlight as a client sees it. Goals, tasks, time-outs; no physics, no pictures.

All vectors here are AirSim's: north-east-down, metres, metres a second, radians. A motion method starts a Task; the
task sets the goal at every step until it ends. 60 ms after the last goal was set the drone holds its position.
Behaviour after AirSim's MultirotorApiBase and simple_flight, with one difference: when a goal times out SimpleFlight
flies back to where that happened, this one brakes first and then holds where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

GOAL_TIMEOUT_S = 0.060  # simple_flight's api_goal_timeout
TAKEOFF_HEIGHT_M = 2.0
TAKEOFF_SPEED = 0.5  # AirSim's takeoff and goHome
LANDING_SPEED = 0.2  # AirSim's landing_vel_
STILL_SPEED = 0.05  # AirSim's approx_zero_vel_
ARRIVED_M = 0.1  # chosen: closer than a client can tell from the pose it asked for
POSITION_GAIN = 1.5  # 1/s, chosen below the velocity loop's 4/s, so that a hold does not swing
YAW_GAIN = 3.0  # 1/s
YAW_RATE_LIMIT = math.radians(90)  # rad/s, chosen
STICK_SCALE = 10_000.0  # AirSim's kMaxRCValue: a limit of a million is 100 m/s with the stick at 1
MAX_SPEED = 30.0  # m/s, chosen; AirSim's quadrotor does not reach more either

Vector = tuple[float, float, float]


class CallError(ValueError):
    """A call the server refuses; its text is the RPC error."""


class State(NamedTuple):
    """What the controller knows of the drone."""

    time_s: float
    position: Vector
    velocity: Vector
    yaw: float
    on_ground: bool


@dataclass(frozen=True)
class YawMode:
    """AirSim's yaw mode: a rate in degrees a second, or an angle in degrees."""

    is_rate: bool = True
    yaw_or_rate: float = 0.0


@dataclass(frozen=True)
class RemoteControl:
    """Positions of the sticks from -1 to 1, as the client's `moveByRC` set them last."""

    pitch: float = 0.0
    roll: float = 0.0
    throttle: float = 0.0
    yaw: float = 0.0
    is_initialized: bool = False
    is_valid: bool = False


class Demand(NamedTuple):
    """What the controller asks of the physics: velocity (north-east-down) and yaw rate (clockwise from above)."""

    velocity: Vector
    yaw_rate: float
    braking: bool


class Task:
    """A running motion method. `result` is True when it ended as asked, False when cancelled or out of time."""

    def __init__(self, method: str, deadline_s: float, update: Callable[[Task, State], bool | None]) -> None:
        self.method, self.deadline_s = method, deadline_s
        self.done, self.result = False, False
        self._update = update
        self._waiting: list[Callable[[bool], None]] = []

    def on_done(self, callback: Callable[[bool], None]) -> None:
        """Calls `callback(result)` when the task ends, at once if it has."""
        if self.done:
            callback(self.result)
        else:
            self._waiting.append(callback)

    def finish(self, result: bool) -> None:
        """Ends the task; later calls change nothing."""
        if not self.done:
            self.done, self.result = True, result
            for callback in self._waiting:
                callback(result)
            self._waiting.clear()

    def step(self, state: State) -> bool | None:
        """One control step; a bool ends the task with that result."""
        return self._update(self, state)

    def __repr__(self) -> str:
        return f"Task({self.method}, {'done: ' + str(self.result) if self.done else 'running'})"


class FlightController:
    """SimpleFlight's state: API control, arming, landed, the current task and goal."""

    def __init__(self, armed_by_default: bool = True) -> None:
        """`armed_by_default`: who takes API control after the start or a reset finds it armed, as AirSim does."""
        self.api_control = False
        self.armed = False
        self._armed_by_default = self._arms_with_control = armed_by_default
        self.landed = True
        self.task: Task | None = None
        self.remote_control = RemoteControl()
        self._forget_goal()

    def _forget_goal(self) -> None:
        self._velocity: Vector = (0.0, 0.0, 0.0)
        self._yaw = YawMode()
        self._goal_time_s = -math.inf
        self._hold: Vector | None = None
        self._hold_yaw: float | None = None
        self._still_since_s: float | None = None

    def reset(self) -> None:
        """After `reset`: no API control, armed as at the start, landed, the task cancelled."""
        self.cancel()
        self.api_control = self.armed = False
        self._arms_with_control = self._armed_by_default
        self.landed = True
        self.remote_control = RemoteControl()
        self._forget_goal()

    def teleported(self) -> None:
        """The drone was put elsewhere: hold there."""
        self._hold = self._hold_yaw = None

    def cancel(self) -> None:
        """Ends the running task, which answers False."""
        if self.task is not None:
            task, self.task = self.task, None
            task.finish(False)

    def start(self, task: Task) -> Task:
        """Makes it the running task, cancelling the one before."""
        self.cancel()
        if not task.done:
            self.task = task
        return task

    def enable_api_control(self, enabled: bool) -> None:
        """Takes API control, or gives it back, which cancels the running task."""
        self.api_control = enabled
        if not enabled:
            self.cancel()
        elif self._arms_with_control:
            self.armed, self._arms_with_control = True, False

    def arm(self, armed: bool) -> bool:
        """Arms or disarms. As in SimpleFlight: False without API control, or for disarming what is not armed."""
        if not self.api_control or not (armed or self.armed):
            return False
        self.armed, self._arms_with_control = armed, False
        return True

    def update(self, state: State) -> Demand:
        """One control step: lets the task set its goal, then says what velocity and yaw rate to fly."""
        if self.task is not None:
            task = self.task
            result = task.step(state)
            if result is None and state.time_s >= task.deadline_s - 1e-9:
                result = False
            if result is not None and self.task is task:
                self.task = None
                task.finish(result)
        demand = self._demand(state)
        if not self.armed:
            self.landed = self.landed or state.on_ground
            return Demand((0.0, 0.0, 0.0), 0.0, False)
        if self.landed and demand.velocity[2] < -STILL_SPEED and not state.on_ground:
            self.landed = False
        elif not self.landed and state.on_ground and demand.velocity[2] > -STILL_SPEED:
            self.landed = math.dist(state.velocity, (0.0, 0.0, 0.0)) < STILL_SPEED
        return demand

    def set_velocity(self, state: State, velocity: Vector, yaw: YawMode) -> None:
        """Sets the goal; without API control nothing happens, as in SimpleFlight."""
        if not self.api_control:
            return
        speed = math.dist(velocity, (0.0, 0.0, 0.0))
        scale = min(1.0, MAX_SPEED / speed) if speed > 0 else 1.0
        self._velocity = (velocity[0] * scale, velocity[1] * scale, velocity[2] * scale)
        self._yaw = yaw
        self._goal_time_s = state.time_s
        self._hold = self._hold_yaw = None
        self._still_since_s = None

    def _demand(self, state: State) -> Demand:
        if self.api_control and state.time_s - self._goal_time_s <= GOAL_TIMEOUT_S + 1e-9:
            if self._yaw.is_rate:
                rate = math.radians(self._yaw.yaw_or_rate)
            else:
                rate = YAW_GAIN * wrap(math.radians(self._yaw.yaw_or_rate) - state.yaw)
            return Demand(self._velocity, max(-YAW_RATE_LIMIT, min(YAW_RATE_LIMIT, rate)), False)
        if self._hold is None:
            speed = math.dist(state.velocity, (0.0, 0.0, 0.0))
            if speed > STILL_SPEED:
                return Demand((0.0, 0.0, 0.0), 0.0, True)
            self._hold = state.position
        if self._hold_yaw is None:
            self._hold_yaw = state.yaw
        to_go = [POSITION_GAIN * (goal - now) for goal, now in zip(self._hold, state.position, strict=True)]
        speed = math.hypot(*to_go)
        scale = min(1.0, 1.0 / speed) if speed > 0 else 1.0
        rate = YAW_GAIN * wrap(self._hold_yaw - state.yaw)
        return Demand((to_go[0] * scale, to_go[1] * scale, to_go[2] * scale), rate, False)

    # ---- motion methods: each returns the task it started

    def move_by_velocity(
        self,
        state: State,
        velocity: Vector,
        duration_s: float,
        drivetrain: int,
        yaw: YawMode,
        body_frame: bool,
    ) -> Task:
        """moveByVelocity and moveByVelocityBodyFrame; the body frame is turned into the world once, now."""
        vx, vy, vz = velocity
        if body_frame:
            cos, sin = math.cos(state.yaw), math.sin(state.yaw)
            vx, vy = vx * cos - vy * sin, vx * sin + vy * cos
        yaw = _adjusted(yaw, drivetrain, vx, vy)

        def update(task: Task, now: State) -> bool | None:
            if now.time_s >= end - 1e-9:
                return True
            self.set_velocity(now, (vx, vy, vz), yaw)
            return None

        end = state.time_s + duration_s
        return self._started("moveByVelocity", duration_s, True, update, state)

    def move_by_velocity_z(
        self, state: State, vx: float, vy: float, z: float, duration_s: float, drivetrain: int, yaw: YawMode,
        body_frame: bool,
    ) -> Task:  # fmt: skip
        """moveByVelocityZ and moveByVelocityZBodyFrame: height held, horizontal velocity given."""
        if body_frame:
            cos, sin = math.cos(state.yaw), math.sin(state.yaw)
            vx, vy = vx * cos - vy * sin, vx * sin + vy * cos
        yaw = _adjusted(yaw, drivetrain, vx, vy)
        end = state.time_s + duration_s

        def update(task: Task, now: State) -> bool | None:
            if now.time_s >= end - 1e-9:
                return True
            vz = max(-2.0, min(2.0, POSITION_GAIN * (z - now.position[2])))
            self.set_velocity(now, (vx, vy, vz), yaw)
            return None

        return self._started("moveByVelocityZ", duration_s, False, update, state)

    def move_on_path(
        self, state: State, method: str, path: Sequence[Vector], speed: float, timeout_s: float, drivetrain: int,
        yaw: YawMode, lookahead_m: float = -1.0,
    ) -> Task:  # fmt: skip
        """moveOnPath, moveToPosition, moveToZ, takeoff, goHome, hover: follows the path, answers True at its end."""
        if not path:
            return self._ended(method, True)
        if drivetrain == 1 and yaw.is_rate:
            raise CallError("Yaw cannot be specified as rate if drivetrain is ForwardOnly")
        if lookahead_m == 0:
            raise CallError("lookahead distance cannot be 0")
        if not speed > 0:
            raise CallError(f"velocity must be greater than 0, is {speed}")
        points = [state.position, *path]
        lookahead = lookahead_m if lookahead_m > 0 else max(0.5, 0.5 * speed)
        leg = 0

        def update(task: Task, now: State) -> bool | None:
            nonlocal leg
            while True:
                start, end = points[leg], points[leg + 1]
                length = math.dist(start, end)
                along = (
                    sum((p - s) * (e - s) for p, s, e in zip(now.position, start, end, strict=True)) / length
                    if length > 1e-6
                    else length
                )
                if along + lookahead < length or leg == len(points) - 2:
                    break
                leg += 1
            left = math.dist(now.position, end)
            last = leg == len(points) - 2
            if last and left < ARRIVED_M:
                return True
            ahead = min(length, max(0.0, along) + lookahead) / length if length > 1e-6 else 1.0
            carrot = end if last and left < lookahead else _between(start, end, ahead)
            gap = math.dist(now.position, carrot)
            # Slows so that it can stop at the end with 3 m/s2, half of what the drone has.
            pace = min(speed, max(0.15, math.sqrt(2 * 3.0 * left) * 0.7, 0.15)) if last else speed
            pace = min(pace, 2.0 * left + 0.1) if last else pace
            vx, vy, vz = (
                (c - p) / gap * pace if gap > 1e-9 else 0.0 for c, p in zip(carrot, now.position, strict=True)
            )
            self.set_velocity(now, (vx, vy, vz), _adjusted(yaw, drivetrain, vx, vy))
            return None

        return self.start(Task(method, state.time_s + timeout_s, update))

    def takeoff(self, state: State, timeout_s: float) -> Task:
        """Climbs 2 m at 0.5 m/s. Raises CallError when the drone is already moving, as AirSim does."""
        speed = math.dist(state.velocity, (0.0, 0.0, 0.0))
        if speed > STILL_SPEED:
            raise CallError(
                f"Cannot perform takeoff because vehicle is already moving with velocity {speed:f} m/s"
            )
        x, y, z = state.position
        goal = (x, y, z - TAKEOFF_HEIGHT_M)
        return self.move_on_path(state, "takeoff", [goal], TAKEOFF_SPEED, timeout_s, 0, YawMode(True, 0.0))

    def land(self, state: State, timeout_s: float) -> Task:
        """Sinks at 0.2 m/s until the drone has stood still for ten control steps of 20 ms."""
        still_since: float | None = None

        def update(task: Task, now: State) -> bool | None:
            nonlocal still_since
            # Above 3 m AirSim sinks as slowly; clients with a long way down use moveToZ first.
            self.set_velocity(now, (0.0, 0.0, LANDING_SPEED), YawMode(True, 0.0))
            if now.velocity[2] > STILL_SPEED or not now.on_ground:
                still_since = None
                return None
            still_since = now.time_s if still_since is None else still_since
            return True if now.time_s - still_since > 0.2 else None

        return self.start(Task("land", state.time_s + timeout_s, update))

    def move_by_manual(
        self, state: State, limits: Vector, duration_s: float, drivetrain: int, yaw: YawMode
    ) -> Task:
        """Follows the sticks; `limits` are vx_max and vy_max in m/s and z_min in metres at `STICK_SCALE`.

        Forward is where the nose pointed at the start. Without valid sticks the drone holds its position.
        """
        if drivetrain == 1 and yaw.is_rate:
            raise CallError("Yaw cannot be specified as rate if drivetrain is ForwardOnly")
        vx_max, vy_max, z_min = limits
        end, cos, sin = state.time_s + duration_s, math.cos(state.yaw), math.sin(state.yaw)

        def update(task: Task, now: State) -> bool | None:
            if now.time_s >= end - 1e-9:
                return True
            sticks = self.remote_control
            if sticks.is_valid:
                forward, right = sticks.pitch * vx_max / STICK_SCALE, sticks.roll * vy_max / STICK_SCALE
                vx, vy = forward * cos - right * sin, forward * sin + right * cos
                vz = max(-2.0, min(2.0, POSITION_GAIN * sticks.throttle / STICK_SCALE * z_min))
                turn = YawMode(yaw.is_rate, yaw.yaw_or_rate + sticks.yaw * 100.0 / STICK_SCALE)
                self.set_velocity(now, (vx, vy, vz), _adjusted(turn, drivetrain, vx, vy))
            return None

        return self._started("moveByManual", duration_s, True, update, state)

    def hover(self, state: State) -> Task:
        """Drops the goal, so that the drone brakes and holds."""
        task = self._ended("hover", True)
        self._goal_time_s = -math.inf
        self._hold = self._hold_yaw = None
        return task

    def rotate_by_yaw_rate(self, state: State, rate_deg_s: float, duration_s: float) -> Task:
        """Turns on the spot."""
        end, start = state.time_s + duration_s, state.position

        def update(task: Task, now: State) -> bool | None:
            if now.time_s >= end - 1e-9:
                return True
            self.set_velocity(now, _towards(start, now.position), YawMode(True, rate_deg_s))
            return None

        return self._started("rotateByYawRate", duration_s, True, update, state)

    def rotate_to_yaw(self, state: State, yaw_deg: float, timeout_s: float, margin_deg: float) -> Task:
        """Turns on the spot until the yaw is within the margin."""
        start = state.position

        def update(task: Task, now: State) -> bool | None:
            if abs(wrap(math.radians(yaw_deg) - now.yaw)) <= math.radians(max(margin_deg, 0.1)):
                return True
            self.set_velocity(now, _towards(start, now.position), YawMode(False, yaw_deg))
            return None

        return self.start(Task("rotateToYaw", state.time_s + timeout_s, update))

    def _started(
        self, method: str, duration_s: float, when_empty: bool, update: Callable[[Task, State], bool | None],
        state: State,
    ) -> Task:  # fmt: skip
        if duration_s <= 0:
            return self._ended(method, when_empty)
        return self.start(Task(method, math.inf, update))

    def _ended(self, method: str, result: bool) -> Task:
        self.cancel()
        task = Task(method, math.inf, lambda *_: result)
        task.finish(result)
        return task


def wrap(angle: float) -> float:
    """The angle in radians brought to [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _between(start: Vector, end: Vector, part: float) -> Vector:
    x, y, z = (s + (e - s) * part for s, e in zip(start, end, strict=True))
    return x, y, z


def _towards(goal: Vector, position: Vector) -> Vector:
    x, y, z = (max(-1.0, min(1.0, POSITION_GAIN * (g - p))) for g, p in zip(goal, position, strict=True))
    return x, y, z


def _adjusted(yaw: YawMode, drivetrain: int, vx: float, vy: float) -> YawMode:
    """ForwardOnly (1) points the nose along the velocity; a given yaw angle is then an offset to it."""
    if drivetrain != 1 or (vx == 0 and vy == 0):
        return yaw
    if yaw.is_rate:
        raise CallError("Yaw cannot be specified as rate if drivetrain is ForwardOnly")
    return YawMode(False, math.degrees(math.atan2(vy, vx)) + yaw.yaw_or_rate)
