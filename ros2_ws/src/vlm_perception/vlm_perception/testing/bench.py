"""A stream with short names for what tests do with it: on a virtual clock, stepped by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from nav_common.clock import VirtualClock
from nav_common.data import (
    AskRequest,
    AskResponse,
    CompressedImage,
    EngineStatus,
    GenerateGoal,
    GenerateResult,
    Odometry,
    PrimeRequest,
    PrimeResponse,
)
from nav_common.frames import Vector
from vlm_perception.engine import QwenModel, VideoStreamingInference
from vlm_perception.prompting import prime_text
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream
from vlm_perception.testing.drone_tools import DRONE_TOOLS
from vlm_perception.tickets import Ticket

PROMPT = "You fly a drone."
TOOLS = json.dumps(DRONE_TOOLS)
FORM = ServingForm(width=112, height=84, tag="", max_cache_tokens=2400, max_new_tokens=24)
START = 1000.0


class Bench:
    """One stream and its clock. Times of frames are seconds after START."""

    def __init__(
        self,
        model: QwenModel,
        jpeg: Callable[[int], bytes],
        form: ServingForm = FORM,
        clock: VirtualClock | None = None,
        **options: Any,
    ):
        self.clock = clock or VirtualClock(START)
        self.warnings: list[str] = []
        self.jpeg = jpeg
        self.stream = Stream(model, form, self.clock, on_warning=self.warnings.append, **options)
        self.prompt_id = ""

    def prime(self, prompt: str = PROMPT, tools: str = TOOLS) -> PrimeResponse:
        ticket = self.stream.submit_prime(PrimeRequest(prompt, tools))
        self.stream.run_until_idle()
        if ticket.result.success:
            self.prompt_id = ticket.result.prompt_id
        return ticket.result

    def prime_tokens(self, prompt: str) -> int:
        """What a prompt with the drone's tools takes."""
        return len(self.engine.qwen.tokenize(prime_text(prompt, DRONE_TOOLS)))

    def submit_frame(self, stamp_s: float, data: bytes | None = None) -> None:
        """A frame of this stamp, whatever the time is."""
        data = self.jpeg(int((stamp_s - START) * 10)) if data is None else data
        self.stream.submit_frame(CompressedImage(stamp_s, data))

    def frame(self, after_s: float, data: bytes | None = None) -> None:
        """A frame taken so long after the start, arriving 0.02 s later."""
        self.clock.sleep(max(0.0, START + after_s + 0.02 - self.clock.now()))
        self.submit_frame(START + after_s, data)

    def frames(self, *after_s: float) -> None:
        """Frames, each looked at before the next one comes."""
        for stamp_s in after_s:
            self.frame(stamp_s)
            self.stream.run_until_idle()

    def pose(self, after_s: float, x: float) -> None:
        self.stream.submit_odometry(Odometry(START + after_s, Vector(x, 0.0, 2.0)))

    def generate(self, **fields: Any) -> Ticket[GenerateResult]:
        fields.setdefault("prompt_id", self.prompt_id)
        fields.setdefault("instruction", "fly to the red beacon")
        return self.stream.submit_generate(GenerateGoal(**fields))

    def ask(
        self, question: str = "what do you see?", choices: tuple[str, ...] = (), max_new_tokens: int = 2
    ) -> Ticket[AskResponse]:
        return self.stream.submit_ask(AskRequest(question, choices, max_new_tokens))

    @property
    def status(self) -> EngineStatus:
        return self.stream.status()

    @property
    def engine(self) -> VideoStreamingInference:
        return self.stream.memory._engine

    def keys(self) -> torch.Tensor:
        return self.engine.cache.live_keys().clone()
