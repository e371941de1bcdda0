"""The shipped folder: small, whole, in the present serving form, and the same model to transformers and the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from nav_agent import toolset
from nav_agent.prompts import load_prompt
from nav_pilot import STREAMING, model_folder
from nav_pilot.data import TrainingStream, fly_world
from nav_pilot.evaluate import EnginePilot
from nav_pilot.learn import TextEncoder, TrainingModel, make_batch, to_pixels
from nav_pilot.model import (
    CONTROL_TOKENS,
    HEIGHT,
    MARKUP_TOKENS,
    MODE_FRAMES,
    WIDTH,
    make_tokenizer,
    phrases,
    pilot_prime_text,
    serving_form,
)
from vlm_perception.engine.preprocess import PictureFormat, patchify
from vlm_perception.prompting import RECALLED_LABEL
from vlm_perception.serving_form import ServingForm

SHIPPED = sorted(path.name for path in model_folder().parent.glob("model*") if path.is_dir())
RETRAIN = "prompt or tools have changed; retrain with `python -m nav_pilot.train`:\n"


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )


@pytest.fixture(scope="module")
def words(folder: Path) -> TextEncoder:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return TextEncoder(tokenizer)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_folder_is_whole_and_small(name: str) -> None:
    sizes = {path.name: path.stat().st_size for path in _folder(name).iterdir()}
    assert {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "serving_form.json",
        "tokenizer.json", "tokenizer_config.json", "training.json", "README.md",
    } <= set(sizes)  # fmt: skip
    assert sum(sizes.values()) < 16_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_the_serving_form_is_that_of_the_present_prompt_and_tools(name: str, words: TextEncoder) -> None:
    form = ServingForm.load(_folder(name))
    difference = form.difference(load_prompt("pilot"), toolset.tool_schemas())
    assert not difference, RETRAIN + difference
    assert form == serving_form(len(words.prime), _record(name)["mode"]), RETRAIN


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tokenizer_is_that_of_the_present_prompt(name: str) -> None:
    shipped = AutoTokenizer.from_pretrained(_folder(name), local_files_only=True)
    assert shipped.get_vocab() == make_tokenizer().get_vocab(), RETRAIN


@pytest.mark.parametrize("name", SHIPPED)
def test_the_record_names_no_seed_above_a_thousand(name: str) -> None:
    record = _record(name)
    assert max(record["training_seeds"] + record["held_out_seeds"]) <= 1000
    assert record["held_out"]["accuracy"] > 0.7


@pytest.mark.parametrize("name", SHIPPED)
def test_pilots_of_a_comparison_were_trained_from_the_same_weights_on_the_same_flights(name: str) -> None:
    record, shipped = _record(name), _record(model_folder().name)
    by_name = name.removeprefix("model-")
    assert record["mode"] == (by_name if by_name in MODE_FRAMES else STREAMING)
    assert record["scenes"] == shipped["scenes"]
    assert record["samples"] == shipped["samples"]
    assert _from_nothing(record) == _from_nothing(shipped)


def _folder(name: str) -> Path:
    return model_folder().with_name(name)


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((_folder(name) / "training.json").read_text())
    return record


def _from_nothing(record: dict[str, Any]) -> dict[str, Any]:
    """The record of the training that began without weights."""
    return _from_nothing(record["started_from"]) if record["started_from"] else record


def test_any_text_can_be_said_and_control_tokens_are_one_token_each(words: TextEncoder) -> None:
    for text in ("Flieg zum roten Turm, höher!", "去红色灯塔", "fly to the red beacon", "a\tb  c\n\n"):
        assert words.tokenizer.decode(words.encode(text)) == text
    for token in (*CONTROL_TOKENS, *MARKUP_TOKENS):
        assert len(words.encode(token)) == 1


def test_unknown_words_reach_the_model_as_words(words: TextEncoder) -> None:
    """Phrases are one token only where the prompt, calls and results say them: what an instruction says is spelt, and
    two words that were never seen differ."""
    phrased = {words.encode(text)[0] for text in phrases()}
    known = (
        "steer for the yellow automobile beside the zebra",
        "steer for the yellow automobile beside the gnu",
    )
    first, second = (words.encode(text) for text in known)
    assert first != second
    assert not phrased & {*first, *second}
    assert len(words.encode(" automobile")) > 1


def test_transformers_and_the_engine_give_equal_logits(
    checkpoint: Qwen2_5_VLForConditionalGeneration, pilot: EnginePilot, words: TextEncoder
) -> None:
    frames = [np.random.default_rng(i).integers(0, 256, (240, 320, 3), np.uint8) for i in range(3)]
    tail = words.encode("fly to the red beacon<|im_end|>\n<|im_start|>assistant\n<tool_call>\n")
    pilot.begin()
    for i, frame in enumerate(frames):
        pilot.stream.append_frame(frame, stamp=float(i + 1))
    ours = _engine_logits(pilot, tail)

    form = PictureFormat(size=(WIDTH, HEIGHT))
    pixels, grids = zip(*(patchify([frame], form) for frame in frames), strict=True)
    picture = [words.vision_start, *[checkpoint.config.image_token_id] * 12, words.vision_end]
    ids = torch.tensor([[*words.prime, *picture * 3, *tail]])
    grid = torch.tensor([[g.t, g.h, g.w] for g in grids])
    kind = (ids == checkpoint.config.image_token_id).int()
    with torch.no_grad():
        theirs = checkpoint(
            input_ids=ids, pixel_values=torch.cat(pixels), image_grid_thw=grid, mm_token_type_ids=kind
        ).logits[0, -len(tail) :]
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_training_sees_what_the_engine_serves(
    checkpoint: Qwen2_5_VLForConditionalGeneration, pilot: EnginePilot, words: TextEncoder, renderer: object
) -> None:
    flight = fly_world(3, renderer)[0]
    samples = [replace(a, flown=True) for a in flight.samples if a.frame < 12][:12]
    labels = ("",) * 3 + (RECALLED_LABEL,) + ("",) * 8
    stream = TrainingStream(
        flight.frames[:12], samples, flight.sights[:12], flight.places[:12], labels=labels
    )
    assert min(a.frame for a in samples) < 3 < max(a.frame for a in samples)
    assert len({a.answer for a in samples}) > 1
    batch = make_batch(words, [stream], 99, np.random.default_rng(0))
    with torch.no_grad():
        trained = TrainingModel(checkpoint, words)
        trained = iter(trained(batch, trained.encode_pictures(to_pixels(batch.frames)))[0])
    pilot.begin()
    done = 0
    for ask in stream.samples:
        for at in range(done, ask.frame + 1):
            if labels[at]:
                pilot.stream.append_recalled([stream.frames[at]], labels[at])
            else:
                pilot.stream.append_frame(stream.frames[at])
        done = ask.frame + 1
        tail, (call, free) = words.encode(ask.text), words.answer(ask.answer)
        served = _engine_logits(pilot, [*tail, *call[:-1]])
        for index in free:
            assert torch.allclose(served[len(tail) + index - 1], next(trained), atol=2e-3)


def _engine_logits(pilot: EnginePilot, ids: list[int]) -> torch.Tensor:
    stream = pilot.stream
    before = stream.cache.snapshot(stream.model)
    with torch.inference_mode():
        logits = stream.qwen.decoder.logits(stream._feed(ids)).clone()
    stream.cache.restore(stream.model, before)
    return logits


def test_the_primed_prompt_is_that_of_training(words: TextEncoder) -> None:
    assert words.prime == words.encode(pilot_prime_text())
