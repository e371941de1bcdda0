"""replay.html: one self-contained page with the frames, what was asked, what was answered, and the memory's curves."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from nav_eval.replay import Replay, Row

# Marks on the curves are drawn in a box of this size; the page scales it to its width.
WIDTH, HEIGHT = 900, 160

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; --line: #8884; --good: #2a7; --bad: #d43; --ink: #888 }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.3rem }} h2 {{ font-size: 1.05rem; margin: 1.6rem 0 .4rem }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }} dt {{ color: var(--ink) }}
dd {{ margin: 0 }}
.error {{ color: var(--bad); font-weight: 600 }}
svg {{ width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px }}
svg text {{ fill: currentColor; font-size: 12px; opacity: .7 }}
.row {{ display: grid; grid-template-columns: minmax(160px, 320px) 1fr; gap: 1rem; padding: .8rem 0;
 border-top: 1px solid var(--line) }}
.row img {{ width: 100%; border-radius: 4px; display: block }}
.call {{ font-family: ui-monospace, monospace; font-size: 1.05rem; font-weight: 600 }}
.recorded {{ font-family: ui-monospace, monospace }}
.agrees {{ color: var(--good) }} .differs {{ color: var(--bad) }}
.small {{ color: var(--ink); font-size: .85rem }}
details {{ font-size: .85rem }} pre {{ white-space: pre-wrap; margin: .2rem 0 }}
</style></head><body>
<h1>{title}</h1>
{error}<dl>{facts}</dl>
<h2>Cached tokens</h2>{cache}
<h2>Latency, ms (logarithmic): <span style="color:#48c">append</span> and
<span style="color:#d72">answer</span></h2>{latency}
<h2>{what}</h2>
{rows}
</body></html>
"""


def page(replay: Replay) -> str:
    """The page as text."""
    summary = replay.summary()
    facts = {
        "recording": str(replay.bag),
        "frames": f"{summary['frames']} read, {summary['frames_appended']} entered the memory, "
        f"{summary['frames_skipped']} skipped",
        "answers": str(summary["decisions"]),
        "agreement with the flight": "nothing to compare"
        if summary["agreement"] is None
        else f"{100 * summary['agreement']:.1f} % of {summary['compared']} decisions",
        "speed": f"{summary['realtime_factor']} times real time ({summary['recorded_s']} s in {summary['wall_s']} s)",
        "memory": f"{summary['cached_tokens']} of {summary['budget_tokens']} tokens, {summary['evictions']} evictions",
        **{f"skipped {count} times": text for text, count in replay.skipped.most_common(5)},
    }
    start = replay.first_stamp_s
    times = [point.time_s for point in replay.curve]
    return _PAGE.format(
        title=f"Replay of {html.escape(replay.bag.name)}",
        error=f'<p class="error">{html.escape(replay.error)}</p>' if replay.error else "",
        facts="".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()),
        cache=_plot(
            [("#48c", times, [float(point.cached_tokens) for point in replay.curve])],
            top=float(replay.budget_tokens),
            unit="tokens",
        ),
        latency=_plot(
            [
                ("#48c", times, [_log(point.append_ms) for point in replay.curve]),
                (
                    "#d72",
                    [row.stamp_s - start for row in replay.rows],
                    [_log(row.latency_ms.get("generate", 0.0)) for row in replay.rows],
                ),
            ],
            top=4.0,
            unit="ms",
            labels=["1", "10", "100", "1000", "10000"],
        ),
        what="Answers" if replay.question else "Decisions",
        rows="\n".join(_row(replay, row, start) for row in replay.rows),
    )


def _log(milliseconds: float) -> float:
    return math.log10(min(max(milliseconds, 1.0), 1e4))


def _row(replay: Replay, row: Row, start: float) -> str:
    picture = replay.pictures.get(row.frame, b"")
    kind = "png" if picture[:4] == b"\x89PNG" else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    verdict = ""
    if row.agrees is not None:
        kind, sign = ("agrees", "same in the flight") if row.agrees else ("differs", "in the flight:")
        shown = "" if row.agrees else f' <span class="recorded">{html.escape(row.recorded)}</span>'
        verdict = f'<div class="{kind}">{sign}{shown}</div>'
    message = f'<div class="error">{html.escape(row.message)}</div>' if row.message else ""
    words = html.escape("\n".join([row.instruction, *row.recent_calls]))
    latency = ", ".join(f"{name} {value:.0f} ms" for name, value in row.latency_ms.items())
    return (
        f'<div class="row"><img src="{source}" alt="frame {row.frame}"><div>'
        f'<div class="small">frame {row.frame}, {row.stamp_s - start:.2f} s, {html.escape(row.asked)}</div>'
        f'<div class="call">{html.escape(row.answer) or "&ndash;"}</div>{verdict}{message}'
        f'<div class="small">{row.cached_tokens} tokens in {row.chunks} chunks, {row.evictions} evictions; '
        f"{latency}</div>"
        f"<details><summary>what it was asked</summary><pre>{words}</pre></details></div></div>"
    )


def _plot(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    top: float,
    unit: str,
    labels: Sequence[str] = (),
) -> str:
    """Lines (colour, seconds, values from 0 to `top`) as SVG."""
    last = max((x for _, xs, _ in lines for x in xs), default=1.0) or 1.0
    labels = labels or ["0", f"{top:.0f}"]
    marks = "".join(
        f'<text x="4" y="{HEIGHT - 4 - (HEIGHT - 20) * i / (len(labels) - 1):.0f}">{label} {unit}</text>'
        for i, label in enumerate(labels)
    )
    drawn = ""
    for colour, xs, ys in lines:
        points = " ".join(
            f"{60 + (WIDTH - 70) * x / last:.1f},{HEIGHT - 6 - (HEIGHT - 20) * min(y / top, 1.0):.1f}"
            for x, y in zip(xs, ys, strict=True)
        )
        drawn += f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{marks}{drawn}'
        f'<text x="{WIDTH - 8}" y="14" text-anchor="end">{last:.0f} s</text></svg>'
    )
