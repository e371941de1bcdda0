"""The vision tower: Qwen2.5-VL's, over the checkpoint's own weights, one item at a time.

Patches are ordered once so that every window, and every frame, is contiguous; windows of one shape then go through
attention together (transformers splits them in a Python loop per layer, with a wait for the device in each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gpu import Capture
from .preprocess import Grid

MAX_LAYOUTS = 16
# A 640x480 pair has 1,564 patches. Larger items take longer than their launches and go the ordinary way (estimated).
LARGEST_CAPTURED = 4096
# A stream has pictures of one size or two.
MAX_CAPTURED = 4


@dataclass(frozen=True)
class Layout:
    """How one grid's patches lie: `order` and its inverse over groups of merge * merge patches, rotary tables
    cos and sin (patches, 1, dim), and the windows of one frame as runs of (number of windows, patches in each)."""

    order: Tensor
    inverse: Tensor
    cos: Tensor
    sin: Tensor
    windows: tuple[tuple[int, int], ...]


class VisionTower:
    """Weights and forward pass; the modules are transformers' own, only their order of work is ours."""

    def __init__(self, tower: Any):
        self.config = config = tower.config
        self.blocks, self.merger = tower.blocks, tower.merger
        # The patch embedding as the matrix product it is: as Conv3d it takes 40 times as long in bfloat16 on a CPU.
        self.embedding = tower.patch_embed.proj.weight.detach().flatten(1)
        self.heads, self.head_dim = config.num_heads, config.hidden_size // config.num_heads
        exponents = torch.arange(0, self.head_dim // 2, 2, dtype=torch.float) / (self.head_dim // 2)
        self.frequencies = 10_000.0**-exponents  # two axes share the head, base 10,000 as trained
        self._layouts: dict[Grid, Layout] = {}

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patches of one item (patches, pixels) to embeddings (tokens, hidden of the decoder)."""
        layout, unit = self.layout(grid), grid.merge**2
        x = F.linear(patches.to(self.embedding.dtype), self.embedding)
        x = x.unflatten(0, (-1, unit))[layout.order].flatten(0, 1)
        frames = ((1, grid.h * grid.w),)
        for i, block in enumerate(self.blocks):
            runs = frames if i in self.config.fullatt_block_indexes else layout.windows
            x = x + self._attend(block.attn, _norm(block.norm1, x), layout, grid.t, runs)
            x = x + block.mlp(_norm(block.norm2, x))
        merged: Tensor = self.merger.mlp(_norm(self.merger.ln_q, x).view(len(x) // unit, -1))
        return merged[layout.inverse]

    def _attend(
        self, attention: Any, x: Tensor, layout: Layout, frames: int, runs: Sequence[tuple[int, int]]
    ) -> Tensor:
        q, k, v = attention.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(1)
        q, k = _rotate(q, layout.cos, layout.sin), _rotate(k, layout.cos, layout.sin)
        q, k, v = (part.unflatten(0, (frames, -1)) for part in (q, k, v))
        mixed, at = [], 0
        for count, size in runs:
            part = [x[:, at : at + count * size].unflatten(1, (count, size)).flatten(0, 1) for x in (q, k, v)]
            out = F.scaled_dot_product_attention(*(p.transpose(1, 2) for p in part))
            mixed.append(out.transpose(1, 2).reshape(frames, count * size, -1))
            at += count * size
        projected: Tensor = attention.proj(torch.cat(mixed, dim=1).flatten(0, 1))
        return projected

    def layout(self, grid: Grid) -> Layout:
        """Made once for each size of picture; a stream has one or two."""
        if grid not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[grid] = self._laid_out(grid)
        return self._layouts[grid]

    def _laid_out(self, grid: Grid) -> Layout:
        merge, config = grid.merge, self.config
        rows, columns = grid.h // merge, grid.w // merge
        side = config.window_size // merge // config.patch_size
        index = torch.arange(rows * columns).view(rows, columns)
        windows = [part for band in index.split(side, 0) for part in band.split(side, 1)]
        windows.sort(key=lambda part: -part.numel())  # equal sizes side by side; order among windows is free
        sizes = [part.numel() * merge**2 for part in windows]
        frame = torch.cat([part.flatten() for part in windows])
        order = (torch.arange(grid.t).unsqueeze(1) * len(frame) + frame).flatten()
        row, column = torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
        at = torch.stack([row, column], -1).view(rows, merge, columns, merge, 2).transpose(1, 2)
        at = at.reshape(rows * columns, merge**2, 2)[frame].flatten(0, 1).repeat(grid.t, 1)
        angles = (at.unsqueeze(-1) * self.frequencies).flatten(1).repeat(1, 2).unsqueeze(1)
        device = self.embedding.device
        runs = tuple((sizes.count(size), size) for size in dict.fromkeys(sizes))
        return Layout(
            order.to(device),
            order.argsort().to(device),
            angles.cos().to(device),
            angles.sin().to(device),
            runs,
        )


class CapturedTower:
    """The tower with its pass over each size of picture captured, for a GPU. Without `capture` (on a CPU, for tests)
    the same passes run as they are."""

    def __init__(self, tower: VisionTower, capture: Capture | None):
        self._tower, self._capture = tower, capture
        self._passes: dict[Grid, TowerPass] = {}

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """As the tower's. The result lies in a buffer of the pass and holds until the next picture of this size."""
        if grid not in self._passes:
            if len(patches) > LARGEST_CAPTURED or len(self._passes) >= MAX_CAPTURED:
                return self._tower.forward(patches, grid)
            self._passes[grid] = TowerPass(self._tower, patches, grid, self._capture)
        return self._passes[grid].run(patches)


class TowerPass:
    """The tower's pass over one grid. It keeps the layout, whose tensors a captured graph reads, alive."""

    def __init__(self, tower: VisionTower, patches: Tensor, grid: Grid, capture: Capture | None):
        self.tower, self.grid, self.layout = tower, grid, tower.layout(grid)
        self.patches = patches.to(tower.embedding.dtype, copy=True)
        self.replay: Callable[[], Tensor] = capture.captured(self.compute) if capture else self.compute

    def run(self, patches: Tensor) -> Tensor:
        self.patches.copy_(patches)
        return self.replay()

    def compute(self) -> Tensor:
        return self.tower.forward(self.patches, self.grid)


def _norm(norm: Any, x: Tensor) -> Tensor:
    """transformers' own takes five kernels and a float32 copy."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
