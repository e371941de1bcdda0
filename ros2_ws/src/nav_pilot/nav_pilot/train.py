"""Trains the pilot from nothing: `python -m nav_pilot.train` collects the expert's flights, trains and measures.

Three phases, each with all that the one before learnt: `sights`, the vision tower alone, on what stands in each
column of a picture; `views`, single pictures and many instructions about each; `streams`, whole flights in serving
form. The loss is on those tokens of an answer that the grammar leaves free, and on where the object lies that the
words name. Whoever is interrupted runs the same command again: flights that are there are kept, and the training goes
on at its checkpoint."""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from nav_common import atomic

from . import STREAMING, model_folder
from .data import RECALL_SCENE, SCENE_SHARES, Sample, TrainingStream, drawn_scene
from .learn import Batch, TextEncoder, TrainingModel, make_batch, mirrored, recalled, to_pixels
from .model import MODE_FRAMES, make_config, make_model, make_tokenizer, save, start_from
from .optimise import Optimisation
from .shards import TrainingFolderError, generate, load_streams

TRAINING_SEEDS = range(1, 901)
HELD_OUT_SEEDS = range(
    901, 951
)  # of the development seeds; those above 1000 are for judging and never seen here
PHASES = {"sights": 0.1, "views": 0.3, "streams": 0.6}  # each with its share of the minutes
PHASES_ON = {"streams": 1.0}  # from an earlier model
RATES = {"sights": 5e-3, "views": 6e-3, "streams": 2e-3}
CHECKPOINT_PERIOD_S = 300.0
MEASURED_STREAMS = 16  # on the way; measuring is not to take more than a few percent of the time
PICTURES, VIEWS, STREAMS = 128, 64, 4  # in a step of each phase and process
STREAMS_IN_PIECES = 2  # where each decision is a stream of its own: four take 12 GB a process
OWN_NUMBER = 50  # of the first draw of worlds that an earlier pilot flies in
# safetensors and torch report a full disk as errors of their own.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
LOOK_SHARE = 0.3
RECALLED_SHARE = 0.25  # of the streams in which something is asked for that has been seen
VIEW_ASKS, STREAM_ASKS = 5, 24  # samples of each at most


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nav_pilot.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="the model folder to write; default: the shipped one of the mode"
    )
    parser.add_argument(
        "--mode",
        choices=MODE_FRAMES,
        default=STREAMING,
        help="the memory it is trained for: the stream, or the last frames only",
    )
    parser.add_argument(
        "--start-from", type=Path, help="an earlier model's folder, to begin with its weights"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("runs/pilot_data"),
        help="flights and checkpoint, kept for the next time",
    )
    parser.add_argument("--worlds", type=int, default=900, help="worlds to train on, with two flights each")
    parser.add_argument(
        "--scene-worlds",
        type=_scene_worlds,
        default={},
        metavar="SCENE=COUNT,...",
        help="so many worlds of each of these scenes instead, for an earlier model that is to learn one of them",
    )
    parser.add_argument(
        "--own-worlds",
        type=int,
        default=0,
        help="further worlds, in which the model of --start-from flies and the expert corrects it",
    )
    parser.add_argument("--steps", type=int, default=100_000, help="steps of each phase at most")
    parser.add_argument(
        "--minutes", type=float, default=60, help="that each process computes, after the flights"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="processes that collect flights and train, one thread each"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    options = parser.parse_args(arguments)
    options.out = options.out or model_folder(options.mode)
    if options.own_worlds and not options.start_from:
        parser.error("--own-worlds: there is no pilot to fly them; give one with --start-from")
    seeds = list(TRAINING_SEEDS)
    jobs = [(seeds[i % len(seeds)], i // len(seeds)) for i in range(options.worlds)]
    if options.scene_worlds:
        jobs = worlds_of(options.scene_worlds)
    jobs += [(seed, 0) for seed in HELD_OUT_SEEDS]
    own = [(seeds[i % len(seeds)], OWN_NUMBER + i // len(seeds)) for i in range(options.own_worlds)]
    started = time.monotonic()
    paths = []
    try:
        flights = generate(options.data, jobs, options.processes)
        corrected = generate(options.data, own, options.processes, options.start_from)
        for path in itertools.chain(flights, corrected if own else ()):
            paths.append(path)
            print(f"flights: shard {len(paths)}, {time.monotonic() - started:.0f} s", flush=True)
    except TrainingFolderError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    flight_s = time.monotonic() - started
    with tempfile.TemporaryDirectory() as meeting:
        work = (options, sorted(paths), flight_s, f"{meeting}/point")
        spawn(_train, work, nprocs=options.processes)
    return 0


def _scene_worlds(text: str) -> dict[str, int]:
    """Of "memory=300,recall=200"."""
    counts = {}
    for part in text.split(","):
        scene, _, count = part.partition("=")
        if scene not in SCENE_SHARES or not count.isdecimal() or int(count) == 0:
            known = ", ".join(SCENE_SHARES)
            raise argparse.ArgumentTypeError(f"{part!r}: give SCENE=COUNT; the scenes are {known}")
        counts[scene] = int(count)
    return counts


def worlds_of(counts: Mapping[str, int]) -> list[tuple[int, int]]:
    """The first (seed, number) pairs of training seeds whose worlds are so many of each scene."""
    left, found = dict(counts), list[tuple[int, int]]()
    for number, seed in ((n, s) for n in itertools.count() for s in TRAINING_SEEDS):
        if not any(left.values()):
            break
        scene = drawn_scene(seed, number)
        if left.get(scene, 0) > 0:
            left[scene] -= 1
            found.append((seed, number))
    return found


def _train(
    rank: int, options: argparse.Namespace, paths: Sequence[Path], flight_s: float, store: str
) -> None:
    """One of several processes of one thread each, which train data-parallel on different flights.

    (On cores shared with others, two threads of one process wait for each other in every operation, two processes once
    in a step.)
    """
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    processes = options.processes
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
    training, held_out = _share(paths, rank, processes)

    tokenizer = make_tokenizer()
    model = make_model(make_config(tokenizer))
    if options.start_from:
        start_from(options.start_from, model, tokenizer)
    trained = TrainingModel(model, TextEncoder(tokenizer), fastest_dtype())
    run = Run(options, rank, trained, training, held_out)
    run.keep = lambda: save(options.out, model, tokenizer, options.mode)
    run.train()
    flown = _flown(training)
    if rank > 0:
        return
    figures = measure(trained, held_out, run.frames)
    if not run.write_model():
        sys.exit(2)
    record = {
        "mode": options.mode,
        "training_seeds": [TRAINING_SEEDS.start, TRAINING_SEEDS.stop - 1],
        "held_out_seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.stop - 1],
        **flown,
        "steps": run.steps,
        "seed": options.seed,
        "started_from": _record_of(options.start_from),
        "parameters": model.num_parameters(),
        "held_out": figures,
        "curves": run.curves,
        "seconds": {"collecting": round(flight_s), "training": round(run.computed_s)},
        "machine": f"{platform.machine()}, {processes} processes of one thread, {trained.vision.dtype}",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    run.checkpoint.unlink(missing_ok=True)
    print(f"held-out {figures}; {options.out}", flush=True)


def _share(
    paths: Sequence[Path], rank: int, processes: int
) -> tuple[list[TrainingStream], list[TrainingStream]]:
    """This process's training streams, and those that are held out, which only the first process measures on. Copied
    out of their shards, which go: together they are many gigabytes."""
    training, held_out, count = list[TrainingStream](), list[TrainingStream](), 0
    for stream in (s for path in paths for s in load_streams(path) if s.samples):
        is_training = stream.seed in TRAINING_SEEDS
        if (count % processes if is_training else 0) == rank:
            arrays = stream.frames.copy(), stream.sights.copy(), stream.places.copy()
            own = replace(stream, frames=arrays[0], sights=arrays[1], places=arrays[2])
            (training if is_training else held_out).append(own)
        count += is_training
    return training, held_out


def _flown(training: Sequence[TrainingStream]) -> dict[str, Any]:
    """What all processes together were trained on. Called by all of them."""
    counts = Counter(
        flights=len(training),
        frames=sum(len(s.frames) for s in training),
        samples=sum(len(s.samples) for s in training),
    )
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, (Counter(s.scene for s in training), counts))
    scenes, counts = (sum(counters, Counter[str]()) for counters in zip(*parts, strict=True))
    return {"scenes": dict(sorted(scenes.items())), **counts}


def fastest_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it (five times as fast as float32 on an AMD EPYC 9005), else float32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _record_of(folder: Path | None) -> dict[str, object] | None:
    """The record of the training that the weights come from."""
    file = folder / "training.json" if folder else None
    return json.loads(file.read_text()) if file and file.is_file() else None


# -- the three phases --------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A training run of one process: its data, its place in the phases, its checkpoint."""

    options: argparse.Namespace
    rank: int
    trained: TrainingModel
    streams: Sequence[TrainingStream]
    held_out: Sequence[TrainingStream]
    keep: Callable[[], None] = lambda: None
    steps: dict[str, int] = field(default_factory=dict)
    computed_s: float = 0.0  # in all phases that have ended
    curves: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.frames = MODE_FRAMES[self.options.mode]
        self.checkpoint = self.options.data / f"checkpoint_{self.options.mode}_{self.options.seed}.pt"
        self.rng = np.random.default_rng((self.options.seed, self.rank, time.time_ns()))
        self._kept_s = time.monotonic()

    def train(self) -> None:
        """All phases, from the checkpoint on where there is one."""
        losses = {"sights": self._sights, "views": self._views, "streams": self._whole_streams}
        state = self._restored()
        for phase, share in (PHASES_ON if self.options.start_from else PHASES).items():
            if phase in self.steps:
                continue
            named = list(self.trained.named_parameters())
            if phase == "sights":
                named = [(name, w) for name, w in named if "visual" in name or "auxiliary.sight" in name]
            if self.options.start_from:
                named = [(name, w) for name, w in named if "auxiliary" not in name]
            minutes = share * self.options.minutes
            optimisation = Optimisation(named, RATES[phase], self.options.steps, minutes)
            if state and state["phase"] == phase:
                optimisation.restore(state["optimisation"])
            batches = losses[phase]()
            while optimisation.progress < 1:
                optimisation.step(next(batches))
                if self.rank == 0:
                    self._follow(phase, optimisation)
            self.steps[phase] = optimisation.done
            self.computed_s += optimisation.elapsed_s

    def _follow(self, phase: str, optimisation: Optimisation) -> None:
        """Now and then: what is reached by now, printed and kept."""
        if time.monotonic() - self._kept_s < CHECKPOINT_PERIOD_S and optimisation.progress < 1:
            return
        figures = (
            {} if phase == "sights" else measure(self.trained, self.held_out[:MEASURED_STREAMS], self.frames)
        )
        loss = round(float(np.mean(optimisation.losses[-50:])), 4)
        at = {"phase": phase, "step": optimisation.done, "minutes": round(optimisation.elapsed_s / 60, 1)}
        self.curves.append(at | {"loss": loss, **figures})
        print(json.dumps(self.curves[-1]), flush=True)
        self._save_checkpoint(phase, optimisation)
        if phase != "sights":
            self.write_model()
        self._kept_s = time.monotonic()

    def _save_checkpoint(self, phase: str, optimisation: Optimisation) -> None:
        state = {
            "run": self._identity(),
            "phase": phase,
            "steps": self.steps,
            "computed_s": self.computed_s,
            "curves": self.curves,
            "weights": self.trained.state_dict(),
            "optimisation": optimisation.state(),
        }
        try:
            with atomic.replacing(self.checkpoint) as file:
                torch.save(state, file)
        except WRITE_ERRORS as error:
            print(
                f"{self.checkpoint} cannot be written ({error}): make room; the training goes on", flush=True
            )

    def write_model(self) -> bool:
        """Whether the model's folder could be written; what hinders is said."""
        try:
            self.keep()
        except WRITE_ERRORS as error:
            print(
                f"{self.options.out} cannot be written ({error}): make room; the same command goes on from "
                f"{self.checkpoint}",
                flush=True,
            )
            return False
        return True

    def _restored(self) -> dict[str, Any] | None:
        """The checkpoint's state where there is one of this run, with its weights loaded."""
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
            if state["run"] != self._identity():
                print(f"{self.checkpoint} is of another training: begun anew", flush=True)
                return None
            self.trained.load_state_dict(state["weights"])
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            print(f"{self.checkpoint} is damaged ({error}): begun anew", flush=True)
            return None
        self.steps, self.computed_s, self.curves = state["steps"], state["computed_s"], state["curves"]
        print(f"taken up again in phase {state['phase']} at step {state['optimisation']['done']}", flush=True)
        return state

    def _identity(self) -> dict[str, Any]:
        return {
            "mode": self.options.mode,
            "seed": self.options.seed,
            "parameters": self.trained.model.num_parameters(),
            "minutes": self.options.minutes,
        }

    def _sights(self) -> Iterator[Tensor]:
        """Single pictures of all flights, half of them mirrored: what stands in each column."""
        places = [(i, frame) for i, s in enumerate(self.streams) for frame in range(len(s.frames))]
        while True:
            picked = [places[i] for i in self.rng.integers(len(places), size=PICTURES)]
            frames = np.stack([self.streams[i].frames[frame] for i, frame in picked])
            sights = np.stack([self.streams[i].sights[frame] for i, frame in picked])
            flip = self.rng.random(len(picked)) < 0.5
            frames[flip], sights[flip] = frames[flip][:, :, ::-1], sights[flip][:, :, ::-1]
            pixels = augmented(to_pixels(frames), torch.arange(len(picked)), self.rng)
            seen = self.trained.encode_pictures(pixels)
            yield self.trained.sight_loss(seen, torch.from_numpy(sights).long())

    def _views(self) -> Iterator[Tensor]:
        """Single pictures, each with many instructions; only those that need no memory."""
        places = [
            (i, frame) for i, s in enumerate(self.streams) for frame in sorted({a.frame for a in s.samples})
        ]
        while True:
            views = [view(self.streams[i], frame) for i, frame in self._drawn(places, VIEWS)]
            yield self._loss(views, VIEW_ASKS, sight_share=0.5)

    def _drawn(self, places: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
        return [places[i] for i in self.rng.integers(len(places), size=count)]

    def _whole_streams(self) -> Iterator[Tensor]:
        """Whole flights in serving form, or in other modes each decision's last frames."""
        count = STREAMS_IN_PIECES if self.frames else STREAMS
        while True:
            for part in _minibatches(self.streams, count, self.rng):
                chosen = [self.streams[i] for i in part]
                if self.frames:
                    chosen = [piece for s in chosen for piece in last_frames(s, self.frames)]
                else:
                    chosen = [self._as_recalled(s) for s in chosen]
                yield self._loss(chosen, STREAM_ASKS, sight_share=0.2)

    def _as_recalled(self, stream: TrainingStream) -> TrainingStream:
        """Some streams as a memory bank serves them, and all of the scene that cannot be flown without one."""
        is_recalled = stream.scene == RECALL_SCENE or self.rng.random() < RECALLED_SHARE
        return recalled(stream, self.rng) if is_recalled else stream

    def _loss(self, streams: Sequence[TrainingStream], asks: int, sight_share: float) -> Tensor:
        turned = [mirrored(s) if self.rng.random() < 0.3 else s for s in streams]
        kept = [s for s in turned if s.samples] or list(streams)
        batch = make_batch(self.trained.text, kept, asks, self.rng)
        logits, goals, looked, seen = _passed(self.trained, batch, self.rng)
        loss = F.cross_entropy(logits, batch.targets) + LOOK_SHARE * looked
        if self.options.start_from:
            return loss  # the heads are not kept with a model: fresh ones would disturb what it has learnt
        return loss + 0.5 * goals + sight_share * self.trained.sight_loss(seen, batch.sights)


def _passed(
    trained: TrainingModel, batch: Batch, rng: np.random.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As TrainingModel's forward, and the pictures' embeddings; with augmentation where there is an rng."""
    pixels = to_pixels(batch.frames)
    if rng is not None:
        owner = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts))
        pixels = augmented(pixels, owner, rng)
    seen = trained.encode_pictures(pixels)
    logits, goals, looked = trained(batch, seen)
    return logits, goals, looked, seen


def view(stream: TrainingStream, frame: int) -> TrainingStream:
    """One frame of a stream with those of its samples that it answers by itself: what they name is in sight, or nothing
    is known of it."""
    samples = [replace(a, frame=0) for a in stream.samples if a.frame == frame and a.goal[0] >= a.goal[1]]
    return _piece(stream, frame, frame + 1, samples)


def last_frames(stream: TrainingStream, count: int) -> list[TrainingStream]:
    """Each decision of a stream with no more than its last `count` frames."""
    pieces = []
    for frame in sorted({a.frame for a in stream.samples}):
        first = max(0, frame + 1 - count)
        samples = [replace(a, frame=frame - first) for a in stream.samples if a.frame == frame]
        pieces.append(_piece(stream, first, frame + 1, samples))
    return pieces


def _piece(stream: TrainingStream, first: int, end: int, samples: list[Sample]) -> TrainingStream:
    """Frames `first` up to `end` of a stream, with samples that count frames from `first`."""
    at = slice(first, end)
    return replace(
        stream,
        frames=stream.frames[at],
        sights=stream.sights[at],
        places=stream.places[at],
        labels=stream.labels[at],
        samples=samples,
    )


def _minibatches(
    streams: Sequence[TrainingStream], size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """All streams once, in parts of `size` of about equal length."""
    parts = []
    for pool in np.array_split(rng.permutation(len(streams)), max(1, len(streams) // (size * 12))):
        by_length = sorted(pool.tolist(), key=lambda i: len(streams[i].frames))
        parts += [by_length[i : i + size] for i in range(0, len(by_length), size)]
    yield from (parts[i] for i in rng.permutation(len(parts)))


@torch.no_grad()
def measure(trained: TrainingModel, streams: Sequence[TrainingStream], frames: int = 0) -> dict[str, float]:
    """Share of the held-out samples that are answered rightly (calls with name and arguments): of those that were
    flown, of the other instructions about the same pictures, of questions; and of the flown ones by scene and by tool.

    frames: of each decision's last frames only, 0 for the whole stream."""
    rng = np.random.default_rng(0)
    hits: dict[str, list[bool]] = {}
    for stream in streams:
        for piece in last_frames(stream, frames) if frames else [stream]:
            batch = make_batch(trained.text, [piece], len(piece.samples), rng)
            logits, *_ = _passed(trained, batch, None)
            wrong = set(batch.at[logits.argmax(-1) != batch.targets, 0].tolist())
            for i, a in enumerate(piece.samples):
                for name in _groups(a, stream.scene):
                    hits.setdefault(name, []).append(i not in wrong)
    return {name: round(float(np.mean(found)), 4) for name, found in sorted(hits.items())}


def _groups(a: Sample, scene: str) -> list[str]:
    if not a.is_call:
        return ["questions"]
    if not a.flown:
        return ["other_words"]
    return ["accuracy", f"scene {scene}", f"tool {json.loads(a.answer)['name']}"]


# -- shared ------------------------------------------------------------------------------------------------------


def augmented(pixels: Tensor, owner: Tensor, rng: np.random.Generator) -> Tensor:
    """Other light and another sensor for each owner of pictures: gain, offset, colour, noise."""
    n = int(owner.max()) + 1
    gain = np.exp(rng.normal(0.0, 0.22, (n, 1))) * np.exp(rng.normal(0.0, 0.05, (n, 3)))
    offset = rng.normal(0.0, 10.0, (n, 1)) + rng.normal(0.0, 3.0, (n, 3))
    amount = np.abs(rng.normal(0.0, 2.5, (n, 1, 1, 1)))
    scale = torch.from_numpy(gain).float()[owner][:, :, None, None]
    shift = torch.from_numpy(offset).float()[owner][:, :, None, None]
    grain = rng.standard_normal(
        pixels[0].numel() + 1000 * n, np.float32
    )  # one sheet of it: noise is slow to generate
    noise = torch.stack(
        [torch.from_numpy(grain[k : k + pixels[0].numel()]) for k in range(0, 1000 * n, 1000)]
    )
    noise = noise.view(n, *pixels.shape[1:]) * torch.from_numpy(amount).float()
    return (pixels * scale + shift + noise[owner]).clamp(0, 255)


if __name__ == "__main__":
    sys.exit(main())
