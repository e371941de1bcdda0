"""Who may call, and how often: the token of each request, and a budget of requests for each client."""

from __future__ import annotations

import base64
import binascii
import hmac
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus

from starlette.datastructures import Headers

from nav_server.problems import Problem

CLIENT_HEADER = "x-client-id"
LONGEST_CLIENT_ID = 64
_REMEMBERED_CLIENTS = 1024
_BURST_S = 2.0  # of its average that a client may use at once


def client_of(headers: Headers, tokens: Sequence[str]) -> str:
    """Which client a request is of: one for each token and X-Client-Id.

    The token comes as `Authorization: Bearer TOKEN`, or as the password of a browser's own dialogue (Basic).

    Raises:
        Problem: no token, a wrong one, or an X-Client-Id that cannot be.
    """
    name = headers.get(CLIENT_HEADER, "")
    if len(name) > LONGEST_CLIENT_ID or not name.isprintable():
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            f"X-Client-Id has {len(name)} characters: up to {LONGEST_CLIENT_ID} printable ones are wanted",
        )
    if not tokens:
        return f"/{name}"
    given = _token(headers.get("authorization", ""))
    if not given:
        raise Problem(HTTPStatus.UNAUTHORIZED, "no token: send the header Authorization: Bearer TOKEN")
    matches = [hmac.compare_digest(given, token.encode()) for token in tokens]  # all, to take the same time
    if not any(matches):
        raise Problem(HTTPStatus.UNAUTHORIZED, "wrong token: it is not one of the server's STREAMPILOT_TOKEN")
    return f"{matches.index(True)}/{name}"


def _token(authorization: str) -> bytes:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class RateLimit:
    """A token bucket for each client. From any thread."""

    def __init__(self, requests_per_s: float, now: Callable[[], float]) -> None:
        self._rate = requests_per_s
        self._burst = max(1.0, _BURST_S * requests_per_s)
        self._now = now
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Requests left and when that was, s; of the clients heard of last."""

    def check(self, client: str) -> None:
        """Count a request.

        Raises:
            Problem: the client makes too many.
        """
        now = self._now()
        with self._lock:
            left, since = self._left.pop(client, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._rate)
            self._left[client] = (max(left - 1.0, 0.0) if left >= 1.0 else left, now)
            while len(self._left) > _REMEMBERED_CLIENTS:
                self._left.popitem(last=False)
        if left < 1.0:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"more than {self._rate:g} requests a second: send them more slowly",
                retry_after_s=1,
            )
