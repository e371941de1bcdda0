"""Experiment B: more than 300 frames at three budgets, one after the other, without running out of memory."""

from __future__ import annotations

from pathlib import Path

import torch

from vlm_perception.engine import QwenModel, VideoStreamingInference

from .films import pictures
from .setting import BUDGETS, SAFE_BUDGET, Report, Setting


def experiment_b(given: Setting, video: Path | None) -> Report:
    """No out-of-memory: 320 frames in 80 chunks at three budgets, one after the other."""
    report = given.report("b", "Experiment B: no out-of-memory over 320 frames")
    size = (448, 336) if given.scaled else (1920, 1080)
    probe = VideoStreamingInference(given.model, max_cache_tokens=SAFE_BUDGET)
    film = pictures(*size)
    tokens = probe.append_video_chunk([next(film) for _ in range(4)]).tokens
    del probe
    report.say(f"frames of {size[0]}x{size[1]}, 4 a chunk of about {tokens} tokens")
    report.facts["runs"] = []
    for true_budget in BUDGETS:
        budget = given.budget(true_budget, tokens)
        stream = VideoStreamingInference(given.model, max_cache_tokens=budget, tail_tokens=256)
        report.say(
            f"budget {budget} tokens (stands for {true_budget})"
            if given.scaled
            else f"budget {budget} tokens"
        )
        rows = []
        for chunk in range(1, 81):
            stream.append_video_chunk([next(film) for _ in range(4)], fps=2.0)
            if chunk % 10 == 0:
                info = stream.get_cache_info()
                row = (chunk, info["cache_seq_length"], info["total_evictions"], _memory(given.model))
                rows.append(row)
                report.say(
                    f"  chunk {row[0]:3}  cache {row[1]:7}  evictions {row[2]:3}  memory {row[3] / 2**20:9.1f} MiB"
                )
        lengths, memory = [row[1] for row in rows], [row[3] for row in rows]
        label = f"budget {budget}"
        report.check(f"{label}: evictions happen", rows[-1][2] > 10)
        report.check(f"{label}: the cache stays within the budget", max(lengths) <= budget)
        report.check(
            f"{label}: the cache length is stable once full", max(lengths[4:]) - min(lengths[4:]) <= tokens
        )
        report.check(f"{label}: memory is stable once full", max(memory[4:]) <= 1.02 * min(memory[4:]))
        names = ("chunk", "cache", "evictions", "memory_bytes")
        report.facts["runs"].append(
            {"budget": budget, "rows": [dict(zip(names, row, strict=True)) for row in rows]}
        )
        del stream
    return report


def _memory(model: QwenModel) -> int:
    if model.device.type == "cuda":
        return torch.cuda.memory_allocated()
    import psutil

    return int(psutil.Process().memory_info().rss)
