"""How a service call across the link ends, and how that is sent back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import zenoh


class CallStatus(Enum):
    OK = "ok"
    REFUSED = "refused"
    NO_ANSWER = "no answer"


_STATUSES = {status.value: status for status in CallStatus}


@dataclass(frozen=True)
class CallResult:
    """How a service call ended. `payload`: the response, CDR; `message`: why there is none, for people."""

    status: CallStatus
    payload: bytes = b""
    message: str = ""


def send_back(result: CallResult, query: zenoh.Query, key: str) -> None:
    if result.status is CallStatus.OK:
        query.reply(key, result.payload)
    else:
        query.reply_err(result.message.encode(), encoding=result.status.value)


def result_of(reply: zenoh.Reply) -> CallResult | None:
    """What `send_back` sent; None for errors of zenoh's own, such as its timeout."""
    if reply.ok is not None:
        return CallResult(CallStatus.OK, reply.ok.payload.to_bytes())
    assert reply.err is not None
    status = _STATUSES.get(str(reply.err.encoding))
    if status is None:
        return None
    return CallResult(status, message=reply.err.payload.to_bytes().decode("utf-8", "replace"))
