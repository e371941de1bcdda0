"""The life of one goal: take off, then look, think and move by turns until an outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn, Protocol, TypeVar

from smolagents import ActionStep

from nav_agent import toolset
from nav_agent.flight import Body, Performed
from nav_agent.model import StreamingVLMModel, parse_call
from nav_agent.outcome import MissionOver, Outcome, State
from nav_agent.ports import Answer, AnswerStatus, Ask, Memory, Pending
from nav_agent.stuck import StuckDetector, Verdict
from nav_agent.tools import PilotAgent
from nav_common.clock import Clock

T = TypeVar("T")

_POLL_S = 0.005
_STAMP_TOLERANCE_S = 1e-6  # a float64 of Unix time is good to 0.24 microseconds
_RETRY_S = 0.5  # after a failed decision, so that a server that refuses is not asked in a tight loop


@dataclass(frozen=True)
class Goal:
    """What was asked for. Limits are for the whole goal."""

    goal_id: str
    instructions: tuple[str, ...]
    max_decisions: int
    time_limit_s: float


@dataclass(frozen=True)
class MissionSettings:
    """Limits of a decision. Deadline: above the 3 s that a decision may take on the intended machine."""

    decision_deadline_s: float = 10.0
    patience_s: float = 30.0
    max_new_tokens: int = 0
    temperature: float = 0.0


@dataclass(frozen=True)
class Report:
    """Where a goal stands; fields as in GoalState and Navigate's feedback."""

    goal_id: str
    state: State
    instruction: str = ""
    instruction_index: int = 0
    decisions: int = 0
    last_tool_call: str = ""
    last_result: str = ""
    frame_age_s: float = 0.0
    cache_use: float = 0.0
    waiting_for: str = ""
    outcome: Outcome | None = None
    reason: str = ""


@dataclass(frozen=True)
class DecisionRecord:
    """One decision, or an attempt at one that failed; fields as in Decision.

    `ask_s` and `done_s` are on the agent's clock, s; `step` counts the asks.
    """

    goal_id: str
    instruction: str
    step: int
    ask_s: float
    done_s: float
    barrier_stamp: float
    previous_result: str
    answer: Answer
    tool: str
    arguments: Mapping[str, object]
    framework_ms: float
    hovering: bool


@dataclass(frozen=True)
class Result:
    """How a goal ended."""

    outcome: Outcome
    reason: str
    decisions: int
    distance_m: float
    collisions: int


MakeBody = Callable[[Callable[[], None], Callable[[str], None]], Body]
"""(check, waiting) -> body: `check` raises MissionOver when the goal is over, `waiting` is told of outages."""


class Listener(Protocol):
    """Is told what happens, from the thread that flies the mission. Must return at once."""

    def on_report(self, report: Report) -> None:
        """The state, or something else that the client is told, changed."""
        ...

    def on_decision(self, record: DecisionRecord) -> None:
        """A decision is complete, or an attempt at one failed."""
        ...


@dataclass
class _OpenDecision:
    """A decision between the ask and the moment its tool starts."""

    ask_s: float
    barrier_stamp: float
    answer: Answer
    answered_s: float
    own_s: float  # spent by the agent before the ask was sent
    previous_result: str = field(default="")


