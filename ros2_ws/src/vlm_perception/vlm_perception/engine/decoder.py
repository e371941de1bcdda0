"""The language model: Qwen2.5's decoder over the checkpoint's own weights, one sequence, one static cache.

Linear layers that read the same input are fused, nothing is hidden in a framework, and the cache is behind one call
per layer (`Step.attend`), so the same forward serves prefill, decoding and a captured GPU graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Step(Protocol):
    """Where one forward pass puts its keys and values and what they attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of the architecture that the engine needs."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rms_eps: float


class Rope:
    """M-RoPE: each frequency rotates by the position on one of three axes (time, height, width).

    Positions are integers and angles float64: at position 1e6 float32 angles are off by 5e-2 rad. The frequencies are
    the checkpoint's float32 ones, so that trained and served angles are the same.

    Heads are kept with each rotated pair side by side (`interleaved`), so that a pair is a complex number, a rotation
    one multiplication, and moving cached keys reads them once and writes them once.
    """

    def __init__(self, inverse_frequencies: Tensor, sections: list[int]):
        self.frequencies = inverse_frequencies.double()
        axes = torch.tensor([axis for axis, count in enumerate(sections) for _ in range(count)])
        self.axes = axes.to(self.frequencies.device)

    def phases(self, positions: Tensor) -> Tensor:
        """complex64 (tokens, 1, dim / 2) of integer positions (3, tokens)."""
        angles = positions[self.axes].T.double() * self.frequencies
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).unsqueeze(1)

    def shift(self, positions: int) -> Tensor:
        """complex64 (dim / 2): what moves a rotated key by so many positions on all three axes."""
        angles = self.frequencies * positions
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows (heads * dim, ...) with dimensions i and i + dim / 2 of each head brought side by side."""
    halves: Tensor = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2).contiguous()


def as_pairs(x: Tensor) -> Tensor:
    """float32 (..., dim) as complex64 (..., dim / 2), a view."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """x (tokens, heads, dim) turned, computed in float32."""
    return torch.view_as_real(as_pairs(x.float()) * phases).flatten(-2).to(x.dtype)


@dataclass
class Layer:
    """One decoder layer's weights, fused where they read the same input."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Decoder:
    """Weights and forward pass. It holds no state of any stream."""

    def __init__(
        self,
        shape: DecoderShape,
        embedding: Tensor,
        layers: list[Layer],
        norm: Tensor,
        head: Tensor,
        rope: Rope,
    ):
        self.shape, self.layers, self.rope = shape, layers, rope
        self.embedding, self.norm, self.head = embedding, norm, head

    @classmethod
    def from_transformers(cls, text_model: Any, head: Tensor, device: torch.device) -> Decoder:
        """Take over the weights of transformers' `Qwen2_5_VLTextModel`; its own layers are emptied on the way, so
        that the weights are never twice in memory. Fused where they lie and then moved: on a GPU, fusing would leave
        the parts' blocks behind (3 GB of the 3B's)."""
        config = text_model.config
        shape = DecoderShape(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.hidden_size // config.num_attention_heads,
            config.vocab_size,
            config.rms_norm_eps,
        )
        layers = [_fused(block, shape.head_dim, device) for block in text_model.layers]
        rope = Rope(text_model.rotary_emb.inv_freq.to(device), list(config.rope_parameters["mrope_section"]))
        embedding = text_model.embed_tokens.weight.data
        tied = head.data_ptr() == embedding.data_ptr()
        embedding = embedding.to(device)
        head = embedding if tied else head.to(device)
        return cls(shape, embedding, layers, text_model.norm.weight.data.to(device), head, rope)

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding)

    def forward(self, x: Tensor, phases: Tensor, step: Step) -> Tensor:
        """Embeddings (tokens, hidden) to normalised hidden states (tokens, hidden)."""
        s = self.shape
        heads = (s.heads + 2 * s.kv_heads, s.head_dim)
        for i, layer in enumerate(self.layers):
            h = F.rms_norm(x, (s.hidden,), layer.input_norm, s.rms_eps)
            qkv = F.linear(h, layer.qkv, layer.qkv_bias).unflatten(-1, heads)
            qk, v = qkv.split([s.heads + s.kv_heads, s.kv_heads], dim=1)
            q, k = rotate(qk, phases).split([s.heads, s.kv_heads], dim=1)
            x = torch.addmm(x, step.attend(i, q, k, v).flatten(-2), layer.out.T)
            h = F.rms_norm(x, (s.hidden,), layer.mlp_norm, s.rms_eps)
            gate, up = F.linear(h, layer.gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, layer.down.T)
        return F.rms_norm(x, (s.hidden,), self.norm, s.rms_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """(tokens, hidden) to float32 logits (tokens, vocabulary)."""
        return F.linear(hidden, self.head).float()


def _fused(block: Any, head_dim: int, device: torch.device) -> Layer:
    """One layer of transformers' as ours; its modules are left without weights."""
    attention, mlp = block.self_attn, block.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weights, biases = zip(*((p.weight.data, p.bias.data) for p in projections), strict=True)
    layer = Layer(
        block.input_layernorm.weight.data.to(device),
        torch.cat([interleaved(w, head_dim) for w in weights[:2]] + [weights[2]]).to(device),
        torch.cat([interleaved(b, head_dim) for b in biases[:2]] + [biases[2]]).to(device),
        attention.o_proj.weight.data.to(device),
        block.post_attention_layernorm.weight.data.to(device),
        torch.cat([mlp.gate_proj.weight.data, mlp.up_proj.weight.data]).to(device),
        mlp.down_proj.weight.data.to(device),
    )
    for module in (*projections, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        module.weight.data = torch.empty(0)
    return layer
