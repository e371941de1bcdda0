"""What the agent's tests fly: the real gate over a drone of a few lines, a scripted memory, one virtual clock."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from airsim_bridge.gate import CommandGate, VehicleState
from nav_agent import toolset
from nav_agent.agent import Agent, Settings
from nav_agent.mission import Mission, MissionSettings
from nav_agent.motion import MotionSettings
from nav_agent.ports import MemoryUnavailable
from nav_agent.prompts import load_prompt
from nav_common.clock import VirtualClock, wait_until
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import (
    AskRequest,
    AskResponse,
    CameraInfo,
    Decision,
    DepthImage,
    DroneState,
    FlyingMode,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    GoalState,
    NavigateFeedback,
    NavigateGoal,
    NavigateResult,
    NavigateState,
    Odometry,
    PrimeRequest,
    PrimeResponse,
    ServiceReply,
    VelocityCommand,
    WatchRequest,
    WatchResponse,
)
from nav_common.frames import Quaternion, Vector

T = TypeVar("T")

STEP_S = 0.02
LAG_S = 0.25


@dataclass
class Later(Generic[T]):
    """A pending answer that arrives at a time, or never."""

    clock: VirtualClock
    at_s: float
    answer: Callable[[], T | None]
    cancelled_at_s: float | None = None

    def wait(self, timeout_s: float) -> T | None:
        wait_until(self.clock, lambda: self._is_there or self.cancelled_at_s is not None, timeout_s, 0.005)
        return self.answer() if self._is_there and self.cancelled_at_s is None else None

    def cancel(self) -> None:
        if self.cancelled_at_s is None:
            self.cancelled_at_s = self.clock.now()

    @property
    def _is_there(self) -> bool:
        return self.clock.now() >= self.at_s


class GatedDrone:
    """A drone that follows velocities with a lag, behind the real command gate."""

    def __init__(self, clock: VirtualClock, airborne: bool = True) -> None:
        self.clock = clock
        self.gate = CommandGate(clock)
        self.x = self.y = self.yaw = 0.0
        self.z = 2.0 if airborne else 0.0
        self.v = [0.0, 0.0, 0.0, 0.0]  # forward, left, up, yaw rate
        self.commands: list[tuple[float, VelocityCommand]] = []
        self.link_up = True
        self.connected = True
        self.wall_x = math.inf
        self.collisions = 0
        self.reflex = False
        self.depth_m: float | None = None
        self.gust = 0.0
        self.take_off_reply = ServiceReply(True)
        self._odometry: Odometry | None = None
        self._state: DroneState | None = None
        self._received_s = -math.inf
        self._step()
        clock.call_every(STEP_S, self._step)

    def _step(self) -> None:
        landed = self.z <= 0.01
        self.gate.observe(VehicleState(self._measured(), landed))
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
            self._odometry = self._measured()
            self._state = self._observed_state(now, landed)

    def _measured(self) -> Odometry:
        return Odometry(
            self.clock.now(),
            Vector(self.x, self.y, self.z),
            Quaternion(math.cos(self.yaw / 2), 0.0, 0.0, math.sin(self.yaw / 2)),
            Vector(self.v[0] + self.gust, self.v[1], self.v[2]),
            Vector(0.0, 0.0, self.v[3]),
        )

    def _observed_state(self, now: float, landed: bool) -> DroneState:
        flying = FlyingMode.TAKING_OFF if self.gate.taking_off else FlyingMode.AIRBORNE
        return DroneState(
            now,
            FlyingMode.LANDED if landed else flying,
            self.gate.mode,
            self.gate.reason,
            self.gate.epoch,
            self.connected,
            fault="" if self.connected else "simulator does not answer",
            api_control=True,
            collision_count=self.collisions,
            last_collision_object="wall" if self.collisions else "",
            reflex_reason="wall ahead" if self.reflex and self.x > self.wall_x - 2.0 else "",
        )

    def odometry(self) -> Odometry | None:
        return self._odometry

    def odometry_age_s(self) -> float:
        return self.clock.now() - self._received_s

    def state(self) -> DroneState | None:
        return self._state

    def camera(self) -> CameraInfo | None:
        return CameraInfo(0.0, 640, 480, 320.0, 320.0, 320.0, 240.0)

    def depth(self) -> DepthImage | None:
        if self.depth_m is None:
            return None
        return DepthImage(self.clock.now(), np.full((120, 160), self.depth_m, np.float32))

    def send(self, command: VelocityCommand) -> None:
        self.commands.append((self.clock.now(), command))
        if self.link_up:
            self.gate.submit(command)

    def take_off(self) -> Later[ServiceReply]:
        if self.take_off_reply.success:
            self.gate.take_off(2.0)
        return Later(self.clock, self.clock.now() + 0.1, lambda: self.take_off_reply)

    @property
    def speed(self) -> float:
        return math.hypot(*self.v[:3])


def call(name: str, **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


NO_ANSWER = "no answer"
CRASH = "crash"
Script = Iterable[str | GenerateResult | Callable[[GenerateGoal], object]]


class ScriptedMemory:
    """Answers with the script's items in turn: a tool call's JSON (or any text), a GenerateResult, NO_ANSWER, CRASH (no
    server for 3 s), or a function of the goal that gives one of these. Frames arrive each 0.1 s; a decision takes
    `think_s` more.
    """

    def __init__(self, drone: GatedDrone, script: Script, think_s: float = 0.2) -> None:
        self.drone = drone
        self.clock = drone.clock
        self.began_s = drone.clock.now()
        self.script: Iterator[object] = iter(script)
        self.think_s = think_s
        self.asks: list[tuple[float, GenerateGoal]] = []
        self.pendings: list[Later[GenerateResult]] = []
        self.primings: list[PrimeRequest] = []
        self.questions: list[AskRequest] = []
        self.words: AskResponse | MemoryUnavailable | None = AskResponse(True, answer="the way is free")
        """The answer to every question, half a second later; None: it never comes."""
        self.watches: list[WatchRequest] = []
        self.watch_answer: WatchResponse | MemoryUnavailable = WatchResponse(True)
        self.prime_answers: list[PrimeResponse | MemoryUnavailable | None] = []
        """In turn, before it succeeds; None: the answer never comes."""
        self.down_until_s = -math.inf
        self.speeds: list[float] = []  # of the drone at the moment of the frame that each answer rests on
        self.forgot_prompt = False

    def prime(self, request: PrimeRequest) -> Later[PrimeResponse]:
        self.primings.append(request)
        self.forgot_prompt = False
        answer = (
            self.prime_answers.pop(0) if self.prime_answers else PrimeResponse(True, prompt_id="prompt-1")
        )
        if isinstance(answer, MemoryUnavailable):
            raise answer
        primed = answer
        return Later(self.clock, self.clock.now() + 0.05 if primed else math.inf, lambda: primed)

    def ask(self, request: AskRequest) -> Later[AskResponse]:
        self.questions.append(request)
        if isinstance(self.words, MemoryUnavailable):
            raise self.words
        answer = self.words
        return Later(self.clock, math.inf if answer is None else self.clock.now() + 0.5, lambda: answer)

    def watch(self, request: WatchRequest) -> Later[WatchResponse]:
        self.watches.append(request)
        if isinstance(self.watch_answer, MemoryUnavailable):
            raise self.watch_answer
        answer = self.watch_answer
        return Later(self.clock, self.clock.now() + 0.05, lambda: answer)

    def generate(self, goal: GenerateGoal) -> Later[GenerateResult]:
        now = self.clock.now()
        self.asks.append((now, goal))
        later = self._generate(goal, now)
        self.pendings.append(later)
        return later

    def _generate(self, goal: GenerateGoal, now: float) -> Later[GenerateResult]:
        if now < self.down_until_s:
            return self._at(now, GenerateResult(GenerateStatus.ERROR, "no server"))
        if self.forgot_prompt:
            return self._at(now, GenerateResult(GenerateStatus.UNKNOWN_PROMPT, "no such prompt"))
        item: object = next(self.script, call("finish", reason="unsafe"))
        if callable(item):
            item = item(goal)
        if item == NO_ANSWER:
            return self._at(math.inf, None)
        if item == CRASH:
            self.down_until_s = now + 3.0
            return self._at(now, GenerateResult(GenerateStatus.ERROR, "server died"))
        frame_s = max(now, math.ceil(goal.earliest_frame_s * 10 - 1e-6) / 10)
        ready_s = max(now, frame_s) + self.think_s
        if isinstance(item, GenerateResult):
            return self._at(ready_s, item)
        self.speeds.append(self.drone.speed)
        return self._at(ready_s, replace(_ANSWER, text=str(item), tool_call=str(item), frame_stamp_s=frame_s))

    def _at(self, at_s: float, result: GenerateResult | None) -> Later[GenerateResult]:
        return Later(self.clock, at_s, lambda: result)

    def alive(self) -> bool:
        return self.clock.now() >= self.down_until_s

    def cache_use(self) -> float:
        return 0.25

    def frames(self) -> int:
        return round(10 * (self.clock.now() - self.began_s))


_ANSWER = GenerateResult(
    GenerateStatus.OK, ttft_ms=50.0, total_ms=200.0, tokens_in=30, tokens_sampled=4, tokens_forced=10
)


@dataclass
class Log:
    """A Listener that keeps everything, with the clock's time where a message has none."""

    clock: VirtualClock
    states: list[GoalState] = field(default_factory=list)
    feedback: list[tuple[float, NavigateFeedback]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def on_goal_state(self, state: GoalState) -> None:
        self.states.append(state)

    def on_feedback(self, goal_id: str, feedback: NavigateFeedback) -> None:
        self.feedback.append((self.clock.now(), feedback))

    def on_decision(self, decision: Decision) -> None:
        self.decisions.append(decision)

    @property
    def state_names(self) -> list[NavigateState]:
        return [state.state for state in self.states]


class Rig:
    """Everything a mission needs, on one virtual clock."""

    def __init__(
        self,
        script: Script,
        *,
        airborne: bool = True,
        mission: MissionSettings | None = None,
        motion: MotionSettings | None = None,
    ) -> None:
        self.clock = VirtualClock(1000.0)
        self.drone = GatedDrone(self.clock, airborne)
        self.memory = ScriptedMemory(self.drone, script)
        self.log = Log(self.clock)
        settings = Settings(motion or MotionSettings(), mission or MissionSettings())
        self.agent = Agent(self.drone, self.memory, self.clock, load_prompt(), self.log, settings)
        self.clock.call_every(COMMAND_PERIOD_S, self.agent.streamer.tick)
        self.clock.sleep(0.1)
        self.mission: Mission | None = None

    def fly(
        self,
        *instructions: str,
        max_decisions: int = 30,
        time_limit_s: float = 1e4,
        watches: tuple[str, ...] = (),
        hover_watches: tuple[str, ...] = (),
        switch_frame_indices: tuple[int, ...] = (),
    ) -> NavigateResult:
        words = instructions or ("fly to the red beacon",)
        goal = NavigateGoal(words, max_decisions, time_limit_s, watches, hover_watches, switch_frame_indices)
        self.mission = self.agent.begin("g1", goal)
        return self.mission.run()

    def cancel(self) -> None:
        """The goal that `fly` flies."""
        assert self.mission is not None
        self.agent.cancel(self.mission)

    def violations(self) -> list[str]:
        """Every breach of hover while thinking, and of the frame barrier."""
        found = []
        for decision in self.log.decisions:
            for when, command in self.drone.commands:
                if decision.ask_stamp_s < when < decision.stamp_s and not command.twist.is_hover:
                    found.append(f"step {decision.step}: {command} at {when}, while thinking")
            if not decision.hovering:
                found.append(f"step {decision.step}: not hovering by its own account")
            if decision.frame_stamp_s and decision.frame_stamp_s < decision.barrier_stamp_s:
                found.append(f"step {decision.step}: frame older than the barrier")
        return found


def chaotic(seed: int) -> Iterator[str]:
    """A model that answers nonsense 20 % of the time, not at all 5 %, and crashes 1 %."""
    dice = random.Random(seed)
    while True:
        fate = dice.random()
        if fate < 0.20:
            text = "".join(chr(dice.randrange(32, 0x2FFF)) for _ in range(dice.randrange(60)))
            yield dice.choice([text, call(text), call("land"), call("climb", distance_m=text), "", "{"])
        elif fate < 0.25:
            yield NO_ANSWER
        elif fate < 0.26:
            yield CRASH
        else:
            tool = dice.choice([tool for tool in toolset.TOOLS if tool.name != "finish"])
            yield call(tool.name, **{a.name: dice.choice(a.values) for a in tool.arguments})
