"""What waits to be worked off in a stream: put in from any thread, taken out by the thread that steps it."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nav_common.data import CompressedImage, PrimeResponse
from vlm_perception import prompting
from vlm_perception.tickets import Ticket

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")

MAX_QUEUED = 4
"""Generations, and questions, that may wait at a time: more than one agent and a few people asking is a mistake
somewhere."""

SHUT_DOWN = "the stream is being shut down"


@dataclass(eq=False)
class Queued(Generic[R, T]):
    """A request in the queue. accepted_s, deadline_s: on the stream's clock. tools: see `Stream.submit_generate`."""

    request: R
    ticket: Ticket[T]
    accepted_s: float
    deadline_s: float = math.inf
    tools: Sequence[prompting.Tool] = ()


@dataclass(frozen=True)
class Taken:
    """What became of frames that were handed over by `Stream.submit_frames`.

    admitted: in memory, or waiting for their chunk to be full. not_due: left out, as they came sooner after the one
    before than the serving form's interval. problems: why others were refused. refusal: why none was looked at.
    engine_s: what the engine took.
    """

    admitted: int = 0
    not_due: int = 0
    problems: tuple[str, ...] = ()
    refusal: str = ""
    engine_s: float = 0.0


@dataclass(eq=False)
class Handover:
    """Frames still to be looked at, and what became of the others."""

    images: deque[CompressedImage]
    ticket: Ticket[Taken]
    taken: Taken = Taken()


@dataclass(eq=False)
class Control:
    """Priming or a reset: an iterator that does one piece of the work each time and ends with the response."""

    pieces: Iterator[PrimeResponse | None]
    ticket: Ticket[PrimeResponse]


class RequestQueue(Generic[Q]):
    """Requests of one kind, in the order they came. What is not taken out stays first.

    what, remedy: in the refusal of one too many, `... are waiting already: ...`. most: that may wait.
    """

    def __init__(self, what: str = "", remedy: str = "", *, most: float = MAX_QUEUED) -> None:
        self._what, self._remedy, self._most = what, remedy, most
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: deque[Q] = deque()

    def put(self, request: Q) -> str:
        """Why it was not put in, or ""."""
        with self._lock:
            if self._closed:
                return SHUT_DOWN
            if len(self._waiting) >= self._most:
                return f"{self._most} {self._what} are waiting already: {self._remedy}"
            self._waiting.append(request)
        return ""

    def waiting(self) -> list[Q]:
        """All of them, the first first."""
        with self._lock:
            return list(self._waiting)

    def first(self) -> Q | None:
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def remove(self, request: Q) -> None:
        with self._lock:
            self._waiting.remove(request)

    def close(self) -> None:
        """Refuse whatever comes from now on."""
        with self._lock:
            self._closed = True

    def take_all(self) -> list[Q]:
        """All of them, taken out."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken
