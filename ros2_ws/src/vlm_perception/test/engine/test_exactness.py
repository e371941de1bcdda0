"""The laws of exactness: any partition equals one pass of transformers' model, evictions leave no gap and no drift."""

from __future__ import annotations

import itertools

import torch
from conftest import make_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Oracle
from torch import Tensor

from vlm_perception.engine import Image, QwenModel, Text, Video, VideoStreamingInference
from vlm_perception.engine.kv_cache_eviction import Chunk
from vlm_perception.engine.stream_qwen_model import Item

FRAMES = make_frames(12)

texts = st.sampled_from(["You see", "<|im_start|>user\n", "t=1.5", "red beacon left", "a"]).map(Text)
images = st.integers(0, 11).map(lambda i: Image(FRAMES[i]))


@st.composite
def videos(draw: st.DrawFn) -> Video:
    count = draw(st.sampled_from([1, 2, 4]))
    step = draw(st.sampled_from([0.25, 0.5]))
    first = draw(st.integers(0, 8))
    return Video(FRAMES[first : first + count], [7.0 + i * step for i in range(count)])


items_of_any_kind = st.lists(texts | images | videos(), min_size=2, max_size=7)
thorough = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def run_in_parts(model: QwenModel, items: list[Item], cuts: list[int]) -> tuple[Tensor, Tensor]:
    """Logits and positions of items fed as groups that end at `cuts`."""
    stream = VideoStreamingInference(model, max_cache_tokens=1000)
    logits, positions = [], []
    for first, last in itertools.pairwise([0, *cuts, len(items)]):
        tokens = stream.model.prepare(items[first:last])
        hidden = stream._forward(tokens)
        stream.cache.commit(Chunk(stream.cache.next_chunk_id, tokens.runs, tokens.span))
        stream.model.advance(tokens.span[1])
        logits.append(model.decoder.logits(hidden))
        positions.append(tokens.positions)
    return torch.cat(logits), torch.cat(positions, dim=1)


@thorough
@given(items=items_of_any_kind, data=st.data())
def test_any_partition_gives_the_oracles_logits_and_positions(
    model: QwenModel, oracle: Oracle, items: list[Item], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(items) - 1))))
    with torch.inference_mode():
        logits, positions = run_in_parts(model, items, cuts)
    expected, expected_positions = oracle.run(model, items)
    assert torch.equal(positions, expected_positions)
    assert (logits - expected).abs().max() < 1e-4
