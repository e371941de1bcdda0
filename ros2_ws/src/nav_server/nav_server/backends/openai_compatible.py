"""Memories on model servers that speak OpenAI's chat API: LM Studio, Ollama, vLLM, transformers serve, a cloud.

They remember nothing: each request carries the newest frames as pictures. One model may see and another plan; then the
first describes the frames in words and the second gets the words. A tool call is asked for in the strictest way that a
server offers: its own tool calls, else JSON bound to a schema, else JSON that is found in the text; a way that a server
refuses is not tried again.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import httpx2
import openai

from nav_common.clock import Clock
from nav_common.data import CompressedImage, PrimeRequest
from nav_server.backends import calls
from vlm_perception import prompting
from vlm_perception.admission import FrameGroup
from vlm_perception.engine import Appended, Generation
from vlm_perception.engine.decoding import Finish
from vlm_perception.guard import RequestKind
from vlm_perception.memory import AnswerError, ChoiceAnswer, Prompt, RunGuarded
from vlm_perception.serving_form import ServingForm

LONGEST_REQUEST_S = 600.0
CONNECT_TIMEOUT_S = 1.0
"""So that a server that is gone is known to be within the 2 s of a fallback."""
CALL_TOKENS = 96
"""Beyond the budget: of a call as JSON, which such a server counts and the engine's grammar would have forced. The
longest call of the nine tools has 45."""
CHOICE_TOKENS = 8
CHOICE_LIMIT_S = 6.0
"""Of a question with choices, which the guard does not break off: twice what it allows a request."""
AUTO = "auto"
"""As a model's name: the first that the server lists."""
DESCRIBE = (
    "Describe in a few words what is ahead of the drone, where obstacles and free ways are, and where in the picture "
    "whatever this is about stands: "
)


