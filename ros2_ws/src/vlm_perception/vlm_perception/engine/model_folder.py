"""A model folder in Hugging Face's layout: read, and refused with one line where the engine cannot serve it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .preprocess import CLIP_MEAN, CLIP_STD, PictureFormat

DOWNLOAD = "download Qwen2.5-VL-3B-Instruct anew, or train the pilot anew"
# Sizes that must be whole and positive: where they stand, and what they are called.
_TEXT_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_VISION_SIZES = (
    "depth",
    "hidden_size",
    "num_heads",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
)
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


class ModelError(ValueError):
    """A model that cannot serve, in one line: the file, the key, its value and what to do."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"{path} is not JSON ({_one_line(error)}): {DOWNLOAD}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds a JSON {type(values).__name__} instead of an object: {DOWNLOAD}")
    return values


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder that is complete and of an architecture that the engine computes."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"model folder {folder} has no config.json: give a folder in Hugging Face's layout (config.json, "
            "*.safetensors, tokenizer.json), for instance a downloaded Qwen2.5-VL-3B-Instruct (ModelScope writes "
            "Qwen2___5-VL-3B-Instruct; Hugging Face's own cache has it below snapshots/)"
        )
    config = read_object(file)
    if config.get("model_type") != "qwen2_5_vl":
        raise ModelError(
            f"{file}: model_type is {config.get('model_type')!r}; the engine runs 'qwen2_5_vl' (Qwen2.5-VL)"
        )
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise ModelError(f"{file}: text_config and vision_config must be JSON objects: {DOWNLOAD}")
    _check_sizes(file, text, vision)
    check_architecture(file, config)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors: the weights are missing; {DOWNLOAD}")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json: copy it from the model's own folder")
    return config


