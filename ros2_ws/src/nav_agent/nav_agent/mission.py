"""The life of one goal: take off, then look, think and move in turn until an outcome."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol, TypeVar

from nav_agent import toolset
from nav_agent.ending import GoalEnded
from nav_agent.motion import FlightControl
from nav_agent.ports import Memory, MemoryUnavailable, Pending
from nav_agent.stuck import StuckDetector, Verdict
from nav_agent.tool_calling import Step, ToolCaller, ToolResult
from nav_common import contract, result_lines
from nav_common.clock import Clock
from nav_common.data import (
    AskRequest,
    Decision,
    FinishReason,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    GoalState,
    NavigateFeedback,
    NavigateGoal,
    NavigateResult,
    NavigateState,
    Outcome,
    PrimeRequest,
    PrimeResponse,
    WatchRequest,
)

T = TypeVar("T")

WATCH_OWNER = "nav_agent"
"""Of the watches that come with a goal."""
REASON_TOKENS = 48
"""Of the words that say why: one sentence (chosen)."""
_REASON_LIMIT_S = 5.0  # the drone hovers meanwhile; the decision stands whatever comes of it
_WAIT_S = 0.05  # for an answer, before the drone is looked at again
PRIME_ANSWER_S = 5.0
"""A request to prime that is not answered for so long is sent again: one that found only a perception that was killed
is lost, and the memory answers at once what it has primed already."""
_RETRY_S = 0.5  # after a failed decision, so that a server that refuses is not asked in a tight loop
_DEADLINE_SLACK_S = 1.0  # beyond the server's deadline: it should be the one to report it


def reason_request(instruction: str, call: str) -> AskRequest:
    """The second ask, in words, that follows a decision: why this call?"""
    question = f"{instruction}\nYou chose {call}. Say why in one short sentence."
    return AskRequest(question, max_new_tokens=REASON_TOKENS)


@dataclass(frozen=True)
class MissionSettings:
    """Limits of a goal that does not give its own, and of a decision. The deadline is above the 3 s that a decision may
    take on the intended machine. reasons: whether each decision is followed by the ask why, before it is carried out.
    """

    max_decisions: int = 40
    time_limit_s: float = 600.0
    decision_deadline_s: float = 10.0
    outage_timeout_s: float = contract.OUTAGE_TIMEOUT_S
    max_new_tokens: int = 0
    temperature: float = 0.0
    reasons: bool = False


MakeFlightControl = Callable[[Callable[[], None], Callable[[str], None]], FlightControl]
"""(check, on_outage) -> flight control: `check` raises GoalEnded when the goal is over, `on_outage` gets its reason."""


class Listener(Protocol):
    """Is notified from the thread that flies the mission. Must return at once."""

    def on_goal_state(self, state: GoalState) -> None:
        """The state changed, or the goal ended."""
        ...

    def on_feedback(self, goal_id: str, feedback: NavigateFeedback) -> None:
        """Something that the client sees changed."""
        ...

    def on_decision(self, decision: Decision) -> None:
        """A decision is complete, or an attempt at one failed."""
        ...


@dataclass(frozen=True)
class _OpenDecision:
    """A decision between the ask and the moment its tool starts. Times on the agent's clock, s."""

    ask_s: float
    barrier_stamp_s: float
    result: GenerateResult
    answered_s: float
    own_s: float  # spent by the agent before the ask was sent
    previous_result: str
    reason: str = ""
    reason_s: float = 0.0  # spent on it


