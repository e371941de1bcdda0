"""Forward and backward passes in serving form: many samples of a stream in one pass, over transformers' weights.

A stream's prompt and frames are run once; each sample's words then see the prompt, the frames up to their own, and
themselves: exactly what the engine shows, where words are appended at the tail and cut off again. Positions are the
engine's: words begin where the next frame would.

The passes are written out here (transformers' own cost three times as much on a CPU: its attention has a slow backward
pass there, and each sample would copy its stream's keys). `test_training_sees_what_the_engine_serves` holds them to the
engine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from nav_agent import toolset
from vlm_perception.engine.preprocess import CLIP_MEAN, CLIP_STD
from vlm_perception.prompting import (
    RECALLED_LABEL,
    YES_NO,
    call_schema,
    question_text,
    sees_question,
    whereabouts,
)

from .data import Sample, TrainingStream
from .model import CHUNK_TOKENS, HEIGHT, TOKENS_PER_FRAME, WIDTH, pilot_prime_text
from .sight import BINS, COLOUR, COLOUR_WORDS, DISTANCE, FREE, KIND, KINDS, distance_code, showing

ROWS, COLUMNS = HEIGHT // 28, WIDTH // 28
CHUNK_SPAN = max(ROWS, COLUMNS) + 2  # positions that a frame's chunk takes: start, rows and columns, end
LOOKING_LAYERS = (1, 2)  # of the decoder, from 0: half of their heads learn to look at what the words name
SHOWN_FROM_M = 25.0  # as far as a frame of something is worth bringing back
HIDDEN = (
    -1e9
)  # added to scores of what must not be seen; finite, so that a row of nothing else stays a number


class TextEncoder:
    """Texts as the engine tokenises them, and answers with the tokens that its grammar leaves free."""

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
        self.answer = lru_cache(maxsize=None)(self._answer)
        self.encoded = lru_cache(maxsize=200_000)(self.encode)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _answer(self, text: str) -> tuple[list[int], list[int]]:
        """An answer's tokens up to its last free one, and the indices of those that the model is free to choose: of a
        call, what the grammar leaves open; of yes or no, the first."""
        canonical = self.encode(text)
        if text in YES_NO:
            return canonical[:1], [0]
        matcher = self._matcher.deep_copy()
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


# -- what is shown -----------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Layout:
    """Where a stream's frames lie behind the prompt, with the texts before those that are recalled.

    ids (tokens,): of the texts, -1 for what a frame fills. positions (3, tokens): time, row and column of each token,
    from 0. first (frames,): each chunk's first token. ends, spans (frames,): tokens and positions up to the end of each
    frame.
    """

    ids: np.ndarray
    positions: np.ndarray
    first: np.ndarray
    ends: np.ndarray
    spans: np.ndarray


def layout(labels: Sequence[Sequence[int]]) -> Layout:
    """Of frames behind texts of these tokens, of which most are empty."""
    said = np.array([len(label) for label in labels])
    ends, spans = np.cumsum(said + CHUNK_TOKENS), np.cumsum(said + CHUNK_SPAN)
    ids = np.full(ends[-1], -1)
    positions = np.zeros((3, ends[-1]), np.int64)
    for label, end, span in zip(labels, ends, spans, strict=True):
        start, at = end - CHUNK_TOKENS - len(label), span - CHUNK_SPAN
        ids[start : start + len(label)] = label
        positions[:, start : start + len(label)] = at - len(label) + np.arange(len(label))
        positions[:, end - CHUNK_TOKENS : end] = at + _CHUNK_POSITIONS
    return Layout(ids, positions, ends - CHUNK_TOKENS, ends, spans)


def _chunk_positions() -> np.ndarray:
    """(3, CHUNK_TOKENS): time, row and column of a frame's tokens."""
    rows, columns = np.divmod(np.arange(TOKENS_PER_FRAME), COLUMNS)
    picture = np.stack([np.zeros_like(rows), rows, columns]) + 1
    edge = np.zeros((3, 1), np.int64)
    return np.concatenate([edge, picture, edge + CHUNK_SPAN - 1], axis=1)


