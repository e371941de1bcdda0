"""Forward and backward passes in serving form: many decisions of a stream in one pass, over transformers' modules.

A stream's prompt and frames are run once; each ask then sees the prompt, the frames up to its own, and itself:
exactly what the engine shows, where an ask is appended at the tail and cut off again. Positions are the engine's: an
ask begins where the next frame would.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from nav_agent import toolset
from vlm_perception.engine.preprocess import CLIP_MEAN, CLIP_STD
from vlm_perception.prompting import call_schema, call_text

from .data import PROFILE_DEG, PROFILE_REACH_M, TrainingStream
from .model import CHUNK_TOKENS, COLOURS, HEIGHT, TOKENS_PER_FRAME, WIDTH, pilot_prime_text

ROWS, COLUMNS = HEIGHT // 28, WIDTH // 28
AUXILIARY_LAYERS = (2, 3)  # of four layers: the auxiliary head reads the output of these
CHUNK_SPAN = max(ROWS, COLUMNS) + 2  # positions that a frame's chunk takes: start, rows and columns, end


EXPERT_CALLS = (
    *(call_text("move_forward", {"distance_m": metres}) for metres in toolset.DISTANCE_M),
    *(call_text("turn_left", {"angle_deg": angle}) for angle in toolset.ANGLE_DEG),
    *(call_text("turn_right", {"angle_deg": angle}) for angle in toolset.ANGLE_DEG),
    call_text("finish", {"reason": "reached"}),
)


class TextEncoder:
    """Texts as the engine tokenises them, and calls with the tokens that its grammar leaves free."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        import llguidance.hf
        from llguidance import LLMatcher

        self.tokenizer = tokenizer
        self.prime = self.encode(pilot_prime_text())
        known = tokenizer.get_vocab()
        self.vision_start, self.vision_end = known["<|vision_start|>"], known["<|vision_end|>"]
        end = known["<|im_end|>"]
        guide = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=end)
        fixed: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(call_schema(toolset.tool_schemas())), overrides=fixed
        )
        self._matcher = LLMatcher(guide, grammar)
        if self._matcher.is_error():
            raise RuntimeError(self._matcher.get_error())
        self.call = lru_cache(maxsize=None)(self._call)
        self.encoded = lru_cache(maxsize=200_000)(self.encode)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _call(self, text: str) -> tuple[list[int], list[int]]:
        """A call's tokens up to its last free one, and the indices of those that the model is free to choose."""
        matcher = self._matcher.deep_copy()
        canonical = self.encode(text)
        tokens: list[int] = []
        free: list[int] = []
        while not matcher.is_stopped():
            forced = matcher.compute_ff_tokens()
            if forced:
                matcher.consume_tokens(forced)
                tokens += forced
                continue
            if matcher.is_stopped() or len(tokens) >= len(canonical):
                break
            if tokens != canonical[: len(tokens)]:
                raise RuntimeError(f"the grammar's tokens of {text} are not the tokenizer's")
            free.append(len(tokens))
            tokens.append(canonical[len(tokens)])
            matcher.consume_token(tokens[-1])
        return tokens[: free[-1] + 1], free


def to_pixels(frames: np.ndarray) -> Tensor:
    """Frames (n, HEIGHT, WIDTH, 3) uint8 to float32 (n, 3, HEIGHT, WIDTH) in 0..255."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float()


def patches_of(pixels: Tensor) -> Tensor:
    """Pixels in 0..255 to the tower's patches (n, patches, 3 * 14 * 14), one of the two equal frames of each."""
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    x = (pixels - 255 * mean) / (255 * std)
    x = x.reshape(len(x), 3, ROWS, 2, 14, COLUMNS, 2, 14)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(len(x), ROWS * COLUMNS * 4, -1)