class Mission:
    """One goal. `run` flies it in the caller's thread; `stop` ends it from any other."""

    def __init__(
        self,
        goal_id: str,
        goal: NavigateGoal,
        memory: Memory,
        clock: Clock,
        settings: Callable[[], MissionSettings],
        system_prompt: str,
        listener: Listener,
        make_control: MakeFlightControl,
    ) -> None:
        """`settings` is read before each decision; the limits of the whole goal are those at its start."""
        limits = settings()
        self.goal_id = goal_id
        self.goal = replace(
            goal,
            max_decisions=goal.max_decisions or limits.max_decisions,
            time_limit_s=goal.time_limit_s or limits.time_limit_s,
        )
        self._memory = memory
        self._clock = clock
        self._read_settings = settings
        self._settings = limits
        self._system_prompt = system_prompt
        self._listener = listener
        self._lock = threading.Lock()
        self._ended: GoalEnded | None = None
        self._pending: Pending[object] | None = None
        self._prompt_id = ""
        self._end_s = clock.now() + self.goal.time_limit_s
        self._feedback = NavigateFeedback(NavigateState.ACCEPTED)
        self._instruction = goal.instructions[0]
        self._outage = ""
        self._published: NavigateState | None = None
        self._calls: deque[str] = deque(maxlen=toolset.RECENT_CALLS)
        """The last calls with their results, as an ask recalls them; of this instruction."""
        self._open: _OpenDecision | None = None
        self._free_since_s = clock.now()
        self._control = make_control(self.check, self.on_outage)
        self._asked = 0
        self._frame_stamp_s = 0.0
        self._last_result = ""
        self._finish: FinishReason | None = None
        self._warn = False

    @property
    def feedback(self) -> NavigateFeedback:
        """Where it stands now."""
        control = self._control
        age_s = control.edge_time_s() - self._frame_stamp_s if self._frame_stamp_s else 0.0
        return replace(
            self._feedback,
            odometry_age_s=control.odometry_age_s(),
            frame_age_s=max(0.0, age_s),
            cache_use=self._memory.cache_use(),
        )

    def stop(self, outcome: Outcome, reason: str) -> None:
        """End it with this outcome, unless it has one already; a generation under way is cancelled at once."""
        with self._lock:
            if self._ended is None:
                self._ended = GoalEnded(outcome, reason)
            pending = self._pending
        if pending is not None:
            pending.cancel()

    def check(self) -> None:
        """Raises GoalEnded when the goal is over."""
        ended = self._ended
        if ended is not None:
            raise GoalEnded(ended.outcome, ended.reason)
        if self._clock.now() > self._end_s:
            raise GoalEnded(Outcome.TIME_LIMIT, f"time limit of {self.goal.time_limit_s:g} s")

    def on_outage(self, reason: str) -> None:
        """Nothing can be decided or flown at present."""
        if self._feedback.state is not NavigateState.WAITING or self._outage != reason:
            self._outage = reason
            self._publish(NavigateState.WAITING, reason)

    def run(self) -> NavigateResult:
        """Fly it, in this thread. Always returns an outcome, with the drone brought to hover."""
        control = self._control
        try:
            self._fly()
        except GoalEnded as ended:
            outcome, reason = ended.outcome, ended.reason
        except Exception as error:
            outcome, reason = Outcome.ERROR, f"{type(error).__name__}: {error}"
        finally:
            control.end()
            self._unwatch()
        flown = self._feedback
        self._publish(NavigateState.ENDED, reason, outcome)
        return NavigateResult(
            outcome, reason, flown.decisions, control.path_m, control.collisions, flown.instruction_index
        )

    def _fly(self) -> NoReturn:
        self._publish(NavigateState.ACCEPTED)
        self.check()
        self._prime()
        self._publish(NavigateState.TAKING_OFF)
        self._control.take_off()
        self._publish(NavigateState.HOVERING)
        first_frame = self._memory.frames()
        switches = [first_frame + index for index in self.goal.switch_frame_indices]
        for index, instruction in enumerate(self.goal.instructions):
            self._instruction = instruction
            self._feedback = replace(self._feedback, instruction_index=index)
            until_frame = switches[index] if index < len(switches) else None
            reason = self._fly_instruction(until_frame)
            if reason not in (FinishReason.REACHED, None):
                break
            while until_frame is not None and not self._has_come(until_frame):
                self._control.pause(_WAIT_S)  # reached early: it hovers until then
        raise GoalEnded(Outcome.FINISHED, str(reason))

    def _has_come(self, frame: int | None) -> bool:
        """Whether the memory has got so many frames."""
        return frame is not None and self._memory.frames() >= frame

    def _fly_instruction(self, until_frame: int | None) -> FinishReason | None:
        """Step by step until the model finishes it, and the reason it gave; None: the memory had got so many frames
        before. A motion is flown to its end."""
        self._free_since_s = self._clock.now()
        self._calls.clear()
        self._finish, self._warn = None, False
        caller = ToolCaller(self._decide, self._call_tool, self._system_prompt)
        stuck = StuckDetector()
        while self._feedback.decisions < self.goal.max_decisions:
            if self._has_come(until_frame):
                return None
            step = caller.step()
            self._after_step(step, stuck)
            if self._finish is not None:
                return self._finish
        raise GoalEnded(Outcome.STEP_LIMIT, f"step limit of {self.goal.max_decisions} decisions")

    def _after_step(self, step: Step, stuck: StuckDetector) -> None:
        if not step.tool:
            self._close_decision()
            self._free_since_s = self._clock.now()
        self._last_result = line = step.result.line
        self._publish(NavigateState.HOVERING, last_tool_call=step.call, last_result=line)
        self._calls.append(toolset.recall_line(step.call, line))
        call = step.call if step.tool else "error"
        verdict = stuck.step(step.tool, call, step.result.moved_m, step.result.turned_rad)
        if verdict is Verdict.STUCK and self._finish is None:
            raise GoalEnded(Outcome.STUCK, f"no progress, last with {call}")
        self._warn = verdict is Verdict.WARN

    # Thinking.

    def _decide(self) -> GenerateResult:
        """The memory's answer, on a frame no older than the end of the last motion. Outages are waited out."""
        failing_since_s: float | None = None
        while True:
            result, ask_s = self._ask()
            if result.status is GenerateStatus.OK:
                self._frame_stamp_s = result.frame_stamp_s
                self._feedback = replace(self._feedback, decisions=self._feedback.decisions + 1)
                if self._settings.reasons:
                    self._ask_reason(result)
                return result
            self._close_decision()
            if result.status is GenerateStatus.UNKNOWN_PROMPT:
                self._prime()
            failing_since_s = ask_s if failing_since_s is None else failing_since_s
            failing_s = self._clock.now() - failing_since_s
            if failing_s > self._settings.outage_timeout_s:
                reason = f"no decision for {failing_s:.0f} s: {result.message}"
                raise GoalEnded(Outcome.PERCEPTION_LOST, reason)
            self.on_outage(f"a decision: {result.message}")
            self._control.pause(_RETRY_S)
            self._free_since_s = self._clock.now()

    def _ask(self) -> tuple[GenerateResult, float]:
        """One ask, and when it was sent: what came of it within the deadline, checked against the barrier."""
        free_since_s = self._free_since_s
        self.check()
        before_barrier_s = self._clock.now()
        if self._feedback.state is not NavigateState.WAITING:
            self._publish(NavigateState.LOOKING)
        barrier_s = self._control.barrier()
        ask_s = self._clock.now()
        self._settings = settings = self._read_settings()
        goal = GenerateGoal(
            prompt_id=self._prompt_id,
            instruction=self._instruction,
            recent_calls=toolset.recent_calls(self._instruction, self._recalled()),
            earliest_frame_s=barrier_s,
            deadline_s=settings.decision_deadline_s,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
        )
        self._asked += 1
        self._publish(NavigateState.THINKING)
        pending = self._memory.generate(goal)
        own_s = before_barrier_s - free_since_s + self._clock.now() - ask_s
        limit_s = settings.decision_deadline_s + _DEADLINE_SLACK_S
        result = self._await(pending, limit_s)
        answered_s = self._clock.now()
        if result is None:
            result = GenerateResult(GenerateStatus.DEADLINE, f"no answer within {limit_s:g} s")
        elif (
            result.status is GenerateStatus.OK
            and result.frame_stamp_s < barrier_s - contract.STAMP_TOLERANCE_S
        ):
            old = "the answer rests on a frame older than the end of the last motion"
            result = replace(result, status=GenerateStatus.ERROR, message=old)
        self._open = _OpenDecision(ask_s, barrier_s, result, answered_s, max(0.0, own_s), self._last_result)
        return result, ask_s

    def _ask_reason(self, result: GenerateResult) -> None:
        """Why, in the model's words; nothing where it has none or does not get to it."""
        began_s, call = self._clock.now(), toolset.parse_call(result.tool_call)
        if call is None or self._open is None:
            return
        reason = ""
        with contextlib.suppress(MemoryUnavailable):
            request = reason_request(self._instruction, toolset.call_line(*call))
            answer = self._await(self._memory.ask(request), _REASON_LIMIT_S)
            reason = answer.answer if answer and answer.success else ""
        self._open = replace(self._open, reason=reason, reason_s=self._clock.now() - began_s)

    def _recalled(self) -> list[str]:
        lines = list(self._calls)
        if self._warn and lines:
            lines[-1] = result_lines.result_line(lines[-1], result_lines.NO_PROGRESS)
        return lines

    def _prime(self) -> None:
        began_s = self._clock.now()
        while True:
            try:
                pending = self._memory.prime(PrimeRequest(self._system_prompt, toolset.tools_json()))
                response = self._await(pending, min(PRIME_ANSWER_S, self._settings.outage_timeout_s))
                message = "no answer"
            except MemoryUnavailable as error:
                response, message = None, str(error)
            if response is not None:
                self._prompt_id = _prompt_id(response)
                self._watch()
                return
            if self._clock.now() - began_s > self._settings.outage_timeout_s:
                raise GoalEnded(Outcome.PERCEPTION_LOST, f"priming failed: {message}")
            self.on_outage(f"priming: {message}")
            self._control.pause(_RETRY_S)

    def _watch(self) -> None:
        """The goal's standing questions to the memory. A goal without any takes those of a goal before away, without
        waiting for it."""
        goal = self.goal
        request = WatchRequest(WATCH_OWNER, goal.watches, goal.hover_watches)
        if not goal.watches and not goal.hover_watches:
            with contextlib.suppress(MemoryUnavailable):
                self._memory.watch(request)
            return
        try:
            response = self._await(self._memory.watch(request), self._settings.outage_timeout_s)
        except MemoryUnavailable as error:
            raise GoalEnded(Outcome.PERCEPTION_LOST, f"the watches were not taken: {error}") from None
        if response is None:
            raise GoalEnded(Outcome.PERCEPTION_LOST, "the watches were not taken: no answer")
        if not response.success:
            raise GoalEnded(Outcome.ERROR, f"the watches were refused: {response.message}")

    def _unwatch(self) -> None:
        """Nobody waits for its answer: the goal is over."""
        if self.goal.watches or self.goal.hover_watches:
            with contextlib.suppress(MemoryUnavailable):
                self._memory.watch(WatchRequest(WATCH_OWNER))

    def _await(self, pending: Pending[T], limit_s: float) -> T | None:
        """The answer, or None after `limit_s`. Cancels what is pending on every way out without an answer."""
        end_s = self._clock.now() + limit_s
        with self._lock:
            self._pending = pending
        answer: T | None = None
        try:
            while answer is None and (left_s := end_s - self._clock.now()) > 0:
                self._control.pause(0.0)
                answer = pending.wait(min(_WAIT_S, left_s))
            self.check()
            return answer
        finally:
            with self._lock:
                self._pending = None
            if answer is None:
                pending.cancel()

    # Moving.

    def _call_tool(self, name: str, arguments: Mapping[str, toolset.Value]) -> ToolResult:
        """Carry out what the model chose."""
        self._close_decision()
        self.check()
        if name == "finish":
            self._finish = FinishReason(str(arguments["reason"]))
            result = ToolResult(result_lines.finished(self._finish))
        else:
            self._publish(NavigateState.MOVING, last_tool_call=toolset.call_line(name, arguments))
            result = self._control.perform(name, arguments)
        self._free_since_s = self._clock.now()
        return result

    def _close_decision(self) -> None:
        decision, self._open = self._open, None
        if decision is None:
            return
        now_s, result = self._clock.now(), decision.result
        name, arguments = toolset.parse_call(result.tool_call) or ("", {})
        self._listener.on_decision(
            Decision(
                stamp_s=now_s,
                ask_stamp_s=decision.ask_s,
                frame_stamp_s=result.frame_stamp_s,
                barrier_stamp_s=decision.barrier_stamp_s,
                goal_id=self.goal_id,
                instruction=self._instruction,
                step=self._asked,
                tool=name,
                arguments=json.dumps(arguments) if name else "",
                reason=decision.reason,
                previous_result=decision.previous_result,
                status=result.status,
                message=result.message,
                barrier_ms=result.barrier_ms,
                ttft_ms=result.ttft_ms,
                generate_ms=result.total_ms,
                framework_ms=1e3 * (decision.own_s + now_s - decision.answered_s - decision.reason_s),
                total_ms=1e3 * (now_s - decision.ask_s),
                tokens_in=result.tokens_in,
                tokens_sampled=result.tokens_sampled,
                tokens_forced=result.tokens_forced,
                cached_tokens=result.cached_tokens,
                hovering=self._control.only_hover_since(decision.ask_s),
            )
        )

    def _publish(
        self,
        state: NavigateState,
        reason: str = "",
        outcome: Outcome = Outcome.FINISHED,
        *,
        last_tool_call: str | None = None,
        last_result: str | None = None,
    ) -> None:
        now = self._feedback
        self._feedback = replace(
            now,
            state=state,
            last_tool_call=now.last_tool_call if last_tool_call is None else last_tool_call,
            last_result=now.last_result if last_result is None else last_result,
        )
        if self._published is not state:
            self._published = state
            self._listener.on_goal_state(
                GoalState(
                    stamp_s=self._clock.now(),
                    goal_id=self.goal_id,
                    instruction=self._instruction,
                    state=state,
                    decisions=now.decisions,
                    outcome=outcome,
                    reason=reason,
                )
            )
        self._listener.on_feedback(self.goal_id, self.feedback)


def _prompt_id(response: PrimeResponse) -> str:
    """Raises GoalEnded where the memory refuses the prompt: asking again would be in vain."""
    if not response.success:
        raise GoalEnded(Outcome.ERROR, f"priming refused: {response.message}")
    return response.prompt_id
