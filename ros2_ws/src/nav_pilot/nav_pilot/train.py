"""Trains the pilot from nothing: `python -m nav_pilot.train` flies the teacher, learns, measures, and writes the folder.

Two phases: first the eyes alone (vision tower and a head that tells where the beacon is; the head is thrown away),
then whole streams in serving form, the loss on the tokens of a call that the model is free to choose.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import model_folder
from .data import Stream, generate, load_streams
from .learn import Learner, Words, colour_of, make_batch, patches_of, to_pixels
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
        "--eye-steps", type=int, default=900, help="steps of the first phase, 64 pictures each"
    )
    parser.add_argument("--steps", type=int, default=500, help="steps of the second phase, 12 streams each")
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
    train_eyes(learner, training, held_out, options.eye_steps, rng)
    train_flights(
        learner, training, held_out, options.steps, rng, lambda: save(options.out, model, tokenizer)
    )
    accuracy, by_tool = measure(learner, held_out)
    save(options.out, model, tokenizer)
    record = {
        "training_seeds": [TRAINING_SEEDS.start, TRAINING_SEEDS.stop - 1],
        "held_out_seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.stop - 1],
        "flights": len(training),
        "frames": sum(len(s.frames) for s in training),
        "decisions": sum(len(s.asks) for s in training),
        "eye_steps": options.eye_steps,
        "steps": options.steps,
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
    rng: np.random.Generator,
) -> None:
    """Single pictures, half of them mirrored: where is the beacon, how far may one fly."""
    owners = np.concatenate([np.full(len(s.frames), i) for i, s in enumerate(streams)])
    places = np.concatenate([np.arange(len(s.frames)) for s in streams])
    parameters = [*learner.eyes.parameters(), *learner.landmarks.parameters()]
    optimiser, schedule = _optimiser(parameters, 1.5e-3, steps)
    started, losses = time.monotonic(), []
    for step in range(steps):
        picked = rng.integers(len(owners), size=64)
        frames = np.stack([streams[owners[i]].frames[places[i]] for i in picked])
        truth = torch.from_numpy(np.stack([streams[owners[i]].truth[places[i]] for i in picked]))
        colour = torch.tensor([colour_of(streams[owners[i]]) for i in picked])
        pixels = augmented(to_pixels(frames), torch.arange(64), rng)
        if step % 2:
            pixels, truth = pixels.flip(3), mirrored(truth)
        loss = learner.landmarks.loss(learner.eyes(patches_of(pixels)), truth, colour)
        losses.append(_step(loss, parameters, optimiser, schedule))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            _report(
                "eyes",
                step + 1,
                steps,
                started,
                losses,
                f"held-out loss {measure_eyes(learner, held_out):.3f}",
            )


def mirrored(truth: Tensor) -> Tensor:
    """The truth of the mirrored picture."""
    truth = truth.clone()
    truth[:, 1] = -truth[:, 1]
    truth[:, 3:] = truth[:, 3:].flip(1)
    return truth


@torch.no_grad()
def measure_eyes(learner: Learner, streams: Sequence[Stream]) -> float:
    """The landmarks' loss on whole streams, without augmentation."""
    losses = []
    for stream in streams[:30]:
        colour = torch.full((len(stream.frames),), colour_of(stream))
        embedded = learner.eyes(patches_of(to_pixels(stream.frames)))
        losses.append(float(learner.landmarks.loss(embedded, torch.from_numpy(stream.truth), colour)))
    return float(np.mean(losses))


# -- phase two ---------------------------------------------------------------------------------------------------


