"""The experiments on the streaming memory: A sink detection, B no out-of-memory, C quality after eviction, and time.

python -m vlm_perception.engine.experiments [a] [b] [c] [time] [--model DIR] [--video FILE] [--out DIR]

Each writes a report as text and JSON, whose first line says what ran on which machine and model. Without a model
folder (or QWEN_MODEL_PATH) a random one is used: on a GPU the 3B's shape at the true budgets, otherwise a tiny one
with the budgets scaled to hold as many chunks.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .__main__ import video_frames
from .qwen import QwenModel
from .tiny import SHAPE_3B, make_tiny_model, random_model
from .video_stream_inference import VideoStreamingInference

# The user's figures: budgets in tokens, and the tokens of a chunk of four 1920x1080 frames that they were chosen for.
BUDGETS, SAFE_BUDGET, CHUNK_1080P = (100_000, 130_000, 150_000), 100_000, 5_389
READ_TEXT = (
    "Read all visible text, lyrics, or subtitles on screen. Output verbatim. If no text, say 'no text'."
)


@dataclass
class Report:
    """Lines for people and facts for programs, written side by side."""

    name: str
    title: str
    lines: list[str]
    facts: dict[str, Any]

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def check(self, what: str, holds: bool) -> None:
        self.facts.setdefault("checks", {})[what] = holds
        self.say(f"{'ok    ' if holds else 'FAILED'} {what}")

    @property
    def passed(self) -> bool:
        return all(self.facts.get("checks", {}).values())

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.txt").write_text("\n".join(self.lines) + "\n")
        (folder / f"{self.name}.json").write_text(
            json.dumps({**self.facts, "passed": self.passed}, indent=2) + "\n"
        )


@dataclass(frozen=True)
class Setting:
    """The model under experiment. scaled: budgets stand for the true ones (same number of chunks)."""

    model: QwenModel
    described: str
    scaled: bool

    def budget(self, true_tokens: int, chunk_tokens: int) -> int:
        return round(true_tokens / CHUNK_1080P * chunk_tokens) if self.scaled else true_tokens

    def report(self, name: str, title: str) -> Report:
        machine = f"{platform.machine()}, torch {torch.__version__} on {self.model.device}"
        budgets = "budgets scaled to the same number of chunks" if self.scaled else "true budgets"
        facts = {"experiment": title, "machine": machine, "model": self.described, "scaled": self.scaled}
        report = Report(name, title, [], facts)
        report.say(f"{title} | {self.described} | {machine} | {budgets}")
        return report


def setting(folder: str | None) -> Setting:
    if folder:
        model = QwenModel.load(folder)
        layers, hidden = model.decoder.shape.layers, model.decoder.shape.hidden
        scaled = model.decoder.shape.hidden < 2048
        return Setting(model, f"model {Path(folder).name} ({layers} layers of {hidden})", scaled)
    if torch.cuda.is_available():
        return Setting(
            random_model(SHAPE_3B, "cuda", torch.bfloat16), "random weights in the 3B's shape", False
        )
    with tempfile.TemporaryDirectory() as scratch:
        model = QwenModel.load(make_tiny_model(Path(scratch), scale=5.0))
    return Setting(model, "a random tiny model: no 3B model on this machine, so answers carry no sense", True)


def pictures(width: int, height: int, seed: int = 0) -> Iterator[np.ndarray]:
    """An endless smooth film with a moving block."""
    rows, columns = np.mgrid[0:height, 0:width]
    step = seed
    while True:
        picture = np.stack([(rows + step) % 256, (columns * 2) % 256, (rows + columns) % 256], -1).astype(
            np.uint8
        )
        x = 7 * step % max(width - width // 4, 1)
        picture[height // 4 : height // 2, x : x + width // 4] = (240, 30, 30)
        step += 1
        yield picture


# -- A -----------------------------------------------------------------------------------------------------------
def experiment_a(given: Setting, video: Path | None) -> Report:
    """Sink detection: 2 and 4 frames a chunk, several resolutions, 5 chunks, budget 100,000."""
    report = given.report("a", "Experiment A: sink detection")
    sinks: dict[tuple[int, int, int], int] = {}
    report.say(" width height frames |   sink  window | chunk tokens: min   max  mean")
    budget = SAFE_BUDGET
    for width, height in ((224, 168), (448, 336), (640, 480)):
        for count in (2, 4):
            stream = VideoStreamingInference(given.model, max_cache_tokens=budget)
            film = pictures(width, height)
            lengths = []
            for _ in range(5):
                stream.append_video_chunk([next(film) for _ in range(count)], fps=2.0)
                lengths.append(stream.cache.length)
            evictor, stats = stream.cache.evictor, stream.cache.evictor.chunk_stats
            sink = sinks[width, height, count] = evictor.effective_sink_size
            case = f"{width}x{height}, {count} frames"
            report.check(f"{case}: the sink is the cache after the first chunk", sink == lengths[0])
            report.check(
                f"{case}: the window is the budget less the sink", evictor.window_size == budget - sink
            )
            counted = (stats["chunks"], stats["tokens"]) == (5, lengths[-1])
            report.check(f"{case}: chunk statistics add up", counted)
            report.say(
                f"{width:6} {height:6} {count:6} | {sink:6} {evictor.window_size:7} | "
                f"{stats['min']:17} {stats['max']:5} {stats['mean']:7.1f}"
            )
            del stream
    areas = [sinks[size] for size in ((224, 168, 2), (448, 336, 2), (640, 480, 2))]
    report.check("the sink grows with the resolution", areas == sorted(set(areas)))
    wider = all(sinks[w, h, 4] > sinks[w, h, 2] for w, h, _ in sinks)
    report.check("the sink grows with the frames in a chunk", wider)
    report.facts["sinks"] = {f"{w}x{h}x{n}": sink for (w, h, n), sink in sinks.items()}
    return report


# -- B -----------------------------------------------------------------------------------------------------------
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

    return psutil.Process().memory_info().rss


# -- C -----------------------------------------------------------------------------------------------------------
def experiment_c(given: Setting, video: Path | None) -> Report:
    """Quality after eviction: what text is read every 20 chunks, and whether each ask leaves the cache as it was."""
    report = given.report("c", "Experiment C: quality after eviction")
    shown = "rendered, with changing text on screen" if video is None else str(video)
    report.say(f"video: {shown}; 2 frames a chunk, 100 chunks at most; a plain prompt")
    film = (
        subtitled_film()
        if video is None
        else ((stamp, frame, None) for stamp, frame in video_frames(video, 2.0))
    )
    stream: VideoStreamingInference | None = None
    asks: list[dict[str, Any]] = []
    pair: list[tuple[float, np.ndarray, str | None]] = []
    restored = True
    for item in film:
        pair.append(item)
        if len(pair) < 2:
            continue
        frames, stamps, text = [p[1] for p in pair], [p[0] for p in pair], pair[-1][2]
        pair = []
        if stream is None:
            probe = VideoStreamingInference(given.model, max_cache_tokens=SAFE_BUDGET)
            tokens = probe.append_video_chunk(frames, stamps=stamps).tokens
            del probe
            stream = VideoStreamingInference(
                given.model, max_cache_tokens=given.budget(SAFE_BUDGET, 2 * tokens)
            )
        stream.append_video_chunk(frames, stamps=stamps)
        if stream.chunks_encoded % 20 == 0:
            before = _fingerprint(stream)
            answer, metrics = stream.ask(READ_TEXT, max_new_tokens=48)
            restored &= _fingerprint(stream) == before
            evictions = stream.cache.evictor.total_evictions
            score = (
                None if text is None else difflib.SequenceMatcher(None, text.lower(), answer.lower()).ratio()
            )
            asks.append(
                {
                    "chunk": stream.chunks_encoded,
                    "evictions": evictions,
                    "shown": text,
                    "read": answer,
                    "score": score,
                    "ttft_ms": round(1000 * metrics["ttft"], 1),
                }
            )
            scored = "" if score is None else f"  score {score:.2f}"
            report.say(f"  chunk {stream.chunks_encoded:3}  evictions {evictions:3}{scored}")
            report.say(f"    shown: {text!r}\n    read:  {answer!r}")
        if stream.chunks_encoded == 100:
            break
    report.facts["asks"] = asks
    for when, chosen in (("before", lambda a: not a["evictions"]), ("after", lambda a: a["evictions"])):
        scores = [ask["score"] for ask in asks if chosen(ask) and ask["score"] is not None]
        mean = float(np.mean(scores)) if scores else None
        report.facts[f"score_{when}_eviction"] = mean
        report.say(
            f"mean score {when} eviction: {'none' if mean is None else f'{mean:.3f}'} ({len(scores)} asks)"
        )
    report.check("the cache is bit for bit restored after each ask", restored and bool(asks))
    report.check("asked before and after an eviction", {bool(a["evictions"]) for a in asks} == {False, True})
    report.check("answers are not empty", all(ask["read"].strip() for ask in asks))
    return report


def subtitled_film(seconds_each: float = 5.0, fps: float = 2.0) -> Iterator[tuple[float, np.ndarray, str]]:
    """(time, frame, text on it): a rendered film whose subtitle changes every few seconds."""
    import cv2

    words = [
        "RED",
        "BLUE",
        "NORTH",
        "SOUTH",
        "TOWER",
        "RIVER",
        "BRIDGE",
        "HARBOUR",
        "WIND",
        "STONE",
        "LIGHT",
        "GATE",
    ]
    film = pictures(448, 336)
    index = 0
    while True:
        stamp = index / fps
        line = int(stamp / seconds_each)
        text = f"{words[line * 5 % len(words)]} {words[(line * 7 + 3) % len(words)]} {line + 10}"
        frame = np.ascontiguousarray(next(film))
        cv2.rectangle(frame, (0, 270), (448, 336), (0, 0, 0), -1)
        cv2.putText(frame, text, (16, 314), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2)
        yield stamp, frame, text
        index += 1


def _fingerprint(stream: VideoStreamingInference) -> str:
    digest = hashlib.sha256(repr((stream.get_cache_info(), stream.cache.tracker.chunks)).encode())
    for part in (stream.cache.live_keys(), stream.cache.live_values()):
        digest.update(part.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


# -- time --------------------------------------------------------------------------------------------------------
def experiment_time(given: Setting, video: Path | None) -> Report:
    """Text tags against jumps of the temporal position against nothing: how far the answer moves when the same
    pictures come 5 s apart instead of 1 s, and what that costs."""
    report = given.report("time", "Time in the memory: tags, jumps, nothing")
    question = "How many seconds lie between the pictures?"
    report.say("way     | tokens a chunk | answer's distribution moves by (total variation, 1 s against 5 s)")
    for way in ("nothing", "jumps", "tags"):
        chances, tokens = [], 0
        for seconds in (1.0, 5.0):
            stream = VideoStreamingInference(
                given.model, max_cache_tokens=SAFE_BUDGET, time_jumps=way == "jumps"
            )
            film = pictures(224, 168)
            for i in range(6):
                tag = f"t={i * seconds:.0f} s" if way == "tags" else None
                tokens = stream.append_frame(next(film), text_content=tag, stamp=i * seconds).tokens
            with torch.inference_mode():
                ids = stream.qwen.tokenize(stream._question(question))
                chances.append(stream._next_logits(ids).softmax(-1).double())
        moved = float((chances[0] - chances[1]).abs().sum() / 2)
        report.facts[way] = {"tokens_per_chunk": tokens, "total_variation": moved}
        report.say(f"{way:7} | {tokens:14} | {moved:.4f}")
    report.check(
        "without either, single pictures carry no time at all",
        report.facts["nothing"]["total_variation"] == 0,
    )
    report.check(
        "tags and jumps both say it", all(report.facts[w]["total_variation"] > 0 for w in ("jumps", "tags"))
    )
    report.say(
        "Which of the two a model understands needs a trained one: tags are text and any model reads them."
    )
    return report


EXPERIMENTS: dict[str, Callable[[Setting, Path | None], Report]] = {
    "a": experiment_a,
    "b": experiment_b,
    "c": experiment_c,
    "time": experiment_time,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_perception.engine.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(EXPERIMENTS)}; default all")
    parser.add_argument("--model", default=os.environ.get("QWEN_MODEL_PATH"), help="model folder")
    parser.add_argument(
        "--video", type=Path, default=os.environ.get("VIDEO") or None, help="for c: a real video"
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}")
    given, passed = setting(options.model), True
    for name in options.names or EXPERIMENTS:
        started = time.perf_counter()
        report = EXPERIMENTS[name](given, options.video)
        report.say(f"{'passed' if report.passed else 'FAILED'} in {time.perf_counter() - started:.0f} s")
        report.write(options.out)
        passed &= report.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
