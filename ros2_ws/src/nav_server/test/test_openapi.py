"""Requests made from the OpenAPI document: none ends in a server error, and each answer is as documented."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks

from nav_server.app import create_app
from nav_server.backends.factory import Backends
from nav_server.service import Service
from nav_server.testing.serving import SETTINGS

WITH_FRAMES = ("/append_frame", "/append_chunk")
WITH_BODY = (*WITH_FRAMES, "/decide", "/watches")
UNKNOWN = (*WITH_FRAMES, "/watches/{number}")
"""What is no picture, or a watch that is there, cannot be told from a document."""
PATHS = (*WITH_FRAMES, "/decide", "/watches", "/watches/{number}", "/status", "/reset", "/health", "/metrics")
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


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, GenerationMode.POSITIVE) for path in PATHS]
    + [(path, GenerationMode.NEGATIVE) for path in WITH_BODY],
)
def test_no_request_ends_in_a_server_error(
    api: schemathesis.BaseSchema, path: str, mode: GenerationMode
) -> None:
    found = [each for each in operations(api) if each.path == path]
    operation = next((each for each in found if each.method.upper() == "POST"), found[0])
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def serves(case: schemathesis.Case) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    serves()
    # Among bad requests are some that are none here: without a body, or with a query that nothing reads.
    expected = HTTPStatus.OK if mode is GenerationMode.POSITIVE else HTTPStatus.UNPROCESSABLE_ENTITY
    assert path in UNKNOWN or expected in statuses


def test_every_path_is_tried(api: schemathesis.BaseSchema) -> None:
    assert {found.path for found in operations(api)} == set(PATHS)
