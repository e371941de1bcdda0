"""Requests handed to the thread that owns a model: each is a ticket, with its result once there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ticket(Generic[T]):
    """A request: its result once done. May be cancelled and watched from any thread.

    on_text gets the text so far, on the thread that decodes; notify is called when the ticket is cancelled.
    """

    def __init__(
        self, on_text: Callable[[str], None] | None = None, notify: Callable[[], None] = lambda: None
    ) -> None:
        self.on_text = on_text
        self._notify = notify
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cancelled = False
        self._result: T | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called; the result says whether that was in time."""
        return self._cancelled

    @property
    def result(self) -> T:
        """RuntimeError while not done."""
        if not self._done.is_set():
            raise RuntimeError("the ticket is not done yet: look at `done`, or wait")
        return self._result  # type: ignore[return-value]

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is done within the time. For threads other than the one that does the work."""
        return self._done.wait(timeout_s)

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call this once the result is there: on the thread that finishes it, or at once if it is done already."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def cancel(self) -> None:
        """Stop within one token, or before it began."""
        self._cancelled = True
        self._notify()

    def finish(self, result: T) -> None:
        """By the thread that does the work, once."""
        with self._lock:
            self._result = result
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
