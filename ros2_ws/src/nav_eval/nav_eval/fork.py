"""Fork a flight: at one decision every other tool call is forced, and each branch is flown to its end.

python -m nav_eval fork SCENE SEED --at K

Lock-step repeats exactly, so a branch is flown from the start with the call forced at decision K; up to there it is the
flight that is forked. What that costs is one flight a branch. After the forced call the model decides itself again.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import asdict
from pathlib import Path

from airsim_sim.world import load_world
from nav_agent import toolset
from nav_eval import runs, seeds, variants
from nav_eval.digests import digest, digest_of_folder, digest_of_worlds
from nav_eval.episodes import EpisodeSettings, Mission, mission_of
from nav_eval.fork_report import Branch, fork_page
from nav_eval.harness import Job, Record, Store
from nav_eval.lockstep import LockStepSettings
from nav_eval.policies import Call
from vlm_perception.serving_form import ServingForm

FORK_FILE = "fork.html"
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
    runs.add_options(parser, "a flight", "fork")
    parser.set_defaults(run=fork)


def fork(options: argparse.Namespace) -> int:
    """Run the command; 0, or 2 where it cannot be done, with one line that says why."""
    return runs.status_of("fork", _fork, options)


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
    runs.check_numbers(options, {"at": (1, 1000), **runs.LIMITS})
    mission = mission_of(load_world(options.scene, seed))
    if not mission.goals:
        raise ValueError(
            f"scene {options.scene} has no goal: what its instruction names is absent, and no call comes nearer"
        )
    folder = runs.model_folder(options)
    variants.apply(options.variant, ServingForm.load(folder))
    settings = EpisodeSettings(
        lockstep=LockStepSettings(time_limit_s=options.time_limit_s, max_decisions=options.max_decisions),
        device=options.device,
    )
    run = {
        "scene": [options.scene, seed, digest_of_worlds(options.scene, [seed])],
        "at": options.at,
        "variant": options.variant,
        "settings": json.loads(json.dumps(asdict(settings))),
        "model": digest_of_folder(folder),
    }
    name = f"{Path(options.scene).stem}_{seed}_at_{options.at}_{digest(run)}"
    out = options.out or runs.RUNS / "fork" / name
    store = Store(out, run)
    flight = Job(options.scene, options.variant, "", seed)
    fly = functools.partial(
        runs.fly,
        store=store,
        folder=folder,
        settings=settings,
        processes=options.processes,
        unit="flight",
        label=lambda job: job.forced or "as it was",
        forced_decision=options.at,
    )
    fly([flight])
    branches = _branches(flight, store, options.at)
    fly([branch for branch in branches if branch != flight])
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
    return mission.world.object(mission.goals[-1]).distance_m((north, west))


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