_CHUNK_POSITIONS = _chunk_positions()


_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile("left|right")


def mirrored(stream: TrainingStream) -> TrainingStream:
    """The stream with left and right exchanged, in pictures and words. Samples of what was never seen are left out: the
    expert always searches to the right."""

    def swap(text: str) -> str:
        return _SIDE.sub(lambda m: _SIDES[m[0]], text)

    samples = [
        replace(
            a, text=swap(a.text), answer=swap(a.answer), goal=(a.goal[0], a.goal[1], -a.goal[2], a.goal[3])
        )
        for a in stream.samples
        if a.goal[1] or not a.is_call
    ]
    return replace(
        stream,
        frames=stream.frames[:, :, ::-1],
        sights=stream.sights[:, :, ::-1],
        places=stream.places * np.array([1, -1, -1], np.float32),
        labels=tuple(swap(label) for label in stream.labels),
        samples=samples,
    )


def recalled(stream: TrainingStream, rng: np.random.Generator) -> TrainingStream:
    """The stream as a memory bank serves it where something that is asked for has left the window: the frames up to
    the last that shows it are gone; before the decision that one is brought back behind its label, with the newest
    frame once more; until it is seen again each ask says where that one was taken; and each frame from then on is asked
    whether it shows what is sought, which the recalled one does. The same stream where nothing that was seen is asked
    for out of sight. What is far away counts as unseen."""
    asked = [a for a in stream.samples if a.flown and a.looks[0] and a.goal[1] and not a.goal[0]]
    if not asked:
        return stream
    first_asked = asked[int(len(asked) * rng.random() ** 2)]  # mostly an early one, as a bank does it
    at = first_asked.frame
    shown = _shown_near(stream, at, first_asked.looks)
    if not len(shown) or shown[-1] == at:
        return stream
    old, first = int(shown[-1]), int(shown[-1]) + 1
    order = [*range(first, at + 1), old, at, *range(at + 1, len(stream.frames))]
    labels = [stream.labels[i] for i in order]
    labels[at + 1 - first] = RECALLED_LABEL
    samples = [
        replace(a, frame=a.frame - first + (2 if a.frame >= at else 0))
        for a in stream.samples
        if a.frame >= first
    ]
    with_recall = replace(
        stream,
        frames=stream.frames[order],
        sights=stream.sights[order],
        places=stream.places[order],
        labels=tuple(labels),
        samples=samples,
    )
    kept = [
        _with_whereabouts(with_recall, a)
        for a in samples
        if not a.goal[1] or len(_shown_near(with_recall, a.frame, a.looks))
    ]
    brought_back = at + 1 - first
    return replace(with_recall, samples=kept + _questions(samples, first_asked.looks, brought_back))


def _questions(samples: Sequence[Sample], looks: tuple[int, int], first: int) -> list[Sample]:
    """Whether the frames from `first` on, at which an object was flown to, show it."""
    text = question_text(sees_question(_reference(looks)))
    return [
        replace(a, text=text, answer=YES_NO[0] if a.goal[0] else YES_NO[1], flown=False)
        for a in samples
        if a.flown and a.looks == looks and a.frame >= first
    ]


def _reference(looks: tuple[int, int]) -> str:
    return f"the {COLOUR_WORDS[looks[1]]} {KINDS[looks[0]]}"


def _shown_near(stream: TrainingStream, last: int, looks: tuple[int, int]) -> np.ndarray:
    """The frames up to the last one that show such an object from near: a few pixels of it are no frame that a bank
    would keep, and say nothing of where it is."""
    sights = stream.sights[: last + 1]
    near = sights[:, DISTANCE] <= distance_code(SHOWN_FROM_M)
    return np.flatnonzero((showing(sights, looks) & near).any(axis=1))


