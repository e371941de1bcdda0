"""What the service counts: its requests for Prometheus, and the guard's counters."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nav_server.service import Service
from vlm_perception.guard import Guard

_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_OTHER = "other"


class _GuardCollector(Collector):
    """The guard's record as it is when it is asked for."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def collect(self) -> Iterator[Metric]:
        record = self._guard.record()
        requests = SummaryMetricFamily(
            "streampilot_model_request_seconds", "Time of the model's answers", labels=("kind",)
        )
        for kind, latencies in record.by_kind.items():
            requests.add_metric((kind,), latencies.count, 1e-3 * latencies.total_ms)
        yield requests
        for name in ("errors", "breaks", "hovers", "alerts", "cache_hits", "restarts"):
            yield CounterMetricFamily(f"streampilot_{name}", _WORDS[name], value=getattr(record, name))


_WORDS = {
    "errors": "Requests that the model failed",
    "breaks": "Attempts that the circuit breaker ended",
    "hovers": "Decisions answered by hover, both attempts having been broken off",
    "alerts": "Answers that took longer than their threshold",
    "cache_hits": "Answers that an unchanged memory had given before",
    "restarts": "Recoveries after too many errors in a row",
}


class Metrics:
    """A registry of its own, so that several applications may live in one process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "streampilot_http_request_seconds",
            "Time from a request's head to its answer",
            ("path", "status"),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(_GuardCollector(service.guard))
        clients = Gauge("streampilot_clients", "Clients with a stream", registry=self._registry)
        clients.set_function(lambda: len(service.sessions))

    def answer(self, accept: str) -> Response:
        """JSON, or Prometheus' text for whoever accepts it."""
        if "text/plain" in accept or "openmetrics" in accept:
            return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
        return JSONResponse(self._service.guard.record().counters())

    async def timed(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's answer, counted by its path and status."""
        began_s, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, noting)
        finally:
            # The route's path, set by the router: what is asked for in vain must not make a label each.
            path = getattr(scope.get("route"), "path", _OTHER)
            self._requests.labels(path, str(status)).observe(time.perf_counter() - began_s)
