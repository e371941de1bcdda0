"""The agent: accepts one goal at a time, hover first, and ends the one before through hover."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from nav_agent import toolset
from nav_agent.dry_run import DryRun
from nav_agent.mission import Listener, Mission, MissionSettings
from nav_agent.motion import FlightControl, MotionExecutor, MotionSettings
from nav_agent.ports import Drone, Memory
from nav_agent.streamer import CommandStreamer
from nav_common import contract
from nav_common.clock import Clock
from nav_common.data import GateMode, NavigateGoal, Outcome

_NO_PERMIT = -1  # of a dry run: the streamer never gives it out, so nothing is sent


@dataclass(frozen=True)
class Settings:
    """What may be changed in flight; a change counts from the next decision on."""

    motion: MotionSettings = field(default_factory=MotionSettings)
    mission: MissionSettings = field(default_factory=MissionSettings)


class Agent:
    """Composes drone, memory, clock and missions.

    `streamer.tick` is to be called each contract.COMMAND_PERIOD_S, by a timer that nothing else can delay. A mission
    runs in the thread that calls its `run`; `begin` and `cancel` may come from others.

    `dry_run_interval_s`: nothing is flown or sent. Each tool call is noted, takes this long and counts as done.
    """

    def __init__(
        self,
        drone: Drone,
        memory: Memory,
        clock: Clock,
        system_prompt: str,
        listener: Listener,
        settings: Settings | None = None,
        dry_run_interval_s: float | None = None,
    ) -> None:
        self._dry_run_interval_s = dry_run_interval_s
        self.streamer = CommandStreamer(drone, clock)
        self._drone = drone
        self._memory = memory
        self._clock = clock
        self._system_prompt = system_prompt
        self._listener = listener
        self.settings = settings or Settings()
        """Replace it whole to change it."""
        self._lock = threading.Lock()
        self._current: tuple[Mission, int] | None = None

    def refusal(self, goal: NavigateGoal) -> str:
        """Why this goal cannot be accepted now, for a person to read; "" when it can."""
        if not goal.instructions:
            return "no instruction: give at least one"
        for instruction in goal.instructions:
            if not instruction.strip():
                return "an instruction is empty: say in words where to fly"
            tokens = toolset.estimate_tokens(instruction)
            if tokens > toolset.MAX_INSTRUCTION_TOKENS:
                return (
                    f"an instruction is too long (about {tokens} tokens, at most "
                    f"{toolset.MAX_INSTRUCTION_TOKENS}): split it into several"
                )
        problem = _switch_problem(goal)
        if problem:
            return problem
        if not (math.isfinite(goal.time_limit_s) and goal.time_limit_s >= 0):
            return f"time_limit_s is {goal.time_limit_s}: 0 or a positive number of seconds"
        if self._dry_run_interval_s is not None:
            return ""
        state = self._drone.state()
        if state is None:
            return "no state from the drone: is airsim_bridge running, and the link up?"
        if not state.connected:
            return f"the drone is not connected: {state.fault or 'no reason given'}"
        if state.gate_mode is GateMode.EMERGENCY:
            return f"emergency stop ({state.gate_reason}): release it first"
        if self._drone.odometry_age_s() > contract.ODOMETRY_TIMEOUT_S:
            return "no odometry: is airsim_bridge running, and the link up?"
        return ""

    def begin(self, goal_id: str, goal: NavigateGoal) -> Mission:
        """Accept: hover is sent before anything else, the goal before this one is preempted."""
        with self._lock:
            permit = self.streamer.begin() if self._dry_run_interval_s is None else _NO_PERMIT
            if self._current is not None:
                self._current[0].stop(Outcome.PREEMPTED, "a new goal was accepted")
            mission = Mission(
                goal_id,
                goal,
                self._memory,
                self._clock,
                lambda: self.settings.mission,
                self._system_prompt,
                self._listener,
                lambda check, on_outage: self._flight_control(permit, check, on_outage),
            )
            self._current = (mission, permit)
            return mission

    def _flight_control(
        self, permit: int, check: Callable[[], None], on_outage: Callable[[str], None]
    ) -> FlightControl:
        if self._dry_run_interval_s is not None:
            return DryRun(self._clock, check, self._dry_run_interval_s)
        return MotionExecutor(
            self._drone,
            self._memory,
            self.streamer,
            permit,
            self._clock,
            lambda: self.settings.motion,
            check,
            on_outage,
        )

    def cancel(self, mission: Mission, reason: str = "cancelled by the client") -> None:
        """End a goal: when this returns, hover has been sent and nothing else of this goal will be."""
        with self._lock:
            if self._current is None or self._current[0] is not mission:
                return
            self.streamer.revoke(self._current[1])
            mission.stop(Outcome.CANCELLED, reason)


def _switch_problem(goal: NavigateGoal) -> str:
    """What is wrong with the frames at which the instructions change, or ""."""
    given, wanted = goal.switch_frame_indices, len(goal.instructions) - 1
    if not given or (len(given) == wanted and list(given) == sorted(set(given)) and given[0] > 0):
        return ""
    return (
        f"switch_frame_indices are {list(given)}: one for each instruction after the first ({wanted}), positive and "
        "each higher than the one before, or none at all"
    )
