"""Connections of the HTTP server: a cap on how many there are, and a time within which each must ask for something.

uvicorn has neither: a client that connects and sends nothing, or a head one byte a minute, would hold its place for
ever, and `limit_concurrency` would then refuse the others.
"""

# uvicorn's classes have annotations, its loop's types have none.
# mypy: allow-subclassing-any

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class LimitedConnection(H11Protocol):
    """uvicorn's protocol, with limits."""

    max_connections: int
    idle_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._must_ask: asyncio.TimerHandle | None = None
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self.connections) >= self.max_connections and not _close_idlest(self.connections):
            assert isinstance(transport, asyncio.Transport)
            transport.write(_FULL)
            transport.close()
            self.transport = transport
            return
        super().connection_made(transport)  # type: ignore[arg-type]
        self._begin_idle()

    def data_received(self, data: bytes) -> None:
        if self.flow is None:  # refused
            return
        super().data_received(data)
        if not self.is_idle:
            self._end_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_idle()
        if self.flow is not None:
            super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._begin_idle()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being served: none came, or its head is not complete yet."""
        return self.cycle is None or self.cycle.response_complete

    def _begin_idle(self) -> None:
        self._end_idle()
        self.idle_since_s = self.loop.time()
        self._must_ask = self.loop.call_later(self.idle_s, self._close_idle)

    def _end_idle(self) -> None:
        if self._must_ask is not None:
            self._must_ask.cancel()
            self._must_ask = None

    def _close_idle(self) -> None:
        if self in self.connections and self.is_idle:  # not one that became a web socket
            self.transport.abort()


def connection_class(max_connections: int, idle_s: float) -> type[LimitedConnection]:
    """For uvicorn's option `http`."""
    return type("Connection", (LimitedConnection,), {"max_connections": max_connections, "idle_s": idle_s})


def _close_idlest(connections: set[Any]) -> bool:
    """Make room by closing the connection that has been idle longest; False: all are being served."""
    idle = [connection for connection in connections if getattr(connection, "is_idle", False)]
    if not idle:
        return False
    oldest = min(idle, key=lambda connection: connection.idle_since_s)
    connections.discard(oldest)
    oldest.transport.abort()
    return True
