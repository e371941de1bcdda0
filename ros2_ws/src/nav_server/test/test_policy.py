"""The execution policy: what it chooses on which machine, where each value came from, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nav_server import policy
from nav_server.policy import BackendKind, Policy, PolicyError, Sources, decide
from nav_server.profile import MachineClass, ModelServer, Profile
from nav_server.testing.machines import PC_WITHOUT_GPU, gpu

NOTHING = replace(
    PC_WITHOUT_GPU, lm_studio=ModelServer("LM Studio", "http://localhost:1234/v1", problem="not running")
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's variables nor a file .env."""
    for name in policy.PolicySettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def chosen(profile: Profile = PC_WITHOUT_GPU, file: Path | None = None, **arguments: Any) -> Policy:
    return decide(Sources(arguments, file), profile)


# -- what is chosen


def test_a_pc_without_gpu_sees_with_moondream_in_lm_studio_and_plans_in_the_allowed_cloud() -> None:
    made = chosen(allow_cloud=True, deepseek_api_key="key")
    assert (made.vision.kind, made.vision.model.value) == (BackendKind.LM_STUDIO, "moondream2")
    assert made.vision.url == "http://localhost:1234/v1"
    assert made.vision.frames.value == 1
    assert (made.planning.kind, made.planning.model.value) == (BackendKind.CLOUD, "deepseek-chat")
    assert "too small to plan" in made.planning.backend.reason
    assert [role.kind for role in made.fallbacks] == [BackendKind.ENGINE]


def test_without_leave_for_the_cloud_nothing_leaves_the_machine() -> None:
    made = chosen(openai_api_key="key", deepseek_api_key="key")
    assert {made.vision.kind, made.planning.kind} == {BackendKind.LM_STUDIO}
    assert BackendKind.CLOUD not in [role.kind for role in made.fallbacks]


@pytest.mark.parametrize("vram_gib", [12.0, 23.5])
def test_a_middle_or_large_gpu_runs_the_engine(vram_gib: float) -> None:
    made = chosen(replace(PC_WITHOUT_GPU, gpus=(gpu(vram_gib),)), qwen_model_path="/models/3B")
    assert (made.vision.kind, made.vision.device.value, made.vision.dtype.value) == (
        BackendKind.ENGINE,
        "cuda",
        "bfloat16",
    )
    tokens = made.vision.cache_tokens.value
    assert tokens == 100_000 if vram_gib > 20 else 10_000 <= tokens < 100_000
    assert made.planning.kind is BackendKind.ENGINE
    assert [role.kind for role in made.fallbacks] == [BackendKind.LM_STUDIO]


def test_a_small_gpu_prefers_a_model_server_that_runs() -> None:
    machine = replace(PC_WITHOUT_GPU, gpus=(gpu(8.0),))
    assert machine.machine_class is MachineClass.LOCAL_GPU_LOW
    assert chosen(machine).vision.kind is BackendKind.LM_STUDIO


def test_with_nothing_there_the_embedded_pilot_flies_and_the_allowed_cloud_is_the_last_resort() -> None:
    made = chosen(NOTHING, allow_cloud=True, openai_api_key="key")
    assert made.vision.kind is BackendKind.ENGINE
    assert made.vision.model.value == "the shipped pilot"
    assert [role.kind for role in made.fallbacks] == [BackendKind.CLOUD]
    assert [role.kind for role in chosen(NOTHING, openai_api_key="key").fallbacks] == []


def test_ollama_serves_where_lm_studio_does_not() -> None:
    machine = replace(
        NOTHING, ollama=ModelServer("Ollama", "http://localhost:11434", ("nomic-embed", "llava-phi3"))
    )
    made = chosen(machine)
    assert (made.vision.kind, made.vision.model.value) == (BackendKind.OLLAMA, "llava-phi3")
    assert made.vision.url == "http://localhost:11434/v1"


def test_moondream_goes_before_whatever_else_a_machine_without_gpu_has_loaded() -> None:
    server = ModelServer(
        "LM Studio", "http://x/v1", ("text-embed", "qwen2-vl-7b", "llava-phi-3", "Moondream2")
    )
    assert chosen(replace(PC_WITHOUT_GPU, lm_studio=server)).vision.model.value == "Moondream2"
    large = replace(PC_WITHOUT_GPU, lm_studio=server, gpus=(gpu(8.0),))
    assert chosen(large).vision.model.value == "qwen2-vl-7b"


def test_every_value_has_a_reason_or_an_origin() -> None:
    made = chosen()
    for role in (made.vision, made.planning, *made.fallbacks):
        for value in vars(role).values():
            if isinstance(value, policy.Value):
                assert value.origin or value.reason
    json.dumps(made.as_json())


def test_keys_show_nowhere() -> None:
    made = chosen(allow_cloud=True, force_cloud=True, openai_api_key="s3cret", deepseek_api_key="s3cret")
    assert made.vision.api_key == "s3cret"
    for shown in (json.dumps(made.as_json()), made.explained(origins=True), repr(made)):
        assert "s3cret" not in shown


# -- where it comes from


