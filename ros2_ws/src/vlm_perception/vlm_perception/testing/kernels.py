"""How many kernels one captured pass launches on a GPU, counted without one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vlm_perception.engine.cache_manager import KVCacheManager
from vlm_perception.engine.decode_graphs import CapturedPass
from vlm_perception.engine.decoder import Decoder, DecoderShape, Layer, Rope
from vlm_perception.engine.kv_cache_eviction import EvictionConfig

# Operations that only reserve memory or look at it otherwise, beside the views.
_NO_KERNEL = {"aten::empty.memory_format", "aten::empty_like", "aten::_unsafe_view", "aten::detach"}


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (self.paused or func.is_view or func.name() in _NO_KERNEL):
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


class _FusedNorm(TorchFunctionMode):
    """CUDA has one kernel for `rms_norm`, where other devices take it apart."""

    operations: _Operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.rms_norm:
            return func(*args, **(kwargs or {}))
        self.operations.counts["aten::rms_norm"] += 1
        self.operations.paused = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.operations.paused = False


def count_kernels(shape: DecoderShape, intermediate: int, tokens: int = 1) -> Counter[str]:
    """Calls of ATen operations, views excluded, in a pass of `tokens` on the path that a GPU takes (tensors on the meta
    device have shapes and no numbers)."""

    def empty(*size: int) -> Tensor:
        return torch.empty(size, device="meta", dtype=torch.bfloat16)

    hidden, width = shape.hidden, shape.heads * shape.head_dim
    fused = width + 2 * shape.kv_heads * shape.head_dim
    layers = [
        Layer(
            empty(hidden),
            empty(fused, hidden),
            empty(fused),
            empty(hidden, width),
            empty(hidden),
            empty(2 * intermediate, hidden),
            empty(hidden, intermediate),
        )
        for _ in range(shape.layers)
    ]
    half = shape.head_dim // 2
    rope = Rope(torch.empty(half, device="meta"), [half - 2 * (half // 3), half // 3, half // 3])
    embedding = empty(shape.vocabulary, hidden)
    decoder = Decoder(shape, embedding, layers, empty(hidden), embedding, rope)
    cache = KVCacheManager(decoder, EvictionConfig(1000), 256, torch.bfloat16)
    one = CapturedPass(cache, tokens, None)
    operations, norms = _Operations(), _FusedNorm()
    norms.operations = operations
    with torch.no_grad(), operations, norms:
        one.compute()
    return operations.counts
