"""Experiment A: the sink is the cache after the first chunk, whatever its resolution and number of frames."""

from __future__ import annotations

from pathlib import Path

from vlm_perception.engine import VideoStreamingInference

from .films import pictures
from .setting import SAFE_BUDGET, Report, Setting


def experiment_a(given: Setting, video: Path | None, report: Report) -> None:
    """Sink detection: 2 and 4 frames a chunk, several resolutions, 5 chunks, budget 100,000."""
    sinks: dict[tuple[int, int, int], int] = {}
    budget = SAFE_BUDGET
    report.begin(given, f"budget {budget:,} tokens")
    report.say(" width height frames |   sink  window | chunk tokens: min   max  mean")
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
            counted = (stats.chunks, stats.tokens) == (5, lengths[-1])
            report.check(f"{case}: chunk statistics add up", counted)
            report.say(
                f"{width:6} {height:6} {count:6} | {sink:6} {evictor.window_size:7} | "
                f"{stats.smallest:17} {stats.largest:5} {stats.mean:7.1f}"
            )
            del stream
    areas = [sinks[size] for size in ((224, 168, 2), (448, 336, 2), (640, 480, 2))]
    report.check("the sink grows with the resolution", areas == sorted(set(areas)))
    wider = all(sinks[w, h, 4] > sinks[w, h, 2] for w, h, _ in sinks)
    report.check("the sink grows with the frames in a chunk", wider)
    report.facts["sinks"] = {f"{w}x{h}x{n}": sink for (w, h, n), sink in sinks.items()}