def _with_whereabouts(stream: TrainingStream, a: Sample) -> Sample:
    """The sample with the line of the bank below its instruction, where recalled frames alone show what it names."""
    shown = _shown_near(stream, a.frame, a.looks)
    if not (a.is_call and a.looks[0] and len(shown) and all(stream.labels[i] for i in shown)):
        return a
    taken, here = stream.places[shown[-1]], stream.places[a.frame]
    north, west = (taken - here)[:2]
    bearing_deg = math.degrees(math.atan2(west, north) - here[2])
    line = whereabouts(_reference(a.looks), math.hypot(north, west), bearing_deg)
    instruction, end, rest = re.split(r"(\n|<\|im_end\|>)", a.text, maxsplit=1)
    return replace(a, text=f"{instruction}\n{line}{end}{rest}")


@dataclass
class Batch:
    """Streams and some of their samples, made ready. S streams of at most F frames, A samples each (padded)."""

    frames: np.ndarray  # (all frames, HEIGHT, WIDTH, 3)
    sights: Tensor  # (all frames, rows, BINS)
    counts: list[int]  # frames of each stream
    placed: Tensor  # (all frames,): first token of each one's chunk, of S * M; M tokens of memory behind the prompt
    labels: Tensor  # (S, M): ids of the texts before recalled frames, -1 elsewhere
    at_memory: Tensor  # (3, S, M): positions
    text: Tensor  # (S, A, tokens) ids, 0 where padded
    positions: Tensor  # (3, S * A, tokens)
    shown: Tensor  # (S, A, prime + M): 0, or HIDDEN where a sample must not see
    at: Tensor  # (targets, 2): sample (of S * A) and token whose logits are judged
    targets: Tensor
    asked: Tensor  # (asked, 2): sample and token at which its answer begins
    goals: Tensor  # (asked, 4): Sample.goal
    found: Tensor  # (asked, prime + M): whether a token shows what the sample's words name


def drawn_samples(stream: TrainingStream, most: int, rng: np.random.Generator) -> list[Sample]:
    """At most `most` of a stream's samples. Those of the instruction that was flown, and those whose object is in
    sight or in a recalled frame only, are drawn more often: most pictures show none of most objects, and that is soon
    learnt."""
    if len(stream.samples) <= most:
        return stream.samples
    recalled_at = next((i for i, label in enumerate(stream.labels) if label), len(stream.frames))
    weight = np.array(
        [
            (2.0 if a.flown else 1.0) * (4.0 if a.goal[0] or (a.goal[1] and a.frame > recalled_at) else 1.0)
            for a in stream.samples
        ]
    )
    picked = rng.choice(len(weight), most, replace=False, p=weight / weight.sum())
    return [stream.samples[i] for i in sorted(picked)]


