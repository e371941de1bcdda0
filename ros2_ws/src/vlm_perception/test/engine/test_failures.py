"""When something fails the stream says what it holds: all of it, or nothing; never something else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_frames

from vlm_perception.engine import (
    DeviceLostError,
    QwenModel,
    StaleSnapshotError,
    VideoStreamingInference,
    cache_manager,
    is_device_lost,
    json_grammar,
)
from vlm_perception.engine.decode_graphs import DecodeGraphs

PROMPT = "<|im_start|>system\nYou see.<|im_end|>\n"
FRAMES = make_frames(8)


@contextmanager
def failing(name: str, error: Exception, owner: Any = cache_manager.EagerStep) -> Iterator[None]:
    """A method that raises instead of doing its work."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


@pytest.fixture
def stream(model: QwenModel) -> VideoStreamingInference:
    stream = VideoStreamingInference(model, max_cache_tokens=100, tail_tokens=32)
    stream.prime(PROMPT)
    for i, frame in enumerate(FRAMES):
        stream.append_frame(frame, stamp=float(i))
    assert stream.cache.evictor.total_evictions
    return stream


def contents(stream: VideoStreamingInference) -> tuple[Any, ...]:
    cache = stream.cache
    return (
        cache.live_keys().numpy().tobytes(),
        cache.live_values().numpy().tobytes(),
        stream.get_cache_info(),
        stream.model.stream_state,
        cache.evictor.chunk_stats,
        stream.primed,
    )


# -- priming -----------------------------------------------------------------------------------------------------
def test_a_prompt_that_cannot_be_held_is_refused_before_anything_changes(
    stream: VideoStreamingInference,
) -> None:
    before = contents(stream)
    for prompt, message in (("", "empty prompt"), ("a b " * 60, "max_cache_tokens is 100")):
        for attempt in (stream.prime, stream.check_prompt):
            with pytest.raises(ValueError, match=message):
                attempt(prompt)
            assert contents(stream) == before


def test_a_prompt_longer_than_the_headroom_and_the_tail_is_held(stream: VideoStreamingInference) -> None:
    """The buffer has room for the whole budget, so an empty stream takes any prompt that leaves a window."""
    prompt = PROMPT + "a b " * 25
    tokens = stream.check_prompt(prompt)
    assert stream.cache.max_append < tokens < 100
    assert stream.prime(prompt)["tokens"] == tokens == stream.cache.length
    stream.append_frame(FRAMES[0], stamp=20.0)
    assert stream.primed == prompt


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("anything")])
def test_a_prefill_that_fails_leaves_an_empty_stream_that_says_so(
    stream: VideoStreamingInference, model: QwenModel, error: Exception
) -> None:
    other = PROMPT + "Other tools."
    with failing("attend", error), pytest.raises(type(error)):
        stream.prime(other)
    assert stream.primed is None
    assert (
        stream.get_cache_info()
        == VideoStreamingInference(model, max_cache_tokens=100, tail_tokens=32).get_cache_info()
    )
    assert stream.prime(other)["tokens"], "and it can be primed again"
    assert stream.primed == other


def test_captures_that_fail_while_priming_change_nothing(stream: VideoStreamingInference) -> None:
    stream.graphs = DecodeGraphs(stream.cache)
    before = contents(stream)
    error = torch.OutOfMemoryError("no room for a graph")
    with failing("prepare", error, DecodeGraphs), pytest.raises(torch.OutOfMemoryError):
        stream.prime(PROMPT + "Other tools.")
    assert contents(stream) == before


def test_memory_running_out_at_the_commit_changes_nothing(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=100)
    before = contents(stream)
    error, owner = torch.OutOfMemoryError("no room for the sink"), cache_manager.KVCacheManager
    with failing("_segment", error, owner), pytest.raises(torch.OutOfMemoryError):
        stream.append_frame(FRAMES[0])
    assert contents(stream) == before


@pytest.mark.parametrize("how", ["append", "replace", "keep a turn"])
def test_memory_running_out_in_an_eviction_empties_the_stream(
    stream: VideoStreamingInference, how: str
) -> None:
    """Its front is half rewritten then: what remains must not be attended to."""
    calls: dict[str, Callable[[], object]] = {
        "append": lambda: stream.append_frame(FRAMES[0]),
        "replace": lambda: stream.append_frame(
            FRAMES[0], text_content="a longer tag" * 2, replace_newest=True
        ),
        "keep a turn": lambda: stream.ask("What do you see?", max_new_tokens=8, update_state=True),
    }
    error, owner = torch.OutOfMemoryError("in vain"), cache_manager.KVCacheManager
    with failing("_write_segments", error, owner), pytest.raises(torch.OutOfMemoryError, match="in vain"):
        calls[how]()
    assert stream.primed is None
    assert stream.cache.length == 0
    assert stream.model.stream_state.next_position == 0
    assert not stream.cache.tracker.chunks


# -- snapshots ---------------------------------------------------------------------------------------------------
def test_a_snapshot_takes_back_what_was_appended_since(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=100)
    stream.append_frame(FRAMES[0])
    stream.cache.snapshot(stream.model)
    before = contents(stream)
    for _ in range(2):
        stream.append_frame(FRAMES[1])
        stream.ask("What?", max_new_tokens=2)
        stream.cache.restore(stream.model)  # the caller's snapshot, not the ask's own
        assert contents(stream)[:2] == before[:2]
        assert stream.cache.tracker.tokens == stream.cache.length
        assert stream.cache.evictor.chunk_stats.chunks == 1


