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
from nav_eval.harness import Engine, Job, LocalEngine, Record, Store, Task
from nav_eval.lockstep import ForcedCall, LockStepSettings
from nav_eval.ray_engine import RayEngine
from vlm_perception.engine.device import check_cuda

RUNS = Path("runs")
ENGINES: Mapping[str, Callable[[int], Engine]] = {"local": LocalEngine, "ray": RayEngine}
SHIPPED = "the pilot shipped in nav_pilot"
_LIMITS: Mapping[str, tuple[float, float]] = {
    "think_s": (0.0, 60.0),
    "time_limit_s": (1.0, 3600.0),
    "max_decisions": (0, 1000),
}


def add_options(parser: argparse.ArgumentParser, flown: str, run: str) -> None:
    """Options of every such command. `flown`: what is limited ("an episode"); `run`: what its folder holds ("run")."""
    settings = LockStepSettings
    parser.add_argument(
        "--model",
        type=Path,
        help="model folder; default: QWEN_MODEL_PATH, else the pilot shipped in nav_pilot",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument(
        "--mission", default="", help="an instruction instead of the scene's own; {goal} is its goal"
    )
    parser.add_argument("--think-s", type=float, default=settings.think_s, help="virtual time of a decision")
    parser.add_argument("--reflex", action="store_true", help="with the bridge's reflex")
    parser.add_argument("--time-limit-s", type=float, default=settings.time_limit_s, help=f"of {flown}")
    parser.add_argument(
        "--max-decisions",
        type=int,
        default=settings.max_decisions,
        help=f"of {flown}; 0: 40, or 15 for each instruction",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument(
        "--engine", choices=ENGINES, default="local", help="local: processes here; ray: a Ray cluster"
    )
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


def episode_settings(options: argparse.Namespace, *, blank: bool = False) -> EpisodeSettings:
    """What the options say of every episode.

    Raises:
        ValueError: a number is out of range; names the option, its value and what is allowed.
    """
    for name, (low, high) in _LIMITS.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, must be {low:g} to {high:g}")
    check_processes(options)
    return EpisodeSettings(
        options.mission,
        LockStepSettings(
            think_s=options.think_s,
            time_limit_s=options.time_limit_s,
            max_decisions=options.max_decisions,
            reflex=options.reflex,
            blank=blank,
        ),
        options.device,
    )


def check_processes(options: argparse.Namespace) -> None:
    """Refuse a number of processes that cannot be.

    Raises:
        ValueError: names it.
    """
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


def engine(options: argparse.Namespace) -> Engine:
    """Where the episodes are flown.

    Raises:
        HarnessError: it is not installed.
    """
    return ENGINES[options.engine](options.processes)


def model_name(folder: Path) -> str:
    """The model as results and pages name it: as it was given."""
    return SHIPPED if folder == nav_pilot.model_folder() else str(folder)


def models_named(folder: Path, folders: Mapping[str, Path]) -> str:
    """The model, and those of the variants' `folders` that hold weights of their own."""
    own = [f"{variant} by {path.name}" for variant, path in folders.items() if path != folder]
    return ", ".join([model_name(folder), *own])


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
    engine: Engine,
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

        task = Task(_episode, _set_up, (folder, settings, forced_decision))
        harness.run(jobs, store, task, engine, finished)
