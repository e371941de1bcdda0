"""Passes on a GPU, captured once per size as CUDA graphs and replayed: decoded tokens, and chunks. Offsets in tensors.

Launching a pass of a 3B model kernel by kernel takes longer than the pass itself. A graph has fixed addresses and
sizes, so where the live region lies, which slots the new tokens take and which positions they have are inputs. Shorter
input is padded: what the padding writes lies behind the new tokens, which cannot see it, and the next pass overwrites
it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import attend_live
from .cache_manager import KVCacheManager
from .gpu import Capture, upload
from .stream_qwen_model import Tokens

# A sampled token, one with a run of forced ones, up to a whole decision's prompt; longer runs take the ordinary path.
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# A chunk's tokens are padded to a multiple of this, so that tags of different lengths take one pass.
CHUNK_STEP = 32
# A 640x480 pair has 391 tokens. Longer chunks take longer than their launches and go the ordinary way (estimated).
LARGEST_CHUNK = 512
# A stream's chunks have one size or two. So many are captured; chunks of further sizes go the ordinary way.
MAX_CHUNK_PASSES = 4


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
        self._chunk_passes: dict[int, ChunkPass] = {}
        on_gpu = cache.keys.device.type == "cuda"
        self._capture = Capture() if on_gpu else None

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

        The caller moves the length.
        """
        size = self.size(len(ids))
        if size is None:
            raise ValueError(f"{len(ids)} tokens fit no captured pass: the sizes are {SIZES}")
        self.cache.make_room(size)
        return self._pass(size).run(ids, position, self.cache.start, self.cache.length)

    def chunk_size(self, tokens: int) -> int | None:
        """The pass that a chunk of so many tokens takes; None if it must go the ordinary way."""
        size = -(-tokens // CHUNK_STEP) * CHUNK_STEP
        fits = size <= min(LARGEST_CHUNK, self.cache.capacity - self.cache.length)
        known = size in self._chunk_passes or len(self._chunk_passes) < MAX_CHUNK_PASSES
        return size if fits and known else None

    def prefill(self, tokens: Tokens) -> None:
        """A chunk's keys and values behind the cached tokens; `chunk_size` must have one. The length stays."""
        size = self.chunk_size(len(tokens))
        if size is None:
            raise ValueError(f"a chunk of {len(tokens)} tokens fits no captured pass")
        self.cache.make_room(size)
        if size not in self._chunk_passes:
            self._chunk_passes[size] = ChunkPass(self.cache, size, self._capture)
        self._chunk_passes[size].run(tokens, self.cache.start, self.cache.length)

    def _pass(self, size: int) -> CapturedPass:
        if size not in self._passes:
            self._passes[size] = CapturedPass(self.cache, size, self._capture)
        return self._passes[size]


class CapturedPass:
    """A pass of `size` tokens and its inputs: token ids, position of the first, where the cache starts, its length,
    and which token is the last real one."""

    def __init__(self, cache: KVCacheManager, size: int, capture: Capture | None):
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


class ChunkPass:
    """A prefill of `size` tokens and its inputs: embeddings, positions, where the cache starts and its length."""

    def __init__(self, cache: KVCacheManager, size: int, capture: Capture | None):
        self.cache, self.size = cache, size
        device, hidden = cache.keys.device, cache.decoder.shape.hidden
        self.embeddings = torch.zeros(size, hidden, dtype=cache.decoder.embedding.dtype, device=device)
        self.positions = torch.zeros(3, size, dtype=torch.long, device=device)
        self.place = torch.tensor(
            [cache.start, cache.length], device=device
        )  # to warm up behind everything cached
        self.steps = torch.arange(size, device=device)
        self.replay: Callable[[], Tensor] = capture.captured(self.compute) if capture else self.compute

    def run(self, tokens: Tokens, start: int, length: int) -> None:
        self.embeddings[: len(tokens)] = tokens.embeddings
        self.positions[:, : len(tokens)] = tokens.positions
        self.place.copy_(upload(torch.tensor([start, length]), self.place.device))
        self.replay()

    def compute(self) -> Tensor:
        decoder, (start, length) = self.cache.decoder, self.place.split(1)
        live = torch.cat([start, start + length + self.size]).int()
        step = StaticStep(self.cache.keys, self.cache.values, start + length + self.steps, live)
        return decoder.forward(self.embeddings, decoder.rope.phases(self.positions), step)
