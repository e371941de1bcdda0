"""Which second of a flight caused a decision: each chunk is left out of the memory in turn, and the model asked again.

The rest is encoded anew behind the prompt, so that nothing of the chunk is left in the keys of those after it. What is
compared is the probability of the call that was chosen, and the call that would be chosen then. That is causal: no
attention is looked at, only what the choice would have been. Earlier decisions stay as they were made.

The chunks are those in memory at the decision. What had been evicted by then is part of none of the memories compared,
though in flight it had shaped the keys of what came after it; where that matters the model, asked anew with every
chunk, may choose another call than in flight, and `XRay.chosen` says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nav_agent import toolset
from nav_common.clock import VirtualClock
from nav_common.data import GenerateGoal, GenerateResult, GenerateStatus, PrimeRequest
from vlm_perception.admission import FrameGroup
from vlm_perception.engine import Generation, QwenModel
from vlm_perception.memory import Memory
from vlm_perception.serving_form import ServingForm

CAUSE_NATS = math.log(2.0)
"""A chunk is named as the cause where the call is less than half as likely without it (chosen)."""


class LeaveOneOutError(ValueError):
    """A memory that cannot be built again; the message says why."""


@dataclass(frozen=True)
class Moment:
    """A decision as the model was asked for it.

    chunks: in memory then, oldest first. first_s: stamp that the tags count from. call: the answer, as one line.
    """

    instruction: str
    recent_calls: tuple[str, ...]
    chunks: tuple[FrameGroup, ...]
    first_s: float
    call: str


@dataclass(frozen=True)
class Influence:
    """The choice without one chunk.

    Attributes:
        stamp_s: of the chunk's newest frame.
        log_probability: natural, of the call that is chosen with every chunk.
        chosen: the call that is chosen instead, or the same.
    """

    stamp_s: float
    log_probability: float
    chosen: str


@dataclass(frozen=True)
class XRay:
    """A decision and what each chunk in memory had to do with it.

    Attributes:
        call: chosen in flight.
        chosen: chosen with every chunk encoded anew; `log_probability` (natural) is of this one.
    """

    call: str
    chosen: str
    log_probability: float
    influences: tuple[Influence, ...]

    @property
    def cause(self) -> Influence | None:
        """The chunk without which the choice is least likely; None where no chunk moves it by CAUSE_NATS."""
        least = min(self.influences, key=lambda one: one.log_probability, default=None)
        return least if least and self.log_probability - least.log_probability > CAUSE_NATS else None


class MomentRecorder:
    """Keeps what a stream remembers at each of its decisions."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self._chunks: dict[float, FrameGroup] = {}

    def on_append(self, chunk: FrameGroup) -> None:
        """A chunk has entered the memory."""
        self._chunks[chunk.stamps_s[-1]] = chunk

    def on_answer(self, memory: Memory, goal: GenerateGoal, result: GenerateResult) -> None:
        """A decision was answered, from the memory as it is now."""
        self._chunks = {stamp_s: self._chunks[stamp_s] for stamp_s in memory.chunk_stamps_s}
        call = toolset.parse_call(result.tool_call)
        if result.status is GenerateStatus.OK and call and memory.first_s is not None:
            chunks = tuple(self._chunks.values())
            line = toolset.call_line(*call)
            self.moments.append(
                Moment(goal.instruction, tuple(goal.recent_calls), chunks, memory.first_s, line)
            )


class LeaveOneOut:
    """A memory of its own on a model, in which decisions are looked into."""

    def __init__(self, model: QwenModel, form: ServingForm, request: PrimeRequest) -> None:
        """
        Args:
            form: the one that was served.
            request: the prompt and tools that were primed.

        Raises:
            LeaveOneOutError: the model refuses the prompt.
        """
        # The chunks are given as they were in memory: nothing is sampled from them or forgotten once more.
        self._memory = Memory(model, replace(form, recompute_frames=0, sampled_tokens=0), VirtualClock())
        try:
            self._memory.begin(self._memory.prepared(request))
        except ValueError as error:
            raise LeaveOneOutError(f"the model refuses the agent's prompt: {error}") from error

    def examine(self, moment: Moment) -> XRay:
        """Ask once with every chunk, and once without each of them: n + 1 memories of n chunks are encoded."""
        whole, line = self._chosen(moment, moment.chunks)
        log_probability = self._score(moment, whole)
        influences = []
        for left_out in moment.chunks:
            rest = [chunk for chunk in moment.chunks if chunk is not left_out]
            _, chosen = self._chosen(moment, rest)
            influences.append(Influence(left_out.stamps_s[-1], self._score(moment, whole), chosen))
        return XRay(moment.call, line, log_probability, tuple(influences))

    def _chosen(self, moment: Moment, chunks: Sequence[FrameGroup]) -> tuple[Generation, str]:
        self._memory.recall(chunks, moment.first_s)
        done = self._memory.generate_call(
            moment.instruction,
            moment.recent_calls,
            max_new_tokens=self._memory.form.max_new_tokens,
            temperature=0.0,
            cancel=lambda: False,
            deadline_s=math.inf,
            on_text=None,
        )
        call = toolset.parse_call(done.text)
        return done, toolset.call_line(*call) if call else done.text

    def _score(self, moment: Moment, call: Generation) -> float:
        return self._memory.score_call(moment.instruction, moment.recent_calls, call.tokens)
