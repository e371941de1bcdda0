"""Clients of one loaded model: each has a stream with a timeline and an agent of its own; silent ones are dropped."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from nav_agent import toolset
from nav_agent.mission import reason_request
from nav_agent.tool_calling import ToolCaller, ToolResult
from nav_common.data import (
    CompressedImage,
    EngineStatus,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    PrimeRequest,
)
from nav_server.actions import Action, coarse
from nav_server.backends.factory import Backends, Callbacks, Served
from nav_server.problems import Problem
from nav_server.watches import ClientWatches
from vlm_perception.engine.budget import fitting_tokens
from vlm_perception.request_queue import Taken
from vlm_perception.serving_form import ServingForm
from vlm_perception.tickets import Ticket

FIRST_STAMP_S = 1.0
"""Of a client's timeline; 0 would read as "none"."""
MAX_QUESTION_TOKENS = 300
"""A question shares the 1024 tokens that the engine reserves for an ask with the recent calls and the answer."""
_PRIME_LIMIT_S = 60.0
_SLACK_S = 1.0  # beyond the stream's own deadline: it should be the one to report it


@dataclass(frozen=True)
class Decided:
    """One decision. ttft_s: until the call's first token; `reasoning` "" where the model has no words."""

    action: Action
    tool: str
    arguments: Mapping[str, Any]
    reasoning: str
    ttft_s: float
    message: str = ""


class Session:
    """One client's stream. `submit_frames` may be called from any thread, `decide` from one at a time, and it waits.

    The client's timeline is the one its fields tell: each frame is 1/fps after the one before it, however fast the
    requests come.
    """

    def __init__(self, backends: Backends, form: ServingForm | None, frames_per_chunk: int | None) -> None:
        """form: see Backends.stream. frames_per_chunk: what the client wants."""
        self.watches = ClientWatches(lambda request: self.stream.submit_watches(request))
        self.stream = backends.stream(form=form, callbacks=Callbacks(on_watch=self.watches.on_event))
        self.frames_per_chunk = frames_per_chunk or self.stream.form.frames_per_chunk
        self.used_s = backends.clock.now()
        self._backends = backends
        self._stamp_s = FIRST_STAMP_S
        self._prompt_id = ""
        self._lock = threading.Lock()  # of the timeline
        self._deciding = threading.Lock()
        self._goal = GenerateGoal("", "")
        self._tools: Sequence[dict[str, Any]] = ()
        self._result = GenerateResult(GenerateStatus.ERROR)
        self._called: tuple[str, dict[str, toolset.Value]] = ("", {})
        self._calls: list[str] = []
        self._caller = ToolCaller(self._generate, self._note_call, backends.system_prompt)

    def prime(self) -> None:
        """Put prompt and tools at the head of the stream; nothing happens if they are there.

        Raises:
            Problem: the model refuses them, or was too busy.
        """
        ticket = self.stream.submit_prime(PrimeRequest(self._backends.system_prompt, toolset.tools_json()))
        if not ticket.wait(_PRIME_LIMIT_S):
            ticket.cancel()
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the model is too busy to begin a stream", 5)
        if not ticket.result.success:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"no stream can begin: {ticket.result.message}", 5)
        self._prompt_id = ticket.result.prompt_id

    def submit_frames(self, pictures: Sequence[bytes], fps: float) -> Ticket[Taken]:
        """Pictures, oldest first, the newest 1/fps after each other."""
        with self._lock:
            images = []
            for data in pictures:
                self._stamp_s += 1.0 / fps
                images.append(CompressedImage(self._stamp_s, data))
            return self.stream.submit_frames(images)

    def decide(
        self,
        question: str,
        *,
        max_new_tokens: int,
        temperature: float,
        tools: Sequence[dict[str, Any]],
        last_result: str,
    ) -> Decided:
        """One step of the agent: exactly one call of one of the tools, then (if the model has words) why.

        Raises:
            Problem: the question is too long, another decision is under way, there is no frame, or none could be made.
        """
        tokens = self._backends.count_tokens(question)
        if tokens > MAX_QUESTION_TOKENS:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"the question has {tokens} tokens, at most {MAX_QUESTION_TOKENS}: shorten it",
            )
        if not self._deciding.acquire(blocking=False):
            raise Problem(HTTPStatus.CONFLICT, "a decision of this client is under way: wait for it", 1)
        try:
            self._recall(last_result)
            self._goal = GenerateGoal(
                self._prompt_id,
                question,
                toolset.recent_calls(question, self._calls),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                earliest_frame_s=self._stamp_s if self._stamp_s > FIRST_STAMP_S else 0.0,
            )
            self._tools = tools
            self._called = ("", {})
            step = self._caller.step()
            tool, arguments = self._called
            if not tool:
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"no decision: {step.result.line}", 1)
            reasoning = self._reason(step.call) if self.stream.answers_in_words else ""
            ttft_s = 1e-3 * self._result.ttft_ms
            return Decided(coarse(tool, arguments), tool, arguments, reasoning, ttft_s, self._result.message)
        finally:
            self._deciding.release()

    def _recall(self, last_result: str) -> None:
        """The last call with its result, if the client says what came of it; the server cannot know."""
        tool, arguments = self._called
        if tool and last_result.strip():
            line = toolset.recall_line(toolset.call_line(tool, arguments), last_result)
            self._calls = [*self._calls[1 - toolset.RECENT_CALLS :], line]

    def _generate(self) -> GenerateResult:
        """The agent's ask of its memory."""
        result = self._ask_memory()
        if result.status is GenerateStatus.UNKNOWN_PROMPT:  # an error emptied the stream
            self.prime()
            self._goal = dataclasses.replace(self._goal, prompt_id=self._prompt_id)
            result = self._ask_memory()
        self._result = result
        if result.status is GenerateStatus.NO_FRAME:
            raise Problem(
                HTTPStatus.CONFLICT, "no frame is in memory: send some with /append_frame before /decide"
            )
        if result.status is not GenerateStatus.OK:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"no decision: {result.message}", 1)
        return result

    def _ask_memory(self) -> GenerateResult:
        goal = self._goal
        if self._stamp_s <= FIRST_STAMP_S:
            return GenerateResult(GenerateStatus.NO_FRAME)
        ticket = self.stream.submit_generate(goal, tools=self._tools)
        if not ticket.wait(self.stream.settings.deadline_s + _SLACK_S):
            ticket.cancel()
            return GenerateResult(GenerateStatus.DEADLINE, "the model is too busy")
        return ticket.result

    def _note_call(self, tool: str, arguments: Mapping[str, toolset.Value]) -> ToolResult:
        """The agent's tools: the client carries them out, and says in its next request what came of it."""
        self._called = (tool, dict(arguments))
        return ToolResult("")

    def _reason(self, call: str) -> str:
        """Why, in a sentence; "" where the model does not get to it. The call stands whatever comes of this."""
        ticket = self.stream.submit_ask(reason_request(self._goal.instruction, call))
        if not ticket.wait(self.stream.settings.deadline_s):
            ticket.cancel()
            return ""
        return ticket.result.answer

    def status(self) -> EngineStatus:
        return self.stream.status()

    def close(self) -> None:
        self.stream.close()
        self.watches.close()


