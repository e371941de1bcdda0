"""Fork a flight: at one decision every other tool call is forced, and each branch is flown to its end.

python -m nav_eval fork SCENE SEED --at K

Lock-step repeats exactly, so a branch is flown from the start with the call forced at decision K; up to there it is the
flight that is forked. What that costs is one flight a branch. After the forced call the model decides itself again.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import replace

from nav_agent import toolset
from nav_eval import runs, single_flight
from nav_eval.episodes import EpisodeMission
from nav_eval.fork_report import Branch, fork_page, fork_summary
from nav_eval.harness import Job, Record, Store
from nav_eval.policies import Call
from nav_eval.single_flight import SingleFlight

FLY_TOWARDS_POINTS = ((150, 450), (350, 450), (650, 450), (850, 450))
"""(u, v) of the fly_towards calls that are tried, thousandths of the picture: four columns just above the horizon, of
100 cells. Straight ahead is what move_forward does."""
FLY_TOWARDS_DISTANCE_M = 4


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`nav_eval fork`."""
    parser = commands.add_parser(
        "fork", help="fly a flight to one decision, and then every other tool call to its end"
    )
    single_flight.add_options(parser)
    parser.add_argument("--at", type=int, required=True, metavar="K", help="the decision to fork at, from 1")
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
    flight, at, engine = SingleFlight.of(options), options.at, runs.engine(options)
    if at < 1:
        raise ValueError(f"--at is {at}: decisions are counted from 1")
    if not flight.mission.goals:
        raise ValueError(
            f"scene {flight.scene} has no goal: what its instruction names is absent, and no call comes nearer"
        )
    out = flight.fork_folder(at)
    stored = flight.store()
    fly = functools.partial(
        runs.fly,
        folder=flight.model,
        settings=flight.settings,
        engine=engine,
        unit="flight",
        label=lambda job: job.forced or "as it was",
        forced_decision=at,
    )
    fly([flight.job], stored)
    flown = stored.records[flight.job]
    flight.check_decision(flown, at)
    taken, others = _calls(flight.job, flown, at)
    store = Store(out, {**flight.run, "at": at})
    fly(list(others), store)
    records = [(taken, flown), *((call, store.records[job]) for job, call in others.items())]
    branches = [
        Branch(call, record, _remaining_m(flight.mission, record), record is flown)
        for call, record in records
    ]
    page = fork_page(branches, at=at, facts=flight.facts, flight_page=f"../{single_flight.PAGE_FILE}")
    store.write(single_flight.FORK_FILE, json.dumps(fork_summary(branches)) + "\n")
    print(store.write(single_flight.FORK_PAGE, page))
    print(flight.write_page(stored))
    return 0


def _remaining_m(mission: EpisodeMission, record: Record) -> float:
    """From where a flight ended to the mission's last goal, horizontally."""
    _, north, west, _ = record["track"][-1]
    return mission.world.object(mission.goals[-1]).distance_m((north, west))


def _calls(flight: Job, record: Record, at: int) -> tuple[Call, dict[Job, Call]]:
    """The call that was taken, and the jobs of the fork with theirs."""
    decision = record["decisions"][at - 1]
    taken: Call = (decision["tool"], decision["arguments"])
    others = [call for call in candidate_calls() if call != taken]
    return taken, {
        replace(flight, forced=json.dumps({"name": name, "arguments": arguments})): (name, arguments)
        for name, arguments in others
    }
