"""The laws of exactness: any partition equals one pass of transformers' model; eviction leaves no gap and no drift."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import transformers
from conftest import make_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlm_perception.engine import Image, QwenModel, Text, Video, VideoStreamingInference
from vlm_perception.engine.decoder import rotate
from vlm_perception.engine.kv_cache_eviction import Chunk
from vlm_perception.engine.stream_qwen_model import Item
from vlm_perception.testing.oracle import Oracle
from vlm_perception.testing.tiny_model import make_tiny_model

FRAMES = make_frames(12)

# Between frames. The oracle of transformers 5.17 rounds the seconds of a pair of frames down to whole ones.
STEPS_S = [0.5] if transformers.__version__.startswith("5.17.") else [0.25, 0.5]

texts = st.sampled_from(["You see", "<|im_start|>user\n", "t=1.5", "red beacon left", "a"]).map(Text)
images = st.integers(0, 11).map(lambda i: Image(FRAMES[i]))


@st.composite
def videos(draw: st.DrawFn) -> Video:
    count = draw(st.sampled_from([1, 2, 4]))
    step = draw(st.sampled_from(STEPS_S))
    first = draw(st.integers(0, 8))
    return Video(FRAMES[first : first + count], [7.0 + i * step for i in range(count)])


def law(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


@torch.inference_mode()
def run_in_parts(
    model: QwenModel, items: list[Item], cuts: list[int], start: int = 0
) -> tuple[Tensor, Tensor, VideoStreamingInference]:
    """Logits and positions of items fed as groups that end at `cuts`, from position `start` on."""
    stream = VideoStreamingInference(model, max_cache_tokens=1000)
    stream.model.advance(start)
    logits, positions = [], []
    for first, last in itertools.pairwise([0, *cuts, len(items)]):
        tokens = stream.model.prepare(items[first:last])
        logits.append(model.decoder.logits(stream._forward(tokens)))
        stream.cache.commit(Chunk(stream.cache.next_chunk_id, tokens.runs, tokens.span))
        stream.model.advance(tokens.span[1])
        positions.append(tokens.positions)
    return torch.cat(logits), torch.cat(positions, dim=1), stream


@law(30)
@given(items=st.lists(texts | images | videos(), min_size=2, max_size=7), data=st.data())
def test_any_partition_gives_the_oracles_logits_and_positions(
    model: QwenModel, oracle: Oracle, items: list[Item], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(items) - 1))))
    logits, positions, _ = run_in_parts(model, items, cuts)
    expected, expected_positions = oracle.run(model, items)
    assert torch.equal(positions, expected_positions)
    assert (logits - expected).abs().max() < 1e-4


def test_tokens_one_by_one_give_the_oracles_logits(model: QwenModel, oracle: Oracle) -> None:
    items: list[Item] = [
        Image(FRAMES[0]),
        *(Text(word) for word in ["What", "do", "you", "see", "left", "?"]),
    ]
    logits, _, _ = run_in_parts(model, items, list(range(1, len(items))))
    expected, _ = oracle.run(model, items)
    assert (logits - expected).abs().max() < 1e-4


def test_text_after_a_long_video_starts_past_its_last_moment(model: QwenModel, oracle: Oracle) -> None:
    """As the model was trained; transformers 5.23 forgets the temporal extent there, hence explicit positions."""
    items: list[Item] = [Video(FRAMES[:4], [0.0, 5.0, 10.0, 15.0]), Text("What do you see?")]
    logits, positions, _ = run_in_parts(model, items, [1])
    patches = 3 * 4  # of one moment: 84 x 112 pixels in tokens of 28 x 28
    assert positions[0, 1 + patches] - positions[0, 1] == 10 * model.tokens_per_second
    assert positions[:, 2 * patches + 2].tolist() == [int(positions[:, : 2 * patches + 2].max()) + 1] * 3
    expected, _ = oracle.run(model, items, positions)
    assert (logits - expected).abs().max() < 1e-4


def test_real_time_stamps_set_the_temporal_axis(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    tokens = stream.model.prepare([Video(FRAMES[:6], [0.0, 0.4, 1.5, 2.0, 4.0, 4.1])])
    times = tokens.positions[0, 1:-1].unique() - tokens.positions[0, 1]
    assert times.tolist() == [0, 3, 8]  # 2 positions a second, at the first frame of each pair


@pytest.mark.parametrize("start", [10**5, 10**6, 10**7])
def test_logits_do_not_depend_on_how_far_the_stream_has_come(model: QwenModel, start: int) -> None:
    items: list[Item] = [Text("You see"), Image(FRAMES[0]), Image(FRAMES[1]), Text("What is on the left?")]
    near, _, _ = run_in_parts(model, items, [1, 2, 3])
    far, _, _ = run_in_parts(model, items, [1, 2, 3], start=start)
    assert (near - far).abs().max() < 1e-4


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> tuple[QwenModel, Oracle]:
    """One layer: its keys and values do not depend on what was evicted, so the oracle can compute them afresh."""
    folder = make_tiny_model(tmp_path_factory.mktemp("shallow"), seed=1, scale=5.0, layers=1)
    return QwenModel.load(folder, size=(112, 84), device="cpu"), Oracle(folder)


@law(15)
@given(actions=st.lists(st.sampled_from(["image", "pair", "tagged", "ask"]), min_size=8, max_size=30))
def test_after_evictions_the_kept_tokens_are_as_if_computed_afresh(
    shallow: tuple[QwenModel, Oracle], actions: list[str]
) -> None:
    model, oracle = shallow
    stream = VideoStreamingInference(model, max_cache_tokens=90)
    prompt = "<|im_start|>system\nYou see.<|im_end|>\n"
    stream.prime(prompt)
    shown: list[list[Item]] = []
    for i, action in enumerate(actions):
        frame = FRAMES[i % 12]
        if action == "ask":
            stream.ask("What?", max_new_tokens=2)
            continue
        if action == "pair":
            stream.append_video_chunk([frame, FRAMES[0]], fps=2.0)
            shown.append([Video([frame, FRAMES[0]], [0.0, 0.5])])
        else:
            text = f"t={i}" if action == "tagged" else None
            stream.append_frame(frame, text_content=text)
            shown.append([*([Text(text)] if text else []), Image(frame)])
    kept = len(stream.cache.tracker.chunks) - 1
    question: list[Item] = [Text("What do you see?")]
    fresh: list[Item] = [Text(prompt), *itertools.chain.from_iterable(shown[len(shown) - kept :]), *question]
    expected, _ = oracle.run(model, fresh)
    with torch.inference_mode():
        tokens = stream.model.prepare(question)
        logits = model.decoder.logits(stream._forward(tokens))
    assert (logits - expected[-len(tokens) :]).abs().max() < 1e-4


def test_window_keys_are_bit_identical_for_as_long_as_they_live(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=200, tail_tokens=64)
    stream.prime("<|im_start|>system\nYou see.<|im_end|>\n")
    born: dict[int, tuple[Tensor, Tensor]] = {}
    for i in range(80):
        stream.append_frame(FRAMES[i % 12], text_content=f"t={i}")
        at = stream.cache.evictor.effective_sink_size
        for chunk in stream.cache.tracker.chunks[1:]:
            keys = stream.cache.live_keys()[:, at : at + chunk.tokens]
            values = stream.cache.live_values()[:, at : at + chunk.tokens]
            born_keys, born_values = born.setdefault(chunk.id, (keys.clone(), values.clone()))
            assert torch.equal(keys, born_keys)
            assert torch.equal(values, born_values)
            at += chunk.tokens
        assert at == stream.cache.length
    assert stream.cache.moves > 3, "the live region has moved to the front several times"


def test_the_sink_does_not_drift_over_a_thousand_evictions(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=60)
    stream.prime("<|im_start|>system\nYou see.<|im_end|>\n")
    sink = stream.cache.live_keys().clone()
    while stream.cache.evictor.total_evictions < 1000:
        stream.append_frame(FRAMES[stream.chunks_encoded % 12])
    cache = stream.cache
    gap = cache.tracker.chunks[1].positions[0] - cache.tracker.chunks[0].positions[1]
    assert gap > 5000
    fresh = rotate(sink.flatten(0, 1), model.decoder.rope.shift(gap)).view_as(sink)
    assert torch.equal(cache.live_keys()[:, : sink.shape[1]], fresh)


def test_a_gap_left_open_leaves_the_sink_as_it_was(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=60, close_gap=False)
    stream.prime("<|im_start|>system\nYou see.<|im_end|>\n")
    sink = stream.cache.live_keys().clone()
    while stream.cache.evictor.total_evictions < 20:
        stream.append_frame(FRAMES[stream.chunks_encoded % 12])
    assert torch.equal(stream.cache.live_keys()[:, : sink.shape[1]], sink)


def test_memory_and_work_are_flat_over_2000_chunks(model: QwenModel) -> None:
    import psutil

    stream = VideoStreamingInference(model, max_cache_tokens=150)
    process = psutil.Process()
    resident = 0
    for i in range(2000):
        stream.append_frame(FRAMES[i % 12])
        if i == 200:
            resident = process.memory_info().rss
    info = stream.get_cache_info()
    assert info["cache_seq_length"] <= 150
    assert info["chunks_encoded"] == 2000
    assert len(stream.cache.tracker.chunks) < 15
    assert process.memory_info().rss < 1.01 * resident


def test_a_bfloat16_stream_stays_close_to_float32(folder: Path, model: QwenModel) -> None:
    half = QwenModel.load(folder, size=(112, 84), device="cpu", dtype=torch.bfloat16)
    items: list[Item] = [
        Text("You see"),
        *(Image(frame) for frame in FRAMES[:5]),
        Text("What is on the left?"),
    ]
    exact, _, _ = run_in_parts(model, items, [1, 2, 3, 4, 5])
    rough, _, _ = run_in_parts(half, items, [1, 2, 3, 4, 5])
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.98
