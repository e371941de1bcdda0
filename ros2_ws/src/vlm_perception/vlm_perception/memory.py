"""What one stream remembers: a primed prompt, then frames, in the engine's cache.

A prompt counts as primed, and a frame as remembered, only while the engine holds them: whatever fails on the way leaves
a memory that says it is empty, never one that answers from nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nav_common.clock import Clock
from nav_common.data import PrimeRequest
from vlm_perception import prompting
from vlm_perception.admission import FrameGroup
from vlm_perception.engine import Appended, Generation, QwenModel, VideoStreamingInference, json_grammar
from vlm_perception.engine.cache_manager import Snapshot
from vlm_perception.engine.decoding import Constraint
from vlm_perception.guard import RequestKind
from vlm_perception.serving_form import ServingForm

# Tag and marks around a picture, generously.
_CHUNK_EXTRA_TOKENS = 32


@dataclass(frozen=True)
class Prompt:
    """A system prompt with its tools as the model reads it. `grammar`: of one tool call; "" without tools.
    `hover_call`: the call that keeps the drone in place; "" without such a tool."""

    id: str
    text: str
    tokens: int
    grammar: str
    hover_call: str = ""


@dataclass(frozen=True)
class ChoiceAnswer:
    """The likeliest of the choices, with its probability among them. Times in seconds."""

    answer: str
    probability: float
    prompt_tokens: int
    ttft_s: float
    total_s: float


class AnswerError(RuntimeError):
    """A model answered, but nothing that answers what it was asked."""


RunGuarded = Callable[[RequestKind, Callable[[int, float], Generation]], Generation | None]
"""(kind, attempt) -> what came of it by way of the guard; None: it was too slow twice."""


class FrameMemory(Protocol):
    """What a Stream asks: of a model's cache (`Memory`), or of a server that gets the newest frames with each request.

    For the thread that steps the stream. Methods raise ValueError for what a request is to blame for, AnswerError and
    other RuntimeErrors for what the model is.
    """

    name: str
    """Of what answers, for people."""
    resets: int
    """How often it was emptied, its creation included."""

    @property
    def prompt(self) -> Prompt | None:
        """What is primed."""
        ...

    @property
    def newest_s(self) -> float | None:
        """Stamp of the newest frame, s."""
        ...

    @property
    def cache_version(self) -> Hashable:
        """Names what an ask would be answered from: equal only while that has not changed."""
        ...

    @property
    def cached_tokens(self) -> int: ...

    @property
    def chunk_stamps_s(self) -> list[float]:
        """The newest stamp of each chunk that an answer rests on, s, oldest first."""
        ...

    def usage(self) -> dict[str, Any]:
        """The fields of EngineStatus that say what is in the cache."""
        ...

    def prepared(self, request: PrimeRequest) -> Prompt:
        """The prompt of a request, checked before anything is touched."""
        ...

    def begin(self, prompt: Prompt | None) -> float:
        """Forget every frame and prime a prompt; what that cost, s."""
        ...

    def append(self, chunk: FrameGroup) -> Appended:
        """A chunk, behind those before or in place of the newest."""
        ...

    def look(self, instruction: str, run: RunGuarded) -> bool:
        """What must come before a decision, as a request of its own; False: it was too slow."""
        ...

    def generate_call(
        self,
        instruction: str,
        recent_calls: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        cancel: Callable[[], bool],
        deadline_s: float,
        on_text: Callable[[str], None] | None,
        tools: Sequence[prompting.Tool] = (),
        notes: Sequence[str] = (),
    ) -> Generation:
        """One call of one of the primed tools, or of `tools`, which are some of them. deadline_s: on the stream's
        clock. notes: lines that stand below the instruction."""
        ...

    def answer(
        self, question: str, *, max_new_tokens: int, cancel: Callable[[], bool], deadline_s: float
    ) -> Generation:
        """A question answered in words. deadline_s: on the stream's clock."""
        ...

    def choose(self, question: str, choices: Sequence[str]) -> ChoiceAnswer:
        """A question answered by the likeliest of some choices."""
        ...


