"""Decoding with all offsets in tensors, as a GPU replays it, computes what the ordinary path computes."""

from __future__ import annotations

import pytest
import torch
from conftest import make_frames

from vlm_perception.engine import QwenModel, VideoStreamingInference
from vlm_perception.engine.attention import attend, attend_static
from vlm_perception.engine.decode_graphs import DecodeGraphs

FRAMES = make_frames(12)


@pytest.mark.parametrize("new", [1, 3, 8])
@pytest.mark.parametrize(("start", "cached"), [(0, 5), (17, 100), (3, 1), (200, 250), (9, 0)])
def test_attention_in_splits_is_attention(new: int, start: int, cached: int) -> None:
    torch.manual_seed(0)
    heads, kv_heads, dim, capacity, splits = 6, 2, 16, 512, 16
    key, value = torch.randn(2, capacity, kv_heads, dim).unbind(0)
    query = torch.randn(new, heads, dim)
    live = slice(start, start + cached + new)
    bounds = (start + cached * torch.arange(splits + 1) // splits).int()
    fresh = slice(start + cached, start + cached + new)
    found = attend_static(query, key[fresh], value[fresh], key, value, bounds)
    assert torch.allclose(found, attend(query, key[live], value[live]), atol=1e-5)


def test_answers_and_calls_are_the_ordinary_paths(model: QwenModel) -> None:
    streams = [VideoStreamingInference(model, max_cache_tokens=100, tail_tokens=192) for _ in range(2)]
    streams[1].graphs = DecodeGraphs(streams[1].cache)
    for i in range(30):
        answers = []
        for stream in streams:
            stream.append_frame(FRAMES[i % 12])
            answers.append(stream.ask("What?" + " and" * (i % 5), max_new_tokens=3 + i % 3)[0])
        assert answers[0] == answers[1]
    assert streams[0].cache.moves >= 1, "the live region has moved under the captured passes"
    assert torch.equal(streams[0].cache.live_keys(), streams[1].cache.live_keys())


def test_a_pass_can_be_traced_whole(model: QwenModel) -> None:
    """No operation in it leaves the graph: what torch.compile and a capture need."""
    stream = VideoStreamingInference(model, max_cache_tokens=100)
    stream.append_frame(FRAMES[0])
    graphs = DecodeGraphs(stream.cache)
    with torch.inference_mode():
        logits = graphs.run([5, 6, 7], 10).clone()
        one = graphs._passes[4]
        traced = torch.compile(one._compute, fullgraph=True, backend="eager")
        assert torch.allclose(traced(), logits, atol=1e-5)
