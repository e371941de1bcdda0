"""Many flights, collected by several processes and kept in files: shards of some worlds each.

A shard is one .npz of its streams; a name for the code that flew them is that of its folder, so flights of other code
are never taken for its own."""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from airsim_sim import instructions, world
from airsim_sim.world import SCENES, load_world
from nav_agent import toolset
from nav_common import atomic, result_lines
from vlm_perception import prompting

from . import data, expert, sight
from .data import SCENE_SHARES, Pilot, Sample, TrainingStream, fly_world
from .model import FRAME_INTERVAL_S, HEIGHT, RECENT_CALLS, WIDTH, WINDOW_FRAMES

SHARD_WORLDS = 10


class TrainingFolderError(RuntimeError):
    """The folder of flights and checkpoints cannot be written; the message says what is kept and what to do."""


def write_shard(path: Path, jobs: Sequence[tuple[int, int]], model: Path | None = None) -> None:
    """Flies in the worlds of the (seed, number) pairs and writes their streams into one .npz. model: the folder of the
    pilot that flies and is corrected."""
    from airsim_sim.render import open_renderer

    torch.set_num_threads(1)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's rasteriser: one thread for each of our processes
    renderer = open_renderer(load_world("field", seed=jobs[0][0]))
    new_pilot = _pilots(model) if model else None
    try:
        flown = [fly_world(seed, renderer, number, new_pilot) for seed, number in jobs]
        save_streams(path, [stream for streams in flown for stream in streams])
    finally:
        renderer.close()


def _pilots(model: Path) -> Callable[[], Pilot]:
    from .evaluate import EnginePilot  # which flies with what is here

    pilot = EnginePilot(model)

    def new() -> Pilot:
        pilot.begin()
        return pilot

    return new


def save_streams(path: Path, streams: Sequence[TrainingStream]) -> None:
    """Writes whole or not at all.

    Raises:
        TrainingFolderError: no room, or no permission.
    """
    words = [
        {
            "samples": [[a.frame, a.text, a.answer, a.goal, a.looks, a.flown] for a in s.samples],
            "frames": len(s.frames),
            "of": [s.seed, s.number, s.scene],
        }
        for s in streams
    ]
    frames, sights, places = (
        np.concatenate([getattr(s, name) for s in streams]) for name in ("frames", "sights", "places")
    )
    try:
        with atomic.replacing(path) as file:
            np.savez(file, frames=frames, sights=sights, places=places, words=np.array(json.dumps(words)))
    except OSError as error:
        raise TrainingFolderError(
            f"{path.parent} cannot be written ({error.strerror or error}): make room and run the same command again; "
            "the flights that are there are kept"
        ) from error


def load_streams(path: Path) -> list[TrainingStream]:
    """What `save_streams` wrote."""
    with np.load(path) as file:
        frames, sights, places = file["frames"], file["sights"], file["places"]
        words = json.loads(str(file["words"]))
    streams, at = [], 0
    for entry in words:
        span = slice(at, at + entry["frames"])
        at = span.stop
        samples = [
            Sample(frame, text, answer, tuple(goal), tuple(looks), flown)
            for frame, text, answer, goal, looks, flown in entry["samples"]
        ]
        streams.append(TrainingStream(frames[span], samples, sights[span], places[span], *entry["of"]))
    return streams


def is_whole(path: Path) -> bool:
    """Whether a shard is there and can be read; one that is damaged is said and removed, to be flown again."""
    if not path.exists():
        return False
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        damaged = str(error)
    if damaged:
        print(f"{path} is damaged ({damaged}): its flights are flown again", flush=True)
        path.unlink()
    return not damaged


def _source_digest() -> str:
    """A name for all that the flights depend on: the code that flies, draws and words them, and the scenes."""
    modules: tuple[ModuleType, ...] = (
        data, expert, sight, toolset, result_lines, prompting, world, instructions,
    )  # fmt: skip
    files = (*(SCENES / f"{name}.yaml" for name in SCENE_SHARES), SCENES.parent / "render.py")
    sources = [inspect.getsource(module) for module in modules] + [file.read_text() for file in files]
    sources.append(f"{WIDTH} {HEIGHT} {FRAME_INTERVAL_S} {WINDOW_FRAMES} {RECENT_CALLS}")
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:12]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _weights_digest(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:8]


def generate(
    folder: Path, jobs: Sequence[tuple[int, int]], processes: int = 2, model: Path | None = None
) -> Iterator[Path]:
    """Shards of streams in the folder, made by processes of their own; those that the same code made are not made
    again. model: see `write_shard`.

    Yields each path as soon as it is there.

    Raises:
        TrainingFolderError: the folder cannot be written.
    """
    folder = folder / _source_digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingFolderError(
            f"{folder} cannot be made ({error.strerror or error}): choose another --data"
        ) from error
    parts = [jobs[i : i + SHARD_WORLDS] for i in range(0, len(jobs), SHARD_WORLDS)]
    by = f"_{_weights_digest(model)}" if model else ""
    paths = [folder / f"{part[0][0]:04d}_{part[0][1]}_{_digest(repr(list(part)))}{by}.npz" for part in parts]
    todo = {path: part for path, part in zip(paths, parts, strict=True) if not is_whole(path)}
    yield from (path for path in paths if path not in todo)
    work = [(path, part, model) for path, part in todo.items()]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_written, work)


def _written(work: tuple[Path, Sequence[tuple[int, int]], Path | None]) -> Path:
    """The path of a shard, once it is there."""
    write_shard(*work)
    return work[0]
