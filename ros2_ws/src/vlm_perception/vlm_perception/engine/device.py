"""The device that computes: which one serves a model, and which of its errors are for good."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from .model_folder import ModelError

P = ParamSpec("P")
R = TypeVar("R")

# How CUDA and its libraries begin their messages (PyTorch's c10/cuda/CUDAException.h, cuBLAS and cuDNN wrappers).
_DEVICE_MESSAGES = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "device-side assert")
# These fail one allocation; the context stays usable.
_MEMORY_MESSAGES = ("out of memory", "ALLOC_FAILED")


# Weights above this size on a CPU take minutes a decision (chosen: between the pilot's 6 MB and the 3B's 7.5 GB).
LARGE_MODEL_BYTES = 2 * 2**30
# Free GPU memory below which idle memory is given back, and how much must be idle (chosen: a chunk of 1080p takes some
# 0.7 GB of activations; a quarter of a GiB is worth the wait).
FREE_MEMORY_FLOOR, IDLE_MEMORY_WORTH = 2**30, 2**28
# Below Ampere there is no bfloat16 and no FlashAttention-2.
AMPERE = (8, 0)


class DeviceLostError(Exception):
    """The accelerator's context is broken: every later call on it fails likewise, so the process must end.

    It is no RuntimeError on purpose: whoever skips a broken frame or refuses a request must not catch it by the way.
    """


def is_device_lost(error: BaseException) -> bool:
    """Whether an error of torch means that this process can no longer use its accelerator.

    An illegal address, a device-side assert or a lost GPU stays in the CUDA context until the process ends. Running
    out of memory does not.
    """
    if isinstance(error, DeviceLostError):
        return True
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    message = str(error)
    if any(part in message for part in _MEMORY_MESSAGES):
        return False
    return isinstance(error, torch.AcceleratorError) or any(part in message for part in _DEVICE_MESSAGES)


def on_device(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in inference mode; an error that broke the device leaves it as a DeviceLostError."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with torch.inference_mode():
                return function(*args, **kwargs)
        except RuntimeError as error:
            if not is_device_lost(error):
                raise
            raise DeviceLostError(
                f"the accelerator failed and cannot be used again by this process; end it and start a new one: "
                f"{str(error).splitlines()[0]}"
            ) from error

    return run


def choose_device(
    folder: Path, device: str | torch.device | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Where the model of a folder is served, and in which type; ModelError where that fails or takes minutes."""
    large = sum(file.stat().st_size for file in folder.glob("*.safetensors")) > LARGE_MODEL_BYTES
    if device is None:
        if not torch.cuda.is_available() and large:
            raise ModelError(
                f"{folder} holds a large model and torch {torch.__version__} finds no CUDA ({_why_no_cuda()}): a "
                'decision would take minutes on the CPU. If that is wanted, give device "cpu"'
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        check_cuda(dtype)
        return device, dtype or torch.bfloat16
    return device, dtype or (torch.bfloat16 if large and cpu_computes_bfloat16() else torch.float32)


def check_cuda(dtype: torch.dtype | None) -> None:
    """ModelError if the GPU, or this type on it, cannot be used by the engine's kernels."""
    if not torch.cuda.is_available():
        raise ModelError(f'device "cuda" was given, but there is none: {_why_no_cuda()}. Give device "cpu"')
    if dtype == torch.float32:
        raise ModelError(
            "dtype float32 on a GPU: FlashAttention computes in bfloat16 only. Give bfloat16 or none"
        )
    capability = torch.cuda.get_device_capability()
    if capability < AMPERE:
        raise ModelError(
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}; the engine needs "
            f'{AMPERE[0]}.{AMPERE[1]} (Ampere, RTX 30 and later) for bfloat16. Take another GPU, or give device "cpu"'
        )


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        there = "a GPU is there, but " if has_nvidia_gpu() else ""
        return f"{there}this build of torch is for CPUs only; install one with CUDA"
    return (
        "this build of torch has CUDA; check the driver with nvidia-smi"
        if has_nvidia_gpu()
        else "no GPU was found"
    )


def has_nvidia_gpu() -> bool:
    """Whether the system shows an NVIDIA GPU, whatever torch makes of it."""
    return Path("/dev/nvidia0").exists() or any(Path("/proc/driver/nvidia/gpus").glob("*"))


class Stopwatch:
    """Times of work on a device: on a GPU by its own events, since the host's clock would time the launching only."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []
        self.lap()

    def lap(self) -> None:
        """The end of what was done since the last one. Waits for nothing."""
        if self._on_gpu:
            event: Any = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    @property
    def is_over(self) -> bool:
        """Whether the last lap is."""
        return not self._on_gpu or bool(self._marks[-1].query())

    @on_device
    def wait(self) -> None:
        """For the last lap to be over."""
        if self._on_gpu:
            self._marks[-1].synchronize()

    def laps_s(self) -> list[float]:
        """Seconds of each lap; waits for the last one to be over."""
        if not self._on_gpu:
            return [end - begin for begin, end in itertools.pairwise(self._marks)]
        self.wait()
        return [begin.elapsed_time(end) / 1000 for begin, end in itertools.pairwise(self._marks)]


def release_unused_memory() -> None:
    """Give the allocator's idle memory back where the GPU runs short of free memory: it costs a synchronisation, so it
    is not done at every eviction."""
    free, _ = torch.cuda.mem_get_info()
    idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if free < FREE_MEMORY_FLOOR and idle > IDLE_MEMORY_WORTH:
        torch.cuda.empty_cache()
