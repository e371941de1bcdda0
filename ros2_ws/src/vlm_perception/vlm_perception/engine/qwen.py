"""A Qwen2.5-VL checkpoint in Hugging Face's layout, loaded once and shared by any number of streams."""

from __future__ import annotations

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .decoder import Decoder
from .preprocess import CLIP_MEAN, CLIP_STD, Grid, PictureFormat
from .vision import VisionTower


class ModelError(ValueError):
    """A model folder that cannot serve: what is wrong with it and what to do."""


class QwenModel:
    """Weights, vision tower, tokenizer and the few facts of the checkpoint. No state of any stream."""

    def __init__(self, checkpoint: Any, tokenizer: Any, picture: PictureFormat):
        """checkpoint: transformers' Qwen2_5_VLForConditionalGeneration, whose weights are taken over."""
        config = checkpoint.config
        self.config, self.tokenizer, self.picture = config, tokenizer, picture
        self.decoder = Decoder.from_transformers(
            checkpoint.model.language_model, checkpoint.lm_head.weight.data
        )
        self.vision = VisionTower(checkpoint.model.visual.eval().requires_grad_(False))
        self.device, self.dtype = self.decoder.embedding.device, self.decoder.embedding.dtype
        self.tokens_per_second = float(config.vision_config.tokens_per_second)
        self.image_pad, self.video_pad = config.image_token_id, config.video_token_id
        self.vision_start, self.vision_end = config.vision_start_token_id, config.vision_end_token_id
        self.end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.stop_tokens = {self.end_of_turn, tokenizer.eos_token_id} - {None}

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        size: tuple[int, int] | None = None,
    ) -> QwenModel:
        """Load a folder (config.json, *.safetensors, tokenizer.json).

        device: default the GPU if there is one. dtype: default bfloat16 there and float32 on a CPU. size: the
        pictures' (width, height) in front of the model; default is Qwen's own rule.
        """
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()  # a log file is no place for it
        folder = Path(folder)
        config = _checked_config(folder)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        picture = _picture_format(folder, config, size)
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
        checkpoint, report = loaded
        if report["missing_keys"]:
            raise ModelError(
                f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys'])[:5])} ..."
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(checkpoint.to(device), tokenizer, picture)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def embed(self, tokens: list[int]) -> Tensor:
        return self.decoder.embed(torch.tensor(tokens, dtype=torch.long, device=self.device))

    def encode_vision(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patches of one item to embeddings (tokens, hidden). The tower sees one chunk; order is the decoder's."""
        return self.vision.forward(patches, grid)

    @cached_property
    def grammar_tokenizer(self) -> Any:
        """llguidance's view of the tokenizer; it takes about a second to build for a large vocabulary."""
        import llguidance.hf

        return llguidance.hf.from_tokenizer(
            self.tokenizer, n_vocab=self.decoder.shape.vocabulary, eos_token=self.end_of_turn
        )


def _checked_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder} has no config.json: give a folder in Hugging Face's layout (config.json, "
            "*.safetensors, tokenizer.json), for instance a downloaded Qwen2.5-VL-3B-Instruct"
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{folder}/config.json is not JSON: {error}") from error
    if config.get("model_type") != "qwen2_5_vl":
        raise ModelError(
            f"{folder} holds a model of type {config.get('model_type')!r}; the engine runs 'qwen2_5_vl' (Qwen2.5-VL)"
        )
    text = config.get("text_config", config)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not rope.get("mrope_section"):
        raise ModelError(
            f"{folder}/config.json has no mrope_section: a model without M-RoPE has no place for time, row and column"
        )
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors: the weights are missing")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json: copy it from the model's own folder")
    return config


def _picture_format(folder: Path, config: dict[str, Any], size: tuple[int, int] | None) -> PictureFormat:
    vision = config.get("vision_config", {})
    file = folder / "preprocessor_config.json"
    own = json.loads(file.read_text()) if file.is_file() else {}
    bounds = own.get("size") or {}
    default = PictureFormat()
    return PictureFormat(
        patch=vision.get("patch_size", default.patch),
        merge=vision.get("spatial_merge_size", default.merge),
        temporal=vision.get("temporal_patch_size", default.temporal),
        min_pixels=own.get("min_pixels") or bounds.get("shortest_edge") or default.min_pixels,
        max_pixels=own.get("max_pixels") or bounds.get("longest_edge") or default.max_pixels,
        mean=tuple(own.get("image_mean", CLIP_MEAN)),
        std=tuple(own.get("image_std", CLIP_STD)),
        size=size,
    )
