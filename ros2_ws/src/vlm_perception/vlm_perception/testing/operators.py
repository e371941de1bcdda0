"""Every way in which the engine computes attention, against float64: what bfloat16 may cost, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_perception.engine.attention import attend, attend_in_splits, attend_square
from vlm_perception.engine.decoder import rotate

# The error allowed on every path: root mean square of the difference to float64 over that of the result. Rounding the
# result alone costs 0.17 %, and each rounding of an intermediate adds to that by squares.
BOUND = 0.005
# Of the raw product q.k. Qwen2.5's key biases add such an offset to all keys of a head.
OFFSETS = (0, 500, 2000, 8000)


@dataclass(frozen=True)
class Case:
    """Inputs of one call: the last `new` of all keys and values belong to the queries; all of `dtype`."""

    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def new(self) -> int:
        return len(self.query)

    def in_buffer(self, start: int = 0, capacity: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values inside larger buffers of other numbers, and the live region (2,) int32 in them."""
        tokens = len(self.key)
        buffers = torch.randn(2, capacity or start + tokens, *self.key.shape[1:]).to(self.key.dtype)
        keys, values = buffers
        keys[start : start + tokens], values[start : start + tokens] = self.key, self.value
        return keys, values, torch.tensor([start, start + tokens], dtype=torch.int32)

    def exact(self, allowed: Tensor | None = None) -> Tensor:
        """The result in float64; allowed (new, new): what each new token sees of the others, by default a causal."""
        new, heads, dim = self.query.shape
        tokens, kv_heads, _ = self.key.shape
        visible = torch.ones(new, tokens, dtype=torch.bool)
        visible[:, tokens - new :] = (
            torch.ones(new, new, dtype=torch.bool).tril() if allowed is None else allowed
        )
        grouped = self.query.double().view(new, kv_heads, heads // kv_heads, dim)
        scores = torch.einsum("nkgd,mkd->kgnm", grouped, self.key.double()) / dim**0.5
        shares = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("kgnm,mkd->nkgd", shares, self.value.double()).reshape(new, heads, dim)


def make_case(
    new: int,
    cached: int,
    offset: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
    *,
    heads: int = 16,
    kv_heads: int = 2,
    dim: int = 128,
    seed: int = 0,
) -> Case:
    """Random inputs (the 3B's attention by default) whose products q.k are all raised by `offset`."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(new, heads, dim, generator=generator)
    key, value = torch.randn(2, cached + new, kv_heads, dim, generator=generator).unbind(0)
    query[..., 7] = key[..., 7] = offset**0.5
    return Case(query.to(dtype), key.to(dtype), value.to(dtype))


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def sparse_tree(new: int) -> Tensor:
    """Causal, but the second half does not see the first half's last tokens: two answers side by side."""
    tree = torch.ones(new, new, dtype=torch.bool).tril()
    tree[new // 2 :, new // 4 : new // 2] = False
    return tree


def _eager(case: Case) -> float:
    return relative_error(attend(case.query, case.key, case.value), case.exact())


def _tree(case: Case) -> float:
    tree = sparse_tree(case.new)
    return relative_error(attend(case.query, case.key, case.value, tree), case.exact(tree))


def _splits(case: Case) -> float:
    return relative_error(attend_in_splits(case.query, *case.in_buffer(5), splits=16), case.exact())


def _square(case: Case) -> float:
    alone = Case(case.query, case.key[-case.new :], case.value[-case.new :])
    found, _ = attend_square(alone.query, alone.key, alone.value)
    return relative_error(found.reshape(case.query.shape), alone.exact())


def _rotation(case: Case) -> float:
    angles = torch.arange(len(case.key)).double().unsqueeze(1) * 1e6 ** -torch.linspace(0, 1, 64).double()
    phases = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    pairs = torch.view_as_complex(case.key.double().unflatten(-1, (-1, 2)).contiguous())
    exact = torch.view_as_real(pairs * phases).flatten(-2)
    return relative_error(rotate(case.key, phases.to(torch.complex64)), exact)


PATHS: dict[str, Callable[[Case], float]] = {
    "eager": _eager,
    "tree": _tree,
    "splits": _splits,
    "square": _square,
    "rotation": _rotation,
}


def bf16_errors() -> dict[str, float]:
    """The largest error of each path over some sizes and all offsets."""
    sizes = ((1, 50), (1, 3000), (8, 0), (8, 1000), (64, 300))
    return {
        name: max(path(make_case(new, cached, offset)) for new, cached in sizes for offset in OFFSETS)
        for name, path in PATHS.items()
    }
