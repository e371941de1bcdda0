"""Requests made from the OpenAPI document: none ends in a server error, and each answer is as documented."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.core.parameters import ParameterLocation

from nav_server.app import create_app
from nav_server.backends.factory import Backends
from nav_server.service import Service
from nav_server.testing.serving import SETTINGS

WITH_FRAMES = ("/append_frame", "/append_chunk")
WITH_BODY = (*WITH_FRAMES, "/decide", "/watches")
OK, BAD = HTTPStatus.OK, HTTPStatus.UNPROCESSABLE_ENTITY
GOOD = {
    **{path: {OK} for path in ("/decide", "/status", "/reset", "/health", "/metrics")},
    # What is a picture, how long a stream's chunks are, which questions and watches are there: no document says it.
    **{path: {OK, BAD, HTTPStatus.CONFLICT} for path in WITH_FRAMES},
    "/watches": {OK, BAD, HTTPStatus.CONFLICT},
    "/watches/{number}": {OK, HTTPStatus.NOT_FOUND},
}
"""What a request that the document calls good may be answered with, by path."""
CHECKS = [
    checks.not_a_server_error,
    checks.response_schema_conformance,
    checks.status_code_conformance,
    checks.content_type_conformance,
]


@pytest.fixture
def api(backends: Backends, jpeg: bytes) -> schemathesis.BaseSchema:
    service = Service(backends, SETTINGS)
    assert service.sessions.of("/").submit_frames([jpeg], fps=2.0).wait(30.0)  # something to decide on
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(service))


def operations(api: schemathesis.BaseSchema) -> list[Any]:
    """Every operation of the document; one that is no valid schema fails here."""
    found: list[Any] = list(api.get_all_operations())
    return [operation.ok() for operation in found]


def breaks_the_document(case: schemathesis.Case) -> bool:
    """Whether what is sent does. Requests are called bad, too, for a query that nothing reads, for an empty list, which
    a form leaves out, and for values that read as good ones: 0 as false, or text that does match the pattern."""
    assert case.meta
    body = case.meta.components.get(ParameterLocation.BODY)
    broken = {keyword for each in case.meta.phase.data.mutations for keyword in each.keywords}  # type: ignore[union-attr]
    return (
        body is not None
        and body.mode is GenerationMode.NEGATIVE
        and case.media_type == "application/json"
        and bool(broken - {"type", "pattern"})
    )


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, GenerationMode.POSITIVE) for path in GOOD]
    + [(path, GenerationMode.NEGATIVE) for path in WITH_BODY],
)
def test_no_request_ends_in_a_server_error(
    api: schemathesis.BaseSchema, path: str, mode: GenerationMode
) -> None:
    found = [each for each in operations(api) if each.path == path]
    operation = next((each for each in found if each.method.upper() == "POST"), found[0])
    bad = mode is GenerationMode.NEGATIVE
    statuses: Counter[int] = Counter()
    refused = []

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def serves(case: schemathesis.Case) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        if not bad:
            assert response.status_code in GOOD[path]
        elif breaks_the_document(case):
            refused.append(case.media_type)
            assert response.status_code == BAD

    serves()
    assert bool(refused) == bad
    # What is no picture, or a watch that is there, no good request tells.
    assert (BAD if bad else OK) in statuses or (not bad and path in (*WITH_FRAMES, "/watches/{number}"))


def test_every_path_is_tried(api: schemathesis.BaseSchema) -> None:
    assert {found.path for found in operations(api)} == set(GOOD)
