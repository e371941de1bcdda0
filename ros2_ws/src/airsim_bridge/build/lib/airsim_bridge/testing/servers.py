"""Servers that are no AirSim, for tests of what the bridge does then."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack


@contextlib.contextmanager
def server(talk: Callable[[socket.socket], None], port: int = 0) -> Iterator[tuple[int, list[socket.socket]]]:
    """Runs `talk` for each connection; yields the port and the connections so far."""
    listener = socket.create_server(("127.0.0.1", port))
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            talk(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], connections
    finally:
        for endpoint in (listener, *connections):
            with contextlib.suppress(OSError):
                endpoint.shutdown(socket.SHUT_RDWR)
            endpoint.close()


def answering(answer: Callable[[int, str, list[Any]], object]) -> Callable[[socket.socket], None]:
    """A talk that answers each request with `answer(id, method, arguments)`: bytes are sent as they are, None is
    silence, anything else is packed."""

    def talk(connection: socket.socket) -> None:
        unpacker = msgpack.Unpacker(raw=False)
        while data := connection.recv(65536):
            unpacker.feed(data)
            for _, number, method, arguments in unpacker:
                reply = answer(number, method, arguments)
                if reply is not None:
                    connection.sendall(reply if isinstance(reply, bytes) else msgpack.packb(reply))

    return talk


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def babbling(data: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(data)
        silent(connection)

    return talk
