"""A random tiny Qwen2.5-VL, made once per test run, and transformers' model of the same folder as the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vlm_perception.engine import QwenModel
from vlm_perception.testing.oracle import Oracle
from vlm_perception.testing.tiny_model import make_tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Weights five times transformers' initial ones: every token then matters to the logits.
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=5.0)


@pytest.fixture(scope="session")
def model(folder: Path) -> QwenModel:
    return QwenModel.load(folder, size=(112, 84), device="cpu")


@pytest.fixture(scope="session")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.fixture
def frames() -> list[np.ndarray]:
    return make_frames(40)


def make_frames(count: int, seed: int = 0, width: int = 112, height: int = 84) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
