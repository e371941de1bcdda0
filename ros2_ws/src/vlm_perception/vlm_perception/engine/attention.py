"""Grouped-query attention of new queries over a long cache, with no mask over the cache and no repeated KV heads.

Softmax over [cache | new tokens] is computed as two softmaxes and merged by their log-sum-exp: the new queries see
the whole cache, so that part needs no mask at all, and only the small square among the new tokens is causal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, tree: Tensor | None = None) -> Tensor:
    """Attention of the last `n` tokens over all `m` tokens of a stream.

    query (n, heads, dim); key, value (m, kv_heads, dim), the last n of them belonging to the queries. Returns
    (n, heads, dim). Among themselves the queries are causal, or see what the boolean `tree` (n, n) allows.
    """
    n, heads, dim = query.shape
    m, kv_heads, _ = key.shape
    group = heads // kv_heads
    # (group, kv_heads, n, dim): the heads that share one KV head lie along the batch, so keys are never repeated.
    grouped = query.unflatten(1, (kv_heads, group)).permute(2, 1, 0, 3)
    if n == 1:
        packed = grouped.permute(2, 1, 0, 3)  # (1, kv_heads, group, dim): one pass over K and V for the group
        output, _ = _flash(packed, _heads_first(key), _heads_first(value))
        return output.reshape(1, heads, dim)
    new_key, new_value = _heads_first(key[m - n :]), _heads_first(value[m - n :])
    shape = (group, kv_heads, n, dim)
    recent, recent_lse = _flash(
        grouped, new_key.expand(shape), new_value.expand(shape), causal=tree is None, allowed=tree
    )
    if m > n:
        rows = grouped.permute(1, 0, 2, 3).reshape(1, kv_heads, group * n, dim)
        past, past_lse = _flash(rows, _heads_first(key[: m - n]), _heads_first(value[: m - n]))
        past = past.view(kv_heads, group, n, dim).transpose(0, 1)
        past_lse = past_lse.reshape(kv_heads, group, n).transpose(0, 1)
        share = torch.sigmoid(past_lse - recent_lse).unsqueeze(-1).to(recent.dtype)
        recent = torch.lerp(recent, past, share)
    return recent.permute(2, 1, 0, 3).reshape(n, heads, dim)


def attend_static(
    query: Tensor, new_key: Tensor, new_value: Tensor, key: Tensor, value: Tensor, bounds: Tensor
) -> Tensor:
    """The same as `attend`, with every length in a tensor, so that a captured graph can be replayed as the cache moves.

    key, value (capacity, kv_heads, dim) are whole buffers; the cached tokens lie from bounds[0] to bounds[-1]
    (int32, splits + 1). The splits are worked on side by side, since one new token alone would keep only two blocks
    of a GPU busy, and are merged by their log-sum-exp. Returns (n, heads, dim).
    """
    n, heads, dim = query.shape
    kv_heads, splits = key.shape[1], len(bounds) - 1
    group = heads // kv_heads
    rows = query.unflatten(1, (kv_heads, group)).transpose(1, 2).flatten(0, 1)  # (n * group, kv_heads, dim)
    parts, lse = _varlen(rows.repeat(splits, 1, 1), key, value, bounds, n * group)
    empty = (bounds[1:] == bounds[:-1]).view(splits, 1, 1)
    parts, lse = (
        parts.unflatten(0, (splits, -1)),
        lse.unflatten(0, (splits, -1)).masked_fill(empty, float("-inf")),
    )
    past_lse = lse.logsumexp(0)
    past = torch.einsum("srk,srkd->rkd", (lse - past_lse).exp().nan_to_num(), parts.nan_to_num().float())
    past = past.view(n, group, kv_heads, dim).transpose(1, 2)
    past_lse = past_lse.view(n, group, kv_heads).transpose(1, 2).unsqueeze(-1)
    square = query.unflatten(1, (kv_heads, group))
    scores = torch.einsum("ikgd,jkd->kgij", square, new_key).float() * dim**-0.5
    later = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    scores = scores.masked_fill(later, float("-inf"))
    recent = torch.einsum("kgij,jkd->ikgd", scores.softmax(-1).to(value.dtype), new_value).float()
    recent_lse = scores.logsumexp(-1).permute(2, 0, 1).unsqueeze(-1)
    share = torch.sigmoid(past_lse - recent_lse)
    return torch.lerp(recent, past, share).flatten(1, 2).to(query.dtype)


def _varlen(rows: Tensor, key: Tensor, value: Tensor, bounds: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Attention of `each` rows per split over that split's keys: (rows, kv_heads, dim) and lse (rows, kv_heads)."""
    splits = len(bounds) - 1
    if rows.device.type == "cpu":  # the meaning of the GPU's kernel, spelt out
        at = torch.arange(len(key))
        inside = (at >= bounds[:-1, None]) & (at < bounds[1:, None])
        scores = torch.einsum("rkd,ckd->rkc", rows, key) * rows.shape[-1] ** -0.5
        scores = scores.masked_fill(~inside.repeat_interleave(each, 0).unsqueeze(1), float("-inf"))
        return torch.einsum("rkc,ckd->rkd", scores.softmax(-1), value), scores.logsumexp(-1)
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    starts = torch.arange(splits + 1, dtype=torch.int32, device=rows.device) * each
    longest = -(-len(key) // splits)
    output, lse = varlen_attn(
        rows, key, value, starts, bounds, each, longest, return_aux=AuxRequest(lse=True)
    )
    return output, lse if lse.shape[0] == len(rows) else lse.T


def _heads_first(x: Tensor) -> Tensor:
    """(tokens, heads, dim) -> (1, heads, tokens, dim), a view."""
    return x.transpose(0, 1).unsqueeze(0)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, causal: bool = False, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log-sum-exp, (batch, heads, tokens, dim) and (batch, heads, tokens)."""
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=None if allowed is None else _bias(allowed, query.dtype)
        )
        return output, lse
    if (
        allowed is not None
    ):  # a few answers scored side by side: the square is small, plain arithmetic will do
        scores = torch.matmul(query, key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        scores = scores.masked_fill(~allowed, float("-inf"))
        return torch.matmul(scores.softmax(-1).to(value.dtype), value), scores.logsumexp(-1)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[:2]
    return output, lse[..., : query.shape[2]]


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
