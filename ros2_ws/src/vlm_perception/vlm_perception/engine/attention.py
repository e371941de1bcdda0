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
