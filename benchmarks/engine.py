"""The streaming engine against the hardware's ideal and against four honest ways to do without it.

python benchmarks/engine.py [--quick] [--device cpu] writes benchmarks/results/engine.json (`make bench-engine`).

On a CPU: float32, random weights in Qwen2.5-VL-3B's proportions, cache filled with random keys and values (speed does
not depend on their values). Absolute times mean little on a shared machine, so everything compared is interleaved in
one run and judged by the ratio of medians. "Bytes moved" are the operands that every tensor operation reads and writes
(what a kernel re-reads from a cache of the processor is not seen); the ideal is derived in `ideal_bytes`.
On a GPU: the 3B model's true shape in bfloat16, and the fraction of the roofline reached.

Baselines, on the same weights (vlm_perception.testing.baselines):
  a  the growing design: transformers' own forward and DynamicCache, a full clone of the cache for each ask
  b  keys kept without rotation, all of them rotated at every step (as StreamingVLM does), otherwise our engine
  c  no memory: the last 4 frames and the question computed for each ask (as SimpleStream does)
  d  everything recomputed for each ask
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nav_eval import machine
from vlm_perception.engine import QwenModel, VideoStreamingInference, json_grammar
from vlm_perception.engine.decoder import Decoder, DecoderShape
from vlm_perception.engine.decoding import Constraint
from vlm_perception.engine.device import check_cuda
from vlm_perception.engine.kv_cache_eviction import Chunk
from vlm_perception.engine.preprocess import PictureFormat
from vlm_perception.engine.stream_qwen_model import Tokens
from vlm_perception.prompting import call_schema
from vlm_perception.testing import operators, triton_interpreter
from vlm_perception.testing.baselines import Growing, RotateAll, check_equal_outputs
from vlm_perception.testing.kernels import count_kernels
from vlm_perception.testing.tiny_model import (
    SHAPE_3B,
    make_tokenizer,
    random_checkpoint,
    random_model,
)

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/engine.json"
CHUNK, QUESTION, ANSWER, LAST_FRAMES = 32, 30, 20, 4  # tokens of a 224x112 pair; an ask; frames of baseline c
LARGE_CHUNK = 192  # a 448x336 pair
# The 3B's attention (16 query heads on 2 KV heads of 128); a third of its layers, a narrow MLP: this fits a CPU.
CPU_SHAPE = {
    "layers": 12,
    "hidden": 2048,
    "heads": 16,
    "kv_heads": 2,
    "intermediate": 512,
    "vocabulary": 4096,
}


# -- models ------------------------------------------------------------------------------------------------------
def make_model(shape: dict[str, int], device: str = "cpu", dtype: torch.dtype = torch.float32) -> QwenModel:
    torch.manual_seed(0)
    model = random_model(shape, device, dtype)
    model.stop_tokens = set()  # random weights may say anything; answers have the length asked for
    return model


def make_checkpoint(shape: dict[str, int], device: str, dtype: torch.dtype) -> Any:
    """transformers' own model with the same weights as `make_model`'s."""
    torch.manual_seed(0)
    checkpoint, _ = random_checkpoint(shape, device, dtype)
    return checkpoint


def fill(stream: VideoStreamingInference, tokens: int, chunk: int = CHUNK) -> None:
    """Random keys and values in place of `tokens` tokens of video; the first chunk is the sink."""
    cache = stream.cache
    cache.keys.normal_()
    cache.values.normal_()
    while cache.length < tokens:
        count = min(chunk, tokens - cache.length)
        position = stream.model.stream_state.next_position
        cache.commit(Chunk(cache.next_chunk_id, (("video", count),), (position, position + 24)))
        stream.model.advance(position + 24)


def chunk_tokens(stream: VideoStreamingInference, count: int) -> Tokens:
    """A chunk of random embeddings, ready for the decoder (the vision tower runs apart and is the same for all)."""
    hidden = stream.qwen.decoder.shape.hidden
    position = stream.model.stream_state.next_position
    embeddings = torch.randn(count, hidden, dtype=stream.qwen.dtype, device=stream.qwen.device)
    positions = (torch.arange(count) % 24 + position).expand(3, -1)
    return Tokens(embeddings, positions, (("video", count),), (position, position + 24))


# -- bytes -------------------------------------------------------------------------------------------------------
class BytesMoved(TorchDispatchMode):
    """Adds up what every operation reads and writes: its operands, each once. Views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.by_operation: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose() and func.name() != "aten::linear":
            with self:  # composite operations are seen as what they are made of
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        inputs = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        storages = {t.untyped_storage().data_ptr() for t in inputs}
        mutates = func._schema.is_mutable
        is_view = not mutates and outputs and all(t.untyped_storage().data_ptr() in storages for t in outputs)
        if is_view or func.name() in ("aten::empty.memory_format", "aten::lift_fresh", "aten::detach"):
            return result
        if func.name() in ("aten::embedding", "aten::index.Tensor"):
            moved = 2 * sum(map(size, outputs))  # only the rows looked up
        elif func.name() == "aten::copy_":
            moved = size(args[0]) + size(args[1])  # the target is written and not read
        elif mutates and "out" in kwargs:
            moved = sum(map(size, inputs))  # `out` is among the inputs, and written
        else:
            moved = sum(map(size, inputs)) + sum(map(size, outputs))
        self.total += moved
        self.by_operation[func.name()] = self.by_operation.get(func.name(), 0) + moved
        return result


