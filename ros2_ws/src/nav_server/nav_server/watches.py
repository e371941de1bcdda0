"""A client's standing watches (vlm_perception.watches) over HTTP: added, listed, taken away, and their events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus

from nav_common.data import WatchEvent, WatchRequest, WatchResponse
from nav_server.problems import Problem

MOST_LISTENERS = 4
"""To the events of one client (chosen: a page, a drone, and one of each that has just lost its connection)."""
_MOST_UNREAD = 64
_OWNER = "client"


@dataclass(frozen=True)
class StandingWatch:
    """One of a client's watches. holds: whether it is true now, as far as it was asked."""

    id: int
    question: str
    hover: bool
    holds: bool = False


Turned = tuple[StandingWatch, WatchEvent]


class ClientWatches:
    """For any thread, but for `listening`, which belongs to an event loop."""

    def __init__(self, submit: Callable[[WatchRequest], WatchResponse]) -> None:
        """submit: replaces the owner's watches in the client's stream, which calls `on_event` from then on."""
        self._submit = submit
        self._lock = threading.RLock()
        self._watches: dict[int, StandingWatch] = {}
        self._listeners: list[_Listener] = []
        self._ids = itertools.count(1)

    def all(self) -> list[StandingWatch]:
        """In the order in which they were added."""
        with self._lock:
            return list(self._watches.values())

    def add(self, question: str, hover: bool) -> StandingWatch:
        """Leave a question: yes makes it true, "no: QUESTION" no.

        Raises:
            Problem: there is no question in it, the same is there already, or there are too many.
        """
        with self._lock:
            if any((each.question, each.hover) == (question, hover) for each in self._watches.values()):
                raise Problem(HTTPStatus.CONFLICT, f"the watch {question!r:.80} is there already")
            watch = StandingWatch(next(self._ids), question, hover)
            response = self._submit(_request([*self._watches.values(), watch]))
            if not response.success:
                raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, response.message)
            self._watches[watch.id] = watch
            return watch

    def remove(self, number: int) -> None:
        """Raises Problem where there is none of that number."""
        with self._lock:
            if self._watches.pop(number, None) is None:
                raise Problem(HTTPStatus.NOT_FOUND, f"there is no watch {number}: GET /watches lists them")
            self._submit(_request(self._watches.values()))

    def on_event(self, event: WatchEvent) -> None:
        """A watch has turned."""
        with self._lock:
            for watch in self._watches.values():
                if (watch.question, watch.hover) == (event.watch, event.hover):
                    self._watches[watch.id] = turned = replace(watch, holds=event.holds)
                    for listener in self._listeners:
                        listener.put((turned, event))
                    return

    def check_room(self) -> None:
        """Raises Problem where too many listen already."""
        if len(self._listeners) >= MOST_LISTENERS:
            why = f"{MOST_LISTENERS} connections get this client's events already: close one"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, why, 5)

    def close(self) -> None:
        """The stream has ended: so do the events."""
        with self._lock:
            for listener in self._listeners:
                listener.put(None)

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Queue[Turned | None]]:
        """What turns within this block, None at the end. Of what nobody reads only the newest is kept."""
        listener = _Listener()
        with self._lock:
            self._listeners.append(listener)
        try:
            yield listener.queue
        finally:
            with self._lock:
                self._listeners.remove(listener)


class _Listener:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[Turned | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, item: Turned | None) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._put, item)

    def _put(self, item: Turned | None) -> None:
        if self.queue.qsize() >= _MOST_UNREAD:
            self.queue.get_nowait()
        self.queue.put_nowait(item)


def _request(watches: Iterable[StandingWatch]) -> WatchRequest:
    kept = list(watches)
    return WatchRequest(
        _OWNER,
        tuple(watch.question for watch in kept if not watch.hover),
        tuple(watch.question for watch in kept if watch.hover),
    )
