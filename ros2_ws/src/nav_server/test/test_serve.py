"""The two processes of `serve`: what they refuse, and that the address answers whatever happens to the model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import psutil
import pytest

from nav_common.clock import WallClock, wait_until
from nav_common.process import CONFIGURATION_ERROR, SWITCH_INTERVAL_S, popen
from nav_common.testing import free_port
from nav_server import model_process, settings

ENGINE = ("--set", "local_vision_provider=engine")
"""Whatever else runs on this machine."""
START_LIMIT_S = 120.0
"""Loading torch on a machine that others use too."""


def run(*arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nav_server", "serve", *arguments],
        env={**os.environ, settings.TOKENS_VARIABLE: token},
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
    )


@pytest.mark.parametrize(
    ("arguments", "token", "reason"),
    [
        (["--host", "0.0.0.0"], "", "there is no token"),
        (["--host", "::"], "", "there is no token"),
        (["--host", "0.0.0.0"], "short", "openssl rand"),
        (["--max-clients", "0"], "", "max_clients is 0"),
        (["--model", "/nowhere"], "", "no config.json"),
        (["--port", "70000"], "", "port is 70000"),
        (["--set", "nonsense"], "", "write NAME=VALUE"),
        (["--force-cloud"], "", "ALLOW_CLOUD"),
    ],
)
def test_what_cannot_be_served_is_refused_with_status_2(arguments, token, reason):
    ended = run(*arguments, token=token)
    assert ended.returncode == CONFIGURATION_ERROR
    assert reason in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_address_in_use_is_refused():
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        ended = run("--port", str(port))
    assert ended.returncode == CONFIGURATION_ERROR
    assert f"port {port}" in ended.stderr


def test_the_threads_of_the_process_with_the_model_take_turns_as_often_as_a_nodes(monkeypatch):
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    needed = ["--listener=0", "--announce=0", "--decided=nowhere"]
    monkeypatch.setattr(sys, "argv", ["model_process", *needed, "--max-clients=0"])
    before_s = sys.getswitchinterval()
    try:
        with pytest.raises(SystemExit, match=str(CONFIGURATION_ERROR)):
            model_process.main()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    finally:
        sys.setswitchinterval(before_s)


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    process = popen([sys.executable, "-m", "nav_server", "serve", "--port", str(port), *ENGINE])
    yield process, f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30.0) == 0


def test_the_address_answers_while_the_model_is_killed_and_comes_back(server):
    process, address = server
    clock = WallClock()
    seen: list[tuple[bool, str]] = []

    def healthy() -> bool:
        try:
            health = httpx2.get(f"{address}/health", timeout=30.0).json()
        except httpx2.TransportError:  # before it listens, or cut off by the kill
            return False
        seen.append((health["model_loaded"], health["status"]))
        return seen[-1][0] and seen[-1][1] != "unhealthy"

    def answered(status: int, detail: str) -> bool:
        try:
            answer = httpx2.post(f"{address}/decide", timeout=30.0)
        except httpx2.TransportError:  # cut off by the kill
            return False
        retry = int(answer.headers.get("retry-after", 0))
        return (
            answer.status_code == status
            and detail in answer.json()["detail"]
            and (retry > 0) == (status == 503)
        )

    assert wait_until(clock, healthy, START_LIMIT_S)
    assert seen[0] == (False, "unhealthy")  # while it was loading
    (model,) = psutil.Process(process.pid).children()
    model.kill()
    # For a moment after each change both processes accept: what is awaited is the answer, whoever gave the one before.
    assert wait_until(clock, lambda: answered(503, "SIGKILL"), 10.0)
    assert wait_until(clock, healthy, START_LIMIT_S)
    assert wait_until(clock, lambda: answered(409, ""), 10.0)  # it serves again, and its memory is empty
