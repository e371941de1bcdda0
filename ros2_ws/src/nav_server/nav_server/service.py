"""What the HTTP API stands on: a loaded model's thread, its clients' streams, and a probe of whether it answers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from enum import StrEnum
from typing import Any

import cv2
import numpy as np
import torch

from nav_common.data import AskRequest, CompressedImage, EngineStatus, PrimeRequest
from nav_server.backends.factory import Backends
from nav_server.backends.openai_compatible import ServedMemory
from nav_server.sessions import FIRST_STAMP_S, Sessions
from nav_server.settings import HttpSettings
from vlm_perception import prompting
from vlm_perception.guard import Guard

PROBE_TOKENS = 8
DEGRADED_MS = 1000.0
"""Both chosen: a short answer shows that the model works, and one that takes a second is late for a decision."""
_PROBE_LIMIT_S = 5.0
_PROBE_AGAIN_S, _PROBE_REST = 2.0, 10.0
"""An answer is given out for so many seconds, and for so many times what it took: whoever asks often shall not load the
model."""
_PROBE_CACHE_TOKENS = 2048
_PROBE_PRIORITY = -1


class HealthStatus(StrEnum):
    """Of a service; DEGRADED: it takes DEGRADED_MS or more."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclasses.dataclass(frozen=True)
class Health:
    """`latency_ms`: of the probe, 0 where there was no answer."""

    status: HealthStatus
    latency_ms: float
    model_loaded: bool
    message: str = ""


class Service:
    """Backends as they are served. From any thread; `health` waits for an answer."""

    def __init__(self, backends: Backends, settings: HttpSettings) -> None:
        self.settings = settings
        self.clock = backends.clock
        self.guard = backends.guard
        self.sessions = Sessions(backends, max_clients=settings.max_clients, idle_s=settings.idle_s)
        self._backends = backends
        self._probe = _Probe(backends)

    def health(self) -> Health:
        return self._probe.health()

    def engine(self, status: EngineStatus | None) -> dict[str, Any]:
        """What is known of the first backend, and of one client's stream."""
        first = self._backends.first
        return {
            **first.facts(),
            "backend": first.health.name,
            "clients": len(self.sessions),
            "answers_in_words": first.form.answers_in_words,
            **(dataclasses.asdict(status) if status else {}),
        }

    @staticmethod
    def vram() -> dict[str, float]:
        """Of the GPU, by torch's allocator, in GB of 10^9 bytes; zeros without one."""
        if not torch.cuda.is_available():
            return {"allocated_gb": 0.0, "reserved_gb": 0.0}
        return {
            "allocated_gb": torch.cuda.memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.memory_reserved() / 1e9,
        }


class _Probe:
    """A small stream with one grey picture, which is asked for a few tokens."""

    def __init__(self, backends: Backends) -> None:
        engine, tools = backends.engine, ""
        form = engine.form if engine else ServedMemory.form
        if engine and not engine.form.answers_in_words:
            tools = json.dumps(form.tools)  # it takes no other prompt than its own
        elif engine:
            form = dataclasses.replace(form, max_cache_tokens=_PROBE_CACHE_TOKENS)
        self._stream = backends.stream(form=form, priority=_PROBE_PRIORITY, guard=Guard())  # not counted
        self._clock = backends.clock
        self._lock = threading.Lock()
        self._asked_s = -1e9
        self._health = Health(HealthStatus.UNHEALTHY, 0.0, True, "not asked yet")
        self._numbers = itertools.count(1)
        self._stream.submit_prime(PrimeRequest(backends.system_prompt, tools))
        grey = cv2.imencode(".png", np.full((form.height, form.width, 3), 128, np.uint8))[1].tobytes()
        self._stream.submit_frames([CompressedImage(FIRST_STAMP_S, grey)])

    def health(self) -> Health:
        with self._lock:
            again_s = max(_PROBE_AGAIN_S, _PROBE_REST * 1e-3 * self._health.latency_ms)
            if self._clock.now() - self._asked_s >= again_s:
                self._health = self._ask()
                self._asked_s = self._clock.now()
            return self._health

    def _ask(self) -> Health:
        began_s = self._clock.now()
        # Another question each time: the same one on the same memory would be answered from a cache.
        question, in_words = f"Is this picture number {next(self._numbers)}?", self._stream.answers_in_words
        choices = () if in_words else prompting.YES_NO
        ticket = self._stream.submit_ask(AskRequest(question, choices, max_new_tokens=PROBE_TOKENS))
        if not ticket.wait(_PROBE_LIMIT_S):
            ticket.cancel()
            return Health(HealthStatus.UNHEALTHY, 0.0, True, f"no answer within {_PROBE_LIMIT_S:g} s")
        if not ticket.result.success:
            if in_words and not self._stream.answers_in_words:
                return self._ask()  # it was answered by the next backend, which has no words
            return Health(HealthStatus.UNHEALTHY, 0.0, True, ticket.result.message)
        latency_ms = 1e3 * (self._clock.now() - began_s)
        status = HealthStatus.DEGRADED if latency_ms >= DEGRADED_MS else HealthStatus.HEALTHY
        return Health(status, latency_ms, True)
