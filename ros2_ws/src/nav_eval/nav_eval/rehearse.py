"""Rehearsal: how fast may it fly across a given internet? Missions in lock-step over a link profile, bisected.

python -m nav_eval rehearse PROFILE flies MISSIONS missions in all: ten at each of ten settings. The speed is bisected
first (with the least pictures), then the picture rate, then the quality, each on top of what was found before. A
setting holds when, in every motion of its missions, the drone could at any moment still have stopped: see `margin_m`.
The result is a parameter file for the launch.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from airsim_bridge.gate import GateLimits
from airsim_sim.model import DRONE_RADIUS_M
from airsim_sim.world import load_world
from nav_common.contract import COMMAND_TIMEOUT_S, OBSTACLE_STANDOFF_M, SUCCESS_RADIUS_M
from nav_common.data import Decision, Odometry
from nav_eval import harness, machine, runs
from nav_eval.digests import digest, digest_of_folder
from nav_eval.episodes import mission_of, reached, scenes_of
from nav_eval.flight_log import FlightLog
from nav_eval.harness import Job, LocalEngine, Record, Store, Task
from nav_eval.lockstep import LockStepSettings, Pilot, fly, load_model
from nav_eval.virtual_link import LinkSettings
from zenoh_link import profile as profiles
from zenoh_link.profile import Profile

SPEEDS_M_S = tuple(0.25 * i for i in range(2, 17))  # 0.5 to 4
RATES_HZ = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
QUALITIES = (40, 48, 55, 63, 70, 78, 85)
# Four, three and three steps of bisection.
SEEDS = range(1, 11)
"""Development seeds: a rehearsal chooses settings, which is tuning."""
MISSIONS = 100
RESULT_FILE, PARAMETERS_FILE = "rehearsal.json", "params.yaml"

STANDOFF_M = OBSTACLE_STANDOFF_M - DRONE_RADIUS_M
"""Free way beyond the end of a motion that was aimed at something."""
DECELERATION_M_S2 = GateLimits.fence_deceleration
"""What the vehicle can be counted on to slow down by."""


@dataclass(frozen=True)
class Flying:
    """What is rehearsed."""

    speed_m_s: float
    picture_rate_hz: float
    jpeg_quality: int


# --- one mission


@dataclass(frozen=True)
class _Motion:
    """A motion along a straight line of `length_m`, and the odometry while it lasted."""

    start: tuple[float, float, float]
    direction: tuple[float, float, float]
    length_m: float
    odometry: Sequence[Odometry]


def margin_m(log: FlightLog) -> float:
    """The least way that was left over in any motion, m; inf without a motion. Negative: the drone outran its stopping
    distance.

    If the link were lost at this moment, the drone would go on for the gate's COMMAND_TIMEOUT_S and then slow down by
    DECELERATION_M_S2. The way left is that to the motion's end and STANDOFF_M beyond it.
    """
    return min((_margin_of(motion) for motion in _motions(log)), default=math.inf)


def _margin_of(motion: _Motion) -> float:
    flown = [_along(o.position, motion.start, motion.direction) for o in motion.odometry]
    least = math.inf
    for i in range(1, len(flown)):
        elapsed_s = motion.odometry[i].stamp_s - motion.odometry[i - 1].stamp_s
        speed = (flown[i] - flown[i - 1]) / elapsed_s if elapsed_s > 0 else 0.0
        if speed > 0:
            stops_after_m = speed * COMMAND_TIMEOUT_S + speed**2 / (2 * DECELERATION_M_S2)
            least = min(least, motion.length_m - flown[i] + STANDOFF_M - stops_after_m)
    return least


def _along(position: Sequence[float], start: Sequence[float], direction: Sequence[float]) -> float:
    return sum((p - s) * d for p, s, d in zip(position, start, direction, strict=True))


def _motions(log: FlightLog) -> list[_Motion]:
    times_s = [row.time_s for row in log.odometry]
    found = []
    ends_s = [row.time_s for row in log.decisions[1:]] + [math.inf]
    for decided, end_s in zip(log.decisions, ends_s, strict=True):
        low, high = bisect.bisect_left(times_s, decided.time_s), bisect.bisect_right(times_s, end_s)
        motion = _motion(decided.data, [row.data for row in log.odometry[low:high]])
        if motion is not None:
            found.append(motion)
    return found


def _motion(decision: Decision, odometry: Sequence[Odometry]) -> _Motion | None:
    """None: it does not lead anywhere. `fly_towards` and climbs are measured against where they came to rest."""
    if decision.tool not in ("move_forward", "fly_towards", "climb", "descend") or len(odometry) < 2:
        return None
    start = odometry[0]
    if decision.tool == "move_forward":
        direction = (math.cos(start.yaw), math.sin(start.yaw), 0.0)
        return _Motion(
            start.position, direction, float(json.loads(decision.arguments)["distance_m"]), odometry
        )
    way = [end - begin for end, begin in zip(odometry[-1].position, start.position, strict=True)]
    length_m = math.hypot(*way)
    if length_m < 0.1:
        return None
    return _Motion(
        start.position, (way[0] / length_m, way[1] / length_m, way[2] / length_m), length_m, odometry
    )


def broken_off(log: FlightLog) -> int:
    """How often the gate voided a motion, by a new epoch between the first decision and the last."""
    if not log.decisions:
        return 0
    began_s, ended_s = log.decisions[0].time_s, log.decisions[-1].time_s
    epochs = {row.data.epoch for row in log.states if began_s <= row.time_s <= ended_s}
    return max(len(epochs) - 1, 0)


_pilot: Pilot | None = None
_profile = Profile()


def _set_up(folder: Path, profile: dict[str, float], device: str | None) -> None:
    global _pilot, _profile
    torch.set_num_threads(1)
    _pilot, _profile = load_model(folder, device), Profile(**profile)


def _mission(job: Job) -> Record:
    assert _pilot is not None, "set up by the pool"
    flying = Flying(**json.loads(job.variant))
    mission = mission_of(load_world(job.scene, job.seed))
    settings = LockStepSettings(
        image_rate_hz=flying.picture_rate_hz,
        speed_m_s=flying.speed_m_s,
        link=LinkSettings(_profile, flying.jpeg_quality, flying.picture_rate_hz, seed=job.seed),
    )
    flown = fly(mission.world, mission.instructions, _pilot, settings)
    least_m = margin_m(flown.log)
    return {
        "margin_m": round(least_m, 3) if math.isfinite(least_m) else None,
        "broken_off": broken_off(flown.log),
        "success": reached(mission, flown, SUCCESS_RADIUS_M),
        "contacts": len(flown.contacts),
        "outcome": flown.result.outcome.name,
        "image_ages_ms": [round(1000 * age_s, 1) for age_s in flown.image_ages_s],
    }


# --- the search


@dataclass(frozen=True)
class Probe:
    """A setting and what its missions showed."""

    flying: Flying
    holds: bool
    least_margin_m: float | None
    broken_off: int
    contacts: int
    successes: int
    missions: int
    image_age_p95_ms: float | None


def judge(flying: Flying, records: Sequence[Record]) -> Probe:
    """A setting holds when no motion outran its stopping distance and the gate voided none."""
    margins = [record["margin_m"] for record in records if record["margin_m"] is not None]
    ages = sorted(age for record in records for age in record["image_ages_ms"])
    least_m, voided = min(margins, default=None), sum(record["broken_off"] for record in records)
    return Probe(
        flying,
        least_m is not None and least_m >= 0 and voided == 0,
        least_m,
        voided,
        sum(record["contacts"] for record in records),
        sum(record["success"] for record in records),
        len(records),
        ages[int(0.95 * (len(ages) - 1))] if ages else None,
    )


def highest(candidates: Sequence[Flying], fly_at: Callable[[Flying], Probe]) -> Flying | None:
    """The last of the candidates that holds, by bisection; None: not even the first."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if fly_at(candidates[middle]).holds:
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else None


