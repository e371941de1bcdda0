"""Evaluate a pilot: scenes, seeds, variants and controls in parallel, resumable, into results.json.

python -m nav_eval eval --scene field --seeds 2001-2100 [--variant streaming,last-4] [--controls blank,expert]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from airsim_sim.world import load_world
from nav_eval import machine, runs, seeds, variants
from nav_eval.digests import digest, digest_of_folder, digest_of_worlds
from nav_eval.episodes import (
    HEADLINE_RADIUS,
    SUCCESS_RADII_M,
    Control,
    EpisodeSettings,
    mission_of,
    scenes_of,
)
from nav_eval.evaluation_report import report_page
from nav_eval.harness import Job, Record, Store
from nav_eval.significance import compare, wilson
from nav_eval.virtual_link import GRAPH_IMAGE_RATE_HZ, LinkSettings
from nav_pilot import STREAMING
from vlm_perception.serving_form import ServingForm
from zenoh_link.profile import find as find_profile

RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`nav_eval eval`."""
    parser = commands.add_parser("eval", help="evaluate a pilot over many seeds, with controls and variants")
    parser.add_argument("--scene", default="field", help="scenes or YAML files, with commas: field,corridor")
    parser.add_argument("--seeds", default="2001-2030", help="such as 2001-2100; above 1000")
    parser.add_argument(
        "--variant",
        default=STREAMING,
        help=f"one, or two with a comma: {', '.join(variants.names())}",
    )
    parser.add_argument("--controls", default="", help=", ".join(c.value for c in Control if c))
    parser.add_argument(
        "--internet", default="", help="fly across a link: lan, wan, uplink, slow, or a probe's file"
    )
    parser.add_argument(
        "--development", action="store_true", help="seeds up to 1000: for tuning, not for claims"
    )
    runs.add_options(parser, "an episode", "run")
    parser.set_defaults(run=evaluate)


def evaluate(options: argparse.Namespace) -> int:
    """Run the command; 0, or 2 where it cannot be done, with one line that says why."""
    return runs.status_of("eval", _evaluate, options)


