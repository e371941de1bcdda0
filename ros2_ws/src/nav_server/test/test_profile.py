"""The profile of a machine: what its model servers say, its class, and what a machine with nothing looks like."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nav_server import profile
from nav_server.profile import Gpu, MachineClass, ModelServer
from nav_server.testing.machines import PC_WITHOUT_GPU, gpu

# The lists of models that the two answer with, as their own documentation shows them.
LM_STUDIO_MODELS = {
    "data": [
        {"id": "moondream2", "object": "model", "owned_by": "organization_owner"},
        {"id": "text-embedding-nomic-embed-text-v1.5", "object": "model", "owned_by": "organization_owner"},
    ],
    "object": "list",
}
OLLAMA_MODELS = {
    "models": [
        {
            "name": "moondream:latest",
            "model": "moondream:latest",
            "modified_at": "2024-02-22T12:33:23.4Z",
            "size": 1738451197,
            "details": {"format": "gguf", "family": "phi2", "parameter_size": "1B"},
        }
    ]
}


@contextmanager
def server(body: bytes, status: int = 200, hold: threading.Event | None = None) -> Iterator[str]:
    """An HTTP server that answers every GET so; `hold`: only once this is set. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hold:
                hold.wait()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        if hold:
            hold.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def test_the_models_of_lm_studio_and_ollama_are_listed() -> None:
    with server(json.dumps(LM_STUDIO_MODELS).encode()) as url:
        found = profile.probe_lm_studio(f"{url}/v1")
        assert found.runs
        assert found.models == ("moondream2", "text-embedding-nomic-embed-text-v1.5")
    with server(json.dumps(OLLAMA_MODELS).encode()) as url:
        assert profile.probe_ollama(url).models == ("moondream:latest",)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"<html>hello</html>", 200, "no list of models"),
        (b"[]", 200, "no list of models"),
        (b'{"data": [{"name": "x"}]}', 200, "no list of models"),
        (b'{"data": 3}', 200, "no list of models"),
        (b"\xff\xfe", 200, "no list of models"),
        (b"nothing here", 404, "answers 404"),
        (b"{" + b" " * 2_000_000, 200, "no list of models"),
    ],
)
def test_whatever_else_answers_on_the_port_is_a_problem_in_words(body: bytes, status: int, said: str) -> None:
    with server(body, status) as url:
        found = profile.probe_lm_studio(url)
    assert not found.runs
    assert said in found.problem


def test_nothing_on_the_port_is_said_so() -> None:
    found = profile.probe_ollama("http://127.0.0.1:9")  # discard: nobody listens
    assert not found.runs
    assert "not running" in found.problem


def test_a_server_that_accepts_and_never_answers_holds_nothing_up() -> None:
    hold = threading.Event()
    with server(b"", hold=hold) as url:
        taken = profile.take_profile(url, url, timeout_s=0.2)
        assert "no answer in 0.2 s" in taken.lm_studio.problem
        assert "no answer in 0.2 s" in taken.ollama.problem


def test_the_servers_are_asked_at_the_same_time() -> None:
    """Each answers only once the other was asked."""
    both = threading.Barrier(2)

    def probe(name: str) -> ModelServer:
        both.wait(10.0)
        return ModelServer(name, "http://x")

    results = profile._in_parallel({"a": lambda: probe("a"), "b": lambda: probe("b")}, 10.0)()
    assert set(results) == {"a", "b"}


def test_the_environments_proxy_is_not_asked_for_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with server(json.dumps(LM_STUDIO_MODELS).encode()) as url:
        assert profile.probe_lm_studio(url).runs


@pytest.mark.parametrize("url", ["localhost:1234", "", "ftp://localhost"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        profile.take_profile(lm_studio_url=url)


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="/not/there"):
        profile.take_profile(disk_path="/not/there")


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ((), MachineClass.LOCAL_CPU_ONLY),
        ((gpu(8),), MachineClass.LOCAL_GPU_LOW),
        ((gpu(24, (7, 5)),), MachineClass.LOCAL_GPU_LOW),
        ((gpu(12),), MachineClass.LOCAL_GPU_MID),
        ((gpu(23.5),), MachineClass.LOCAL_GPU_HIGH),
        ((gpu(8), gpu(23.5)), MachineClass.LOCAL_GPU_HIGH),
        ((gpu(48, (7, 0)), gpu(12)), MachineClass.LOCAL_GPU_MID),
    ],
)
def test_the_class_follows_the_largest_gpu_that_the_engine_can_use(
    gpus: tuple[Gpu, ...], expected: MachineClass
) -> None:
    machine = replace(PC_WITHOUT_GPU, gpus=gpus)
    assert machine.machine_class is expected
    assert machine.reason


def test_the_limits_of_the_classes_are_the_engines_arithmetic() -> None:
    """3B: 7.51 GB of weights, 36,864 bytes a token (facts of the checkpoint)."""
    import torch

    from vlm_perception.engine import budget
    from vlm_perception.engine.device import AMPERE

    assert AMPERE == profile.LOWEST_CAPABILITY
    assert torch.bfloat16.itemsize * 2 * 36 * 2 * 128 == 36_864

    def needed(tokens: int) -> float:
        cache = budget.capacity_tokens(tokens, budget.TAIL_TOKENS) * 36_864
        return 7.51e9 + budget.RESERVE_BYTES + cache

    assert needed(10_000) == pytest.approx(profile.MID_VRAM_BYTES, rel=0.01)
    assert needed(budget.DEFAULT_TOKENS) == pytest.approx(profile.HIGH_VRAM_BYTES, rel=0.01)


def test_a_pc_without_gpu_reads_well_as_table_and_as_json() -> None:
    table = PC_WITHOUT_GPU.as_table()
    for part in ("LOCAL_CPU_ONLY", "24 threads", "31.8 GiB", "moondream2", "not running"):
        assert part in table
    decoded = json.loads(json.dumps(PC_WITHOUT_GPU.as_json()))
    assert decoded["class"] == "LOCAL_CPU_ONLY"
    assert decoded["cpu_threads"] == 24
    assert decoded["lm_studio"]["models"] == ["moondream2"]


def test_a_gpu_that_torch_cannot_use_is_said_and_counts_as_none() -> None:
    machine = replace(PC_WITHOUT_GPU, gpu_problem="1 GPU(s) are there, but torch 2.13.0+cpu is for CPUs only")
    assert machine.machine_class is MachineClass.LOCAL_CPU_ONLY
    assert "CPUs only" in machine.reason


def test_the_command_prints_json_and_imports_no_torch_where_there_is_no_driver() -> None:
    if profile._devices_of_driver():
        pytest.skip("this machine has a GPU: torch is asked for its facts")
    code = (
        "import sys; from nav_server.__main__ import main; "
        "status = main(['profile', '--json', '--lm-studio', 'http://127.0.0.1:9', '--ollama', 'http://127.0.0.1:9']); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("False")
    shown = json.loads(done.stdout)
    assert shown["cpu_threads"] >= 1
    assert shown["disk_bytes"] >= shown["disk_free_bytes"] > 0
    assert "not running" in shown["ollama"]["problem"]


def test_a_wrong_address_ends_the_command_with_one_line() -> None:
    from nav_server.__main__ import main

    assert main(["profile", "--lm-studio", "nowhere"]) == 2
