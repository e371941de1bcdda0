"""The TCP side: AirSim's msgpack-rpc on a socket, simulated time kept to the wall clock.

Three threads: `airsim_sim.rpc` speaks with clients (asyncio), `airsim_sim.physics` steps 200 times a simulated second,
`airsim_sim.render` draws. Physics never waits for a picture, and nothing runs in the render thread unless asked.

    with Server(Simulation(load_world("field", 1)), port=0) as server:
        connect to ("127.0.0.1", server.port)
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgpack

from airsim_sim.api import Where, find
from airsim_sim.flight import CallError, Task
from airsim_sim.model import TIMESTEP_S
from airsim_sim.simulation import Simulation

DEFAULT_PORT = 41451  # AirSim's
MESSAGE_LIMIT = 16 * 2**20  # bytes; a request is never near that
REQUESTS_AT_ONCE = 4  # of one connection in the render or physics thread; AirSim's server has as many threads
ANSWER_BUFFER = (
    4 * 2**20
)  # bytes of one connection's answers that wait for the client to read; chosen: a few pictures
CATCH_UP_S = 0.1  # a stall longer than this is not made up for: simulated time falls behind instead


class ServerError(RuntimeError):
    """The server cannot start; the text names the address and the remedy."""


class Server:
    """Serves one simulation. `port=0` takes a free one, then read `port`."""

    def __init__(
        self,
        simulation: Simulation,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        clock_speed: float = 1.0,
    ) -> None:
        if not 0.01 <= clock_speed <= 100:
            raise ServerError(f"clock speed must be from 0.01 to 100, is {clock_speed:g}")
        if not 0 <= port <= 65535:
            raise ServerError(f"port must be from 0 to 65535, is {port}")
        self.simulation, self.host, self.port, self.clock_speed = simulation, host, port, clock_speed
        self.render_pool = ThreadPoolExecutor(1, thread_name_prefix="airsim_sim.render")
        self._loop = asyncio.new_event_loop()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._connections: set[_Connection] = set()

    def start(self) -> None:
        """Binds the port, makes the renderer, starts the threads. Raises ServerError when the port is taken."""
        # The renderer takes most of a second: it is made while the port is bound and physics start.
        drawing = self.render_pool.submit(self.simulation.renderer)
        try:
            listener = self._loop.run_until_complete(
                self._loop.create_server(lambda: _Connection(self), self.host, self.port)
            )
        except OSError as error:
            self.render_pool.submit(self.simulation.close).result()
            self.render_pool.shutdown()
            self._loop.close()
            raise ServerError(
                f"cannot listen on {self.host} port {self.port} ({error.strerror or error}): is another simulator "
                "or Unreal running there? Stop it, or choose another port with --port"
            ) from error
        self.port = listener.sockets[0].getsockname()[1]
        for name, target in (("rpc", self._serve), ("physics", self._run_physics)):
            thread = threading.Thread(target=target, name=f"airsim_sim.{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        drawing.result()

    def stop(self) -> None:
        """Ends all threads and connections; running tasks answer False first."""
        if self._stopping.is_set() or not self._threads:
            return
        self._stopping.set()
        self._jobs.put(None)
        with self.simulation.lock:
            self.simulation.paused = True  # ends a simContinueForTime
            self.simulation.flight.cancel()
        self._loop.call_soon_threadsafe(self._close_connections)
        for thread in self._threads:
            thread.join(timeout=10)
        self.render_pool.submit(self.simulation.close).result(timeout=10)
        self.render_pool.shutdown()

    @property
    def running(self) -> bool:
        """Whether its threads live; one that ended by itself met a bug, and its traceback is on stderr."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- physics thread

    def run_in_physics(self, work: Callable[[], Any]) -> Future[Any]:
        """Runs `work` in the physics thread between two steps."""
        future: Future[Any] = Future()

        def job() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def _run_physics(self) -> None:
        simulation = self.simulation
        period = TIMESTEP_S / self.clock_speed
        due = time.monotonic()
        while not self._stopping.is_set():
            with simulation.lock:  # so that no step slips in after simPause has answered
                paused = simulation.paused
                if not paused:
                    simulation.step()
            if paused:
                wait, due = 0.05, time.monotonic()
            else:
                due += period
                wait = due - time.monotonic()
                if wait < -CATCH_UP_S:
                    due, wait = time.monotonic(), 0.0
            if wait <= 0 and self._jobs.empty():
                continue
            # A job (simContinueForTime) wakes the thread; otherwise this is the sleep.
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=max(0.0, wait))
                if job is not None:
                    job()
                    due = time.monotonic()

    # ---- rpc thread

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _close_connections(self) -> None:
        for connection in list(self._connections):
            connection.close()
        self._loop.call_later(0.05, self._loop.stop)

    def post(self, work: Callable[[], None]) -> None:
        """Runs `work` soon in the rpc thread; forgotten once the server has stopped."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)


_NOTHING = object()


class _Connection(asyncio.Protocol):
    """One client: requests in, answers out in the order in which they are ready.

    Nothing more is read from a client that leaves its answers unread, or that has `REQUESTS_AT_ONCE` under way.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._unpacker = msgpack.Unpacker(raw=False, unicode_errors="replace", max_buffer_size=MESSAGE_LIMIT)
        self._transport: asyncio.Transport | None = None
        self._under_way = 0
        self._unread = False  # the client does not keep up with its answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=ANSWER_BUFFER)
        self._server._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server._connections.discard(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def pause_writing(self) -> None:
        self._unread = True

    def resume_writing(self) -> None:
        self._unread = False
        self._handle_requests()

    def data_received(self, data: bytes) -> None:
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull as error:
            self._drop(error)
        self._handle_requests()

    def _handle_requests(self) -> None:
        """Handles what has been received, as far as there is room, and reads on only when all is handled."""
        while self._transport is not None:
            if self._unread or self._under_way >= REQUESTS_AT_ONCE:
                self._transport.pause_reading()
                return
            try:
                message = next(self._unpacker, _NOTHING)
                if message is _NOTHING:
                    self._transport.resume_reading()
                    return
                self._handle(message)
            except Exception as error:  # garbage raises a dozen different things
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        print(f"airsim_sim: dropped a client that does not speak msgpack-rpc ({error!r})", file=sys.stderr)
        self.close()
        self._transport = None

    def _handle(self, message: Any) -> None:
        number, name, args = _request(message)
        simulation = self._server.simulation
        try:
            where = find(simulation.flavor, name, len(args)).where
            if where is Where.ANY:
                result = simulation.call(name, *args)
                if isinstance(result, Task):
                    result.on_done(
                        lambda value: self._server.post(lambda: self._send(_packed(number, None, value)))
                    )
                else:
                    self._send(_packed(number, None, result))
                return
        except CallError as error:
            self._send(_packed(number, str(error), None))
            return
        self._under_way += 1
        if where is Where.RENDER:
            self._server.render_pool.submit(self._call_elsewhere, number, name, args)
        else:
            self._server.run_in_physics(lambda: self._call_elsewhere(number, name, args))

    def _call_elsewhere(self, number: int | None, name: str, args: list[Any]) -> None:
        """Runs in the render or physics thread, packing included, so that the rpc thread stays quick."""
        answer = b""
        if self._transport is not None:
            try:
                answer = _packed(number, None, self._server.simulation.call(name, *args))
            except Exception as error:  # a fault in drawing is the client's answer, not the end of the thread
                answer = _packed(number, str(error), None)
        self._server.post(lambda: self._finish(answer))

    def _finish(self, answer: bytes) -> None:
        self._under_way -= 1
        self._send(answer)
        self._handle_requests()

    def _send(self, answer: bytes) -> None:
        if self._transport is not None and answer:
            self._transport.write(answer)


def _request(message: Any) -> tuple[int | None, str, list[Any]]:
    """Number (None for a notification, which is not answered), method and arguments. Raises ValueError."""
    match message:
        case [0, int(number), str(name), list(args)]:
            return number, name, args
        case [2, str(name), list(args)]:
            return None, name, args
    raise ValueError(f"not a msgpack-rpc request: {str(message)[:60]}")


def _packed(number: int | None, error: str | None, result: Any) -> bytes:
    return b"" if number is None else msgpack.packb([1, number, error, result], use_bin_type=True)