def _evaluate(options: argparse.Namespace) -> int:
    wanted = seeds.parse_seeds(options.seeds)
    (seeds.require_development_seeds if options.development else seeds.require_evaluation_seeds)(wanted)
    scenes, compared, controls = (
        scenes_of(options.scene),
        _variants(options.variant),
        _controls(options.controls),
    )
    folder = runs.model_folder(options)
    folders = {variant: variants.trained_folder(variant, folder) for variant in compared}
    unlike = {
        variant: variants.unlike_training(variant, ServingForm.load(folders[variant])) for variant in compared
    }
    settings, engine = runs.episode_settings(options), runs.engine(options)
    if options.internet:
        settings = _across(options.internet, settings)
    for scene in scenes:
        mission_of(
            load_world(scene, wanted[0]),
            instruction=options.mission,
            shuffled=Control.SHUFFLED_WORDS in controls,
        )
    jobs = [Job(scene, variant, "", seed) for scene in scenes for variant in compared for seed in wanted]
    jobs += [
        Job(scene, compared[0], control, seed) for scene in scenes for control in controls for seed in wanted
    ]
    run = _identity(scenes, wanted, folders, settings)
    out = options.out or runs.RUNS / "eval" / f"{'-'.join(Path(s).stem for s in scenes)}_{digest(run)}"
    store = Store(out, run)
    _point_latest(out)
    runs.fly(
        jobs,
        store,
        folder,
        settings,
        engine=engine,
        unit="episode",
        label=lambda job: f"{job.scene} {job.control or job.variant} {job.seed}",
    )
    kept = {job: store.records[job] for job in jobs}
    results = summary(kept, scenes, compared, controls, wanted, settings)
    results |= {"unlike_training": {variant: text for variant, text in unlike.items() if text}}
    results |= {
        "development": options.development,
        "model": runs.models_named(folder, folders),
        "machine": machine.describe(),
    }
    written = store.write(RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    report = store.write(REPORT_FILE, report_page(results, kept))
    print(text_of(results))
    print(f"{report}\n{written}")
    return 0


def _identity(
    scenes: Sequence[str], wanted: Sequence[int], folders: Mapping[str, Path], settings: EpisodeSettings
) -> dict[str, Any]:
    """All that the episodes depend on: those flown with anything else are not taken for them. folders: of each
    variant's weights."""
    return {
        "scenes": {scene: digest_of_worlds(scene, wanted) for scene in scenes},
        "settings": json.loads(json.dumps(asdict(settings))),
        "models": {variant: digest_of_folder(folder) for variant, folder in folders.items()},
    }


def _across(internet: str, settings: EpisodeSettings) -> EpisodeSettings:
    """The settings with a link between the drone and the model, of the profile of that name."""
    link, rate_hz = LinkSettings(find_profile(internet)), GRAPH_IMAGE_RATE_HZ
    return replace(settings, lockstep=replace(settings.lockstep, link=link, image_rate_hz=rate_hz))


def _variants(text: str) -> list[str]:
    given = [part.strip() for part in text.split(",") if part.strip()]
    if not 1 <= len(given) <= 2 or len(set(given)) != len(given):
        raise ValueError(
            f"variant is {text!r}: one, or two different ones with a comma, of {', '.join(variants.names())}"
        )
    return given


def _controls(text: str) -> list[Control]:
    allowed = [control.value for control in Control if control]
    found = []
    for part in dict.fromkeys(part.strip() for part in text.split(",") if part.strip()):
        if part not in allowed:
            raise ValueError(f"unknown control {part!r}; there are {', '.join(allowed)}")
        found.append(Control(part))
    return found


def _point_latest(out: Path) -> None:
    """runs/latest names the newest run; a run elsewhere leaves it as it is."""
    if out.parent.parent != runs.RUNS and out.parent != runs.RUNS:
        return
    latest = runs.RUNS / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(out.relative_to(runs.RUNS))


# --- figures


def summary(
    records: Mapping[Job, Record],
    scenes: Sequence[str],
    compared: Sequence[str],
    controls: Sequence[Control],
    wanted: Sequence[int],
    settings: EpisodeSettings,
) -> dict[str, Any]:
    """Results of a run: flat for one scene and one variant, else keyed by scene, and by variant."""

    def of(scene: str, variant: str, control: str = "") -> list[Record]:
        return [records[Job(scene, variant, control, seed)] for seed in wanted]

    def of_scene(scene: str) -> dict[str, Any]:
        by_variant = {variant: figures(of(scene, variant)) for variant in compared}
        flown = {c.value: figures(of(scene, compared[0], c)) for c in controls}
        shares = {
            c.value: flown[c]["success_rate"][HEADLINE_RADIUS] if c in flown else None for c in Control if c
        }
        result: dict[str, Any] = {"scene": scene, "seeds": _span(wanted), "episodes": len(wanted)}
        if len(compared) == 1:
            result |= {"variant": compared[0], **by_variant[compared[0]]}
        else:
            first, second = (
                [r["success"][HEADLINE_RADIUS] for r in of(scene, variant)] for variant in compared
            )
            result |= {"variants": by_variant, "pairs": asdict(compare(first, second))}
        return result | {"think_s": settings.lockstep.think_s, "controls": shares, "control_figures": flown}

    by_scene = {scene: of_scene(scene) for scene in scenes}
    return by_scene[scenes[0]] if len(scenes) == 1 else {"scenes": by_scene}


def _span(wanted: Sequence[int]) -> str:
    whole = list(range(wanted[0], wanted[-1] + 1)) == list(wanted)
    return f"{wanted[0]}-{wanted[-1]}" if whole and len(wanted) > 1 else ",".join(map(str, wanted))


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)


def figures(episodes: Sequence[Record]) -> dict[str, Any]:
    """The figures of episodes of one scene and variant; docs/metrics.md defines them."""
    measured = [record["metrics"] for record in episodes]
    flown_m = sum(m["path_m"] for m in measured)
    solvable = [(r, r["metrics"]) for r in episodes if r["metrics"]["spl_weight"] is not None]
    ways = sum(m["ways_chosen"] for m in measured)
    scores = [m["coherence"]["score"] for m in measured if m["coherence"]["score"] is not None]
    latencies = np.array([value for record in episodes for value in record["engine_ms"]])
    successes = sum(record["success"][HEADLINE_RADIUS] for record in episodes)
    wall_s = sum(record["wall_s"] for record in episodes)
    return {
        "success_rate": {
            f"{r:g}m": _share([e["success"][f"{r:g}m"] for e in episodes]) for r in SUCCESS_RADII_M
        },
        "success_interval": [round(bound, 4) for bound in wilson(successes, len(episodes))],
        "wrong_goal_rate": _share([record["wrong_goal"] for record in episodes]),
        "false_reached_rate": _share([record["false_reached"] for record in episodes]),
        "not_found_rate": _share([record["not_found"] for record in episodes]),
        "collision_rate": _share([m["contacts"] > 0 for m in measured]),
        "collisions_per_100_m": round(100 * sum(m["contacts"] for m in measured) / flown_m, 3)
        if flown_m
        else None,
        "near_misses_per_episode": round(sum(m["near_misses"] for m in measured) / len(measured), 3),
        "smallest_clearance_m": min(m["smallest_clearance_m"] for m in measured),
        "spl": round(
            sum(r["success"][HEADLINE_RADIUS] * m["spl_weight"] for r, m in solvable) / len(solvable), 4
        )
        if solvable
        else None,
        "traversability": round(sum(m["ways_free"] for m in measured) / ways, 4) if ways else None,
        "coherence": round(sum(scores) / len(scores), 4) if scores else None,
        "turns_undone": _ratio(measured, "turns_undone", "turns"),
        "revisits": _ratio(measured, "revisits", "decisions"),
        "goal_changes_per_episode": round(
            sum(m["coherence"]["goal_changes"] for m in measured) / len(measured), 3
        ),
        "decisions_per_episode": round(sum(len(r["decisions"]) for r in episodes) / len(episodes), 2),
        "decision_latency_ms": _percentiles(latencies),
        "hover_violations": sum(record["hover_violations"] for record in episodes),
        "breaches": sum(len(record["breaches"]) for record in episodes),
        "evictions": sum(record["evictions"] for record in episodes),
        **_finding_again(episodes),
        **_recalls(episodes),
        "realtime_factor": round(sum(r["virtual_s"] for r in episodes) / wall_s, 2) if wall_s else None,
    }