def size(tensor: Tensor) -> int:
    """Bytes of the elements a tensor really has: a dimension repeated by stride 0 is there once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else min(length, 1)
    return count * tensor.element_size()


def weight_bytes(decoder: Decoder) -> int:
    """Bytes of the layers and the head."""
    return sum(
        t.numel() * t.element_size()
        for t in [decoder.norm, decoder.head, *(t for layer in decoder.layers for t in vars(layer).values())]
    )


def ideal_bytes(stream: VideoStreamingInference, cached: int, new: int, logits: bool) -> int:
    """The least that `new` tokens behind `cached` ones can move: every weight of the layers read once (of the head
    only where a token is chosen), every cached key and value read once, the new ones written once, and what goes into
    and comes out of each matrix product once, since these are separate kernels."""
    decoder, per_token = stream.qwen.decoder, stream.cache.bytes_per_token
    s = decoder.shape
    head = decoder.head.numel() * decoder.head.element_size()
    intermediate = decoder.layers[0].down.shape[1]
    attention = s.heads * s.head_dim
    fused = attention + 2 * s.kv_heads * s.head_dim
    widths = (s.hidden + fused) + 2 * attention + (attention + s.hidden) + (s.hidden + 2 * intermediate)
    widths += intermediate + s.hidden
    activations = new * s.layers * widths * decoder.embedding.element_size()
    return weight_bytes(decoder) - (0 if logits else head) + per_token * (cached + new) + activations


def measure_append_bytes(stream: VideoStreamingInference, cached: int, count: int) -> float:
    tokens = chunk_tokens(stream, count)
    with BytesMoved() as append, torch.inference_mode():
        stream._forward(tokens)
    return append.total / ideal_bytes(stream, cached, count, logits=False)


def measure_bytes(stream: VideoStreamingInference, cached: int) -> dict[str, Any]:
    """Bytes moved over the ideal for a decoded token, an appended chunk and an eviction, and bytes of a snapshot."""
    cache = stream.cache
    large = measure_append_bytes(stream, cached, LARGE_CHUNK)
    snapshot = cache.snapshot(stream.model)
    with BytesMoved() as decode, torch.inference_mode():
        stream.qwen.decoder.logits(stream._feed([5]))
    cache.restore(stream.model, snapshot)
    tokens = chunk_tokens(stream, CHUNK)
    with BytesMoved() as append, torch.inference_mode():
        stream._forward(tokens)
    with BytesMoved() as snap:
        taken = cache.snapshot(stream.model)
    with BytesMoved() as back:
        cache.restore(stream.model, taken)
    cache.commit(Chunk(cache.next_chunk_id, tokens.runs, tokens.span))
    with BytesMoved() as evict, torch.inference_mode():
        gone = cache.evict_if_needed()
    assert gone, "the budget must be full"
    sink = cache.evictor.effective_sink_size
    ideal = {
        "decode": ideal_bytes(stream, cached, 1, logits=True),
        "append": ideal_bytes(stream, cached, CHUNK, logits=False),
        "evict": 2 * sink * cache.bytes_per_token,  # pristine sink read, sink written
    }
    moved = {"decode": decode.total, "append": append.total, "evict": evict.total}
    # Once per headroom of appended tokens the live region moves to the front: read and written once.
    slide = 2 * cached * cache.bytes_per_token * CHUNK / (cache.capacity - cached)
    return {
        "bytes_moved": moved,
        "bytes_ideal": ideal,
        "bytes_over_ideal": {name: moved[name] / ideal[name] for name in moved},
        "slide_bytes_per_chunk": int(slide),
        "append_with_slide_over_ideal": (moved["append"] + slide) / ideal["append"],
        "copied_bytes": {"snapshot": snap.total, "restore": back.total},
        "append_of_192_tokens_over_ideal": large,
    }


# -- time --------------------------------------------------------------------------------------------------------
def interleaved(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, all of them once per round so that disturbances hit all alike; the last round's order is
    the first's reversed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats):
        names = list(runs) if i % 2 == 0 else list(runs)[::-1]
        for name in names:
            times[name].append(_timed(runs[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_length(model: QwenModel, checkpoint: Any, cached: int, repeats: int) -> dict[str, Any]:
    """Seconds of everything at one cache length, ours and the baselines'."""
    stream = VideoStreamingInference(model, max_cache_tokens=cached)
    fill(stream, cached)
    cache = stream.cache
    growing = Growing(checkpoint, cache.live_keys(), cache.live_values())
    rotating, rotating_lean = RotateAll(stream, lean=False), RotateAll(stream, lean=True)
    position = stream.model.stream_state.next_position
    question = torch.randint(300, (QUESTION,), device=model.device)
    ids = question.tolist()
    everywhere = torch.arange(cached + 1, device=model.device).expand(3, -1)
    one = torch.full((3, 1), position, device=model.device)
    embed = checkpoint.get_input_embeddings()
    chunk = chunk_tokens(stream, CHUNK)
    last = [chunk_tokens(stream, CHUNK) for _ in range(LAST_FRAMES)]
    short = VideoStreamingInference(model, max_cache_tokens=CHUNK * (LAST_FRAMES + 1))

    def decode() -> None:
        before = cache.snapshot(stream.model)
        with torch.inference_mode():
            stream._next_logits([5]).argmax()
        cache.restore(stream.model, before)

    def decode_growing() -> None:
        growing.feed(embed(question[:1]), one, growing.cache).argmax()

    def decode_rotate_all(rotating: RotateAll) -> None:
        with torch.inference_mode():
            hidden = rotating.feed(model.embed([5]), cached, everywhere)
            model.decoder.logits(hidden).argmax()
        rotating.cut(cached)

    def answer(target: VideoStreamingInference) -> None:
        with torch.inference_mode():
            before = target.cache.snapshot(target.model)
            token = int(target._next_logits(ids).argmax())
            for _ in range(ANSWER - 1):
                token = int(target._next_logits([token]).argmax())
            target.cache.restore(target.model, before)

    def ask_last_frames() -> None:
        short.reset()
        with torch.inference_mode():
            together = Tokens(
                torch.cat([c.embeddings for c in last]),
                torch.cat([c.positions for c in last], dim=1),
                (("video", CHUNK * LAST_FRAMES),),
                last[0].span,
            )
            short._forward(together)
            short.cache.length = len(together)
        answer(short)

    def append() -> None:
        with torch.inference_mode():
            stream._forward(chunk)

    def first_token() -> None:
        before = cache.snapshot(stream.model)
        with torch.inference_mode():
            stream._next_logits(ids).argmax()
        cache.restore(stream.model, before)

    seconds = interleaved(
        {
            "decode": decode,
            "decode_growing": decode_growing,
            "decode_rotate_all": lambda: decode_rotate_all(rotating),
            "decode_rotate_all_lean": lambda: decode_rotate_all(rotating_lean),
        },
        repeats,
    )
    rotating.keys = rotating.values = []
    growing.cache.crop(cached - growing.cache.get_seq_length())  # it has grown meanwhile
    asks: dict[str, Callable[[], Any]] = {
        "ask": lambda: answer(stream),
        "ask_growing": lambda: growing.ask(question, position, ANSWER),
        "ask_last_4_frames": ask_last_frames,
        "first_token": first_token,
        "clone": growing.clone,
        "snapshot_and_restore": lambda: cache.restore(stream.model, cache.snapshot(stream.model)),
    }
    seconds |= interleaved(asks, 2)
    seconds |= interleaved({"append": append}, 2)
    return seconds