class Sessions:
    """The clients' sessions. From any thread; `of` waits while a stream begins."""

    def __init__(self, backends: Backends, *, max_clients: int, idle_s: float) -> None:
        self._backends = backends
        self._clock = backends.clock
        self._max_clients = max_clients
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, client: str) -> Session | None:
        """The client's session, if it has one."""
        with self._lock:
            session = self._sessions.get(client)
            if session is not None:
                session.used_s = self._clock.now()
            return session

    def of(self, client: str, frames_per_chunk: int | None = None) -> Session:
        """The client's session, begun if it has none.

        frames_per_chunk: what the client wants; None: as it is.

        Raises:
            Problem: there are too many clients, the model takes other chunks, or it has no memory left.
        """
        with self._lock:
            session = self._sessions.get(client)
            if session is None:
                self._drop_idle()
                session = self._begin(frames_per_chunk)
                self._sessions[client] = session
            elif frames_per_chunk not in (None, session.frames_per_chunk):
                raise Problem(
                    HTTPStatus.CONFLICT,
                    f"chunk_frames is {frames_per_chunk}, but this stream began with {session.frames_per_chunk}: "
                    "keep to it, or /reset",
                )
            session.used_s = self._clock.now()
            return session

    def _begin(self, wanted: int | None) -> Session:
        if len(self._sessions) >= self._max_clients:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._max_clients} clients have streams already: wait until one is idle for {self._idle_s:g} s or "
                "sends /reset, or start the server with a higher --max-clients",
                retry_after_s=30,
            )
        try:
            first, form = self._backends.first, None
            if isinstance(first, Served):
                form = self._form(first, wanted or first.form.frames_per_chunk)
            session = Session(self._backends, form, wanted)
        except (ValueError, RuntimeError) as error:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, f"no memory for another stream: {error}", 30
            ) from None
        try:
            session.prime()
        except Problem:
            session.close()
            raise
        return session

    def _form(self, served: Served, frames_per_chunk: int) -> ServingForm:
        """The form of a new stream: the model's own is kept to; else its share of what memory is left."""
        form = served.form
        if not served.form.answers_in_words:
            if frames_per_chunk != form.frames_per_chunk:
                raise Problem(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    f"chunk_frames is {frames_per_chunk}, but this model was trained on {form.frames_per_chunk}: send "
                    "that",
                )
            return form
        if frames_per_chunk > 1 and frames_per_chunk % 2:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"chunk_frames is {frames_per_chunk}: 1, or an even number, as the model sees frames of a video in "
                "pairs",
            )
        share = fitting_tokens(served.model) // (self._max_clients - len(self._sessions))
        return dataclasses.replace(
            form,
            frames_per_chunk=frames_per_chunk,
            as_video=frames_per_chunk > 1,
            max_cache_tokens=min(form.max_cache_tokens, max(share, 1)),
        )

    def drop(self, client: str) -> None:
        """End a client's session, if it has one."""
        with self._lock:
            session = self._sessions.pop(client, None)
        if session is not None:
            session.close()

    def drop_idle(self) -> None:
        """End the sessions of clients that have been silent for too long."""
        with self._lock:
            self._drop_idle()

    def _drop_idle(self) -> None:
        before_s = self._clock.now() - self._idle_s
        for client, session in list(self._sessions.items()):
            if session.used_s < before_s:
                session.close()
                del self._sessions[client]
