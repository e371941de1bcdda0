"""What this machine has: threads, memory, GPUs, disk, model servers that run on it; and the class it falls in.

`python -m nav_server profile [--json]`. The model servers are asked in parallel, 2 s each at most. torch, whose import
takes seconds, is imported only where the GPU's driver shows a device.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

PROBE_TIMEOUT_S = 2.0
"""Of each model server (chosen: one that runs on this machine answers within milliseconds)."""
LM_STUDIO_URL = "http://localhost:1234/v1"
OLLAMA_URL = "http://localhost:11434"
LONGEST_ANSWER = 1_000_000
"""Bytes of a list of models that are read: more is no such list."""

GIB = 2**30
# What Qwen2.5-VL-3B needs in bf16 by the engine's arithmetic (vlm_perception.engine.budget): weights, 1.5 GiB to work
# in and a cache with the room that it slides through. With 10,000 tokens of memory, the least that real time wants, and
# with the 100,000 that are the default. Held against that arithmetic by a test.
MID_VRAM_BYTES = int(8.97 * GIB)
HIGH_VRAM_BYTES = int(12.83 * GIB)
LOWEST_CAPABILITY = (8, 0)
"""Of a GPU that the engine serves on: vlm_perception.engine.device.AMPERE."""


class MachineClass(StrEnum):
    """What kind of machine it is, by its largest GPU that the engine can use."""

    LOCAL_CPU_ONLY = "LOCAL_CPU_ONLY"
    LOCAL_GPU_LOW = "LOCAL_GPU_LOW"
    """A GPU on which the 3B model has no room for a memory worth its name."""
    LOCAL_GPU_MID = "LOCAL_GPU_MID"
    """The 3B model with at least 10,000 tokens of memory."""
    LOCAL_GPU_HIGH = "LOCAL_GPU_HIGH"
    """The 3B model with its default of 100,000 tokens."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it; memory in bytes."""

    name: str
    vram_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]


@dataclass(frozen=True)
class ModelServer:
    """A program on this machine that serves models. problem: why it cannot be used; "" when it can."""

    name: str
    url: str
    models: tuple[str, ...] = ()
    problem: str = ""

    @property
    def runs(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class Profile:
    """What the machine has. Sizes in bytes; `disk_path` is the folder whose disk was looked at; `gpu_problem` says why
    a GPU that is there cannot be used."""

    cpu_threads: int
    ram_bytes: int
    ram_available_bytes: int
    disk_path: str
    disk_bytes: int
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]
    lm_studio: ModelServer
    ollama: ModelServer
    gpu_problem: str = ""

    @property
    def best_gpu(self) -> Gpu | None:
        """The one with most memory among those that the engine can compute on."""
        usable = [gpu for gpu in self.gpus if gpu.compute_capability >= LOWEST_CAPABILITY]
        return max(usable, key=lambda gpu: gpu.vram_bytes, default=None)

    @property
    def machine_class(self) -> MachineClass:
        return self._classified()[0]

    @property
    def reason(self) -> str:
        """Why it is of this class."""
        return self._classified()[1]

    def _classified(self) -> tuple[MachineClass, str]:
        gpu = self.best_gpu
        if gpu is None and not self.gpus:
            return MachineClass.LOCAL_CPU_ONLY, self.gpu_problem or "no GPU was found"
        if gpu is None:
            old = max(self.gpus, key=lambda gpu: gpu.compute_capability)
            capability, lowest = _version(old.compute_capability), _version(LOWEST_CAPABILITY)
            return (
                MachineClass.LOCAL_GPU_LOW,
                f"{old.name} has compute capability {capability}, the engine needs {lowest}",
            )
        size = f"{gpu.name} with {_gib(gpu.vram_bytes)}"
        if gpu.vram_bytes >= HIGH_VRAM_BYTES:
            return MachineClass.LOCAL_GPU_HIGH, f"{size} holds the 3B model and 100,000 tokens of memory"
        if gpu.vram_bytes >= MID_VRAM_BYTES:
            return (
                MachineClass.LOCAL_GPU_MID,
                f"{size} holds the 3B model and 10,000 tokens, but not 100,000",
            )
        return (
            MachineClass.LOCAL_GPU_LOW,
            f"{size} is too small for the 3B model and 10,000 tokens of memory",
        )

    def as_json(self) -> dict[str, Any]:
        """Every field, with the class and its reason."""
        return {"class": str(self.machine_class), "reason": self.reason, **asdict(self)}

    def as_table(self) -> str:
        rows = [
            ("class", f"{self.machine_class}: {self.reason}"),
            ("CPU", f"{self.cpu_threads} threads"),
            ("RAM", f"{_gib(self.ram_bytes)}, {_gib(self.ram_available_bytes)} available"),
            ("disk", f"{_gib(self.disk_free_bytes)} free of {_gib(self.disk_bytes)} at {self.disk_path}"),
        ]
        for gpu in self.gpus:
            capability = _version(gpu.compute_capability)
            rows.append(
                (
                    "GPU",
                    f"{gpu.name}, {_gib(gpu.vram_bytes)}, {_gib(gpu.free_bytes)} free, compute capability {capability}",
                )
            )
        if not self.gpus:
            rows.append(("GPU", self.gpu_problem or "none"))
        for server in (self.lm_studio, self.ollama):
            models = ", ".join(server.models) or "no model loaded"
            rows.append((server.name, f"{server.url}: {models if server.runs else server.problem}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def take_profile(
    lm_studio_url: str = LM_STUDIO_URL,
    ollama_url: str = OLLAMA_URL,
    disk_path: str | Path = ".",
    timeout_s: float = PROBE_TIMEOUT_S,
) -> Profile:
    """Look at this machine.

    Raises:
        ValueError: an address that is none, or a folder that is not there.
    """
    for url in (lm_studio_url, ollama_url):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"address {url!r} of a model server must begin with http:// or https://")
    if not Path(disk_path).exists():
        raise ValueError(f"disk path {disk_path} is not there: give a folder, such as that of the models")
    servers = _in_parallel(
        {
            "LM Studio": lambda: probe_lm_studio(lm_studio_url, timeout_s),
            "Ollama": lambda: probe_ollama(ollama_url, timeout_s),
        },
        timeout_s,
    )
    gpus, gpu_problem = find_gpus()
    silent = f"no answer in {timeout_s:g} s"
    waited = servers()
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(disk_path))
    return Profile(
        cpu_threads=psutil.cpu_count() or 1,
        ram_bytes=memory.total,
        ram_available_bytes=memory.available,
        disk_path=str(Path(disk_path).resolve()),
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
        gpus=gpus,
        lm_studio=waited.get("LM Studio", ModelServer("LM Studio", lm_studio_url, problem=silent)),
        ollama=waited.get("Ollama", ModelServer("Ollama", ollama_url, problem=silent)),
        gpu_problem=gpu_problem,
    )


