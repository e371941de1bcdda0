"""The engine as a script uses it, from the first call to the last: with a given model, a folder, a stream model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_frames
from PIL import Image as PILImage

from vlm_perception.engine import (
    EvictionConfig,
    KVCacheEvictor,
    ModelError,
    QwenModel,
    StreamQwenModel,
    VideoStreamingInference,
)

FRAMES = make_frames(12)


@pytest.fixture
def processor(folder: Path) -> Any:
    """As AutoProcessor gives it; transformers cannot build one without torchvision, so of its two parts."""
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(folder), image_processor=pictures)


@pytest.fixture
def checkpoint(folder: Path) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def test_a_script_with_transformers_model_and_processor(
    checkpoint: Any, processor: Any, folder: Path
) -> None:
    config = EvictionConfig(max_cache_tokens=120, sink_size=0, window_size=None)
    engine = VideoStreamingInference(checkpoint, processor, "cpu", config)
    images = [PILImage.fromarray(frame) for frame in FRAMES]
    engine.append_frame(images[0], as_video=False, fps=2.0, text_content="UAV camera frame.")
    info = engine.get_cache_info()
    assert engine.cache.evictor.effective_sink_size == info["cache_seq_length"]
    engine.append_video_chunk(images[1:5], fps=2.0)
    for image in images[5:]:
        engine.append_frame(image, True, 2.0)
    assert engine.cache.evictor.total_evictions > 0
    assert engine.get_cache_info()["chunks_encoded"] == 9
    answer, metrics = engine.ask(
        "What do you see?", max_new_tokens=8, do_sample=True, temperature=0.3, top_p=0.9
    )
    assert isinstance(answer, str)
    assert metrics["ttft"] > 0
    assert engine.ask_choice("Is the path free?", ["yes", "no"])[0] in ("yes", "no")

    engine.cache.snapshot(engine.model)
    length = engine.get_cache_info()["cache_seq_length"]
    engine.ask("Remember this.", max_new_tokens=2)
    engine.cache.restore(engine.model)
    assert engine.get_cache_info()["cache_seq_length"] == length

    engine.ask("And this.", max_new_tokens=2, update_state=True)
    engine.reset()
    assert engine.get_cache_info()["cache_seq_length"] == 0

    other = VideoStreamingInference(folder, None, "cpu", config)
    for each in (engine, other):
        each.append_frame(images[0])
    assert torch.equal(engine.cache.live_keys(), other.cache.live_keys()), "a folder's model is the same"


def test_a_stream_model_of_a_folder(folder: Path) -> None:
    model = StreamQwenModel.from_pretrained(folder, device="cpu")
    engine = VideoStreamingInference(model, eviction_config=EvictionConfig(200))
    engine.append_frame(FRAMES[0])
    assert engine.model is model
    assert model.stream_state.next_position > 0


def test_the_evictor_alone() -> None:
    evictor = KVCacheEvictor(EvictionConfig(max_cache_tokens=100_000, sink_size=0, window_size=None))
    evictor.update_chunk_stats(5389)
    evictor.set_first_chunk_info(5389)
    assert evictor.effective_sink_size == 5389
    assert evictor.window_size == 100_000 - 5389
    assert not evictor.should_evict(94_611)
    assert evictor.should_evict(94_612)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_pil_images_of_any_mode_are_pictures(model: QwenModel, mode: str) -> None:
    image = PILImage.fromarray(FRAMES[0]).convert(mode)
    stream, same = VideoStreamingInference(model), VideoStreamingInference(model)
    stream.append_frame(image)
    same.append_frame(np.asarray(image.convert("RGB")))
    assert torch.equal(stream.cache.live_keys(), same.cache.live_keys())


@pytest.mark.parametrize("key", ["model.language_model.norm.weight", "model.visual.patch_embed.proj.weight"])
def test_a_given_model_whose_weights_are_not_finite_is_refused(
    checkpoint: Any, processor: Any, key: str
) -> None:
    checkpoint.get_parameter(key).data.view(-1)[3] = float("nan")
    with pytest.raises(ModelError, match=rf"^the given model: {key} holds values that are not finite"):
        VideoStreamingInference(checkpoint, processor)


def test_what_is_no_model_is_refused(processor: Any, checkpoint: Any, model: QwenModel) -> None:
    with pytest.raises(ModelError, match="a dict is no Qwen2_5_VLForConditionalGeneration"):
        VideoStreamingInference({}, processor)
    with pytest.raises(ModelError, match="a NoneType has no tokenizer and image_processor"):
        VideoStreamingInference(checkpoint)
    with pytest.raises(ValueError, match="put all of them into eviction_config"):
        VideoStreamingInference(model, eviction_config=EvictionConfig(100), max_cache_tokens=50)
