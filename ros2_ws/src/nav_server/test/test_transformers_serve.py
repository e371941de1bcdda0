"""The client against a server of OpenAI's API that others wrote, `transformers serve`, with a tiny model: answers, a
tool call, a refusal, and its death."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from nav_agent import toolset
from nav_common.clock import WallClock
from nav_common.data import AskRequest, CompressedImage, GenerateGoal, GenerateStatus, PrimeRequest
from nav_server.backends.factory import Backends, ModelServerClient
from nav_server.backends.openai_compatible import Endpoint
from nav_server.testing import tiny_llava
from nav_server.testing.asking import done
from nav_server.testing.chat_server import chat_server, recorded
from nav_server.testing.transformers_server import TransformersServer, missing
from vlm_perception.guard import Guard, GuardSettings

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

CALL = '{"name": "turn_left", "arguments": {"angle_deg": 30}}'
JPEG = cv2.imencode(".jpg", np.full((84, 112, 3), 90, np.uint8))[1].tobytes()
# The first answer loads the model, on a machine that may be busy.
PATIENT = GuardSettings(break_ms=120_000.0)


def model_server(endpoint: Endpoint) -> ModelServerClient:
    return ModelServerClient(endpoint, on_failure=traceback.print_exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llava")
    tiny_llava.make(made, CALL)
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TransformersServer]:
    server = TransformersServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_server_that_others_wrote_answers_decides_and_dies(
    server: TransformersServer, folder: Path
) -> None:
    with chat_server((200, recorded("ollama_tool_call"))) as second:
        servers = [
            model_server(Endpoint("transformers", server.url, str(folder))),
            model_server(Endpoint("Ollama", second.url)),
        ]
        backends = Backends(servers, WallClock(), Guard(PATIENT))
        chain = backends.stream()
        prompt_id = done(chain.submit_prime(PrimeRequest("You fly a drone.", toolset.tools_json()))).prompt_id
        done(chain.submit_frames([CompressedImage(1.0, JPEG), CompressedImage(2.0, JPEG)]))

        words = chain.submit_ask(AskRequest("what do you see?"))
        assert words.wait(150.0)
        assert words.result.success, words.result.message
        assert words.result.tokens_in > 2 * 16  # two pictures of 4 x 4 patches
        assert 1 <= words.result.tokens_sampled <= 24

        def decide(instruction: str) -> tuple[GenerateStatus, str, str]:
            goal = GenerateGoal(prompt_id, instruction, deadline_s=120.0)
            ticket = chain.submit_generate(goal)
            assert ticket.wait(150.0)
            return ticket.result.status, ticket.result.tool_call, ticket.result.message

        status, call, message = decide("fly to the red beacon")
        assert status is GenerateStatus.OK, message
        assert json.loads(call) == json.loads(CALL)

        server.kill()
        status, _, message = decide("fly to the green beacon")
        assert status is GenerateStatus.ERROR
        assert "transformers at" in message
        status, call, _ = decide("fly to the green beacon")
        assert status is GenerateStatus.OK
        assert json.loads(call)["name"] == "move_forward"
        assert chain.status().backend.startswith("Ollama: transformers at")
        chain.close()
        backends.close()


def test_a_model_that_is_not_there_is_refused_with_the_servers_reason(
    server: TransformersServer,
) -> None:
    endpoint = Endpoint("transformers", server.url, "/no/such/model")
    backends = Backends([model_server(endpoint)], WallClock(), Guard(PATIENT))
    backend = backends.stream()
    backend.submit_prime(PrimeRequest("You fly a drone.", toolset.tools_json()))
    done(backend.submit_frames([CompressedImage(1.0, JPEG)]))
    ticket = backend.submit_ask(AskRequest("what?"))
    assert ticket.wait(150.0)
    assert not ticket.result.success
    assert ticket.result.message
    backend.close()
    backends.close()
