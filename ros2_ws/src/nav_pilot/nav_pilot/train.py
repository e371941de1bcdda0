"""Trains the pilot from nothing: `python -m nav_pilot.train` flies the teacher, learns, measures, writes the folder.

Three phases: the eyes alone (vision tower, and a head that tells where the beacon is and is thrown away); the decoder
on whole streams in serving form, the loss on those tokens of a call that the model is free to choose; both together.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import model_folder
from .data import Stream, generate, load_streams
from .learn import TEACHER_CALLS, Learner, Words, colour_of, make_batch, teacher_calls, to_pixels
from .model import make_config, make_model, make_tokenizer, save

TRAINING_SEEDS = range(1, 901)
HELD_OUT_SEEDS = range(
    901, 951
)  # of the development seeds; those above 1000 are for judging and never seen here


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nav_pilot.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=model_folder(), help="the model folder to write")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/pilot_data"), help="flights, kept for the next time"
    )
    parser.add_argument("--flights", type=int, default=1800, help="the teacher's flights to learn from")
    parser.add_argument(
        "--eye-steps", type=int, default=800, help="steps of the first phase, 64 pictures each"
    )
    parser.add_argument(
        "--word-steps", type=int, default=900, help="steps of the second phase, 8 streams each"
    )
    parser.add_argument("--steps", type=int, default=150, help="steps of the third phase, 8 streams each")
    parser.add_argument(
        "--minutes", type=float, default=28, help="the phases end sooner where steps take long"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes that fly the teacher")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    started = time.monotonic()

    seeds = list(TRAINING_SEEDS)
    jobs = [(seeds[i % len(seeds)], i // len(seeds)) for i in range(options.flights)]
    training = _fly(options.data, jobs, options.processes, "training")
    held_out = _fly(options.data, [(seed, 0) for seed in HELD_OUT_SEEDS], options.processes, "held-out")
    flown = time.monotonic()

    tokenizer = make_tokenizer()
    model = make_model(make_config(tokenizer))
    learner = Learner(model, Words(tokenizer))
    rng = np.random.default_rng(options.seed)
    keep = functools.partial(save, options.out, model, tokenizer)
    eye_steps = train_eyes(learner, training, held_out, options.eye_steps, 0.35 * options.minutes, rng)
    word_steps = train_words(
        learner, training, held_out, options.word_steps, 0.4 * options.minutes, rng, keep
    )
    steps = train_together(learner, training, held_out, options.steps, 0.25 * options.minutes, rng, keep)
    accuracy, by_tool = measure(learner, held_out)
    keep()
    record = {
        "training_seeds": [TRAINING_SEEDS.start, TRAINING_SEEDS.stop - 1],
        "held_out_seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.stop - 1],
        "flights": len(training),
        "frames": sum(len(s.frames) for s in training),
        "decisions": sum(len(s.asks) for s in training),
        "eye_steps": eye_steps,
        "word_steps": word_steps,
        "steps": steps,
        "seed": options.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out": {
            "decisions": sum(len(s.asks) for s in held_out),
            "accuracy": accuracy,
            "by_tool": by_tool,
        },
        "seconds": {"flying": round(flown - started), "learning": round(time.monotonic() - flown)},
        "machine": f"{platform.processor() or platform.machine()}, {options.threads} threads",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"held-out accuracy {accuracy:.1%} {by_tool}; {options.out}", flush=True)


def _fly(folder: Path, jobs: Sequence[tuple[int, int]], processes: int, what: str) -> list[Stream]:
    streams: list[Stream] = []
    started = time.monotonic()
    for path in generate(folder, jobs, processes=processes):
        streams += load_streams(path)
        print(f"{what}: {len(streams)}/{len(jobs)} flights, {time.monotonic() - started:.0f} s", flush=True)
    return sorted((s for s in streams if s.asks), key=lambda s: (s.seed, s.number))


# -- phase one ---------------------------------------------------------------------------------------------------


def train_eyes(
    learner: Learner,
    streams: Sequence[Stream],
    held_out: Sequence[Stream],
    steps: int,
    minutes: float,
    rng: np.random.Generator,
) -> int:
    """Single pictures, half of them mirrored: where is the beacon, what to do about it, how far may one fly."""
    anywhere = [(i, frame) for i, s in enumerate(streams) for frame in range(len(s.frames))]
    decided = [(i, ask.frame) for i, s in enumerate(streams) for ask in s.asks]
    calls, colours = [teacher_calls(s) for s in streams], [colour_of(s) for s in streams]
    descent = Descent([*learner.eyes.parameters(), *learner.landmarks.parameters()], 1.5e-3, steps, minutes)
    while descent.progress < 1:
        picked = [anywhere[i] for i in rng.integers(len(anywhere), size=20)]
        picked += [decided[i] for i in rng.integers(len(decided), size=44)]
        truth = torch.from_numpy(np.stack([streams[i].truth[frame] for i, frame in picked]))
        colour = torch.tensor([colours[i] for i, _ in picked])
        call = torch.stack([calls[i][frame] for i, frame in picked])
        pixels = to_pixels(np.stack([streams[i].frames[frame] for i, frame in picked]))
        pixels = augmented(pixels, torch.arange(len(picked)), rng)
        if descent.done % 2:
            pixels, (truth, call) = pixels.flip(3), mirrored(truth, call)
        descent.step(learner.landmarks.loss(learner.look(pixels), truth, colour, call))
        if descent.done % 100 == 0 or descent.progress >= 1:
            descent.report("eyes", f"held-out loss {measure_eyes(learner, held_out):.3f}")
    return descent.done


def mirrored(truth: Tensor, call: Tensor) -> tuple[Tensor, Tensor]:
    """Truth and teacher's calls of the mirrored pictures. Where the goal is not seen he always turns right: no call."""
    truth = truth.clone()
    truth[:, 1] = -truth[:, 1]
    truth[:, 3:] = truth[:, 3:].flip(1)
    other = [TEACHER_CALLS.index(_SIDE.sub(lambda m: _SWAPPED[m[0]], text)) for text in TEACHER_CALLS]
    return truth, torch.where((call >= 0) & (truth[:, 0] > 0), torch.tensor(other)[call], -1)


