"""The HTTP API beside the graph: one process, one loaded model, the drone's stream and the clients' apart."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator

import httpx2
import pytest
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter

from nav_agent import toolset
from nav_agent.prompts import load_prompt
from nav_common.clock import WallClock, wait_until
from nav_common.data import CompressedImage, PrimeRequest
from nav_common.testing import unique_domain_id
from nav_pilot import model_folder
from nav_server.node import ServedPerception
from nav_server.settings import TOKENS_VARIABLE


def make(context: rclpy.Context, **parameters: object) -> ServedPerception:
    values = {"model": str(model_folder()), "device": "cpu", "http_port": 0, **parameters}
    return ServedPerception(
        context=context, parameter_overrides=[Parameter(name, value=value) for name, value in values.items()]
    )


@pytest.fixture
def context() -> Iterator[rclpy.Context]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=unique_domain_id())
    yield context
    context.try_shutdown()


@pytest.fixture
def node(context: rclpy.Context) -> Iterator[ServedPerception]:
    node = make(context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    node.destroy_node()


def test_drone_and_http_client_share_the_model_and_nothing_else(node: ServedPerception, jpeg: bytes) -> None:
    address = f"http://127.0.0.1:{node.http_port}"
    frame = {"frame_b64": base64.b64encode(jpeg).decode()}
    with httpx2.Client(base_url=address, timeout=60.0) as client:
        assert client.post("/append_frame", json=frame).json()["chunks"] == 1
        assert client.post("/decide", json={"question": "fly to the red beacon"}).json()["tool"]
        assert node.stream.status().chunks_appended == 0
        primed = node.stream.submit_prime(PrimeRequest(load_prompt(), toolset.tools_json()))
        assert primed.wait(60.0)
        node.stream.submit_frame(CompressedImage(node.stream.clock.now(), jpeg))
        assert wait_until(WallClock(), lambda: node.stream.status().chunks_appended == 1, 60.0)
        assert client.get("/status").json()["engine"]["chunks_appended"] == 1
        # Both are counted by one guard, and the drone goes first.
        assert client.get("/metrics").json()["total_requests"] == 1
        assert node.stream.priority > 0


def test_an_address_that_others_reach_needs_a_token(
    context: rclpy.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="there is no token"):
        make(context, http_host="0.0.0.0")
