"""The page of `make accept`: its figures beside the hardware's limit and beside a reference, to print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nav_eval.html_pages import render

WHAT = {
    "a": "experiment A: sink detection",
    "b": "experiment B: no out-of-memory",
    "c": "experiment C: quality after eviction",
    "bench": "benchmark of the engine",
    "mission": "a mission",
    "replay": "the mission's recording replayed",
}
TRUE_BUDGET = 100_000
"""Tokens: the smallest budget with which the 3B model is accepted."""
REFERENCE = (
    "Reference: measured on an RTX 4090 with 24 GB and Qwen2.5-VL-3B in bfloat16, with a cache that grows; (target): "
    "wanted there, not measured. The hardware's limit: bytes moved and operations done, over what this "
    "GPU reached on a large copy and a large product; without a GPU, bytes moved over the least possible."
)


@dataclass(frozen=True)
class Row:
    """A figure here, what the hardware allows, and the reference's."""

    what: str
    here: str
    limit: str = ""
    reference: str = ""


def page(found: Mapping[str, Any]) -> str:
    """accept.json as HTML."""
    parts = {**found["experiments"], **{name: found[name] for name in ("bench", "mission", "replay")}}
    why = {entry["what"]: entry["why"] for entry in found["skipped"]}
    failed = [name for name, done in parts.items() if done and not done["passed"]]
    ran = [name for name, done in parts.items() if done]
    return render(
        "accept.html.j2",
        title="Acceptance of this machine",
        verdict=f"{len(ran) - len(failed)} of {len(parts)} parts passed, {len(failed)} failed, "
        f"{len(parts) - len(ran)} not run; {found['seconds']:g} s.",
        parts=[_part(name, done, why.get(name, "")) for name, done in parts.items()],
        rows=[row for name, done in parts.items() if done for row in _ROWS[name](done["figures"])],
        reference=REFERENCE,
        skipped=[entry for entry in found["skipped"] if entry["what"] not in parts],
        machine={name: value for name, value in found["machine"].items() if value != ""}
        | {"class": f"{found['profile']['class']}: {found['profile']['reason']}"},
        links=_links(parts),
    )


def _part(name: str, done: Mapping[str, Any] | None, why: str) -> dict[str, Any]:
    if done is None:
        return {"what": WHAT[name], "result": "not run", "seconds": "", "why": why}
    figures = done["figures"]
    said = figures.get("error") or "; ".join(figures.get("checks_failed", [])) or figures.get("budgets", "")
    result = "passed" if done["passed"] else "FAILED"
    return {"what": WHAT[name], "result": result, "seconds": done["seconds"], "why": said}


def _links(parts: Mapping[str, Any]) -> list[dict[str, str]]:
    reports = [("a", "A"), ("b", "B"), ("c", "C")]
    found = [
        {
            "what": f"report of experiment {letter}",
            "target": f"experiments/test_eviction_exp_{name}_report.txt",
        }
        for name, letter in reports
        if parts[name]
    ]
    if parts["mission"]:
        found.append({"what": "the flight", "target": "mission/latest/flight.html"})
    if parts["replay"]:
        found.append({"what": "the replay", "target": "replay/replay.html"})
    return found


def _a(figures: Mapping[str, Any]) -> list[Row]:
    sinks = figures.get("sinks", {})
    shown = ", ".join(f"{case}: {tokens}" for case, tokens in sinks.items())
    return [Row("sink found, tokens (width x height x frames)", shown)] if sinks else []


def _b(figures: Mapping[str, Any]) -> list[Row]:
    if "runs" not in figures:
        return []
    true = figures["runs"][0]["budget"] >= TRUE_BUDGET  # a small model's memory compares with nothing
    reference = "5,389 (1920x1080)" if true else ""
    rows = [Row("tokens of the chunk of four frames", f"{figures['chunk_tokens']:,}", "", reference)]
    for run in figures["runs"]:
        frames = 4 * run["chunks"]
        rows += [
            Row(
                f"budget {run['budget']:,}: frames, evictions, largest cache",
                f"{frames}, {run['evictions']}, {run['largest_cache']:,}",
                reference="160 frames run out of memory; 120 are 161,719 tokens" if true else "",
            ),
            Row(
                f"budget {run['budget']:,}: memory reserved",
                f"{run['reserved_bytes'] / 1e9:.2f} GB",
                reference="22.89 GB at 120 frames; 7.1 GB are weights" if true else "",
            ),
            Row(
                f"budget {run['budget']:,}: first token, last ask",
                f"{run['first_token_ms']:.0f} ms",
            ),
        ]
    return rows


def _c(figures: Mapping[str, Any]) -> list[Row]:
    return [
        Row(f"text read {when} eviction (1: every letter)", f"{figures[name]:.2f}")
        for when in ("before", "after")
        if figures.get(name := f"score_{when}_eviction") is not None
    ]


def _bench(figures: Mapping[str, Any]) -> list[Row]:
    rows = []
    for what, moved in figures.get("bytes_over_ideal", {}).items():
        rows.append(Row(f"{what}: bytes moved over the least possible", f"{moved:.3f}", "1"))
    fractions = figures.get("roofline_fraction", {})
    chunks = figures.get("chunk_ms", {})
    times = {"decode at 100,000": figures.get("decode_ms"), **chunks}
    for what, fraction in fractions.items():
        if (took := times.get(what)) is not None:
            reference = "200 to 500 ms a frame (target)" if what in chunks else ""
            rows.append(
                Row(what, f"{took:.1f} ms", f"{took * fraction:.1f} ms ({fraction:.0%} of it)", reference)
            )
    if "decision_ms" in figures:
        reference = "500 to 2000 ms (target)"
        rows.append(
            Row("a decision of 60 + 45 tokens at 32,000", f"{figures['decision_ms']:.0f} ms", "", reference)
        )
    if "peak_over_arithmetic" in figures:
        rows.append(Row("peak memory over weights and cache", f"{figures['peak_over_arithmetic']:.3f}", "1"))
    if "ratios" in figures:
        ask = figures["ratios"]["ask_vs_growing_cache"]
        cached = figures["cached_tokens"]
        rows.append(
            Row(f"a whole ask at {cached:,} tokens against a growing cache", f"{ask:.1f} times as fast")
        )
    return rows


def _mission(figures: Mapping[str, Any]) -> list[Row]:
    if "outcome" not in figures:
        return []
    latency = figures["decision_latency_ms"]
    ended = {True: "reached", False: "not reached", None: "no goal known"}[figures["success"]]
    age = figures["frame_latency_ms"]["p50"]
    return [
        Row("the mission", f"{figures['outcome']} ({figures['reason']}); goal {ended}"),
        Row("collisions, hover violations", f"{figures['collisions']}, {figures['hover_violations']}"),
        Row(
            "a whole decision, median and p95",
            f"{latency['p50']} and {latency['p95']} ms",
            "",
            "under 3 s (target)",
        ),
        Row("a frame from the camera to the memory, median", f"{age} ms"),
    ]


def _replay(figures: Mapping[str, Any]) -> list[Row]:
    if "frames" not in figures:
        return []
    agreement = "nothing to compare" if figures["agreement"] is None else f"{figures['agreement']:.0%}"
    return [
        Row("replay: frames, decisions", f"{figures['frames']}, {figures['decisions']}"),
        Row("replay: speed", f"{figures['realtime_factor']} times real time"),
        Row("replay: decisions as in the flight", agreement),
    ]


_ROWS = {"a": _a, "b": _b, "c": _c, "bench": _bench, "mission": _mission, "replay": _replay}
