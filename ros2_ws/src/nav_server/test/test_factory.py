"""The factory: a policy becomes backends behind one interface; and the check that goes the whole way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import chat_server, recorded
from test_backends import JPEG, decide
from test_profile import USERS_MACHINE

from nav_common.clock import WallClock
from nav_common.data import CompressedImage, GenerateStatus
from nav_server.__main__ import main
from nav_server.backends.factory import make
from nav_server.backends.interface import Backend
from nav_server.backends.openai_compatible import Endpoint, OpenAiBackend
from nav_server.policy import PolicySettings, Role, Sources
from nav_server.policy import decide as decide_policy
from nav_server.profile import ModelServer


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in PolicySettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_policy_becomes_one_backend_that_falls_back() -> None:
    engines: list[Role] = []
    with (
        chat_server((200, recorded("lm_studio_tool_call"))) as first,
        chat_server((200, recorded("ollama_tool_call"))) as stand_in,
    ):

        def engine(role: Role) -> Backend:
            engines.append(role)
            return OpenAiBackend(Endpoint("stand-in of the engine", stand_in.url), WallClock())

        server = ModelServer("LM Studio", first.url, ("moondream2",))
        policy = decide_policy(Sources({}), replace(USERS_MACHINE, lm_studio=server))
        backend = make(policy, WallClock(), engine)
        backend.submit_frames([CompressedImage(1.0, JPEG)])
        assert "turn_left" in decide(backend).tool_call
        first.stop()
        assert decide(backend).status is GenerateStatus.ERROR
        assert "move_forward" in decide(backend).tool_call
        assert backend.name == "engine"
        assert "lmstudio at" in backend.reason
        backend.close()
    assert len(engines) == 1


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
