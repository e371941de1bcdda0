"""A client of AirSim's msgpack-rpc: two connections, usable from any thread, sends at once, never waits for ever."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from typing import Any, Protocol

import msgpack

DEFAULT_PORT = 41451
CONNECT_TIMEOUT_S = 0.8
CALL_TIMEOUT_S = 2.0
# The first picture of a camera takes a renderer seconds; that pictures stay away is noticed by the gate, and sooner.
IMAGE_TIMEOUT_S = 10.0
# Doubled at each failure, so that a simulator that starts is found within a second or so and none is hammered.
BACKOFF_S = (0.25, 1.0)
# One 4K picture in raw colour is 25 MB; more than this is not a valid answer.
LARGEST_ANSWER = 128 * 2**20
# Unanswered calls in a row with nothing else received: the peer hangs or is no AirSim, so connect again.
MOST_UNANSWERED = 3
_RECEIVE_BYTES = 1 << 18

# They take tens of milliseconds on the server, and rpclib answers a connection's calls one after the other.
IMAGE_METHODS = frozenset({"simGetImages", "simGetImage"})


class RpcError(ConnectionError):
    """A call to AirSim that brought no result; the message says which, where, and what to do."""


class NotConnected(RpcError):
    """There is no connection, or it broke before the answer came."""


class NoAnswer(RpcError):
    """The server took the call and did not answer in time."""


class Refused(RpcError):
    """The server answered with an error: its text is in the message."""


class Rpc(Protocol):
    """What the bridge needs of AirSim: a client of it, or the embedded simulator in the same process."""

    def call(self, method: str, *args: Any) -> Any: ...


class _Pending:
    def __init__(self, method: str) -> None:
        self.method = method
        self.done = threading.Event()
        self.error: Any = None
        self.result: Any = None
        self.lost: RpcError | None = None


class _Connection:
    """One socket with a thread that reads it. Unusable after its first fault: the client then makes another."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self.where = f"{host}:{port}"
        self.fault: RpcError | None = None
        self.unanswered = 0
        self.refused_begin: Any = None
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()
        self._socket = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
        self._socket.settimeout(CALL_TIMEOUT_S)  # for sending: a peer that reads nothing must not hold us
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._packer = msgpack.Packer(use_bin_type=True)
        threading.Thread(target=self._read, name=f"airsim-{name}", daemon=True).start()

    def send(self, method: str, args: tuple[Any, ...], *, answered: bool) -> tuple[int, _Pending]:
        pending = _Pending(method)
        with self._lock:
            if self.fault is not None:
                raise self.fault
            number = next(self._ids) & 0xFFFFFFFF
            if answered:
                self._pending[number] = pending
            data = self._packer.pack([0, number, method, args])
            try:
                self._socket.sendall(data)
            except OSError as error:
                fault = NotConnected(f"the connection to AirSim at {self.where} broke: {error}")
                self._fail(fault)
                raise fault from error
        return number, pending

    def forget(self, number: int) -> None:
        with self._lock:
            self._pending.pop(number, None)

    def close(self, fault: RpcError) -> None:
        with self._lock:
            self._fail(fault)

    def _fail(self, fault: RpcError) -> None:
        """Once, under the lock."""
        if self.fault is not None:
            return
        self.fault = fault
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader, also where close() alone does not
        self._socket.close()
        for pending in self._pending.values():
            pending.lost = fault
            pending.done.set()
        self._pending.clear()

    def _read(self) -> None:
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=LARGEST_ANSWER)
        buffer = bytearray(_RECEIVE_BYTES)
        view = memoryview(buffer)
        received = 0
        try:
            while True:
                try:
                    count = self._socket.recv_into(buffer)
                except TimeoutError:
                    continue  # nothing to read is no fault here: `call` has a time-out of its own
                if count == 0:
                    raise ConnectionResetError("closed by the server")
                received += count
                self.unanswered = 0
                unpacker.feed(view[:count])
                for message in unpacker:
                    self._deliver(message)
        except OSError as error:
            where = f"AirSim at {self.where}"
            after = f" after {received} bytes" if received else " before any answer"
            self.close(NotConnected(f"the connection to {where} ended{after}: {error}"))
        except (
            Exception
        ) as error:  # msgpack raises many kinds on bytes that are not its own: it is not AirSim
            self.close(
                NotConnected(
                    f"{self.where} does not speak msgpack-rpc ({type(error).__name__}: {error}): "
                    "is it AirSim's port? (ApiServerPort in its settings.json, 41451 by default)"
                )
            )

    def _deliver(self, message: Any) -> None:
        if not (isinstance(message, (list, tuple)) and len(message) == 4 and message[0] == 1):
            raise ValueError(f"{str(message)[:60]!r} is no answer")
        _, number, error, result = message
        with self._lock:
            pending = self._pending.pop(number, None)
        if pending is None:
            self.refused_begin = error if error is not None else self.refused_begin
        else:
            pending.error, pending.result = error, result
            pending.done.set()