def _check_sizes(file: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    for part, names in ((text, _TEXT_SIZES), (vision, _VISION_SIZES)):
        for name in names:
            value = part.get(
                name, 1
            )  # transformers has defaults; the weights' shapes are checked against them
            if type(value) is not int or value < 1:
                raise ModelError(f"{file}: {name} is {value!r}, must be a positive whole number: {DOWNLOAD}")
    hidden, heads, kv_heads = (
        text.get(n) for n in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    if hidden and heads and hidden % heads:
        raise ModelError(
            f"{file}: hidden_size {hidden} is no multiple of num_attention_heads {heads}: {DOWNLOAD}"
        )
    if heads and kv_heads and heads % kv_heads:
        raise ModelError(
            f"{file}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}: {DOWNLOAD}"
        )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    sections = rope.get("mrope_section") if isinstance(rope, dict) else None
    if not sections:
        raise ModelError(
            f"{file} has no mrope_section: a model without M-RoPE has no place for time, row and column"
        )
    whole = isinstance(sections, list) and len(sections) == 3 and all(type(n) is int for n in sections)
    if not whole or (hidden and heads and sum(sections) != hidden // heads // 2):
        raise ModelError(
            f"{file}: mrope_section is {sections!r}, must be three numbers that add up to half a head: {DOWNLOAD}"
        )


def check_architecture(file: Path | str, config: dict[str, Any]) -> None:
    """Refuse what would load and be computed wrongly. file: where the configuration stands."""
    text = config.get("text_config", config)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ModelError(
            f"{file}: rope type {kind!r} (a longer context by scaled positions) is not computed by the engine; set "
            'the type to "mrope", and max_cache_tokens within the context that the model was trained for'
        )
    layers = text.get("layer_types") or []
    if not isinstance(layers, list):
        raise ModelError(f"{file}: layer_types is {layers!r}, must be a list of names: {DOWNLOAD}")
    sliding = any("sliding" in str(layer) for layer in layers)
    if text.get("use_sliding_window") or sliding:
        raise ModelError(
            f"{file}: use_sliding_window is set; the engine attends to the whole cache. Take a checkpoint without it "
            "(Qwen2.5-VL-3B-Instruct has none); the engine's own window is max_cache_tokens"
        )
    quantized = config.get("quantization_config") or text.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            f"{file}: quantization_config is {method!r}; the engine computes with bfloat16 weights. Take the "
            "checkpoint that is not quantized (Qwen2.5-VL-3B-Instruct, 7.5 GB)"
        )
    vocabulary = text.get("vocab_size", math.inf)
    for name in _TOKENS:
        token = config.get(name)
        if type(token) is not int or not 0 <= token < vocabulary:
            raise ModelError(
                f"{file}: {name} is {token!r}, must be a token id below vocab_size ({vocabulary}): {DOWNLOAD}"
            )


def picture_format(folder: Path, config: dict[str, Any], size: tuple[int, int] | None) -> PictureFormat:
    """How the model wants its pictures, from config.json and preprocessor_config.json."""
    vision = config.get("vision_config", {})
    file = folder / "preprocessor_config.json"
    own = read_object(file) if file.is_file() else {}
    default = PictureFormat()
    return PictureFormat(
        patch=vision.get("patch_size", default.patch),
        merge=vision.get("spatial_merge_size", default.merge),
        temporal=vision.get("temporal_patch_size", default.temporal),
        min_pixels=_pixels(file, own, "min_pixels", "shortest_edge", default.min_pixels),
        max_pixels=_pixels(file, own, "max_pixels", "longest_edge", default.max_pixels),
        mean=_three(file, "image_mean", own.get("image_mean", CLIP_MEAN)),
        std=_three(file, "image_std", own.get("image_std", CLIP_STD), above=0.0),
        size=size,
    )


def picture_of(processor: Any) -> PictureFormat:
    """How an image processor of transformers prepares pictures."""
    where = "the image processor"
    return PictureFormat(
        patch=processor.patch_size,
        merge=processor.merge_size,
        temporal=processor.temporal_patch_size,
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
        mean=_three(where, "image_mean", processor.image_mean),
        std=_three(where, "image_std", processor.image_std, above=0.0),
    )


def _pixels(file: Path, own: dict[str, Any], key: str, size_key: str, default: int) -> int:
    """The number under `key`, or under `size_key` of "size", where newer files have it."""
    bounds = own.get("size")
    value = own.get(key) or (bounds.get(size_key) if isinstance(bounds, dict) else None)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise ModelError(f"{file}: {key} is {value!r}, must be a positive whole number: {DOWNLOAD}")
    return value


def _three(file: Path | str, key: str, values: Any, above: float = -math.inf) -> tuple[float, float, float]:
    """One number a colour, each finite and greater than `above`."""
    three = isinstance(values, list | tuple) and len(values) == 3
    if not three or not all(isinstance(value, int | float) and above < value < math.inf for value in values):
        wanted = "three finite numbers" if above < 0 else f"three finite numbers above {above:g}"
        raise ModelError(f"{file}: {key} is {values!r}, must be {wanted}: {DOWNLOAD}")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def stop_tokens(folder: Path) -> set[int]:
    """Tokens that end an answer by generation_config.json."""
    file = folder / "generation_config.json"
    given = read_object(file).get("eos_token_id") if file.is_file() else None
    tokens = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(token) is int for token in tokens):
        raise ModelError(
            f"{file}: eos_token_id is {given!r}, must be a token id or a list of them: {DOWNLOAD}"
        )
    return set(tokens)


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a broken file raises there
        raise ModelError(
            f"{folder}/tokenizer.json cannot be read ({_one_line(error)}): {DOWNLOAD}"
        ) from error


def load_checkpoint(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' Qwen2_5_VLForConditionalGeneration on the CPU, every weight of it from the folder."""
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(50)  # critical only: its load report has many lines; ours has one
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # a log file is no place for it
    try:
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True
        )
    except (
        Exception
    ) as error:  # transformers, safetensors and the validation of configurations have many kinds
        raise ModelError(f"{folder} cannot be loaded ({_one_line(error)}): {DOWNLOAD}") from error
    finally:
        logging.set_verbosity(verbosity)
    checkpoint, report = loaded
    _check_report(folder, report)
    check_finite(checkpoint, lambda key: weights_file(folder, key))
    return checkpoint


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    for key, found, wanted in report["mismatched_keys"]:
        raise ModelError(
            f"{weights_file(folder, key)}: {key} has shape {list(found)}, config.json asks for {list(wanted)}: weights "
            f"and configuration are of different models; {DOWNLOAD}"
        )
    for what, keys in (
        ("missing", report["missing_keys"]),
        ("not in config.json", report["unexpected_keys"]),
    ):
        if keys:
            first = min(keys)
            raise ModelError(
                f"{weights_file(folder, first)}: {first} is {what}, and {len(keys) - 1} others: weights and "
                f"configuration (numbers of layers) are of different models; {DOWNLOAD}"
            )


def check_finite(checkpoint: Any, file_of: Callable[[str], Path | str]) -> None:
    """Refuse weights that are not finite: one NaN or infinity in a tensor makes its sum one. file_of: where the weight
    of a key came from."""
    for key, weight in checkpoint.named_parameters():
        total: Tensor = weight.detach().sum(dtype=torch.float32)
        if not torch.isfinite(total):
            raise ModelError(
                f"{file_of(key)}: {key} holds values that are not finite (its sum is {float(total)}): "
                f"it is damaged or its training diverged; {DOWNLOAD}"
            )


def weights_file(folder: Path, key: str) -> Path:
    """The file of the folder that holds a weight, as far as its name tells (older checkpoints name the parts of a
    model otherwise); the only file, where there is but one."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    tail = key.split("layers.", 1)[-1].split("visual.", 1)[-1]
    for file in files if len(files) > 1 else []:
        with safe_open(file, "pt") as weights:
            if any(name.endswith(tail) for name in weights.keys()):  # noqa: SIM118 (no mapping)
                return file
    return files[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
