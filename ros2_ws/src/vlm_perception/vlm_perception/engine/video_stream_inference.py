"""The whole engine: frames in, a memory that never outgrows its budget, questions answered without changing it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .budget import TAIL_TOKENS, check_budget, default_budget
from .cache_manager import KVCacheManager
from .decode_graphs import DecodeGraphs
from .decoding import Constraint, Finish, Generation, choose
from .device import Stopwatch, on_device, release_unused_memory
from .kv_cache_eviction import Chunk, EvictionConfig
from .preprocess import Picture, as_frame
from .qwen import QwenModel
from .stream_qwen_model import Image, Item, StreamQwenModel, Text, Tokens, Video

USER_TURN = "<|im_start|>user\n"


@dataclass(frozen=True)
class Appended:
    """What one append did. A GPU may still be at work on it: to ask for the times is to wait for it."""

    chunk: int = 0
    tokens: int = 0
    evicted_chunks: int = 0
    evicted_tokens: int = 0
    watch: Stopwatch | None = None
    """Of preparing and encoding, then of the prefill; None: nothing was computed."""

    @property
    def is_over(self) -> bool:
        return self.watch is None or self.watch.is_over

    @property
    def vision_s(self) -> float:
        return self.watch.laps_s()[0] if self.watch else 0.0

    @property
    def prefill_s(self) -> float:
        return self.watch.laps_s()[1] if self.watch else 0.0


class VideoStreamingInference:
    """One stream over a shared model. Not thread-safe: one thread owns it.

    model: a loaded `QwenModel` or `StreamQwenModel`, a folder to load, or transformers' model with its processor (whose
    weights are taken over: it cannot be used afterwards). device: for a folder or transformers' model; default the GPU
    if there is one. eviction_config: instead of the budgets that follow it.
    max_cache_tokens, sink_size, window_size, sampled_tokens, close_gap: see `EvictionConfig`; a primed prompt is the
    first chunk.
    max_cache_tokens None: 100,000 where they fit the free memory, else what fits; `budget_reason` says which.
    time_jumps: positions jump by the time between chunks, tokens_per_second for each second. Off: text tags are the
    other way to say it (`experiments time` compares them).
    tail_tokens: room reserved for the longest question and answer.
    clock: what `deadline` is measured on.
    """

    def __init__(
        self,
        model: QwenModel | StreamQwenModel | str | Path | Any,
        processor: Any = None,
        device: str | torch.device | None = None,
        eviction_config: EvictionConfig | None = None,
        *,
        max_cache_tokens: int | None = None,
        sink_size: int = 0,
        window_size: int | None = None,
        sampled_tokens: int = 0,
        close_gap: bool = True,
        time_jumps: bool = False,
        tail_tokens: int = TAIL_TOKENS,
        system_prompt: str = "You are a helpful assistant.",
        clock: Callable[[], float] = time.monotonic,
    ):
        self.model = _stream_model(model, processor, device)
        self.qwen = self.model.qwen
        self.budget_reason = "as given"
        if eviction_config is None:
            if max_cache_tokens is None:
                budget = default_budget(self.qwen, tail_tokens)
                max_cache_tokens, self.budget_reason = budget.tokens, budget.reason
            config = EvictionConfig(max_cache_tokens, sink_size, window_size, sampled_tokens, close_gap)
        elif (max_cache_tokens, sink_size, window_size, sampled_tokens) == (None, 0, None, 0) and close_gap:
            config = eviction_config
        else:
            raise ValueError(
                "eviction_config and single budgets were given: put all of them into eviction_config"
            )
        check_budget(self.qwen, config.max_cache_tokens, tail_tokens)
        self.cache = KVCacheManager(self.qwen.decoder, config, tail_tokens, self.qwen.dtype)
        self.graphs = DecodeGraphs(self.cache) if self.qwen.device.type == "cuda" else None
        self.clock, self.time_jumps = clock, time_jumps
        self._newest: Stopwatch | None = None
        """Of the newest append: a GPU has at most one chunk to do, so that a question waits for no more."""
        self._opening = f"<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n"
        self._forget()

    def _forget(self) -> None:
        self.primed: str | None = None
        """The prompt at the head of the stream; None: the stream holds none."""
        self.chunks_encoded = 0
        self.chunks_replaced = 0
        self._newest_frames: Tokens | None = None
        """The newest chunk of frames as it went in, behind a prompt."""

    # -- the memory --------------------------------------------------------------------------------------------
    @on_device
    def prime(self, text: str) -> dict[str, Any]:
        """Prefill a prompt (special tokens included) into the sink, before the first frame.

        The whole window is conditioned on it, so another prompt is another stream: this one starts anew and the
        result says what that cost. Priming with the same prompt again changes nothing.

        A prompt that cannot be held is refused by a ValueError before anything changes. If the prefill itself fails
        (memory), the stream is empty and `primed` is None.
        """
        tokens_needed = self.check_prompt(text)
        if text == self.primed:
            return {"tokens": 0, "seconds": 0.0, "dropped_tokens": 0, "dropped_chunks": 0}
        if self.graphs:
            self.graphs.prepare()
        watch = Stopwatch(self.qwen.device)
        tokens = self.model.prepare([Text(text)], start=0)
        dropped = {"dropped_tokens": self.cache.length, "dropped_chunks": len(self.cache.tracker.chunks)}
        self.reset()
        self._append(tokens, None)
        self.primed, self.chunks_encoded = text, 0
        watch.lap()
        return {"tokens": tokens_needed, "seconds": watch.laps_s()[0], **dropped}

    def check_prompt(self, text: str) -> int:
        """Tokens of a prompt that `prime` would accept; ValueError says why it would not. Nothing changes."""
        if not text:
            raise ValueError("an empty prompt cannot be primed")
        config, tokens = self.cache.config, len(self.qwen.tokenize(text))
        if tokens >= config.max_cache_tokens - config.sampled_tokens:
            raise ValueError(
                f"the prompt has {tokens} tokens, max_cache_tokens is {config.max_cache_tokens} (sampled_tokens "
                f"{config.sampled_tokens}): shorten the prompt or raise the budget"
            )
        return tokens

    def append_frame(
        self,
        image: Picture,
        as_video: bool = False,
        fps: float = 2.0,
        text_content: str | None = None,
        *,
        stamp: float | None = None,
        replace_newest: bool = False,
    ) -> Appended:
        """Append one frame (an RGB uint8 array, or a PIL image) as a chunk, with an optional short text before it.

        as_video: as a video of one frame instead of an image. stamp: the frame's time in seconds; default is
        1 / fps after the last one. replace_newest: the newest chunk was provisional and this one takes its place.
        """
        stamp = self._next_stamp(fps) if stamp is None else stamp
        frame = as_frame(image)
        item: Item = Video([frame], [stamp]) if as_video else Image(frame)
        return self._append_item(item, text_content, [stamp], replace_newest)

    def append_video_chunk(
        self,
        frames: Sequence[Picture],
        fps: float = 2.0,
        text_content: str | None = None,
        *,
        stamps: Sequence[float] | None = None,
        replace_newest: bool = False,
    ) -> Appended:
        """Append frames of one size as one video chunk; every two of them become one step of the temporal axis.

        stamps: the frames' times in seconds, increasing; default is 1 / fps apart.
        """
        if not frames:
            raise ValueError("a chunk without frames: give at least one")
        if stamps is None:
            first = self._next_stamp(fps)
            stamps = [first + i / fps for i in range(len(frames))]
        if any(later <= earlier for earlier, later in itertools.pairwise(stamps)):
            raise ValueError(f"time stamps within a chunk must increase; got {list(stamps)}")
        return self._append_item(
            Video([as_frame(frame) for frame in frames], stamps), text_content, stamps, replace_newest
        )

    def _next_stamp(self, fps: float) -> float:
        if not fps > 0:
            raise ValueError(f"fps is {fps}; it must be positive")
        last = self.model.stream_state.last_stamp
        return 0.0 if last is None else last + 1.0 / fps

    @on_device
    def _append_item(
        self, item: Item, text: str | None, stamps: Sequence[float], replace_newest: bool
    ) -> Appended:
        last = self.model.stream_state.last_stamp
        if not all(math.isfinite(stamp) for stamp in stamps):
            raise ValueError(f"a time stamp is not a finite number of seconds: {list(stamps)}")
        if last is not None and stamps[0] < last:
            raise ValueError(
                f"a frame of time {stamps[0]:.3f} s comes after one of {last:.3f} s: append in order"
            )
        cache, model = self.cache, self.model
        newest = cache.tracker.chunks[-1] if replace_newest and cache.tracker.chunks else None
        if replace_newest and (newest is None or newest.stamp is None):
            raise ValueError("replace_newest: the newest chunk is not a frame")
        watch = Stopwatch(self.qwen.device)
        opening = [] if self.primed or cache.length else [Text(self._opening)]
        items = [*opening, *([Text(text)] if text else []), item]
        if newest is None:
            tokens = self._encoded(items, self._start_position(stamps[0]))
            watch.lap()
            chunk, gone = self._append(tokens, stamps[-1])
            self.chunks_encoded += 1
        else:
            if newest.id == 0 and not self.primed:  # the first chunk carries the opening
                items.insert(0, Text(self._opening))
            tokens = self._encoded(items, newest.positions[0])
            watch.lap()
            with cache.without_newest(model):
                chunk, gone = self._append(tokens, stamps[-1])
            self.chunks_replaced += 1
        watch.lap()
        self._newest_frames = tokens if self.primed else None
        return self._appended(chunk, gone, watch)

    @on_device
    def append_recalled(self, images: Sequence[Picture], text: str, *, as_video: bool = False) -> Appended:
        """Append frames of long ago once more, as one chunk, each behind a text that says what it is.

        The chunk has no time of its own: the stream's newest time stays, and `replace_newest` never replaces it. The
        frames are encoded as at their first time, and leave the window together.
        """
        state = self.model.stream_state
        if state.last_stamp is None:
            raise ValueError("a frame cannot be recalled into a stream without frames: append one first")
        items: list[Item] = []
        for image in images:
            frame = as_frame(image)
            items += [Text(text), Video([frame], [state.last_stamp]) if as_video else Image(frame)]
        watch = Stopwatch(self.qwen.device)
        tokens = self._encoded(items, state.next_position)
        watch.lap()
        chunk, gone = self._append(tokens, None)
        self.chunks_encoded += 1
        watch.lap()
        return self._appended(chunk, gone, watch)

    @on_device
    def repeat_newest(self) -> Appended:
        """Append the newest chunk of frames once more, behind what came since; its pictures are not encoded again."""
        state, newest = self.model.stream_state, self._newest_frames
        if newest is None or state.last_stamp is None:
            raise ValueError("there is no newest frame to repeat: append one first")
        watch = Stopwatch(self.qwen.device)
        moved = state.next_position - newest.span[0]
        tokens = replace(
            newest,
            positions=newest.positions + moved,
            span=(newest.span[0] + moved, newest.span[1] + moved),
        )
        watch.lap()
        chunk, gone = self._append(tokens, state.last_stamp)
        self.chunks_encoded += 1
        watch.lap()
        return self._appended(chunk, gone, watch)

    def _encoded(self, items: Sequence[Item], start: int) -> Tokens:
        """The host's part is done while a GPU is at the chunk before; the rest begins when that is over."""
        laid_out = self.model.lay_out(items, start)
        if self._newest:
            self._newest.wait()
        return self.model.encode(laid_out)

    def _appended(self, chunk: Chunk, gone: Sequence[Chunk], watch: Stopwatch) -> Appended:
        """watch: with a lap after vision and one after prefill."""
        self._newest = watch
        return Appended(chunk.id, chunk.tokens, len(gone), sum(c.tokens for c in gone), watch)

    def _start_position(self, stamp: float) -> int:
        state = self.model.stream_state
        if not self.time_jumps or state.last_stamp is None:
            return state.next_position
        return state.next_position + int((stamp - state.last_stamp) * self.qwen.tokens_per_second + 1e-6)

    def _append(self, tokens: Tokens, stamp: float | None) -> tuple[Chunk, list[Chunk]]:
        """Prefill, commit, evict. Until the commit nothing of the stream has changed."""
        cache = self.cache
        cache.check_fits(len(tokens))
        if self.graphs and self.graphs.chunk_size(len(tokens)):
            self.graphs.prefill(tokens)
        else:
            self._forward(tokens)
        chunk = Chunk(cache.next_chunk_id, tokens.runs, tokens.span, stamp)
        gone = self._commit(chunk)
        self.model.advance(tokens.span[1], stamp)
        return chunk, gone

    def _commit(self, chunk: Chunk) -> list[Chunk]:
        """The tokens at the tail become a chunk; returns those evicted for it.

        An error while evicting empties the stream, since half-written keys must never be attended to.
        """
        self.cache.commit(chunk)
        try:
            gone = self.cache.evict_if_needed()
        except BaseException:
            self.reset()
            raise
        if gone and self.qwen.device.type == "cuda":
            release_unused_memory()
        return gone

    def _forward(self, tokens: Tokens, tree: Tensor | None = None) -> Tensor:
        """Run tokens at the tail of the cache; hidden states (n, hidden). The caller moves the length."""
        decoder = self.qwen.decoder
        phases = decoder.rope.phases(tokens.positions)
        return decoder.forward(tokens.embeddings, phases, self.cache.step(len(tokens), tree))

    # -- questions ---------------------------------------------------------------------------------------------
    def ask(
        self,
        question: str,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 0.7,
        update_state: bool = False,
        **options: Any,
    ) -> tuple[str, dict[str, Any]]:
        """Ask about what the stream has shown; returns (answer, metrics), metrics["ttft"] in seconds.

        update_state keeps the turn as an ordinary, evictable text chunk; otherwise the cache is left bit-identical.
        options: see `generate`.
        """
        done = self.generate(
            self._question(question),
            max_new_tokens=max_new_tokens,
            temperature=temperature if do_sample else 0.0,
            update_state=update_state,
            **options,
        )
        return done.text, self._metrics(done)

    def _question(self, question: str) -> str:
        if not question.strip():
            raise ValueError("an empty question")
        opening = "" if self._in_user_turn else USER_TURN
        if not self.cache.length:
            opening = self._opening
        return f"{opening}{question}<|im_end|>\n<|im_start|>assistant\n"

    @property
    def _in_user_turn(self) -> bool:
        """Whether frames stand in an open user turn: by default, and behind a primed prompt that opens one."""
        return self.primed is None or self.primed.endswith(USER_TURN)

    def _metrics(self, done: Generation) -> dict[str, Any]:
        return {
            "ttft": done.ttft_s,
            "total": done.total_s,
            "finish": done.finish,
            "prompt_tokens": done.prompt_tokens,
            "sampled_tokens": done.sampled,
            "forced_tokens": done.forced,
            "cache_seq_length": self.cache.length,
        }

    @on_device
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        grammar: str | None = None,
        cancel: Callable[[], bool] | None = None,
        deadline: float | None = None,
        on_text: Callable[[str], None] | None = None,
        generator: torch.Generator | None = None,
        update_state: bool = False,
    ) -> Generation:
        """Continue a raw prompt (special tokens included) behind the stream, then cut it off again.

        max_new_tokens counts sampled tokens, so that forced ones are never cut. temperature 0 takes the likeliest
        token; above it top_p samples among the likeliest that together have this probability. grammar: what the text
        must follow (`json_grammar`, or Lark for llguidance). cancel is asked before every token;
        deadline is a time on the stream's clock; on_text gets the text so far after every pass.
        """
        started = time.perf_counter()
        cache, model = self.cache, self.model
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1 (1: all tokens)")
        constraint = Constraint(self.qwen, grammar) if grammar else None
        ids = self.qwen.tokenize(prompt)
        if not ids:
            raise ValueError("an empty prompt")
        self.check_ask(max_new_tokens, len(ids))
        before, kept = cache.mark(model), False
        answer = constraint.forced() if constraint else []
        pending, sampled, passes, ttft = ids + answer, 0, 0, 0.0
        finish: Finish = "length"
        try:
            while sampled < max_new_tokens:
                if cancel is not None and cancel():
                    finish = "cancelled"
                    break
                if deadline is not None and self.clock() >= deadline:
                    finish = "deadline"
                    break
                if cache.length - before.length + len(pending) > cache.tail_tokens:
                    break
                logits = self._next_logits(pending)
                passes += 1
                token = choose(logits, constraint, temperature, top_p, generator)
                sampled += 1
                ttft = ttft or time.perf_counter() - started
                pending = [token]
                if token in self.qwen.stop_tokens:
                    finish, pending = "stop", []
                    break
                if constraint:
                    constraint.accept(token)
                    pending += constraint.forced()
                answer += pending
                if on_text is not None:
                    on_text(self.qwen.decode(answer))
                if constraint and constraint.complete:
                    finish = "stop"
                    break
            if update_state:
                self._keep_turn(before.length, pending)
                kept = True
        finally:
            if not kept and cache.holds(
                before
            ):  # else keeping the turn failed in its eviction: the stream is empty
                cache.restore(model, before)
        total = time.perf_counter() - started
        forced = len(answer) - sampled + (finish == "stop" and not pending)
        text = self.qwen.decode(answer)
        return Generation(text, tuple(answer), finish, len(ids), sampled, forced, passes, ttft, total)

    @on_device
    def score(self, prompt: str, answer: Sequence[int], grammar: str) -> float:
        """The natural logarithm of the probability that `generate` at temperature 1 writes `answer` behind a prompt.

        It is the sum over the tokens about which the grammar leaves a choice, each among those it allows there; all in
        one pass, and the stream stays as it was.

        answer: the tokens of a whole text, as in `Generation.tokens`. ValueError if it does not follow the grammar, or
        does not fit the reserved tail.
        """
        ids = self.qwen.tokenize(prompt)
        choices = list(Constraint(self.qwen, grammar).walk(answer))
        self.check_ask(max(len(answer), 1), len(ids))
        hidden = self._forward(self._text_tokens(ids + list(answer)))  # the length stays: nothing to cut off
        total = 0.0
        for at, allowed in choices:
            logits = self.qwen.decoder.logits(hidden[len(ids) + at - 1 : len(ids) + at])[0]
            chances = logits[allowed.to(logits.device)].log_softmax(-1)
            total += float(chances[allowed == answer[at]])
        return total

    def check_ask(self, max_new_tokens: int, prompt_tokens: int = 1) -> None:
        """ValueError if an ask of this size does not fit the tail that is reserved for asks."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        tail = self.cache.tail_tokens
        if prompt_tokens + max_new_tokens > tail:
            raise ValueError(
                f"a prompt of {prompt_tokens} tokens and max_new_tokens {max_new_tokens} do not fit the reserved tail "
                f"of {tail} tokens: shorten the prompt, lower max_new_tokens to {max(tail - prompt_tokens, 0)} or "
                "raise tail_tokens"
            )

    def _feed(self, ids: list[int]) -> Tensor:
        """Text tokens at the tail; the length and the position move on (a restore takes them back)."""
        tokens = self._text_tokens(ids)
        hidden = self._forward(tokens)
        self.cache.length += len(ids)
        self.model.advance(tokens.span[1])
        return hidden

    def _text_tokens(self, ids: list[int]) -> Tokens:
        """Text where the stream stands."""
        start = self.model.stream_state.next_position
        positions = self.model.text_positions(start, len(ids))
        return Tokens(self.qwen.embed(ids), positions, (("text", len(ids)),), (start, start + len(ids)), ids)

    def _next_logits(self, ids: list[int]) -> Tensor:
        """Feed text tokens; logits (vocabulary,) of what comes next."""
        if self.graphs is None or self.graphs.size(len(ids)) is None:
            return self.qwen.decoder.logits(self._feed(ids)[-1:])[0]
        start = self.model.stream_state.next_position
        logits = self.graphs.run(ids, start)
        self.cache.length += len(ids)
        self.model.advance(start + len(ids))
        return logits

    def _keep_turn(self, length_before: int, pending: list[int]) -> None:
        """Close the turn and make question and answer, which lie at the tail, an ordinary chunk."""
        closing = "<|im_end|>\n" + (USER_TURN if self._in_user_turn else "")
        self._feed(pending + self.qwen.tokenize(closing))
        cache = self.cache
        tokens = cache.length - length_before
        chunks = cache.tracker.chunks
        span = (chunks[-1].positions[1] if chunks else 0, self.model.stream_state.next_position)
        cache.length = length_before
        cache.check_fits(tokens)
        self._commit(Chunk(cache.next_chunk_id, (("text", tokens),), span))

    @on_device
    def ask_choice(self, question: str, choices: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The likeliest of the given answers, by the probability of its own tokens, all scored in one pass.

        metrics["probabilities"] are those of the choices among themselves.
        """
        started = time.perf_counter()
        ids = self.qwen.tokenize(self._question(question))
        answers = self._choice_tokens(choices)
        branches = [answer[:-1] for answer in answers]
        row = ids + [token for branch in branches for token in branch]
        if len(row) > self.cache.tail_tokens:
            raise ValueError(
                f"question and choices have {len(row)} tokens, the reserved tail {self.cache.tail_tokens}: shorten "
                "them or raise tail_tokens"
            )
        start = self.model.stream_state.next_position
        offsets = list(range(len(ids)))
        tree = torch.tril(torch.ones(len(row), len(row), dtype=torch.bool))
        at = len(ids)
        starts = []
        for branch in branches:
            tree[at : at + len(branch), len(ids) : at] = False
            offsets += range(len(ids), len(ids) + len(branch))
            starts.append(at)
            at += len(branch)
        positions = (torch.tensor(offsets) + start).expand(3, -1)
        tokens = Tokens(self.qwen.embed(row), positions, (("text", len(row)),), (start, start + len(row)))
        hidden = self._forward(tokens, tree.to(self.qwen.device))  # the length stays: nothing to cut off
        chances = self.qwen.decoder.logits(hidden[len(ids) - 1 :]).log_softmax(-1)
        scores = []
        for answer, branch_start in zip(answers, starts, strict=True):
            rows = [0, *range(branch_start - len(ids) + 1, branch_start - len(ids) + len(answer))]
            scores.append(float(chances[rows, answer].sum()))
        shares = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        best = int(np.argmax(scores))
        total = time.perf_counter() - started
        return choices[best], {
            "ttft": total,
            "total": total,
            "prompt_tokens": len(ids),
            "probabilities": dict(zip(choices, shares, strict=True)),
            "log_likelihoods": dict(zip(choices, scores, strict=True)),
        }

    def _choice_tokens(self, choices: Sequence[str]) -> list[list[int]]:
        if not choices or len(set(choices)) != len(choices):
            raise ValueError(f"choices must be different and at least one; got {list(choices)}")
        answers = [self.qwen.tokenize(choice) for choice in choices]
        for choice, answer in zip(choices, answers, strict=True):
            if not answer:
                raise ValueError(f"choice {choice!r} has no tokens")
        # Where one answer begins like another, the longer one could never win: then ending is part of the answer.
        if any(a is not b and a == b[: len(a)] for a in answers for b in answers):
            answers = [[*answer, self.qwen.end_of_turn] for answer in answers]
        return answers

    # -- state -------------------------------------------------------------------------------------------------
    def get_cache_info(self) -> dict[str, Any]:
        """Flat numbers: tokens, chunks, evictions, bytes."""
        cache, evictor = self.cache, self.cache.evictor
        return {
            "cache_seq_length": cache.length,
            "chunks_encoded": self.chunks_encoded,
            "chunks_replaced": self.chunks_replaced,
            "chunks_cached": len(cache.tracker.chunks),
            "max_cache_tokens": cache.config.max_cache_tokens,
            "effective_sink_size": evictor.effective_sink_size,
            "window_size": evictor.window_size,
            "sampled_tokens": sum(segment.tokens for segment in cache.segments[1:]),
            "window_tokens": cache.length - sum(segment.tokens for segment in cache.segments),
            "total_evictions": evictor.total_evictions,
            "evicted_tokens": evictor.evicted_tokens,
            "next_position": self.model.stream_state.next_position,
            "bytes_per_token": cache.bytes_per_token,
            "cache_bytes": cache.bytes_per_token * cache.capacity,
            **{f"{modality}_tokens": count for modality, count in cache.tracker.counts().items()},
        }

    def reset(self) -> None:
        """An empty stream on the same model and the same buffers."""
        self.cache.reset()
        self.model.reset()
        self._forget()


def _stream_model(model: Any, processor: Any, device: str | torch.device | None) -> StreamQwenModel:
    if isinstance(model, StreamQwenModel):
        return model
    if isinstance(model, str | Path):
        return StreamQwenModel(QwenModel.load(model, device=device))
    if not isinstance(model, QwenModel):
        model = QwenModel.from_transformers(model, processor, device)
    return StreamQwenModel(model)
