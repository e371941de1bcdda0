"""One factory: the backends of a policy, each begun once, and streams on them for any number of clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nav_agent import toolset
from nav_agent.prompts import load_prompt
from nav_common.clock import Clock, WallClock
from nav_common.data import ActiveFrames, WatchEvent
from nav_pilot import model_folder
from nav_server.backends.fallback import Choice, FallbackBackend, Health
from nav_server.backends.openai_compatible import ChatModel, Endpoint, ServedMemory
from nav_server.policy import BackendKind, Origin, Policy, Role
from nav_server.settings import check_model
from vlm_perception.backend import Backend
from vlm_perception.engine import QwenModel
from vlm_perception.guard import Guard
from vlm_perception.identity.bank import MemoryBank
from vlm_perception.scheduler import ModelThread
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream, StreamSettings

_CLOSE_LIMIT_S = 2.0


@dataclass(frozen=True)
class Callbacks:
    """Of a stream (see Stream); on_fallback: gets the reason when another backend answers than before."""

    on_change: Callable[[], None] = lambda: None
    on_watch: Callable[[WatchEvent], None] = lambda event: None
    on_active_frames: Callable[[ActiveFrames], None] = lambda frames: None
    on_warning: Callable[[str], None] = lambda text: None
    on_fallback: Callable[[str], None] = lambda reason: None


@dataclass(frozen=True)
class Served:
    """A loaded model, how it is served, and the thread that steps its streams."""

    model: QwenModel
    form: ServingForm
    name: str
    thread: ModelThread
    health: Health = field(default_factory=lambda: Health(str(BackendKind.ENGINE)))

    def facts(self) -> dict[str, Any]:
        """For people."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"model": self.name, "device": str(self.model.device), "dtype": dtype}


class ModelServerClient:
    """What is asked of a model server, by streams that take turns on one thread. planning: see ServedMemory."""

    form = ServedMemory.form

    def __init__(
        self,
        vision: Endpoint,
        planning: Endpoint | None = None,
        *,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """on_failure: of the thread, see ModelThread."""
        self._vision = ChatModel(vision)
        self._planning = ChatModel(planning) if planning and planning != vision else None
        self.thread = ModelThread(on_failure)
        self.thread.start()
        self.health = Health(vision.name, self.reachable)

    def memory(self, clock: Clock) -> ServedMemory:
        return ServedMemory(self._vision, clock, self._planning)

    def reachable(self) -> bool:
        """Whether its servers answer, within 1 s each. Waits for them."""
        return self._vision.reachable() and (self._planning is None or self._planning.reachable())

    def facts(self) -> dict[str, Any]:
        """For people."""
        endpoint = self._vision.endpoint
        return {"model": endpoint.model, "device": endpoint.url, "dtype": ""}

    def close(self) -> None:
        self.thread.close(_CLOSE_LIMIT_S)
        for model in filter(None, (self._vision, self._planning)):
            model.close()


class Backends:
    """What answers, in order of preference: streams on it for any number of clients. For any thread."""

    def __init__(self, sources: Sequence[Served | ModelServerClient], clock: Clock, guard: Guard) -> None:
        """guard: what every decision passes."""
        if not sources:
            raise ValueError("no backend: give at least one")
        self._sources = tuple(sources)
        self.clock = clock
        self.guard = guard

    @property
    def first(self) -> Served | ModelServerClient:
        return self._sources[0]

    @property
    def engine(self) -> Served | None:
        """The model in this process, if there is one."""
        return next((source for source in self._sources if isinstance(source, Served)), None)

    @property
    def system_prompt(self) -> str:
        """What the engine's model was trained with, else the agent's."""
        return (self.engine.form.system_prompt if self.engine else "") or load_prompt()

    def count_tokens(self, text: str) -> int:
        """By the engine's vocabulary, else an estimate."""
        return len(self.engine.model.tokenize(text)) if self.engine else toolset.estimate_tokens(text)

    def stream(
        self,
        *,
        form: ServingForm | None = None,
        priority: int = 0,
        settings: StreamSettings | None = None,
        callbacks: Callbacks | None = None,
        guard: Guard | None = None,
        bank: MemoryBank | None = None,
    ) -> Backend:
        """Another stream. form: of the engine, in place of its model's own. guard: in place of the common one. bank: of
        the engine's stream.

        Raises:
            ValueError, RuntimeError: there is no memory for it.
        """
        callbacks = callbacks or Callbacks()
        choices = []
        for source in self._sources:
            model: QwenModel | ServedMemory
            if isinstance(source, Served):
                model, its_form = source.model, form or source.form
            else:
                model, its_form = source.memory(self.clock), source.form
            stream = Stream(
                model,
                its_form,
                self.clock,
                priority=priority,
                settings=settings,
                guard=guard or self.guard,
                on_change=callbacks.on_change,
                bank=bank if isinstance(source, Served) else None,
                on_watch=callbacks.on_watch,
                on_active_frames=callbacks.on_active_frames,
                on_warning=callbacks.on_warning,
            )
            choices.append(Choice(stream, source.health))
        for choice, source in zip(choices, self._sources, strict=True):
            source.thread.add(choice.stream)
        if len(choices) == 1:
            return choices[0].stream
        return FallbackBackend(choices, on_fallback=callbacks.on_fallback)

    def close(self) -> None:
        """What was begun here; the engine's thread is its owner's."""
        for source in self._sources:
            if isinstance(source, ModelServerClient):
                source.close()


def make(
    policy: Policy,
    guard: Guard,
    load: Callable[[Role], Served],
    on_failure: Callable[[BaseException], None],
    clock: Clock | None = None,
) -> Backends:
    """What sees and plans by a policy, and what takes over when it fails.

    load: the engine of a role; called at most once. on_failure: of a model server's thread, see ModelThread.
    """
    sources: list[Served | ModelServerClient] = []
    for number, role in enumerate((policy.vision, *policy.fallbacks)):
        if role.kind is BackendKind.ENGINE:
            sources.append(load(role))
            continue
        # What another model plans is planned for the first choice only: the others stand in alone.
        planning = policy.planning if number == 0 and policy.planning.kind is not role.kind else None
        planner = endpoint(planning) if planning and planning.url else None
        sources.append(ModelServerClient(endpoint(role), planner, on_failure=on_failure))
    return Backends(sources, clock or WallClock(), guard)


def endpoint(role: Role) -> Endpoint:
    """Where a role is served."""
    return Endpoint(str(role.kind), role.url, str(role.model.value), role.api_key, role.frames.value or 1)


def load_engine(role: Role, thread: ModelThread, torch_threads: int) -> Served:
    """The engine of a role, in this process. Takes as long as the model takes to load.

    Raises:
        ValueError: it cannot be, or not on that device.
    """
    origin = role.model.origin
    given = Path(str(role.model.value)).expanduser().absolute()
    folder = model_folder() if origin == Origin.DEFAULT else given
    check_model(folder, f"model [{origin}]")
    torch.set_num_threads(torch_threads)
    form = ServingForm.load(folder)
    if role.cache_tokens.value:
        form = replace(form, max_cache_tokens=role.cache_tokens.value)
    model = QwenModel.load(folder, size=(form.width, form.height), device=str(role.device.value))
    return Served(model, form, folder.name, thread)