class BatchedVisionTower(nn.Module):
    """transformers' vision tower over many pictures of one size at once (its own forward loops over them)."""

    visual: Any

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        row, column = torch.meshgrid(torch.arange(2 * ROWS), torch.arange(2 * COLUMNS), indexing="ij")
        at = torch.stack([row, column], -1).view(ROWS, 2, COLUMNS, 2, 2).transpose(1, 2).reshape(-1, 2)
        self.cos, self.sin = self.visual.rotary_pos_emb(at.float(), at)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (n, patches, pixels) to embeddings (n, TOKENS_PER_FRAME, hidden)."""
        visual = self.visual
        x = F.linear(patches, visual.patch_embed.proj.weight.sum(2).flatten(1))
        for block in visual.blocks:
            attention = block.attn
            q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
            q, k = apply_rotary_pos_emb_vision(q, k, self.cos, self.sin)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v)
            x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        merged: Tensor = visual.merger(x.flatten(0, 1)).unflatten(0, (len(patches), TOKENS_PER_FRAME))
        return merged


class AuxiliaryHead(nn.Module):
    """An auxiliary head, used in training only: from the last token of a frame in the middle of the decoder it predicts
    each colour's beacon (visible, bearing, distance), the expert's call, and the free distances."""

    def __init__(self, hidden: int):
        super().__init__()
        self.each = 3 + len(EXPERT_CALLS)
        self.layer = nn.Linear(hidden, len(COLOURS) * self.each + len(PROFILE_DEG))

    def loss(self, closing: Tensor, labels: Tensor, colour: Tensor, call: Tensor) -> Tensor:
        """closing (n, hidden), labels as TrainingStream.labels, colour (n,): the index of the goal in COLOURS, call
        (n,): the index of the call of the expert in EXPERT_CALLS, or -1."""
        out = self.layer(closing)
        beacons = out[:, : len(COLOURS) * self.each].unflatten(-1, (len(COLOURS), self.each))
        beacon = beacons[torch.arange(len(out)), colour]
        seen, bearing, distance = labels[:, 0], labels[:, 1], labels[:, 2]
        loss = F.binary_cross_entropy_with_logits(beacon[:, 0], seen)
        across = torch.tan(bearing.clamp(-0.9, 0.9))
        near = F.smooth_l1_loss(beacon[:, 1], across, beta=0.05, reduction="none")
        far = F.smooth_l1_loss(beacon[:, 2], torch.log(distance / 4.0), beta=0.05, reduction="none")
        profile = F.smooth_l1_loss(out[:, -len(PROFILE_DEG) :], labels[:, 3:] / PROFILE_REACH_M, beta=0.1)
        calls = torch.nan_to_num(
            F.cross_entropy(beacon[:, 3:], call, ignore_index=-1)
        )  # nan: no call in this part
        return loss + 2 * ((near + far) * seen).sum() / seen.sum().clamp(min=1) + 2 * profile + calls


@dataclass
class Batch:
    """Streams and some of their samples, made ready."""

    frames: np.ndarray  # (all frames, HEIGHT, WIDTH, 3)
    labels: Tensor
    colour: Tensor
    call: Tensor
    counts: list[int]  # frames of each stream
    rows: Tensor  # (samples,) the stream of each
    text: Tensor  # (samples, tokens) ids, 0 where padded
    positions: Tensor  # (3, samples, tokens)
    mask: Tensor  # (samples, 1, tokens, prime + frames' tokens + tokens), 0 or very negative
    at: Tensor  # (targets, 2): ask and token whose logits are judged
    targets: Tensor


def make_batch(
    words: TextEncoder, streams: Sequence[TrainingStream], most_asks: int, rng: np.random.Generator
) -> Batch:
    """Lays out streams with at most `most_asks` of each one's samples, drawn."""
    rows, frames, texts, frees, calls = [], [], [], [], []
    for row, stream in enumerate(streams):
        samples = stream.samples
        if len(samples) > most_asks:
            samples = [samples[i] for i in sorted(rng.choice(len(samples), most_asks, replace=False))]
        for ask in samples:
            call, free = words.call(ask.call)
            rows.append(row)
            frames.append(ask.frame)
            texts.append(words.encoded(ask.text))
            calls.append(call)
            frees.append(free)
    prime = len(words.prime)
    before = prime + max(len(stream.frames) for stream in streams) * CHUNK_TOKENS
    most = max(len(t) + len(c) - 1 for t, c in zip(texts, calls, strict=True))
    text = torch.zeros(len(rows), most, dtype=torch.long)
    at, targets = [], []
    for i, (words_in, call, free) in enumerate(zip(texts, calls, frees, strict=True)):
        ids = [*words_in, *call[:-1]]
        text[i, : len(ids)] = torch.tensor(ids)
        at += [(i, len(words_in) + index - 1) for index in free]
        targets += [call[index] for index in free]
    after = torch.tensor(frames) + 1
    first = prime + after * CHUNK_SPAN
    positions = (first.unsqueeze(1) + torch.arange(most)).expand(3, -1, -1)
    allowed = torch.ones(len(rows), most, before + most, dtype=torch.bool)
    allowed[:, :, :before] = (torch.arange(before) < (prime + after * CHUNK_TOKENS).unsqueeze(1)).unsqueeze(1)
    allowed[:, :, before:] = torch.tril(torch.ones(most, most, dtype=torch.bool))
    colours = [colour_of(stream) for stream in streams]
    counts = [len(stream.frames) for stream in streams]
    return Batch(
        np.concatenate([stream.frames for stream in streams]),
        torch.from_numpy(np.concatenate([stream.labels for stream in streams])),
        torch.tensor([c for c, n in zip(colours, counts, strict=True) for _ in range(n)]),
        torch.cat([expert_calls(stream) for stream in streams]),
        counts,
        torch.tensor(rows),
        text,
        positions,
        _additive(allowed).unsqueeze(1),
        torch.tensor(at),
        torch.tensor(targets),
    )


def _additive(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)


def colour_of(stream: TrainingStream) -> int:
    """The asked colour's index in COLOURS."""
    return next(i for i, colour in enumerate(COLOURS) if colour in stream.samples[0].text.split("\n")[0])


