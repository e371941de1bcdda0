"""Machines for what is chosen by a profile."""

from __future__ import annotations

from nav_server.profile import GIB, LM_STUDIO_URL, OLLAMA_URL, Gpu, ModelServer, Profile

PC_WITHOUT_GPU = Profile(
    cpu_threads=24,
    ram_bytes=int(31.8 * GIB),
    ram_available_bytes=int(20.0 * GIB),
    disk_path="/",
    disk_bytes=1000 * GIB,
    disk_free_bytes=400 * GIB,
    gpus=(),
    lm_studio=ModelServer("LM Studio", LM_STUDIO_URL, ("moondream2",)),
    ollama=ModelServer("Ollama", OLLAMA_URL, problem="not running ([Errno 111] Connection refused)"),
)
"""LM Studio runs on it, with Moondream2."""


def gpu(vram_gib: float, capability: tuple[int, int] = (8, 9)) -> Gpu:
    return Gpu(f"GPU {vram_gib:g}", int(vram_gib * GIB), int(vram_gib * GIB), capability)
