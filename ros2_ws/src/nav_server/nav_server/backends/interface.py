"""What every backend offers: the part of a Stream that nodes and HTTP sessions use."""

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
    PrimeRequest,
    PrimeResponse,
)
from vlm_perception import prompting
from vlm_perception.stream import Taken
from vlm_perception.tickets import Ticket


class BackendError(RuntimeError):
    """A backend cannot be reached, or refuses; names it and says why."""


class Backend(Protocol):
    """All methods return at once and may be called from any thread; results come by tickets."""

    def submit_frames(self, images: Sequence[CompressedImage]) -> Ticket[Taken]:
        """Frames, oldest first, to be seen one after the other."""
        ...

    def submit_prime(self, request: PrimeRequest) -> Ticket[PrimeResponse]:
        """System prompt and tools of what follows."""
        ...

    def submit_reset(self) -> Ticket[PrimeResponse]:
        """Forget every frame; the prompt stays."""
        ...

    def submit_generate(
        self,
        goal: GenerateGoal,
        on_text: Callable[[str], None] | None = None,
        *,
        tools: Sequence[prompting.Tool] = (),
    ) -> Ticket[GenerateResult]:
        """One tool call: of one of `tools`, default: of those primed."""
        ...

    def submit_ask(self, request: AskRequest) -> Ticket[AskResponse]:
        """A question, answered in words."""
        ...

    def status(self) -> EngineStatus:
        """The numbers now."""
        ...

    def close(self) -> None:
        """Refuse what waits and what comes."""
        ...
