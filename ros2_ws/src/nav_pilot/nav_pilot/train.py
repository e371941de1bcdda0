"""Trains the pilot from nothing: `python -m nav_pilot.train` collects the expert's flights, trains and measures.

Three phases: the vision tower alone (with an auxiliary head for the beacon's position, which is not saved); the decoder
on whole streams in serving form, the loss on those tokens of a call that the grammar leaves free; both jointly.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from . import model_folder
from .data import TrainingStream, generate, load_streams
from .learn import EXPERT_CALLS, TextEncoder, TrainingModel, colour_of, expert_calls, make_batch, to_pixels
from .model import make_config, make_model, make_tokenizer, save, start_from

TRAINING_SEEDS = range(1, 901)
HELD_OUT_SEEDS = range(
    901, 951
)  # of the development seeds; those above 1000 are for judging and never seen here


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nav_pilot.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=model_folder(), help="the model folder to write")
    parser.add_argument(
        "--start-from", type=Path, help="an earlier model's folder, to begin with its weights"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("runs/pilot_data"), help="flights, kept for the next time"
    )
    parser.add_argument("--flights", type=int, default=1800, help="flights of the expert to train on")
    parser.add_argument(
        "--vision-steps", type=int, default=1000, help="steps of the first phase, 64 pictures each"
    )
    parser.add_argument(
        "--decoder-steps", type=int, default=600, help="steps of the second phase, 8 streams each"
    )
    parser.add_argument("--steps", type=int, default=400, help="steps of the third phase, 8 streams each")
    parser.add_argument(
        "--minutes", type=float, default=45, help="the phases end sooner where steps take long"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="processes that collect flights and train, one thread each"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    options = parser.parse_args(arguments)
    seeds = list(TRAINING_SEEDS)
    jobs = [(seeds[i % len(seeds)], i // len(seeds)) for i in range(options.flights)]
    jobs += [(seed, 0) for seed in HELD_OUT_SEEDS]
    started = time.monotonic()
    paths = []
    for path in generate(options.data, jobs, processes=options.processes):
        paths.append(path)
        print(f"flights: shard {len(paths)}, {time.monotonic() - started:.0f} s", flush=True)
    flight_s = time.monotonic() - started
    with tempfile.TemporaryDirectory() as meeting:
        work = (options, sorted(paths), flight_s, f"{meeting}/point")
        spawn(_train, work, nprocs=options.processes)


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
    started = time.monotonic()
    streams = [stream for path in paths for stream in load_streams(path) if stream.samples]
    training = [s for s in streams if s.seed in TRAINING_SEEDS]
    held_out = [s for s in streams if s.seed in HELD_OUT_SEEDS]

    tokenizer = make_tokenizer()
    model = make_model(make_config(tokenizer))
    if options.start_from:
        start_from(options.start_from, model, tokenizer)
    trained = TrainingModel(model, TextEncoder(tokenizer))
    rng = np.random.default_rng((options.seed, rank))
    part = training[rank::processes]
    keep = functools.partial(save, options.out, model, tokenizer)
    vision_steps = train_vision(trained, part, held_out, options.vision_steps, 0.4 * options.minutes, rng)
    decoder_steps = train_decoder(
        trained, part, held_out, options.decoder_steps, 0.35 * options.minutes, rng, keep
    )
    steps = train_jointly(trained, part, held_out, options.steps, 0.25 * options.minutes, rng, keep)
    if rank > 0:
        return
    accuracy, by_tool = measure(trained, held_out)
    keep()
    record = {
        "training_seeds": [TRAINING_SEEDS.start, TRAINING_SEEDS.stop - 1],
        "held_out_seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.stop - 1],
        "flights": len(training),
        "frames": sum(len(s.frames) for s in training),
        "decisions": sum(len(s.samples) for s in training),
        "steps": {"vision": vision_steps, "decoder": decoder_steps, "joint": steps},
        "seed": options.seed,
        "started_from": _record_of(options.start_from),
        "parameters": model.num_parameters(),
        "held_out": {
            "decisions": sum(len(s.samples) for s in held_out),
            "accuracy": accuracy,
            "by_tool": by_tool,
        },
        "seconds": {"collecting": round(flight_s), "training": round(time.monotonic() - started)},
        "machine": f"{platform.machine()}, {processes} processes of one thread",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"held-out accuracy {accuracy:.1%} {by_tool}; {options.out}", flush=True)


def _record_of(folder: Path | None) -> dict[str, object] | None:
    """The record of the training that the weights come from."""
    file = folder / "training.json" if folder else None
    return json.loads(file.read_text()) if file and file.is_file() else None


# -- phase one ---------------------------------------------------------------------------------------------------


def train_vision(
    trained: TrainingModel,
    streams: Sequence[TrainingStream],
    held_out: Sequence[TrainingStream],
    steps: int,
    minutes: float,
    rng: np.random.Generator,
) -> int:
    """Single pictures, half of them mirrored: the beacon's position, the expert's call, the free distances."""
    anywhere = [(i, frame) for i, s in enumerate(streams) for frame in range(len(s.frames))]
    decided = [(i, ask.frame) for i, s in enumerate(streams) for ask in s.samples]
    calls, colours = [expert_calls(s) for s in streams], [colour_of(s) for s in streams]
    optimisation = Optimisation(trained.named_parameters(), 4e-3, steps, minutes)
    while optimisation.progress < 1:
        picked = [anywhere[i] for i in rng.integers(len(anywhere), size=20)]
        picked += [decided[i] for i in rng.integers(len(decided), size=44)]
        labels = torch.from_numpy(np.stack([streams[i].labels[frame] for i, frame in picked]))
        colour = torch.tensor([colours[i] for i, _ in picked])
        call = torch.stack([calls[i][frame] for i, frame in picked])
        pixels = to_pixels(np.stack([streams[i].frames[frame] for i, frame in picked]))
        pixels = augmented(pixels, torch.arange(len(picked)), rng)
        if optimisation.done % 2:
            pixels, (labels, call) = pixels.flip(3), mirrored(labels, call)
        closing = trained.frame_features(trained.encode_pictures(pixels))
        optimisation.step(trained.auxiliary_loss(closing, labels, colour, call))
        if _is_rank_zero() and (optimisation.done % 100 == 0 or optimisation.progress >= 1):
            optimisation.report("vision", f"held-out loss {auxiliary_loss_on(trained, held_out):.3f}")
    return optimisation.done


def mirrored(labels: Tensor, call: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and calls for the mirrored pictures; no call where the goal is not visible, since the expert always
    turns right there."""
    labels = labels.clone()
    labels[:, 1] = -labels[:, 1]
    labels[:, 3:] = labels[:, 3:].flip(1)
    other = [EXPERT_CALLS.index(_SIDE.sub(lambda m: _SWAPPED[m[0]], text)) for text in EXPERT_CALLS]
    return labels, torch.where((call >= 0) & (labels[:, 0] > 0), torch.tensor(other)[call], -1)