def measure_recompute(model: QwenModel, lengths: list[int], block: int = 128) -> dict[int, dict[str, float]]:
    """d: prefilling everything. The smallest length is timed in full. For the others blocks are timed at several depths
    and integrated, since 20,000 tokens in full take minutes."""
    deepest = max(lengths)
    stream = VideoStreamingInference(model, max_cache_tokens=deepest + block, tail_tokens=2 * block)
    depths = [round(deepest * f) for f in (0.0, 0.25, 0.5, 1.0)]
    stream.cache.keys.normal_()
    stream.cache.values.normal_()
    tokens = chunk_tokens(stream, block)
    costs = []
    with torch.inference_mode():
        for depth in depths:
            stream.cache.length = depth
            stream._forward(tokens)
            costs.append(min(_timed(lambda: stream._forward(tokens)) for _ in range(2)))

    def integral(length: int) -> float:
        at = np.linspace(0, length, 50)
        return float(np.trapezoid(np.interp(at, depths, costs), at) / block)

    small = min(lengths)
    stream.cache.length = 0
    every = chunk_tokens(stream, small)
    with torch.inference_mode():
        in_full = min(_timed(lambda: stream._forward(every)) for _ in range(2))
    # One long pass is cheaper than blocks: the integral is scaled to the pass that was timed in full.
    found = {length: {"recompute": integral(length) * in_full / integral(small)} for length in lengths}
    return found