# --- model servers


def probe_lm_studio(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> ModelServer:
    """LM Studio, or any OpenAI-compatible server: its models by `GET url/models`."""
    return _probe("LM Studio", url, "/models", "data", "id", timeout_s)


def probe_ollama(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> ModelServer:
    """Ollama: its models by `GET url/api/tags`."""
    return _probe("Ollama", url, "/api/tags", "models", "name", timeout_s)


def _probe(name: str, url: str, path: str, items: str, key: str, timeout_s: float) -> ModelServer:
    # No proxy: what is asked for runs on this machine, whatever the environment says of the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url.rstrip("/") + path, timeout=timeout_s) as answer:
            listed = json.loads(answer.read(LONGEST_ANSWER))[items]
            return ModelServer(name, url, tuple(str(model[key]) for model in listed))
    except urllib.error.HTTPError as error:
        return ModelServer(name, url, problem=f"answers {error.code} {error.reason}: is it {name}?")
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return ModelServer(name, url, problem=f"no answer in {timeout_s:g} s")
        return ModelServer(name, url, problem=f"not running ({reason})")
    except (ValueError, KeyError, TypeError):
        return ModelServer(name, url, problem=f"its answer is no list of models: is it {name}?")


def _in_parallel(
    tasks: Mapping[str, Callable[[], ModelServer]], timeout_s: float
) -> Callable[[], dict[str, ModelServer]]:
    """Start them all; the function returned waits for their results, at most `timeout_s` from now.

    Threads that nobody joins: a server that sends a byte now and then holds its thread for longer than that.
    """
    answers: queue.Queue[tuple[str, ModelServer]] = queue.Queue()
    for name, task in tasks.items():
        threading.Thread(
            target=lambda name=name, task=task: answers.put((name, task())),
            name=f"probe {name}",
            daemon=True,
        ).start()
    end_s = time.monotonic() + timeout_s

    def wait() -> dict[str, ModelServer]:
        results: dict[str, ModelServer] = {}
        with contextlib.suppress(queue.Empty):
            while len(results) < len(tasks):
                name, server = answers.get(timeout=max(0.0, end_s - time.monotonic()))
                results[name] = server
        return results

    return wait


# --- GPUs


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that torch can use, and why those that are there cannot be used ("" where all can)."""
    count = _devices_of_driver()
    if not count:
        return (), ""
    import torch

    if not torch.cuda.is_available():
        build = "is a build for CPUs only" if torch.version.cuda is None else "cannot use it: see nvidia-smi"
        return (), f"{count} GPU(s) are there, but torch {torch.__version__} {build}"
    return tuple(_gpu(index) for index in range(torch.cuda.device_count())), ""


def _devices_of_driver() -> int:
    """How many devices NVIDIA's driver shows; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _gpu(index: int) -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(properties.name, total, free, (properties.major, properties.minor))


# --- words


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _version(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`python -m nav_server profile`."""
    parser = commands.add_parser("profile", help="what this machine has, and the class it falls in")
    parser.add_argument("--json", action="store_true", help="as JSON instead of a table")
    parser.add_argument(
        "--lm-studio", default=os.environ.get("LMSTUDIO_HOST", LM_STUDIO_URL), metavar="URL", help="its API"
    )
    parser.add_argument("--ollama", default=OLLAMA_URL, metavar="URL", help="its address")
    parser.add_argument("--disk", default=".", metavar="FOLDER", help="whose disk to look at")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    profile = take_profile(options.lm_studio, options.ollama, options.disk)
    print(json.dumps(profile.as_json(), indent=2) if options.json else profile.as_table())
    return 0
