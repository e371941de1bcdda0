"""Lossless replay: a recording's frames into the streaming memory, in order and none dropped, and what the pilot says.

The memory, its frame rule, budget and eviction are those of the flight; time is the recording's. A question leaves
nothing behind, so the memory goes through the same states however often it is asked. Where the recording holds
decisions, each is asked again on its own frame with its own words: that is what `agreement` counts.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nav_agent import toolset
from nav_agent.dry_run import DryRun
from nav_agent.prompts import load_prompt
from nav_common import result_lines, topics
from nav_common.clock import VirtualClock
from nav_common.data import (
    AskRequest,
    CompressedImage,
    Decision,
    GenerateGoal,
    GenerateStatus,
    Odometry,
    PrimeRequest,
)
from nav_eval.bags import Bag, BagError, Logged
from vlm_perception.engine import QwenModel
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream


class ReplayError(ValueError):
    """A replay that cannot be: nothing to ask, a model that refuses, no usable frame."""


@dataclass(frozen=True)
class RecordedDecision:
    """A decision of the flight: the frame it rested on, its call, and the result that the next one was given."""

    step: int
    frame_stamp_s: float
    instruction: str
    call: str
    result: str = ""


@dataclass(frozen=True)
class Row:
    """One answer of the replay. `frame` counts the recording's pictures from 0; `memory_stamp_s` is the newest frame
    that the answer rests on; `recorded` is the flight's own call on this frame. Stamps are the recording's."""

    frame: int
    stamp_s: float
    memory_stamp_s: float
    asked: str
    instruction: str
    recent_calls: tuple[str, ...]
    answer: str
    message: str
    recorded: str
    agrees: bool | None
    tokens_in: int
    tokens_sampled: int
    cached_tokens: int
    chunks: int
    evictions: int
    latency_ms: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As in decisions.jsonl: everything but `latency_ms` is the same in every replay."""
        return {**vars(self), "recent_calls": list(self.recent_calls)}


@dataclass(frozen=True)
class Curve:
    """The memory after a frame: seconds since the first, cached tokens, evictions so far, cost of the append in ms."""

    time_s: float
    cached_tokens: int
    evictions: int
    append_ms: float


@dataclass
class Replay:
    """What came of it. `error`: why it ended before the recording did."""

    bag: Path
    budget_tokens: int
    rows: list[Row] = field(default_factory=list)
    curve: list[Curve] = field(default_factory=list)
    pictures: dict[int, bytes] = field(default_factory=dict)
    """Of the frames that something was asked about, as recorded."""
    frames: int = 0
    appended: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_stamp_s: float = 0.0
    """Of the first frame in memory."""
    recorded_s: float = 0.0
    wall_s: float = 0.0
    rss_mib: dict[int, float] = field(default_factory=dict)
    """Resident memory by frame, each 100."""
    question: str = ""
    error: str = ""

    @property
    def agreement(self) -> float | None:
        """Share of the recorded decisions that were taken again; None where there were none."""
        verdicts = [row.agrees for row in self.rows if row.agrees is not None]
        return sum(verdicts) / len(verdicts) if verdicts else None

    def summary(self) -> dict[str, Any]:
        """As in replay.json."""
        return {
            "frames": self.frames,
            "frames_appended": self.appended,
            "frames_skipped": sum(self.skipped.values()),
            "decisions": len(self.rows),
            "agreement": None if self.agreement is None else round(self.agreement, 4),
            "compared": sum(row.agrees is not None for row in self.rows),
            "realtime_factor": round(self.recorded_s / self.wall_s, 2) if self.wall_s else 0.0,
            "evictions": self.curve[-1].evictions if self.curve else 0,
            "cached_tokens": self.curve[-1].cached_tokens if self.curve else 0,
            "budget_tokens": self.budget_tokens,
            "recorded_s": round(self.recorded_s, 2),
            "wall_s": round(self.wall_s, 2),
            "rss_mib": {str(frame): round(rss, 1) for frame, rss in self.rss_mib.items()},
            "error": self.error,
        }


