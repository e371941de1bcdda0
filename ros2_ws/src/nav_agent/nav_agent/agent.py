"""The agent: accepts one goal at a time, hover first, and ends the one before through hover."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nav_agent import toolset
from nav_agent.flight import Body, DryFlight, Flight, FlightSettings
from nav_agent.mission import Goal, Listener, Mission, MissionSettings
from nav_agent.outcome import Outcome
from nav_agent.ports import Drone, Gate, Memory
from nav_agent.streamer import CommandStreamer
from nav_common.clock import Clock

_ODOMETRY_FRESH_S = 1.0
_NO_PERMIT = -1  # of a dry run: the streamer never gives it out, so it stays silent


class Agent:
    """Composes drone, memory, clock and missions.

    `streamer.tick` is to be called each streamer.PERIOD_S, by a timer that nothing else can delay. A mission runs in
    the thread that calls its `run`; `begin` and `cancel` may come from others.

    `dry_run_interval_s`: nothing is flown or sent. Each tool call is noted, takes this long and counts as done.
    """

    def __init__(
        self,
        drone: Drone,
        memory: Memory,
        clock: Clock,
        system_prompt: str,
        listener: Listener,
        flight: FlightSettings | None = None,
        mission: MissionSettings | None = None,
        dry_run_interval_s: float | None = None,
    ) -> None:
        self._dry_run_interval_s = dry_run_interval_s
        self.streamer = CommandStreamer(drone, clock)
        self._drone = drone
        self._memory = memory
        self._clock = clock
        self._system_prompt = system_prompt
        self._listener = listener
        self._flight = flight or FlightSettings()
        self._mission = mission or MissionSettings()
        self._lock = threading.Lock()
        self._current: tuple[Mission, int] | None = None

    def refusal(self, goal: Goal) -> str:
        """Why this goal cannot be accepted now, in words; "" when it can."""
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
        if self._dry_run_interval_s is not None:
            return ""
        status, age = self._drone.status(), self._drone.odometry_age()
        if status is None:
            return "no state from the drone: is airsim_bridge running, and the link up?"
        if not status.connected:
            return f"the drone is not connected: {status.fault or 'no reason given'}"
        if status.gate is Gate.EMERGENCY:
            return f"emergency stop ({status.gate_reason}): release it first"
        if age > _ODOMETRY_FRESH_S:
            return "no odometry: is airsim_bridge running, and the link up?"
        return ""

    def begin(self, goal: Goal) -> Mission:
        """Accept: hover is sent before anything else, the goal before this one is preempted."""
        with self._lock:
            permit = self.streamer.begin() if self._dry_run_interval_s is None else _NO_PERMIT
            if self._current is not None:
                self._current[0].stop(Outcome.PREEMPTED, "a new goal was accepted")
            mission = Mission(
                goal,
                self._memory,
                self._clock,
                self._mission,
                self._system_prompt,
                self._listener,
                lambda check, waiting: self._body(permit, check, waiting),
            )
            self._current = (mission, permit)
            return mission

    def _body(self, permit: int, check: Callable[[], None], waiting: Callable[[str], None]) -> Body:
        if self._dry_run_interval_s is not None:
            return DryFlight(self._clock, check, self._dry_run_interval_s)
        return Flight(
            self._drone, self._memory, self.streamer, permit, self._clock, self._flight, check, waiting
        )

    def cancel(self, mission: Mission, reason: str = "cancelled by the client") -> None:
        """End a goal: when this returns, hover has been sent and nothing else of this goal will be."""
        with self._lock:
            if self._current is None or self._current[0] is not mission:
                return
            self.streamer.revoke(self._current[1])
            mission.stop(Outcome.CANCELLED, reason)
