"""Experiment C: text read from the screen before and after evictions; each ask leaves the cache as it was."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_perception.engine import VideoStreamingInference
from vlm_perception.engine.video_file import video_frames

from .films import subtitled_film
from .setting import SAFE_BUDGET, Report, Setting

READ_TEXT = (
    "Read all visible text, lyrics, or subtitles on screen. Output verbatim. If no text, say 'no text'."
)


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


def _fingerprint(stream: VideoStreamingInference) -> str:
    digest = hashlib.sha256(repr((stream.get_cache_info(), stream.cache.tracker.chunks)).encode())
    for part in (stream.cache.live_keys(), stream.cache.live_values()):
        digest.update(part.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
