"""Decoding with all offsets in tensors, as a GPU replays it, computes what the ordinary path computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_frames

from vlm_perception.engine import QwenModel, VideoStreamingInference
from vlm_perception.engine.attention import attend, attend_in_splits
from vlm_perception.engine.decode_graphs import LARGEST_CHUNK, MAX_CHUNK_PASSES, SIZES, DecodeGraphs
from vlm_perception.engine.decoder import DecoderShape
from vlm_perception.engine.device import Stopwatch
from vlm_perception.engine.preprocess import PictureFormat, patchify
from vlm_perception.engine.stream_qwen_model import StreamQwenModel, Tokens
from vlm_perception.engine.vision import MAX_CAPTURED, CapturedTower
from vlm_perception.testing.kernels import count_kernels
from vlm_perception.testing.operators import make_case

FRAMES = make_frames(12)
FREE = PictureFormat(min_pixels=28 * 28)


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
    assert torch.allclose(streams[0].cache.live_keys(), streams[1].cache.live_keys(), atol=1e-5)


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


# ---- chunks


def tokens_of(stream: VideoStreamingInference, count: int) -> Tokens:
    start = stream.model.stream_state.next_position
    embeddings = torch.randn(count, stream.qwen.decoder.shape.hidden)
    return Tokens(embeddings, torch.arange(start, start + count).expand(3, -1), (), (start, start + count))


def test_a_padded_chunk_leaves_the_keys_of_the_ordinary_path(model: QwenModel) -> None:
    """Through evictions and moves of the live region, with tags that change the chunks' lengths, between questions."""
    streams = [VideoStreamingInference(model, max_cache_tokens=150, tail_tokens=192) for _ in range(2)]
    streams[1].graphs = graphs = DecodeGraphs(streams[1].cache)
    for i in range(40):
        for stream in streams:
            stream.append_frame(FRAMES[i % 12], text_content="t" * (i % 7), replace_newest=i % 5 == 4)
        assert torch.allclose(streams[0].cache.live_keys(), streams[1].cache.live_keys(), atol=1e-5)
        assert torch.allclose(streams[0].cache.live_values(), streams[1].cache.live_values(), atol=1e-5)
        if i % 3 == 0:
            assert len({stream.ask("What?", max_new_tokens=3)[0] for stream in streams}) == 1
    assert streams[1].cache.moves >= 1
    assert streams[1].cache.evictor.total_evictions > 5
    assert graphs._chunk_passes, "chunks took the captured pass"


def test_a_chunk_takes_the_next_larger_pass_or_the_ordinary_way(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=700, tail_tokens=64)
    graphs = DecodeGraphs(stream.cache)
    assert [graphs.chunk_size(n) for n in (1, 32, 33, 391, LARGEST_CHUNK)] == [32, 32, 64, 416, LARGEST_CHUNK]
    assert graphs.chunk_size(LARGEST_CHUNK + 1) is None
    with torch.inference_mode():
        for size in range(1, MAX_CHUNK_PASSES + 1):
            graphs.prefill(tokens_of(stream, 32 * size))
        assert graphs.chunk_size(10) == 32
        assert graphs.chunk_size(32 * MAX_CHUNK_PASSES + 1) is None, "no more sizes are captured"
        with pytest.raises(ValueError, match="no captured pass"):
            graphs.prefill(tokens_of(stream, 32 * MAX_CHUNK_PASSES + 1))
    stream.cache.length = stream.cache.capacity - 40
    assert graphs.chunk_size(33) is None, "its padding would run over the buffer's end"


def test_a_chunk_s_pass_can_be_traced_whole(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=300)
    graphs = DecodeGraphs(stream.cache)
    with torch.inference_mode():
        graphs.prefill(tokens_of(stream, 20))
        one = graphs._chunk_passes[32]
        expected = one.compute().clone()
        traced = torch.compile(one.compute, fullgraph=True, backend="eager")
        assert torch.allclose(traced(), expected, atol=1e-5)


def test_a_captured_tower_encodes_as_the_tower_does_and_one_picture_after_the_other(model: QwenModel) -> None:
    captured = CapturedTower(model.vision, None)
    with torch.inference_mode():
        for frame in (FRAMES[0], FRAMES[1], FRAMES[0][:56], FRAMES[2]):
            patches, grid = patchify([frame], FREE)
            assert torch.equal(captured.forward(patches, grid), model.vision.forward(patches, grid))
        assert len(captured._passes) == 2
        model.vision._layouts.clear()  # as many other sizes would do
        patches, grid = patchify([FRAMES[3]], FREE)
        assert captured._passes[grid].layout is not model.vision.layout(grid), "the pass keeps its own alive"


def test_many_sizes_of_picture_are_not_all_captured(model: QwenModel) -> None:
    captured = CapturedTower(model.vision, None)
    with torch.inference_mode():
        for columns in range(1, MAX_CAPTURED + 3):
            patches, grid = patchify([np.zeros((28, 28 * columns, 3), np.uint8)], FREE)
            assert torch.equal(captured.forward(patches, grid), model.vision.forward(patches, grid))
    assert len(captured._passes) == MAX_CAPTURED


def test_the_host_prepares_a_chunk_while_the_device_is_at_the_one_before(
    model: QwenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most one chunk is under way, so a decision waits for no more than that."""
    done: list[str] = []

    def noted(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(self: object, *given: object, **named: object) -> object:
            done.append(name)
            return original(self, *given, **named)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((StreamQwenModel, "lay_out"), (Stopwatch, "wait"), (StreamQwenModel, "encode")):
        noted(owner, name)
    stream = VideoStreamingInference(model)
    for i in range(3):
        stream.append_frame(FRAMES[i])
    assert done == ["lay_out", "encode", *["lay_out", "wait", "encode"] * 2]
