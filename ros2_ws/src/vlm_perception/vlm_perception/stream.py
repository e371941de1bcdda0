"""One stream of a model: its requests, its frames, and the order in which they are worked off.

The order in each step: priming and reset; a generation whose barrier frame is in; frames; standing watches, within
their share of the time; questions. A question that is being answered gives way to a generation and is answered anew
after it: its tail is cut off, which costs nothing.

`step` is for whoever owns the model: `scheduler.ModelThread`, which steps any number of streams, or the only thread of
a lock-step composition. Everything named `submit_...` may be called from any thread and returns at once, mostly with a
Ticket.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nav_common.clock import Clock
from nav_common.data import (
    ActiveFrames,
    AskRequest,
    AskResponse,
    CompressedImage,
    EngineStatus,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    Odometry,
    PrimeRequest,
    PrimeResponse,
    RecallRequest,
    RecallResponse,
    WatchEvent,
    WatchRequest,
    WatchResponse,
)
from vlm_perception import prompting
from vlm_perception.admission import Frame, FrameAdmission, FrameGroup
from vlm_perception.engine import Appended, QwenModel
from vlm_perception.engine.budget import TAIL_TOKENS
from vlm_perception.guard import Guard
from vlm_perception.identity.bank import MemoryBank
from vlm_perception.memory import FrameMemory, Memory, Prompt
from vlm_perception.recollection import Recollection
from vlm_perception.request_queue import SHUT_DOWN, Control, Handover, Queued, RequestQueue, Taken
from vlm_perception.responder import Responder, ask_problem, goal_problem
from vlm_perception.serving_form import ServingForm
from vlm_perception.tickets import Ticket
from vlm_perception.watches import DEFAULT_SHARE, Watches

MAX_SAMPLED_TOKENS = TAIL_TOKENS - 256
"""Question and answer share the tail that the engine reserves; 256 tokens are a page of question."""


@dataclass(frozen=True)
class StreamSettings:
    """What may be changed while a stream runs. deadline_s: of a generation that names none. watch_share: of the time,
    that standing watches may take, from above 0 to 1."""

    deadline_s: float = 10.0
    watch_share: float = DEFAULT_SHARE

    def __post_init__(self) -> None:
        if not 0 < self.watch_share <= 1:
            raise ValueError(f"watch_share is {self.watch_share}, must be above 0 and at most 1")
        if not 0 < self.deadline_s < math.inf:
            raise ValueError(f"deadline_s is {self.deadline_s}, must be positive")


def _never() -> bool:
    return False


class Stream:
    """See the module's text.

    model: whose cache is the memory; or another memory, which the model of a server answers from.
    live: a new frame replaces an unread older one; else (replay) every frame is looked at in order.
    priority: of streams on one model the one with the higher number goes first. It and `settings` may be changed at any
    time.
    guard: what every generation and answer passes; streams on one model share it. Default: one of its own.
    bank: brings frames back that an instruction needs and the window has lost; none: there is only the window.
    on_watch: gets the events of standing watches, on the stepping thread.
    on_active_frames: gets what the bank holds active, whenever that changes, on the stepping thread.
    on_change: called by the stepping thread when `status` has changed; on_warning: gets a line for each frame that was
    skipped. What becomes of a request is said in its result.
    """

    def __init__(
        self,
        model: QwenModel | FrameMemory,
        form: ServingForm,
        clock: Clock,
        *,
        live: bool = True,
        priority: int = 0,
        settings: StreamSettings | None = None,
        guard: Guard | None = None,
        bank: MemoryBank | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_watch: Callable[[WatchEvent], None] = lambda event: None,
        on_active_frames: Callable[[ActiveFrames], None] = lambda frames: None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.form = form
        self.clock = clock
        self.priority = priority
        self.settings = settings or StreamSettings()
        self.guard = guard or Guard()
        self.notify: Callable[[], None] = lambda: None
        """Called from any thread when there is something to do: set by who steps the stream."""
        self.on_append: Callable[[FrameGroup], None] = lambda chunk: None
        """Called by the stepping thread with each chunk that has entered the memory: set by who looks into it."""
        self.edge_offset_s = 0.0
        """The edge's clock, which stamps the frames, minus `clock`: for the ages in the status, which people read, and,
        before odometry comes, to know a stamp from the future."""
        self.watches = Watches()
        self._on_change = on_change
        self._on_watch = on_watch
        self._on_active_frames = on_active_frames
        self._active_frames = ActiveFrames()
        self._on_warning = on_warning
        self._memory: FrameMemory = Memory(model, form, clock) if isinstance(model, QwenModel) else model
        self._frames = FrameAdmission(form, live=live, on_warning=on_warning)
        if bank and form.recompute_frames:
            raise ValueError(
                f"a memory of the last {form.recompute_frames} frames recalls nothing: leave the bank out"
            )
        self.recollection = Recollection(bank, self.memory) if bank else None
        self._responder = Responder(self._memory, self.guard, clock, form.max_new_tokens)
        self._status = EngineStatus()
        self._appended, self._newest_append_ms = Appended(), 0.0
        self._earlier_s = 0.0
        """What the engine took for the frames before the newest chunk."""

        wait = "wait for them or cancel them"
        self._controls: RequestQueue[Control] = RequestQueue(most=math.inf)
        self._generates: RequestQueue[Queued[GenerateGoal, GenerateResult]] = RequestQueue(
            "generations", wait
        )
        self._asks: RequestQueue[Queued[AskRequest, AskResponse]] = RequestQueue("questions", wait)
        self._recalls: RequestQueue[Queued[RecallRequest, RecallResponse]] = RequestQueue("recalls", wait)
        self._handovers: RequestQueue[Handover] = RequestQueue(
            "requests with frames", "send frames more slowly"
        )
        self._closed = False

    # -- from any thread

    def submit_frame(self, image: CompressedImage) -> None:
        """A JPEG or PNG from the camera. Refused, with a warning: one that is broken or stamped in the future."""
        self._frames.receive(Frame(image, self.clock.now()), self.edge_offset_s)
        self.notify()

    def submit_frames(self, images: Sequence[CompressedImage]) -> Ticket[Taken]:
        """Frames that are all looked at, in order, whatever comes meanwhile; the ticket says what became of them."""
        ticket: Ticket[Taken] = Ticket(notify=lambda: self.notify())
        problem = self._handovers.put(Handover(deque(images), ticket))
        if problem:
            ticket.finish(Taken(refusal=problem))
        self.notify()
        return ticket

    def submit_odometry(self, odometry: Odometry) -> bool:
        """Where the vehicle was; tells hovering from flying. Without odometry every frame is history. False: refused,
        as it is not finite or its stamp jumps."""
        return self._frames.add_odometry(odometry, self.clock.now())

    def submit_prime(self, request: PrimeRequest) -> Ticket[PrimeResponse]:
        """Put a prompt with its tools at the head of the stream."""
        return self._submit_control(self._prime(request))

    def submit_reset(self) -> Ticket[PrimeResponse]:
        """Empty the memory; the prompt stays primed."""
        return self._submit_control(self._reset())

    def _submit_control(self, pieces: Iterator[PrimeResponse | None]) -> Ticket[PrimeResponse]:
        ticket: Ticket[PrimeResponse] = Ticket()
        problem = self._controls.put(Control(pieces, ticket))
        if problem:
            ticket.finish(PrimeResponse(False, problem))
        self.notify()
        return ticket

    def submit_generate(
        self,
        goal: GenerateGoal,
        on_text: Callable[[str], None] | None = None,
        *,
        tools: Sequence[prompting.Tool] = (),
    ) -> Ticket[GenerateResult]:
        """Ask for one tool call. on_text gets the text so far, on the stepping thread. tools: those that may be called,
        fewer or with fewer values than were primed; none: all of them."""
        ticket: Ticket[GenerateResult] = Ticket(on_text, lambda: self.notify())
        now = self.clock.now()
        limit_s = goal.deadline_s if goal.deadline_s > 0 else self.settings.deadline_s
        problem = goal_problem(goal) or self._generates.put(Queued(goal, ticket, now, now + limit_s, tools))
        if problem:
            ticket.finish(GenerateResult(GenerateStatus.ERROR, problem))
        self.notify()
        return ticket

    def submit_ask(self, request: AskRequest) -> Ticket[AskResponse]:
        """Ask a question in words. One without choices is refused where the model has no words to answer in."""
        ticket: Ticket[AskResponse] = Ticket(notify=lambda: self.notify())
        problem = ask_problem(request)
        if not problem and not request.choices and not self.answers_in_words:
            problem = (
                "this model was trained on tool calls alone and has no words: give choices to answer with"
            )
        problem = problem or self._asks.put(Queued(request, ticket, self.clock.now()))
        if problem:
            ticket.finish(AskResponse(False, problem))
        self.notify()
        return ticket

    def submit_recall(self, request: RecallRequest) -> Ticket[RecallResponse]:
        """Bring the archived frames of an entity back into the memory."""
        ticket: Ticket[RecallResponse] = Ticket()
        problem = "" if request.entity.strip() else "the entity is empty: give its id, or words for it"
        if not problem and self.recollection is None:
            problem = "there is no memory bank: start perception with memory_bank"
        problem = problem or self._recalls.put(Queued(request, ticket, self.clock.now()))
        if problem:
            ticket.finish(RecallResponse(False, problem))
        self.notify()
        return ticket

    def submit_watches(self, request: WatchRequest) -> WatchResponse:
        """Leave standing questions with the memory, in place of those of the same owner; at once."""
        try:
            self.watches.replace(request)
        except ValueError as error:
            return WatchResponse(False, str(error))
        self.notify()
        return WatchResponse(True)

    def status(self) -> EngineStatus:
        """The numbers now."""
        status, newest_s, counts = self._status, self._memory.newest_s, self._frames.counts()
        now = self.clock.now()
        return replace(
            status,
            stamp_s=now,
            backend=self._memory.name,
            append_ms=self._append_ms(),
            **vars(self._responder.answered),
            frames_received=counts.received,
            frames_broken=counts.broken,
            frames_replaced=counts.replaced,
            frame_age_s=now + self.edge_offset_s - newest_s if newest_s is not None else 0.0,
            rss_mib=_resident_mib(),
            gpu_mib=torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0,
        )

    def frame_wanted_s(self) -> float:
        """The earliest stamp of the frame that the memory takes next; 0: any. Earlier ones would be thrown away."""
        return self._frames.next_due_s(self._barrier_s())

    def close(self) -> None:
        """End the stream: a decode loop under way stops within one token, the next `step` refuses what waits, and what
        comes later is refused at once."""
        for queue in (self._controls, self._generates, self._asks, self._recalls, self._handovers):
            queue.close()
        self._closed = True
        tickets: list[Ticket[Any]] = [queued.ticket for queued in self._generates.waiting()]
        tickets += [queued.ticket for queued in self._asks.waiting()]
        for ticket in tickets:
            ticket.cancel()
        self.notify()

    @property
    def memory(self) -> Memory:
        """What the stream remembers in its model's cache, to be read by the stepping thread."""
        assert isinstance(self._memory, Memory), f"{self._memory.name} remembers in no cache"
        return self._memory

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def problem(self) -> str:
        """Why the model could not answer the last request; "" when it did, well or badly."""
        return self._responder.problem

    @property
    def broken_off(self) -> bool:
        """Whether the last request was broken off twice."""
        return self._responder.broken_off

    @property
    def chunk_stamps_s(self) -> list[float]:
        """See FrameMemory; to be read by the stepping thread."""
        return self._memory.chunk_stamps_s

    @property
    def answers_in_words(self) -> bool:
        """See ServingForm."""
        return self.form.answers_in_words

    # -- by whoever owns the model

    def run_until_idle(self) -> None:
        """All that can be done now."""
        while self.step():
            pass

    def step(self, interrupt: Callable[[], bool] = _never) -> bool:
        """One piece of work, the most urgent. False: there was none.

        interrupt: whether something outside this stream is so urgent that an answer to a question must give way.
        """
        if self._closed:
            self.refuse_all(SHUT_DOWN)
            return False
        return (
            self._step_control()
            or self._step_generate()
            or self._step_frame()
            or self._step_recall()
            or self._step_recollection(interrupt)
            or self._step_watch()
            or self._step_ask(interrupt)
        )

    def next_deadline_s(self) -> float:
        """When the next waiting generation must be given up, or a watch may be asked; inf: none waits."""
        watch_s = self.watches.next_due_s(self._memory.cache_version) if self._may_watch() else math.inf
        return min((watch_s, *(queued.deadline_s for queued in self._generates.waiting())))

    def generate_is_runnable(self) -> bool:
        """Whether a generation waits for nothing but the model: its frame is in memory or unread."""
        newest_s = self._memory.newest_s or 0.0
        earliest = [queued.request.earliest_frame_s for queued in self._generates.waiting()]
        return any(stamp_s <= newest_s or self._frames.has_frame_from(stamp_s) for stamp_s in earliest)

    def refuse_all(self, problem: str) -> None:
        """Finish everything that waits, saying why."""
        for control in self._controls.take_all():
            control.ticket.finish(PrimeResponse(False, problem))
        for generate in self._generates.take_all():
            generate.ticket.finish(GenerateResult(GenerateStatus.CANCELLED, problem))
        for ask in self._asks.take_all():
            ask.ticket.finish(AskResponse(False, problem))
        for recall in self._recalls.take_all():
            recall.ticket.finish(RecallResponse(False, problem))
        for handover in self._handovers.take_all():
            handover.ticket.finish(replace(handover.taken, refusal=problem))

    # -- priming and reset

    def _step_control(self) -> bool:
        control = self._controls.first()
        if control is None:
            return False
        try:
            response = next(control.pieces)
        except (ValueError, RuntimeError) as error:
            response = PrimeResponse(False, str(error), memory_resets=self._memory.resets)
        self._changed()
        if response is not None:
            self._controls.remove(control)
            control.ticket.finish(response)
        return True

    def _prime(self, request: PrimeRequest) -> Iterator[PrimeResponse | None]:
        """The prompt is one piece of work, each chunk that the new stream is fed with another."""
        memory = self._memory
        prompt = memory.prepared(request)
        if memory.prompt and memory.prompt.id == prompt.id:
            yield self._primed(prompt, 0.0)
            return
        seconds = self._begin(prompt)
        for chunk in self._frames.history():
            yield None
            seconds += self._feed(chunk)
        yield self._primed(prompt, seconds)

    def _begin(self, prompt: Prompt | None) -> float:
        if self.recollection:
            self.recollection.forget_cache()
        return self._memory.begin(prompt)

    def _feed(self, chunk: FrameGroup) -> float:
        """A chunk of the ring into a new stream; what it cost, s. One that fails is left out."""
        try:
            done = self._append(chunk)
            return done.vision_s + done.prefill_s
        except (ValueError, RuntimeError) as error:
            if self._memory.prompt is None:
                raise
            self._frames.refuse(chunk, self._memory.newest_s, str(error))
            return 0.0

    def _primed(self, prompt: Prompt, seconds: float) -> PrimeResponse:
        return PrimeResponse(True, "", prompt.id, self._memory.resets, prompt.tokens, 1e3 * seconds)

    def _reset(self) -> Iterator[PrimeResponse | None]:
        prompt = self._memory.prompt
        self._frames.clear()
        seconds = self._begin(prompt)
        if prompt:
            yield self._primed(prompt, seconds)
        yield PrimeResponse(True, memory_resets=self._memory.resets)

    # -- frames

    def _step_frame(self) -> bool:
        """Look at one frame, and take it in if it is due."""
        if not self._examine():
            return self._step_handover()
        return True

    def _examine(self) -> bool:
        """Look at one unread frame; False: there is none."""
        if not self._frames.examine(self._barrier_s()):
            return False
        chunk = self._frames.take_chunk()
        while chunk:
            self._take_in(chunk)
            chunk = self._frames.take_chunk()
        return True

    def _step_handover(self) -> bool:
        """Look at one of the frames handed over."""
        handover = self._handovers.first()
        if handover is None:
            return False
        if handover.images:
            handover.taken = self._take_handed(handover.images.popleft(), handover.taken)
        if not handover.images:
            self._handovers.remove(handover)
            handover.ticket.finish(handover.taken)
        return True

    def _take_handed(self, image: CompressedImage, taken: Taken) -> Taken:
        """What became of the frames with this one."""
        newest_s, refused, before_s = (
            self._frames.newest_admitted_s,
            self._frames.counts().broken,
            self._engine_s(),
        )
        self._frames.receive(Frame(image, self.clock.now()))
        self._examine()
        engine_s = taken.engine_s + self._engine_s() - before_s
        if self._frames.counts().broken > refused:
            return replace(taken, problems=(*taken.problems, self._frames.last_problem), engine_s=engine_s)
        if self._frames.newest_admitted_s == newest_s:
            return replace(taken, not_due=taken.not_due + 1, engine_s=engine_s)
        return replace(taken, admitted=taken.admitted + 1, engine_s=engine_s)

    def _barrier_s(self) -> float | None:
        """The earliest frame that a generation still waits for."""
        admitted_s = self._frames.newest_admitted_s
        wanted = [queued.request.earliest_frame_s for queued in self._generates.waiting()]
        return min(
            (stamp_s for stamp_s in wanted if admitted_s is None or stamp_s > admitted_s), default=None
        )

    def _take_in(self, chunk: FrameGroup) -> None:
        """A chunk into the memory; without a prompt it only becomes history, for the stream to come."""
        if self._memory.prompt:
            try:
                self._append(chunk)
            except (ValueError, RuntimeError) as error:
                self._frames.refuse(chunk, self._memory.newest_s, str(error))
                self._changed()
                return
        self._frames.accept(chunk)
        self._changed()

    def _append(self, chunk: FrameGroup) -> Appended:
        """A chunk into the cache."""
        done = self._memory.append(chunk)
        self.on_append(chunk)
        self._earlier_s, self._appended = self._engine_s(), done
        if self.recollection:
            self.recollection.appended(chunk, done.chunk)
        newest, count, status = chunk.frames[-1].frame, len(chunk.frames), self._status
        replaced = chunk.replaces_newest
        self._status = replace(
            status,
            chunks_appended=status.chunks_appended + (not replaced),
            frames_appended=status.frames_appended + count,
            frames_provisional=status.frames_provisional + (count if replaced else 0),
            frame_latency_ms=1e3 * (newest.received_s + self.edge_offset_s - newest.stamp_s),
        )
        return done

    def _engine_s(self) -> float:
        """What the engine took for frames so far; waits for the newest to be in the cache."""
        return self._earlier_s + self._appended.vision_s + self._appended.prefill_s

    def _append_ms(self) -> float:
        """Of the newest chunk that is in the cache; one that a GPU is still at work on is not waited for."""
        done = self._appended
        if done.is_over:
            self._newest_append_ms = 1e3 * (done.vision_s + done.prefill_s)
        return self._newest_append_ms

    def _step_recollection(self, interrupt: Callable[[], bool]) -> bool:
        """Find out what is sought, and what the newest frame shows of it."""
        if self.recollection is None:
            return False
        try:
            return self.recollection.step(lambda: self.generate_is_runnable() or interrupt())
        except (ValueError, RuntimeError) as error:
            self._on_warning(f"memory bank: {error}")
            return True
        finally:
            self._tell_active_frames()

    def _step_recall(self) -> bool:
        """Answer who asked for an entity's frames."""
        queued = self._recalls.first()
        if queued is None or self.recollection is None:
            return False
        try:
            response = self.recollection.recall(queued.request.entity)
        except (ValueError, RuntimeError) as error:
            response = RecallResponse(False, str(error))
        self._recalls.remove(queued)
        self._changed()
        self._tell_active_frames()
        queued.ticket.finish(response)
        return True

    def _tell_active_frames(self) -> None:
        """If they are others than were told last."""
        if self.recollection is None:
            return
        active = self.recollection.active_frames(self.clock.now())
        if replace(active, stamp_s=0.0) != replace(self._active_frames, stamp_s=0.0):
            self._active_frames = active
            self._on_active_frames(active)

    def _recall(self, instruction: str) -> list[str]:
        """Frames that the instruction needs back into the cache, and what is to be said of them; what fails costs the
        memory, not the decision."""
        if not self.recollection:
            return []
        try:
            self.recollection.before_decision(instruction)
        except (ValueError, RuntimeError) as error:
            self._on_warning(f"nothing recalled for {instruction!r}: {error}")
        self._tell_active_frames()
        return self.recollection.notes()

    # -- generations

    def _step_generate(self) -> bool:
        """Answer the first generation that can be answered, if only by saying why not."""
        for queued in self._generates.waiting():
            result = self._refusal(queued)
            if result is None and self._holds_frame_from(queued.request.earliest_frame_s):
                notes = self._recall(queued.request.instruction)
                result = self._responder.generate(queued, notes)
            if result is None:
                continue
            self._generates.remove(queued)
            self._changed()
            queued.ticket.finish(result)
            return True
        return False

    def _refusal(self, queued: Queued[GenerateGoal, GenerateResult]) -> GenerateResult | None:
        """Why a generation cannot begin any more, or None."""
        goal, prompt = queued.request, self._memory.prompt
        if queued.ticket.cancelled:
            return self._responder.result(queued, GenerateStatus.CANCELLED, "cancelled before it began")
        if prompt is None or goal.prompt_id != prompt.id:
            primed = f"the memory holds {prompt.id!r}" if prompt else "none is primed"
            problem = f"prompt {goal.prompt_id!r} is not primed ({primed}): call Prime"
            return self._responder.result(queued, GenerateStatus.UNKNOWN_PROMPT, problem)
        if not prompt.grammar:
            problem = "the primed prompt has no tools: prime one that has"
            return self._responder.result(queued, GenerateStatus.ERROR, problem)
        if self.clock.now() < queued.deadline_s:
            return None
        if self._holds_frame_from(goal.earliest_frame_s):
            return self._responder.result(queued, GenerateStatus.DEADLINE, "its turn came after the deadline")
        newest_s = self._memory.newest_s
        return self._responder.result(
            queued,
            GenerateStatus.NO_FRAME,
            f"no frame of {goal.earliest_frame_s:.3f} or later came in time; the newest in memory is "
            f"{'missing' if newest_s is None else f'of {newest_s:.3f}'}: check the camera and the link",
        )

    def _holds_frame_from(self, earliest_s: float) -> bool:
        """Whether a frame at least this new is in memory; a chunk that is not full is closed when it has one."""
        if not self._in_memory(earliest_s):
            chunk = self._frames.flush_from(earliest_s)
            if chunk:
                self._take_in(chunk)
        return self._in_memory(earliest_s)

    def _in_memory(self, earliest_s: float) -> bool:
        newest_s = self._memory.newest_s
        return newest_s is not None and newest_s >= earliest_s

    # -- watches

    def _may_watch(self) -> bool:
        return len(self.watches) > 0 and self._memory.newest_s is not None

    def _step_watch(self) -> bool:
        """Answer one standing question, if one is due."""
        began_s, cache_version = self.clock.now(), self._memory.cache_version
        watch = self.watches.due(began_s, cache_version) if self._may_watch() else None
        if watch is None:
            return False
        try:
            best = self._memory.choose(watch.question, prompting.YES_NO)
        except ValueError as error:
            self.watches.failed(watch)
            self._on_warning(f"watch {watch.text!r:.80} of {watch.owner} taken away: {error}")
            return True
        except RuntimeError as error:
            self._responder.note_failure(error)
            self.watches.unanswered(
                watch,
                cache_version,
                began_s=began_s,
                now_s=self.clock.now(),
                share=self.settings.watch_share,
            )
            self._on_warning(f"watch {watch.text!r:.80} of {watch.owner} not answered: {error}")
            return True
        event = self.watches.answered(
            watch,
            best,
            cache_version,
            began_s=began_s,
            now_s=self.clock.now(),
            share=self.settings.watch_share,
            frame_stamp_s=self._memory.newest_s or 0.0,
        )
        if event is not None:
            self._on_watch(event)
        return True

    # -- questions

    def _step_ask(self, interrupt: Callable[[], bool]) -> bool:
        queued = self._asks.first()
        if queued is None:
            return False
        response = self._responder.answer(queued, lambda: self.generate_is_runnable() or interrupt())
        if response is not None:
            self._asks.remove(queued)
            self._changed()
            queued.ticket.finish(response)
        return True

    def _changed(self) -> None:
        self._status = replace(self._status, **self._memory.usage())
        self._on_change()


def _resident_mib() -> float:
    """Resident memory of this process, MiB; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0