def replay(
    bag: Path,
    model: QwenModel,
    form: ServingForm,
    *,
    every: int = 10,
    question: str = "",
    instruction: str = "",
    vehicle_namespace: str | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Replay:
    """Replay a recording. See the module's text.

    Args:
        every: ask at each so many frames; 0: only where the flight itself decided.
        question: ask this in words instead of asking for decisions.
        instruction: what the pilot is asked to do; default is the flight's own.
        on_row: gets each answer as soon as it is there.

    Raises:
        BagError: the recording cannot be read at all. What breaks in the middle is in the result's `error`.
        ReplayError: the pilot has no instruction, or the model refuses the agent's prompt.
    """
    if every < 0:
        raise ReplayError(
            f"EVERY is {every}: give a number of frames, or 0 for the flight's own decisions only"
        )
    recorded = [] if question else _recorded_decisions(bag)
    if not (question or instruction or recorded):
        raise ReplayError(
            f'{bag} holds no decision with an instruction: give INSTRUCTION="fly to the red beacon" '
            'or QUESTION="what do you see?"'
        )
    with Bag(bag) as recording:
        namespace = vehicle_namespace or recording.vehicle_namespace()
        image = topics.FRONT_IMAGE.resolve(namespace)
        odometry = topics.ODOM.resolve(namespace)
        recording.require(image, topics.FRONT_IMAGE.type)
        if odometry in recording.types:
            recording.require(odometry, topics.ODOM.type)
        run = _Run(bag, model, form, every, question, instruction, recorded, on_row)
        started = time.perf_counter()
        try:
            for topic, row in recording.rows([image, odometry]):
                if topic == image:
                    run.on_image(row)
                else:
                    run.on_odometry(row.data)
        except BagError as error:
            run.result.error = str(error)
    run.result.wall_s = time.perf_counter() - started
    if not run.result.frames:
        run.result.error = run.result.error or f"{bag} holds no picture on {image}"
    elif not run.result.appended:
        why = ", ".join(f"{text} ({count} times)" for text, count in run.result.skipped.most_common(3))
        run.result.error = (
            run.result.error or f"{bag}: none of {run.result.frames} frames could be used: {why}"
        )
    return run.result


class _Run:
    """One replay under way."""

    def __init__(
        self,
        bag: Path,
        model: QwenModel,
        form: ServingForm,
        every: int,
        question: str,
        instruction: str,
        recorded: list[RecordedDecision],
        on_row: Callable[[Row], None],
    ) -> None:
        self.result = Replay(bag, form.max_cache_tokens, question=question)
        self._every = every
        self._question = question
        self._instruction = instruction
        self._recorded = recorded
        self._on_row = on_row
        self._clock = VirtualClock()
        self._stream = Stream(model, form, self._clock, live=False, on_warning=self._on_warning)
        self._at: dict[float, list[RecordedDecision]] = {}
        for decision in recorded:
            self._at.setdefault(decision.frame_stamp_s, []).append(decision)
        self._own_calls: list[str] = []
        self._prompt_id = ""
        ticket = self._stream.submit_prime(
            PrimeRequest(form.system_prompt or load_prompt(), toolset.tools_json())
        )
        self._stream.run_until_idle()
        if not ticket.result.success:
            raise ReplayError(f"the model refuses the agent's prompt: {ticket.result.message}")
        self._prompt_id = ticket.result.prompt_id

    def on_odometry(self, odometry: Odometry) -> None:
        self._stream.submit_odometry(odometry)

    def on_image(self, row: Logged[CompressedImage]) -> None:
        index, result = self.result.frames, self.result
        result.frames += 1
        stamp, jpeg = row.data.stamp_s, row.data.data
        self._clock.sleep(max(0.0, row.time_s - self._clock.now()))
        decided = self._at.pop(stamp, [])
        # The flight's own decisions made their frame enter the memory at once; the same request does so again.
        requests = [(decision, self._generate(self._words(decision), stamp)) for decision in decided]
        self._stream.submit_frame(row.data)
        self._stream.run_until_idle()
        status = self._stream.status()
        if status.frames_appended > result.appended:
            result.appended = status.frames_appended
            result.first_stamp_s = result.first_stamp_s or stamp
            result.curve.append(
                Curve(stamp - result.first_stamp_s, status.cached_tokens, status.evictions, status.append_ms)
            )
        if result.appended:
            result.recorded_s = max(result.recorded_s, stamp - result.first_stamp_s)
        if result.frames % 100 == 0:
            result.rss_mib[result.frames] = status.rss_mib
        for decision, ticket in requests:
            self._answered(index, stamp, "decision of the flight", self._words(decision), ticket, decision)
        if requests:
            result.pictures[index] = jpeg
        if self._every and result.frames % self._every == 0 and not decided and result.appended:
            result.pictures[index] = jpeg
            if self._question:
                self._ask(index, stamp)
            else:
                words = self._words(None, stamp)
                ticket = self._generate(words, 0.0)
                self._stream.run_until_idle()
                self._answered(index, stamp, f"every {self._every} frames", words, ticket, None)

    def _words(
        self, decision: RecordedDecision | None, stamp: float = math.inf
    ) -> tuple[str, tuple[str, ...]]:
        """Instruction and recent calls, as the agent had them then; without a recorded agent, as in a dry run."""
        if not self._recorded:
            return self._instruction, toolset.recent_calls(self._instruction, self._own_calls)
        if decision is not None:
            before = self._recorded[: self._recorded.index(decision)]
        else:
            before = [d for d in self._recorded if d.frame_stamp_s <= stamp]
            decision = before[-1] if before else self._recorded[0]
        instruction = self._instruction or decision.instruction
        calls = [
            toolset.recall_line(d.call, d.result) for d in before if d.instruction == decision.instruction
        ]
        return instruction, toolset.recent_calls(instruction, calls)

    def _generate(self, words: tuple[str, tuple[str, ...]], earliest_frame: float) -> Any:
        instruction, recent_calls = words
        goal = GenerateGoal(
            self._prompt_id, instruction, recent_calls, earliest_frame_s=earliest_frame, deadline_s=1e9
        )
        return self._stream.submit_generate(goal)

    def _answered(
        self,
        index: int,
        stamp: float,
        asked: str,
        words: tuple[str, tuple[str, ...]],
        ticket: Any,
        decision: RecordedDecision | None,
    ) -> None:
        if not ticket.done:  # its frame could not enter the memory
            ticket.cancel()
            self._stream.run_until_idle()
        answer = ticket.result
        call = toolset.parse_call(answer.tool_call)
        line = toolset.call_line(*call) if call else answer.text
        if call and not self._recorded:
            self._own_calls.append(toolset.recall_line(line, _dry_result(*call)))
        self._add(
            Row(
                index,
                stamp,
                answer.frame_stamp_s,
                asked,
                words[0],
                words[1],
                line,
                answer.message,
                decision.call if decision else "",
                decision.call == line if decision else None,
                answer.tokens_in,
                answer.tokens_sampled,
                answer.cached_tokens,
                *self._cache(),
                {"ttft": round(answer.ttft_ms, 3), "generate": round(answer.total_ms, 3)},
            )
        )

    def _ask(self, index: int, stamp: float) -> None:
        ticket = self._stream.submit_ask(AskRequest(self._question))
        self._stream.run_until_idle()
        answer = ticket.result
        latency = {"ttft": round(answer.ttft_ms, 3), "generate": round(answer.total_ms, 3)}
        self._add(
            Row(
                index,
                stamp,
                answer.frame_stamp_s,
                f"every {self._every} frames",
                self._question,
                (),
                answer.answer,
                answer.message,
                "",
                None,
                answer.tokens_in,
                answer.tokens_sampled,
                answer.cached_tokens,
                *self._cache(),
                latency,
            )
        )

    def _cache(self) -> tuple[int, int]:
        status = self._stream.status()
        return status.chunks, status.evictions

    def _add(self, row: Row) -> None:
        self.result.rows.append(row)
        self._on_row(row)

    def _on_warning(self, text: str) -> None:
        self.result.skipped[text] += 1


def _dry_result(name: str, arguments: dict[str, Any]) -> str:
    """The observation of a dry run: the call did what it says."""
    if name == "finish":
        return result_lines.finished(str(arguments.get("reason", "")))
    try:
        allowed, notes = toolset.clamp(name, arguments)
    except toolset.ToolArgumentError as error:
        return f"error: {error}"
    dry = DryRun(VirtualClock(), lambda: None, decision_interval_s=0.0)
    return result_lines.result_line(dry.perform(name, allowed).line, *notes)


def _recorded_decisions(bag: Path) -> list[RecordedDecision]:
    """The flight's decisions that were carried out, each with the result that the next one was given."""
    found: list[RecordedDecision] = []
    for decision in _decisions(bag):
        if found:
            found[-1] = replace(found[-1], result=decision.previous_result)
        if decision.status is not GenerateStatus.OK or not decision.tool:
            continue
        try:
            arguments = json.loads(decision.arguments or "{}")
        except ValueError:
            continue
        call = toolset.call_line(decision.tool, arguments)
        found.append(RecordedDecision(decision.step, decision.frame_stamp_s, decision.instruction, call))
    return found


def _decisions(bag: Path) -> Iterator[Decision]:
    with Bag(bag) as recording:
        name = topics.DECISION.resolve()
        if name not in recording.types:
            return
        recording.require(name, topics.DECISION.type)
        for _, row in recording.rows([name]):
            yield row.data
