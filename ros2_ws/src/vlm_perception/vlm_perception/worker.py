"""The memory at work: one stream of the engine, and the rules by which frames, generations and questions take turns
on it.

Whoever calls `step` owns the model: a thread of the node's, or the only thread of a lock-step composition. Everything
named `submit_...` may be called from any thread and returns at once, mostly with a Ticket.

The order of work in each step: priming and reset; a Generate whose barrier frame is in; frames; questions. A question
that is being answered gives way to a Generate and is answered anew after it: its tail is cut off, which costs
nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from nav_common.clock import Clock
from vlm_perception import frame_rule, pictures, prompting
from vlm_perception.engine import QwenModel, VideoStreamingInference, json_grammar
from vlm_perception.engine.decoding import Constraint
from vlm_perception.frame_rule import Pose, PoseTrack
from vlm_perception.serving_form import ServingForm

T = TypeVar("T")

# JPEGs kept to feed a new stream with: 64 at 0.5 s are the last 32 s of flight, about 1 MB at 320x240.
RING_CHUNKS = 64
# More than one agent and a few people asking is a mistake somewhere.
MAX_WAITING = 4

SHUT_DOWN = "the memory is being shut down"

STATUS_OK, STATUS_CANCELLED, STATUS_DEADLINE, STATUS_NO_FRAME, STATUS_ERROR, STATUS_UNKNOWN_PROMPT = range(6)
"""As in Generate.action."""


class Ticket(Generic[T]):
    """Work handed in: its result once done. May be cancelled, and watched, from any thread."""

    def __init__(
        self, on_text: Callable[[str], None] | None = None, wake: Callable[[], None] | None = None
    ) -> None:
        self.on_text = on_text
        self._wake = wake
        self._done = threading.Event()
        self._cancelled = threading.Event()
        self._result: T | None = None

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called; the result says whether it came in time."""
        return self._cancelled.is_set()

    @property
    def result(self) -> T:
        """RuntimeError while not done."""
        if not self._done.is_set():
            raise RuntimeError("the ticket is not done yet: look at `done`, or wait")
        return self._result  # type: ignore[return-value]

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is done within the time. For threads other than the one that steps the worker."""
        return self._done.wait(timeout_s)

    def cancel(self) -> None:
        """Stop within one token, or before it began."""
        self._cancelled.set()
        if self._wake:
            self._wake()

    def _finish(self, result: T) -> None:
        self._result = result
        self._done.set()


@dataclass(frozen=True)
class GenerateRequest:
    """As the goal of Generate.action; times in seconds."""

    prompt_id: str
    instruction: str
    recent_turns: Sequence[str] = ()
    max_new_tokens: int = 0
    temperature: float = 0.0
    earliest_frame: float = 0.0
    deadline_s: float = 0.0


@dataclass(frozen=True)
class GenerateResult:
    """As the result of Generate.action; times in seconds and milliseconds as named there."""

    status: int
    message: str = ""
    text: str = ""
    tool_call: str = ""
    frame_stamp: float = 0.0
    memory_resets: int = 0
    barrier_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_sampled: int = 0
    tokens_forced: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class PrimeResult:
    """As the response of Prime.srv."""

    success: bool
    message: str = ""
    prompt_id: str = ""
    memory_resets: int = 0
    tokens: int = 0
    elapsed_ms: float = 0.0


@dataclass(frozen=True)
class AskRequest:
    """As the request of Ask.srv."""

    question: str
    choices: Sequence[str] = ()
    max_new_tokens: int = 0


@dataclass(frozen=True)
class AskResult:
    """As the response of Ask.srv."""

    success: bool
    message: str = ""
    answer: str = ""
    frame_stamp: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_sampled: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Status:
    """As EngineStatus.msg, without the stamp."""

    memory_resets: int = 0
    cached_tokens: int = 0
    sink_tokens: int = 0
    window_tokens: int = 0
    budget_tokens: int = 0
    chunks: int = 0
    chunks_appended: int = 0
    frames_received: int = 0
    frames_broken: int = 0
    frames_replaced: int = 0
    frames_appended: int = 0
    frames_provisional: int = 0
    evictions: int = 0
    asks: int = 0
    generations: int = 0
    append_ms: float = 0.0
    ask_ms: float = 0.0
    ttft_ms: float = 0.0
    frame_latency_ms: float = 0.0
    frame_age_s: float = 0.0
    rss_mib: float = 0.0
    gpu_mib: float = 0.0


@dataclass(frozen=True)
class _Frame:
    data: bytes
    stamp: float
    received: float


@dataclass(frozen=True)
class _Picture:
    frame: _Frame
    pixels: np.ndarray
    pose: Pose | None


@dataclass
class _Waiting(Generic[T]):
    """A request in the queue. accepted, deadline: on the worker's clock."""

    request: Any
    ticket: Ticket[T]
    accepted: float
    deadline: float = math.inf


