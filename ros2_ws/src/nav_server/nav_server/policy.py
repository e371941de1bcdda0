"""The execution policy: for seeing and for planning apart, which backend, model and limits, each with its reason.

Every value comes from the first of these that gives it: an argument, the policy file, the environment or a file .env, a
default; `python -m nav_server policy --explain` says which. What is left to be chosen ("auto") is chosen
from the profile of the machine. Pictures leave it for a cloud only where that was allowed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from nav_server.profile import LM_STUDIO_URL, OLLAMA_URL, MachineClass, ModelServer, Profile, take_profile

CLOUD_VISION = ("https://api.openai.com/v1", "gpt-4o")
CLOUD_PLANNING = ("https://api.deepseek.com/v1", "deepseek-chat")
"""What sees and what plans where nothing on this machine can (chosen: both speak OpenAI's API)."""
DEFAULT_CACHE_TOKENS = 100_000
"""Of the engine, where they fit: its own default, vlm_perception.engine.budget.DEFAULT_TOKENS."""
WEIGHTS_3B_BYTES = 7_510_000_000
"""Qwen2.5-VL-3B in bfloat16."""
KV_BYTES_3B = 36_864
"""Of one token of its cache in bfloat16: 2 x 36 layers x 2 heads x 128 x 2 bytes."""
SMALL_MODELS = ("moondream", "llava-phi", "llava_phi")
"""Taken without a GPU, in this order (chosen: small enough to see on a CPU); parts of the names that servers list."""
EMBEDDINGS = ("embed",)
"""Models that answer nothing."""
TWO_A_SECOND = "two frames a second, as the four-action client sends them"
CPU_FRAMES, GPU_FRAMES = 1, 4
"""Newest pictures in a request: chosen for a small model on a CPU, which takes seconds for one."""


class PolicyError(ValueError):
    """A policy that cannot be kept; names the value, where it came from, and the remedy."""


class Origin(StrEnum):
    """Where a value came from."""

    ARGUMENT = "argument"
    POLICY_FILE = "policy file"
    ENVIRONMENT = "configuration or environment"
    DEFAULT = "default"
    PROFILE = "profile"
    SERVING_FORM = "serving form"
    ELSEWHERE = ""
    """Not decided here."""


class BackendKind(StrEnum):
    """What answers."""

    ENGINE = "engine"
    """The streaming engine in this process."""
    LM_STUDIO = "lmstudio"
    OLLAMA = "ollama"
    CLOUD = "cloud"


class PolicySettings(BaseSettings):
    """What a person may say; names of the environment in capitals. "auto" and 0 are left to the profile."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", env_ignore_empty=True, validate_default=True
    )

    force_local: bool = Field(False, description="never the cloud")
    force_cloud: bool = Field(False, description="the cloud, whatever is on this machine")
    allow_cloud: bool = Field(False, description="pictures may leave this machine")
    use_local_vision: bool = Field(True, description="see on this machine where that is possible")
    local_vision_provider: Literal["auto", "engine", "lmstudio", "ollama"] = "auto"
    local_vision_model: str = "auto"
    planning_provider: Literal["auto", "engine", "lmstudio", "ollama", "cloud"] = "auto"
    planning_model: str = "auto"
    lmstudio_host: str = LM_STUDIO_URL
    lmstudio_model: str = "auto"
    ollama_host: str = OLLAMA_URL
    ollama_model: str = "auto"
    qwen_model_path: str = Field("", description="folder of the engine's model; empty: the shipped pilot")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_cache_tokens: int = Field(0, ge=0, le=10_000_000, description="0: what fits, at most 100,000")
    default_max_tokens: int = Field(16, ge=1, le=768, description="tokens of a normal request")
    circuit_breaker_threshold: float = Field(3000.0, gt=0, le=600_000, description="ms")
    openai_api_key: str = Field("", repr=False)
    deepseek_api_key: str = Field("", repr=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings


@dataclass(frozen=True)
class Value:
    """A value of the policy: where it came from (Origin; of a file with its name), and why it is this one."""

    value: Any
    origin: str
    reason: str = ""


@dataclass(frozen=True)
class Role:
    """Of seeing, or of planning. url: of the server's API, "" for the engine. frames: newest pictures in a request, 0:
    the engine remembers all. cache_tokens, width, height, frame_interval_s: of the engine."""

    backend: Value
    model: Value
    url: str
    device: Value
    dtype: Value
    cache_tokens: Value
    frames: Value
    resolution: Value
    frame_interval_s: Value
    max_tokens: Value
    api_key: str = field(default="", repr=False)

    @property
    def kind(self) -> BackendKind:
        return BackendKind(self.backend.value)


@dataclass(frozen=True)
class Policy:
    """Who sees, who plans, and what takes over when the one that sees fails, in this order."""

    machine_class: MachineClass
    vision: Role
    planning: Role
    fallbacks: tuple[Role, ...]
    break_ms: Value

    def as_json(self) -> dict[str, Any]:
        """Without the keys of clouds."""
        shown = asdict(self)
        for role in (shown["vision"], shown["planning"], *shown["fallbacks"]):
            role.pop("api_key")
        return {**shown, "machine_class": str(self.machine_class)}

    def summary(self) -> str:
        """Who sees, who plans, and what takes over: a line each, with reason and origin."""
        lines = []
        for what, role in (("sees", self.vision), ("plans", self.planning)):
            backend = role.backend
            lines.append(f"{role.kind} {what} with {role.model.value}: {backend.reason} [{backend.origin}]")
        return "\n".join([*lines, self._afterwards()])

    def _afterwards(self) -> str:
        after = ", then ".join(str(role.kind) for role in self.fallbacks)
        return f"when {self.vision.kind} fails: {after or 'nothing, the drone hovers until it is back'}"

    def explained(self, *, origins: bool) -> str:
        """A line for each value, with its reason; origins: and where it came from."""
        lines = [f"{self.machine_class}"]
        for name, role in (("vision", self.vision), ("planning", self.planning)):
            lines.append(f"{name}:")
            for key, value in vars(role).items():
                if isinstance(value, Value):
                    where = f" [{value.origin}]" if origins else ""
                    why = f": {value.reason}" if value.reason else ""
                    lines.append(f"  {key:<17} {value.value}{where}{why}")
        lines.append(self._afterwards())
        where = f" [{self.break_ms.origin}]" if origins else ""
        lines.append(f"broken off after {self.break_ms.value:g} ms{where}")
        return "\n".join(lines)


class Sources:
    """The settings with where each came from.

    arguments: those that were given. policy_file: a YAML file of the settings' names. environment: that of the process,
    by pydantic-settings, and a file .env beside it.

    Raises:
        PolicyError: a file that cannot be read, an unknown name, a value that is not allowed.
    """

    def __init__(self, arguments: Mapping[str, Any], policy_file: Path | None = None) -> None:
        of_file = _read(policy_file) if policy_file else {}
        known = set(PolicySettings.model_fields)
        file_origin = f"{Origin.POLICY_FILE} {policy_file}"
        for where, given in ((Origin.ARGUMENT, arguments), (file_origin, of_file)):
            unknown = sorted(set(given) - known)
            if unknown:
                raise PolicyError(
                    f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"
                )
        self._origins = {
            **dict.fromkeys(of_file, file_origin),
            **dict.fromkeys(arguments, Origin.ARGUMENT),
        }
        try:
            self.settings = PolicySettings(**{**of_file, **arguments})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise PolicyError(f"{name} is {first.get('input')!r}: {first['msg']}") from None
        if self.settings.force_local and self.settings.force_cloud:
            raise PolicyError("force_local and force_cloud are both given: take one")

    def origin(self, name: str) -> str:
        """Where a setting came from."""
        if name in self._origins:
            return self._origins[name]
        return Origin.ENVIRONMENT if name in self.settings.model_fields_set else Origin.DEFAULT


def _read(file: Path) -> dict[str, Any]:
    try:
        values = YamlConfigSettingsSource(PolicySettings, file)() if file.is_file() else None
    except Exception as error:  # what a YAML parser and pydantic-settings raise is of many kinds
        raise PolicyError(f"policy file {file} cannot be read: {' '.join(str(error).split()):.200}") from None
    if values is None:
        raise PolicyError(f"policy file {file} is not there")
    return dict(values)


def decide(sources: Sources, profile: Profile) -> Policy:
    """The policy for a machine.

    Raises:
        PolicyError: what was asked for cannot be had here.
    """
    chooser = _Chooser(sources, profile)
    vision, planning = chooser.vision(), chooser.planning()
    return Policy(
        profile.machine_class,
        vision,
        planning,
        chooser.fallbacks(vision),
        chooser.said("circuit_breaker_threshold"),
    )


class _Chooser:
    """The rules, on settings and a profile."""

    def __init__(self, sources: Sources, profile: Profile) -> None:
        self._sources = sources
        self._settings = sources.settings
        self._profile = profile
        self._servers = {BackendKind.LM_STUDIO: profile.lm_studio, BackendKind.OLLAMA: profile.ollama}

    def said(self, name: str, reason: str = "") -> Value:
        """A setting as it was given."""
        return Value(getattr(self._settings, name), self._sources.origin(name), reason)

    # Which backend.

    def vision(self) -> Role:
        settings = self._settings
        if settings.force_cloud:
            return self._cloud(
                CLOUD_VISION, self._forced("force_cloud"), settings.openai_api_key, "openai_api_key"
            )
        if settings.local_vision_provider != "auto":
            kind = BackendKind(settings.local_vision_provider)
            return self._role(kind, self.said("local_vision_provider", "as asked for").origin, "as asked for")
        if not settings.use_local_vision and not settings.force_local:
            chosen = Value(
                BackendKind.CLOUD, self._sources.origin("use_local_vision"), "use_local_vision is off"
            )
            return self._cloud(CLOUD_VISION, chosen, settings.openai_api_key, "openai_api_key")
        kind, reason = self._best_local()
        return self._role(kind, Origin.PROFILE, reason)

    def planning(self) -> Role:
        settings = self._settings
        wanted = settings.planning_provider
        if wanted == "cloud":
            if settings.force_local:
                raise PolicyError("planning_provider is cloud, but force_local is set: take one")
            chosen = self._forced("planning_provider")
            return self._cloud(CLOUD_PLANNING, chosen, settings.deepseek_api_key, "deepseek_api_key")
        if wanted != "auto" and not settings.force_cloud:
            origin = self._sources.origin("planning_provider")
            return self._role(BackendKind(wanted), origin, "as asked for", planning=True)
        vision = self.vision()
        if vision.kind is BackendKind.CLOUD:
            if not settings.deepseek_api_key:
                reason = f"{vision.model.value} also plans, as there is no DEEPSEEK_API_KEY"
                return replace(vision, backend=replace(vision.backend, reason=reason))
            chosen = replace(vision.backend, reason="the cloud sees, so it also plans")
            return self._cloud(CLOUD_PLANNING, chosen, settings.deepseek_api_key, "deepseek_api_key")
        small = vision.kind is not BackendKind.ENGINE and _is_small(str(vision.model.value))
        if small and settings.allow_cloud and not settings.force_local and settings.deepseek_api_key:
            reason = f"{vision.model.value} sees, but is too small to plan, and the cloud is allowed"
            chosen = Value(BackendKind.CLOUD, Origin.PROFILE, reason)
            return self._cloud(CLOUD_PLANNING, chosen, settings.deepseek_api_key, "deepseek_api_key")
        return self._role(
            vision.kind, vision.backend.origin, "the backend that sees also plans", planning=True
        )

    def fallbacks(self, vision: Role) -> tuple[Role, ...]:
        """What is left of the backends, in order; the engine's own pilot is always there."""
        roles: list[Role] = []
        for kind, server in self._servers.items():
            if kind is not vision.kind and server.runs and _usable(server) and not self._settings.force_cloud:
                roles.append(self._role(kind, Origin.PROFILE, "runs on this machine"))
        if vision.kind is not BackendKind.ENGINE and not self._settings.force_cloud:
            pilot = Value(BackendKind.ENGINE, Origin.PROFILE, "the embedded pilot is always there")
            roles.append(self._engine(pilot, large=False))
        may = self._settings.allow_cloud and self._settings.openai_api_key and not self._settings.force_local
        if may and vision.kind is not BackendKind.CLOUD:
            chosen = Value(BackendKind.CLOUD, Origin.PROFILE, "the last resort, as the cloud is allowed")
            roles.append(self._cloud(CLOUD_VISION, chosen, self._settings.openai_api_key, "openai_api_key"))
        return tuple(roles)

    def _forced(self, name: str) -> Value:
        return Value(BackendKind.CLOUD, self._sources.origin(name), f"{name} is set")

    def _best_local(self) -> tuple[BackendKind, str]:
        profile = self._profile
        kind = profile.machine_class
        holds = kind in (MachineClass.LOCAL_GPU_MID, MachineClass.LOCAL_GPU_HIGH)
        if holds and self._settings.qwen_model_path:
            return BackendKind.ENGINE, profile.reason
        for backend, server in self._servers.items():
            if server.runs and _usable(server):
                why = "no qwen_model_path names a model for the engine" if holds else profile.reason
                return backend, f"{server.name} runs, and {why}"
        if holds:
            return BackendKind.ENGINE, f"{profile.reason}, but no qwen_model_path names it"
        return (
            BackendKind.ENGINE,
            f"no model server runs, and {profile.reason}",
        )

    # One role.

    def _role(self, kind: BackendKind, origin: str, reason: str, *, planning: bool = False) -> Role:
        backend = Value(kind, origin, reason)
        if kind is BackendKind.ENGINE:
            return self._engine(backend, large=bool(self._settings.qwen_model_path))
        return self._served(backend, planning)

    def _engine(self, backend: Value, *, large: bool) -> Role:
        """large: the model of qwen_model_path; else the shipped pilot."""
        settings, gpu = self._settings, self._profile.best_gpu
        device = self.said("device")
        if settings.device == "cuda" and gpu is None:
            raise PolicyError(
                f"device is cuda [{device.origin}], but {self._profile.reason}: use auto or cpu"
            )
        on_gpu = gpu is not None and settings.device != "cpu"
        if settings.device == "auto":
            device = Value(
                "cuda" if on_gpu else "cpu", Origin.PROFILE, gpu.name if gpu and on_gpu else "no usable GPU"
            )
        pilot = Value("the shipped pilot", Origin.DEFAULT, "no qwen_model_path is given")
        return Role(
            backend=backend,
            model=self.said("qwen_model_path") if large else pilot,
            url="",
            device=device,
            dtype=Value("bfloat16", Origin.PROFILE, "the engine's type on a GPU")
            if on_gpu
            else Value("float32", Origin.PROFILE, "the pilot's type on a CPU"),
            cache_tokens=self._cache_tokens(large, on_gpu),
            frames=Value(0, Origin.DEFAULT, "the engine remembers"),
            resolution=Value("448x336", Origin.DEFAULT, "192 tokens a picture")
            if large
            else Value("112x84", Origin.SERVING_FORM, "what the pilot was trained on"),
            frame_interval_s=Value(0.5, Origin.DEFAULT, TWO_A_SECOND)
            if large
            else Value(2.0, Origin.SERVING_FORM, "what the pilot was trained on"),
            max_tokens=self.said("default_max_tokens", "a normal request; sampled tokens"),
        )

    def _cache_tokens(self, large: bool, on_gpu: bool) -> Value:
        """By the engine's one budget function."""
        if self._settings.max_cache_tokens:
            return self.said("max_cache_tokens")
        if not large:
            return Value(0, Origin.SERVING_FORM, "what the pilot was trained on")
        gpu = self._profile.best_gpu
        if not on_gpu or gpu is None:
            free, where = self._profile.ram_available_bytes, "of memory"
        else:
            free, where = gpu.free_bytes, f"on {gpu.name}"
        from vlm_perception.engine import budget  # torch's import takes seconds, and most policies need none

        fits = budget.tokens_that_fit(free - WEIGHTS_3B_BYTES, KV_BYTES_3B)
        if fits < 1:
            raise PolicyError(
                f"{free / 2**30:.1f} GiB free {where} do not hold the 3B model and a memory: free some, or leave "
                "qwen_model_path out for the shipped pilot"
            )
        tokens = min(fits, DEFAULT_CACHE_TOKENS)
        what = "the default fits" if tokens == DEFAULT_CACHE_TOKENS else "what fits beside the weights"
        return Value(tokens, Origin.PROFILE, f"{what}: {free / 2**30:.1f} GiB free {where}")

    def _served(self, backend: Value, planning: bool) -> Role:
        kind = BackendKind(backend.value)
        server = self._servers[kind]
        if not server.runs:
            raise PolicyError(
                f"{kind} was asked for [{backend.origin}], but {server.name} at {server.url} is {server.problem}: "
                "start it, or choose another provider"
            )
        on_cpu = self._profile.machine_class is MachineClass.LOCAL_CPU_ONLY
        frames = (
            Value(CPU_FRAMES, Origin.PROFILE, "a small model on the CPU takes seconds for each picture")
            if on_cpu
            else Value(GPU_FRAMES, Origin.PROFILE, "the newest pictures, as it remembers none")
        )
        none = Value("", Origin.ELSEWHERE, "the server's business")
        url = server.url if kind is BackendKind.LM_STUDIO else f"{server.url.rstrip('/')}/v1"
        return Role(
            backend=backend,
            model=self._model(kind, server, planning),
            url=url,
            device=none,
            dtype=none,
            cache_tokens=Value(0, Origin.DEFAULT, "it remembers nothing between requests"),
            frames=frames,
            resolution=Value("640x480", Origin.DEFAULT, "as the camera gives them"),
            frame_interval_s=Value(0.5, Origin.DEFAULT, TWO_A_SECOND),
            max_tokens=self.said("default_max_tokens", "a normal request"),
        )

    def _model(self, kind: BackendKind, server: ModelServer, planning: bool) -> Value:
        names = ["lmstudio_model" if kind is BackendKind.LM_STUDIO else "ollama_model"]
        names.insert(0, "planning_model" if planning else "local_vision_model")
        for name in names:
            if getattr(self._settings, name) != "auto":
                return self.said(name)
        usable = _usable(server)
        if not usable:
            raise PolicyError(f"{server.name} at {server.url} has no model that answers: load one in it")
        for part in SMALL_MODELS if self._profile.machine_class is MachineClass.LOCAL_CPU_ONLY else ():
            for model in usable:
                if part in model.lower():
                    return Value(model, Origin.PROFILE, "recommended without a GPU")
        return Value(usable[0], Origin.PROFILE, "the first that it lists")

    def _cloud(self, served: tuple[str, str], backend: Value, key: str, key_name: str) -> Role:
        if not self._settings.allow_cloud:
            raise PolicyError(
                f"the cloud is wanted ({backend.reason} [{backend.origin}]), but pictures may not leave this machine: "
                "set ALLOW_CLOUD=true to allow it"
            )
        if not key:
            raise PolicyError(f"the cloud at {served[0]} needs a key: set {key_name.upper()}")
        url, model = served
        none = Value("", Origin.ELSEWHERE, "the cloud's business")
        return Role(
            backend=backend,
            model=Value(model, Origin.DEFAULT, "the one that is asked for at this cloud"),
            url=url,
            device=none,
            dtype=none,
            cache_tokens=Value(0, Origin.DEFAULT, "it remembers nothing between requests"),
            frames=Value(GPU_FRAMES, Origin.DEFAULT, "the newest pictures"),
            resolution=Value("640x480", Origin.DEFAULT, "as the camera gives them"),
            frame_interval_s=Value(0.5, Origin.DEFAULT, TWO_A_SECOND),
            max_tokens=self.said("default_max_tokens", "a normal request"),
            api_key=key,
        )


def _usable(server: ModelServer) -> list[str]:
    return [model for model in server.models if not any(part in model.lower() for part in EMBEDDINGS)]


def _is_small(model: str) -> bool:
    return any(part in model.lower() for part in SMALL_MODELS)


# --- the command

_FLAGS: Sequence[str] = ("force_local", "force_cloud", "allow_cloud")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`python -m nav_server policy`."""
    parser = commands.add_parser("policy", help="who sees and who plans on this machine, with the reasons")
    parser.add_argument("--explain", action="store_true", help="where every value came from")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_settings(parser)
    parser.set_defaults(run=_run)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The arguments by which settings are given; `sources_of` reads them."""
    parser.add_argument("--policy-file", type=Path, metavar="FILE", help="YAML of the settings' names")
    for name in _FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_const", const=True, dest=name)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting")


def arguments_of(options: argparse.Namespace) -> list[str]:
    """The arguments of parsed `add_settings` once more, for another process."""
    file = [f"--policy-file={options.policy_file}"] if options.policy_file else []
    flags = [f"--{name.replace('_', '-')}" for name in _FLAGS if getattr(options, name)]
    return [*file, *flags, *(f"--set={item}" for item in options.set)]


def sources_of(options: argparse.Namespace, given: Mapping[str, Any] | None = None) -> Sources:
    """The settings of parsed `add_settings`; given: those that other arguments say. Raises PolicyError."""
    arguments = {**(given or {}), **{name: True for name in _FLAGS if getattr(options, name)}}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise PolicyError(f"--set {item!r}: write NAME=VALUE")
        arguments[name] = value
    return Sources(arguments, options.policy_file)


def decide_here(sources: Sources) -> Policy:
    """The policy for this machine, which is looked at first: 2 s at most. Raises PolicyError."""
    return decide(sources, take_profile(sources.settings.lmstudio_host, sources.settings.ollama_host))


def _run(options: argparse.Namespace) -> int:
    policy = decide_here(sources_of(options))
    print(
        json.dumps(policy.as_json(), indent=2) if options.json else policy.explained(origins=options.explain)
    )
    return 0
