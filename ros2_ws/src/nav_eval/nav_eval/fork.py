"""Fork a flight: at one decision every other tool call is forced, and each branch is flown to its end.

python -m nav_eval fork SCENE SEED --at K

Lock-step repeats exactly, so a branch is flown from the start with the call forced at decision K; up to there it is the
flight that is forked. What that costs is one flight a branch. After the forced call the model decides itself again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import nav_pilot
from airsim_sim.world import load_world
from nav_agent import toolset
from nav_eval import harness, seeds, variants
from nav_eval.digests import digest, digest_of_folder, digest_of_worlds
from nav_eval.episodes import Control, EpisodeFlyer, EpisodeSettings, Mission, mission_of
from nav_eval.fork_report import Branch, fork_page
from nav_eval.harness import Job, Record, Store
from nav_eval.lockstep import ForcedCall, LockStepSettings
from nav_eval.policies import Call
from vlm_perception.serving_form import ServingForm

FORK_FILE = "fork.html"
RUNS = Path("runs")
FLY_TOWARDS_POINTS = ((150, 450), (350, 450), (650, 450), (850, 450))
"""(u, v) of the fly_towards calls that are tried, thousandths of the picture: four columns just above the horizon, of
100 cells. Straight ahead is what move_forward does."""
FLY_TOWARDS_DISTANCE_M = 4


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`nav_eval fork`."""
    parser = commands.add_parser(
        "fork", help="fly a flight to one decision, and then every other tool call to its end"
    )
    parser.add_argument("scene", help="a scene or a YAML file")
    parser.add_argument("seed", help="its seed")
    parser.add_argument("--at", type=int, required=True, metavar="K", help="the decision to fork at, from 1")
    parser.add_argument("--variant", default=variants.STREAMING, help=", ".join(variants.names()))
    parser.add_argument("--model", type=Path, help="model folder; default: the pilot shipped in nav_pilot")
    parser.add_argument(
        "--time-limit-s", type=float, default=LockStepSettings.time_limit_s, help="of a flight"
    )
    parser.add_argument(
        "--max-decisions", type=int, default=LockStepSettings.max_decisions, help="of a flight"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument(
        "--out", type=Path, help="folder of the fork; default: one of its own below runs/fork"
    )
    parser.set_defaults(run=fork)


def fork(options: argparse.Namespace) -> int:
    """Run the command; 0, or 2 where it cannot be done, with one line that says why."""
    try:
        return _fork(options)
    except (ValueError, OSError, harness.HarnessError) as error:
        print(f"nav_eval fork: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nav_eval fork: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def candidate_calls() -> list[Call]:
    """Every call of the nine tools; of fly_towards those to FLY_TOWARDS_POINTS."""
    calls: list[Call] = []
    for tool in toolset.TOOLS:
        if tool.name == "fly_towards":
            calls += [
                (tool.name, {"u": u, "v": v, "distance_m": FLY_TOWARDS_DISTANCE_M})
                for u, v in FLY_TOWARDS_POINTS
            ]
            continue
        found: list[dict[str, toolset.Value]] = [{}]
        for argument in tool.arguments:
            found = [{**given, argument.name: value} for given in found for value in argument.values]
        calls += [(tool.name, arguments) for arguments in found]
    return calls


def _fork(options: argparse.Namespace) -> int:
    (seed,) = _one_seed(options.seed)
    for name, low, high in (("at", 1, 1000), ("time_limit_s", 1.0, 3600.0), ("max_decisions", 1, 1000)):
        if not low <= getattr(options, name) <= high:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, must be {low:g} to {high:g}"
            )
    if options.processes < 1:
        raise ValueError(f"--processes is {options.processes}, must be at least 1")
    mission = mission_of(load_world(options.scene, seed))
    folder = options.model or nav_pilot.model_folder()
    if not folder.is_dir():
        raise ValueError(f"model {folder}: there is no such folder")
    variants.apply(options.variant, ServingForm.load(folder))
    settings = EpisodeSettings(
        lockstep=LockStepSettings(time_limit_s=options.time_limit_s, max_decisions=options.max_decisions)
    )
    run = {
        "scene": [options.scene, seed, digest_of_worlds(options.scene, [seed])],
        "at": options.at,
        "variant": options.variant,
        "settings": json.loads(json.dumps(asdict(settings))),
        "model": digest_of_folder(folder),
    }
    name = f"{Path(options.scene).stem}_{seed}_at_{options.at}_{digest(run)}"
    out = options.out or RUNS / "fork" / name
    store = Store(out, run)
    flight = Job(options.scene, options.variant, "", seed)
    _fly([flight], store, folder, settings, options)
    branches = _branches(flight, store, options.at)
    _fly([branch for branch in branches if branch != flight], store, folder, settings, options)
    page = fork_page(
        [
            Branch(call, store.records[job], _remaining_m(mission, store.records[job]), job == flight)
            for job, call in branches.items()
        ],
        at=options.at,
        facts={
            "flight": f"{options.scene}, seed {seed}, {options.variant}",
            "seed": seeds.kind(seed),
            "model": str(folder),
        },
    )
    (out / FORK_FILE).write_text(page, encoding="utf-8")
    print(out / FORK_FILE)
    return 0


def _one_seed(text: str) -> list[int]:
    found = seeds.parse_seeds(text)
    if len(found) != 1:
        raise ValueError(f"seed is {text!r}: a fork is of one flight, give one")
    return found


def _remaining_m(mission: Mission, record: Record) -> float:
    """From where a flight ended to the mission's last goal, horizontally."""
    _, north, west, _ = record["track"][-1]
    return math.dist((north, west), mission.world.object(mission.goals[-1]).position[:2])


def _branches(flight: Job, store: Store, at: int) -> dict[Job, Call]:
    """The jobs of a fork with their calls. The call that was taken is the flight itself.

    Raises:
        ValueError: the flight has no decision `at`.
    """
    decisions = store.records[flight]["decisions"]
    if at > len(decisions):
        raise ValueError(
            f"--at is {at}, but the flight of {flight.scene}, seed {flight.seed}, has {len(decisions)} decisions: "
            f"1 to {len(decisions)} can be forked"
        )
    taken: Call = (decisions[at - 1]["tool"], decisions[at - 1]["arguments"])
    found = {flight: taken}
    for name, arguments in candidate_calls():
        if (name, arguments) != taken:
            text = json.dumps({"name": name, "arguments": arguments})
            job = Job(flight.scene, flight.variant, flight.control, flight.seed, text)
            found[job] = (name, arguments)
    return found


# --- flying, in worker processes

_flyer: EpisodeFlyer | None = None
_at = 0


def _set_up(folder: Path, settings: EpisodeSettings, at: int) -> None:
    global _flyer, _at
    torch.set_num_threads(1)
    _flyer, _at = EpisodeFlyer(folder, settings), at


def _branch(job: Job) -> Record:
    assert _flyer is not None, "set up by the pool"
    call = toolset.parse_call(job.forced)
    forced = ForcedCall(_at, *call) if call else None
    return _flyer.fly(job.scene, job.seed, job.variant, Control(job.control), forced)


def _fly(
    jobs: list[Job], store: Store, folder: Path, settings: EpisodeSettings, options: argparse.Namespace
) -> None:
    done = sum(job in store.records for job in jobs)
    with tqdm(total=len(jobs), initial=done, unit="flight", disable=None, mininterval=0.5) as bar:

        def finished(job: Job, record: dict[str, Any]) -> None:
            bar.set_postfix_str(f"{job.forced or 'as it was'}: {record['outcome']}")
            bar.update()

        harness.run(
            jobs,
            store,
            _branch,
            processes=options.processes,
            setup=_set_up,
            setup_arguments=(folder, settings, options.at),
            on_finished=finished,
        )
