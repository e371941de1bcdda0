"""How many tokens a cache may hold: what the memory there allows, said before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .decoder import DecoderShape
from .qwen import QwenModel

# The budget asked for with Qwen2.5-VL-3B on 24 GB: 3.7 GB of keys and values, 4.65 with the room to slide through.
DEFAULT_TOKENS = 100_000
# What one stream may add to the cache for an ask, question and answer: a drone's ask is 150 + 45 tokens, OVO-Bench's
# longest question a few hundred.
TAIL_TOKENS = 1024
# Kept free for the activations of a chunk of 1080p (0.7 GB), captured graphs and CUDA's own (chosen).
RESERVE_BYTES = int(1.5 * 2**30)


@dataclass(frozen=True)
class Budget:
    """A cache's budget in tokens, and why it is this one."""

    tokens: int
    reason: str


def headroom_tokens(budget: int) -> int:
    """What the window slides through before the live region has to move to the front again: with a quarter of the
    budget each appended token pays for moving at most four, a few per cent of reading them."""
    return max(budget // 4, 1)


def capacity_tokens(budget: int, tail_tokens: int) -> int:
    """Slots of the buffers."""
    return budget + headroom_tokens(budget) + tail_tokens


def bytes_per_token(shape: DecoderShape, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers: 36,864 for the 3B in bfloat16."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.itemsize


def default_budget(model: QwenModel, tail_tokens: int = TAIL_TOKENS) -> Budget:
    """The default where it fits beside the loaded model, else what fits."""
    fits = fitting_tokens(model, tail_tokens)
    if fits >= DEFAULT_TOKENS:
        return Budget(DEFAULT_TOKENS, f"{DEFAULT_TOKENS:,} tokens, the default, fit the free memory")
    if fits < 1:
        check_budget(model, DEFAULT_TOKENS, tail_tokens)
    free = _gib(free_bytes(model.device))
    return Budget(
        fits, f"{DEFAULT_TOKENS:,} tokens, the default, do not fit {free} of free memory: {fits:,} do"
    )


def check_budget(model: QwenModel, budget: int, tail_tokens: int = TAIL_TOKENS) -> None:
    """ValueError, with the budget that would do, if the buffers do not fit the GPU's free memory."""
    if model.device.type != "cuda":
        return  # a CPU's memory is handed out page by page, as it is written to
    fits = fitting_tokens(model, tail_tokens)
    if budget > fits:
        needed = capacity_tokens(budget, tail_tokens) * bytes_per_token(model.decoder.shape, model.dtype)
        remedy = f"give at most {fits:,}" if fits > 0 else "free memory on it, or take a larger GPU"
        raise ValueError(
            f"max_cache_tokens {budget:,} needs {_gib(needed)} and {_gib(RESERVE_BYTES)} to work in, but "
            f"{_gib(free_bytes(model.device))} of the GPU's memory are free: {remedy}"
        )


def fitting_tokens(model: QwenModel, tail_tokens: int = TAIL_TOKENS) -> int:
    """The largest budget that fits, in whole thousands where it is above one; 0 or less: none does."""
    token_bytes = bytes_per_token(model.decoder.shape, model.dtype)
    return tokens_that_fit(free_bytes(model.device), token_bytes, tail_tokens)


def tokens_that_fit(free: int, token_bytes: int, tail_tokens: int = TAIL_TOKENS) -> int:
    """The same by numbers: bytes free beside the weights, and bytes of one token in the cache."""
    tokens = ((free - RESERVE_BYTES) // token_bytes - tail_tokens) * 4 // 5
    return tokens // 1000 * 1000 if tokens >= 1000 else tokens


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still get on a device: free, or held idle by torch's allocator."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no line MemAvailable; give max_cache_tokens")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