def make_batch(
    words: TextEncoder, streams: Sequence[TrainingStream], most_asks: int, rng: np.random.Generator
) -> Batch:
    """Lays out streams with at most `most_asks` of each one's samples, drawn."""
    drawn = [drawn_samples(stream, most_asks, rng) for stream in streams]
    asks = max(1, *(len(samples) for samples in drawn))
    encoded = [[(words.encoded(a.text), *words.answer(a.answer)) for a in samples] for samples in drawn]
    longest = max((len(t) + len(answer) - 1 for row in encoded for t, answer, _ in row), default=1)
    prime = len(words.prime)
    laid = [layout([words.encoded(label) if label else () for label in stream.labels]) for stream in streams]
    most = max(len(one.ids) for one in laid)
    text = np.zeros((len(streams), asks, longest), np.int64)
    seen_up_to = np.ones((len(streams), asks), np.int64)
    first = np.ones((len(streams), asks), np.int64)
    at, targets, asked, goals = [], [], [], []
    for row, (samples, texts) in enumerate(zip(drawn, encoded, strict=True)):
        for column, (a, (question, answer, free)) in enumerate(zip(samples, texts, strict=True)):
            index = row * asks + column
            ids = [*question, *answer[:-1]]
            text[row, column, : len(ids)] = ids
            seen_up_to[row, column] = prime + laid[row].ends[a.frame]
            first[row, column] = prime + laid[row].spans[a.frame]
            at += [(index, len(question) + i - 1) for i in free]
            targets += [answer[i] for i in free]
            asked.append((index, len(question) + free[0] - 1))
            goals.append(a.goal)
    tokens = prime + most
    found = [
        _tokens_showing(stream, a, prime + one.first, tokens)
        for stream, samples, one in zip(streams, drawn, laid, strict=True)
        for a in samples
    ]
    seen = np.arange(tokens) < seen_up_to[..., None]
    labels = np.full((len(streams), most), -1)
    at_memory = np.zeros((3, len(streams), most), np.int64)
    for row, one in enumerate(laid):
        labels[row, : len(one.ids)] = one.ids
        at_memory[:, row, : len(one.ids)] = prime + one.positions
    return Batch(
        np.concatenate([stream.frames for stream in streams]),
        torch.from_numpy(np.concatenate([stream.sights for stream in streams])).long(),
        [len(stream.frames) for stream in streams],
        torch.from_numpy(np.concatenate([row * most + one.first for row, one in enumerate(laid)])),
        torch.from_numpy(labels),
        torch.from_numpy(at_memory),
        torch.from_numpy(text),
        (torch.from_numpy(first.ravel())[:, None] + torch.arange(longest)).expand(3, -1, -1),
        torch.from_numpy(np.where(seen, np.float32(0), np.float32(HIDDEN))),
        torch.tensor(at).view(-1, 2),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(asked).view(-1, 2),
        torch.tensor(goals, dtype=torch.float32).view(-1, 4),
        torch.from_numpy(np.array(found, bool).reshape(-1, tokens)),
    )


def _tokens_showing(stream: TrainingStream, a: Sample, first: np.ndarray, tokens: int) -> np.ndarray:
    """Which tokens of the memory (tokens,) show the object that a sample names: those of the picture's columns, in all
    frames up to the sample's. first: of each frame's chunk."""
    shows: np.ndarray = np.zeros(tokens, bool)
    if not a.looks[0]:
        return shows
    bins = showing(stream.sights[: a.frame + 1], a.looks)
    columns = bins.reshape(len(bins), COLUMNS, -1).any(axis=2)
    at = first[: len(bins), None] + 1 + np.arange(TOKENS_PER_FRAME)
    shows[at] = np.tile(columns, (1, ROWS))
    return shows


# -- passes ------------------------------------------------------------------------------------------------------


def _linear(x: Tensor, layer: Any) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _norm(x: Tensor, layer: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), layer.weight.to(x.dtype), layer.variance_epsilon)


