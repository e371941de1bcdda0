"""report.html of an evaluation: figures with intervals and controls, the paths, each episode in the flight viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nav_common.contract import SUCCESS_RADIUS_M
from nav_eval.episodes import HEADLINE_RADIUS, SUCCESS_RADII_M
from nav_eval.harness import Job, Record
from nav_eval.html_pages import render

# Of the views' pictures and paths; with the plotting script's 5 MB the page stays under 20 MB.
MOST_VIEW_BYTES = 13_000_000
FIGURES = (
    ("success_rate", f"success within {', '.join(f'{radius:g}' for radius in SUCCESS_RADII_M)} m"),
    ("success_interval", f"success within {SUCCESS_RADIUS_M:g} m, 95 % interval"),
    ("spl", "SPL"),
    ("wrong_goal_rate", "wrong goal"),
    ("false_reached_rate", "reported reached, was not"),
    ("not_found_rate", "reported not found"),
    ("collision_rate", "collision"),
    ("collisions_per_100_m", "collisions per 100 m"),
    ("near_misses_per_episode", "near misses per episode"),
    ("smallest_clearance_m", "smallest clearance, m"),
    ("traversability", "traversability"),
    ("coherence", "coherence"),
    ("decision_latency_ms", "decision latency p50, p95, max, ms"),
    ("decisions_per_episode", "decisions per episode"),
    ("hover_violations", "hover violations"),
    ("breaches", "breaches of the safety rules"),
    ("evictions", "chunks evicted"),
    ("came_to_last_instruction", "came to the last instruction, which names an object again"),
    ("found_again_rate", "found it again"),
    ("windows_out_of_sight", "windows out of sight p50, p95, max"),
    ("long_out_of_sight_found_interval", "found again after 3 windows, 95 % interval"),
    ("retrievals", "frames brought back"),
    ("extra_tokens", "tokens appended for them"),
    ("extra_latency_ms", "added to a decision by them, ms"),
    ("realtime_factor", "times real time"),
)
OUTCOMES = {
    "success": "#2a7",
    "collision": "#d43",
    "wrong goal": "#b5c",
    "not reached": "#e90",
}


def outcome_of(record: Record) -> str:
    """One of OUTCOMES."""
    if record["success"][HEADLINE_RADIUS]:
        return "success"
    if record["metrics"]["contacts"]:
        return "collision"
    return "wrong goal" if record["wrong_goal"] else "not reached"


def report_page(results: Mapping[str, Any], records: Mapping[Job, Record]) -> str:
    """The page of `results` (as in results.json) and its episodes."""
    scenes = results.get("scenes") or {results["scene"]: results}
    jobs = sorted(records, key=lambda job: (outcome_of(records[job]) == "success", job))
    kept = _within_budget(jobs, records)
    return render(
        "report.html.j2",
        title="Evaluation of " + ", ".join(scenes),
        tables=[_table(scene, found) for scene, found in scenes.items()],
        facts={"model": results.get("model", ""), **dict(results.get("machine", {}))},
        development=results.get("development", False),
        unlike_training=results.get("unlike_training", {}),
        outcomes=OUTCOMES,
        paths=_paths(records),
        episodes=[_episode(job, records[job], job in kept) for job in jobs],
        views={_key(job): records[job]["view"] for job in kept},
        left_out=len(jobs) - len(kept),
    )


def _table(scene: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by variant, the controls as columns beside them."""
    variants = found.get("variants") or {found["variant"]: found}
    controls = found["control_figures"]
    columns = [*variants.values(), *controls.values()]
    rows = [
        (label, [_shown(values.get(name)) for values in columns])
        for name, label in FIGURES
        if any(values.get(name) is not None for values in columns)
    ]
    return {
        "scene": scene,
        "episodes": found["episodes"],
        "seeds": found["seeds"],
        "variants": list(variants),
        "rows": rows,
        "controls": list(controls),
        "pairs": found.get("pairs"),
    }


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " / ".join(_shown(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return " to ".join(_shown(one) for one in value)
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _key(job: Job) -> str:
    return "/".join((job.scene, job.control or job.variant, str(job.seed)))


def _within_budget(jobs: Sequence[Job], records: Mapping[Job, Record]) -> set[Job]:
    """The episodes whose views fit, failures first."""
    kept, size = set(), 0
    for job in jobs:
        view = records[job].get("view")
        if view is None:
            continue
        size += view_bytes(view)
        if size > MOST_VIEW_BYTES:
            break
        kept.add(job)
    return kept


def view_bytes(view: Mapping[str, Any]) -> int:
    """What a view takes of a page, about."""
    return sum(len(picture["jpeg"]) for picture in view["pictures"]) + 30 * len(view["track"]) + 4000


def _episode(job: Job, record: Record, has_view: bool) -> dict[str, Any]:
    metrics = record["metrics"]
    return {
        "key": _key(job),
        "outcome": outcome_of(record),
        "said": f"{record['outcome'].lower()}: {record['reason']}",
        "distance_m": "" if metrics["goal_distance_m"] is None else f"{metrics['goal_distance_m']:.1f}",
        "path_m": f"{metrics['path_m']:.1f}",
        "decisions": len(record["decisions"]),
        "contacts": metrics["contacts"],
        "instruction": " / ".join(record["instructions"]),
        "has_view": has_view,
    }


def _paths(records: Mapping[Job, Record]) -> dict[str, Any]:
    """All paths from above, each over the map of its world: for `showPaths` of the viewer's script."""
    maps: dict[tuple[str, int], dict[str, Any]] = {}
    for job, record in records.items():
        shapes = record.get("view", {}).get("shapes", [])
        named = {"name": f"{job.scene}, seed {job.seed}", "shapes": shapes, "paths": []}
        outcome = outcome_of(record)
        maps.setdefault((job.scene, job.seed), named)["paths"].append(
            {
                "outcome": outcome,
                "label": f"{_key(job)}: {outcome}",
                "x": [-row[2] for row in record["track"]],
                "y": [row[1] for row in record["track"]],
            }
        )
    return {"outcomes": OUTCOMES, "maps": list(maps.values())}
