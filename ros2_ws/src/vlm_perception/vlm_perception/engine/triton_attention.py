"""Attention of a few new tokens over the live region in one pass over its keys and values, as a Triton kernel.

One program takes one split of the keys for one KV head and a block of (token, query head) rows: the queries that share
a KV head lie side by side, so keys and values are read once for all of them. A second, small kernel merges the splits.
Where the live region starts and stops is read on the device, so a captured graph can be replayed as the cache moves.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (a kernel's parameters are pointers and constants, which Triton's own types do not express)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Compiled for sm_80, sm_89 and sm_90: 38 KB of shared memory and 64 to 80 registers for one token, 53 to 66 KB and 142
# to 160 registers for several, no spills. Not timed yet.
KEYS_PER_BLOCK, WARPS, STAGES = 32, 4, 3
# Rows x splits in work at once: 64 splits of one block of rows for each of the 3B's 2 KV heads fill an H200.
SPLITS = 64
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _split_kernel(
    query,
    keys,
    values,
    live,
    outputs,
    lse,
    tokens,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    split, kv_head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, stop = tl.load(live), tl.load(live + 1)
    length = tl.cdiv(tl.cdiv(stop - start, COLUMNS), SPLITS) * COLUMNS
    first = start + split * length
    last = tl.minimum(first + length, stop)
    row, d = block * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    real = token < tokens
    row_at = token * (KV_HEADS * GROUP) + head
    q = tl.load(query + row_at[:, None] * DIM + d[None, :], mask=real[:, None], other=0.0)
    sees = stop - tokens + token  # itself and what is before it
    highest = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, DIM), tl.float32)
    for at in range(first, last, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        inside = column < last
        offset = (column[:, None].to(tl.int64) * KV_HEADS + kv_head) * DIM + d[None, :]
        k = tl.load(keys + offset, mask=inside[:, None], other=0.0)
        # scaled in float32, after the product: a rounded query would shift scores of keys with a large common offset
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        score = tl.where(inside[None, :] & (column[None, :] <= sees[:, None]), score, -1e30)
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.where(score > -1e29, tl.exp2(score - higher[:, None]), 0.0)
        shrink = tl.exp2(highest - higher)
        v = tl.load(values + offset, mask=inside[:, None], other=0.0)
        total = total * shrink + tl.sum(weight, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        highest = higher
    seen = tl.where(total > 0, total, 1.0)
    out = row_at * SPLITS + split
    tl.store(outputs + out[:, None] * DIM + d[None, :], mixed / seen[:, None], mask=real[:, None])
    tl.store(lse + out, tl.where(total > 0, highest + tl.log2(seen), -1e30), mask=real)


@triton.jit
def _merge_kernel(outputs, lse, merged, DIM: tl.constexpr, SPLITS: tl.constexpr):
    row, split, d = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, DIM)
    each = tl.load(lse + row * SPLITS + split)
    share = tl.exp2(each - tl.max(each, 0))
    output = tl.load(outputs + (row * SPLITS + split[:, None]) * DIM + d[None, :])
    mixed = tl.sum(output * share[:, None], 0) / tl.sum(share, 0)
    tl.store(merged + row * DIM + d, mixed.to(merged.dtype.element_ty))


def attend_live(query: Tensor, keys: Tensor, values: Tensor, live: Tensor, splits: int = SPLITS) -> Tensor:
    """As `attention.attend_live`: query (n, heads, dim), whole buffers (capacity, kv_heads, dim), live (2,) int32.

    dim is a power of two, at least 16; splits too: of the keys for one block of rows, fewer for more blocks.
    """
    n, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    rows = max(16, min(64, triton.next_power_of_2(n * group)))
    blocks = triton.cdiv(n * group, rows)
    splits = max(1, splits // triton.next_power_of_2(blocks))
    outputs = torch.empty(n * heads * splits, dim, dtype=torch.float32, device=query.device)
    lse = torch.empty(n * heads * splits, dtype=torch.float32, device=query.device)
    merged = torch.empty(n, heads, dim, dtype=query.dtype, device=query.device)
    _split_kernel[(splits, kv_heads, blocks)](
        query.contiguous(),
        keys,
        values,
        live,
        outputs,
        lse,
        n,
        dim**-0.5,
        kv_heads,
        group,
        dim,
        rows,
        KEYS_PER_BLOCK,
        splits,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    _merge_kernel[(n * heads,)](outputs, lse, merged, dim, splits)
    return merged
