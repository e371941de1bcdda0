"""The shipped pilot loaded once a run, and HTTP servers over it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import cv2
import httpx2
import numpy as np
import pytest
import torch

from nav_common.clock import WallClock
from nav_pilot import model_folder
from nav_server.backends.factory import Backends, Served
from nav_server.service import Service
from nav_server.testing.serving import SETTINGS, running
from vlm_perception.engine import QwenModel
from vlm_perception.guard import Guard
from vlm_perception.scheduler import ModelThread
from vlm_perception.serving_form import ServingForm

torch.set_num_threads(1)

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="session")
def model() -> tuple[QwenModel, ServingForm]:
    form = ServingForm.load(model_folder())
    return QwenModel.load(model_folder(), size=(form.width, form.height), device="cpu"), form


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A picture of 640x480 of about 50 KB, as the four-action client sends them."""
    pixels = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (0, 0), 1.8), [cv2.IMWRITE_JPEG_QUALITY, 85])[
        1
    ].tobytes()


@pytest.fixture
def thread() -> Iterator[ModelThread]:
    failures: list[BaseException] = []
    thread = ModelThread(failures.append)
    thread.start()
    yield thread
    assert thread.close(10.0)
    assert not failures


@pytest.fixture
def served(model: tuple[QwenModel, ServingForm], thread: ModelThread) -> Served:
    return Served(*model, "pilot", thread)


@pytest.fixture
def backends(served: Served) -> Backends:
    return Backends([served], WallClock(), Guard())


Serve = Callable[..., str]


@pytest.fixture
def serve(backends: Backends) -> Iterator[Serve]:
    """Starts a server with changed settings; its address."""
    with contextlib.ExitStack() as stack:

        def start(**changes: object) -> str:
            settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
            return stack.enter_context(running(Service(backends, settings)))

        yield start


@pytest.fixture
def client(serve: Serve) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=serve(), timeout=60.0) as client:
        yield client