class Memory:
    """One stream of a model in its cache, as a FrameMemory. Not thread-safe: the thread that owns the model calls it.

    With `form.recompute_frames` there is no memory beyond the last frames: a chunk is only kept as it came, and before
    each ask those that count are encoded anew behind the prompt.

    Methods raise ValueError or RuntimeError for what fails alone (a prompt too long, out of memory), and
    engine.DeviceLostError when the accelerator is lost for this process.
    """

    def __init__(self, model: QwenModel, form: ServingForm, clock: Clock) -> None:
        self.name = "engine"
        self.form = form
        self.resets = 1
        self.evictions = 0
        """Chunks evicted since its creation."""
        self._engine = VideoStreamingInference(
            model,
            max_cache_tokens=form.max_cache_tokens,
            sink_size=form.sink_size,
            sampled_tokens=form.sampled_tokens,
            close_gap=form.close_gap,
            clock=clock.now,
        )
        self._recent: deque[FrameGroup] = deque(maxlen=form.recompute_frames)
        """With `recompute_frames`: the chunks to encode before an ask."""
        self._primed: Snapshot | None = None
        """The stream with its prompt alone."""
        self._prompt: Prompt | None = None
        self._first_s: float | None = None
        self._newest_s: float | None = None

    @property
    def prompt(self) -> Prompt | None:
        """What the stream begins with; None: nothing is primed."""
        prompt = self._prompt
        return prompt if prompt and self._engine.primed == prompt.text else None

    @property
    def newest_s(self) -> float | None:
        """Stamp of the newest frame in the cache, s."""
        return self._newest_s if self.prompt else None

    @property
    def cache_version(self) -> tuple[int, float | None]:
        written = self.resets if self.form.recompute_frames else self._engine.cache.writes[-1]
        return written, self._newest_s

    @property
    def chunk_ids(self) -> frozenset[int]:
        """Numbers of the chunks in the cache, as `Appended.chunk` gave them."""
        return frozenset(chunk.id for chunk in self._engine.cache.tracker.chunks)

    @property
    def first_s(self) -> float | None:
        """Stamp that the tags count from, s: the first frame's, whether or not it is still in memory."""
        return self._first_s

    @property
    def chunk_stamps_s(self) -> list[float]:
        """The newest stamp of each chunk that an answer rests on, s, oldest first."""
        return [chunk.stamp for chunk in self._engine.cache.tracker.chunks if chunk.stamp is not None]

    @property
    def cached_tokens(self) -> int:
        return self._engine.cache.length

    def usage(self) -> dict[str, Any]:
        """The fields of EngineStatus that say what is in the cache."""
        info = self._engine.get_cache_info()
        return {
            "memory_resets": self.resets,
            "cached_tokens": info["cache_seq_length"],
            "sink_tokens": info["effective_sink_size"],
            "window_tokens": info["window_tokens"],
            "budget_tokens": self.form.max_cache_tokens,
            "chunks": info["chunks_cached"],
            "evictions": self.evictions,
        }

    # -- prompt

    def prepared(self, request: PrimeRequest) -> Prompt:
        """The prompt of a request, checked in every respect that can be checked before the memory is touched.

        Raises:
            ValueError: it is empty, not what the model was trained for, too long, or its tools make no grammar.
        """
        if not request.system_prompt.strip():
            raise ValueError("the system prompt is empty: send the agent's prompt")
        tools = prompting.parse_tools(request.tools)
        difference = self.form.difference(request.system_prompt, tools)
        if difference:
            raise ValueError(
                "the model was trained for another prompt or other tools; send its own (in its serving_form.json) or "
                f"train it anew. Lines with - are the model's:\n{difference}"
            )
        text = prompting.prime_text(request.system_prompt, tools)
        grammar = json_grammar(prompting.call_schema(tools)) if tools else ""
        if grammar:
            # Compiled now: a wrong schema is refused here, and no decision in flight waits for it.
            Constraint(self._engine.qwen, grammar)
        return Prompt(
            prompting.prompt_id(text), text, self._checked_tokens(text), grammar, prompting.hover_call(tools)
        )

    def _checked_tokens(self, text: str) -> int:
        form, tokens = self.form, self._engine.check_prompt(text)
        chunk = form.width * form.height // 28**2 * max(1, form.frames_per_chunk // 2) + _CHUNK_EXTRA_TOKENS
        if tokens + chunk > form.max_cache_tokens:
            raise ValueError(
                f"the prompt has {tokens} tokens and a chunk up to {chunk}, but max_cache_tokens is "
                f"{form.max_cache_tokens}: raise it, shorten the prompt or lower the resolution"
            )
        return tokens

    def begin(self, prompt: Prompt | None) -> float:
        """Empty the memory and put a prompt at its head; what that cost, s. If it fails the memory is empty."""
        self._prompt = self._first_s = self._newest_s = self._primed = None
        self._recent.clear()
        self.resets += 1
        self._engine.reset()
        if prompt is None:
            return 0.0
        seconds = float(self._engine.prime(prompt.text)["seconds"])
        self._prompt = prompt
        self._primed = self._engine.cache.mark(self._engine.model)
        return seconds

    # -- frames

    def append(self, chunk: FrameGroup) -> Appended:
        """A chunk into the cache, whose oldest chunks leave if the budget is full. If it fails nothing has changed, or
        the engine has emptied itself (then no prompt is primed any more)."""
        assert self.prompt is not None, "no frame enters a memory without a prompt"
        if self.form.recompute_frames:
            if chunk.replaces_newest and self._recent:
                self._recent.pop()
            self._recent.append(chunk)
            self._newest_s = chunk.stamps_s[-1]
            return Appended()
        return self._encode(chunk, chunk.replaces_newest and self._newest_s is not None)

    def _encode_recent(self) -> None:
        """The stream becomes the prompt and the chunks that count; nothing to do for a streaming memory."""
        if self.form.recompute_frames and self._primed:
            self.recall(list(self._recent))

    def recall(self, chunks: Sequence[FrameGroup], first_s: float | None = None) -> None:
        """The stream becomes the prompt and these chunks, encoded anew; it must not have evicted any before.

        first_s: the stamp that the tags count from, s; None: the first chunk's.
        """
        assert self._primed is not None, "no frame enters a memory without a prompt"
        self._engine.cache.restore(self._engine.model, self._primed)
        self._first_s, self._newest_s = first_s, None
        for chunk in chunks:
            self._encode(chunk, replace_newest=False)

    def _encode(self, chunk: FrameGroup, replace_newest: bool) -> Appended:
        stamps = chunk.stamps_s
        first_s = stamps[0] if self._first_s is None else self._first_s
        tag = self.form.tag.format(elapsed_s=stamps[0] - first_s)
        pixels = [decoded.pixels for decoded in chunk.frames]
        if self.form.as_video:
            done = self._engine.append_video_chunk(
                pixels, text_content=tag, stamps=stamps, replace_newest=replace_newest
            )
        else:
            done = self._engine.append_frame(
                pixels[0], text_content=tag, stamp=stamps[0], replace_newest=replace_newest
            )
        self._first_s, self._newest_s = first_s, stamps[-1]
        self.evictions += done.evicted_chunks
        return done

    def append_recalled(self, pictures: Sequence[np.ndarray]) -> Appended:
        """Frames of long ago once more, as one chunk, each behind its label. The newest stamp stays what it was."""
        assert self.prompt is not None, "no frame enters a memory without a prompt"
        done = self._engine.append_recalled(pictures, prompting.RECALLED_LABEL, as_video=self.form.as_video)
        self.evictions += done.evicted_chunks
        return done

    def repeat_newest(self) -> Appended:
        """The newest chunk once more, behind what was recalled."""
        done = self._engine.repeat_newest()
        self.evictions += done.evicted_chunks
        return done

    # -- asks, which leave no trace

    def look(self, instruction: str, run: RunGuarded) -> bool:
        """Nothing: what decides has seen the frames."""
        return True

    def generate_call(
        self,
        instruction: str,
        recent_calls: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        cancel: Callable[[], bool],
        deadline_s: float,
        on_text: Callable[[str], None] | None,
        tools: Sequence[prompting.Tool] = (),
        notes: Sequence[str] = (),
    ) -> Generation:
        """One call of one of the primed tools, or of `tools`, which are some of them. deadline_s: on the stream's
        clock. notes: lines that stand below the instruction."""
        assert self.prompt is not None
        self._encode_recent()
        return self._engine.generate(
            self._decision_text(instruction, recent_calls, notes),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            grammar=json_grammar(prompting.call_schema(tools)) if tools else self.prompt.grammar,
            cancel=cancel,
            deadline=deadline_s,
            on_text=on_text,
        )

    def score_call(self, instruction: str, recent_calls: Sequence[str], call: Sequence[int]) -> float:
        """The natural logarithm of a call's probability among all calls of the primed tools. call: its tokens, as
        `generate_call` wrote them."""
        assert self.prompt is not None
        self._encode_recent()
        return self._engine.score(self._decision_text(instruction, recent_calls), call, self.prompt.grammar)

    def _decision_text(self, instruction: str, recent_calls: Sequence[str], notes: Sequence[str] = ()) -> str:
        shown = list(recent_calls)[-self.form.recent_calls :] if self.form.recent_calls else []
        return prompting.decision_text(instruction, [*notes, *shown])

    def answer(
        self, question: str, *, max_new_tokens: int, cancel: Callable[[], bool], deadline_s: float
    ) -> Generation:
        """A question answered in words. deadline_s: on the stream's clock."""
        self._encode_recent()
        return self._engine.generate(
            prompting.question_text(question),
            max_new_tokens=max_new_tokens,
            cancel=cancel,
            deadline=deadline_s,
        )

    def answer_json(
        self, question: str, schema: dict[str, Any], *, max_new_tokens: int, cancel: Callable[[], bool]
    ) -> Generation:
        """A question answered by JSON of a schema."""
        self._encode_recent()
        return self._engine.generate(
            prompting.question_text(question),
            max_new_tokens=max_new_tokens,
            grammar=json_grammar(schema),
            cancel=cancel,
        )

    def choose(self, question: str, choices: Sequence[str]) -> ChoiceAnswer:
        """A question answered by the likeliest of some choices."""
        self._encode_recent()
        cleaned = [prompting.clean(choice) for choice in choices]
        answer, metrics = self._engine.ask_choice(prompting.clean(question).strip(), cleaned)
        return ChoiceAnswer(
            choices[cleaned.index(answer)],
            metrics["probabilities"][answer],
            metrics["prompt_tokens"],
            metrics["ttft"],
            metrics["total"],
        )