@dataclass
class _Prompt:
    id: str
    text: str
    tokens: int
    grammar: str


@dataclass
class _Memory:
    """What belongs to one stream and dies with it."""

    first_stamp: float | None = None
    newest_stamp: float | None = None
    """Of the newest frame in the cache."""
    taken_stamp: float | None = None
    """Of the newest frame accepted: in the cache, in `pending`, or (before priming) in the ring."""
    newest_pose: Pose | None = None
    """Where the newest chunk was taken, when it is provisional."""
    pending: list[_Picture] = field(default_factory=list)
    """Frames of a chunk that is not full yet."""


class PerceptionWorker:
    """One stream of a model, and its queue. See the module's text for who may call what.

    live: a new frame replaces an unread older one; else (replay) every frame is looked at in order.
    """

    def __init__(
        self,
        model: QwenModel,
        form: ServingForm,
        clock: Clock,
        *,
        live: bool = True,
        default_deadline_s: float = 10.0,
        ask_tokens: int = 64,
        on_change: Callable[[], None] = lambda: None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        """default_deadline_s: of a Generate that names none. ask_tokens: the longest answer to a question that names
        none.

        on_change is called by the stepping thread whenever `status` has something new; on_warning gets a line for
        each frame that was skipped; requests are told in their results.
        """
        self.form = form
        self.clock = clock
        self.live = live
        self._default_deadline_s = default_deadline_s
        self._ask_tokens = ask_tokens
        self._on_change = on_change
        self._on_warning = on_warning
        self._engine = VideoStreamingInference(
            model, max_cache_tokens=form.max_cache_tokens, sink_size=form.sink_size, clock=clock.now
        )
        self._prompt: _Prompt | None = None
        self._memory = _Memory()
        self._ring: deque[list[_Frame]] = deque(maxlen=RING_CHUNKS)
        self._status = Status(memory_resets=1, budget_tokens=form.max_cache_tokens)

        self._lock = threading.Lock()  # guards what follows
        self._closed = False
        self._wake = threading.Event()
        self._received = 0
        self._broken = 0
        self._replaced = 0
        self._track = PoseTrack()
        self._frames: deque[_Frame] = deque()
        self._spare: _Frame | None = None
        """Newest frame that was looked at and not due: the barrier may yet want it."""
        self._controls: deque[tuple[Callable[[], PrimeResult], Ticket[PrimeResult]]] = deque()
        self._generates: deque[_Waiting[GenerateResult]] = deque()
        self._asks: deque[_Waiting[AskResult]] = deque()

    # -- from any thread

    def submit_frame(self, data: bytes, stamp: float) -> None:
        """A compressed picture (JPEG or PNG) taken at `stamp`, s."""
        frame = _Frame(data, stamp, self.clock.now())
        problem = ""
        try:
            pictures.check(data)
            if not (math.isfinite(stamp) and stamp > 0):
                problem = f"its stamp is {stamp}"
        except pictures.BrokenPictureError as error:
            problem = str(error)
        with self._lock:
            self._received += 1
            if problem:
                self._broken += 1
            else:
                if self.live and self._frames:
                    self._frames.clear()
                    self._replaced += 1
                self._frames.append(frame)
        if problem:
            self._on_warning(f"frame skipped: {problem}")
        self._wake.set()

    def submit_pose(self, pose: Pose) -> None:
        """Where the vehicle was; tells hovering from flying. Without poses every frame is history."""
        if all(map(math.isfinite, (pose.stamp, pose.x, pose.y, pose.z, pose.yaw))):
            with self._lock:
                self._track.add(pose)

    def submit_prime(self, system_prompt: str, tools_json: str) -> Ticket[PrimeResult]:
        """Put a prompt with its tools at the head of the stream."""
        return self._control(lambda: self._prime(system_prompt, tools_json))

    def submit_reset(self) -> Ticket[PrimeResult]:
        """Empty the memory; the prompt stays primed."""
        return self._control(self._reset)

    def _control(self, action: Callable[[], PrimeResult]) -> Ticket[PrimeResult]:
        ticket: Ticket[PrimeResult] = Ticket()
        with self._lock:
            closed = self._closed
            if not closed:
                self._controls.append((action, ticket))
        if closed:
            ticket._finish(PrimeResult(False, SHUT_DOWN))
        self._wake.set()
        return ticket

    def submit_generate(
        self, request: GenerateRequest, on_text: Callable[[str], None] | None = None
    ) -> Ticket[GenerateResult]:
        """Ask for one tool call. on_text gets the text so far, on the stepping thread."""
        ticket: Ticket[GenerateResult] = Ticket(on_text, self._wake.set)
        now = self.clock.now()
        wait_s = request.deadline_s if request.deadline_s > 0 else self._default_deadline_s
        problem = _problem_of(request)
        with self._lock:
            if self._closed:
                problem = SHUT_DOWN
            elif not problem and len(self._generates) >= MAX_WAITING:
                problem = f"{MAX_WAITING} generations are waiting already: wait for them or cancel them"
            if not problem:
                self._generates.append(_Waiting(request, ticket, now, now + wait_s))
        if problem:
            ticket._finish(GenerateResult(STATUS_ERROR, problem))
        self._wake.set()
        return ticket

    def submit_ask(self, request: AskRequest) -> Ticket[AskResult]:
        """Ask a question in words."""
        ticket: Ticket[AskResult] = Ticket(wake=self._wake.set)
        problem = "" if request.question.strip() else "the question is empty: say what you want to know"
        with self._lock:
            if self._closed:
                problem = SHUT_DOWN
            elif not problem and len(self._asks) >= MAX_WAITING:
                problem = f"{MAX_WAITING} questions are waiting already: ask again later"
            if not problem:
                self._asks.append(_Waiting(request, ticket, self.clock.now()))
        if problem:
            ticket._finish(AskResult(False, problem))
        self._wake.set()
        return ticket

    def status(self) -> Status:
        """The numbers now."""
        status = self._status
        newest = self._memory.newest_stamp
        with self._lock:
            received, broken, replaced = self._received, self._broken, self._replaced
        return replace(
            status,
            frames_received=received,
            frames_broken=broken,
            frames_replaced=replaced,
            frame_age_s=self.clock.now() - newest if newest is not None and status.chunks else 0.0,
            rss_mib=_resident_mib(),
            gpu_mib=torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0,
        )

    # -- by the thread that owns the model

    def run(self) -> None:
        """Step until `close` is called: what the node's worker thread does. What still waits then is told so."""
        while not self._closed:
            self._wake.clear()
            while not self._closed and self.step():
                pass
            if not self._closed:
                self._wake.wait(self._idle_s())
        for _, ticket in self._controls:
            ticket._finish(PrimeResult(False, SHUT_DOWN))
        for generate in self._generates:
            generate.ticket._finish(GenerateResult(STATUS_CANCELLED, SHUT_DOWN))
        for ask in self._asks:
            ask.ticket._finish(AskResult(False, SHUT_DOWN))

    def close(self) -> None:
        """End `run`, from any thread: a decode loop under way stops within one token, and what comes later is told
        at once."""
        with self._lock:
            self._closed = True
            tickets: list[Ticket[Any]] = [one.ticket for one in self._generates]
            tickets += [one.ticket for one in self._asks]
        for ticket in tickets:
            ticket.cancel()
        self._wake.set()

    def run_until_idle(self) -> None:
        """All that can be done now: for lock-step and replay."""
        while self.step():
            pass

    def step(self) -> bool:
        """One piece of work, the most urgent. False: there was none."""
        return self._step_control() or self._step_generate() or self._step_frame() or self._step_ask()

    def _idle_s(self) -> float:
        with self._lock:
            deadlines = [waiting.deadline for waiting in self._generates]
        return max(0.001, min([0.5, *(deadline - self.clock.now() for deadline in deadlines)]))

    # -- priming and reset

    def _step_control(self) -> bool:
        with self._lock:
            if not self._controls:
                return False
            action, ticket = self._controls.popleft()
        try:
            result = action()
        except (ValueError, RuntimeError) as error:
            result = PrimeResult(False, str(error), memory_resets=self._status.memory_resets)
        self._tell()
        ticket._finish(result)
        return True

    def _prime(self, system_prompt: str, tools_json: str) -> PrimeResult:
        if not system_prompt.strip():
            raise ValueError("the system prompt is empty: send the agent's prompt")
        tools = prompting.parse_tools(tools_json)
        difference = self.form.difference(system_prompt, tools)
        if difference:
            raise ValueError(
                "the model was trained for another prompt or other tools; send its own (in its serving_form.json) or "
                f"train it anew. Lines with - are the model's:\n{difference}"
            )
        text = prompting.prime_text(system_prompt, tools)
        prompt_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        if self._prompt and self._prompt.id == prompt_id:
            return self._primed(0.0)
        prompt = _Prompt(
            prompt_id,
            text,
            self._checked_tokens(text),
            json_grammar(prompting.call_schema(tools)) if tools else "",
        )
        if prompt.grammar:
            # Compiled now: a wrong schema is refused here, and no decision in flight waits for it.
            Constraint(self._engine.qwen, prompt.grammar)
        seconds = self._new_stream(prompt)
        for frames in list(self._ring):
            chunk = [_Picture(frame, pictures.decode(frame.data), None) for frame in frames]
            seconds += self._append(chunk, replace_newest=False)
        return self._primed(1e3 * seconds)

    def _checked_tokens(self, prime_text: str) -> int:
        form = self.form
        tokens = len(self._engine.qwen.tokenize(prime_text))
        # 32: the tag and the marks around a picture, generously
        chunk = form.width * form.height // 28**2 * max(1, form.frames_per_chunk // 2) + 32
        if tokens + chunk > form.max_cache_tokens:
            raise ValueError(
                f"the prompt has {tokens} tokens and a chunk up to {chunk}, but max_cache_tokens is "
                f"{form.max_cache_tokens}: raise it, shorten the prompt or lower the resolution"
            )
        return tokens

    def _primed(self, elapsed_ms: float) -> PrimeResult:
        prompt = self._prompt
        assert prompt is not None
        return PrimeResult(True, "", prompt.id, self._status.memory_resets, prompt.tokens, elapsed_ms)

    def _new_stream(self, prompt: _Prompt | None) -> float:
        """An empty memory of the next epoch with this prompt at its head; what it cost, s."""
        self._engine.reset()
        seconds = self._engine.prime(prompt.text)["seconds"] if prompt else 0.0
        self._prompt = prompt
        self._memory.first_stamp = self._memory.newest_stamp = None
        self._status = replace(self._status, memory_resets=self._status.memory_resets + 1)
        return seconds

    def _reset(self) -> PrimeResult:
        self._ring.clear()
        with self._lock:
            self._frames.clear()
            self._spare = None
            self._track = PoseTrack()
        self._memory = _Memory()
        seconds = self._new_stream(self._prompt)
        if self._prompt:
            return self._primed(1e3 * seconds)
        return PrimeResult(True, memory_resets=self._status.memory_resets)

    # -- frames

    def _step_frame(self) -> bool:
        """Look at one frame, and take it if it is due."""
        memory = self._memory
        barrier = self._barrier()
        interval_s = self.form.frame_interval_s
        with self._lock:
            if self.live and self._frames:
                self._spare = None
            frame, self._spare = self._spare, None
            if frame and frame_rule.is_due(frame.stamp, memory.taken_stamp, interval_s, barrier):
                pass
            elif self._frames:
                frame = self._frames.popleft()
            else:
                self._spare = frame
                return False
            if memory.taken_stamp is not None and frame.stamp <= memory.taken_stamp:
                problem = (
                    f"its stamp {frame.stamp:.3f} is not later than {memory.taken_stamp:.3f}, the newest"
                )
                self._broken += 1
            elif frame_rule.is_due(frame.stamp, memory.taken_stamp, interval_s, barrier):
                problem = ""
            else:
                self._spare = frame
                return True
            pose = self._track.at(frame.stamp)
        if problem:
            self._on_warning(f"frame skipped: {problem}")
        else:
            self._take(frame, pose)
        self._tell()
        return True

    def _barrier(self) -> float | None:
        """The earliest frame that a Generate still waits for."""
        taken = self._memory.taken_stamp
        with self._lock:
            wanted = [waiting.request.earliest_frame for waiting in self._generates]
        return min((stamp for stamp in wanted if taken is None or stamp > taken), default=None)

    def _take(self, frame: _Frame, pose: Pose | None) -> None:
        """A frame into the chunk being filled, and the chunk into the memory when it is full."""
        memory = self._memory
        try:
            picture = _Picture(frame, pictures.decode(frame.data), pose)
        except pictures.BrokenPictureError as error:
            self._count_broken(1, str(error))
            return
        if memory.pending and memory.pending[0].pixels.shape != picture.pixels.shape:
            self._flush()
        memory.pending.append(picture)
        memory.taken_stamp = frame.stamp
        if len(memory.pending) >= self.form.frames_per_chunk:
            self._flush()

    def _flush(self) -> None:
        """The frames that wait for their chunk to be full, into the memory as they are."""
        memory = self._memory
        chunk, memory.pending = memory.pending, []
        poses = [picture.pose for picture in chunk]
        provisional = bool(self._ring) and frame_rule.replaces(memory.newest_pose, poses)
        if self._prompt:
            try:
                self._append(chunk, provisional)
            except (ValueError, RuntimeError) as error:
                memory.taken_stamp = memory.newest_stamp
                self._count_broken(len(chunk), str(error))
                return
        if provisional:
            self._ring.pop()
        else:
            memory.newest_pose = frame_rule.chunk_pose(poses)
        self._ring.append([picture.frame for picture in chunk])

    def _append(self, chunk: Sequence[_Picture], replace_newest: bool) -> float:
        """A chunk into the engine's cache; what it cost, s."""
        memory, form = self._memory, self.form
        stamps = [picture.frame.stamp for picture in chunk]
        if memory.first_stamp is None:
            memory.first_stamp = stamps[0]
        tag = form.tag.format(elapsed_s=stamps[0] - memory.first_stamp)
        pixels = [picture.pixels for picture in chunk]
        if form.as_video:
            done = self._engine.append_video_chunk(
                pixels, text_content=tag, stamps=stamps, replace_newest=replace_newest
            )
        else:
            done = self._engine.append_frame(
                pixels[0], text_content=tag, stamp=stamps[0], replace_newest=replace_newest
            )
        memory.newest_stamp = stamps[-1]
        newest = chunk[-1].frame
        status = self._status
        self._status = replace(
            status,
            chunks_appended=status.chunks_appended + (not replace_newest),
            frames_appended=status.frames_appended + len(chunk),
            frames_provisional=status.frames_provisional + (len(chunk) if replace_newest else 0),
            evictions=status.evictions + done.evicted_chunks,
            append_ms=1e3 * (done.vision_s + done.prefill_s),
            frame_latency_ms=1e3 * (newest.received - newest.stamp),
        )
        return done.vision_s + done.prefill_s

    def _count_broken(self, frames: int, problem: str) -> None:
        with self._lock:
            self._broken += frames
        self._on_warning(f"frame skipped: {problem}")

    # -- generations

    def _step_generate(self) -> bool:
        """Answer the first Generate that can be answered, if only by saying why not."""
        with self._lock:
            waiting = list(self._generates)
        for one in waiting:
            result = self._generated(one)
            if result is None:
                continue
            with self._lock:
                self._generates.remove(one)
            self._tell()
            one.ticket._finish(result)
            return True
        return False

    def _generated(self, waiting: _Waiting[GenerateResult]) -> GenerateResult | None:
        """The answer, or None while its frame is not in."""
        request, prompt = waiting.request, self._prompt
        if waiting.ticket.cancelled:
            return self._unanswered(waiting, STATUS_CANCELLED, "cancelled before it began")
        if prompt is None or request.prompt_id != prompt.id:
            primed = f"the memory holds {prompt.id!r}" if prompt else "none is primed"
            return self._unanswered(
                waiting,
                STATUS_UNKNOWN_PROMPT,
                f"prompt {request.prompt_id!r} is not primed ({primed}): call Prime",
            )
        if not self._holds(request.earliest_frame):
            if self.clock.now() < waiting.deadline:
                return None
            newest = self._memory.newest_stamp
            return self._unanswered(
                waiting,
                STATUS_NO_FRAME,
                f"no frame of {request.earliest_frame:.3f} or later came in time; the newest in memory is "
                f"{'missing' if newest is None else f'of {newest:.3f}'}: check the camera and the link",
            )
        if self.clock.now() >= waiting.deadline:
            return self._unanswered(waiting, STATUS_DEADLINE, "its turn came after the deadline")
        if not prompt.grammar:
            return self._unanswered(
                waiting, STATUS_ERROR, "the primed prompt has no tools: prime one that has"
            )
        barrier_ms = 1e3 * (self.clock.now() - waiting.accepted)
        turns = list(request.recent_turns)[-self.form.recent_calls :] if self.form.recent_calls else []
        try:
            done = self._engine.generate(
                prompting.decision_text(request.instruction, turns),
                max_new_tokens=request.max_new_tokens or self.form.max_new_tokens,
                temperature=request.temperature,
                grammar=prompt.grammar,
                cancel=lambda: waiting.ticket.cancelled,
                deadline=waiting.deadline,
                on_text=waiting.ticket.on_text,
            )
        except (ValueError, RuntimeError) as error:
            return self._unanswered(waiting, STATUS_ERROR, str(error))
        status, message = {
            "stop": (STATUS_OK, ""),
            "cancelled": (STATUS_CANCELLED, f"cancelled after {done.sampled} tokens"),
            "deadline": (STATUS_DEADLINE, f"the deadline came after {done.sampled} tokens"),
            "length": (
                STATUS_ERROR,
                f"no whole tool call in {done.sampled} sampled tokens: raise max_new_tokens",
            ),
        }[done.finish]
        self._status = replace(
            self._status,
            generations=self._status.generations + 1,
            ask_ms=1e3 * done.total_s,
            ttft_ms=1e3 * done.ttft_s,
        )
        return replace(
            self._unanswered(waiting, status, message),
            text=done.text,
            tool_call=json.dumps(json.loads(done.text), ensure_ascii=False) if status == STATUS_OK else "",
            barrier_ms=barrier_ms,
            ttft_ms=1e3 * done.ttft_s,
            total_ms=1e3 * done.total_s,
            tokens_in=done.prompt_tokens,
            tokens_sampled=done.sampled,
            tokens_forced=done.forced,
        )

    def _unanswered(self, waiting: _Waiting[GenerateResult], status: int, message: str) -> GenerateResult:
        return GenerateResult(
            status,
            message,
            frame_stamp=self._memory.newest_stamp or 0.0,
            memory_resets=self._status.memory_resets,
            barrier_ms=1e3 * (self.clock.now() - waiting.accepted),
            cached_tokens=self._engine.cache.length,
        )

    def _holds(self, earliest: float) -> bool:
        """Whether a frame at least this new is in memory; a chunk begun is closed when it has one."""
        memory = self._memory
        if memory.newest_stamp is not None and memory.newest_stamp >= earliest:
            return True
        if memory.pending and memory.pending[-1].frame.stamp >= earliest:
            self._flush()
        return memory.newest_stamp is not None and memory.newest_stamp >= earliest

    # -- questions

    def _step_ask(self) -> bool:
        with self._lock:
            if not self._asks:
                return False
            waiting = self._asks[0]
        result = self._asked(waiting)
        if result is not None:
            with self._lock:
                self._asks.popleft()
            self._tell()
            waiting.ticket._finish(result)
        return True

    def _asked(self, waiting: _Waiting[AskResult]) -> AskResult | None:
        """The answer, or None when it gave way."""
        request, ticket, engine = waiting.request, waiting.ticket, self._engine
        if ticket.cancelled:
            return AskResult(False, "cancelled before it began")
        if self._prompt is None:
            return AskResult(False, "no prompt is primed, so no frame is in memory: call Prime first")
        stamp = self._memory.newest_stamp
        if stamp is None:
            return AskResult(False, "no frame is in memory: check the camera and the link")
        try:
            if request.choices:
                choices = [prompting.clean(choice) for choice in request.choices]
                answer, metrics = engine.ask_choice(prompting.clean(request.question).strip(), choices)
                answer = request.choices[choices.index(answer)]
                ttft_s, total_s, tokens_in, sampled = (
                    metrics["ttft"],
                    metrics["total"],
                    metrics["prompt_tokens"],
                    0,
                )
            else:
                done = engine.generate(
                    prompting.question_text(request.question),
                    max_new_tokens=request.max_new_tokens or self._ask_tokens,
                    cancel=lambda: ticket.cancelled or self._generate_can_run(),
                )
                if done.finish == "cancelled":
                    return (
                        AskResult(False, f"cancelled after {done.sampled} tokens")
                        if ticket.cancelled
                        else None
                    )
                answer, ttft_s, total_s = done.text.strip(), done.ttft_s, done.total_s
                tokens_in, sampled = done.prompt_tokens, done.sampled
        except (ValueError, RuntimeError) as error:
            return AskResult(False, str(error))
        status = self._status
        self._status = replace(status, asks=status.asks + 1, ask_ms=1e3 * total_s, ttft_ms=1e3 * ttft_s)
        return AskResult(
            True, "", answer, stamp, 1e3 * ttft_s, 1e3 * total_s, tokens_in, sampled, engine.cache.length
        )

    def _generate_can_run(self) -> bool:
        """Whether a Generate waits for nothing but the model: its frame is in memory or at hand."""
        newest = self._memory.newest_stamp or 0.0
        with self._lock:
            unread = [*self._frames, *([self._spare] if self._spare else [])]
            at_hand = max([newest, *(frame.stamp for frame in unread)])
            return any(waiting.request.earliest_frame <= at_hand for waiting in self._generates)

    def _tell(self) -> None:
        """Bring the status up to date and say so."""
        info = self._engine.get_cache_info()
        self._status = replace(
            self._status,
            cached_tokens=info["cache_seq_length"],
            sink_tokens=info["effective_sink_size"],
            window_tokens=info["window_tokens"],
            chunks=info["chunks_cached"],
        )
        self._on_change()


def _problem_of(request: GenerateRequest) -> str:
    """What is wrong with a request, or ""."""
    if not request.instruction.strip():
        return "the instruction is empty: say where to fly"
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        return f"temperature is {request.temperature}, must be 0 (greedy) or positive"
    if not (math.isfinite(request.earliest_frame) and math.isfinite(request.deadline_s)):
        return f"earliest_frame {request.earliest_frame} and deadline_s {request.deadline_s} must be finite"
    return ""


def _resident_mib() -> float:
    """Resident memory of this process, MiB; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0
