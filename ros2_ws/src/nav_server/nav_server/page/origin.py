"""Requests that a page of another host makes from a visitor's browser, refused: the visitor's own access would count.

An ASGI middleware for the whole application, web sockets included. Programs send no Origin and are not concerned.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class SameOrigin:
    """`open_to_anybody`: no token is asked for. Then the address asked for must be one of this machine or a number: a
    name could be a foreign page's own that it let point here (DNS rebinding)."""

    def __init__(self, app: ASGIApp, *, open_to_anybody: bool) -> None:
        self._app = app
        self._open = open_to_anybody

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        problem = self._problem(Headers(scope=scope))
        if not problem:
            await self._serve(scope, receive, send)
        elif scope["type"] == "http":
            await JSONResponse({"detail": problem}, 403)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": problem[:100]})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, _unframed(send))
        except RuntimeError as error:
            # Of starlette, whose middleware NiceGUI uses: the browser left before the answer. No fault of ours to log.
            if str(error) != "No response returned.":
                raise

    def _problem(self, headers: Headers) -> str:
        host = headers.get("x-forwarded-host") or headers.get("host", "")
        if self._open and not _is_number_or_local(host):
            return f"without a token only an address of this machine may be asked for, not {host[:80]!r}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"a page of {origin[:80]!r} may not ask {host[:80]!r}"
        return ""


def _is_number_or_local(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", "")
    return True


def _unframed(send: Send) -> Send:
    """Adds the header that keeps other hosts' pages from showing this one in a frame, with its buttons under theirs."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-frame-options", b"DENY")]
        await send(message)

    return sending