class AirSimClient:
    """Calls AirSim's methods by name, from any thread. Connects at the first call and again after a fault.

    Commands and images have a connection each, so that a velocity never waits for a picture.
    While the server is away, calls fail at once and a new connection is tried at most each `BACKOFF_S`.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> None:
        if not 1 <= port <= 65535:
            raise ValueError(f"port is {port}, must be 1 to 65535")
        self.host = host
        self.port = port
        self._channels = {name: _Channel(host, port, name) for name in ("command", "image")}
        self._closed = False

    def call(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """The method's result. `timeout_s`: `CALL_TIMEOUT_S` by default, for pictures `IMAGE_TIMEOUT_S`.

        Raises:
            NotConnected: nothing listens, the connection broke, or what answered is no AirSim.
            NoAnswer: nothing came within `timeout_s` seconds. The call may still be carried out.
            Refused: AirSim answered with an error.
        """
        channel = self._channel(method)
        connection = channel.connection()
        number, pending = connection.send(method, args, answered=True)
        if timeout_s is None:
            timeout_s = IMAGE_TIMEOUT_S if method in IMAGE_METHODS else CALL_TIMEOUT_S
        if not pending.done.wait(timeout_s):
            connection.forget(number)
            error = NoAnswer(
                f"AirSim at {connection.where} did not answer {method} within {timeout_s:g} s: "
                "is it paused, loading or hung?"
            )
            connection.unanswered += 1
            if connection.unanswered >= MOST_UNANSWERED:
                connection.close(NotConnected(str(error)))
            raise error
        if pending.lost is not None:
            raise pending.lost
        if pending.error is not None:
            raise Refused(f"AirSim refused {method}: {_text(pending.error)}")
        channel.works()
        return pending.result

    def begin(self, method: str, *args: Any) -> None:
        """Send a call and do not wait: for motions, which AirSim answers when they end.

        Never connects, so that it returns at once; `call` does.

        Raises:
            NotConnected: there is no connection.
            Refused: AirSim has answered an earlier `begin` with an error since the last one.
        """
        connection = self._channel(method).established()
        connection.send(method, args, answered=False)
        if connection.refused_begin is not None:
            error, connection.refused_begin = connection.refused_begin, None
            raise Refused(f"AirSim refused {method} or a motion before it: {_text(error)}")

    def close(self) -> None:
        """Close both connections. Later calls fail."""
        self._closed = True
        for channel in self._channels.values():
            channel.close()

    def _channel(self, method: str) -> _Channel:
        if self._closed:
            raise NotConnected(f"the client of AirSim at {self.host}:{self.port} is closed")
        return self._channels["image" if method in IMAGE_METHODS else "command"]


class _Channel:
    """Keeps one connection up, with back-off."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self._host, self._port, self._name = host, port, name
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._backoff_s = BACKOFF_S[0]
        self._not_before = 0.0
        self._last_fault: RpcError | None = None

    def connection(self) -> _Connection:
        with self._lock:
            if self._connection is not None:
                if self._connection.fault is None:
                    return self._connection
                self._postpone(self._connection.fault)
            if self._last_fault is not None and time.monotonic() < self._not_before:
                raise self._last_fault
            where = f"{self._host}:{self._port}"
            try:
                self._connection = _Connection(self._host, self._port, self._name)
            except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
                fault = NotConnected(
                    f"no AirSim at {where} ({error}): start the simulator, or correct host and port"
                )
                self._postpone(fault)
                raise fault from error
            return self._connection

    def established(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.fault is not None:
            raise self._last_fault or NotConnected(
                f"not connected to AirSim at {self._host}:{self._port} yet"
            )
        return connection

    def works(self) -> None:
        """A call was answered: the next failure starts with the short wait again."""
        self._backoff_s = BACKOFF_S[0]

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close(NotConnected("closed"))

    def _postpone(self, fault: RpcError) -> None:
        self._connection = None
        self._last_fault = fault
        self._not_before = time.monotonic() + self._backoff_s
        self._backoff_s = min(2.0 * self._backoff_s, BACKOFF_S[1])


def _text(error: Any) -> str:
    """rpclib sends a string, or a map with the text in it."""
    if isinstance(error, bytes):
        return error.decode(errors="replace")
    return str(error)