_SWAPPED = {"turn_left": "turn_right", "turn_right": "turn_left"}
_SIDE = re.compile("|".join(_SWAPPED))


@torch.no_grad()
def measure_eyes(learner: Learner, streams: Sequence[Stream]) -> float:
    """The landmarks' loss on whole streams, without augmentation."""
    losses = []
    for stream in streams[:30]:
        colour = torch.full((len(stream.frames),), colour_of(stream))
        seen, truth = learner.look(to_pixels(stream.frames)), torch.from_numpy(stream.truth)
        losses.append(float(learner.landmarks.loss(seen, truth, colour, teacher_calls(stream))))
    return float(np.mean(losses))


# -- phases two and three ----------------------------------------------------------------------------------------


def train_words(
    learner: Learner,
    streams: Sequence[Stream],
    held_out: Sequence[Stream],
    steps: int,
    minutes: float,
    rng: np.random.Generator,
    keep: Callable[[], None],
) -> int:
    """The decoder on whole streams in serving form, the eyes held still: their embeddings are made once, in two lights.

    `keep()` is called now and then, so that a training cut short leaves a model.
    """
    seen = [_embedded(learner, streams, rng) for _ in range(2)]
    descent = Descent(learner.model.model.language_model.parameters(), 2e-3, steps, minutes)
    while descent.progress < 1:
        for part in _parts(streams, 8, rng):
            batch = make_batch(learner.words, [streams[i] for i in part], 99, rng)
            light = seen[int(rng.integers(len(seen)))]
            logits = learner(batch, torch.cat([light[i] for i in part]))
            descent.step(F.cross_entropy(logits, batch.targets))
            if descent.done % 100 == 0 or descent.progress >= 1:
                _report(descent, "words", learner, held_out)
                keep()
            if descent.progress >= 1:
                break
    return descent.done


@torch.no_grad()
def _embedded(learner: Learner, streams: Sequence[Stream], rng: np.random.Generator) -> list[Tensor]:
    found = []
    for stream in streams:
        owner = torch.zeros(len(stream.frames), dtype=torch.long)
        found.append(learner.look(augmented(to_pixels(stream.frames), owner, rng)))
    return found


