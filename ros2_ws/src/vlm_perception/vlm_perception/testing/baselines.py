"""Other designs of a streaming memory on the engine's own weights, to measure it against."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_perception.engine import QwenModel, VideoStreamingInference
from vlm_perception.engine.attention import attend
from vlm_perception.engine.decoder import rotate
from vlm_perception.engine.kv_cache_eviction import Chunk
from vlm_perception.engine.stream_qwen_model import Tokens


class Growing:
    """transformers' forward over a DynamicCache that grows by concatenation, cloned for each ask."""

    def __init__(self, checkpoint: Any, keys: Tensor, values: Tensor):
        """keys, values (layers, tokens, kv_heads, dim)."""
        from transformers import DynamicCache

        self.model = checkpoint
        self.cache = DynamicCache(config=checkpoint.config.text_config)
        for layer in range(len(keys)):
            self.cache.update(
                keys[layer].transpose(0, 1)[None].contiguous(),
                values[layer].transpose(0, 1)[None].contiguous(),
                layer,
            )

    @torch.inference_mode()
    def feed(self, embeddings: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits of the last token."""
        hidden = self.model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[:, -1])[0]
        return logits

    def clone(self) -> Any:
        return copy.deepcopy(self.cache)

    def ask(self, question: Tensor, start: int, answer: int, cache: Any = None) -> None:
        cache = self.clone() if cache is None else cache
        embed = self.model.get_input_embeddings()
        at = torch.arange(start, start + len(question), device=question.device).expand(3, -1)
        token = self.feed(embed(question), at, cache).argmax()
        for i in range(answer - 1):
            position = torch.full((3, 1), start + len(question) + i, device=question.device)
            token = self.feed(embed(token.view(1)), position, cache).argmax()


class RotateAll:
    """Keys are kept without rotation, and every step rotates all of them in every layer.

    `lean=False` is how StreamingVLM does it: the cache grows by concatenation and KV heads are repeated. `lean=True`
    gives it our buffers and our attention, so that only the rotation remains.
    """

    def __init__(self, stream: VideoStreamingInference, lean: bool):
        self.stream, self.decoder, self.lean = stream, stream.qwen.decoder, lean
        cache = stream.cache
        self.keys = [k.transpose(0, 1)[None].clone() for k in cache.live_keys()] if not lean else []
        self.values = [v.transpose(0, 1)[None].clone() for v in cache.live_values()] if not lean else []

    def cut(self, length: int) -> None:
        self.keys = [k[:, :, :length] for k in self.keys]
        self.values = [v[:, :, :length] for v in self.values]

    @torch.inference_mode()
    def feed(self, embeddings: Tensor, length: int, positions: Tensor) -> Tensor:
        """Hidden states of tokens at `length`; positions (3, length + tokens) are those of the whole stream."""
        decoder, s = self.decoder, self.decoder.shape
        phases = decoder.rope.phases(positions)
        x = embeddings
        for i, layer in enumerate(decoder.layers):
            h = F.rms_norm(x, (s.hidden,), layer.input_norm, s.rms_eps)
            qkv = F.linear(h, layer.qkv, layer.qkv_bias).unflatten(-1, (s.heads + 2 * s.kv_heads, s.head_dim))
            q, k, v = qkv.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
            mixed = (self._lean if self.lean else self._grown)(i, rotate(q, phases[length:]), k, v, phases)
            x = torch.addmm(x, mixed.flatten(-2), layer.out.T)
            h = F.rms_norm(x, (s.hidden,), layer.mlp_norm, s.rms_eps)
            gate, up = F.linear(h, layer.gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, layer.down.T)
        return F.rms_norm(x, (s.hidden,), decoder.norm, s.rms_eps)

    def _lean(self, i: int, q: Tensor, k: Tensor, v: Tensor, phases: Tensor) -> Tensor:
        cache, stop = self.stream.cache, self.stream.cache.start + len(phases)
        cache.keys[i, stop - len(k) : stop] = k
        cache.values[i, stop - len(k) : stop] = v
        return attend(
            q, rotate(cache.keys[i, cache.start : stop], phases), cache.values[i, cache.start : stop]
        )

    def _grown(self, i: int, q: Tensor, k: Tensor, v: Tensor, phases: Tensor) -> Tensor:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import repeat_kv

        self.keys[i] = torch.cat([self.keys[i], k.transpose(0, 1)[None]], dim=2)
        self.values[i] = torch.cat([self.values[i], v.transpose(0, 1)[None]], dim=2)
        keys = rotate(self.keys[i][0].transpose(0, 1), phases).transpose(0, 1)[None]
        group, n, m = q.shape[1] // k.shape[1], len(q), len(phases)
        mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if n > 1 else None
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], repeat_kv(keys, group), repeat_kv(self.values[i], group), mask
        )
        return out[0].transpose(0, 1)


@torch.inference_mode()
def check_equal_outputs(model: QwenModel, checkpoint: Any) -> dict[str, float]:
    """The same 4 chunks and 3 words through ours, `Growing` (a), `RotateAll` (b, and b_lean), and ours in one pass (d):
    largest difference of logits from ours, relative to the largest logit."""
    stream = VideoStreamingInference(model, max_cache_tokens=1000)
    embeddings = [torch.randn(n, model.decoder.shape.hidden) * 0.02 for n in (40, 40, 40, 40, 1, 1, 1)]
    steps = []
    at = 0
    for e in embeddings:
        steps.append((e, torch.arange(at, at + len(e)).expand(3, -1)))
        at += len(e)
    hidden = []
    for i, (e, positions) in enumerate(steps):
        tokens = Tokens(e, positions, (("video", len(e)),), (int(positions[0, 0]), int(positions[0, -1]) + 1))
        hidden.append(stream._forward(tokens)[-1:])
        stream.cache.commit(Chunk(i, tokens.runs, tokens.span))
    ours = model.decoder.logits(torch.cat(hidden))
    empty = torch.zeros(
        model.decoder.shape.layers, 0, model.decoder.shape.kv_heads, model.decoder.shape.head_dim
    )
    growing = Growing(checkpoint, empty, empty)
    a = torch.stack([growing.feed(e, positions, growing.cache) for e, positions in steps])
    b: dict[bool, list[Tensor]] = {False: [], True: []}
    for lean, found in b.items():
        rotating, length = RotateAll(VideoStreamingInference(model, max_cache_tokens=1000), lean), 0
        for e, positions in steps:
            found.append(rotating.feed(e, length, torch.arange(int(positions[0, -1]) + 1).expand(3, -1))[-1:])
            length += len(e)
    whole = VideoStreamingInference(model, max_cache_tokens=1000)
    every = Tokens(torch.cat(embeddings), torch.arange(at).expand(3, -1), (("video", at),), (0, at))
    d = model.decoder.logits(whole._forward(every)[[39, 79, 119, 159, 160, 161, 162]])
    scale = float(ours.abs().max())
    b_lean, b_grown = (model.decoder.logits(torch.cat(b[lean])) for lean in (True, False))
    others = {"a": a, "b": b_grown, "b_lean": b_lean, "d": d}
    differences = {name: float((ours - other).abs().max()) / scale for name, other in others.items()}
    assert max(differences.values()) < 1e-4, f"baselines must compute the same: {differences}"
    return differences
