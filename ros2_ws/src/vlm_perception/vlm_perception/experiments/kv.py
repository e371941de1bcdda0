"""KV efficiency: memory, append and ask latency and time to first token against max_cache_tokens, as curves.

python -m vlm_perception.experiments.kv [--model DIR] [--budgets 10000,32000,100000] [--frames 320]

For each budget a rendered film is played into a new stream, until it has evicted for a while, and asked about it every
few chunks.
Writes kv.txt, kv.json and kv.svg.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from vlm_perception.engine import ModelError, QwenModel, VideoStreamingInference
from vlm_perception.engine.budget import check_budget, fitting_tokens

from .films import pictures
from .setting import Report, Setting, setting

# 448x336, two frames a chunk: 192 tokens with the 3B. The budgets are those asked for in real time (10K to 32K) and
# those specified with the experiments.
SIZE, FRAMES_PER_CHUNK, EVERY = (448, 336), 2, 4
BUDGETS = (10_000, 32_000, 100_000, 130_000, 150_000)
# A small model gets budgets of so many chunks instead.
SCALED_CHUNKS = (20, 60, 120)
FRAMES = 320
# Of the chunks that fill a budget, how many more are played after it is full.
BEYOND = 0.25
QUESTION, NEW_TOKENS = "What do you see?", 8
# Asks on each side of the first eviction whose medians are compared.
NEAR = 5


@dataclass(frozen=True)
class Row:
    """One ask. Latencies in ms: the median append since the row before, the whole ask, its first token.

    cache_bytes: the buffers of keys and values, exact; live_bytes: the part of them in use. rss_bytes: the process's
    resident memory. allocated and reserved: torch's peaks on the GPU since the row before, None on a CPU.
    """

    frames: int
    cache_tokens: int
    evictions: int
    append_ms: float
    ask_ms: float
    first_token_ms: float
    cache_bytes: int
    live_bytes: int
    rss_bytes: int
    allocated_bytes: int | None
    reserved_bytes: int | None


@dataclass(frozen=True)
class Run:
    """One budget, played. first_eviction: frames played when the first chunk left."""

    budget: int
    first_eviction: int | None
    rows: list[Row]

    def near_eviction(self, after: bool) -> list[Row]:
        """The asks next to the first eviction, on one side of it: the caches have nearly the same length there."""
        side = [row for row in self.rows if bool(row.evictions) is after]
        return side[:NEAR] if after else side[-NEAR:]

    def median(self, name: str, after: bool) -> float | None:
        values = [getattr(row, name) for row in self.near_eviction(after)]
        return float(np.median(values)) if values else None

    def peak(self, name: str) -> int | None:
        values = [getattr(row, name) for row in self.rows]
        return None if None in values else int(max(values))


def experiment_kv(given: Setting, budgets: Sequence[int] | None, frames: int, report: Report) -> list[Run]:
    """Play the film at each budget and judge what must hold on any machine."""
    tokens = _chunk_tokens(given.model)
    budgets = _chosen(given, budgets, tokens)
    report.begin(given, f"budgets {', '.join(f'{budget:,}' for budget in budgets)} tokens")
    report.say(
        f"{SIZE[0]}x{SIZE[1]} frames, {FRAMES_PER_CHUNK} a chunk of {tokens} tokens, an ask of {NEW_TOKENS} tokens "
        f"every {EVERY} chunks; a budget is played for {frames} frames at least and {1 + BEYOND:g} times its fill"
    )
    runs = []
    for budget in budgets:
        needed = int(budget / tokens * (1 + BEYOND)) * FRAMES_PER_CHUNK
        runs.append(_run(given.model, budget, max(frames, needed)))
        _say(report, runs[-1])
        _judge(report, given, runs[-1])
    report.facts |= {
        "frame_size": SIZE,
        "chunk_tokens": tokens,
        "runs": [{**asdict(run), "summary": _summary(run)} for run in runs],
    }
    return runs


def _chosen(given: Setting, budgets: Sequence[int] | None, chunk_tokens: int) -> Sequence[int]:
    """The budgets to play: those asked for if all fit, or of the default ones those that do."""
    if budgets is not None:
        for budget in budgets:
            check_budget(given.model, budget)
        return budgets
    if given.scaled:
        return [chunks * chunk_tokens for chunks in SCALED_CHUNKS]
    if given.model.device.type != "cuda":
        return BUDGETS
    return [budget for budget in BUDGETS if budget <= fitting_tokens(given.model)]


def _chunk_tokens(model: QwenModel) -> int:
    stream, film = VideoStreamingInference(model, max_cache_tokens=BUDGETS[0]), pictures(*SIZE)
    for _ in range(2):  # the first carries the opening
        tokens = stream.append_video_chunk([next(film) for _ in range(FRAMES_PER_CHUNK)]).tokens
    return tokens


def _run(model: QwenModel, budget: int, frames: int) -> Run:
    gc.collect()
    stream = VideoStreamingInference(model, max_cache_tokens=budget)
    stream.ask(
        QUESTION, max_new_tokens=NEW_TOKENS
    )  # what is loaded or captured at a first call is not measured
    film, rows, appends = pictures(*SIZE), [], []
    first_eviction = None
    chunks, started = frames // FRAMES_PER_CHUNK, time.perf_counter()
    for chunk in range(1, chunks + 1):
        shown = [next(film) for _ in range(FRAMES_PER_CHUNK)]
        begun = time.perf_counter()
        gone = stream.append_video_chunk(shown, fps=2.0).evicted_chunks
        appends.append(1000 * (time.perf_counter() - begun))
        if gone and first_eviction is None:
            first_eviction = chunk * FRAMES_PER_CHUNK
        if chunk % EVERY == 0:
            rows.append(_row(stream, chunk * FRAMES_PER_CHUNK, appends))
            appends = []
        if chunk % max(chunks // 10, 1) == 0:
            left = (time.perf_counter() - started) / chunk * (chunks - chunk)
            print(f"kv: budget {budget:,}: chunk {chunk} of {chunks}, {left:.0f} s left", file=sys.stderr)
    return Run(budget, first_eviction, rows)


def _row(stream: VideoStreamingInference, frames: int, appends: Sequence[float]) -> Row:
    _, metrics = stream.ask(QUESTION, max_new_tokens=NEW_TOKENS)
    info = stream.get_cache_info()
    allocated = reserved = None
    if stream.qwen.device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
    return Row(
        frames,
        info["cache_seq_length"],
        info["total_evictions"],
        round(float(np.median(appends)), 2),
        round(1000 * metrics["total"], 2),
        round(1000 * metrics["ttft"], 2),
        info["cache_bytes"],
        info["cache_seq_length"] * info["bytes_per_token"],
        int(psutil.Process().memory_info().rss),
        allocated,
        reserved,
    )


LATENCIES = {"append_ms": "append", "first_token_ms": "first token", "ask_ms": "ask"}


def _summary(run: Run) -> dict[str, Any]:
    """Medians of the asks next to the first eviction, and the peaks of memory."""
    latencies = {
        name: {"before_eviction": run.median(name, False), "after_eviction": run.median(name, True)}
        for name in LATENCIES
    }
    peaks = {
        f"peak_{name}": run.peak(name)
        for name in ("cache_bytes", "live_bytes", "rss_bytes", "allocated_bytes", "reserved_bytes")
    }
    return {**latencies, **peaks}


def _say(report: Report, run: Run) -> None:
    first = (
        "no eviction"
        if run.first_eviction is None
        else f"first eviction at frame {run.first_eviction}, {run.rows[-1].evictions} in all"
    )
    report.say(f"budget {run.budget:,}: {run.rows[-1].frames} frames, {first}")
    for name, label in LATENCIES.items():
        before, after = run.median(name, False), run.median(name, True)
        shown = " -> ".join("none" if value is None else f"{value:.1f} ms" for value in (before, after))
        report.say(f"  {label:11} {shown} (medians of {NEAR} asks before and after the first eviction)")
    memory = {"buffers": "cache_bytes", "in use": "live_bytes", "resident": "rss_bytes"}
    if run.peak("allocated_bytes") is not None:
        memory |= {"allocated": "allocated_bytes", "reserved": "reserved_bytes"}
    parts = [f"{label} {(run.peak(name) or 0) / 2**20:.1f}" for label, name in memory.items()]
    report.say(f"  peaks in MiB: {', '.join(parts)}")


def _judge(report: Report, given: Setting, run: Run) -> None:
    label = f"budget {run.budget:,}"
    report.check(
        f"{label}: asked before and after the first eviction", all(map(run.near_eviction, (False, True)))
    )
    report.check(
        f"{label}: the cache stays within the budget", max(row.cache_tokens for row in run.rows) <= run.budget
    )
    report.check(f"{label}: the buffers never grow", len({row.cache_bytes for row in run.rows}) == 1)
    full = [row for row in run.rows if row.evictions]
    kinds = ("allocated_bytes", "reserved_bytes") if run.peak("allocated_bytes") else ("rss_bytes",)
    for name in kinds if full else ():
        memory, half = [getattr(row, name) for row in full], len(full) // 2
        # Medians: an allocator on a CPU takes and returns some MiB all the time.
        stable = half > 0 and np.median(memory[half:]) <= 1.02 * np.median(memory[:half])
        report.check(f"{label}: memory ({name.removesuffix('_bytes')}) does not grow once full", bool(stable))
    if full and given.model.device.type == "cuda":  # a CPU is shared with others, and its times say nothing
        before, after = run.median("first_token_ms", False), run.median("first_token_ms", True)
        good = before is not None and after is not None and after <= 1.5 * before
        report.check(f"{label}: the first token takes no longer after the eviction", good)


def draw(runs: Sequence[Run], heading: str, file: Path) -> None:
    """Eight curves as SVG: above over the frames played, below against max_cache_tokens."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "kv"  # equal data, equal file
    figure, axes = plt.subplots(2, 4, figsize=(18, 8), layout="constrained")
    figure.suptitle(heading, fontsize=9)
    for (above, below), (name, label) in zip(axes.T[:3], LATENCIES.items(), strict=True):
        _draw_over_frames(above, runs, name, f"{label}, ms", 1.0)
        for after, style in ((False, "o-"), (True, "s--")):
            medians = [np.nan if (value := run.median(name, after)) is None else value for run in runs]
            sides = f"{'after' if after else 'before'} the first eviction"
            below.plot([run.budget for run in runs], medians, style, label=sides)
        below.set(title=f"{label}, ms", xlabel="max_cache_tokens", xlim=(0, None), ylim=(0, None))
    _draw_memory(axes[0][3], axes[1][3], runs)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _draw_over_frames(axis: Any, runs: Sequence[Run], name: str, title: str, factor: float) -> None:
    for number, run in enumerate(runs):
        values = [factor * getattr(row, name) for row in run.rows]
        axis.plot(
            [row.frames for row in run.rows], values, color=f"C{number}", label=f"{run.budget:,} tokens"
        )
        if run.first_eviction is not None:
            axis.axvline(run.first_eviction, color=f"C{number}", linestyle=":", linewidth=1)
    axis.set(title=title, xlabel="frames played (dotted: first eviction)", ylim=(0, None))


