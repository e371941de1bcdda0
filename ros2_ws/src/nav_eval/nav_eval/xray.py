"""Memory X-ray: which second of a flight caused a decision.

python -m nav_eval xray SCENE SEED [--at K ...]

The flight is flown in lock-step; then, at each decision asked for, every chunk of pictures in memory is left out in
turn and the model asked again (`nav_eval.leave_one_out`). The flight viewer shows it under the cache.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from tqdm import tqdm

from nav_agent import toolset
from nav_agent.prompts import load_prompt
from nav_common.data import PrimeRequest
from nav_eval import runs, single_flight
from nav_eval.episodes import Control, EpisodeFlyer
from nav_eval.flight_view import shrunk
from nav_eval.harness import Record
from nav_eval.leave_one_out import LeaveOneOut, Moment, MomentRecorder, XRay
from nav_eval.single_flight import SingleFlight


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`nav_eval xray`."""
    parser = commands.add_parser(
        "xray", help="leave one chunk of the memory out at a time: which second of a flight caused a decision"
    )
    single_flight.add_options(parser)
    parser.add_argument(
        "--at", type=int, nargs="+", metavar="K", help="the decisions to look into, from 1; default: all"
    )
    parser.set_defaults(run=xray)


def xray(options: argparse.Namespace) -> int:
    """Run the command; 0, or 2 where it cannot be done, with one line that says why."""
    return runs.status_of("xray", _xray, options)


def _xray(options: argparse.Namespace) -> int:
    flight = SingleFlight.of(options)
    store = flight.store()
    torch.set_num_threads(1)
    flyer, recorder = EpisodeFlyer(flight.model, flight.settings), MomentRecorder()
    record: Record = flyer.fly(flight.scene, flight.seed, flight.variant, Control.NONE, moments=recorder)
    if flight.job not in store.records:
        store.add(flight.job, record)
    wanted = options.at or range(1, len(record["decisions"]) + 1)
    for at in wanted:
        flight.check_decision(record, at)
    pilot = flyer.pilot(flight.variant)
    request = PrimeRequest(pilot.form.system_prompt or load_prompt(), toolset.tools_json())
    examiner = LeaveOneOut(pilot.model, pilot.form, request)
    start_s = record["view"]["start_s"]
    found = single_flight.read(flight.folder / single_flight.XRAY_FILE) or {"decisions": {}, "pictures": {}}
    for at in tqdm(wanted, unit="decision", disable=None):
        moment = recorder.moments[at - 1]
        looked = examiner.examine(moment)
        found["decisions"][str(at)] = as_dict(looked, start_s)
        found["pictures"] |= _pictures(moment, start_s)
        tqdm.write(text_of(at, looked, start_s))
    store.write(single_flight.XRAY_FILE, json.dumps(found) + "\n")
    print(flight.write_page(store))
    return 0


def _pictures(moment: Moment, start_s: float) -> dict[str, str]:
    """The newest picture of each chunk, by time in s from `start_s`."""
    newest = [chunk.frames[-1].frame for chunk in moment.chunks]
    return {f"{frame.stamp_s - start_s:.2f}": shrunk(frame.image.data) for frame in newest}


def as_dict(looked: XRay, start_s: float) -> dict[str, Any]:
    """As in xray.json and the flight viewer. Times in s from `start_s`; `drop`: by how much the call's log-probability
    falls without the chunk, in nats."""
    cause = looked.cause
    return {
        "call": looked.call,
        "chosen": looked.chosen,
        "log_probability": round(looked.log_probability, 4),
        "cause_s": round(cause.stamp_s - start_s, 2) if cause else None,
        "without": [
            {
                "t": round(one.stamp_s - start_s, 2),
                "drop": round(looked.log_probability - one.log_probability, 4),
                "chosen": one.chosen,
            }
            for one in looked.influences
        ],
    }


def text_of(at: int, looked: XRay, start_s: float) -> str:
    """One line for the terminal."""
    said = f"decision {at}, {looked.chosen}"
    if looked.chosen != looked.call:
        said += f" (in flight, with what had left the memory by then: {looked.call})"
    cause = looked.cause
    if cause is None:
        return f"{said}: caused by no single chunk of {len(looked.influences)}"
    changed = f"; without it {cause.chosen}" if cause.chosen != looked.chosen else "; chosen without it too"
    return (
        f"{said}: caused by the picture of {cause.stamp_s - start_s:.1f} s (log-probability "
        f"{looked.log_probability:.2f}, without it {cause.log_probability:.2f}{changed})"
    )