def train_flights(
    learner: Learner,
    streams: Sequence[Stream],
    held_out: Sequence[Stream],
    steps: int,
    rng: np.random.Generator,
    keep: Any,
) -> None:
    """Whole streams in serving form. `keep()` is called now and then, so that a training cut short leaves a model."""
    parameters = list(learner.parameters())
    optimiser, schedule = _optimiser(parameters, 1.5e-3, steps)
    started, losses, landmark_losses = time.monotonic(), [], []
    for step, part in zip(range(steps), _parts(streams, 12, rng), strict=False):
        batch = make_batch(learner.words, part, 8, rng)
        owner = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts))
        pixels = augmented(to_pixels(batch.frames), owner, rng)
        logits, landmarks = learner(batch, pixels)
        calls = F.cross_entropy(logits, batch.targets)
        weight = 0.3 * (1 - step / steps) + 0.05
        _step(calls + weight * landmarks, parameters, optimiser, schedule)
        losses.append(float(calls.detach()))
        landmark_losses.append(float(landmarks.detach()))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            accuracy, by_tool = measure(learner, held_out)
            note = (
                f"landmarks {np.mean(landmark_losses[-50:]):.3f} held-out accuracy {accuracy:.1%} {by_tool}"
            )
            _report("flights", step + 1, steps, started, losses, note)
            keep()


def _parts(streams: Sequence[Stream], size: int, rng: np.random.Generator) -> Iterator[list[Stream]]:
    """Endless parts of `size` streams, of about equal length within a part, all streams once in each round."""
    while True:
        order = rng.permutation(len(streams))
        parts = []
        for pool in np.array_split(order, max(1, len(order) // (size * 12))):
            by_length = sorted(pool, key=lambda i: len(streams[i].frames))
            parts += [by_length[i : i + size] for i in range(0, len(by_length), size)]
        for index in rng.permutation(len(parts)):
            yield [streams[i] for i in parts[index]]


@torch.no_grad()
def measure(learner: Learner, streams: Sequence[Stream]) -> tuple[float, dict[str, float]]:
    """Share of the held-out decisions whose call equals the teacher's, name and arguments; and by the teacher's tool."""
    rng = np.random.default_rng(0)
    right: dict[str, list[bool]] = {}
    for part in (streams[i : i + 10] for i in range(0, len(streams), 10)):
        batch = make_batch(learner.words, part, 99, rng)
        logits, _ = learner(batch, to_pixels(batch.frames))
        wrong = set(batch.at[logits.argmax(-1) != batch.targets, 0].tolist())
        for i, ask in enumerate(ask for stream in part for ask in stream.asks):
            right.setdefault(json.loads(ask.call)["name"], []).append(i not in wrong)
    everything = [hit for hits in right.values() for hit in hits]
    return float(np.mean(everything)), {
        tool: round(float(np.mean(hits)), 3) for tool, hits in sorted(right.items())
    }


# -- shared ------------------------------------------------------------------------------------------------------


def augmented(pixels: Tensor, owner: Tensor, rng: np.random.Generator) -> Tensor:
    """Other light and another sensor for each owner of pictures: gain, offset, colour, contrast, noise."""
    n = int(owner.max()) + 1
    gain = np.exp(rng.normal(0.0, 0.22, (n, 1))) * np.exp(rng.normal(0.0, 0.05, (n, 3)))
    offset = rng.normal(0.0, 10.0, (n, 1)) + rng.normal(0.0, 3.0, (n, 3))
    noise = np.abs(rng.normal(0.0, 2.5, (n, 1, 1, 1)))
    scale = torch.from_numpy(gain).float()[owner][:, :, None, None]
    shift = torch.from_numpy(offset).float()[owner][:, :, None, None]
    amount = torch.from_numpy(noise).float()[owner]
    return (pixels * scale + shift + amount * torch.randn_like(pixels)).clamp(0, 255)


def _optimiser(parameters: list[torch.nn.Parameter], rate: float, steps: int) -> tuple[Any, Any]:
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    warm = max(1, min(60, steps // 10))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _step(loss: Tensor, parameters: list[torch.nn.Parameter], optimiser: Any, schedule: Any) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    schedule.step()
    return float(loss.detach())


def _report(phase: str, step: int, steps: int, started: float, losses: Sequence[float], note: str) -> None:
    print(
        f"{phase}: step {step}/{steps}, {time.monotonic() - started:.0f} s, loss {np.mean(losses[-50:]):.3f}, {note}",
        flush=True,
    )


if __name__ == "__main__":
    main()
