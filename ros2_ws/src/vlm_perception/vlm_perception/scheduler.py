"""Turns of any number of streams on one loaded model, and the thread that owns the model.

A stream of a higher priority (the flying drone's) goes first with whatever it has to do; streams of equal priority take
turns, one piece of work each. A piece is a prompt, a chunk, a generation or an answer, so nothing of the first stream
waits for more than one piece of another's work; and an answer to a question gives way to a generation of a stream of
higher priority, as it does to one of its own stream.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable

from vlm_perception.stream import Stream


class Scheduler:
    """Streams that are stepped in turn. `step` is for one thread; `add` may be called from any.

    A closed stream is dropped once what waited in it has been refused.
    """

    def __init__(self, streams: Iterable[Stream] = (), *, notify: Callable[[], None] = lambda: None) -> None:
        """notify: called from any thread when there is something to do."""
        self._notify = notify
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        """Those that were served longest ago first."""
        for stream in streams:
            self.add(stream)

    def add(self, stream: Stream) -> None:
        """A stream to be stepped with the others, from now on."""
        stream.notify = self._notify
        with self._lock:
            self._streams.append(stream)
        self._notify()

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All, in no particular order."""
        with self._lock:
            return tuple(self._streams)

    def step(self) -> bool:
        """One piece of work of the stream whose turn it is. False: no stream had any."""
        for stream in sorted(self.streams, key=lambda stream: -stream.priority):
            if stream.step(lambda stream=stream: self._must_give_way(stream)):  # type: ignore[misc]
                self._to_the_end(stream)
                return True
            if stream.closed:
                with self._lock:
                    self._streams.remove(stream)
        return False

    def run_until_idle(self) -> None:
        """All that can be done now."""
        while self.step():
            pass

    def next_deadline_s(self) -> float:
        """When a stream must be stepped though nobody notified, s from now; inf: never."""
        return min(
            (stream.next_deadline_s() - stream.clock.now() for stream in self.streams), default=math.inf
        )

    def _must_give_way(self, answering: Stream) -> bool:
        """Whether a stream of higher priority could generate."""
        return any(
            stream.priority > answering.priority and stream.generate_is_runnable() for stream in self.streams
        )

    def _to_the_end(self, stream: Stream) -> None:
        with self._lock:
            self._streams.remove(stream)
            self._streams.append(stream)


class ModelThread:
    """The one thread that works with a model: it steps its streams until `close`.

    An error that no request can be blamed for (the accelerator is lost, a mistake in the program) ends it: everything
    that waits is refused, and on_failure gets the error. Nothing of the streams can be trusted then.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._wake = threading.Event()
        self._scheduler = Scheduler(notify=self._wake.set)
        self._on_failure = on_failure
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def add(self, stream: Stream) -> None:
        """A stream on the model that this thread owns. To remove it, close it."""
        self._scheduler.add(stream)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Close all streams and end the thread: a decode loop stops within one token. Whether it ended in time."""
        self._closing = True
        for stream in self._scheduler.streams:
            stream.close()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()
                while not self._closing and self._scheduler.step():
                    pass
                if not self._closing:
                    wait_s = self._scheduler.next_deadline_s()
                    self._wake.wait(None if math.isinf(wait_s) else max(0.001, wait_s))
            self._scheduler.step()  # the streams refuse what still waits
        except BaseException as error:
            for stream in self._scheduler.streams:
                stream.close()
                stream.refuse_all(f"the model's thread has ended: {error}")
            self._on_failure(error)