def evict(stream: VideoStreamingInference) -> None:
    evictions = stream.cache.evictor.total_evictions
    while stream.cache.evictor.total_evictions == evictions:
        stream.append_frame(FRAMES[2])


def replace(stream: VideoStreamingInference) -> None:
    stream.append_frame(FRAMES[2], replace_newest=True)


def reset(stream: VideoStreamingInference) -> None:
    stream.reset()
    for frame in FRAMES[:2]:
        stream.append_frame(frame)


def prime_anew(stream: VideoStreamingInference) -> None:
    stream.prime(PROMPT)
    stream.append_frame(FRAMES[1])


@pytest.mark.parametrize("change", [evict, replace, reset, prime_anew])
def test_a_snapshot_from_before_a_rewrite_is_refused_and_nothing_changes(
    model: QwenModel, change: Any
) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=100)
    for frame in FRAMES[:2]:
        stream.append_frame(frame)
    snapshot = stream.cache.snapshot(stream.model)
    change(stream)
    before = contents(stream)
    with pytest.raises(StaleSnapshotError, match="stale"):
        stream.cache.restore(stream.model, snapshot)
    assert contents(stream) == before


def test_snapshots_are_taken_back_in_order_only(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=100)
    stream.append_frame(FRAMES[0])
    older = stream.cache.snapshot(stream.model)
    stream.append_frame(FRAMES[1])
    newer = stream.cache.snapshot(stream.model)
    stream.cache.restore(stream.model, older)
    for _ in range(2):
        with pytest.raises(StaleSnapshotError):
            stream.cache.restore(stream.model, newer)
        stream.append_frame(FRAMES[2])  # of the same size: only its content differs
    stream.cache.restore(stream.model, older)
    assert stream.cache.length == older.length


def test_without_a_snapshot_there_is_nothing_to_restore(stream: VideoStreamingInference) -> None:
    with pytest.raises(StaleSnapshotError, match="no snapshot"):
        stream.cache.restore(stream.model)


def test_a_replacement_that_fails_leaves_older_snapshots_usable(stream: VideoStreamingInference) -> None:
    before, snapshot = contents(stream), stream.cache.snapshot(stream.model)
    with failing("attend", torch.OutOfMemoryError("no")), pytest.raises(torch.OutOfMemoryError):
        stream.append_frame(FRAMES[0], replace_newest=True)
    assert contents(stream) == before
    stream.cache.restore(stream.model, snapshot)


# -- statistics, the device, ownership ---------------------------------------------------------------------------
def test_a_replaced_chunk_counts_once(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=200)
    stream.append_frame(FRAMES[0], text_content="a very long tag that is replaced")
    first = stream.cache.evictor.chunk_stats
    for text in ("another long tag", None):
        stream.append_frame(FRAMES[1], text_content=text, replace_newest=True)
    stats = stream.cache.evictor.chunk_stats
    assert (stats.chunks, stats.tokens) == (1, stream.cache.length)
    assert stats.largest == stats.smallest < first.largest


STUCK = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError(
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
PASSING = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("the grammar rejects token 5"),
    ValueError("CUDA error: only a message"),
]


@pytest.mark.parametrize("error", STUCK, ids=str)
def test_an_error_that_breaks_the_device_is_of_a_kind_of_its_own(
    stream: VideoStreamingInference, error: RuntimeError
) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: stream.append_frame(FRAMES[0]),
        lambda: stream.append_video_chunk(FRAMES[:2]),
        lambda: stream.ask("What?", max_new_tokens=2),
        lambda: stream.ask_choice("Which?", ["left", "right"]),
        lambda: stream.prime("another prompt"),
    )
    assert is_device_lost(error)
    for call in calls:
        with failing("attend", error), pytest.raises(DeviceLostError, match="cannot be used again") as lost:
            call()
        assert not isinstance(lost.value, RuntimeError | ValueError), (
            "who skips a broken frame must not catch it"
        )
        assert lost.value.__cause__ is error
        assert "\n" not in str(lost.value)


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_an_error_of_one_call_stays_what_it_is(stream: VideoStreamingInference, error: Exception) -> None:
    assert not is_device_lost(error)
    before = contents(stream)
    with failing("attend", error), pytest.raises(type(error)):
        stream.append_frame(FRAMES[0])
    assert contents(stream) == before


def test_a_dropped_model_is_freed_with_its_grammars_and_streams(folder: Path) -> None:
    model = QwenModel.load(folder, size=(112, 84), device="cpu")
    stream = VideoStreamingInference(model, max_cache_tokens=100, tail_tokens=192)
    stream.append_frame(FRAMES[0])
    stream.generate("fly", grammar=json_grammar({"enum": ["reached", "unsafe"]}), max_new_tokens=4)
    watched: list[weakref.ref[Any]] = [weakref.ref(model), weakref.ref(model.decoder), weakref.ref(stream)]
    del model, stream
    gc.collect()
    assert [ref() for ref in watched] == [None, None, None]


def test_a_model_keeps_a_bounded_number_of_grammars(model: QwenModel) -> None:
    grammars = [json_grammar({"const": f"tool_{i}"}) for i in range(40)]
    first = model.grammar(grammars[0])
    assert model.grammar(grammars[0]) is first, "compiled once"
    for grammar in grammars:
        model.grammar(grammar)
    assert model.grammar(grammars[0]) is not first


def test_an_answer_that_cannot_fit_the_tail_is_refused_with_what_would(
    stream: VideoStreamingInference,
) -> None:
    stream.check_ask(31)
    with pytest.raises(ValueError, match=r"lower max_new_tokens to 31 or raise tail_tokens"):
        stream.check_ask(32)