def _mlp(x: Tensor, mlp: Any) -> Tensor:
    return _linear(F.silu(_linear(x, mlp.gate_proj)) * _linear(x, mlp.up_proj), mlp.down_proj)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b, cos, sin = x[..., :half], x[..., half:], cos[..., :half], sin[..., :half]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (n, heads, tokens, d); k, v (n, heads of keys, all tokens, d); mask (tokens, all tokens) is added."""
    n, heads, tokens, d = q.shape
    shared = k.shape[1]
    scores = (q * d**-0.5).reshape(n, shared, heads // shared * tokens, d) @ k.transpose(-1, -2)
    if mask is not None:
        scores = (scores.unflatten(2, (-1, tokens)) + mask).flatten(2, 3)
    mixed: Tensor = (scores.softmax(-1) @ v).view(n, heads, tokens, d)
    return mixed


class VisionPass(nn.Module):
    """transformers' vision tower over many pictures of one size at once (its own forward loops over them)."""

    visual: Any

    def __init__(self, visual: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.visual, self.dtype = visual, dtype
        row, column = torch.meshgrid(torch.arange(2 * ROWS), torch.arange(2 * COLUMNS), indexing="ij")
        at = torch.stack([row, column], -1).view(ROWS, 2, COLUMNS, 2, 2).transpose(1, 2).reshape(-1, 2)
        cos, sin = self.visual.rotary_pos_emb(at.float(), at)
        self.cos, self.sin = cos.to(dtype), sin.to(dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (n, patches, pixels) to embeddings (n, TOKENS_PER_FRAME, hidden)."""
        visual = self.visual
        weight = visual.patch_embed.proj.weight.sum(2).flatten(1)  # over two equal frames
        x = F.linear(patches.to(self.dtype), weight.to(self.dtype))
        for block in visual.blocks:
            attention = block.attn
            qkv = _linear(_norm(x, block.norm1), attention.qkv)
            q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = _rotated(q, self.cos, self.sin), _rotated(k, self.cos, self.sin)
            x = x + _linear(_attended(q, k, v).transpose(1, 2).flatten(2), attention.proj)
            x = x + _mlp(_norm(x, block.norm2), block.mlp)
        merger = visual.merger
        grouped = _norm(x, merger.ln_q).view(len(x), TOKENS_PER_FRAME, merger.hidden_size)
        return _linear(F.gelu(_linear(grouped, merger.mlp[0])), merger.mlp[2])


KeysValues = tuple[Tensor, Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class DecoderPass(nn.Module):
    """transformers' decoder: the prompt once, frames of each stream, and the words of many samples of each."""

    text_model: Any

    def __init__(self, text_model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.text_model, self.dtype = text_model, dtype

    def embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.text_model.embed_tokens(ids).to(self.dtype)
        return embedded

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (n, 1, tokens, d) of positions (3, n, tokens), the axes interleaved as Qwen2.5-VL does."""
        rotary, config = self.text_model.rotary_emb, self.text_model.config
        sections = config.rope_parameters["mrope_section"]
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
        angles = positions[axis].permute(1, 2, 0).double() * rotary.inv_freq.double()
        angles = torch.cat([angles, angles], -1).unsqueeze(1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _layer(self, layer: Any, x: Tensor, rope: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        own = layer.self_attn
        h = _norm(x, layer.input_layernorm)
        q, k, v = (
            _linear(h, part).unflatten(-1, (-1, own.head_dim)).transpose(-2, -3)
            for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        mixed = attention(_rotated(q, *rope), _rotated(k, *rope), v)
        x = x + _linear(mixed.transpose(-2, -3).flatten(-2), own.o_proj)
        return x + _mlp(_norm(x, layer.post_attention_layernorm), layer.mlp)

    def prime(self, ids: Tensor) -> list[KeysValues]:
        """Keys and values (1, heads, tokens, d) of the prompt, for each layer."""
        count, kept = len(ids), list[KeysValues]()
        x, rope = self.embed(ids)[None], self._rope(torch.arange(count).expand(3, 1, -1))
        later = torch.full((count, count), HIDDEN, dtype=self.dtype).triu(1)
        for layer in self.text_model.layers:

            def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                kept.append((k, v))
                return _attended(q, k, v, later)

            x = self._layer(layer, x, rope, attention)
        return kept

    def frames(
        self, chunks: Tensor, positions: Tensor, prompt: list[KeysValues]
    ) -> tuple[list[KeysValues], Tensor]:
        """Keys and values (S, heads, prompt and memory, d) after chunks (S, M, hidden) at positions (3, S, M), and the
        chunks' hidden states after the first layer."""
        rows, tokens, before = len(chunks), chunks.shape[1], prompt[0][0].shape[2]
        rope = self._rope(positions)
        later = torch.full((tokens, before + tokens), HIDDEN, dtype=self.dtype).triu(1 + before)
        x, kept, states = chunks, list[KeysValues](), list[Tensor]()
        for layer, (first_keys, first_values) in zip(self.text_model.layers, prompt, strict=True):

            def attention(
                q: Tensor, k: Tensor, v: Tensor, fk: Tensor = first_keys, fv: Tensor = first_values
            ) -> Tensor:
                k = torch.cat([fk.expand(rows, -1, -1, -1), k], 2)
                v = torch.cat([fv.expand(rows, -1, -1, -1), v], 2)
                kept.append((k, v))
                return _attended(q, k, v, later)

            x = self._layer(layer, x, rope, attention)
            states.append(x)
        return kept, states[0]

    def words(self, batch: Batch, memory: list[KeysValues]) -> tuple[list[Tensor], Tensor]:
        """The words of all samples on their streams' memory: hidden states (S * A, tokens, hidden) after each layer,
        and last those after the final norm; and how far the answers' first tokens look at what their words name."""
        streams, asks, tokens = batch.text.shape
        x = self.embed(batch.text)
        cos, sin = (t.view(streams, asks, 1, tokens, -1) for t in self._rope(batch.positions))
        shown = batch.shown.to(self.dtype)[:, None, :, None]
        later = torch.full((tokens, tokens), HIDDEN, dtype=self.dtype).triu(1)
        states, looked = list[Tensor](), list[Tensor]()
        for number, (layer, (keys, values)) in enumerate(zip(self.text_model.layers, memory, strict=True)):

            def attention(
                q: Tensor, k: Tensor, v: Tensor, mk: Tensor = keys, mv: Tensor = values, n: int = number
            ) -> Tensor:
                mixed, weights = _attended_tails(q, k, v, mk, mv, shown, later)
                if n in LOOKING_LAYERS:
                    looked.append(_look_loss(weights, batch, tokens))
                return mixed

            x = self._layer(layer, x, (cos, sin), attention)
            states.append(x.flatten(0, 1))
        states.append(_norm(x, self.text_model.norm).flatten(0, 1))
        return states, torch.stack(looked).mean()


def _look_loss(weights: Tensor, batch: Batch, tokens: int) -> Tensor:
    """Of the attention of the answers' first tokens, in the first half of the heads, the share on tokens that show
    what the words name: its negative logarithm, over the samples whose memory shows it. weights (S, heads of keys, A,
    group * tokens, all)."""
    streams, shared, asks = weights.shape[:3]
    by_head = weights.unflatten(3, (-1, tokens))[:, : shared // 2]
    of_sample = by_head.permute(0, 2, 4, 1, 3, 5).reshape(streams * asks, tokens, -1, weights.shape[-1])
    rows = of_sample[batch.asked[:, 0], batch.asked[:, 1]][..., : batch.found.shape[1]]
    there = batch.found.any(1)
    share = (rows * batch.found[:, None]).float().sum(-1)
    count = there.sum().clamp(min=1) * share.shape[1]
    loss: Tensor = (-torch.log(share + 1e-3) * there[:, None]).sum() / count
    return loss


def _attended_tails(
    q: Tensor, k: Tensor, v: Tensor, mk: Tensor, mv: Tensor, shown: Tensor, later: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of many tails to one memory and each to itself, and its weights. q (S, A, heads, tokens, d); k, v of
    the tails; mk, mv (S, heads of keys, all tokens, d) of the memory; shown (S, 1, A, 1, all tokens) and later
    (tokens, tokens) are added."""
    streams, asks, heads, tokens, d = q.shape
    shared, group = k.shape[2], heads // k.shape[2]
    q = (
        (q * d**-0.5).unflatten(2, (shared, group)).permute(0, 2, 1, 3, 4, 5)
    )  # S, shared, A, group, tokens, d
    of_memory = (q.reshape(streams, shared, -1, d) @ mk.transpose(-1, -2)).view(
        streams, shared, asks, group * tokens, -1
    ) + shown
    q = q.reshape(streams, shared, asks, group * tokens, d)
    of_tail = (q @ k.permute(0, 2, 1, 4, 3)).unflatten(3, (group, tokens)) + later
    weights = torch.cat([of_memory, of_tail.flatten(3, 4)], -1).softmax(-1)
    split = mk.shape[2]
    mixed = (weights[..., :split].reshape(streams, shared, -1, split) @ mv).view(q.shape)
    mixed = mixed + weights[..., split:] @ v.permute(0, 2, 1, 3, 4)
    return mixed.unflatten(3, (group, tokens)).permute(0, 2, 1, 3, 4, 5).flatten(2, 3), weights


# -- heads that only training has --------------------------------------------------------------------------------


class SightHead(nn.Module):
    """From a picture's embeddings: for each of BINS columns what stands there, in which colour, how far, and how far
    the way is free. So the vision tower learns all objects of a picture at once, whatever is asked."""

    def __init__(self, hidden: int):
        super().__init__()
        self.each = len(KINDS) + len(COLOUR_WORDS) + 2
        self.layer = nn.Linear(ROWS * hidden, BINS // COLUMNS * self.each)

    def forward(self, seen: Tensor) -> Tensor:
        """Embeddings (n, TOKENS_PER_FRAME, hidden) to (n, BINS, each)."""
        columns = seen.float().unflatten(1, (ROWS, COLUMNS)).transpose(1, 2).flatten(2)
        found: Tensor = self.layer(columns).unflatten(-1, (-1, self.each)).flatten(1, 2)
        return found

    def loss(self, seen: Tensor, sights: Tensor) -> Tensor:
        """sights (n, rows, BINS) as SightLabels.bins."""
        kind, colour, far = self.forward(seen).split((len(KINDS), len(COLOUR_WORDS), 2), -1)
        here = sights[:, KIND] > 0
        weight = 1.0 + 3.0 * (sights[:, COLOUR] > 0)  # columns with something to be named count four times
        kinds = F.cross_entropy(kind.flatten(0, 1), sights[:, KIND].flatten(), reduction="none")
        colours = F.cross_entropy(colour.flatten(0, 1), sights[:, COLOUR].flatten(), reduction="none")
        both = ((kinds + colours).view(weight.shape) * weight).sum() / weight.sum()
        wanted = torch.stack([sights[:, DISTANCE], sights[:, FREE]], -1) / 64.0
        off = F.smooth_l1_loss(far, wanted, beta=0.1, reduction="none")
        return both + (off[..., 0] * here).sum() / here.sum().clamp(min=1) + off[..., 1].mean()


class GoalHead(nn.Module):
    """From where a sample's answer begins: whether what its words name is in sight, or known from the memory, and
    where."""

    def __init__(self, hidden: int):
        super().__init__()
        self.layer = nn.Linear(hidden, 6)

    def loss(self, hidden: Tensor, goals: Tensor) -> Tensor:
        """hidden (n, hidden); goals (n, 4) as Sample.goal."""
        out = self.layer(hidden.float())
        seen, known, bearing, distance = goals.unbind(-1)
        sure = F.binary_cross_entropy_with_logits(out[:, 0], seen) + F.binary_cross_entropy_with_logits(
            out[:, 1], known
        )
        across = torch.tan(bearing.clamp(-0.9, 0.9))
        near = F.smooth_l1_loss(out[:, 2], across, beta=0.05, reduction="none")
        far = F.smooth_l1_loss(
            out[:, 3], torch.log(distance.clamp(min=0.3) / 4.0), beta=0.1, reduction="none"
        )
        round_about = torch.stack([bearing.sin(), bearing.cos()], -1)
        turn = F.smooth_l1_loss(out[:, 4:], round_about, beta=0.2, reduction="none").sum(-1)
        in_sight = ((2 * near + far) * seen).sum() / seen.sum().clamp(min=1)
        return sure + in_sight + (turn * known).sum() / known.sum().clamp(min=1)


class PlaceHead(nn.Module):
    """From a picture's tokens after the decoder's first layer: in which row and column of the picture they stand. The
    vision tower knows only relative places, so a token tells nothing of left and right until the decoder has learnt
    this."""

    def __init__(self, hidden: int):
        super().__init__()
        self.layer = nn.Linear(hidden, ROWS + COLUMNS)

    def loss(self, tokens: Tensor) -> Tensor:
        """tokens (frames, TOKENS_PER_FRAME, hidden)."""
        row, column = self.layer(tokens.float()).split((ROWS, COLUMNS), -1)
        at = torch.arange(TOKENS_PER_FRAME).expand(len(tokens), -1).flatten()
        rows = F.cross_entropy(row.flatten(0, 1), at // COLUMNS)
        return rows + F.cross_entropy(column.flatten(0, 1), at % COLUMNS)


class TrainingModel(nn.Module):
    """The model with the heads that only training has. dtype: of the passes; the weights stay float32."""

    model: Any

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        words: TextEncoder,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.model, self.text = model, words
        self.vision = VisionPass(model.model.visual, dtype)
        self.decoder = DecoderPass(model.model.language_model, dtype)
        hidden = self.model.config.text_config.hidden_size
        self.auxiliary = nn.ModuleDict(
            {
                "sight": SightHead(hidden),
                "middle": GoalHead(hidden),
                "last": GoalHead(hidden),
                "place": PlaceHead(hidden),
            }
        )

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, HEIGHT, WIDTH) in 0..255 to embeddings (n, TOKENS_PER_FRAME, hidden)."""
        embeddings: Tensor = self.vision(patches_of(pixels))
        return embeddings

    def sight_loss(self, seen: Tensor, sights: Tensor) -> Tensor:
        head: Any = self.auxiliary["sight"]
        loss: Tensor = head.loss(seen, sights)
        return loss

    def forward(self, batch: Batch, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the embeddings of the batch's frames: logits (targets, vocabulary) at the free tokens, the loss of the
        heads that tell where the goal is, and that of looking at it."""
        memory, chunks = self._memory(seen, batch)
        states, looked = self.decoder.words(batch, memory)
        place: Any = self.auxiliary["place"]
        judged = states[-1][batch.at[:, 0], batch.at[:, 1]]
        logits = F.linear(judged, self.model.lm_head.weight.to(judged.dtype)).float()
        heads: list[tuple[Any, Tensor]] = [
            (self.auxiliary["middle"], states[-4]),
            (self.auxiliary["last"], states[-2]),
        ]
        losses = [
            head.loss(state[batch.asked[:, 0], batch.asked[:, 1]], batch.goals) for head, state in heads
        ]
        pictures = chunks.flatten(0, 1)[batch.placed[:, None] + 1 + torch.arange(TOKENS_PER_FRAME)]
        return logits, torch.stack(losses).mean() + 0.5 * place.loss(pictures), looked

    def _memory(self, seen: Tensor, batch: Batch) -> tuple[list[KeysValues], Tensor]:
        """Keys and values of the prompt and each stream's frames, as the engine's cache holds them; see
        DecoderPass.frames."""
        edges = self.decoder.embed(torch.tensor([self.text.vision_start, self.text.vision_end]))
        start, end = edges.expand(len(seen), -1, -1).split(1, dim=1)
        rows, tokens = batch.labels.shape
        filled = (batch.placed[:, None] + torch.arange(CHUNK_TOKENS)).flatten()
        said = torch.nonzero(batch.labels.flatten() >= 0).flatten()
        memory = torch.zeros(rows * tokens, seen.shape[-1], dtype=seen.dtype)
        memory = memory.index_copy(0, filled, torch.cat([start, seen, end], dim=1).flatten(0, 1))
        memory = memory.index_copy(0, said, self.decoder.embed(batch.labels.flatten()[said]))
        prompt = self.decoder.prime(torch.tensor(self.text.prime))
        return self.decoder.frames(memory.view(rows, tokens, -1), batch.at_memory, prompt)
