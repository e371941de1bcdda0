"""Muon and AdamW under one schedule, data-parallel over processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton and Schulz's iteration (Keller Jordan, 2024), for weights that are matrices.

    Scaled to AdamW's size of step (arXiv 2502.16982). Half the steps of AdamW, measured on single pictures. Weights
    of one shape are iterated together, in bfloat16: in float32 one by one it took a quarter of a step.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[torch.nn.Parameter, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                update = weight.grad.lerp(momentum, 0.95).flatten(1)
                alike.setdefault(tuple(update.shape), []).append((weight, update))
            for shape, pairs in alike.items():
                scale = 0.2 * math.sqrt(max(shape))
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - 0.05 * group["lr"]).add_(
                        update.view_as(weight), alpha=-scale * group["lr"]
                    )


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices (n, rows, columns) whose singular values are all one."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    found: Tensor = (x.transpose(1, 2) if tall else x).to(matrices.dtype)
    return found


class Optimisation:
    """Both optimisers with a warm-up and a cosine over the steps, or over the minutes where those run out first.

    Minutes are those that this process has computed: whatever else the machine does, trainings of equal minutes are
    equally long. Gradients are averaged over all processes, which thereby stay in step.
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
        self.optimisers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, rate), rate),
            (torch.optim.AdamW(others, lr=rate / 2, betas=(0.9, 0.98), weight_decay=0.02), rate / 2),
        ]
        self.steps, self.minutes = steps, minutes
        self.started_s, self.done, self.progress, self.losses = time.process_time(), 0, 0.0, list[float]()

    @property
    def elapsed_s(self) -> float:
        """Of this process's computing."""
        return time.process_time() - self.started_s

    def state(self) -> dict[str, Any]:
        """What a training that is taken up again needs."""
        return {
            "optimisers": [optimiser.state_dict() for optimiser, _ in self.optimisers],
            "done": self.done,
            "elapsed_s": self.elapsed_s,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        for (optimiser, _), kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.done, self.started_s = state["done"], time.process_time() - state["elapsed_s"]

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
        passed = max((self.done + 1) / self.steps, self.elapsed_s / 60 / max(self.minutes, 1e-9))
        grads = [weight.grad for weight in self.parameters if weight.grad is not None]
        flat = torch.cat([torch.tensor([min(passed, 1.0) * first]), *(grad.flatten() for grad in grads)])
        torch.distributed.all_reduce(flat)
        self.progress = float(flat[0])
        for grad, part in zip(grads, (flat[1:] / processes).split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))
