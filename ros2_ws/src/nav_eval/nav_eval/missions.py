"""Missions over many seeds in lock-step: how often does a pilot reach its goal?

python -m nav_eval.missions --scene field --seeds 1001-1010 [--blank] [--model DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import nav_pilot
from airsim_sim.world import WorldError, load_world
from nav_common.data import Outcome
from nav_common.success import is_success
from nav_eval import judge, machine
from nav_eval.lockstep import FlownMission, LockStepSettings, fly, load_model
from vlm_perception.engine.qwen import ModelError
from vlm_perception.serving_form import ServingFormError


@dataclass(frozen=True)
class Episode:
    """One mission's figures. `success` as nav_common.success decides."""

    seed: int
    instruction: str
    outcome: str
    reason: str
    success: bool
    goal_distance_m: float
    collisions: int
    contacts: list[str]
    decisions: int
    path_m: float
    virtual_s: float
    wall_s: float
    hover_violations: int
    breaches: list[str]
    evictions: int
    calls: list[str]


def episode(seed: int, instruction: str, flown: FlownMission, wall_s: float) -> Episode:
    """The figures of a flown mission."""
    result, report = flown.result, judge.judge(flown.log)
    statuses = flown.log.statuses
    return Episode(
        seed=seed,
        instruction=instruction,
        outcome=result.outcome.name,
        reason=result.reason,
        success=is_success(
            Outcome(result.outcome), result.reason, flown.goal_distance_m, len(flown.contacts)
        ),
        goal_distance_m=round(flown.goal_distance_m, 2),
        collisions=len(flown.contacts),
        contacts=list(flown.contacts),
        decisions=result.decisions,
        path_m=round(result.distance_m, 1),
        virtual_s=round(flown.virtual_s, 1),
        wall_s=round(wall_s, 1),
        hover_violations=report.hover_violations,
        breaches=[f"{b.time_s:.2f} s {b.rule}: {b.message}" for b in report.breaches],
        evictions=statuses[-1].data.evictions if statuses else 0,
        calls=list(flown.calls),
    )


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a proportion (95 % with z = 1.96); what is claimed is its lower bound."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Figures over all episodes."""
    successes = sum(e.success for e in episodes)
    path_m = sum(e.path_m for e in episodes)
    near = {f"stopped_within_{r}_m": sum(e.goal_distance_m <= r for e in episodes) for r in (1, 2, 3)}
    return {
        "missions": len(episodes),
        "successes": successes,
        "success_rate": successes / len(episodes),
        "success_wilson_95": [round(bound, 3) for bound in wilson(successes, len(episodes))],
        **near,
        "missions_with_collision": sum(e.collisions > 0 for e in episodes),
        "collisions_per_100_m": round(100 * sum(e.collisions for e in episodes) / path_m, 2)
        if path_m
        else 0.0,
        "decisions_mean": round(statistics.fmean(e.decisions for e in episodes), 1),
        "hover_violations": sum(e.hover_violations for e in episodes),
        "breaches": sum(len(e.breaches) for e in episodes),
        "realtime_factor": round(
            sum(e.virtual_s for e in episodes) / max(1e-9, sum(e.wall_s for e in episodes)), 1
        ),
    }


def parse_seeds(text: str) -> list[int]:
    """ "1001-1010,7" as a list.

    Raises:
        ValueError: not that form, or nothing in it.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            seeds += range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise ValueError(f"seeds are {text!r}: wanted is a form like 1001-1010 or 1,5,7") from None
    if not seeds:
        raise ValueError(f"seeds are {text!r}: nothing is in that range")
    return seeds


def run(
    scene: str,
    seeds: Sequence[int],
    model_folder: Path,
    settings: LockStepSettings,
    *,
    colour: str = "red",
    instruction: str = "",
    record: Path | None = None,
    quiet: bool = False,
) -> list[Episode]:
    """Fly a mission for each seed, one line of progress each."""
    torch.set_num_threads(1)
    model, form = load_model(model_folder)
    instruction = instruction or f"fly to the {colour} beacon"
    episodes: list[Episode] = []
    for seed in seeds:
        world = load_world(scene, seed, **({"colour": colour} if scene == "field" else {}))
        start = time.monotonic()
        flown = fly(
            world, instruction, model, form, settings, record=record / f"{scene}_{seed}" if record else None
        )
        done = episode(seed, instruction, flown, time.monotonic() - start)
        episodes.append(done)
        if not quiet:
            print(
                f"seed {seed}: {'SUCCESS' if done.success else 'failure'}  {done.outcome} {done.reason}  "
                f"{done.goal_distance_m:.1f} m off, {done.collisions} collisions, {done.decisions} decisions, "
                f"{done.path_m:.0f} m, {done.virtual_s:.0f} s in {done.wall_s:.0f} s"
                + (f", BREACHES {len(done.breaches)}" if done.breaches else "")
                + f"   [{sum(e.success for e in episodes)}/{len(episodes)}]",
                flush=True,
            )
    return episodes


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="nav_eval.missions", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--scene", default="field")
    parser.add_argument("--seeds", default="1001-1010", help="such as 1001-1010 or 1,5,7")
    parser.add_argument("--colour", default="red", help="of the field's beacon")
    parser.add_argument("--instruction", default="", help='default: "fly to the COLOUR beacon"')
    parser.add_argument("--model", type=Path, help="model folder; default: the pilot shipped in nav_pilot")
    parser.add_argument("--blank", action="store_true", help="grey pictures: what does the pilot do blind?")
    parser.add_argument("--reflex", action="store_true", help="with the bridge's reflex")
    parser.add_argument(
        "--think-s", type=float, default=LockStepSettings.think_s, help="virtual time of a decision"
    )
    parser.add_argument(
        "--image-rate-hz", type=float, default=LockStepSettings.image_rate_hz, help="of the camera"
    )
    parser.add_argument("--max-decisions", type=int, default=LockStepSettings.max_decisions)
    parser.add_argument("--time-limit-s", type=float, default=LockStepSettings.time_limit_s)
    parser.add_argument("--record", type=Path, help="folder for a recording of each flight")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    settings = LockStepSettings(
        think_s=options.think_s,
        image_rate_hz=options.image_rate_hz,
        max_decisions=options.max_decisions,
        time_limit_s=options.time_limit_s,
        blank=options.blank,
        reflex=options.reflex,
    )
    try:
        episodes = run(
            options.scene,
            parse_seeds(options.seeds),
            options.model or nav_pilot.model_folder(),
            settings,
            colour=options.colour,
            instruction=options.instruction,
            record=options.record,
        )
    except (ValueError, WorldError, ModelError, ServingFormError) as error:
        print(f"nav_eval.missions: {error}", file=sys.stderr)
        return 2
    figures = summary(episodes)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "what": "missions in lock-step",
            "scene": options.scene,
            "settings": asdict(settings),
            "summary": figures,
            "episodes": [asdict(e) for e in episodes],
            "machine": machine.describe(),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
