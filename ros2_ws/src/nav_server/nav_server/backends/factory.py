"""One factory: the backends of a policy behind one interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from nav_common.clock import Clock, WallClock
from nav_pilot import model_folder
from nav_server.backends.fallback import Choice, FallbackBackend
from nav_server.backends.interface import Backend
from nav_server.backends.openai_compatible import Endpoint, OpenAiBackend
from nav_server.policy import BackendKind, Policy, Role
from vlm_perception.engine import QwenModel
from vlm_perception.guard import Guard
from vlm_perception.scheduler import ModelThread
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream


def make(
    policy: Policy,
    clock: Clock,
    make_engine: Callable[[Role], Backend],
    *,
    guard: Guard | None = None,
    on_change: Callable[[str], None] = lambda reason: None,
) -> FallbackBackend:
    """What sees and plans by a policy, and what takes over when it dies.

    make_engine: the streaming engine of a role; called at most once. on_change: see FallbackBackend.
    """
    guard = guard or Guard()
    choices = []
    for number, role in enumerate((policy.vision, *policy.fallbacks)):
        name = str(role.kind)
        if role.kind is BackendKind.ENGINE:
            choices.append(Choice(name, make_engine(role)))
            continue
        # What another model plans is planned for the first choice only: the others stand in alone.
        planning = policy.planning if number == 0 and policy.planning.kind is not role.kind else None
        backend = OpenAiBackend(
            endpoint(role),
            clock,
            planning=endpoint(planning) if planning and planning.url else None,
            guard=guard,
        )
        choices.append(served(name, backend))
    return FallbackBackend(choices, on_change=on_change)


def endpoint(role: Role) -> Endpoint:
    """Where a role is served."""
    return Endpoint(str(role.kind), role.url, str(role.model.value), role.api_key, role.frames.value or 1)


def served(name: str, backend: OpenAiBackend) -> Choice:
    """A backend on a server, with the ways to know that it died."""
    return Choice(name, backend, failed=lambda: backend.problem, reachable=backend.reachable)


def engine(role: Role) -> Backend:
    """The streaming engine in this process, with a thread of its own. Takes as long as the model takes to load."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    named = str(role.model.value)
    folder = Path(named) if role.model.origin != "default" else model_folder()
    form = ServingForm.load(folder)
    model = QwenModel.load(folder, size=(form.width, form.height), device=str(role.device.value))
    stream = Stream(model, form, WallClock())
    thread = ModelThread(lambda error: None)
    thread.add(stream)
    thread.start()
    return stream
