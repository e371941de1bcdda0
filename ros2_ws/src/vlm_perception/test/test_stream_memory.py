"""A stream's memory says what it holds, whatever failed on the way, and can be looked into."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from nav_common.data import (
    GenerateStatus,
)
from vlm_perception.admission import FrameGroup
from vlm_perception.engine import DeviceLostError, QwenModel
from vlm_perception.testing.bench import FORM, START, Bench


@contextmanager
def out_of_memory(bench: Bench) -> Iterator[None]:
    """Each pass of the model fails meanwhile."""

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.engine, "_forward", fail)
        yield


def test_a_prompt_longer_than_a_chunk_may_be_is_primed_or_leaves_the_memory_as_it_was(primed: Bench) -> None:
    primed.frames(1.0)
    before, first = primed.keys(), primed.prompt_id
    prompt = "fly " * 600
    tokens = primed.prime_tokens(prompt)
    assert primed.engine.cache.max_append < tokens < FORM.max_cache_tokens - 50, (
        "this is not what is tried here"
    )
    answered = primed.prime(prompt)
    if answered.success:
        assert primed.status.sink_tokens >= tokens
    else:
        assert torch.equal(before, primed.keys())
    answer, old = primed.generate(), primed.generate(prompt_id=first)
    primed.stream.run_until_idle()
    assert answer.result.status == GenerateStatus.OK
    assert (old.result.status == GenerateStatus.OK) is not answered.success


def test_priming_that_fails_half_way_leaves_no_prompt_and_no_frame(primed: Bench) -> None:
    primed.frames(1.0)
    first, resets = primed.prompt_id, primed.status.memory_resets
    with out_of_memory(primed):
        refused = primed.prime("You fly another drone.")
    assert not refused.success
    assert "out of memory" in refused.message
    answer, ask = primed.generate(prompt_id=first), primed.ask()
    primed.stream.run_until_idle()
    assert answer.result.status == GenerateStatus.UNKNOWN_PROMPT
    assert answer.result.frame_stamp_s == 0.0
    assert not ask.result.success
    assert primed.status.frame_age_s == 0.0
    assert primed.status.memory_resets == resets + 1
    primed.frames(2.0)
    assert primed.status.cached_tokens == 0, "frames under no prompt"
    primed.prime()  # the frames were kept: the new stream begins with them
    answer = primed.generate(earliest_frame_s=START + 2.0)
    primed.stream.run_until_idle()
    assert answer.result.status == GenerateStatus.OK
    assert answer.result.frame_stamp_s == START + 2.0


def test_a_reset_that_fails_half_way_leaves_no_prompt_and_no_frame(primed: Bench) -> None:
    primed.frames(1.0)
    with out_of_memory(primed):
        ticket = primed.stream.submit_reset()
        primed.stream.run_until_idle()
    assert not ticket.result.success
    answer = primed.generate(deadline_s=0.5)
    primed.stream.run_until_idle()
    assert answer.result.status == GenerateStatus.UNKNOWN_PROMPT
    assert primed.prime().success


def test_an_engine_that_has_emptied_itself_counts_as_not_primed(primed: Bench) -> None:
    """It does so when it runs out of memory while it evicts."""
    primed.frames(1.0)
    primed.engine.reset()
    answer = primed.generate()
    primed.stream.run_until_idle()
    assert answer.result.status == GenerateStatus.UNKNOWN_PROMPT
    primed.frames(2.0)
    assert primed.status.cached_tokens == 0
    assert primed.prime().success
    assert primed.status.chunks == 3  # the prompt and both frames


def test_a_chunk_that_cannot_be_appended_is_counted_as_broken_and_the_next_one_is_taken(
    primed: Bench,
) -> None:
    primed.frames(1.0)
    with out_of_memory(primed):
        primed.frames(1.5)
    primed.frames(1.6)
    assert primed.status.frames_broken == 1
    assert primed.status.chunks_appended == 2
    answer = primed.generate()
    primed.stream.run_until_idle()
    assert answer.result.frame_stamp_s == START + 1.6


def test_a_lost_accelerator_is_no_broken_frame(primed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(primed.engine, "_forward", lost)
    primed.frame(1.0)
    with pytest.raises(DeviceLostError):
        primed.stream.step()
    primed.generate()
    ask = primed.ask()
    assert not ask.done


def test_with_recomputed_frames_an_answer_rests_on_the_last_ones_alone(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    """What was encoded before must not shine through the keys of the frames that are kept: they are encoded anew."""
    form = dataclasses.replace(FORM, recompute_frames=2)
    long, short = Bench(tiny_model, jpeg, form=form), Bench(tiny_model, jpeg, form=form)
    for bench in (long, short):
        bench.prime()
    long.frames(1.0, 1.5, 2.0, 2.5, 3.0)
    first = long.generate()
    long.stream.run_until_idle()
    assert first.result.status is GenerateStatus.OK
    long.frames(3.5)
    short.frames(3.0, 3.5)
    answers = [bench.generate() for bench in (long, short)]
    for bench in (long, short):
        bench.stream.run_until_idle()
    assert [answer.result.status for answer in answers] == [GenerateStatus.OK] * 2
    assert answers[0].result.text == answers[1].result.text
    assert answers[0].result.frame_stamp_s == START + 3.5
    assert torch.equal(long.keys(), short.keys())
    assert long.status.cached_tokens == short.status.cached_tokens > long.status.sink_tokens


def test_a_memory_recalled_without_a_frame_is_one_that_never_saw_it(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    """Its tags go on counting from the first frame, even where that is the one left out."""
    form = dataclasses.replace(FORM, tag="t={elapsed_s:.1f}s\n")
    for left_out in range(4):
        seen: list[FrameGroup] = []
        bench = Bench(tiny_model, jpeg, form)
        bench.stream.on_append = seen.append
        bench.prime()
        bench.frames(1.0, 1.5, 2.0, 2.5)
        memory = bench.stream.memory
        assert memory.chunk_stamps_s == [chunk.stamps_s[-1] for chunk in seen]
        whole, first_s = bench.keys(), memory.first_s
        assert first_s == START + 1.0
        memory.recall(seen, first_s)
        assert torch.equal(bench.keys(), whole)
        rest = [chunk for index, chunk in enumerate(seen) if index != left_out]
        memory.recall(rest, first_s)
        recalled = bench.keys()

        other = Bench(tiny_model, jpeg, form)
        other.prime()
        other.stream.memory._first_s = first_s
        for chunk in rest:
            other.stream.memory.append(chunk)
        assert torch.equal(recalled, other.keys())
        assert memory.chunk_stamps_s == other.stream.memory.chunk_stamps_s
        assert memory.newest_s == rest[-1].stamps_s[-1]


def test_what_has_left_the_memory_is_no_chunk_of_it(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    bench = Bench(tiny_model, jpeg)
    tokens = bench.prime().tokens
    seen: list[FrameGroup] = []
    form = dataclasses.replace(FORM, max_cache_tokens=tokens + 70)
    bench = Bench(tiny_model, jpeg, form)
    bench.stream.on_append = seen.append
    bench.prime()
    bench.frames(*(0.5 * i for i in range(1, 11)))
    held = bench.stream.memory.chunk_stamps_s
    assert 0 < len(held) == bench.status.chunks - 1 < len(seen)  # the prompt is a chunk too
    assert held == [chunk.stamps_s[-1] for chunk in seen][-len(held) :]


def test_a_hovering_frame_is_one_chunk_however_often_it_is_replaced(primed: Bench) -> None:
    primed.pose(0.5, 0.0)
    for i in range(1, 5):
        primed.pose(i * 1.0, 0.0)
        primed.frames(i * 1.0)
    assert primed.stream.memory.chunk_stamps_s == [START + 4.0]
    assert primed.stream.memory.first_s == START + 1.0


def test_the_score_of_a_call_is_the_memorys_and_leaves_no_trace(primed: Bench) -> None:
    primed.frames(1.0, 1.5)
    memory = primed.stream.memory
    words = ("fly to the red beacon", ("hover(seconds=1) -> hovered 1 s",))
    done = memory.generate_call(
        *words, max_new_tokens=24, temperature=0.0, cancel=lambda: False, deadline_s=math.inf, on_text=None
    )
    before = primed.keys()
    score = memory.score_call(*words, done.tokens)
    assert score < 0.0
    assert memory.score_call("land", (), done.tokens) != score
    assert memory.score_call(*words, done.tokens) == score
    assert torch.equal(primed.keys(), before)
