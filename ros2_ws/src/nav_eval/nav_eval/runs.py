"""What the commands that fly many episodes share: their options, their refusals, and flying in worker processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import nav_pilot
from nav_agent import toolset
from nav_eval import harness
from nav_eval.episodes import Control, EpisodeFlyer, EpisodeSettings
from nav_eval.harness import Job, Record, Store
from nav_eval.lockstep import ForcedCall, LockStepSettings
from vlm_perception.engine.device import check_cuda

RUNS = Path("runs")
LIMITS: Mapping[str, tuple[float, float]] = {"time_limit_s": (1.0, 3600.0), "max_decisions": (1, 1000)}
"""Of the options that every such command has."""


def add_options(parser: argparse.ArgumentParser, flown: str, run: str) -> None:
    """Options of every such command. `flown`: what is limited ("an episode"); `run`: what its folder holds ("run")."""
    settings = LockStepSettings
    parser.add_argument(
        "--model",
        type=Path,
        help="model folder; default: QWEN_MODEL_PATH, else the pilot shipped in nav_pilot",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--time-limit-s", type=float, default=settings.time_limit_s, help=f"of {flown}")
    parser.add_argument("--max-decisions", type=int, default=settings.max_decisions, help=f"of {flown}")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--out", type=Path, help=f"folder of the {run}; default: one of its own below runs")


def status_of(command: str, run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """The exit status of a command: its own, or 2 where it cannot be done, with one line that says why."""
    try:
        return run(options)
    except (ValueError, OSError, harness.HarnessError) as error:
        print(f"nav_eval {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nav_eval {command}: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def check_numbers(options: argparse.Namespace, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuse options that are out of range.

    Raises:
        ValueError: names the option, its value and what is allowed.
    """
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, must be {low:g} to {high:g}")
    if options.processes < 1:
        raise ValueError(f"--processes is {options.processes}, must be at least 1")


def model_folder(options: argparse.Namespace) -> Path:
    """The folder of the model to fly.

    Raises:
        ValueError: there is no such folder, or not the device that was asked for.
    """
    folder = nav_pilot.chosen_folder(options.model)
    if not folder.is_dir():
        raise ValueError(f"model {folder}: there is no such folder")
    if options.device == "cuda":
        check_cuda(None)
    return folder


_flyer: EpisodeFlyer | None = None
_forced_decision = 0


def _set_up(folder: Path, settings: EpisodeSettings, forced_decision: int) -> None:
    global _flyer, _forced_decision
    torch.set_num_threads(1)
    _flyer, _forced_decision = EpisodeFlyer(folder, settings), forced_decision


def _episode(job: Job) -> Record:
    assert _flyer is not None, "set up by the pool"
    call = toolset.parse_call(job.forced)
    forced = ForcedCall(_forced_decision, *call) if call else None
    return _flyer.fly(job.scene, job.seed, job.variant, Control(job.control), forced)


def fly(
    jobs: Sequence[Job],
    store: Store,
    folder: Path,
    settings: EpisodeSettings,
    *,
    processes: int,
    unit: str,
    label: Callable[[Job], str],
    forced_decision: int = 0,
) -> None:
    """Fly the jobs that the store does not hold yet, with a progress bar.

    Args:
        unit, label: what the progress bar calls a job.
        forced_decision: the decision at which a job's `forced` call is forced.

    Raises:
        HarnessError: see `harness.run`.
    """
    done = sum(job in store.records for job in jobs)
    with tqdm(total=len(jobs), initial=done, unit=unit, disable=None, mininterval=0.5) as bar:

        def finished(job: Job, record: Record) -> None:
            bar.set_postfix_str(f"{label(job)}: {record['outcome']}")
            bar.update()

        harness.run(
            jobs,
            store,
            _episode,
            processes=processes,
            setup=_set_up,
            setup_arguments=(folder, settings, forced_decision),
            on_finished=finished,
        )
