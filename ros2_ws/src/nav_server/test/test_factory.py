"""The factory: a policy becomes backends behind one interface; and the check that goes the whole way."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from nav_agent import toolset
from nav_common.clock import VirtualClock
from nav_common.data import CompressedImage, GenerateStatus, PrimeRequest
from nav_server.__main__ import main
from nav_server.backends.factory import Backends, ModelServerClient, Served, make
from nav_server.backends.openai_compatible import Endpoint
from nav_server.policy import BackendKind, PolicySettings, Role, Sources
from nav_server.policy import decide as decide_policy
from nav_server.profile import ModelServer
from nav_server.service import HealthStatus, Service
from nav_server.testing.asking import JPEG, decide, done
from nav_server.testing.chat_server import chat_server, recorded
from nav_server.testing.machines import PC_WITHOUT_GPU
from nav_server.testing.serving import SETTINGS
from vlm_perception.guard import Guard


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in PolicySettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_policy_becomes_one_backend_that_falls_back_to_the_pilot(served: Served) -> None:
    loaded: list[Role] = []

    def load(role: Role) -> Served:
        loaded.append(role)
        return served

    with chat_server((200, recorded("lm_studio_tool_call"))) as server:
        lm_studio = ModelServer("LM Studio", server.url, ("moondream2",))
        policy = decide_policy(Sources({}), replace(PC_WITHOUT_GPU, lm_studio=lm_studio))
        backends = make(policy, Guard(), load, traceback.print_exception)
        backend, prompt = backends.stream(), backends.system_prompt
        done(backend.submit_prime(PrimeRequest(prompt, toolset.tools_json())))
        done(backend.submit_frames([CompressedImage(1.0, JPEG)]))
        assert "turn_left" in decide(backend, prompt).tool_call
        assert backend.answers_in_words
        server.stop()
        assert decide(backend, prompt, instruction="again").status is GenerateStatus.ERROR
        assert decide(backend, prompt, instruction="fly to the red beacon").status is GenerateStatus.OK
        assert backend.status().backend.startswith("engine: lmstudio at")
        assert not backend.answers_in_words
        backend.close()
        backends.close()
    assert [role.kind for role in loaded] == [BackendKind.ENGINE]


def test_the_probe_of_health_is_answered_by_a_pilot_without_words_when_the_first_dies(served: Served) -> None:
    clock = VirtualClock(1000.0)
    with chat_server((200, recorded("lm_studio_text"))) as server:
        first = ModelServerClient(Endpoint("LM Studio", server.url), on_failure=traceback.print_exception)
        backends = Backends([first, served], clock, Guard())
        service = Service(backends, SETTINGS)
        assert service.health().status is not HealthStatus.UNHEALTHY
        server.stop()
        clock.sleep(60.0)
        assert "cannot be reached" in service.health().message
        clock.sleep(60.0)
        assert service.health().status is not HealthStatus.UNHEALTHY
        backends.close()


def test_the_check_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(JPEG)
    with chat_server((200, recorded("lm_studio_text"))) as server:
        options = ["--set", f"lmstudio_host={server.url}", "--set", "ollama_host=http://127.0.0.1:9"]
        assert main(["check", str(picture), *options]) == 0
    shown = capsys.readouterr().out
    for part in ("1 connection", "2 profile", "3 policy", "4 factory", "5 picture     A red beacon stands"):
        assert part in shown


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_picture_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    picture = tmp_path / "picture.jpg"
    if content is not None:
        picture.write_bytes(content)
    assert main(["check", str(picture)]) == 2