def train_together(
    learner: Learner,
    streams: Sequence[Stream],
    held_out: Sequence[Stream],
    steps: int,
    minutes: float,
    rng: np.random.Generator,
    keep: Callable[[], None],
) -> int:
    """Eyes and decoder on whole streams."""
    descent = Descent(learner.parameters(), 6e-4, steps, minutes)
    while descent.progress < 1:
        for part in _parts(streams, 8, rng):
            batch = make_batch(learner.words, [streams[i] for i in part], 99, rng)
            owner = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts))
            seen = learner.look(augmented(to_pixels(batch.frames), owner, rng))
            landmarks = learner.landmarks.loss(seen, batch.truth, batch.colour, batch.call)
            descent.step(F.cross_entropy(learner(batch, seen), batch.targets) + 0.2 * landmarks)
            if descent.done % 50 == 0 or descent.progress >= 1:
                _report(descent, "together", learner, held_out)
                keep()
            if descent.progress >= 1:
                break
    return descent.done


def _report(descent: Descent, phase: str, learner: Learner, held_out: Sequence[Stream]) -> None:
    accuracy, by_tool = measure(learner, held_out)
    descent.report(phase, f"held-out accuracy {accuracy:.1%} {by_tool}")


def _parts(streams: Sequence[Stream], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """All streams once, in parts of `size` of about equal length."""
    parts = []
    for pool in np.array_split(rng.permutation(len(streams)), max(1, len(streams) // (size * 12))):
        by_length = sorted(pool.tolist(), key=lambda i: len(streams[i].frames))
        parts += [by_length[i : i + size] for i in range(0, len(by_length), size)]
    yield from (parts[i] for i in rng.permutation(len(parts)))


@torch.no_grad()
def measure(learner: Learner, streams: Sequence[Stream]) -> tuple[float, dict[str, float]]:
    """Share of the held-out decisions whose call equals the teacher's, name and arguments; and by its tool."""
    rng = np.random.default_rng(0)
    right: dict[str, list[bool]] = {}
    for part in (streams[i : i + 10] for i in range(0, len(streams), 10)):
        batch = make_batch(learner.words, part, 99, rng)
        logits = learner(batch, learner.look(to_pixels(batch.frames)))
        wrong = set(batch.at[logits.argmax(-1) != batch.targets, 0].tolist())
        for i, ask in enumerate(ask for stream in part for ask in stream.asks):
            right.setdefault(json.loads(ask.call)["name"], []).append(i not in wrong)
    everything = [hit for hits in right.values() for hit in hits]
    return float(np.mean(everything)), {
        tool: round(float(np.mean(hits)), 3) for tool, hits in sorted(right.items())
    }


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
    )  # one sheet of it: noise is dear to make
    noise = torch.stack(
        [torch.from_numpy(grain[k : k + pixels[0].numel()]) for k in range(0, 1000 * n, 1000)]
    )
    noise = noise.view(n, *pixels.shape[1:]) * torch.from_numpy(amount).float()
    return (pixels * scale + shift + noise[owner]).clamp(0, 255)


class Descent:
    """AdamW with a warm-up and a cosine over the steps, or over the minutes where those run out first."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rate: float, steps: int, minutes: float):
        self.parameters, self.rate, self.steps, self.minutes = list(parameters), rate, steps, minutes
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
        self.started, self.done, self.losses = time.monotonic(), 0, list[float]()

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, max(self.done / self.steps, (time.monotonic() - self.started) / 60 / self.minutes))

    def step(self, loss: Tensor) -> None:
        factor = min((self.done + 1) / 30, 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * factor
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.done += 1
        self.losses.append(float(loss.detach()))

    def report(self, phase: str, note: str) -> None:
        seconds = time.monotonic() - self.started
        loss = np.mean(self.losses[-50:])
        print(f"{phase}: step {self.done}/{self.steps}, {seconds:.0f} s, loss {loss:.3f}, {note}", flush=True)


if __name__ == "__main__":
    main()