def expert_calls(stream: TrainingStream) -> Tensor:
    """For each frame the expert's call on it, its index in EXPERT_CALLS, or -1."""
    calls = torch.full((len(stream.frames),), -1)
    for ask in stream.samples:
        calls[ask.frame] = EXPERT_CALLS.index(ask.call)
    return calls


def frame_positions(frames: int, start: int) -> Tensor:
    """(3, frames * CHUNK_TOKENS): time, row and column of each token of consecutive frames from `start`."""
    rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    picture = (
        torch.stack([torch.zeros(TOKENS_PER_FRAME, dtype=torch.long), rows.flatten(), columns.flatten()]) + 1
    )
    edge = torch.zeros(3, 1, dtype=torch.long)
    chunk = torch.cat([edge, picture, edge + CHUNK_SPAN - 1], dim=1)
    offsets = start + CHUNK_SPAN * torch.arange(frames)
    return (chunk.unsqueeze(1) + offsets.view(1, -1, 1)).flatten(1)


class TrainingModel(nn.Module):
    """The model with its auxiliary head."""

    model: Any

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, words: TextEncoder):
        super().__init__()
        self.model, self.text = model, words
        self.vision = BatchedVisionTower(model.model.visual)
        self.auxiliary = AuxiliaryHead(self.model.config.text_config.hidden_size)

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, HEIGHT, WIDTH) in 0..255 to embeddings (n, TOKENS_PER_FRAME, hidden)."""
        embeddings: Tensor = self.vision(patches_of(pixels))
        return embeddings

    def chunk_embeddings(self, seen: Tensor) -> Tensor:
        """Embeddings of pictures to those of whole chunks (n, CHUNK_TOKENS, hidden)."""
        edges = torch.tensor([self.text.vision_start, self.text.vision_end])
        start, end = (
            self.model.model.language_model.embed_tokens(edges).expand(len(seen), -1, -1).split(1, dim=1)
        )
        return torch.cat([start, seen, end], dim=1)

    def frame_features(self, seen: Tensor) -> list[Tensor]:
        """Single pictures through the decoder, without a prompt: the last tokens (n, hidden) at AUXILIARY_LAYERS."""
        hidden = self.model.model.language_model(
            inputs_embeds=self.chunk_embeddings(seen),
            position_ids=frame_positions(1, len(self.text.prime)).unsqueeze(1).expand(-1, len(seen), -1),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
        return [hidden[layer][:, -1] for layer in AUXILIARY_LAYERS]

    def forward(self, batch: Batch, seen: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From the embeddings of the batch's frames: logits (targets, vocabulary) at the free tokens, and the frames'
        closing tokens as `read` gives them."""
        text_model = self.model.model.language_model
        embed = text_model.embed_tokens
        memory, closing = self._stream_cache(seen, batch.counts)
        for layer in memory.layers:
            layer.keys, layer.values = layer.keys[batch.rows], layer.values[batch.rows]
        hidden = text_model(
            inputs_embeds=embed(batch.text),
            attention_mask=batch.mask,
            position_ids=batch.positions,
            past_key_values=memory,
            use_cache=True,
        ).last_hidden_state
        judged = hidden[batch.at[:, 0], batch.at[:, 1]]
        return self.model.lm_head(judged), closing

    def auxiliary_loss(self, closing: list[Tensor], labels: Tensor, colour: Tensor, call: Tensor) -> Tensor:
        """The mean over the layers at AUXILIARY_LAYERS."""
        losses = [self.auxiliary.loss(hidden, labels, colour, call) for hidden in closing]
        return torch.stack(losses).mean()

    def _stream_cache(self, seen: Tensor, counts: list[int]) -> tuple[Any, list[Tensor]]:
        """Keys and values of the prompt and each stream's frames, as the engine's cache holds them; closing tokens."""
        text_model = self.model.model.language_model
        most, prime = max(counts), len(self.text.prime)
        rows = [
            F.pad(part.flatten(0, 1), (0, 0, 0, (most - len(part)) * CHUNK_TOKENS))
            for part in self.chunk_embeddings(seen).split(counts)
        ]
        cache = self._prompt_cache(text_model, len(rows))
        tokens = most * CHUNK_TOKENS
        allowed = torch.tril(torch.ones(tokens, prime + tokens, dtype=torch.bool), diagonal=prime)
        hidden = text_model(
            inputs_embeds=torch.stack(rows),
            attention_mask=_additive(allowed)[None, None],
            position_ids=frame_positions(most, prime).unsqueeze(1).expand(-1, len(rows), -1),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        ).hidden_states
        real = torch.arange(most) < torch.tensor(counts).unsqueeze(1)
        return cache, [hidden[layer].unflatten(1, (most, -1))[:, :, -1][real] for layer in AUXILIARY_LAYERS]

    def _prompt_cache(self, text_model: Any, rows: int) -> Any:
        """The prompt's keys and values, computed once for all rows, with their gradients."""
        ids = torch.tensor([self.text.prime])
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        cache: Any = DynamicCache(config=text_model.config)
        text_model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache
