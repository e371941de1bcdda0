"""Grouped-query attention of new queries over a long cache, with no mask over the cache and no repeated KV heads.

Softmax over [cache | new tokens] is computed as two softmaxes and merged by their log-sum-exp: the new queries see
the whole cache, so that part needs no mask at all, and only the small square among the new tokens is causal.

Scores, softmax and merging are float32 whatever the cache holds. In bfloat16 a share of a merge would be off by up to
2.9 %, and scores of keys with a large common offset (as Qwen2.5's biases give) by up to 31 % of the output.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import shutil

import torch
from torch import Tensor

# 64 splits times 2 KV heads are about one block for each of an H200's 132 multiprocessors.
SPLITS = 64
# More new tokens than a decision's prompt are a chunk: products of whole tiles, which FlashAttention is made for.
MOST_ROWS_OF_KERNEL = 128


def attend(query: Tensor, key: Tensor, value: Tensor, tree: Tensor | None = None) -> Tensor:
    """Attention of the last `n` tokens over all `m` tokens of a stream.

    query (n, heads, dim); key, value (m, kv_heads, dim), the last n of them belonging to the queries. Returns
    (n, heads, dim). Among themselves the queries are causal, or see what the boolean `tree` (n, n) allows.
    """
    n, heads, dim = query.shape
    m, kv_heads, _ = key.shape
    group = heads // kv_heads
    # (group, kv_heads, n, dim): the heads that share one KV head lie along the batch, so keys are never repeated.
    grouped = query.view(n, kv_heads, group, dim).permute(2, 1, 0, 3)
    if n == 1:
        packed = grouped.permute(2, 1, 0, 3)  # (1, kv_heads, group, dim): one pass over K and V for the group
        output, _ = _flash(packed, _heads_first(key), _heads_first(value))
        return output.reshape(1, heads, dim)
    if tree is not None:
        recent, recent_lse = attend_square(query, key[m - n :], value[m - n :], tree)
    else:
        new_key, new_value = _heads_first(key[m - n :]), _heads_first(value[m - n :])
        shape = (group, kv_heads, n, dim)
        recent, recent_lse = _flash(grouped, new_key.expand(shape), new_value.expand(shape), causal=True)
        recent = recent.permute(2, 1, 0, 3)
        recent_lse = recent_lse.permute(2, 1, 0)
    if m > n:
        rows = grouped.permute(1, 0, 2, 3).reshape(1, kv_heads, group * n, dim)
        past, past_lse = _flash(rows, _heads_first(key[: m - n]), _heads_first(value[: m - n]))
        past = past.view(kv_heads, group, n, dim).permute(2, 0, 1, 3)
        past_lse = past_lse.reshape(kv_heads, group, n).permute(2, 0, 1)
        recent = _merged(recent, recent_lse, past, past_lse)
    return recent.reshape(n, heads, dim).to(query.dtype)


def attend_live(query: Tensor, keys: Tensor, values: Tensor, live: Tensor) -> Tensor:
    """The same as `attend`, with the lengths in a tensor, so that a captured graph can be replayed as the cache moves.

    keys, values (capacity, kv_heads, dim) are whole buffers; live (2,) int32 says from where to where they are in use,
    the n new tokens being the last ones there. Returns (n, heads, dim).
    """
    if query.device.type == "cpu":
        return attend_in_splits(query, keys, values, live)
    if len(query) == 1 and _has_grouped_varlen():
        return _attend_one(query, keys, values, live)
    if len(query) > MOST_ROWS_OF_KERNEL:
        # As many blocks of FlashAttention's 128 rows times splits as keep a GPU busy; a chunk has rows enough.
        blocks = -(-len(query) * query.shape[1] // (keys.shape[1] * 128))
        return attend_in_splits(query, keys, values, live, max(1, SPLITS // blocks))
    if has_triton():
        from .triton_attention import attend_live as attend_in_one_pass

        return attend_in_one_pass(query, keys, values, live)
    return attend_in_splits(query, keys, values, live)


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, live: Tensor) -> Tensor:
    """One token, one call of torch's own: FlashAttention splits the keys by itself where there is one row."""
    from torch.nn.attention.varlen import varlen_attn

    row = _one_row(query.device)
    output = varlen_attn(query, keys, values, row, live, 1, len(keys), enable_gqa=True)
    assert isinstance(output, Tensor)  # a pair only where its log-sum-exp is asked for
    return output


@functools.cache
def _one_row(device: torch.device) -> Tensor:
    return torch.tensor([0, 1], dtype=torch.int32, device=device)