def search(fly_at: Callable[[Flying], Probe]) -> Flying | None:
    """The fastest speed, then the highest picture rate, then the best quality; None: it cannot be flown at all."""
    least = Flying(SPEEDS_M_S[0], RATES_HZ[0], QUALITIES[0])
    fastest = highest([replace(least, speed_m_s=speed) for speed in SPEEDS_M_S], fly_at)
    if fastest is None:
        return None
    rated = highest([replace(fastest, picture_rate_hz=rate) for rate in RATES_HZ], fly_at) or fastest
    return highest([replace(rated, jpeg_quality=quality) for quality in QUALITIES], fly_at) or rated


def parameters(flying: Flying) -> str:
    """A parameter file (YAML) for the launch: `params_file:=`."""
    values: dict[str, Any] = {
        "airsim_bridge": {
            "ros__parameters": {
                "image_rate_hz": flying.picture_rate_hz,
                "jpeg_quality": flying.jpeg_quality,
            }
        },
        "nav_agent": {"ros__parameters": {"speed": flying.speed_m_s}},
    }
    return str(yaml.safe_dump(values, sort_keys=False))


# --- the command


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`nav_eval rehearse`."""
    parser = commands.add_parser("rehearse", help="find how fast a mission may be flown across an internet")
    parser.add_argument(
        "profile", help=f"{', '.join(profiles.PROFILES)}, or a file that the link's probe wrote"
    )
    parser.add_argument("--scene", default="field", help="default %(default)s")
    parser.add_argument("--model", type=Path, help="model folder; default: the pilot shipped in nav_pilot")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--out", type=Path, help="folder of the run; default: one of its own below runs")
    parser.set_defaults(run=lambda options: runs.status_of("rehearse", _rehearse, options))


def _rehearse(options: argparse.Namespace) -> int:
    profile = profiles.find(options.profile)
    if profile.cut_s:
        raise ValueError(
            f"profile {options.profile} has outages, which are flown in the real graph: make two-machines PROFILE="
            f"{options.profile}"
        )
    runs.check_processes(options)
    (scene,) = scenes_of(options.scene)
    folder = runs.model_folder(options)
    task = Task(_mission, _set_up, (folder, asdict(profile), options.device))
    engine = LocalEngine(options.processes)
    run = {"rehearsal": asdict(profile), "scene": scene, "model": digest_of_folder(folder)}
    out = options.out or runs.RUNS / "rehearse" / digest(run)
    store = Store(out, run)
    probes: list[Probe] = []
    with tqdm(total=MISSIONS, unit="mission", disable=None) as bar:

        def fly_at(flying: Flying) -> Probe:
            jobs = [Job(scene, json.dumps(asdict(flying)), "", seed) for seed in SEEDS]
            harness.run(jobs, store, task, engine)
            bar.update(len(jobs))
            probes.append(judge(flying, [store.records[job] for job in jobs]))
            tqdm.write(text(probes[-1]))
            return probes[-1]

        found = search(fly_at)
    result = {
        "profile": asdict(profile),
        "scene": scene,
        "missions": sum(probe.missions for probe in probes),
        "found": asdict(found) if found else None,
        "probes": [asdict(probe) for probe in probes],
        "machine": machine.describe(),
    }
    (out / RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if found is None:
        print(
            f"not even {SPEEDS_M_S[0]:g} m/s can be flown across {options.profile}; see {out / RESULT_FILE}"
        )
        return 1
    (out / PARAMETERS_FILE).write_text(
        f"# Rehearsed over {options.profile}: {json.dumps(asdict(profile))}\n{parameters(found)}",
        encoding="utf-8",
    )
    print(
        f"{found.speed_m_s:g} m/s, {found.picture_rate_hz:g} pictures a second at quality {found.jpeg_quality}\n"
        f"make fly ARGS='--link --params-file {out / PARAMETERS_FILE}'\n{out / RESULT_FILE}"
    )
    return 0


def text(probe: Probe) -> str:
    """One line for the terminal."""
    flying = probe.flying
    return (
        f"{flying.speed_m_s:5.2f} m/s  {flying.picture_rate_hz:4g} Hz  quality {flying.jpeg_quality}: "
        f"{'holds ' if probe.holds else 'outrun'}  least margin {probe.least_margin_m} m, {probe.broken_off} broken "
        f"off, {probe.successes} of {probe.missions} succeed, pictures p95 {probe.image_age_p95_ms} ms"
    )
