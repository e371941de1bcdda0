"""Requests to a backend, each waited for."""

from __future__ import annotations

from typing import Any, TypeVar

import cv2
import numpy as np

from nav_agent import toolset
from nav_common.data import GenerateGoal, GenerateResult, PrimeRequest
from vlm_perception.backend import Backend
from vlm_perception.tickets import Ticket

T = TypeVar("T")

PROMPT = "You fly a drone."
JPEG = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
WAIT_S = 30.0


def done(ticket: Ticket[T]) -> T:
    assert ticket.wait(WAIT_S)
    return ticket.result


def decide(backend: Backend, prompt: str = PROMPT, **fields: Any) -> GenerateResult:
    """A decision, the prompt being primed first. fields: of GenerateGoal, where they differ."""
    prompt_id = done(backend.submit_prime(PrimeRequest(prompt, toolset.tools_json()))).prompt_id
    fields = {"prompt_id": prompt_id, "instruction": "fly to the red beacon", "deadline_s": 20.0, **fields}
    return done(backend.submit_generate(GenerateGoal(**fields)))
