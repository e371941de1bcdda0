"""A random tiny Qwen2.5-VL in Hugging Face's layout, for tests and trials: the same architecture and code path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vlm_perception.engine.preprocess import PictureFormat
from vlm_perception.engine.qwen import QwenModel

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TOOL_TOKENS = ["<tool_call>", "</tool_call>"]
_WORDS = """You are a helpful assistant that sees the video of a drone. What do you see? The red beacon is on the left.
system user assistant {"name": "move_forward", "arguments": {"distance_m": 4}} {"name": "turn_left", "arguments":
{"angle_deg": 30}} turn_right climb descend hover seconds look_around fly_towards finish reason reached not_found"""


def make_tokenizer(words: str = _WORDS, vocabulary: int = 512) -> Any:
    """A byte-level BPE tokenizer with Qwen's special tokens, trained on `words`; at most `vocabulary` tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS) - len(TOOL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in TOOL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def make_config(
    tokenizer: Any,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 96,
    vision_layers: int = 2,
    vision_hidden: int = 32,
    vision_heads: int = 2,
    vision_intermediate: int = 64,
    vocabulary: int | None = None,
) -> Any:
    """A Qwen2_5_VLConfig of these sizes for this tokenizer; pictures in patches of 14, merged 2 x 2."""
    from transformers import Qwen2_5_VLConfig

    quarter = (
        hidden // heads // 8
    )  # frequencies are shared 1 : 1.5 : 1.5 between time, rows and columns, as in Qwen's
    time = 2 * quarter
    rows = (hidden // heads // 2 - time) // 2
    sections = [hidden // heads // 2 - 2 * rows, rows, rows]
    ids = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary or len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
            "bos_token_id": ids("<|endoftext|>"),
            "eos_token_id": ids("<|im_end|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": vision_intermediate,
            "num_heads": vision_heads,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [vision_layers - 1],
            "window_size": 112,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )


def make_tiny_model(folder: str | Path, seed: int = 0, scale: float = 1.0, **sizes: Any) -> Path:
    """Write a random model folder and return it. scale: factor on the initial weights; `sizes` as in `make_config`.

    transformers initialises with a deviation of 0.02, with which attention in a tiny model hardly looks at anything;
    a larger scale makes every token matter, so that tests of exactness mean something.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = Path(folder)
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer, **sizes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(scale)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.02 * scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    picture = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 1280}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture))
    return folder


# Qwen2.5-VL-3B-Instruct's shape (its config.json).
SHAPE_3B = {
    "layers": 36,
    "hidden": 2048,
    "heads": 16,
    "kv_heads": 2,
    "intermediate": 11008,
    "vocabulary": 151936,
    "vision_layers": 32,
    "vision_hidden": 1280,
    "vision_heads": 16,
    "vision_intermediate": 3420,
}
# Its preprocessor_config.json: 1920x1080 stays 1932x1092, four frames of it 5,382 tokens.
PICTURE_3B = PictureFormat(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)


def random_checkpoint(sizes: dict[str, int], device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """transformers' model of any shape with random weights, made in memory, and a tokenizer."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer, default = make_tokenizer(), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            checkpoint = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer, **sizes))
    finally:
        torch.set_default_dtype(default)
    # RoPE's frequencies stay float32 whatever the weights are
    rotary = checkpoint.model.language_model.rotary_emb
    rotary.inv_freq = rotary.compute_default_rope_parameters(rotary.config)[0].to(device, torch.float32)
    return checkpoint.eval().requires_grad_(False), tokenizer


def random_model(
    sizes: dict[str, int], device: str, dtype: torch.dtype, picture: PictureFormat | None = None
) -> QwenModel:
    """For speed and memory, which do not depend on the weights."""
    checkpoint, tokenizer = random_checkpoint(sizes, device, dtype)
    return QwenModel(checkpoint, tokenizer, picture or PictureFormat(), device)
