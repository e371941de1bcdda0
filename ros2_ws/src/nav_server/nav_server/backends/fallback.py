"""Several backends in order of preference: what cannot be answered by one is asked of the next.

A decision under way is never handed over: it ends with the reason, the drone hovers, and the next one goes to the next
backend. One that failed is left alone for a while, then tried once (pybreaker's half-open state).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pybreaker

from nav_common.data import (
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
    WatchRequest,
    WatchResponse,
)
from vlm_perception import prompting
from vlm_perception.request_queue import Taken
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream, StreamSettings
from vlm_perception.tickets import Ticket

T = TypeVar("T")

RETRY_AFTER_S = 30.0
"""A backend that failed is left alone for so long (chosen: a model server needs that to come up again)."""

_FIRST_CHOICE = "the first choice"


class Health:
    """Whether a backend may be asked, as far as anybody knows: one for all the streams on it.

    reachable: whether it answers now, waiting for that 1 or 2 s at most.
    """

    def __init__(
        self,
        name: str,
        reachable: Callable[[], bool] = lambda: True,
        *,
        retry_after_s: float = RETRY_AFTER_S,
    ) -> None:
        self.name = name
        self.problem = ""
        """Why it was given up last."""
        self._reachable = reachable
        self._breaker = pybreaker.CircuitBreaker(fail_max=1, reset_timeout=retry_after_s, name=name)

    def may_be_asked(self, stream: Stream) -> bool:
        """stream: the one that would ask. Whose last request failed, or took too long, is looked at first."""
        doubt = stream.problem or ("it was too slow twice" if stream.broken_off else "")
        try:
            self._breaker.call(self._check, doubt)
        except (_Unreachable, pybreaker.CircuitBreakerError):
            return False
        return True

    def _check(self, doubt: str) -> None:
        if doubt and not self._reachable():
            self.problem = doubt
            raise _Unreachable

    def note(self, stream: Stream) -> None:
        """After a request: one that has just failed is not asked whether it is reachable, which takes a second."""
        if stream.problem and self._breaker.current_state != pybreaker.STATE_OPEN:
            self.problem = stream.problem
            self._breaker.open()


class _Unreachable(Exception):
    pass


@dataclass(frozen=True)
class Choice:
    """A backend: its stream, and its health."""

    stream: Stream
    health: Health

    @property
    def name(self) -> str:
        return self.health.name


class FallbackBackend:
    """See the module's text. Frames, odometry and prompts go to all, so that the next one knows what the one before
    knew; watches stand with the one that answers.

    on_fallback: gets the reason in words when another backend answers than before, on a thread of this object.
    """

    def __init__(
        self, choices: Sequence[Choice], *, on_fallback: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._choices = tuple(choices)
        self._on_fallback = on_fallback
        self._current = self._choices[0]
        self._reason = f"{self._current.name}: {_FIRST_CHOICE}"
        self._nobody = False
        """Whether the last that was asked for found none that may be."""
        self._lock = threading.Lock()  # guards the watches, and who has them
        self._watches: dict[str, WatchRequest] = {}
        """By owner."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="fallback", daemon=True).start()

    @property
    def reason(self) -> str:
        """Which backend answers, and why it is this one, in words."""
        return self._reason

    @property
    def form(self) -> ServingForm:
        return self._current.stream.form

    @property
    def answers_in_words(self) -> bool:
        return self._current.stream.answers_in_words

    @property
    def chunk_stamps_s(self) -> list[float]:
        return self._current.stream.chunk_stamps_s

    @property
    def settings(self) -> StreamSettings:
        return self._current.stream.settings

    @settings.setter
    def settings(self, settings: StreamSettings) -> None:
        for choice in self._choices:
            choice.stream.settings = settings

    @property
    def edge_offset_s(self) -> float:
        return self._current.stream.edge_offset_s

    @edge_offset_s.setter
    def edge_offset_s(self, offset_s: float) -> None:
        for choice in self._choices:
            choice.stream.edge_offset_s = offset_s

    # -- to all

    def submit_frame(self, image: CompressedImage) -> None:
        for choice in self._choices:
            choice.stream.submit_frame(image)

    def submit_frames(self, images: Sequence[CompressedImage]) -> Ticket[Taken]:
        return self._of_current([choice.stream.submit_frames(images) for choice in self._choices])

    def submit_odometry(self, odometry: Odometry) -> bool:
        taken = [choice.stream.submit_odometry(odometry) for choice in self._choices]
        return all(taken)

    def submit_prime(self, request: PrimeRequest) -> Ticket[PrimeResponse]:
        return self._of_current([choice.stream.submit_prime(request) for choice in self._choices])

    def submit_reset(self) -> Ticket[PrimeResponse]:
        return self._of_current([choice.stream.submit_reset() for choice in self._choices])

    def _of_current(self, tickets: Sequence[Ticket[T]]) -> Ticket[T]:
        return tickets[self._choices.index(self._current)]

    def submit_recall(self, request: RecallRequest) -> Ticket[RecallResponse]:
        """By the one that has a memory bank."""
        banks = (choice.stream for choice in self._choices if choice.stream.recollection)
        return next(banks, self._current.stream).submit_recall(request)

    def frame_wanted_s(self) -> float:
        return min(choice.stream.frame_wanted_s() for choice in self._choices)

    # -- to the one that answers

    def submit_generate(
        self,
        goal: GenerateGoal,
        on_text: Callable[[str], None] | None = None,
        *,
        tools: Sequence[prompting.Tool] = (),
    ) -> Ticket[GenerateResult]:
        return self._submit(
            lambda stream: stream.submit_generate(goal, on_text, tools=tools),
            lambda problem: GenerateResult(GenerateStatus.ERROR, problem),
        )

    def submit_ask(self, request: AskRequest) -> Ticket[AskResponse]:
        return self._submit(
            lambda stream: stream.submit_ask(request), lambda problem: AskResponse(False, problem)
        )

    def submit_watches(self, request: WatchRequest) -> WatchResponse:
        with self._lock:
            response = self._current.stream.submit_watches(request)
            if response.success:
                self._watches[request.owner] = request
                if not request.watches and not request.hover_watches:
                    del self._watches[request.owner]
        return response

    def _submit(self, submit: Callable[[Stream], Ticket[T]], refused: Callable[[str], T]) -> Ticket[T]:
        outer: Ticket[T] = Ticket(notify=lambda: cancel())
        inner: list[Ticket[T]] = []

        def cancel() -> None:
            for ticket in inner:
                ticket.cancel()

        def begin() -> None:
            choice = self._choose()
            if choice is None:
                outer.finish(refused(f"no backend answers: {self._reason}"))
                return
            inner.append(submit(choice.stream))
            if outer.cancelled:
                cancel()
            inner[0].add_done_callback(lambda: end(choice))

        def end(choice: Choice) -> None:
            choice.health.note(choice.stream)
            outer.finish(inner[0].result)

        self._work.put(begin)
        return outer

    def status(self) -> EngineStatus:
        return replace(self._current.stream.status(), backend=self._reason)

    def close(self) -> None:
        for choice in self._choices:
            choice.stream.close()
        self._work.put(None)

    # -- the thread that chooses

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _choose(self) -> Choice | None:
        """The first that is not known to be dead; one that was is tried again after a while."""
        problems = []
        for choice in self._choices:
            if not choice.health.may_be_asked(choice.stream):
                problems.append(choice.health.problem)
                continue
            if choice is not self._current or self._nobody:
                self._change_to(choice, "; ".join(problems) or _FIRST_CHOICE)
            return choice
        self._nobody = True
        self._reason = f"nobody: {'; '.join(problems)}"
        return None

    def _change_to(self, choice: Choice, why: str) -> None:
        with self._lock:
            before, self._current = self._current, choice
            if before is not choice:
                for owner, request in self._watches.items():
                    before.stream.submit_watches(WatchRequest(owner))
                    choice.stream.submit_watches(request)
            self._reason, self._nobody = f"{choice.name}: {why}", False
        self._on_fallback(self._reason)