def _timed(run: Callable[[], Any]) -> float:
    """Seconds: on a CPU those that this process computed (one thread; others may be using the machine)."""
    on_gpu = torch.cuda.is_initialized()
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    started = clock()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - started


# -- flatness ----------------------------------------------------------------------------------------------------
def measure_flat(chunks: int) -> dict[str, Any]:
    """An aged stream of `chunks` chunks against a fresh one of the same fill, interleaved, on a small model."""
    model = make_model({"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "intermediate": 512})
    budget = 1500
    frame = np.random.default_rng(0).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    prompt = "<|im_start|>system\nYou see.<|im_end|>\n"

    def started(count: int) -> VideoStreamingInference:
        stream = VideoStreamingInference(model, max_cache_tokens=budget, tail_tokens=256)
        stream.prime(prompt)
        for _ in range(count):
            stream.append_frame(frame)
        return stream

    process = psutil.Process()
    full = budget // 14 + 2
    aged = started(full)
    gc.collect()
    resident = process.memory_info().rss
    for _ in range(chunks - full):
        aged.append_frame(frame)
    gc.collect()
    growth = process.memory_info().rss / resident - 1
    fresh = started(full)
    assert aged.cache.length == fresh.cache.length
    pairs: dict[str, list[float]] = {"append": [], "decode": []}
    for i in range(300):
        both = [("aged", aged), ("fresh", fresh)]
        took = {}
        for name, stream in both if i % 2 else both[::-1]:
            append = _timed(lambda stream=stream: stream.append_frame(frame))  # type: ignore[misc]
            decode = _timed(lambda stream=stream: stream.generate("What", max_new_tokens=4))  # type: ignore[misc]
            took[name] = (append, decode)
        for kind, a, f in zip(pairs, took["aged"], took["fresh"], strict=True):
            pairs[kind].append(a / f)
    ratios = {kind: statistics.median(values) for kind, values in pairs.items()}
    return {
        "aged_over_fresh": max(ratios.values(), key=lambda r: abs(r - 1)),
        "aged_over_fresh_append": ratios["append"],
        "aged_over_fresh_decode": ratios["decode"],
        "rss_growth": growth,
        "chunks": aged.chunks_encoded,
        "evictions": aged.cache.evictor.total_evictions,
        "bytes_per_chunk_constant": _bytes_of_one_cycle(aged, frame) == _bytes_of_one_cycle(fresh, frame),
    }


def _bytes_of_one_cycle(stream: VideoStreamingInference, frame: np.ndarray) -> list[int]:
    """Bytes moved by each append between two moves of the live region to the front, and by the move itself."""
    moves = stream.cache.moves
    while stream.cache.moves == moves:
        stream.append_frame(frame)
    moves, per_chunk = stream.cache.moves, []
    while stream.cache.moves == moves:
        with BytesMoved() as moved:
            stream.append_frame(frame)
        per_chunk.append(moved.total)
    assert len(set(per_chunk[:-1])) == 1, "between two moves every chunk moves exactly the same bytes"
    return per_chunk


# -- tool calls --------------------------------------------------------------------------------------------------
def measure_tool_call() -> dict[str, Any]:
    """The longest call of a set of drone tools under the grammar: tokens, and how many of them had to be sampled."""
    # a coarse tokenizer, so that a call has about as many tokens as in Qwen's own (45)
    tokenizer = make_tokenizer(words="name arguments", vocabulary=280)
    checkpoint, _ = random_checkpoint({"layers": 1, "vocabulary": 512}, "cpu", torch.float32)
    model = QwenModel(checkpoint, tokenizer, PictureFormat())
    numbers = [50 + 100 * i for i in range(10)]
    tools = [
        {"function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
        for name, properties in {
            "move_forward": {"distance_m": {"enum": [1, 2, 4, 8]}},
            "turn_left": {"angle_deg": {"enum": [10, 20, 30, 45, 90]}},
            "turn_right": {"angle_deg": {"enum": [10, 20, 30, 45, 90]}},
            "fly_towards": {
                "u": {"enum": numbers},
                "v": {"enum": numbers},
                "distance_m": {"enum": [1, 2, 4, 8]},
            },
            "finish": {"reason": {"enum": ["reached", "not_found", "unsafe"]}},
        }.items()
    ]
    call = '{"name": "turn_right", "arguments": {"angle_deg": 30}}'
    constraint = Constraint(model, json_grammar(call_schema(tools)))
    wanted = model.tokenize(call)
    at, sampled = len(constraint.forced()), 0
    while at < len(wanted):
        sampled += 1
        constraint.accept(wanted[at])
        at += 1 + len(constraint.forced())
    return {"call": call, "tokens": len(wanted), "sampled": sampled}


# -- what a GPU would do, counted without one -----------------------------------------------------------------------
# Of the same pass when it merged two softmaxes: 41 in each of 36 layers and 18 outside (counted by the same function).
KERNELS_WITH_MERGED_SOFTMAXES = 1494


def measure_kernels() -> dict[str, Any]:
    """ATen calls, views excluded, of one decoded token of the 3B."""
    s = SHAPE_3B
    shape = DecoderShape(
        s["layers"], s["hidden"], s["heads"], s["kv_heads"], s["hidden"] // s["heads"], s["vocabulary"], 1e-6
    )
    total = count_kernels(shape, s["intermediate"]).total()
    before = KERNELS_WITH_MERGED_SOFTMAXES
    return {"calls": total, "with_merged_softmaxes": before, "ratio": total / before}


def measure_bf16() -> dict[str, Any]:
    """Largest error of each path of attention in bfloat16 against float64; bound: what the tests hold."""
    errors: dict[str, Any] = operators.bf16_errors()
    interpreted = triton_interpreter.run_interpreted()
    errors["triton"] = max(interpreted["bf16_errors"].values()) if interpreted else triton_interpreter.MISSING
    measured = [error for error in errors.values() if isinstance(error, float)]
    return {"worst": max(measured), "bound": operators.BOUND, **errors}


# -- the whole run -----------------------------------------------------------------------------------------------
def run_cpu(quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    lengths = [500, 1000] if quick else [2000, 20000]
    model = make_model(CPU_SHAPE)
    checkpoint = make_checkpoint(CPU_SHAPE, "cpu", torch.float32)
    equal = check_equal_outputs(model, checkpoint)
    by_length: dict[str, dict[str, float]] = {}
    recompute = measure_recompute(model, lengths)
    for length in lengths:
        seconds = measure_length(model, checkpoint, length, repeats=2 if quick else 4)
        seconds |= recompute[length]
        by_length[str(length)] = seconds
        print(
            f"{length:>6} cached: " + ", ".join(f"{k} {1000 * v:.1f} ms" for k, v in seconds.items()),
            flush=True,
        )
    ratios = {length: _ratios(seconds) for length, seconds in by_length.items()}
    full = VideoStreamingInference(model, max_cache_tokens=max(lengths))
    fill(full, max(lengths))
    counted = measure_bytes(full, max(lengths))
    parameters = sum(p.numel() for p in checkpoint.model.language_model.parameters())
    return {
        "model": f"random weights, {parameters / 1e6:.0f} M parameters, the 3B's attention and a narrow MLP, float32: "
        f"{CPU_SHAPE}. The cache weighs more against the weights here than in the 3B (20,000 tokens are 0.74 GB there "
        "and the weights 6.2), so ratios to others are smaller there",
        "cached_tokens": max(lengths),
        **counted,
        "ratios": ratios[str(max(lengths))],
        "ratios_by_length": ratios,
        "seconds_by_length": by_length,
        "baselines_differ_by": equal,
        "flat": measure_flat(800 if quick else 5000),
        "tool_call": measure_tool_call(),
        "kernels_per_token": measure_kernels(),
        "bf16_error": measure_bf16(),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "on_a_gpu_it_would_measure": "the 3B shape in bfloat16: decode at 100,000 cached tokens and chunks at 32,000 "
        "and 10,000 against the roofline, peak memory, flatness over 10,000 chunks, a decision of 60 + 45 tokens at "
        "32,000",
    }


@dataclass(frozen=True)
class Scale:
    """What is measured on a GPU, so that the same code can be tried on a CPU with a small model."""

    shape: dict[str, int]
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    full: int = 100_000
    """Tokens; the budget that was asked for."""
    half: int = 32_000
    short: int = 10_000
    chunks: int = 10_000
    repeats: int = 20
    copied_bytes: int = 2**30
    product_side: int = 8192


def run_gpu(scale: Scale) -> dict[str, Any]:
    """The 3B's true shape in bfloat16 against the roofline, whose bandwidth and arithmetic are measured first."""
    bandwidth, arithmetic = _bandwidth(scale), _arithmetic(scale)
    model = make_model(scale.shape, scale.device, scale.dtype)
    weights = torch.cuda.memory_allocated() if scale.device == "cuda" else 0
    full = _measure_full(model, scale)
    chunks, fractions = (
        {},
        {f"decode at {scale.full:,}": full["decode_ideal_bytes"] / bandwidth / full["decode_s"]},
    )
    for cached, size in ((scale.half, (640, 480)), (scale.half, (448, 336)), (scale.short, (448, 336))):
        name = f"{size[0]}x{size[1]} pair at {cached:,}"
        chunks[name], roofline = _measure_chunk(model, scale, cached, size, bandwidth, arithmetic)
        fractions[name] = roofline / chunks[name]
    return {
        "model": "random weights in Qwen2.5-VL-3B's shape, bfloat16",
        "cached_tokens": scale.full,
        "roofline_fraction": fractions,
        "measured_bandwidth_bytes_per_s": bandwidth,
        "measured_flop_per_s": arithmetic,
        "decode_ms": 1000 * full["decode_s"],
        "chunk_ms": {name: 1000 * seconds for name, seconds in chunks.items()},
        "decision_ms": 1000 * _decision_s(model, scale),
        "peak_bytes": full["peak_bytes"],
        "peak_over_arithmetic": full["peak_bytes"] / (weights + full["cache_bytes"]),
        "flat": measure_flat_on_gpu(model, scale),
        "kernels_per_token": measure_kernels(),
        "bf16_error": measure_bf16(),
    }


def _pair(width: int, height: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8))


def _measure_full(model: QwenModel, scale: Scale) -> dict[str, Any]:
    """A decoded token at a full cache, and the peak of memory while chunks come and go there."""
    stream = VideoStreamingInference(model, max_cache_tokens=scale.full)
    fill(stream, scale.full, LARGE_CHUNK)
    decode = _median(lambda: _cut(stream, lambda: stream._next_logits([5]).argmax()), scale.repeats)
    ideal = ideal_bytes(stream, scale.full, 1, logits=True)
    if scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    frames = _pair(448, 336)
    for _ in range(scale.repeats):  # each evicts one
        stream.append_video_chunk(frames)
    return {
        "decode_s": decode,
        "decode_ideal_bytes": ideal,
        "peak_bytes": torch.cuda.max_memory_allocated() if scale.device == "cuda" else 0,
        "cache_bytes": stream.cache.bytes_per_token * stream.cache.capacity,
    }


def _measure_chunk(
    model: QwenModel, scale: Scale, cached: int, size: tuple[int, int], bandwidth: float, arithmetic: float
) -> tuple[float, float]:
    """Seconds of a pair of frames behind so many cached tokens, and the roofline's. There is room for what is appended:
    nothing is evicted, and the cache is as long as was asked for, and a little more."""
    stream = VideoStreamingInference(model, max_cache_tokens=cached + 500 * (scale.repeats + 4))
    fill(stream, cached)
    frames = _pair(*size)
    seconds = _median(lambda: stream.append_video_chunk(frames), scale.repeats)
    tokens = stream.cache.tracker.chunks[-1].tokens
    return seconds, _chunk_roofline(stream, cached, tokens, bandwidth, arithmetic)


def _decision_s(model: QwenModel, scale: Scale) -> float:
    """Seconds of a prompt of 60 tokens and a call of 45, most of them forced, in ten passes."""
    stream = VideoStreamingInference(model, max_cache_tokens=scale.half)
    fill(stream, scale.half)
    ids = list(range(200, 260))

    def decide() -> None:
        token = int(stream._next_logits(ids).argmax())
        for run in (1, 12, 1, 1, 12, 1, 1, 14, 1, 1):
            token = int(stream._next_logits([token] * run).argmax())

    return _median(lambda: _cut(stream, decide), max(scale.repeats // 2, 1))


def measure_flat_on_gpu(model: QwenModel, scale: Scale) -> dict[str, Any]:
    """Many chunks into a full cache: the last tenth's time over the first's, from when the budget is full."""
    stream = VideoStreamingInference(model, max_cache_tokens=scale.half)
    fill(stream, scale.half, LARGE_CHUNK)
    frames, seconds = _pair(448, 336), []
    for _ in range(scale.chunks):
        done = stream.append_video_chunk(frames)
        seconds.append(done.vision_s + done.prefill_s)
    tenth = max(scale.chunks // 10, 1)
    return {
        "last_tenth_over_first": statistics.median(seconds[-tenth:]) / statistics.median(seconds[:tenth]),
        "chunks": scale.chunks,
        "budget": scale.half,
        "evictions": stream.cache.evictor.total_evictions,
    }


def _cut(stream: VideoStreamingInference, run: Callable[[], Any]) -> None:
    with torch.inference_mode():
        before = stream.cache.snapshot(stream.model)
        run()
        stream.cache.restore(stream.model, before)


def _median(run: Callable[[], Any], repeats: int) -> float:
    for _ in range(3):
        run()
    return statistics.median(_timed(run) for _ in range(repeats))


def _bandwidth(scale: Scale) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.empty(scale.copied_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    return 2 * scale.copied_bytes / _median(lambda: target.copy_(source), scale.repeats)


def _arithmetic(scale: Scale) -> float:
    """Floating-point operations a second of a large matrix product."""
    a = torch.randn(scale.product_side, scale.product_side, dtype=scale.dtype, device=scale.device)
    return 2 * scale.product_side**3 / _median(lambda: a @ a, scale.repeats)


def _chunk_roofline(
    stream: VideoStreamingInference, cached: int, tokens: int, bandwidth: float, arithmetic: float
) -> float:
    """Seconds: the larger of moving the bytes and doing the arithmetic, for vision tower and decoder each."""
    s, blocks = stream.qwen.decoder.shape, stream.qwen.decoder.layers
    per_token = 2 * sum(layer.qkv.numel() + layer.out.numel() + layer.gate_up.numel() for layer in blocks)
    per_token += 2 * sum(layer.down.numel() for layer in blocks)
    attention = 4 * tokens * (cached + tokens / 2) * s.heads * s.head_dim * s.layers
    decoder = max(
        (per_token * tokens + attention) / arithmetic,
        ideal_bytes(stream, cached, tokens, logits=False) / bandwidth,
    )
    weights = sum(p.numel() for p in stream.qwen.vision.blocks.parameters())
    patches, vision = 4 * tokens, stream.qwen.vision.config
    full = 4 * patches**2 * vision.hidden_size * len(vision.fullatt_block_indexes)
    return decoder + max((2 * weights * patches + full) / arithmetic, 2 * weights / bandwidth)


def _ratios(s: dict[str, float]) -> dict[str, float]:
    """Larger is better for us."""
    ask_after_recompute = s["recompute"] + s["ask"]
    return {
        "decode_vs_growing_cache": s["decode_growing"] / s["decode"],
        "ask_vs_growing_cache": s["ask_growing"] / s["ask"],
        "decode_vs_rotate_all": s["decode_rotate_all"] / s["decode"],
        "decode_vs_rotate_all_lean": s["decode_rotate_all_lean"] / s["decode"],
        "ask_vs_recompute": ask_after_recompute / s["ask"],
        "ask_vs_last_4_frames": s["ask_last_4_frames"] / s["ask"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="short lengths, few repeats: a check of the script"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=None, help="default: a GPU if there is one"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        check_cuda(torch.bfloat16)
        result = run_gpu(replace(Scale(SHAPE_3B), chunks=1000) if options.quick else Scale(SHAPE_3B))
    else:
        result = run_cpu(options.quick)
    result = {"machine": machine.describe(), "threads": torch.get_num_threads(), **result}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    shown = (
        "roofline_fraction",
        "peak_over_arithmetic",
        "decision_ms",
        "bytes_over_ideal",
        "append_with_slide_over_ideal",
        "ratios",
        "copied_bytes",
        "flat",
        "tool_call",
        "kernels_per_token",
        "bf16_error",
    )
    for name in shown:
        if name in result:
            print(f"{name}: {json.dumps(result[name])}")
    print(options.out)


if __name__ == "__main__":
    main()