_SWAPPED = {"turn_left": "turn_right", "turn_right": "turn_left"}
_SIDE = re.compile("|".join(_SWAPPED))


@torch.no_grad()
def auxiliary_loss_on(trained: TrainingModel, streams: Sequence[TrainingStream]) -> float:
    """The auxiliary' loss on whole streams, without augmentation."""
    losses = []
    for stream in streams[:30]:
        colour = torch.full((len(stream.frames),), colour_of(stream))
        closing, labels = (
            trained.frame_features(trained.encode_pictures(to_pixels(stream.frames))),
            torch.from_numpy(stream.labels),
        )
        losses.append(float(trained.auxiliary_loss(closing, labels, colour, expert_calls(stream))))
    return float(np.mean(losses))


# -- phases two and three ----------------------------------------------------------------------------------------


def train_decoder(
    trained: TrainingModel,
    streams: Sequence[TrainingStream],
    held_out: Sequence[TrainingStream],
    steps: int,
    minutes: float,
    rng: np.random.Generator,
    keep: Callable[[], None],
) -> int:
    """The decoder on whole streams in serving form, the vision tower frozen: embeddings computed once, under two
    augmentations.

    `keep()` is called now and then, so that a training cut short leaves a model.
    """
    seen = [_embedded(trained, streams, rng) for _ in range(2)]
    named = [(name, weight) for name, weight in trained.named_parameters() if "visual" not in name]
    optimisation = Optimisation(named, 3e-3, steps, minutes)
    while optimisation.progress < 1:
        for part in _minibatches(streams, 8, rng):
            batch = make_batch(trained.text, [streams[i] for i in part], 99, rng)
            light = seen[int(rng.integers(len(seen)))]
            logits, closing = trained(batch, torch.cat([light[i] for i in part]))
            auxiliary = trained.auxiliary_loss(closing, batch.labels, batch.colour, batch.call)
            optimisation.step(F.cross_entropy(logits, batch.targets) + 0.2 * auxiliary)
            if _is_rank_zero() and (optimisation.done % 100 == 0 or optimisation.progress >= 1):
                _report(optimisation, "decoder", trained, held_out)
                keep()
            if optimisation.progress >= 1:
                break
    return optimisation.done


@torch.no_grad()
def _embedded(
    trained: TrainingModel, streams: Sequence[TrainingStream], rng: np.random.Generator
) -> list[Tensor]:
    found = []
    for stream in streams:
        owner = torch.zeros(len(stream.frames), dtype=torch.long)
        found.append(trained.encode_pictures(augmented(to_pixels(stream.frames), owner, rng)))
    return found


