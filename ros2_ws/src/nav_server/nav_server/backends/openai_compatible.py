"""A backend on model servers that speak OpenAI's chat API: LM Studio, Ollama, vLLM, transformers serve, a cloud.

They remember nothing: each request carries the newest frames as pictures. One model may see and another plan; then the
first describes the frames in words and the second gets the words. A tool call is asked for in the strictest way that a
server offers: its own tool calls, else JSON bound to a schema, else JSON that is found in the text; a way that a server
refuses is not tried again.
"""

from __future__ import annotations

import base64
import hashlib
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Generic, TypeVar

import httpx2
import openai

from nav_common.clock import Clock
from nav_common.data import (
    AskRequest,
    AskResponse,
    CompressedImage,
    EngineStatus,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    PrimeRequest,
    PrimeResponse,
)
from nav_server.backends import calls
from nav_server.backends.interface import BackendError
from vlm_perception import pictures, prompting
from vlm_perception.engine import Generation
from vlm_perception.guard import Guard, RequestKind, kind_of
from vlm_perception.stream import SHUT_DOWN, StreamSettings, Taken
from vlm_perception.tickets import Ticket

R = TypeVar("R")
T = TypeVar("T")

CONNECT_TIMEOUT_S = 1.0
"""So that a server that is gone is known to be within the 2 s of a fallback."""
CALL_TOKENS = 96
"""Beyond the budget: of a call as JSON, which such a server counts and the engine's grammar would have forced. The
longest call of the nine tools has 45."""
MAX_WAITING = 4
AUTO = "auto"
"""As a model's name: the first that the server lists."""
DESCRIBE = (
    "Describe in a few words what is ahead of the drone, where obstacles and free ways are, and where in the picture "
    "whatever this is about stands: "
)


class ToolMode(Enum):
    """How a tool call is asked for."""

    NATIVE = auto()
    SCHEMA = auto()
    PARSED = auto()


@dataclass(frozen=True)
class Endpoint:
    """A model on a server. url: of its API, such as http://localhost:1234/v1. frames: newest pictures in a request."""

    name: str
    url: str
    model: str = AUTO
    api_key: str = field(default="", repr=False)
    frames: int = 4

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"{self.name}: address {self.url!r} must begin with http:// or https://")
        if not 1 <= self.frames <= 64:
            raise ValueError(f"{self.name}: frames is {self.frames}, must be 1 to 64")


class ChatModel:
    """One endpoint. For one thread; `problem` may be read by any."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.problem = ""
        """Why the last request could not be answered; "" when it was."""
        self._model = "" if endpoint.model == AUTO else endpoint.model
        # No proxies and no other settings of the environment: an address says where a request goes.
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=endpoint.api_key or "none",
            max_retries=0,
            http_client=httpx2.Client(trust_env=False),
        )

    def complete(self, messages: Sequence[Any], tokens: int, timeout_s: float, **options: Any) -> Any:
        """One completion.

        Raises:
            BackendError: it cannot be reached, or refuses.
            TimeoutError: no answer in time.
            openai.BadRequestError, openai.UnprocessableEntityError: it refuses this form of request.
        """
        timeout = httpx2.Timeout(max(timeout_s, 0.01), connect=min(CONNECT_TIMEOUT_S, max(timeout_s, 0.01)))
        try:
            answer = self._client.chat.completions.create(
                model=self._model or self._first_model(timeout),
                messages=list(messages),
                max_tokens=tokens,
                timeout=timeout,
                **options,
            )
            if not answer.choices:
                raise BackendError(f"{self.endpoint.name} answers without a choice")
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            raise
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise self._failed("does not answer") from None
            raise TimeoutError(f"{self.endpoint.name}: no answer in {timeout_s:.1f} s") from None
        except openai.APIConnectionError as error:
            raise self._failed(f"cannot be reached ({error.__cause__ or error})") from None
        except openai.APIStatusError as error:
            raise self._failed(f"answers {error.status_code}: {error.message:.200}") from None
        except (openai.OpenAIError, BackendError) as error:
            raise self._failed(str(error)) from None
        self.problem = ""
        return answer

    def _first_model(self, timeout: httpx2.Timeout) -> str:
        listed = self._client.models.list(timeout=timeout).data
        if not listed:
            raise BackendError(f"{self.endpoint.name} lists no model: load one in it")
        self._model = listed[0].id
        return self._model

    def _failed(self, reason: str) -> BackendError:
        self.problem = f"{self.endpoint.name} at {self.endpoint.url} {reason}"
        return BackendError(self.problem)

    def reachable(self) -> bool:
        """Whether it lists its models within CONNECT_TIMEOUT_S; `problem` says why not."""
        try:
            self._client.models.list(timeout=CONNECT_TIMEOUT_S)
        except openai.APIStatusError:
            pass  # it answers: that its list is broken hinders nobody
        except openai.OpenAIError as error:
            self._failed(f"cannot be reached ({error.__cause__ or error})")
            return False
        self.problem = ""
        return True

    def close(self) -> None:
        self._client.close()


@dataclass
class _Waiting(Generic[R, T]):
    """A request. deadline_s: on the backend's clock."""

    request: R
    ticket: Ticket[T]
    accepted_s: float
    deadline_s: float = math.inf
    tools: Sequence[prompting.Tool] = ()


