"""What a node or an HTTP session needs of whatever sees and decides: one Stream, or several in order of preference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

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
    RecallRequest,
    RecallResponse,
    WatchRequest,
    WatchResponse,
)
from vlm_perception import prompting
from vlm_perception.request_queue import Taken
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import StreamSettings
from vlm_perception.tickets import Ticket


class Backend(Protocol):
    """The public part of `stream.Stream`, which says what each of these is. All methods return at once and may be
    called from any thread."""

    settings: StreamSettings
    edge_offset_s: float

    @property
    def form(self) -> ServingForm: ...

    @property
    def answers_in_words(self) -> bool: ...

    @property
    def chunk_stamps_s(self) -> list[float]: ...

    def submit_frame(self, image: CompressedImage) -> None: ...

    def submit_frames(self, images: Sequence[CompressedImage]) -> Ticket[Taken]: ...

    def submit_odometry(self, odometry: Odometry) -> bool: ...

    def submit_prime(self, request: PrimeRequest) -> Ticket[PrimeResponse]: ...

    def submit_reset(self) -> Ticket[PrimeResponse]: ...

    def submit_generate(
        self,
        goal: GenerateGoal,
        on_text: Callable[[str], None] | None = None,
        *,
        tools: Sequence[prompting.Tool] = (),
    ) -> Ticket[GenerateResult]: ...

    def submit_ask(self, request: AskRequest) -> Ticket[AskResponse]: ...

    def submit_recall(self, request: RecallRequest) -> Ticket[RecallResponse]: ...

    def submit_watches(self, request: WatchRequest) -> WatchResponse: ...

    def status(self) -> EngineStatus: ...

    def frame_wanted_s(self) -> float: ...

    def close(self) -> None: ...
