"""A Qwen2.5-VL checkpoint in Hugging Face's layout, loaded once and shared by any number of streams."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .decoder import Decoder
from .device import check_cuda, choose_device
from .gpu import Capture, upload
from .model_folder import (
    ModelError,
    check_architecture,
    check_finite,
    checked_config,
    load_checkpoint,
    load_tokenizer,
    picture_format,
    picture_of,
    stop_tokens,
)
from .preprocess import Grid, PictureFormat
from .vision import CapturedTower, VisionTower

__all__ = ["ModelError", "QwenModel"]

# A node serves one prompt, an HTTP API a few; a compiled grammar of nine tools takes some 100 KB.
MAX_GRAMMARS = 32


class QwenModel:
    """Weights, vision tower, tokenizer and the few facts of the checkpoint. No state of any stream."""

    def __init__(
        self,
        checkpoint: Any,
        tokenizer: Any,
        picture: PictureFormat,
        device: torch.device | str = "cpu",
        stop_tokens: set[int] | None = None,
    ):
        """checkpoint: transformers' Qwen2_5_VLForConditionalGeneration, whose weights are taken over: it cannot be used
        afterwards. stop_tokens: what ends an answer beside the end of a turn."""
        config = checkpoint.config
        self.config, self.tokenizer, self.picture = config, tokenizer, picture
        self.decoder = Decoder.from_transformers(
            checkpoint.model.language_model, checkpoint.lm_head.weight.data, torch.device(device)
        )
        self.vision = VisionTower(checkpoint.model.visual.eval().requires_grad_(False).to(device))
        self.device, self.dtype = self.decoder.embedding.device, self.decoder.embedding.dtype
        self._captured_vision = CapturedTower(self.vision, Capture()) if self.device.type == "cuda" else None
        self.tokens_per_second = float(config.vision_config.tokens_per_second)
        self.image_pad, self.video_pad = config.image_token_id, config.video_token_id
        self.vision_start, self.vision_end = config.vision_start_token_id, config.vision_end_token_id
        self.end_of_turn: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.stop_tokens = {self.end_of_turn, tokenizer.eos_token_id, *(stop_tokens or ())} - {None}
        vocabulary = self.decoder.shape.vocabulary
        for token in self.stop_tokens:
            if not 0 <= token < vocabulary:
                raise ModelError(
                    f"token {token} is to end an answer (eos_token_id of generation_config.json, or <|im_end|> of "
                    f"tokenizer.json), but the model has {vocabulary} tokens: take all files of one model"
                )
        self._grammars: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        size: tuple[int, int] | None = None,
    ) -> QwenModel:
        """Load a folder (config.json, *.safetensors, tokenizer.json). ModelError says why one cannot be served.

        device: default the GPU if there is one. dtype: default bfloat16 there and float32 on a CPU. size: the
        pictures' (width, height) in front of the model; default is Qwen's own rule.
        """
        folder = Path(folder)
        config = checked_config(folder)
        picture = picture_format(folder, config, size)
        device, dtype = choose_device(folder, device, dtype)
        tokenizer, stops = load_tokenizer(folder), stop_tokens(folder)
        return cls(load_checkpoint(folder, dtype), tokenizer, picture, device, stops)

    @classmethod
    def from_transformers(
        cls, checkpoint: Any, processor: Any, device: str | torch.device | None = None
    ) -> QwenModel:
        """transformers' own model and processor, as they were loaded elsewhere. The model's weights are taken over, so
        it cannot be used afterwards."""
        problem = ""
        if getattr(getattr(checkpoint, "config", None), "model_type", None) != "qwen2_5_vl":
            problem = f"a {type(checkpoint).__name__} is no Qwen2_5_VLForConditionalGeneration"
        elif not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
            problem = f"a {type(processor).__name__} has no tokenizer and image_processor"
        if problem:
            raise ModelError(f"{problem}: give transformers' model with its processor, or the model's folder")
        check_architecture("the model's configuration", checkpoint.config.to_dict())
        device = torch.device(device or checkpoint.device)
        if device.type == "cuda":
            check_cuda(checkpoint.dtype)
        check_finite(checkpoint, lambda key: "the given model")
        stops = checkpoint.generation_config.eos_token_id
        stops = {stops} if isinstance(stops, int) else set(stops or ())
        return cls(checkpoint, processor.tokenizer, picture_of(processor.image_processor), device, stops)

    def tokenize(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def embed(self, tokens: list[int]) -> Tensor:
        return self.decoder.embed(upload(torch.tensor(tokens, dtype=torch.long), self.device))

    def encode_vision(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patches of one item to embeddings (tokens, hidden), to be used before the next item is encoded. The tower
        sees one chunk; order is the decoder's."""
        return (self._captured_vision or self.vision).forward(patches, grid)

    def grammar(self, text: str) -> Any:
        """A grammar compiled for this model's tokenizer (llguidance's matcher, to be copied); ValueError if it is none.

        The model owns what it compiled, so that dropping the model frees both.
        """
        from llguidance import LLMatcher

        if text not in self._grammars:
            matcher = LLMatcher(self._grammar_tokenizer, text)
            if matcher.is_error():
                raise ValueError(f"the grammar cannot be used: {matcher.get_error()}")
            while len(self._grammars) >= MAX_GRAMMARS:
                del self._grammars[next(iter(self._grammars))]
            self._grammars[text] = matcher
        return self._grammars[text]

    @cached_property
    def _grammar_tokenizer(self) -> Any:
        """llguidance's view of the tokenizer; it takes about a second to build for a large vocabulary."""
        import llguidance.hf

        return llguidance.hf.from_tokenizer(
            self.tokenizer, n_vocab=self.decoder.shape.vocabulary, eos_token=self.end_of_turn
        )
