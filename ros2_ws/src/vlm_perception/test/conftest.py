"""A random tiny Qwen2.5-VL for every test of this package, made once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vlm_perception.engine import QwenModel
from vlm_perception.testing.bench import Bench
from vlm_perception.testing.tiny_model import make_tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=5.0)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> QwenModel:
    return QwenModel.load(tiny_folder, size=(112, 84), device="cpu")


@pytest.fixture(scope="session")
def jpeg() -> Callable[[int], bytes]:
    """A picture of 160x120 for each number."""

    def make(number: int) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return cv2.imencode(".jpg", cv2.resize(pixels, (160, 120)))[1].tobytes()

    return make


@pytest.fixture
def bench(tiny_model: QwenModel, jpeg: Callable[[int], bytes]) -> Bench:
    return Bench(tiny_model, jpeg)


@pytest.fixture
def primed(bench: Bench) -> Bench:
    assert bench.prime().success
    return bench
