"""Decoding on a GPU: short passes captured once per size as CUDA graphs and replayed, all offsets in tensors.

Launching a pass of a 3B model kernel by kernel takes longer than the pass itself. A graph has fixed addresses and
sizes, so where the live region lies, which slots the new tokens take and which positions they have are inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import attend_static
from .cache_manager import KVCacheManager

# A sampled token, or one with a run of forced ones; longer runs take the ordinary path.
SIZES = (1, 2, 4, 8, 16, 32)
# 64 splits times 2 KV heads are about one block for each of an H200's 132 multiprocessors.
SPLITS = 64


class StaticStep:
    """One forward pass, its offsets tensors: `slots` (n,) to write to, `bounds` (splits + 1,) of what is cached."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor, bounds: Tensor):
        self.keys, self.values, self.slots, self.bounds = keys, values, slots, bounds

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(0, self.slots, key)
        values.index_copy_(0, self.slots, value)
        return attend_static(query, key, value, keys, values, self.bounds)


class DecodeGraphs:
    """Captured passes over one stream's cache. On a CPU the same functions run without a capture (for tests)."""

    largest = SIZES[-1]

    def __init__(self, cache: KVCacheManager):
        self.cache, self.device = cache, cache.keys.device
        self._passes: dict[int, _Pass] = {}

    def run(self, ids: list[int], position: int) -> Tensor:
        """Logits (vocabulary,) after `ids`, written behind the cached tokens from `position` on.

        The caller moves the length. A pass is padded to the next size: what the padding writes lies behind the new
        tokens, which cannot see it, and is overwritten by the next pass.
        """
        size = next(s for s in SIZES if s >= len(ids))
        self.cache.make_room(size)
        if size not in self._passes:
            self._passes[size] = _Pass(self.cache, size)
        return self._passes[size].run(ids, position, self.cache.start, self.cache.length)


class _Pass:
    """A pass of `size` tokens and its inputs: token ids, position of the first, where the cache starts, its length,
    and which token is the last real one."""

    def __init__(self, cache: KVCacheManager, size: int):
        self.cache, self.size = cache, size
        device = cache.keys.device
        self.inputs = torch.zeros(size + 4, dtype=torch.long, device=device)
        self.steps = torch.arange(size, device=device)
        self.splits = torch.arange(SPLITS + 1, device=device)
        self.replay: Callable[[], Tensor] = self._compute
        if device.type == "cuda":
            self.replay = self._captured()

    def run(self, ids: list[int], position: int, start: int, length: int) -> Tensor:
        row = [*ids, *[0] * (self.size - len(ids)), position, start, length, len(ids) - 1]
        self.inputs.copy_(torch.tensor(row), non_blocking=True)
        return self.replay()

    def _compute(self) -> Tensor:
        decoder, (position, start, length, last) = self.cache.decoder, self.inputs[self.size :].split(1)
        slots = start + length + self.steps
        bounds = (start + length * self.splits // SPLITS).int()
        step = StaticStep(self.cache.keys, self.cache.values, slots, bounds)
        phases = decoder.rope.phases((position + self.steps).expand(3, -1))
        hidden = decoder.forward(decoder.embed(self.inputs[: self.size]), phases, step)
        return decoder.logits(hidden.index_select(0, last))[0]

    def _captured(self) -> Callable[[], Tensor]:
        self.inputs[self.size + 1] = self.cache.start + self.cache.length  # warm up behind everything cached
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._compute()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
