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
    PrimeRequest,
    PrimeResponse,
)
from nav_server.backends.interface import Backend, BackendError
from vlm_perception import prompting
from vlm_perception.stream import Taken
from vlm_perception.tickets import Ticket

T = TypeVar("T")

RETRY_AFTER_S = 30.0
"""A backend that failed is left alone for so long (chosen: a model server needs that to come up again)."""


@dataclass(frozen=True)
class Choice:
    """A backend with its name. failed: why its last request could not be answered, "" when it was; reachable: whether
    it answers now, waiting for that 1 or 2 s at most. A backend within this process has neither to fear."""

    name: str
    backend: Backend
    failed: Callable[[], str] = lambda: ""
    reachable: Callable[[], bool] = lambda: True


class FallbackBackend:
    """See the module's text. Frames and prompts go to all, so that the next one knows what the one before knew.

    on_change: gets the reason in words when another backend answers than before.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        retry_after_s: float = RETRY_AFTER_S,
        on_change: Callable[[str], None] = lambda reason: None,
    ) -> None:
        if not choices:
            raise ValueError("no backend: give at least one")
        self._choices = tuple(choices)
        self._breakers = {
            choice.name: pybreaker.CircuitBreaker(fail_max=1, reset_timeout=retry_after_s, name=choice.name)
            for choice in choices
        }
        self._on_change = on_change
        self._current = self._choices[0]
        self._reason = f"{self._current.name}: the first choice"
        self._prompts: dict[str, str] = {}
        """The prompt of each backend, by name."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="fallback", daemon=True).start()

    @property
    def name(self) -> str:
        """Of the backend that answers."""
        return self._current.name

    @property
    def reason(self) -> str:
        """Why it is this one, in words."""
        return self._reason

    # -- to all

    def submit_frames(self, images: Sequence[CompressedImage]) -> Ticket[Taken]:
        return self._of_current([choice.backend.submit_frames(images) for choice in self._choices])

    def submit_prime(self, request: PrimeRequest) -> Ticket[PrimeResponse]:
        tickets = [choice.backend.submit_prime(request) for choice in self._choices]
        for choice, ticket in zip(self._choices, tickets, strict=True):
            self._note_prompt(choice.name, ticket)
        return self._of_current(tickets)

    def _note_prompt(self, name: str, ticket: Ticket[PrimeResponse]) -> None:
        def note() -> None:
            if ticket.result.success:
                self._prompts[name] = ticket.result.prompt_id

        ticket.add_done_callback(note)

    def submit_reset(self) -> Ticket[PrimeResponse]:
        return self._of_current([choice.backend.submit_reset() for choice in self._choices])

    def _of_current(self, tickets: Sequence[Ticket[T]]) -> Ticket[T]:
        return tickets[self._choices.index(self._current)]

    # -- to the one that answers

    def submit_generate(
        self,
        goal: GenerateGoal,
        on_text: Callable[[str], None] | None = None,
        *,
        tools: Sequence[prompting.Tool] = (),
    ) -> Ticket[GenerateResult]:
        def submit(choice: Choice) -> Ticket[GenerateResult]:
            # Whoever primed knows the prompt of one of them; they name the same prompt differently.
            known = goal.prompt_id in self._prompts.values()
            prompt_id = self._prompts.get(choice.name, "") if known else goal.prompt_id
            return choice.backend.submit_generate(replace(goal, prompt_id=prompt_id), on_text, tools=tools)

        return self._submit(submit, lambda problem: GenerateResult(GenerateStatus.ERROR, problem))

    def submit_ask(self, request: AskRequest) -> Ticket[AskResponse]:
        return self._submit(
            lambda choice: choice.backend.submit_ask(request), lambda problem: AskResponse(False, problem)
        )

    def _submit(self, submit: Callable[[Choice], Ticket[T]], refused: Callable[[str], T]) -> Ticket[T]:
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
            inner.append(submit(choice))
            if outer.cancelled:
                cancel()
            inner[0].add_done_callback(lambda: end(choice))

        def end(choice: Choice) -> None:
            self._note(choice)
            outer.finish(inner[0].result)

        self._work.put(begin)
        return outer

    def status(self) -> EngineStatus:
        return self._current.backend.status()

    def close(self) -> None:
        for choice in self._choices:
            choice.backend.close()
        self._work.put(None)

    # -- the thread that chooses

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _choose(self) -> Choice | None:
        """The first that is not known to be dead; one that was is tried again after a while."""
        problems = []
        for choice in self._choices:
            try:
                self._breakers[choice.name].call(self._check, choice)
            except (BackendError, pybreaker.CircuitBreakerError):
                problems.append(choice.failed() or f"{choice.name} failed")
                continue
            reason = "; ".join([choice.name, *problems]) if problems else f"{choice.name}: the first choice"
            if choice is not self._current or not self._reason.startswith(choice.name):
                self._current, self._reason = choice, reason
                self._on_change(reason)
            return choice
        self._reason = "; ".join(problems)
        return None

    def _check(self, choice: Choice) -> None:
        """Raises BackendError for one whose last request failed and that cannot be reached now."""
        if choice.failed() and not choice.reachable():
            raise BackendError(choice.failed())

    def _note(self, choice: Choice) -> None:
        """What a request has shown of its backend."""
        problem = choice.failed()
        if problem and self._breakers[choice.name].current_state != pybreaker.STATE_OPEN:
            self._breakers[choice.name].open()
