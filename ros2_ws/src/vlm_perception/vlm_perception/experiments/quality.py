"""Experiment C: text read from the screen before and after evictions; each ask leaves the cache as it was."""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_perception.engine import VideoStreamingInference
from vlm_perception.engine.video_file import video_frames

from .films import subtitled_film
from .setting import SAFE_BUDGET, Report, Setting

# 200 frames at most, two a second, a question every 20 chunks (as specified with the experiments).
MAX_CHUNKS, FPS, EVERY = 100, 2.0, 20
# The shortest film whose questions lie on both sides of the first eviction, with one to spare (chosen).
QUICK_CHUNKS = 3 * EVERY
READ_TEXT = (
    "Read all visible text, lyrics, or subtitles on screen. Output verbatim. If no text, say 'no text'."
)


def experiment_c(given: Setting, video: Path | None, report: Report) -> None:
    """Quality after eviction: what text is read every 20 chunks, and whether each ask leaves the cache as it was."""
    chunks = QUICK_CHUNKS if given.quick else MAX_CHUNKS
    if video is not None:
        chunks = min(chunks, sum(1 for _ in video_frames(video, FPS)) // 2)
    if chunks < 2 * EVERY:
        raise ValueError(
            f"{video} gives {chunks} chunks of 2 frames at {FPS} a second; {2 * EVERY} are needed"
        )
    film = _pairs(video)
    first = next(film)
    probe = VideoStreamingInference(given.model, max_cache_tokens=SAFE_BUDGET)
    tokens = [probe.append_video_chunk(first.frames).tokens for _ in range(2)][
        1
    ]  # the first carries the opening
    del probe
    budget = min(SAFE_BUDGET, chunks // 2 * tokens)  # so that the second half of the run evicts
    report.begin(given, f"budget {budget:,} tokens, of {chunks} chunks of about {tokens} each")
    report.say(
        f"video: {'rendered, with changing text on screen' if video is None else video}; a plain prompt"
    )
    stream = VideoStreamingInference(given.model, max_cache_tokens=budget)
    asks: list[dict[str, Any]] = []
    restored = True
    for pair in itertools.islice(itertools.chain([first], film), chunks):
        stream.append_video_chunk(pair.frames, stamps=pair.stamps)
        if stream.chunks_encoded % EVERY == 0:
            before = _fingerprint(stream)
            asks.append(_asked(stream, pair.text))
            restored &= _fingerprint(stream) == before
            _say(report, asks[-1])
    report.facts |= {"budget": budget, "asks": asks}
    for when, evicted in (("before", False), ("after", True)):
        chosen = [
            ask["score"] for ask in asks if bool(ask["evictions"]) == evicted and ask["score"] is not None
        ]
        mean = float(np.mean(chosen)) if chosen else None
        report.facts[f"score_{when}_eviction"] = mean
        shown = "none" if mean is None else f"{mean:.3f}"
        report.say(f"mean score {when} eviction: {shown} ({len(chosen)} asks)")
    report.check("the cache is bit for bit restored after each ask", restored and bool(asks))
    report.check("asked before and after an eviction", {bool(a["evictions"]) for a in asks} == {False, True})
    report.check("answers are not empty", all(ask["read"].strip() for ask in asks))


@dataclass(frozen=True)
class Pair:
    """Two frames and their times, s, and the text shown on the second, where it is known."""

    frames: list[np.ndarray]
    stamps: list[float]
    text: str | None


def _pairs(video: Path | None) -> Iterator[Pair]:
    frames: Iterator[tuple[float, np.ndarray, str | None]] = (
        subtitled_film(fps=FPS)
        if video is None
        else ((stamp, frame, None) for stamp, frame in video_frames(video, FPS))
    )
    for (first_stamp, first, _), (stamp, frame, text) in zip(frames, frames, strict=False):
        yield Pair([first, frame], [first_stamp, stamp], text)


def _asked(stream: VideoStreamingInference, text: str | None) -> dict[str, Any]:
    answer, metrics = stream.ask(READ_TEXT, max_new_tokens=48)
    score = None if text is None else difflib.SequenceMatcher(None, text.lower(), answer.lower()).ratio()
    return {
        "chunk": stream.chunks_encoded,
        "evictions": stream.cache.evictor.total_evictions,
        "shown": text,
        "read": answer,
        "score": score,
        "ttft_ms": round(1000 * metrics["ttft"], 1),
    }


def _say(report: Report, ask: dict[str, Any]) -> None:
    scored = "" if ask["score"] is None else f"  score {ask['score']:.2f}"
    report.say(f"  chunk {ask['chunk']:3}  evictions {ask['evictions']:3}{scored}")
    report.say(f"    shown: {ask['shown']!r}\n    read:  {ask['read']!r}")


def _fingerprint(stream: VideoStreamingInference) -> str:
    digest = hashlib.sha256(repr((stream.get_cache_info(), stream.cache.tracker.chunks)).encode())
    for part in (stream.cache.live_keys(), stream.cache.live_values()):
        digest.update(part.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
