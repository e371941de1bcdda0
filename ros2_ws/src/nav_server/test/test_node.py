"""The HTTP API beside the graph: one process, one loaded model, the drone's stream and the clients' apart."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator

import httpx2
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from nav_agent import toolset
from nav_agent.prompts import load_prompt
from nav_common import topics
from nav_common.clock import WallClock, wait_until
from nav_common.data import (
    CompressedImage,
    DroneState,
    GateMode,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    PrimeRequest,
)
from nav_common.ros import Spinner, publisher, subscription, to_ros
from nav_common.testing import unique_domain_id
from nav_pilot import model_folder
from nav_server.node import ServedPerception
from nav_server.settings import TOKENS_VARIABLE
from nav_server.testing.chat_server import chat_server, recorded
from vlm_perception.stream import Stream


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


@contextlib.contextmanager
def spinning(node: ServedPerception, context: rclpy.Context) -> Iterator[ServedPerception]:
    spinner = Spinner(node)
    yield node
    spinner.stop()
    node.destroy_node()


@pytest.fixture
def node(context: rclpy.Context) -> Iterator[ServedPerception]:
    with spinning(make(context), context) as node:
        yield node


def test_drone_and_http_client_share_the_model_and_nothing_else(node: ServedPerception, jpeg: bytes) -> None:
    address = f"http://127.0.0.1:{node.http_port}"
    frame = {"frame_b64": base64.b64encode(jpeg).decode()}
    with httpx2.Client(base_url=address, timeout=60.0) as client:
        assert client.post("/append_frame", json=frame).json()["chunks"] == 1
        assert client.post("/decide", json={"question": "fly to the red beacon"}).json()["tool"]
        assert node.stream.status().chunks_appended == 0
        primed = node.stream.submit_prime(PrimeRequest(load_prompt(), toolset.tools_json()))
        assert primed.wait(60.0)
        node.stream.submit_frame(CompressedImage(WallClock().now(), jpeg))
        assert wait_until(WallClock(), lambda: node.stream.status().chunks_appended == 1, 60.0)
        assert client.get("/status").json()["engine"]["chunks_appended"] == 1
        # Both are counted by one guard, and the drone goes first.
        assert client.get("/metrics").json()["total_requests"] == 1
        assert isinstance(node.stream, Stream)
        assert node.stream.priority > 0


def test_the_page_of_a_graph_hears_it_and_stops_the_drone(
    node: ServedPerception, context: rclpy.Context
) -> None:
    """The bridge is stood in for by its two topics."""
    bridge = rclpy.create_node("bridge", context=context)
    stops: list[bool] = []
    subscription(bridge, topics.EMERGENCY_STOP, "/drone", lambda message: stops.append(message.data))
    state = publisher(bridge, topics.STATE, "/drone")
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(bridge)

    def heard(words: str) -> bool:
        executor.spin_once(timeout_sec=0.1)
        state.publish(to_ros(DroneState(1.0, gate_mode=GateMode.ACTIVE, connected=True)))
        return words in client.get("/monitor/", follow_redirects=True).text

    with httpx2.Client(base_url=f"http://127.0.0.1:{node.http_port}", timeout=60.0) as client:
        assert client.get("/").headers["location"] == "/monitor/"
        assert wait_until(WallClock(), lambda: heard("ACTIVE"), 60.0)
        assert wait_until(WallClock(), lambda: bridge.count_publishers("/drone/emergency_stop") == 1, 60.0)
        assert client.post("/monitor/stop").json() == {"engaged": True}
        assert wait_until(WallClock(), lambda: executor.spin_once(timeout_sec=0.1) or stops == [True], 60.0)
    executor.shutdown()
    bridge.destroy_node()


def test_a_flight_goes_on_with_the_pilot_when_lm_studio_dies_and_the_status_says_why(
    context: rclpy.Context, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision that meets the dead server fails, and the agent hovers; the next one is the pilot's."""
    with chat_server((200, recorded("lm_studio_tool_call"))) as server:
        monkeypatch.setenv("LMSTUDIO_HOST", server.url)
        monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
        monkeypatch.setenv("CIRCUIT_BREAKER_THRESHOLD", "20000")
        monkeypatch.chdir("/")  # no file .env
        node = make(context, vision="lmstudio")
        assert node.get_parameter("break_ms").value == 20_000.0
        reasons: list[str] = []
        subscription(node, topics.ENGINE_STATUS, "", lambda message: reasons.append(message.backend))
        with (
            spinning(node, context),
            httpx2.Client(base_url=f"http://127.0.0.1:{node.http_port}", timeout=60.0) as client,
        ):
            primed = node.stream.submit_prime(PrimeRequest(load_prompt(), toolset.tools_json()))
            assert primed.wait(60.0)

            def decide() -> GenerateResult:
                stamp_s = WallClock().now()
                node.stream.submit_frame(CompressedImage(stamp_s, jpeg))
                goal = GenerateGoal(
                    primed.result.prompt_id,
                    "fly to the red beacon",
                    earliest_frame_s=stamp_s,
                    deadline_s=60.0,
                )
                ticket = node.stream.submit_generate(goal)
                assert ticket.wait(60.0)
                return ticket.result

            assert "turn_left" in decide().tool_call
            frame = {"frame_b64": base64.b64encode(jpeg).decode()}
            assert client.post("/append_frame", json=frame).status_code == 200
            assert client.post("/decide", json={"question": "fly on"}).json()["tool"] == "turn_left"
            assert client.get("/status").json()["engine"]["backend"] == "lmstudio: the first choice"
            server.stop()
            assert decide().status is GenerateStatus.ERROR
            assert decide().status is GenerateStatus.OK
            assert wait_until(WallClock(), lambda: reasons[-1].startswith("engine: lmstudio at"), 60.0)
            # What one stream has found out, all know: this client's first decision is the pilot's already.
            assert client.post("/decide", json={"question": "fly to the red beacon"}).json()["tool"]
            assert client.get("/status").json()["engine"]["backend"] == reasons[-1]


def test_an_address_that_others_reach_needs_a_token(
    context: rclpy.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="there is no token"):
        make(context, http_host="0.0.0.0")