def _draw_memory(above: Any, below: Any, runs: Sequence[Run]) -> None:
    """On a GPU what torch allocated over the frames, on a CPU the keys and values in use; below all peaks."""
    names = {
        "cache_bytes": "buffers of keys and values",
        "live_bytes": "of them in use",
        "rss_bytes": "resident",
    }
    if runs[0].peak("allocated_bytes") is not None:
        names |= {"allocated_bytes": "allocated on the GPU", "reserved_bytes": "reserved on the GPU"}
        _draw_over_frames(above, runs, "allocated_bytes", "allocated on the GPU, MiB", 2.0**-20)
    else:
        _draw_over_frames(above, runs, "live_bytes", "keys and values in use, MiB", 2.0**-20)
    for name, label in names.items():
        below.plot(
            [run.budget for run in runs], [(run.peak(name) or 0) / 2**20 for run in runs], "o-", label=label
        )
    below.set(title="peak memory, MiB", xlabel="max_cache_tokens", xlim=(0, None), yscale="log")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vlm_perception.experiments.kv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=os.environ.get("QWEN_MODEL_PATH"), help="model folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--budgets", type=_budgets, help="max_cache_tokens, with commas between")
    parser.add_argument(
        "--frames", type=_frames, default=FRAMES, help=f"frames a budget at least, default {FRAMES}"
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    return parser


def _budgets(text: str) -> list[int]:
    """argparse's `type`: distinct positive numbers."""
    try:
        budgets = sorted({int(part) for part in text.split(",")})
    except ValueError:
        budgets = [0]
    if budgets[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give positive numbers of tokens, such as 10000,32000")
    return budgets


def _frames(text: str) -> int:
    if not text.isdecimal() or int(text) < FRAMES_PER_CHUNK * EVERY:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, at least {FRAMES_PER_CHUNK * EVERY}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """0: all checks hold; 1: one does not; 2: bad input, in one line on stderr."""
    options = _parser().parse_args(arguments)
    report = Report("kv", "KV efficiency")
    try:
        given = setting(options.model, options.device)
        runs = experiment_kv(given, options.budgets, options.frames, report)
    except (ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report.write(options.out, "kv")
    draw(runs, report.lines[0], options.out / "kv.svg")
    print(f"curves: {options.out / 'kv.svg'}", file=sys.stderr)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
