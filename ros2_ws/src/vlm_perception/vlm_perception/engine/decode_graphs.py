"""Decoding on a GPU: short passes captured once per size as CUDA graphs and replayed, all offsets in tensors.

Launching a pass of a 3B model kernel by kernel takes longer than the pass itself. A graph has fixed addresses and
sizes, so where the live region lies, which slots the new tokens take and which positions they have are inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import attend_live
from .cache_manager import KVCacheManager

# A sampled token, one with a run of forced ones, up to a whole decision's prompt; longer runs take the ordinary path.
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class StaticStep:
    """One forward pass, its offsets tensors: `slots` (n,) to write to, `live` (2,) from where to where keys are in use,
    the new ones included."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor, live: Tensor):
        self.keys, self.values, self.slots, self.live = keys, values, slots, live

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(0, self.slots, key)
        values.index_copy_(0, self.slots, value)
        return attend_live(query, keys, values, self.live)


class DecodeGraphs:
    """Captured passes over one stream's cache. On a CPU the same functions run without a capture (for tests)."""

    def __init__(self, cache: KVCacheManager):
        self.cache = cache
        self._passes: dict[int, CapturedPass] = {}
        on_gpu = cache.keys.device.type == "cuda"
        self._capture = _Capture() if on_gpu else None

    def size(self, tokens: int) -> int | None:
        """The pass that so many tokens take, padding included; None if they must go the ordinary way."""
        room = self.cache.capacity - self.cache.length
        return next((size for size in SIZES if tokens <= size <= room), None)

    def prepare(self) -> None:
        """Capture every size now, while nothing waits: a capture takes as long as several decisions."""
        for size in SIZES:
            if self._capture and self.size(size):
                self.cache.make_room(size)
                self._pass(size)

    def run(self, ids: list[int], position: int) -> Tensor:
        """Logits (vocabulary,) after `ids`, written behind the cached tokens from `position` on; `size` must have one.

        The caller moves the length. What the padding of a pass writes lies behind the new tokens, which cannot see it,
        and is overwritten by the next pass.
        """
        size = self.size(len(ids))
        if size is None:
            raise ValueError(f"{len(ids)} tokens fit no captured pass: the sizes are {SIZES}")
        self.cache.make_room(size)
        return self._pass(size).run(ids, position, self.cache.start, self.cache.length)

    def _pass(self, size: int) -> CapturedPass:
        if size not in self._passes:
            self._passes[size] = CapturedPass(self.cache, size, self._capture)
        return self._passes[size]


class CapturedPass:
    """A pass of `size` tokens and its inputs: token ids, position of the first, where the cache starts, its length,
    and which token is the last real one."""

    def __init__(self, cache: KVCacheManager, size: int, capture: _Capture | None):
        self.cache, self.size = cache, size
        device = cache.keys.device
        self.inputs = torch.zeros(size + 4, dtype=torch.long, device=device)
        self.steps = torch.arange(size, device=device)
        self.replay: Callable[[], Tensor] = self.compute
        if capture:
            self.inputs[size + 1] = cache.start + cache.length  # warm up behind everything cached
            self.replay = capture.captured(self.compute)

    def run(self, ids: list[int], position: int, start: int, length: int) -> Tensor:
        row = [*ids, *[0] * (self.size - len(ids)), position, start, length, len(ids) - 1]
        self.inputs.copy_(torch.tensor(row), non_blocking=True)
        return self.replay()

    def compute(self) -> Tensor:
        decoder, (position, start, length, last) = self.cache.decoder, self.inputs[self.size :].split(1)
        slots = start + length + self.steps
        live = torch.cat([start, start + length + self.size]).int()
        step = StaticStep(self.cache.keys, self.cache.values, slots, live)
        phases = decoder.rope.phases((position + self.steps).expand(3, -1))
        hidden = decoder.forward(decoder.embed(self.inputs[: self.size]), phases, step)
        return decoder.logits(hidden.index_select(0, last))[0]


class _Capture:
    """CUDA graphs that share one side stream and one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def captured(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            logits = compute()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
