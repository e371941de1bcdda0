"""What the agent's tests fly: the real gate over a drone of a few lines, a scripted memory, one virtual clock."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from airsim_bridge.gate import CommandGate, VehicleState
from nav_agent.agent import Agent
from nav_agent.flight import FlightSettings
from nav_agent.mission import DecisionRecord, Goal, Mission, MissionSettings, Report, Result
from nav_agent.outcome import State
from nav_agent.ports import (
    Answer,
    AnswerStatus,
    Ask,
    Camera,
    Command,
    Depth,
    DroneStatus,
    Flying,
    Gate,
    Odometry,
    Primed,
    Reply,
)
from nav_agent.prompts import load_prompt
from nav_agent.streamer import PERIOD_S
from nav_common import data
from nav_common.clock import VirtualClock
from nav_common.frames import Quaternion, Vector

STEP_S = 0.02
LAG_S = 0.25


@dataclass
class Later:
    """A pending answer that arrives at a time, or never."""

    clock: VirtualClock
    at_s: float
    answer: Callable[[], object]
    cancelled_at: float | None = None

    def poll(self) -> object | None:
        if self.cancelled_at is not None or self.clock.now() < self.at_s:
            return None
        return self.answer()

    def cancel(self) -> None:
        if self.cancelled_at is None:
            self.cancelled_at = self.clock.now()


class GatedDrone:
    """A drone that follows velocities with a lag, behind the real command gate."""

    def __init__(self, clock: VirtualClock, airborne: bool = True) -> None:
        self.clock = clock
        self.gate = CommandGate(clock)
        self.x = self.y = self.yaw = 0.0
        self.z = 2.0 if airborne else 0.0
        self.v = [0.0, 0.0, 0.0, 0.0]  # forward, left, up, yaw rate
        self.commands: list[tuple[float, Command]] = []
        self.link_up = True
        self.connected = True
        self.wall_x = math.inf
        self.collisions = 0
        self.reflex = False
        self.depth_m: Depth | None = None
        self.gust = 0.0
        self.take_off_reply = Reply(True)
        self._odometry: Odometry | None = None
        self._status: DroneStatus | None = None
        self._received_s = -math.inf
        self._step()
        clock.call_every(STEP_S, self._step)

    def _step(self) -> None:
        landed = self.z <= 0.01
        half = 0.5 * self.yaw
        odometry = data.Odometry(
            self.clock.now(),
            Vector(self.x, self.y, self.z),
            Quaternion(math.cos(half), 0.0, 0.0, math.sin(half)),
            Vector(*self.v[:3]),
        )
        self.gate.observe(VehicleState(odometry, landed))
        setpoint = self.gate.tick()
        want = (0.0, 0.0, 0.0, 0.0) if setpoint is None else (*setpoint.velocity, setpoint.yaw_rate)
        if self.reflex and self.x > self.wall_x - 2.0 and want[0] > 0:
            want = (0.0, *want[1:])
        self.v = [v + (w - v) * STEP_S / LAG_S for v, w in zip(self.v, want, strict=True)]
        forward, left, up, rate = self.v
        self.yaw += rate * STEP_S
        dx = (forward * math.cos(self.yaw) - left * math.sin(self.yaw)) * STEP_S
        if self.x + dx > self.wall_x:
            self.collisions += 1
            self.v[0] = dx = 0.0
        self.x += dx + self.gust * STEP_S
        self.y += (forward * math.sin(self.yaw) + left * math.cos(self.yaw)) * STEP_S
        self.z = max(0.0, self.z + up * STEP_S)
        if self.link_up:
            now = self.clock.now()
            self._received_s = now
            self._odometry = Odometry(
                now, self.x, self.y, self.z, self.yaw, self.v[0] + self.gust, self.v[1], self.v[2], self.v[3]
            )
            flying = (
                Flying.LANDED if landed else Flying.TAKING_OFF if self.gate.taking_off else Flying.AIRBORNE
            )
            self._status = DroneStatus(
                now,
                flying,
                Gate(self.gate.mode),
                self.gate.reason,
                self.gate.epoch,
                self.connected,
                fault="" if self.connected else "simulator does not answer",
                collision_count=self.collisions,
                last_collision_object="wall" if self.collisions else "",
                reflex_reason="wall ahead" if self.reflex and self.x > self.wall_x - 2.0 else "",
            )

    def odometry(self) -> Odometry | None:
        return self._odometry

    def odometry_age(self) -> float:
        return self.clock.now() - self._received_s

    def status(self) -> DroneStatus | None:
        return self._status

    def camera(self) -> Camera | None:
        return Camera(0.5, 0.5 * 4 / 3)

    def depth(self) -> Depth | None:
        if self.depth_m is None:
            return None
        return Depth(self.clock.now(), self.depth_m.metres)

    def send(self, command: Command) -> None:
        self.commands.append((self.clock.now(), command))
        if self.link_up:
            v = command.velocity
            twist = data.Twist.body(v.forward, v.left, v.up, v.yaw_rate)
            self.gate.submit(data.VelocityCommand(command.stamp, command.epoch, command.sequence, twist))

    def take_off(self) -> Later:
        if self.take_off_reply.ok:
            self.gate.take_off(2.0)
        return Later(self.clock, self.clock.now() + 0.1, lambda: self.take_off_reply)

    @property
    def speed(self) -> float:
        return math.hypot(*self.v[:3])


def call(name: str, **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


SILENCE = "silence"
CRASH = "crash"
Script = Iterable[str | Answer | Callable[[Ask], object]]


class ScriptedMemory:
    """Answers with the script's items in turn: a tool call's JSON (or any text), an Answer, SILENCE, CRASH (no server
    for 3 s), or a function of the ask that gives one of these. Frames arrive each 0.1 s; a decision takes 0.2 s more.
    """

    def __init__(self, drone: GatedDrone, script: Script, think_s: float = 0.2) -> None:
        self.drone = drone
        self.clock = drone.clock
        self.script = iter(script)
        self.think_s = think_s
        self.asks: list[tuple[float, Ask]] = []
        self.pendings: list[Later] = []
        self.primings: list[tuple[str, str]] = []
        self.prime_answers: list[Primed] = []
        self.down_until = -math.inf
        self.speeds: list[float] = []  # of the drone at the moment of the frame that each answer rests on
        self.forgot_prompt = False

    def prime(self, system_prompt: str, tools_json: str) -> Later:
        self.primings.append((system_prompt, tools_json))
        self.forgot_prompt = False
        answer = self.prime_answers.pop(0) if self.prime_answers else Primed("prompt-1")
        return Later(self.clock, self.clock.now() + 0.05, lambda: answer)

    def generate(self, ask: Ask) -> Later:
        now = self.clock.now()
        self.asks.append((now, ask))
        later = self._generate(ask, now)
        self.pendings.append(later)
        return later

    def _generate(self, ask: Ask, now: float) -> Later:
        if now < self.down_until:
            return Later(self.clock, now, lambda: Answer(AnswerStatus.ERROR, "no server"))
        if self.forgot_prompt:
            return Later(self.clock, now, lambda: Answer(AnswerStatus.UNKNOWN_PROMPT, "no such prompt"))
        item: object = next(self.script, call("finish", reason="unsafe"))
        if callable(item):
            item = item(ask)
        if item == SILENCE:
            return Later(self.clock, math.inf, lambda: None)
        if item == CRASH:
            self.down_until = now + 3.0
            return Later(self.clock, now, lambda: Answer(AnswerStatus.ERROR, "server died"))
        frame = max(now, math.ceil(ask.earliest_frame * 10 - 1e-6) / 10)
        ready = max(now, frame) + self.think_s
        if isinstance(item, Answer):
            return Later(self.clock, ready, lambda: item)
        self.speeds.append(self.drone.speed)
        answer = Answer(
            AnswerStatus.OK,
            text=str(item),
            tool_call=str(item),
            frame_stamp=frame,
            barrier_ms=(frame - now) * 1e3,
            ttft_ms=50.0,
            total_ms=self.think_s * 1e3,
            tokens_in=30,
            tokens_sampled=4,
            tokens_forced=10,
        )
        return Later(self.clock, ready, lambda: answer)

    def alive(self) -> bool:
        return self.clock.now() >= self.down_until

    def cache_use(self) -> float:
        return 0.25


@dataclass
class Log:
    reports: list[tuple[float, Report]] = field(default_factory=list)
    decisions: list[DecisionRecord] = field(default_factory=list)
    clock: VirtualClock | None = None

    def on_report(self, report: Report) -> None:
        assert self.clock is not None
        self.reports.append((self.clock.now(), report))

    def on_decision(self, record: DecisionRecord) -> None:
        self.decisions.append(record)

    @property
    def states(self) -> list[State]:
        return [report.state for _, report in self.reports]


class Rig:
    """Everything a mission needs, on one virtual clock."""

    def __init__(
        self,
        script: Script,
        *,
        airborne: bool = True,
        settings: MissionSettings | None = None,
        flight: FlightSettings | None = None,
    ) -> None:
        self.clock = VirtualClock(1000.0)
        self.drone = GatedDrone(self.clock, airborne)
        self.memory = ScriptedMemory(self.drone, script)
        self.log = Log(clock=self.clock)
        self.agent = Agent(
            self.drone, self.memory, self.clock, load_prompt(), self.log, flight=flight, mission=settings
        )
        self.clock.call_every(PERIOD_S, self.agent.streamer.tick)
        self.clock.sleep(0.1)
        self.mission: Mission | None = None

    def fly(self, *instructions: str, max_decisions: int = 30, time_limit_s: float = 1e4) -> Result:
        self.mission = self.agent.begin(
            Goal("g1", instructions or ("fly to the red beacon",), max_decisions, time_limit_s)
        )
        return self.mission.run()

    def violations(self) -> list[str]:
        """Every breach of hover while thinking, and of the frame barrier."""
        found = []
        for record in self.log.decisions:
            for when, command in self.drone.commands:
                if record.ask_s < when < record.done_s and not command.velocity.is_hover:
                    found.append(f"step {record.step}: {command} at {when}, while thinking")
            if not record.hovering:
                found.append(f"step {record.step}: not hovering by its own account")
            if record.answer.frame_stamp and record.answer.frame_stamp < record.barrier_stamp:
                found.append(f"step {record.step}: frame older than the barrier")
        return found