def train_jointly(
    trained: TrainingModel,
    streams: Sequence[TrainingStream],
    held_out: Sequence[TrainingStream],
    steps: int,
    minutes: float,
    rng: np.random.Generator,
    keep: Callable[[], None],
) -> int:
    """BatchedVisionTower and decoder on whole streams."""
    optimisation = Optimisation(trained.named_parameters(), 1.5e-3, steps, minutes)
    while optimisation.progress < 1:
        for part in _minibatches(streams, 8, rng):
            batch = make_batch(trained.text, [streams[i] for i in part], 99, rng)
            owner = torch.repeat_interleave(torch.arange(len(batch.counts)), torch.tensor(batch.counts))
            seen = trained.encode_pictures(augmented(to_pixels(batch.frames), owner, rng))
            logits, closing = trained(batch, seen)
            auxiliary = trained.auxiliary_loss(closing, batch.labels, batch.colour, batch.call)
            optimisation.step(F.cross_entropy(logits, batch.targets) + 0.2 * auxiliary)
            if _is_rank_zero() and (optimisation.done % 50 == 0 or optimisation.progress >= 1):
                _report(optimisation, "joint", trained, held_out)
                keep()
            if optimisation.progress >= 1:
                break
    return optimisation.done


def _is_rank_zero() -> bool:
    return torch.distributed.get_rank() == 0


def _report(
    optimisation: Optimisation, phase: str, trained: TrainingModel, held_out: Sequence[TrainingStream]
) -> None:
    accuracy, by_tool = measure(trained, held_out)
    optimisation.report(phase, f"held-out accuracy {accuracy:.1%} {by_tool}")


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
def measure(trained: TrainingModel, streams: Sequence[TrainingStream]) -> tuple[float, dict[str, float]]:
    """Share of the held-out decisions whose call equals the expert's, name and arguments; and by its tool."""
    rng = np.random.default_rng(0)
    right: dict[str, list[bool]] = {}
    for part in (streams[i : i + 10] for i in range(0, len(streams), 10)):
        batch = make_batch(trained.text, part, 99, rng)
        logits, _ = trained(batch, trained.encode_pictures(to_pixels(batch.frames)))
        wrong = set(batch.at[logits.argmax(-1) != batch.targets, 0].tolist())
        for i, ask in enumerate(ask for stream in part for ask in stream.samples):
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
    )  # one sheet of it: noise is slow to generate
    noise = torch.stack(
        [torch.from_numpy(grain[k : k + pixels[0].numel()]) for k in range(0, 1000 * n, 1000)]
    )
    noise = noise.view(n, *pixels.shape[1:]) * torch.from_numpy(amount).float()
    return (pixels * scale + shift + noise[owner]).clamp(0, 255)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton and Schulz's iteration (Keller Jordan, 2024), for weights that are matrices.

    Scaled to AdamW's size of step (arXiv 2502.16982). Half the steps of AdamW, measured on the vision phase.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                update = _orthogonal(weight.grad.lerp(momentum, 0.95).flatten(1)).view_as(weight)
                scale = 0.2 * math.sqrt(max(weight.flatten(1).shape))
                weight.mul_(1 - 0.05 * group["lr"]).add_(update, alpha=-scale * group["lr"])


def _orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all one."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    orthogonal: Tensor = x.T if tall else x
    return orthogonal


class Optimisation:
    """Muon and AdamW with a warm-up and a cosine over the steps, or over the minutes where those run out first.

    Gradients are averaged over all processes, which thereby stay in step.
    """

    def __init__(
        self, named: Iterable[tuple[str, torch.nn.Parameter]], rate: float, steps: int, minutes: float
    ):
        named = list({id(weight): (name, weight) for name, weight in named}.values())
        plain = ("embed_tokens", "lm_head", "auxiliary")
        matrices = [w for name, w in named if w.ndim >= 2 and not any(part in name for part in plain)]
        known = {id(w) for w in matrices}
        others = [w for _, w in named if id(w) not in known]
        self.parameters = [w for _, w in named]
        self.optimisers = [
            (Muon(matrices, rate), rate),
            (torch.optim.AdamW(others, lr=rate / 2, betas=(0.9, 0.98), weight_decay=0.02), rate / 2),
        ]
        self.steps, self.minutes = steps, minutes
        self.started, self.done, self.progress, self.losses = time.monotonic(), 0, 0.0, list[float]()

    def step(self, loss: Tensor) -> None:
        """One step; `progress` is then 0 at the start and 1 at the end."""
        for weight in self.parameters:
            weight.grad = None
        loss.backward()
        self._average()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        factor = min((self.done + 1) / 20, 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        for optimiser, rate in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
        self.done += 1
        self.losses.append(float(loss.detach()))

    def _average(self) -> None:
        """Gradients, and the first process's progress, to all processes."""
        first, processes = torch.distributed.get_rank() == 0, torch.distributed.get_world_size()
        passed = max(
            (self.done + 1) / self.steps, (time.monotonic() - self.started) / 60 / max(self.minutes, 1e-9)
        )
        grads = [weight.grad for weight in self.parameters if weight.grad is not None]
        flat = torch.cat([torch.tensor([min(passed, 1.0) * first]), *(grad.flatten() for grad in grads)])
        torch.distributed.all_reduce(flat)
        self.progress = float(flat[0])
        for grad, part in zip(grads, (flat[1:] / processes).split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def report(self, phase: str, note: str) -> None:
        seconds = time.monotonic() - self.started
        loss = np.mean(self.losses[-50:])
        print(f"{phase}: step {self.done}/{self.steps}, {seconds:.0f} s, loss {loss:.3f}, {note}", flush=True)


if __name__ == "__main__":
    main()