def test_an_argument_goes_before_the_file_the_file_before_the_environment_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "policy.yaml"
    assert chosen().vision.max_tokens == policy.Value(16, "default", "a normal request")
    (tmp_path / ".env").write_text("DEFAULT_MAX_TOKENS=17\n")
    assert chosen().vision.max_tokens.value == 17
    monkeypatch.setenv("DEFAULT_MAX_TOKENS", "18")
    assert chosen().vision.max_tokens.value == 18
    assert chosen().vision.max_tokens.origin == "configuration or environment"
    file.write_text("default_max_tokens: 19\n")
    assert chosen(file=file).vision.max_tokens.value == 19
    assert str(file) in chosen(file=file).vision.max_tokens.origin
    said = chosen(file=file, default_max_tokens=20).vision.max_tokens
    assert (said.value, said.origin) == (20, "argument")
    assert "[argument]" in chosen(default_max_tokens=20).explained(origins=True)


def test_the_documented_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_VISION_PROVIDER", "lmstudio")
    monkeypatch.setenv("LMSTUDIO_MODEL", "llava-phi-3")
    monkeypatch.setenv("CIRCUIT_BREAKER_THRESHOLD", "2500")
    made = chosen()
    assert made.vision.model.value == "llava-phi-3"
    assert made.break_ms.value == 2500.0
    monkeypatch.setenv("USE_LOCAL_VISION", "false")
    monkeypatch.setenv("LOCAL_VISION_PROVIDER", "auto")
    with pytest.raises(PolicyError, match="ALLOW_CLOUD"):
        chosen()
    monkeypatch.setenv("ALLOW_CLOUD", "true")
    with pytest.raises(PolicyError, match="OPENAI_API_KEY"):
        chosen()
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    assert (chosen().vision.model.value, chosen().planning.model.value) == ("gpt-4o", "gpt-4o")
    monkeypatch.setenv("DEEPSEEK_API_KEY", "key")
    assert chosen().planning.model.value == "deepseek-chat"
    monkeypatch.delenv("DEEPSEEK_API_KEY")


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"force_local": True, "force_cloud": True}, "take one"),
        ({"force_cloud": True}, "ALLOW_CLOUD"),
        ({"force_local": True, "planning_provider": "cloud"}, "force_local"),
        ({"local_vision_provider": "ollama"}, "Ollama at .* start it"),
        ({"local_vision_provider": "magic"}, "local_vision_provider is 'magic'"),
        ({"device": "cuda", "local_vision_provider": "engine"}, "device is cuda .*no GPU was found"),
        ({"default_max_tokens": -1}, "default_max_tokens is -1"),
        ({"default_max_tokens": "many"}, "default_max_tokens is 'many'"),
        ({"circuit_breaker_threshold": 0}, "circuit_breaker_threshold is 0"),
        ({"max_cache_tokens": -5}, "max_cache_tokens is -5"),
        ({"forse_local": True}, "unknown forse_local"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_remedy(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(PolicyError, match=problem):
        chosen(**arguments)


@pytest.mark.parametrize("content", ["default_max_tokens: [", "- a\n- b\n", "speed: 3\n", "\x00"])
def test_a_policy_file_that_is_none_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(content)
    with pytest.raises(PolicyError, match=r"policy\.yaml"):
        chosen(file=file)
    with pytest.raises(PolicyError, match="is not there"):
        chosen(file=tmp_path / "none.yaml")


def test_a_gpu_without_room_for_the_model_is_refused() -> None:
    full = replace(gpu(23.5), free_bytes=6 * 2**30)
    with pytest.raises(PolicyError, match=r"6\.0 GiB free on GPU 23\.5 do not hold"):
        chosen(replace(PC_WITHOUT_GPU, gpus=(full,)), qwen_model_path="/models/3B")


def test_a_server_without_a_model_is_refused_by_name() -> None:
    empty = ModelServer("LM Studio", "http://x/v1", ("text-embedding",))
    with pytest.raises(PolicyError, match="has no model that answers"):
        chosen(replace(PC_WITHOUT_GPU, lm_studio=empty), local_vision_provider="lmstudio")


def test_what_stands_in_never_keeps_the_policy_from_being_made() -> None:
    """A server without a model is none, and the pilot needs no room for the large model."""
    empty = ModelServer("Ollama", "http://localhost:11434", ())
    small = replace(PC_WITHOUT_GPU, ollama=empty, ram_available_bytes=2 * 2**30)
    made = chosen(small, qwen_model_path="/models/3B")
    assert [(role.kind, role.model.value) for role in made.fallbacks] == [
        (BackendKind.ENGINE, "the shipped pilot")
    ]


def test_the_command_explains(capsys: pytest.CaptureFixture[str]) -> None:
    from nav_server.__main__ import main

    nowhere = ["--set", "lmstudio_host=http://127.0.0.1:9/v1", "--set", "ollama_host=http://127.0.0.1:9"]
    assert main(["policy", "--explain", *nowhere]) == 0
    shown = capsys.readouterr().out
    assert "vision:" in shown
    assert "[default]" in shown
    assert "when engine fails: nothing, the drone hovers" in shown
    assert main(["policy", "--set", "nonsense"]) == 2
    assert main(["policy", *nowhere, "--force-cloud"]) == 2