OUT_OF_SIGHT_WINDOWS = 3.0
"""An object that was out of sight for at least so many windows is one that a window alone has forgotten."""


def _finding_again(episodes: Sequence[Record]) -> dict[str, Any]:
    """Of missions that name an object a second time at their end: how many came to that instruction, and in how many of
    them, and of those in which it was out of sight for OUT_OF_SIGHT_WINDOWS, the object was found again."""
    begun = [record["finding_again"] for record in episodes if record["finding_again"]]
    if not begun:
        return {}
    long = [one for one in begun if one["windows_out_of_sight"] >= OUT_OF_SIGHT_WINDOWS]
    found = sum(one["found"] for one in long)
    return {
        "came_to_last_instruction": len(begun),
        "found_again_rate": _share([one["found"] for one in begun]),
        "windows_out_of_sight": _percentiles(np.array([one["windows_out_of_sight"] for one in begun])),
        "long_out_of_sight": len(long),
        "long_out_of_sight_found_rate": round(found / len(long), 4) if long else None,
        "long_out_of_sight_found_interval": [round(bound, 4) for bound in wilson(found, len(long))]
        if long
        else None,
    }


def _recalls(episodes: Sequence[Record]) -> dict[str, Any]:
    """What a memory bank brought back in all episodes, the tokens appended for it, and what it added to each decision
    before which frames came back."""
    counts = [record["recalls"] for record in episodes if record["recalls"] is not None]
    if not counts:
        return {}
    decisions = sum(one["decisions"] for one in counts)
    return {
        "retrievals": sum(one["retrievals"] for one in counts),
        "extra_tokens": sum(one["extra_tokens"] for one in counts),
        "extra_latency_ms": round(1e3 * sum(one["extra_s"] for one in counts) / decisions, 2)
        if decisions
        else 0.0,
    }


def _ratio(measured: Sequence[Mapping[str, Any]], part: str, whole: str) -> float | None:
    total = sum(m["coherence"][whole] for m in measured)
    return round(sum(m["coherence"][part] for m in measured) / total, 4) if total else None


def _percentiles(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return {"p50": None, "p95": None, "max": None}
    return {
        "p50": round(float(np.percentile(values, 50)), 2),
        "p95": round(float(np.percentile(values, 95)), 2),
        "max": round(float(values.max()), 2),
    }


def text_of(results: Mapping[str, Any]) -> str:
    """The headline figures for the terminal."""
    lines = []
    for scene, found in results.get("scenes", {results.get("scene"): results}).items():
        for variant, values in found.get("variants", {found.get("variant"): found}).items():
            low, high = values["success_interval"]
            lines.append(
                f"{scene} {variant}: success {values['success_rate'][HEADLINE_RADIUS]:.0%} "
                f"({low:.0%} to {high:.0%}) of {found['episodes']}, wrong goal {values['wrong_goal_rate']:.0%}, "
                f"not found {values['not_found_rate']:.0%}, false reached {values['false_reached_rate']:.0%}, "
                f"collision {values['collision_rate']:.0%}, SPL {values['spl']}, traversability "
                f"{values['traversability']}, coherence {values['coherence']}, {values['realtime_factor']} x real time"
            )
            if "found_again_rate" in values:
                lines.append(
                    f"{scene} {variant}: found again {values['found_again_rate']:.0%} of the "
                    f"{values['came_to_last_instruction']} that came to the last instruction; frames brought back: "
                    f"{values.get('retrievals', 0)}"
                )
        shown = {name: share for name, share in found["controls"].items() if share is not None}
        if shown:
            lines.append(
                f"{scene} controls: " + ", ".join(f"{name} {share:.0%}" for name, share in shown.items())
            )
        if "pairs" in found:
            pairs = found["pairs"]
            lines.append(
                f"{scene} pairs: {pairs['wins']} wins, {pairs['losses']} losses, p = {pairs['mcnemar_p']:.3g}"
            )
    lines += [
        f"{variant}: served in another form than the model was trained for ({text})"
        for variant, text in results.get("unlike_training", {}).items()
    ]
    return "\n".join(lines)