def attend_in_splits(
    query: Tensor, keys: Tensor, values: Tensor, live: Tensor, splits: int = SPLITS
) -> Tensor:
    """`attend_live` from ordinary operations: the cached tokens in splits that are worked on side by side, since a few
    rows alone would keep only two blocks of a GPU busy, and merged by their log-sum-exp."""
    n, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    start, cached = live[0], live[1] - live[0] - n
    bounds = (start + cached * torch.arange(splits + 1, device=live.device) // splits).int()
    rows = query.view(n, kv_heads, group, dim).transpose(1, 2).flatten(0, 1)  # (n * group, kv_heads, dim)
    parts, lse = _varlen(rows.repeat(splits, 1, 1), keys, values, bounds, n * group)
    empty = (bounds[1:] == bounds[:-1]).view(splits, 1, 1)
    parts, lse = parts.view(splits, -1, *parts.shape[1:]), lse.view(splits, -1, kv_heads)
    lse = lse.masked_fill(empty, float("-inf"))
    past_lse = lse.logsumexp(0)
    past = torch.einsum("srk,srkd->rkd", (lse - past_lse).exp().nan_to_num(), parts.nan_to_num().float())
    fresh = start + cached + torch.arange(n, device=live.device)
    recent, recent_lse = attend_square(query, keys.index_select(0, fresh), values.index_select(0, fresh))
    past = past.view(n, group, kv_heads, dim).transpose(1, 2)
    past_lse = past_lse.view(n, group, kv_heads).transpose(1, 2)
    return _merged(recent, recent_lse, past, past_lse).reshape(n, heads, dim).to(query.dtype)


def attend_square(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of n tokens among themselves: float32 (n, kv_heads, group, dim), and its log-sum-exp without dim.

    allowed (n, n): what each row sees; by default itself and what is before it.
    """
    n, heads, dim = query.shape
    kv_heads = key.shape[1]
    if allowed is None:
        allowed = torch.ones(n, n, dtype=torch.bool, device=query.device).tril()
    rows = query.view(n, kv_heads, heads // kv_heads, dim).float()
    scores = torch.einsum("ikgd,jkd->ikgj", rows, key.float()) * dim**-0.5
    scores = scores.masked_fill(~allowed.view(n, 1, 1, n), float("-inf"))
    return torch.einsum("ikgj,jkd->ikgd", scores.softmax(-1), value.float()), scores.logsumexp(-1)


def _merged(recent: Tensor, recent_lse: Tensor, past: Tensor, past_lse: Tensor) -> Tensor:
    """Two softmaxes as one, in float32; outputs (..., dim) and their log-sum-exps (...)."""
    share = torch.sigmoid(past_lse.float() - recent_lse.float()).unsqueeze(-1)
    return torch.lerp(recent.float(), past.float(), share)


def _varlen(rows: Tensor, keys: Tensor, values: Tensor, bounds: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Attention of `each` rows per split over that split's keys: (rows, kv_heads, dim) and lse (rows, kv_heads)."""
    splits = len(bounds) - 1
    if rows.device.type == "cpu":  # the meaning of the GPU's kernel, spelt out
        at = torch.arange(len(keys))
        inside = (at >= bounds[:-1, None]) & (at < bounds[1:, None])
        scores = torch.einsum("rkd,ckd->rkc", rows.float(), keys.float()) * rows.shape[-1] ** -0.5
        scores = scores.masked_fill(~inside.repeat_interleave(each, 0).unsqueeze(1), float("-inf"))
        output = torch.einsum("rkc,ckd->rkd", scores.softmax(-1), values.float())
        return output.to(rows.dtype), scores.logsumexp(-1)
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    starts = torch.arange(splits + 1, dtype=torch.int32, device=rows.device) * each
    longest = -(-len(keys) // splits)
    output, lse = varlen_attn(
        rows, keys, values, starts, bounds, each, longest, return_aux=AuxRequest(lse=True)
    )
    return output, lse if lse.shape[0] == len(rows) else lse.T


def _heads_first(x: Tensor) -> Tensor:
    """(tokens, heads, dim) -> (1, heads, tokens, dim), a view."""
    return x.transpose(0, 1).unsqueeze(0)


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log-sum-exp, (batch, heads, tokens, dim) and (batch, heads, tokens)."""
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal
        )
        return output, lse
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[:2]
    return output, lse[..., : query.shape[2]]


@functools.cache
def _has_grouped_varlen() -> bool:
    """Whether torch's varlen attention groups queries (2.13's does)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


@functools.cache
def has_triton() -> bool:
    """Whether Triton (it comes with torch's CUDA builds) and the C compiler that it needs are there."""
    compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return compiler and importlib.util.find_spec("triton") is not None
