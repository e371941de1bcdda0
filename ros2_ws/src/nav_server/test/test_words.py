"""A model that answers in words and takes any prompt: a random tiny one, served in the default form."""

from __future__ import annotations

import pytest

from nav_common.clock import WallClock
from nav_server.backends.factory import Backends, Served
from nav_server.problems import Problem
from nav_server.sessions import Sessions
from vlm_perception.engine import QwenModel
from vlm_perception.guard import Guard
from vlm_perception.scheduler import ModelThread
from vlm_perception.serving_form import ServingForm
from vlm_perception.testing.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> tuple[QwenModel, ServingForm]:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=5.0)
    form = ServingForm(width=112, height=84, max_cache_tokens=3000)
    return QwenModel.load(folder, size=(112, 84), device="cpu"), form


@pytest.fixture
def sessions(wordy: tuple[QwenModel, ServingForm], thread: ModelThread) -> Sessions:
    backends = Backends([Served(*wordy, "tiny", thread)], WallClock(), Guard())
    return Sessions(backends, max_clients=2, idle_s=60.0)


def test_a_decision_comes_with_its_reason_from_a_second_ask(sessions: Sessions, jpeg: bytes) -> None:
    session = sessions.of("a")
    assert session.submit_frames([jpeg], fps=2.0).wait(60.0)
    decided = session.decide("go", max_new_tokens=64, temperature=0.0, tools=(), last_result="")
    assert decided.tool
    # What a random model says may be nothing that can be read, but it was asked, once.
    assert (session.status().generations, session.status().asks) == (1, 1)


def test_a_model_of_no_form_of_its_own_takes_the_chunks_that_the_client_wants(
    sessions: Sessions, jpeg: bytes
) -> None:
    session = sessions.of("a", 2)
    ticket = session.submit_frames([jpeg] * 4, fps=2.0)
    assert ticket.wait(60.0)
    assert (ticket.result.admitted, session.status().chunks_appended) == (4, 2)
    with pytest.raises(Problem, match="began with 2"):
        sessions.of("a", 4)
    with pytest.raises(Problem, match="even number"):
        sessions.of("b", 3)
