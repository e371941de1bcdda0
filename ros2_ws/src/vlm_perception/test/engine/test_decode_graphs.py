"""Decoding with all offsets in tensors, as a GPU replays it, computes what the ordinary path computes."""

from __future__ import annotations

import pytest
import torch
from conftest import make_frames

from vlm_perception.engine import QwenModel, VideoStreamingInference
from vlm_perception.engine.attention import attend, attend_in_splits
from vlm_perception.engine.decode_graphs import SIZES, DecodeGraphs
from vlm_perception.engine.decoder import DecoderShape
from vlm_perception.testing.kernels import count_kernels
from vlm_perception.testing.operators import make_case

FRAMES = make_frames(12)


@pytest.mark.parametrize("new", [1, 3, 8])
@pytest.mark.parametrize(("start", "cached"), [(0, 5), (17, 100), (3, 1), (200, 250), (9, 0)])
def test_attention_in_splits_is_attention(new: int, start: int, cached: int) -> None:
    case = make_case(new, cached, dtype=torch.float32, heads=6, kv_heads=2, dim=16)
    found = attend_in_splits(case.query, *case.in_buffer(start, capacity=512), splits=16)
    assert torch.allclose(found, attend(case.query, case.key, case.value), atol=1e-5)


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
        traced = torch.compile(one.compute, fullgraph=True, backend="eager")
        assert torch.allclose(traced(), logits, atol=1e-5)


def test_a_pass_whose_padding_would_not_fit_goes_the_ordinary_way(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=40, tail_tokens=40)
    graphs = DecodeGraphs(stream.cache)
    stream.append_frame(FRAMES[0])
    assert (graphs.size(1), graphs.size(3), graphs.size(33)) == (1, 4, None), (
        "64 would run over the buffer's end"
    )
    stream.graphs = graphs
    stream.cache.length = stream.cache.capacity - 3
    assert graphs.size(3) is None
    with pytest.raises(ValueError, match="no captured pass"):
        graphs.run([5, 6, 7], 10)


def test_a_decision_s_prompt_is_one_pass(model: QwenModel) -> None:
    graphs = DecodeGraphs(VideoStreamingInference(model, max_cache_tokens=400).cache)
    assert graphs.size(60) == 64
    assert graphs.size(128) == SIZES[-1] == 128
    assert graphs.size(129) is None


def test_a_decoded_token_takes_few_kernels_a_layer() -> None:
    """Counted on the path of a GPU: one call of attention, no merging."""
    few, many = (count_kernels(DecoderShape(n, 64, 4, 2, 16, 100, 1e-6), 96) for n in (1, 3))
    assert (many.total() - few.total()) / 2 <= 14
    assert many["torch_attn::_varlen_attn"] == 3
    assert few.total() <= 14 + 18
