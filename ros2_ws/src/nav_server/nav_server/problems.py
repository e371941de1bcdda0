"""How the HTTP API says no: one exception with a status and a sentence, which the app turns into the answer."""

from __future__ import annotations

from http import HTTPStatus


class Problem(Exception):
    """A request that cannot be served.

    Attributes:
        status: of the HTTP answer.
        detail: what was wrong, its value and the remedy, in one line.
        retry_after_s: when to try again, in the answer's header; None: not by waiting alone.
    """

    def __init__(self, status: HTTPStatus, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s
