"""Experiment B: more than 300 frames at three budgets, one after the other, without running out of memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vlm_perception.engine import QwenModel, VideoStreamingInference

from .films import pictures
from .setting import BUDGETS, SAFE_BUDGET, Report, Setting

CHUNKS, FRAMES, EVERY = 80, 4, 10
TAIL_TOKENS = 256
QUESTION = "What do you see?"


@dataclass(frozen=True)
class Row:
    """What was measured after so many chunks. On a CPU both kinds of memory are the process's resident memory."""

    chunk: int
    cache: int
    evictions: int
    allocated_bytes: int
    reserved_bytes: int
    first_token_ms: float


def experiment_b(given: Setting, video: Path | None, report: Report) -> None:
    """No out-of-memory: 320 frames in 80 chunks at three budgets, one after the other."""
    size = (448, 336) if given.scaled else (1920, 1080)
    tokens = _chunk_tokens(given, size)
    true_budgets = BUDGETS[:1] if given.quick else BUDGETS
    budgets = [given.budget(budget, tokens) for budget in true_budgets]
    named = ", ".join(f"{budget:,}" for budget in budgets)
    stand_for = f", standing for {', '.join(f'{b:,}' for b in true_budgets)}" if given.scaled else ""
    report.begin(given, f"budgets {named} tokens{stand_for}")
    report.say(f"frames of {size[0]}x{size[1]}, {FRAMES} a chunk of {tokens} tokens, {CHUNKS} chunks")
    report.facts |= {"frame_size": size, "chunk_tokens": tokens, "runs": []}
    for budget in budgets:
        rows = _run(given, size, budget, report)
        report.facts["runs"].append({"budget": budget, "rows": [asdict(row) for row in rows]})
        _judge(report, given, budget, tokens, rows)


def _chunk_tokens(given: Setting, size: tuple[int, int]) -> int:
    stream = VideoStreamingInference(given.model, max_cache_tokens=SAFE_BUDGET, tail_tokens=TAIL_TOKENS)
    film = pictures(*size)
    for _ in range(2):  # the first carries the opening
        done = stream.append_video_chunk([next(film) for _ in range(FRAMES)])
    return done.tokens


def _run(given: Setting, size: tuple[int, int], budget: int, report: Report) -> list[Row]:
    stream = VideoStreamingInference(given.model, max_cache_tokens=budget, tail_tokens=TAIL_TOKENS)
    film, rows = pictures(*size), []
    report.say(f"budget {budget:,} tokens")
    for chunk in range(1, CHUNKS + 1):
        stream.append_video_chunk([next(film) for _ in range(FRAMES)], fps=2.0)
        if chunk % EVERY == 0:
            _, metrics = stream.ask(QUESTION, max_new_tokens=1)
            info = stream.get_cache_info()
            memory = _memory(given.model)
            row = Row(
                chunk,
                info["cache_seq_length"],
                info["total_evictions"],
                *memory,
                round(1000 * metrics["ttft"], 1),
            )
            rows.append(row)
            report.say(
                f"  chunk {row.chunk:3}  cache {row.cache:7}  evictions {row.evictions:3}  allocated "
                f"{row.allocated_bytes / 2**20:9.1f} MiB  reserved {row.reserved_bytes / 2**20:9.1f} MiB  "
                f"first token {row.first_token_ms:7.1f} ms"
            )
    return rows


def _judge(report: Report, given: Setting, budget: int, tokens: int, rows: list[Row]) -> None:
    label, full = f"budget {budget:,}", rows[4:]
    lengths = [row.cache for row in rows]
    report.check(f"{label}: evictions happen", rows[-1].evictions > 10)
    report.check(f"{label}: the cache stays within the budget", max(lengths) <= budget)
    spread = max(row.cache for row in full) - min(row.cache for row in full)
    report.check(f"{label}: the cache length is stable once full", spread <= tokens)
    for kind in ("allocated_bytes", "reserved_bytes"):
        memory = [getattr(row, kind) for row in full]
        stable = max(memory) <= 1.02 * min(memory)
        report.check(f"{label}: memory ({kind.removesuffix('_bytes')}) is stable once full", stable)
    if given.model.device.type == "cuda":  # a CPU is shared with others, and its times say nothing
        times = sorted(row.first_token_ms for row in full)
        report.check(f"{label}: the first token's time is stable once full", times[-1] <= 1.5 * times[0])


def _memory(model: QwenModel) -> tuple[int, int]:
    """Bytes allocated and reserved."""
    if model.device.type == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    import psutil

    resident = int(psutil.Process().memory_info().rss)
    return resident, resident
