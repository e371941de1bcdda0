"""What machine a figure was measured on, and what it has to offer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system and versions; the commit where there is one. For results' JSON."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def profile() -> dict[str, Any]:
    """What this machine offers a model: the GPU as torch sees it and its driver, free memory and disk.

    Where a GPU is and torch cannot use it, `gpu` is empty and `gpu_problem` says so.
    """
    import torch

    found: dict[str, Any] = {
        "cpu_threads": len(os.sched_getaffinity(0)),
        "memory_free_gib": _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")),
        "disk_free_gib": _gib(shutil.disk_usage(".").free),
        "driver": _driver(),
        "torch_cuda": torch.version.cuda or "",
        "gpu": "",
        "gpu_problem": "",
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return found | {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_gib": _gib(total),
            "gpu_free_gib": _gib(free),
            "gpu_compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        }
    build = f"torch {torch.__version__}"
    if found["driver"]:
        return found | {"gpu_problem": f"the driver is {found['driver']}, but {build} finds no GPU"}
    return found | {"gpu_problem": f"no NVIDIA driver, and {build} finds no GPU"}


def _driver() -> str:
    """NVIDIA's driver, as the kernel names it; empty: none."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("  ")[1].strip()
    except (OSError, IndexError):
        return ""


def _gib(count: int) -> float:
    return round(count / 2**30, 1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def commit() -> str:
    """Of the code that runs, with "-dirty" where it was changed; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
