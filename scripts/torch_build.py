"""Which build of torch the NVIDIA driver of this machine can run: prints the index to install it from, or nothing.

PyPI's torch is built for CUDA 13, whose programs need driver 580; with a driver of CUDA 12 they find no GPU. PyTorch's
own index has builds for CUDA 12.6, which run with every driver from 525 on (NVIDIA, "CUDA Compatibility": minor
versions of one major version are compatible). TORCH_INDEX names another index.
"""

import os
import re
import subprocess
import sys

CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525
CUDA_12_INDEX = "https://download.pytorch.org/whl/cu126"


def driver() -> int | None:
    """Major version of the NVIDIA driver; None: there is none."""
    try:
        with open("/proc/driver/nvidia/version") as file:
            return major(file.read())
    except OSError:
        pass
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return major(subprocess.run(query, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return None


def major(text: str) -> int | None:
    """Of the first version in a text, such as "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07 ..."."""
    found = re.search(r"\b(\d{3})\.\d+", text)
    return int(found[1]) if found else None


def index(version: int | None) -> str:
    """The index for a driver; "" is PyPI. Raises ValueError for a driver that no build runs with."""
    if version is None or version >= CUDA_13_DRIVER:
        return ""
    if version >= CUDA_12_DRIVER:
        return CUDA_12_INDEX
    raise ValueError(
        f"the NVIDIA driver is {version}, and torch needs {CUDA_12_DRIVER} or later: update the driver (or rent a "
        "machine with a newer one), or set TORCH_INDEX=https://download.pytorch.org/whl/cpu to go on without the GPU"
    )


if __name__ == "__main__":
    try:
        print(os.environ.get("TORCH_INDEX") or index(driver()))
    except ValueError as error:
        sys.exit(str(error))
