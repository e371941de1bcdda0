"""Frames in: preprocessing, chunks of any kind and size, provisional chunks, budgets, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_frames

from vlm_perception.engine import (
    EvictionConfig,
    Image,
    QwenModel,
    Text,
    Video,
    VideoStreamingInference,
)
from vlm_perception.engine.preprocess import PictureFormat, patchify, smart_resize
from vlm_perception.engine.stream_qwen_model import Item
from vlm_perception.testing.oracle import Oracle
from vlm_perception.testing.tiny_model import make_tiny_model

PROMPT = "<|im_start|>system\nYou see.<|im_end|>\n"
FRAMES = make_frames(8)


def photo(width: int, height: int) -> np.ndarray:
    """A smooth picture with edges, as a camera gives."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], -1).astype(
        np.uint8
    )
    picture[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 30)
    return picture


# -- preprocessing -----------------------------------------------------------------------------------------------
SIZES = [(640, 480), (320, 240), (448, 336), (1280, 720), (113, 85), (30, 200), (1000, 37)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pictures_are_prepared_as_hugging_face_does(width: int, height: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = photo(width, height)
    expected = Qwen2VLImageProcessorPil()(picture, return_tensors="pt")
    patches, grid = patchify([picture], PictureFormat())
    assert [[grid.t, grid.h, grid.w]] == expected["image_grid_thw"].tolist()
    one_level = 1 / 255 / 0.26  # one step of a byte after normalisation by the smallest deviation
    assert (patches - expected["pixel_values"]).abs().max() <= one_level


def test_video_patches_have_the_order_of_hugging_faces_video_processor() -> None:
    """Its `patchify` in ten lines (it needs torchvision to import); an odd last frame is repeated."""
    form = PictureFormat(size=(112, 84))
    frames = make_frames(3)
    patches, grid = patchify(frames, form)
    video = torch.from_numpy(np.stack([*frames, frames[-1]])).permute(0, 3, 1, 2).float()[None]
    mean, std = torch.tensor(form.mean).view(3, 1, 1), torch.tensor(form.std).view(3, 1, 1)
    video = (video / 255 - mean) / std
    view = video.view(1, 2, 2, 3, 3, 2, 14, 4, 2, 14).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    assert (grid.t, grid.h, grid.w) == (2, 6, 8)
    assert torch.allclose(patches, view.reshape(2 * 6 * 8, -1), atol=1e-5)


def test_an_image_is_a_pair_of_itself() -> None:
    form = PictureFormat(size=(112, 84))
    one, _ = patchify([FRAMES[0]], form)
    two, _ = patchify([FRAMES[0], FRAMES[0]], form)
    assert torch.equal(one, two)


def test_smart_resize_agrees_with_hugging_faces() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    form = PictureFormat()
    for width, height in [*SIZES, (1920, 1080), (4000, 3000), (28, 28), (57, 3000)]:
        expected = theirs(height, width, 28, form.min_pixels, form.max_pixels)
        assert smart_resize(width, height, form) == expected[::-1]


@pytest.mark.parametrize(("width", "height"), [(112, 84), (224, 168), (140, 308), (336, 336), (28, 28)])
@pytest.mark.parametrize("frames", [1, 4])
def test_the_vision_tower_is_the_oracles(
    folder: Path, oracle: Oracle, width: int, height: int, frames: int
) -> None:
    model = QwenModel.load(folder, size=(width, height), device="cpu")
    patches, grid = patchify(make_frames(frames), model.picture)
    with torch.inference_mode():
        ours = model.encode_vision(patches, grid)
        theirs = oracle.model.model.visual(patches, grid_thw=torch.tensor([[grid.t, grid.h, grid.w]]))
    assert (ours - theirs.pooler_output).abs().max() < 1e-4 * theirs.pooler_output.abs().max()


# -- chunks ------------------------------------------------------------------------------------------------------
def test_chunks_of_one_two_and_four_frames(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    stream.prime(PROMPT)
    tokens = [
        stream.append_frame(FRAMES[0]).tokens,
        stream.append_frame(FRAMES[1], as_video=True).tokens,
        stream.append_video_chunk(FRAMES[2:4], fps=2.0).tokens,
        stream.append_video_chunk(FRAMES[4:8], fps=2.0, text_content="t=3").tokens,
    ]
    assert tokens[:3] == [14, 14, 14], "3 x 4 tokens between two marks, for one frame or a pair"
    assert tokens[3] == 26 + len(model.tokenize("t=3"))
    kinds = [stream.cache.tracker.at(i)[0] for i in range(stream.cache.length)]
    assert kinds.count("image") == 12
    assert kinds.count("video") == 12 + 12 + 24
    assert stream.cache.tracker.at(stream.cache.length - 1) == ("text", 4)
    with pytest.raises(IndexError, match="not cached"):
        stream.cache.tracker.at(stream.cache.length)


def test_resolution_may_change_in_mid_stream(folder: Path, oracle: Oracle) -> None:
    model = QwenModel.load(folder, device="cpu")  # Qwen's own rule: a resolution for each frame
    stream = VideoStreamingInference(model, max_cache_tokens=200)
    sizes = [(112, 84), (224, 140), (56, 56), (252, 84)] * 4
    tokens = [stream.append_frame(photo(*size)).tokens for size in sizes]
    assert tokens[1:4] == [42, 6, 29]
    assert stream.cache.evictor.total_evictions > 0
    assert stream.cache.length == sum(chunk.tokens for chunk in stream.cache.tracker.chunks) <= 200


def test_hovering_changes_neither_the_window_nor_the_answer(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=120)
    stream.prime(PROMPT)
    for i, frame in enumerate(FRAMES):
        stream.append_frame(frame, stamp=0.5 * i)
    info, state = stream.get_cache_info(), stream.cache.tracker.chunks[:-1]
    answer = stream.ask("What?", max_new_tokens=8)[0]
    keys = stream.cache.live_keys().clone()
    for i in range(120):  # a minute at two frames a second, the camera still
        stream.append_frame(FRAMES[-1], stamp=4.0 + 0.5 * i, replace_newest=True)
    after = stream.get_cache_info()
    assert torch.equal(stream.cache.live_keys(), keys)
    assert stream.cache.tracker.chunks[:-1] == state
    assert after == {**info, "chunks_replaced": 120}
    assert stream.ask("What?", max_new_tokens=8)[0] == answer


def test_a_replaced_chunk_is_as_if_it_had_never_been(model: QwenModel) -> None:
    streams = [VideoStreamingInference(model), VideoStreamingInference(model)]
    for i, stream in enumerate(streams):
        stream.append_frame(FRAMES[0])
        if i:
            stream.append_frame(FRAMES[1], text_content="a longer tag")
        stream.append_frame(FRAMES[2], text_content="t=2", replace_newest=bool(i))
    assert torch.equal(streams[0].cache.live_keys(), streams[1].cache.live_keys())
    assert streams[0].model.stream_state.next_position == streams[1].model.stream_state.next_position


def test_a_recalled_frame_is_encoded_as_at_its_first_time_and_has_no_time_of_its_own(
    model: QwenModel,
) -> None:
    stream, plain = VideoStreamingInference(model), VideoStreamingInference(model)
    for i in range(2):
        stream.append_frame(FRAMES[i], stamp=10.0 + i)
        plain.append_frame(FRAMES[i], stamp=10.0 + i)
    before = stream.model.stream_state.last_stamp
    done = stream.append_recalled([FRAMES[0]], "recalled: ")
    same = plain.append_frame(FRAMES[0], text_content="recalled: ", stamp=11.0)
    assert done.tokens == same.tokens
    assert torch.equal(stream.cache.live_keys(), plain.cache.live_keys())
    assert stream.model.stream_state.last_stamp == before == 11.0
    with pytest.raises(ValueError, match="newest chunk is not a frame"):
        stream.append_frame(FRAMES[2], stamp=12.0, replace_newest=True)
    stream.append_frame(FRAMES[2], stamp=11.5)


def test_several_recalled_frames_and_the_newest_again_are_what_they_would_be_one_by_one(
    model: QwenModel,
) -> None:
    stream, plain = VideoStreamingInference(model), VideoStreamingInference(model)
    for each in (stream, plain):
        each.prime(PROMPT)
        for i in range(4):
            each.append_frame(FRAMES[i], text_content=f"t={i}", stamp=10.0 + i)
    stream.append_recalled(FRAMES[:2], "recalled: ")
    again = stream.repeat_newest()
    for i in range(2):
        plain.append_frame(FRAMES[i], text_content="recalled: ", stamp=13.0)
    plain.append_frame(FRAMES[3], text_content="t=3", stamp=13.0)
    torch.testing.assert_close(stream.cache.live_keys(), plain.cache.live_keys())
    assert stream.model.stream_state == plain.model.stream_state
    assert stream.cache.tracker.chunks[-1].stamp == 13.0
    assert again.tokens == plain.cache.tracker.chunks[-1].tokens
    # What the camera shows next may take its place, as of any provisional frame.
    for each in (stream, plain):
        each.append_frame(FRAMES[4], text_content="t=4", stamp=14.0, replace_newest=True)
    torch.testing.assert_close(stream.cache.live_keys(), plain.cache.live_keys())


def test_without_a_frame_behind_the_prompt_there_is_none_to_repeat(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    stream.prime(PROMPT)
    with pytest.raises(ValueError, match="no newest frame to repeat"):
        stream.repeat_newest()
    stream.append_frame(FRAMES[0])
    stream.reset()
    stream.prime(PROMPT)
    with pytest.raises(ValueError, match="no newest frame to repeat"):
        stream.repeat_newest()


def test_recalled_frames_stay_within_the_budget_and_age_out(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=120)
    stream.prime(PROMPT)
    stream.append_frame(FRAMES[0], stamp=0.0)
    recalled = stream.append_recalled([FRAMES[1]], "recalled: ").chunk
    for i in range(12):
        stream.append_frame(FRAMES[i % 8], stamp=1.0 + i)
        assert stream.cache.length <= 120
    assert recalled not in [chunk.id for chunk in stream.cache.tracker.chunks]


def test_nothing_is_recalled_into_a_stream_without_frames(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    stream.prime(PROMPT)
    with pytest.raises(ValueError, match="without frames"):
        stream.append_recalled([FRAMES[0]], "recalled: ")
    assert [chunk.stamp for chunk in stream.cache.tracker.chunks] == [None]


def test_the_first_chunk_may_be_replaced_and_the_sink_with_it(model: QwenModel) -> None:
    stream, other = VideoStreamingInference(model), VideoStreamingInference(model)
    stream.append_frame(FRAMES[0])
    stream.append_frame(FRAMES[1], replace_newest=True)
    other.append_frame(FRAMES[1])
    assert torch.equal(stream.cache.live_keys(), other.cache.live_keys())
    assert torch.equal(stream.cache.segments[0].keys, other.cache.segments[0].keys)
    assert stream.cache.evictor.effective_sink_size == stream.cache.length


# -- the sink and the budget -------------------------------------------------------------------------------------
def test_the_automatic_sink_is_the_cache_after_the_first_chunk(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=300)
    stream.append_video_chunk(FRAMES[:4])
    info = stream.get_cache_info()
    assert info["effective_sink_size"] == info["cache_seq_length"]
    assert info["window_size"] == 300 - info["effective_sink_size"]


def test_a_primed_prompt_is_the_sink_and_priming_again_says_what_it_cost(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    first = stream.prime(PROMPT)
    assert stream.cache.evictor.effective_sink_size == stream.cache.length == first["tokens"]
    stream.append_frame(FRAMES[0])
    assert stream.prime(PROMPT)["tokens"] == 0, "the same prompt costs nothing"
    assert stream.chunks_encoded == 1
    cost = stream.prime(PROMPT + "Other tools.")
    assert cost["dropped_chunks"] == 2
    assert cost["dropped_tokens"] == first["tokens"] + 14
    assert cost["seconds"] > 0
    assert stream.cache.length == cost["tokens"]


def test_a_given_sink_is_whole_chunks(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=200, sink_size=40)
    stream.prime(PROMPT)
    while not stream.cache.evictor.total_evictions:
        stream.append_frame(FRAMES[0])
    sizes = [chunk.tokens for chunk in stream.cache.tracker.chunks]
    sink = stream.cache.evictor.effective_sink_size
    assert sink in np.cumsum(sizes)
    assert 40 <= sink < 40 + 14
    assert stream.cache.tracker.chunks[0].id == 0
    assert stream.cache.tracker.chunks[-1].id == stream.chunks_encoded


@pytest.mark.parametrize("window", [None, 60])
def test_the_cache_never_outgrows_its_budget(model: QwenModel, window: int | None) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=128, window_size=window)
    lengths = []
    for i in range(60):
        stream.append_frame(FRAMES[i % 8], text_content="t" * (i % 7))
        lengths.append(stream.cache.length)
    assert max(lengths) <= (128 if window is None else stream.cache.evictor.effective_sink_size + 60)
    assert min(lengths[20:]) > max(lengths) - 40


def test_reset_gives_an_empty_stream(model: QwenModel) -> None:
    stream, fresh = (
        VideoStreamingInference(model, max_cache_tokens=100),
        VideoStreamingInference(model, max_cache_tokens=100),
    )
    for frame in FRAMES:
        stream.append_frame(frame)
    stream.reset()
    assert stream.get_cache_info() == fresh.get_cache_info()
    for s in (stream, fresh):
        s.append_frame(FRAMES[3])
    assert torch.equal(stream.cache.live_keys(), fresh.cache.live_keys())


# -- bad input ---------------------------------------------------------------------------------------------------
def appended(stream: VideoStreamingInference) -> tuple[Any, ...]:
    return stream.cache.live_keys().numpy().tobytes(), stream.get_cache_info(), stream.model.stream_state


BAD_FRAMES: dict[str, tuple[Any, str]] = {
    "zero-sized": (np.zeros((0, 10, 3), np.uint8), "shape"),
    "four channels": (np.zeros((84, 112, 4), np.uint8), "shape"),
    "grey": (np.zeros((84, 112), np.uint8), "shape"),
    "floats": (np.zeros((84, 112, 3), np.float32), "float32"),
    "nothing": (None, "NoneType"),
}


@pytest.mark.parametrize("bad", BAD_FRAMES)
def test_a_bad_frame_is_refused_and_the_stream_goes_on(model: QwenModel, bad: str) -> None:
    frame, message = BAD_FRAMES[bad]
    stream = VideoStreamingInference(model)
    stream.append_frame(FRAMES[0])
    before = appended(stream)
    for replace in (False, True):
        with pytest.raises(ValueError, match=message):
            stream.append_frame(frame, replace_newest=replace)
    assert appended(stream) == before
    stream.append_frame(FRAMES[1])


def test_frames_out_of_order_in_time_are_refused(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    stream.append_frame(FRAMES[0], stamp=10.0)
    before = appended(stream)
    with pytest.raises(ValueError, match=r"time 9.500 s comes after one of 10.000 s"):
        stream.append_frame(FRAMES[1], stamp=9.5)
    with pytest.raises(ValueError, match="must increase"):
        stream.append_video_chunk(FRAMES[:2], stamps=[11.0, 11.0])
    with pytest.raises(ValueError, match="2 frames but 3 time stamps"):
        stream.append_video_chunk(FRAMES[:2], stamps=[11.0, 12.0, 13.0])
    with pytest.raises(ValueError, match="not a finite"):
        stream.append_frame(FRAMES[1], stamp=float("nan"))
    with pytest.raises(ValueError, match="fps is 0"):
        stream.append_frame(FRAMES[1], fps=0)
    with pytest.raises(ValueError, match="without frames"):
        stream.append_video_chunk([])
    with pytest.raises(ValueError, match="differ in size"):
        stream.append_video_chunk([FRAMES[0], photo(30, 30)])
    assert appended(stream) == before


def test_a_chunk_larger_than_its_window_is_refused(folder: Path) -> None:
    model = QwenModel.load(folder, device="cpu")
    stream = VideoStreamingInference(model, max_cache_tokens=100)
    stream.append_frame(photo(112, 84))
    before = appended(stream)
    with pytest.raises(ValueError, match=r"chunk of 98 tokens.*lower the resolution"):
        stream.append_frame(photo(336, 224))
    assert appended(stream) == before
    with pytest.raises(ValueError, match="must exceed the sink"):
        VideoStreamingInference(model, max_cache_tokens=20).append_frame(photo(112, 84))
    with pytest.raises(ValueError, match="max_cache_tokens is 5"):
        VideoStreamingInference(model, max_cache_tokens=5).prime(PROMPT)


@pytest.mark.parametrize("replace", [False, True])
def test_running_out_of_memory_in_mid_append_changes_nothing(
    model: QwenModel, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=100)
    for frame in FRAMES:
        stream.append_frame(frame)
    before = appended(stream)
    passed = []

    def fail_in_the_second_layer(self: Any, layer: int, query: Any, key: Any, value: Any) -> Any:
        passed.append(layer)
        if layer == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attend(self, layer, query, key, value)

    from vlm_perception.engine import cache_manager

    attend = cache_manager.EagerStep.attend
    with monkeypatch.context() as patch:
        patch.setattr(cache_manager.EagerStep, "attend", fail_in_the_second_layer)
        with pytest.raises(torch.OutOfMemoryError):
            stream.append_frame(FRAMES[0], text_content="tag", replace_newest=replace)
    assert passed == [0, 1]
    assert appended(stream) == before
    stream.append_frame(FRAMES[0])


def test_a_frame_can_only_replace_a_frame(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    for prepare in (lambda: None, lambda: stream.prime(PROMPT)):
        prepare()
        with pytest.raises(ValueError, match="newest chunk is not a frame"):
            stream.append_frame(FRAMES[0], replace_newest=True)


@pytest.mark.parametrize(
    ("budget", "sink", "window", "message"),
    [
        (0, 0, None, "max_cache_tokens is 0"),
        (100, 100, None, "sink_size 100 does not fit"),
        (100, -1, None, "sink_size -1"),
        (100, 40, 61, "window_size 61"),
        (100, 40, 0, "window_size 0"),
    ],
)
def test_impossible_budgets_are_refused(budget: int, sink: int, window: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvictionConfig(budget, sink, window)


def test_a_picture_size_off_the_grid_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"100x84.*multiples of 28"):
        QwenModel.load(folder, size=(100, 84))


def test_the_same_seed_makes_the_same_tiny_model(tmp_path: Path, folder: Path) -> None:
    again = make_tiny_model(tmp_path / "again", scale=5.0)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_items_know_their_kinds(model: QwenModel) -> None:
    stream = VideoStreamingInference(model)
    tokens = stream.model.prepare([Image(FRAMES[0]), Video(FRAMES[:2], [0.0, 0.5])])
    assert tokens.runs == (("text", 1), ("image", 12), ("text", 2), ("video", 12), ("text", 1))


# -- level 2, and time in the positions --------------------------------------------------------------------------
def test_level_2_keeps_chunks_spread_evenly_over_the_whole_time(model: QwenModel) -> None:
    stream = VideoStreamingInference(model, max_cache_tokens=200, sampled_tokens=60)
    stream.prime(PROMPT)
    for i in range(100):
        stream.append_frame(FRAMES[i % 8])
        assert stream.cache.length <= 200
        assert stream.cache.length == stream.cache.tracker.tokens
    chunks = stream.cache.tracker.chunks
    sampled = [chunk.id for chunk in chunks[1 : len(stream.cache.segments)]]
    assert sampled == [32, 64]
    assert stream.get_cache_info()["sampled_tokens"] == 28
    assert [chunk.id for chunk in chunks[len(stream.cache.segments) :]] == list(range(92, 101))


def test_level_2_leaves_no_gap_of_positions(folder: Path, tmp_path: Path) -> None:
    """With one layer the keys depend on nothing evicted, so the oracle can compute what is kept afresh."""
    shallow = make_tiny_model(tmp_path / "shallow", seed=1, scale=5.0, layers=1)
    model, oracle = QwenModel.load(shallow, size=(112, 84), device="cpu"), Oracle(shallow)
    stream = VideoStreamingInference(model, max_cache_tokens=130, sampled_tokens=45)
    stream.prime(PROMPT)
    for i in range(30):
        stream.append_frame(FRAMES[i % 8])
    kept = [chunk.id for chunk in stream.cache.tracker.chunks[1:]]
    assert kept[0] < kept[-1] - 15
    fresh: list[Item] = [Text(PROMPT), *(Image(FRAMES[(i - 1) % 8]) for i in kept), Text("What do you see?")]
    expected, _ = oracle.run(model, fresh)
    with torch.inference_mode():
        tokens = stream.model.prepare(fresh[-1:])
        logits = model.decoder.logits(stream._forward(tokens))
    assert (logits - expected[-len(tokens) :]).abs().max() < 1e-4


def test_time_jumps_put_the_time_between_chunks_into_the_positions(model: QwenModel) -> None:
    apart = {}
    for seconds in (1.0, 5.0):
        for jumps in (False, True):
            stream = VideoStreamingInference(model, time_jumps=jumps)
            stream.append_frame(FRAMES[0], stamp=0.0)
            stream.append_frame(FRAMES[1], stamp=seconds)
            apart[seconds, jumps] = stream.model.stream_state.next_position
    assert apart[1.0, False] == apart[5.0, False], "between single pictures positions say nothing of time"
    assert apart[5.0, True] - apart[1.0, True] == 4 * model.tokens_per_second
