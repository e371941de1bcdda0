"""What a stream answers from its memory: a tool call, an answer in words, or the likeliest of some choices.

Each answer passes the guard, and an answer that the memory as it is has given before is not generated again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from nav_common.clock import Clock
from nav_common.data import AskRequest, AskResponse, GenerateGoal, GenerateResult, GenerateStatus
from vlm_perception import prompting
from vlm_perception.engine import Generation
from vlm_perception.guard import Guard, RequestKind, ResponseCache, kind_of
from vlm_perception.memory import AnswerError, ChoiceAnswer, FrameMemory
from vlm_perception.request_queue import Queued


@dataclass(frozen=True)
class Answered:
    """How many generations and questions were answered, and the times of the newest of them; named as in
    EngineStatus."""

    generations: int = 0
    asks: int = 0
    ask_ms: float = 0.0
    ttft_ms: float = 0.0


class Responder:
    """For the thread that steps the stream; the attributes may be read from any.

    max_new_tokens: ceiling of what a tool call may sample.
    """

    def __init__(self, memory: FrameMemory, guard: Guard, clock: Clock, max_new_tokens: int) -> None:
        self.problem = ""
        """Why the model could not answer the last request; "" when it did, well or badly."""
        self.broken_off = False
        """Whether the last request was broken off twice."""
        self.answered = Answered()
        self._memory, self._guard, self._clock = memory, guard, clock
        self._max_new_tokens = max_new_tokens
        self._calls: ResponseCache[Generation] = ResponseCache()
        self._words: ResponseCache[Generation] = ResponseCache()
        self._choices: ResponseCache[ChoiceAnswer] = ResponseCache()

    # -- tool calls

    def generate(self, queued: Queued[GenerateGoal, GenerateResult], notes: Sequence[str]) -> GenerateResult:
        """A tool call. notes: lines that stand below the instruction."""
        goal, ticket = queued.request, queued.ticket
        if self._memory.prompt is None:
            return self.result(
                queued, GenerateStatus.ERROR, "the memory was lost while recalling: call Prime"
            )
        barrier_ms = 1e3 * (self._clock.now() - queued.accepted_s)
        kind = kind_of(goal.kind, RequestKind.NORMAL)
        ceiling = min(goal.max_new_tokens or self._max_new_tokens, self._max_new_tokens)
        tools = json.dumps(queued.tools)
        question = (
            None if goal.temperature else (goal.instruction, goal.recent_calls, *notes, kind, ceiling, tools)
        )

        def attempt(tokens: int, deadline_s: float) -> Generation:
            return self._memory.generate_call(
                goal.instruction,
                goal.recent_calls,
                max_new_tokens=tokens,
                temperature=goal.temperature,
                cancel=lambda: ticket.cancelled,
                deadline_s=deadline_s,
                on_text=ticket.on_text,
                tools=queued.tools,
                notes=notes,
            )

        def run(kind: RequestKind, attempt: Callable[[int, float], Generation]) -> Generation | None:
            return self._guard.run(kind, attempt, now=self._clock.now, deadline_s=queued.deadline_s)

        try:
            if not self._memory.look(goal.instruction, run):
                return self._hover(queued)
            done = self._guarded(self._calls, question, kind, ceiling, queued.deadline_s, attempt)
        except (ValueError, RuntimeError) as error:
            self.note_failure(error)
            return self.result(queued, GenerateStatus.ERROR, str(error))
        if done is None:
            return self._hover(queued)
        status, message = _ending(done)
        self.answered = replace(
            self.answered,
            generations=self.answered.generations + 1,
            ask_ms=1e3 * done.total_s,
            ttft_ms=1e3 * done.ttft_s,
        )
        called = status == GenerateStatus.OK
        return replace(
            self.result(queued, status, message),
            text=done.text,
            tool_call=json.dumps(json.loads(done.text), ensure_ascii=False) if called else "",
            barrier_ms=barrier_ms,
            ttft_ms=1e3 * done.ttft_s,
            total_ms=1e3 * done.total_s,
            tokens_in=done.prompt_tokens,
            tokens_sampled=done.sampled,
            tokens_forced=done.forced,
        )

    def result(
        self, queued: Queued[GenerateGoal, GenerateResult], status: GenerateStatus, message: str
    ) -> GenerateResult:
        """A result without a call, with the state of the memory."""
        return GenerateResult(
            status,
            message,
            frame_stamp_s=self._memory.newest_s or 0.0,
            memory_resets=self._memory.resets,
            barrier_ms=1e3 * (self._clock.now() - queued.accepted_s),
            cached_tokens=self._memory.cached_tokens,
        )

    def _hover(self, queued: Queued[GenerateGoal, GenerateResult]) -> GenerateResult:
        """In place of a call that the guard has broken off."""
        self.broken_off = True
        reason = self._broken_off()
        primed = self._memory.prompt.hover_call if self._memory.prompt else ""
        call = prompting.hover_call(queued.tools) if queued.tools else primed
        if not call:
            return self.result(queued, GenerateStatus.DEADLINE, f"{reason}; there is no tool to hover with")
        return replace(self.result(queued, GenerateStatus.OK, f"hover: {reason}"), tool_call=call)

    # -- questions

    def answer(
        self, queued: Queued[AskRequest, AskResponse], give_way: Callable[[], bool]
    ) -> AskResponse | None:
        """The answer; None: it gave way."""
        request, ticket = queued.request, queued.ticket
        if ticket.cancelled:
            return AskResponse(False, "cancelled before it began")
        if self._memory.prompt is None:
            return AskResponse(False, "no prompt is primed, so no frame is in memory: call Prime first")
        if self._memory.newest_s is None:
            return AskResponse(False, "no frame is in memory: check the camera and the link")

        def attempt(tokens: int, deadline_s: float) -> Generation:
            return self._memory.answer(
                request.question,
                max_new_tokens=tokens,
                cancel=lambda: ticket.cancelled or give_way(),
                deadline_s=deadline_s,
            )

        kind, ceiling = kind_of(request.kind, RequestKind.DETAILED), request.max_new_tokens
        question = (request.question, kind, ceiling)
        try:
            if request.choices:
                best = self._choose(request.question, request.choices)
                return self._response(best.answer, best.ttft_s, best.total_s, best.prompt_tokens, 0)
            done = self._guarded(self._words, question, kind, ceiling, math.inf, attempt)
        except (ValueError, RuntimeError) as error:
            self.note_failure(error)
            return AskResponse(False, str(error))
        if done is None:
            return AskResponse(False, f"{self._broken_off()}: ask for less, or raise break_ms")
        if done.finish != "cancelled":
            answer = done.text.strip()
            return self._response(answer, done.ttft_s, done.total_s, done.prompt_tokens, done.sampled)
        return AskResponse(False, f"cancelled after {done.sampled} tokens") if ticket.cancelled else None

    def _choose(self, question: str, choices: tuple[str, ...]) -> ChoiceAnswer:
        """The likeliest choice. Nothing is sampled, so there is nothing to break off: one pass is one pass."""
        known = self._choices.get(self._memory.cache_version, (question, choices))
        if known is not None:
            self._guard.count_hit()
            return replace(known, ttft_s=0.0, total_s=0.0)
        try:
            best = self._memory.choose(question, choices)
        except RuntimeError as error:
            self._guard.count_error(str(error))
            raise
        self._guard.count(RequestKind.QUICK, 0, best.total_s)
        self._choices.put((question, choices), best)
        return best

    def _response(
        self, answer: str, ttft_s: float, total_s: float, tokens_in: int, tokens_sampled: int
    ) -> AskResponse:
        ttft_ms, total_ms = 1e3 * ttft_s, 1e3 * total_s
        asks = self.answered.asks + 1
        self.answered = replace(self.answered, asks=asks, ask_ms=total_ms, ttft_ms=ttft_ms)
        return AskResponse(
            True,
            answer=answer,
            frame_stamp_s=self._memory.newest_s or 0.0,
            ttft_ms=ttft_ms,
            total_ms=total_ms,
            tokens_in=tokens_in,
            tokens_sampled=tokens_sampled,
            cached_tokens=self._memory.cached_tokens,
        )

    # -- both

    def note_failure(self, error: ValueError | RuntimeError) -> None:
        """An error of the memory, whoever asked it."""
        if isinstance(error, RuntimeError):
            self.problem = "" if isinstance(error, AnswerError) else str(error)

    def _guarded(
        self,
        answers: ResponseCache[Generation],
        question: Hashable | None,
        kind: RequestKind,
        ceiling: int,
        deadline_s: float,
        attempt: Callable[[int, float], Generation],
    ) -> Generation | None:
        """What the memory as it is has answered already, or an attempt's outcome by way of the guard; None: too slow.

        question: what an answer depends on beside the memory; None: on chance too.
        """
        known = None if question is None else answers.get(self._memory.cache_version, question)
        if known is not None:
            self._guard.count_hit()
            return replace(known, sampled=0, forced=0, passes=0, ttft_s=0.0, total_s=0.0)
        done = self._guard.run(kind, attempt, now=self._clock.now, ceiling=ceiling, deadline_s=deadline_s)
        self.problem, self.broken_off = "", done is None
        if question is not None and done is not None and done.finish in ("stop", "length"):
            answers.put(question, done)
        return done

    def _broken_off(self) -> str:
        return f"the model was broken off twice after {self._guard.settings.break_ms:g} ms"


def goal_problem(goal: GenerateGoal) -> str:
    """What is wrong with a goal, or ""."""
    if not goal.instruction.strip():
        return "the instruction is empty: say where to fly"
    if not (math.isfinite(goal.temperature) and goal.temperature >= 0):
        return f"temperature is {goal.temperature}, must be 0 (greedy) or positive"
    if not (math.isfinite(goal.earliest_frame_s) and math.isfinite(goal.deadline_s)):
        return f"earliest_frame {goal.earliest_frame_s} and deadline_s {goal.deadline_s} must be finite"
    return _kind_problem(goal.kind)


def ask_problem(request: AskRequest) -> str:
    """What is wrong with a question, or ""."""
    if not request.question.strip():
        return "the question is empty: say what you want to know"
    return _kind_problem(request.kind)


def _kind_problem(kind: str) -> str:
    try:
        kind_of(kind, RequestKind.NORMAL)
    except ValueError as error:
        return str(error)
    return ""


def _ending(done: Generation) -> tuple[GenerateStatus, str]:
    """How a generation ended, and what is to be said about it."""
    match done.finish:
        case "stop":
            return GenerateStatus.OK, ""
        case "cancelled":
            return GenerateStatus.CANCELLED, f"cancelled after {done.sampled} tokens"
        case "deadline":
            return GenerateStatus.DEADLINE, f"the deadline came after {done.sampled} tokens"
        case "length":
            problem = f"no whole tool call in {done.sampled} sampled tokens: raise max_new_tokens"
            return GenerateStatus.ERROR, problem