class OpenAiBackend:
    """See the module's text. A thread of its own answers, generations first.

    planning: what decides, where that is another model than the one that sees. clock: for deadlines and barriers.
    """

    def __init__(
        self,
        vision: Endpoint,
        clock: Clock,
        *,
        planning: Endpoint | None = None,
        guard: Guard | None = None,
        settings: StreamSettings | None = None,
    ) -> None:
        self.clock = clock
        self.guard = guard or Guard()
        self.settings = settings or StreamSettings()
        self._vision = ChatModel(vision)
        self._planning = ChatModel(planning) if planning and planning != vision else None
        self._modes = list(ToolMode)
        self._prompt = ""
        self._tools: list[dict[str, Any]] = []
        self._prompt_id = ""
        self._status = EngineStatus(memory_resets=1)

        self._changed = threading.Condition()  # guards what follows
        self._frames: deque[CompressedImage] = deque(maxlen=vision.frames)
        self._generates: deque[_Waiting[GenerateGoal, GenerateResult]] = deque()
        self._asks: deque[_Waiting[AskRequest, AskResponse]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"backend {vision.name}", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why the last request could not be answered; "" when it was."""
        return self._vision.problem or (self._planning.problem if self._planning else "")

    def reachable(self) -> bool:
        """Whether its servers answer, within CONNECT_TIMEOUT_S each. Waits for them."""
        return self._vision.reachable() and (self._planning is None or self._planning.reachable())

    # -- from any thread

    def submit_frames(self, images: Sequence[CompressedImage]) -> Ticket[Taken]:
        ticket: Ticket[Taken] = Ticket()
        admitted, problems = 0, []
        with self._changed:
            for image in images:
                try:
                    pictures.decode(image.data)
                    newest_s = self._frames[-1].stamp_s if self._frames else -math.inf
                    if not image.stamp_s > newest_s or not math.isfinite(image.stamp_s):
                        raise pictures.BrokenPictureError(
                            f"its stamp {image.stamp_s} is not later than the newest"
                        )
                except pictures.BrokenPictureError as error:
                    problems.append(str(error))
                    continue
                self._frames.append(image)
                admitted += 1
            status = self._status
            self._status = replace(
                status,
                frames_received=status.frames_received + len(images),
                frames_broken=status.frames_broken + len(problems),
                frames_appended=status.frames_appended + admitted,
            )
            self._changed.notify()
        ticket.finish(Taken(admitted, 0, tuple(problems)))
        return ticket

    def submit_prime(self, request: PrimeRequest) -> Ticket[PrimeResponse]:
        ticket: Ticket[PrimeResponse] = Ticket()
        try:
            if not request.system_prompt.strip():
                raise ValueError("the system prompt is empty: send the agent's prompt")
            tools = prompting.parse_tools(request.tools)
        except ValueError as error:
            ticket.finish(PrimeResponse(False, str(error)))
            return ticket
        with self._changed:
            self._prompt, self._tools = request.system_prompt, tools
            text = prompting.prime_text(request.system_prompt, tools)
            self._prompt_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        ticket.finish(PrimeResponse(True, "", self._prompt_id, self._status.memory_resets))
        return ticket

    def submit_reset(self) -> Ticket[PrimeResponse]:
        ticket: Ticket[PrimeResponse] = Ticket()
        with self._changed:
            self._frames.clear()
            self._status = replace(self._status, memory_resets=self._status.memory_resets + 1)
        ticket.finish(PrimeResponse(True, "", self._prompt_id, self._status.memory_resets))
        return ticket

    def submit_generate(
        self,
        goal: GenerateGoal,
        on_text: Callable[[str], None] | None = None,
        *,
        tools: Sequence[prompting.Tool] = (),
    ) -> Ticket[GenerateResult]:
        ticket: Ticket[GenerateResult] = Ticket(on_text, self._wake)
        now_s, limit_s = self.clock.now(), goal.deadline_s or self.settings.deadline_s
        problem = "" if goal.instruction.strip() else "the instruction is empty: say where to fly"
        waiting = _Waiting(goal, ticket, now_s, now_s + limit_s, tools)
        problem = problem or self._enqueue(self._generates, waiting)
        if problem:
            ticket.finish(GenerateResult(GenerateStatus.ERROR, problem))
        return ticket

    def submit_ask(self, request: AskRequest) -> Ticket[AskResponse]:
        ticket: Ticket[AskResponse] = Ticket(notify=self._wake)
        problem = "" if request.question.strip() else "the question is empty: say what you want to know"
        problem = problem or self._enqueue(self._asks, _Waiting(request, ticket, self.clock.now()))
        if problem:
            ticket.finish(AskResponse(False, problem))
        return ticket

    def _enqueue(self, queue: deque[_Waiting[R, T]], waiting: _Waiting[R, T]) -> str:
        with self._changed:
            if self._closed:
                return SHUT_DOWN
            if len(queue) >= MAX_WAITING:
                return f"{MAX_WAITING} requests are waiting already: wait for them or cancel them"
            queue.append(waiting)
            self._changed.notify()
        return ""

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def status(self) -> EngineStatus:
        return replace(self._status, stamp_s=self.clock.now())

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    # -- the thread that answers

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    break
                generate = next((one for one in self._generates if self._is_due(one)), None)
                ask = self._asks[0] if generate is None and self._asks else None
                if generate is not None:
                    self._generates.remove(generate)
                elif ask is not None:
                    self._asks.popleft()
                else:
                    waits = [one.deadline_s - self.clock.now() for one in self._generates]
                    self._changed.wait(max(0.001, min(waits)) if waits else None)
                    continue
            if generate is not None:
                generate.ticket.finish(self._answer_goal(generate))
            elif ask is not None:
                ask.ticket.finish(self._answer_ask(ask))
        for one in self._generates:
            one.ticket.finish(GenerateResult(GenerateStatus.CANCELLED, SHUT_DOWN))
        for other in self._asks:
            other.ticket.finish(AskResponse(False, SHUT_DOWN))
        for model in filter(None, (self._vision, self._planning)):
            model.close()

    def _is_due(self, one: _Waiting[GenerateGoal, GenerateResult]) -> bool:
        newest_s = self._frames[-1].stamp_s if self._frames else -math.inf
        there = newest_s >= one.request.earliest_frame_s
        return there or one.ticket.cancelled or self.clock.now() >= one.deadline_s

    def _answer_goal(self, one: _Waiting[GenerateGoal, GenerateResult]) -> GenerateResult:
        goal, frames = one.request, list(self._frames)
        stamp_s = frames[-1].stamp_s if frames else 0.0
        waited_ms = 1e3 * (self.clock.now() - one.accepted_s)

        def ended(status: GenerateStatus, message: str, **values: Any) -> GenerateResult:
            resets = self._status.memory_resets
            return GenerateResult(
                status, message, frame_stamp_s=stamp_s, memory_resets=resets, barrier_ms=waited_ms, **values
            )

        if one.ticket.cancelled:
            return ended(GenerateStatus.CANCELLED, "cancelled before it began")
        if goal.prompt_id != self._prompt_id or not self._prompt_id:
            return ended(
                GenerateStatus.UNKNOWN_PROMPT, f"prompt {goal.prompt_id!r} is not primed: call Prime"
            )
        if not frames or stamp_s < goal.earliest_frame_s:
            return ended(
                GenerateStatus.NO_FRAME, "no frame new enough came in time: check the camera and the link"
            )
        tools = one.tools or self._tools
        if not tools:
            return ended(GenerateStatus.ERROR, "the primed prompt has no tools: prime one that has")
        try:
            done = self._decide(goal, tools, frames, one.deadline_s)
        except (BackendError, ValueError) as error:
            return ended(GenerateStatus.ERROR, str(error))
        if done is None:
            call = prompting.hover_call(tools)
            reason = f"{self._vision.endpoint.name} was too slow twice ({self.guard.settings.break_ms:g} ms)"
            status = GenerateStatus.OK if call else GenerateStatus.DEADLINE
            return ended(status, f"hover: {reason}", tool_call=call)
        if one.ticket.cancelled:
            return ended(GenerateStatus.CANCELLED, "cancelled")
        if done.finish == "deadline":
            return ended(GenerateStatus.DEADLINE, f"{self._vision.endpoint.name}: the deadline came")
        if one.ticket.on_text:
            one.ticket.on_text(done.text)
        self._count("generations", done)
        return ended(GenerateStatus.OK, "", text=done.text, tool_call=done.text, **_figures(done))

    def _decide(
        self,
        goal: GenerateGoal,
        tools: Sequence[prompting.Tool],
        frames: Sequence[CompressedImage],
        deadline_s: float,
    ) -> Generation | None:
        """One call; None: broken off twice. Where another model plans, the one that sees describes first."""
        words = [prompting.clean(line) for line in (goal.instruction, *goal.recent_calls)]
        planner, shown = self._vision, list(frames)
        if self._planning:
            seen = self._describe(goal.instruction, frames, deadline_s)
            if seen is None or seen.finish == "deadline":
                return seen
            words.insert(0, f"The camera shows: {prompting.clean(seen.text)}")
            planner, shown = self._planning, []

        def attempt(tokens: int, limit_s: float) -> Generation:
            return self._timed(
                limit_s, lambda left_s: self._call(planner, goal, words, tools, shown, tokens, left_s)
            )

        kind = kind_of(goal.kind, RequestKind.NORMAL)
        return self.guard.run(
            kind, attempt, now=self.clock.now, ceiling=goal.max_new_tokens, deadline_s=deadline_s
        )

    def _describe(
        self, instruction: str, frames: Sequence[CompressedImage], deadline_s: float
    ) -> Generation | None:
        request = AskRequest(DESCRIBE + prompting.clean(instruction), kind=RequestKind.ANALYSIS)
        return self._words(request, frames, deadline_s)

    def _words(
        self, request: AskRequest, frames: Sequence[CompressedImage], deadline_s: float
    ) -> Generation | None:
        question = prompting.clean(request.question)
        if request.choices:
            question += f"\nAnswer with one of: {', '.join(map(prompting.clean, request.choices))}."
        messages = [_system(self._prompt), _user(question, frames)]

        def attempt(tokens: int, limit_s: float) -> Generation:
            def ask(left_s: float) -> tuple[str, Any]:
                answer = self._vision.complete(messages, tokens, left_s, temperature=0.0)
                return answer.choices[0].message.content or "", answer

            return self._timed(limit_s, ask)

        kind = kind_of(request.kind, RequestKind.DETAILED)
        ceiling = request.max_new_tokens
        return self.guard.run(kind, attempt, now=self.clock.now, ceiling=ceiling, deadline_s=deadline_s)

    def _timed(self, limit_s: float, ask: Callable[[float], tuple[str, Any]]) -> Generation:
        """(text, completion) of what `ask` makes of the time left, as a Generation."""
        began_s = self.clock.now()
        try:
            text, answer = ask(limit_s - began_s if math.isfinite(limit_s) else 600.0)
        except TimeoutError:
            spent_s = self.clock.now() - began_s
            return Generation("", (), "deadline", 0, 0, 0, 1, 0.0, spent_s)
        spent_s, usage = self.clock.now() - began_s, answer.usage
        tokens_in, tokens_out = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Generation(text, (), "stop", tokens_in, tokens_out, 0, 1, spent_s, spent_s)

    def _call(
        self,
        planner: ChatModel,
        goal: GenerateGoal,
        words: Sequence[str],
        tools: Sequence[prompting.Tool],
        frames: Sequence[CompressedImage],
        tokens: int,
        left_s: float,
    ) -> tuple[str, Any]:
        """A checked call in the strictest way that the server takes.

        Raises:
            BackendError: no way leads to one.
        """
        end_s = self.clock.now() + left_s
        while True:
            mode = self._modes[0]
            system, text = self._prompt, "\n".join(words)
            if mode is not ToolMode.NATIVE:
                system += "\n\nTools:\n" + "\n".join(map(prompting.signature, tools))
                text += '\nAnswer with one JSON object only: {"name": TOOL, "arguments": {...}}.'
            try:
                answer = planner.complete(
                    [_system(system), _user(text, frames)],
                    tokens + CALL_TOKENS,
                    end_s - self.clock.now(),
                    temperature=goal.temperature,
                    **_binding(mode, tools),
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if mode is ToolMode.PARSED:
                    raise planner._failed(f"refuses the request: {error.message:.200}") from None
                self._modes.remove(mode)
                continue
            try:
                return _call_in(answer.choices[0].message, tools), answer
            except calls.CallError as error:
                if mode is not ToolMode.PARSED:  # the next decision tries the next way
                    self._modes.remove(mode)
                raise BackendError(f"{planner.endpoint.name}: {error}") from None

    def _answer_ask(self, one: _Waiting[AskRequest, AskResponse]) -> AskResponse:
        frames = list(self._frames)
        if one.ticket.cancelled:
            return AskResponse(False, "cancelled before it began")
        if not frames:
            return AskResponse(False, "no frame is in memory: check the camera and the link")
        try:
            done = self._words(one.request, frames, math.inf)
        except (BackendError, ValueError, openai.OpenAIError) as error:
            return AskResponse(False, str(error))
        if done is None:
            return AskResponse(False, f"{self._vision.endpoint.name} was too slow twice")
        answer = done.text.strip()
        if one.request.choices:
            chosen = [choice for choice in one.request.choices if choice.lower() in answer.lower()]
            if len(chosen) != 1:
                return AskResponse(False, f"{answer!r:.80} is none of the choices, or several")
            answer = chosen[0]
        self._count("asks", done)
        figures = _figures(done)
        figures.pop("tokens_forced")
        return AskResponse(True, answer=answer, frame_stamp_s=frames[-1].stamp_s, **figures)

    def _count(self, what: str, done: Generation) -> None:
        with self._changed:
            count = getattr(self._status, what) + 1
            self._status = replace(
                self._status, ask_ms=1e3 * done.total_s, ttft_ms=1e3 * done.ttft_s, **{what: count}
            )


def _figures(done: Generation) -> dict[str, Any]:
    return {
        "ttft_ms": 1e3 * done.ttft_s,
        "total_ms": 1e3 * done.total_s,
        "tokens_in": done.prompt_tokens,
        "tokens_sampled": done.sampled,
        "tokens_forced": done.forced,
    }


def _system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def _user(text: str, frames: Sequence[CompressedImage]) -> dict[str, Any]:
    """Pictures oldest first, then the words; words alone as plain text, which every server takes."""
    if not frames:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:{_mime(image.data)};base64,{_base64(image.data)}"}}
        for image in frames
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _mime(data: bytes) -> str:
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _binding(mode: ToolMode, tools: Sequence[prompting.Tool]) -> Mapping[str, Any]:
    """The part of a request that binds the answer to a call."""
    match mode:
        case ToolMode.NATIVE:
            return {"tools": list(tools), "tool_choice": "required"}
        case ToolMode.SCHEMA:
            schema = {"name": "tool_call", "strict": True, "schema": prompting.call_schema(tools)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case ToolMode.PARSED:
            return {}


def _call_in(message: Any, tools: Sequence[prompting.Tool]) -> str:
    """The first call of a message: of its tool calls, or in its text. Raises calls.CallError."""
    for call in message.tool_calls or ():
        function = getattr(call, "function", None)
        if function is not None:
            return calls.checked(function.name, function.arguments, tools)
    return calls.in_text(message.content or "", tools)