class ModelServerError(RuntimeError):
    """A model server cannot be reached, or refuses; names it and says why."""


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
    """One endpoint. `reachable` for any thread, the rest for the one that steps the streams on it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.modes = list(ToolMode)
        """Ways to ask for a call that it has not refused, the strictest first."""
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
            ModelServerError: it cannot be reached, or refuses.
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
                raise AnswerError(f"{self.endpoint.name} answers without a choice")
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            raise
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise self.failed("does not answer") from None
            raise TimeoutError(f"{self.endpoint.name}: no answer in {timeout_s:.1f} s") from None
        except openai.APIConnectionError as error:
            raise self.failed(f"cannot be reached ({error.__cause__ or error})") from None
        except openai.APIStatusError as error:
            raise self.failed(f"answers {error.status_code}: {error.message:.200}") from None
        except openai.OpenAIError as error:
            raise self.failed(str(error)) from None
        return answer

    def _first_model(self, timeout: httpx2.Timeout) -> str:
        listed = self._client.models.list(timeout=timeout).data
        if not listed:
            raise self.failed("lists no model: load one in it")
        self._model = listed[0].id
        return self._model

    def failed(self, reason: str) -> ModelServerError:
        """A failure of the server, with its name and address."""
        return ModelServerError(f"{self.endpoint.name} at {self.endpoint.url} {reason}")

    def reachable(self) -> bool:
        """Whether it lists its models within CONNECT_TIMEOUT_S."""
        try:
            self._client.models.list(timeout=CONNECT_TIMEOUT_S)
        except openai.APIStatusError:
            pass  # it answers: that its list is broken hinders nobody
        except openai.OpenAIError:
            return False
        return True

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True)
class _ServedPrompt(Prompt):
    """With what it was made of."""

    system: str = ""
    tools: tuple[prompting.Tool, ...] = ()


class ServedMemory:
    """The newest frames, for a model on a server: a FrameMemory (which says what its methods are) without a cache.

    planning: what decides, where that is another model than the one that sees.
    """

    form = ServingForm(max_cache_tokens=1)
    """Frames each 0.5 s, one at a time, any prompt. There is no cache to keep tokens in."""

    def __init__(self, vision: ChatModel, clock: Clock, planning: ChatModel | None = None) -> None:
        self.name = vision.endpoint.name
        self.resets = 1
        self.prompt: _ServedPrompt | None = None
        self.cached_tokens = 0
        self._clock = clock
        self._vision = vision
        self._planning = planning
        self._frames: deque[CompressedImage] = deque(maxlen=vision.endpoint.frames)
        self._appended = 0
        self._seen = ""
        """What the planner is told of the frames."""

    @property
    def newest_s(self) -> float | None:
        return self._frames[-1].stamp_s if self._frames else None

    @property
    def cache_version(self) -> tuple[int, int]:
        return self.resets, self._appended

    @property
    def chunk_stamps_s(self) -> list[float]:
        return [image.stamp_s for image in self._frames]

    def usage(self) -> dict[str, Any]:
        return {"memory_resets": self.resets, "chunks": len(self._frames)}

    def prepared(self, request: PrimeRequest) -> _ServedPrompt:
        if not request.system_prompt.strip():
            raise ValueError("the system prompt is empty: send the agent's prompt")
        tools = prompting.parse_tools(request.tools)
        text = prompting.prime_text(request.system_prompt, tools)
        grammar = json.dumps(prompting.call_schema(tools)) if tools else ""
        hover = prompting.hover_call(tools)
        return _ServedPrompt(
            prompting.prompt_id(text), text, 0, grammar, hover, request.system_prompt, tuple(tools)
        )

    def begin(self, prompt: Prompt | None) -> float:
        assert prompt is None or isinstance(prompt, _ServedPrompt)
        self.prompt = prompt
        self._frames.clear()
        self.resets += 1
        return 0.0

    def append(self, chunk: FrameGroup) -> Appended:
        if chunk.replaces_newest and self._frames:
            self._frames.pop()
        self._frames.extend(decoded.frame.image for decoded in chunk.frames)
        self._appended += 1
        return Appended()

    # -- asks

    def look(self, instruction: str, run: RunGuarded) -> bool:
        """Where another model plans, the one that sees says first what is there."""
        if self._planning is None:
            return True
        question = DESCRIBE + prompting.clean(instruction)
        seen = run(
            RequestKind.ANALYSIS,
            lambda tokens, deadline_s: self.answer(
                question, max_new_tokens=tokens, cancel=lambda: False, deadline_s=deadline_s
            ),
        )
        self._seen = seen.text if seen else ""
        return seen is not None

    def generate_call(
        self,
        instruction: str,
        recent_calls: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        cancel: Callable[[], bool],
        deadline_s: float,
        on_text: Callable[[str], None] | None,
        tools: Sequence[prompting.Tool] = (),
        notes: Sequence[str] = (),
    ) -> Generation:
        assert self.prompt is not None
        words = [prompting.clean(line) for line in (instruction, *notes, *recent_calls)]
        planner, frames = self._vision, tuple(self._frames)
        if self._planning:
            words.insert(0, f"The camera shows: {prompting.clean(self._seen)}")
            planner, frames = self._planning, ()
        asked = _Asked(self.prompt.system, tuple(words), tuple(tools) or self.prompt.tools, frames)

        def ask(left_s: float) -> tuple[str, Any]:
            return self._call(planner, asked, max_new_tokens, temperature, left_s)

        done = self._timed(deadline_s, cancel, ask)
        if on_text and done.text:
            on_text(done.text)
        return done

    def answer(
        self, question: str, *, max_new_tokens: int, cancel: Callable[[], bool], deadline_s: float
    ) -> Generation:
        system = self.prompt.system if self.prompt else ""
        messages = [_system(system), _user(prompting.clean(question), self._frames)]

        def ask(left_s: float) -> tuple[str, Any]:
            try:
                answer = self._vision.complete(messages, max_new_tokens, left_s, temperature=0.0)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                raise self._vision.failed(f"refuses the question: {error.message:.200}") from None
            return answer.choices[0].message.content or "", answer

        return self._timed(deadline_s, cancel, ask)

    def choose(self, question: str, choices: Sequence[str]) -> ChoiceAnswer:
        """The one that the answer names. Servers give no probability: it is 1."""
        asked = f"{question}\nAnswer with one of: {', '.join(map(prompting.clean, choices))}."
        end_s = self._clock.now() + CHOICE_LIMIT_S
        done = self.answer(asked, max_new_tokens=CHOICE_TOKENS, cancel=lambda: False, deadline_s=end_s)
        if done.finish == "deadline":
            raise AnswerError(f"{self.name}: no answer in {CHOICE_LIMIT_S:g} s")
        named = [choice for choice in choices if re.search(rf"\b{re.escape(choice)}\b", done.text, re.I)]
        if len(named) != 1:
            raise AnswerError(f"{self.name}: {done.text!r:.80} is none of the choices, or several")
        return ChoiceAnswer(named[0], 1.0, done.prompt_tokens, done.ttft_s, done.total_s)

    def _timed(
        self, deadline_s: float, cancel: Callable[[], bool], ask: Callable[[float], tuple[str, Any]]
    ) -> Generation:
        """(text, completion) of what `ask` makes of the time left, as a Generation. A request under way cannot be
        cancelled: what comes of it is thrown away then."""
        began_s = self._clock.now()
        try:
            text, answer = ask(min(deadline_s - began_s, LONGEST_REQUEST_S))
        except TimeoutError:
            return Generation("", (), "deadline", 0, 0, 0, 1, 0.0, self._clock.now() - began_s)
        spent_s, usage = self._clock.now() - began_s, answer.usage
        tokens_in, tokens_out = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        finish: Finish = "cancelled" if cancel() else "stop"
        return Generation(text, (), finish, tokens_in, tokens_out, 0, 1, spent_s, spent_s)

    def _call(
        self, planner: ChatModel, asked: _Asked, tokens: int, temperature: float, left_s: float
    ) -> tuple[str, Any]:
        """A checked call in the strictest way that the server takes.

        Raises:
            AnswerError: there is none in the answer.
            ModelServerError: the server takes none of the ways.
        """
        end_s = self._clock.now() + left_s
        while True:
            mode = planner.modes[0]
            system, text = asked.system, "\n".join(asked.words)
            if mode is not ToolMode.NATIVE:
                system += "\n\nTools:\n" + "\n".join(map(prompting.signature, asked.tools))
                text += '\nAnswer with one JSON object only: {"name": TOOL, "arguments": {...}}.'
            try:
                answer = planner.complete(
                    [_system(system), _user(text, asked.frames)],
                    tokens + CALL_TOKENS,
                    end_s - self._clock.now(),
                    temperature=temperature,
                    **_binding(mode, asked.tools),
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if mode is ToolMode.PARSED:
                    raise planner.failed(f"refuses the request: {error.message:.200}") from None
                planner.modes.remove(mode)
                continue
            try:
                return _call_in(answer.choices[0].message, asked.tools), answer
            except calls.ToolCallError as error:
                if mode is not ToolMode.PARSED:  # the next decision tries the next way
                    planner.modes.remove(mode)
                raise AnswerError(f"{planner.endpoint.name}: {error}") from None


@dataclass(frozen=True)
class _Asked:
    """What a decision is asked with: words a line each, pictures oldest first."""

    system: str
    words: tuple[str, ...]
    tools: tuple[prompting.Tool, ...]
    frames: tuple[CompressedImage, ...]


def _system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def _user(text: str, frames: Collection[CompressedImage]) -> dict[str, Any]:
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
    """The first call of a message: of its tool calls, or in its text. Raises calls.ToolCallError."""
    for call in message.tool_calls or ():
        function = getattr(call, "function", None)
        if function is not None:
            return calls.checked(function.name, function.arguments, tools)
    return calls.in_text(message.content or "", tools)