class Mission:
    """One goal. `run` flies it in the caller's thread; `stop` ends it from any other."""

    def __init__(
        self,
        goal: Goal,
        memory: Memory,
        clock: Clock,
        settings: MissionSettings,
        system_prompt: str,
        listener: Listener,
        make_body: MakeBody,
    ) -> None:
        self.goal = goal
        self._memory = memory
        self._clock = clock
        self._settings = settings
        self._system_prompt = system_prompt
        self._listener = listener
        self._lock = threading.Lock()
        self._stop: MissionOver | None = None
        self._pending: Pending[object] | None = None
        self._prompt_id = ""
        self._end_s = clock.now() + goal.time_limit_s
        self._report = Report(goal.goal_id, State.ACCEPTED, goal.instructions[0])
        self._open: _OpenDecision | None = None
        self._free_since = clock.now()
        self._body = make_body(self.check, self.on_waiting)
        self._asked = 0
        self._frame_stamp = 0.0
        self._performed = Performed("")
        self._finish_reason = ""
        self._notice = False

    @property
    def report(self) -> Report:
        """Where it stands now."""
        age = self._body.edge_time() - self._frame_stamp if self._frame_stamp else 0.0
        return replace(self._report, frame_age_s=max(0.0, age), cache_use=self._memory.cache_use())

    def stop(self, outcome: Outcome, reason: str) -> None:
        """End it with this outcome, unless it has one already; a generation under way is cancelled at once."""
        with self._lock:
            if self._stop is None:
                self._stop = MissionOver(outcome, reason)
            pending = self._pending
        if pending is not None:
            pending.cancel()

    def check(self) -> None:
        """Raises MissionOver when the goal is over."""
        stop = self._stop
        if stop is not None:
            raise MissionOver(stop.outcome, stop.reason)
        if self._clock.now() > self._end_s:
            raise MissionOver(Outcome.TIME_LIMIT, f"time limit of {self.goal.time_limit_s:g} s")

    def on_waiting(self, why: str) -> None:
        """An outage: told to the client."""
        if self._report.state is not State.WAITING or self._report.waiting_for != why:
            self._tell(State.WAITING, waiting_for=why)

    def run(self) -> Result:
        """Fly it, in this thread. Always returns an outcome, with the body brought to hover."""
        body = self._body
        try:
            self._fly()
        except MissionOver as end:
            over = end
        except Exception as error:
            over = MissionOver(Outcome.ERROR, f"{type(error).__name__}: {error}")
        finally:
            body.end()
        self._tell(State.ENDED, outcome=over.outcome, reason=over.reason)
        return Result(over.outcome, over.reason, self._report.decisions, body.path_m, body.collisions)

    def _fly(self) -> NoReturn:
        self._tell(State.ACCEPTED)
        self.check()
        self._prime()
        self._tell(State.TAKING_OFF)
        self._body.take_off()
        self._tell(State.HOVERING)
        count, reason, number = len(self.goal.instructions), "", 0
        for index, instruction in enumerate(self.goal.instructions):
            self._report = replace(self._report, instruction=instruction, instruction_index=index)
            reason, number = self._fly_instruction(instruction), index + 1
            if reason != "reached":
                break
        where = f" (instruction {number} of {count})" if count > 1 else ""
        raise MissionOver(Outcome.FINISHED, reason + where)

    def _fly_instruction(self, instruction: str) -> str:
        """The reason the model gave for finishing it."""
        self._free_since = self._clock.now()
        model = StreamingVLMModel(self._decide)
        agent = PilotAgent(model, self._perform, self._system_prompt)
        stuck = StuckDetector()
        self._finish_reason = ""
        left = self.goal.max_decisions - self._report.decisions
        if left > 0:
            last: ActionStep | None = None
            for step in agent.run(instruction, stream=True, max_steps=left):
                # smolagents yields the last step twice at the limit, and a step broken off before the exception.
                if not isinstance(step, ActionStep) or step is last or not (step.tool_calls or step.error):
                    continue
                last = step
                self._after_step(step, stuck)
                if self._finish_reason:
                    return self._finish_reason
                # The task, and as many steps as an ask can recall.
                del agent.memory.steps[1 : -toolset.RECENT_TURNS]
        raise MissionOver(Outcome.STEP_LIMIT, f"step limit of {self.goal.max_decisions} decisions")

    def _after_step(self, step: ActionStep, stuck: StuckDetector) -> None:
        tool, call = "", "error"
        if step.error is not None:
            self._close_decision()
            self._performed = Performed(f"error: {step.error}")
            self._free_since = self._clock.now()
        elif step.tool_calls:
            tool, call = step.tool_calls[0].name, str(step.model_output)
            # With the notes on arguments that were out of range.
            self._performed = replace(self._performed, line=str(step.observations))
        self._tell(State.HOVERING, last_tool_call=str(step.model_output), last_result=self._performed.line)
        verdict = stuck.step(tool, call, self._performed.moved_m, self._performed.turned_rad)
        if verdict is Verdict.STUCK and not self._finish_reason:
            raise MissionOver(Outcome.STUCK, f"no progress, last with {call}")
        self._notice = verdict is Verdict.WARN

    # Thinking.

    def _decide(self, instruction: str, turns: list[str]) -> Answer:
        """The memory's answer, on a frame no older than the end of the last motion. Outages are waited out."""
        if self._notice and turns:
            turns = [*turns[:-1], toolset.result_line(turns[-1], toolset.NO_PROGRESS)]
        failing_since: float | None = None
        while True:
            free_since = self._free_since
            self.check()
            before_barrier = self._clock.now()
            if self._report.state is not State.WAITING:
                self._tell(State.LOOKING)
            barrier = self._body.barrier()
            ask_s = self._clock.now()
            ask = Ask(
                prompt_id=self._prompt_id,
                instruction=instruction,
                recent_turns=tuple(toolset.recent_turns(instruction, turns)),
                earliest_frame=barrier,
                deadline_s=self._settings.decision_deadline_s,
                max_new_tokens=self._settings.max_new_tokens,
                temperature=self._settings.temperature,
            )
            self._asked += 1
            self._tell(State.THINKING)
            pending = self._memory.generate(ask)
            own_s = before_barrier - free_since + self._clock.now() - ask_s
            answer = self._answer(pending)
            answered_s = self._clock.now()
            if answer.status is AnswerStatus.OK and answer.frame_stamp < barrier - _STAMP_TOLERANCE_S:
                old = "the answer rests on a frame older than the end of the last motion"
                answer = replace(answer, status=AnswerStatus.ERROR, message=old)
            self._open = _OpenDecision(
                ask_s, barrier, answer, answered_s, max(0.0, own_s), self._performed.line
            )
            if answer.status is AnswerStatus.OK:
                self._frame_stamp = answer.frame_stamp
                self._report = replace(self._report, decisions=self._report.decisions + 1)
                return answer
            self._close_decision()
            if answer.status is AnswerStatus.UNKNOWN_PROMPT:
                self._prime()
            failing_since = failing_since if failing_since is not None else ask_s
            failing_s = self._clock.now() - failing_since
            if failing_s > self._settings.patience_s:
                raise MissionOver(
                    Outcome.PERCEPTION_LOST, f"no decision for {failing_s:.0f} s: {answer.message}"
                )
            self.on_waiting(f"a decision: {answer.message}")
            self._body.pause(_RETRY_S)
            self._free_since = self._clock.now()

    def _answer(self, pending: Pending[Answer]) -> Answer:
        """Whatever comes within the deadline. One second more than the server has: it should be the one to say so."""
        limit_s = self._settings.decision_deadline_s + 1.0
        answer = self._await(pending, limit_s)
        if answer is None:
            return Answer(AnswerStatus.DEADLINE, f"silence for {limit_s:g} s")
        return answer

    def _prime(self) -> None:
        began = self._clock.now()
        while True:
            primed = self._await(
                self._memory.prime(self._system_prompt, toolset.tools_json()), self._settings.patience_s
            )
            if primed is not None and primed.prompt_id:
                self._prompt_id = primed.prompt_id
                return
            message = primed.message if primed is not None else "silence"
            if primed is not None and primed.refused:
                raise MissionOver(Outcome.ERROR, f"priming refused: {message}")
            if self._clock.now() - began > self._settings.patience_s:
                raise MissionOver(Outcome.PERCEPTION_LOST, f"priming failed: {message}")
            self.on_waiting(f"priming: {message}")
            self._body.pause(_RETRY_S)

    def _await(self, pending: Pending[T], limit_s: float) -> T | None:
        """The answer, or None after `limit_s`. Cancels what is pending on every way out without an answer."""
        end = self._clock.now() + limit_s
        with self._lock:
            self._pending = pending
        answered = False
        try:
            while self._clock.now() <= end:
                answer = pending.poll()
                self.check()
                if answer is not None:
                    answered = True
                    return answer
                self._body.pause(_POLL_S)
            return None
        finally:
            with self._lock:
                self._pending = None
            if not answered:
                pending.cancel()

    # Moving.

    def _perform(self, name: str, arguments: dict[str, toolset.Value]) -> str:
        """Called by the tool that the model chose."""
        self._close_decision()
        self.check()
        if name == "finish":
            self._finish_reason = str(arguments["reason"])
            self._performed = Performed(toolset.finished(self._finish_reason))
        else:
            self._tell(State.MOVING, last_tool_call=toolset.call_line(name, arguments))
            self._performed = self._body.perform(name, arguments)
        self._free_since = self._clock.now()
        return self._performed.line

    def _close_decision(self) -> None:
        decision, self._open = self._open, None
        if decision is None:
            return
        now, answer = self._clock.now(), decision.answer
        name, arguments = parse_call(answer.tool_call) or ("", {})
        self._listener.on_decision(
            DecisionRecord(
                goal_id=self.goal.goal_id,
                instruction=self._report.instruction,
                step=self._asked,
                ask_s=decision.ask_s,
                done_s=now,
                barrier_stamp=decision.barrier_stamp,
                previous_result=decision.previous_result,
                answer=answer,
                tool=name,
                arguments=arguments,
                framework_ms=1e3 * (decision.own_s + now - decision.answered_s),
                hovering=self._body.only_hover_since(decision.ask_s),
            )
        )

    def _tell(
        self,
        state: State,
        *,
        last_tool_call: str | None = None,
        last_result: str | None = None,
        waiting_for: str = "",
        outcome: Outcome | None = None,
        reason: str = "",
    ) -> None:
        report = self._report
        self._report = replace(
            report,
            state=state,
            last_tool_call=report.last_tool_call if last_tool_call is None else last_tool_call,
            last_result=report.last_result if last_result is None else last_result,
            waiting_for=waiting_for,
            outcome=outcome,
            reason=reason,
        )
        self._listener.on_report(self.report)
