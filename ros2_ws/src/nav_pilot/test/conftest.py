"""What the tests share: the shipped model, and pictures of a few development worlds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from airsim_sim.render import open_renderer
from airsim_sim.world import load_world
from nav_pilot import model_folder
from nav_pilot.evaluate import EnginePilot


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder() -> Path:
    return model_folder()


@pytest.fixture(scope="session")
def pilot(folder: Path) -> EnginePilot:
    return EnginePilot(folder)


@pytest.fixture(scope="session")
def renderer() -> Iterator[Any]:
    drawn = open_renderer(load_world("field", 1))
    yield drawn
    drawn.close()
