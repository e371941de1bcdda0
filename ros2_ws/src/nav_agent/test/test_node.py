"""The node's own share: parameters, a cancel that overtakes its goal, what is missing at start, its action classes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nav_msgs_ext.msg", reason="the workspace is not built")

import rclpy
from nav_msgs_ext.action import Generate, Navigate
from rclpy.action import ActionServer
from rclpy.parameter import Parameter

from nav_agent import actions
from nav_agent.actions import SafeActionClient, ThreadedActionServer
from nav_agent.ending import GoalEnded
from nav_agent.node import NavAgent
from nav_agent.ports import MemoryUnavailable
from nav_common.data import GenerateGoal, GenerateStatus, NavigateGoal, Outcome, PrimeRequest
from nav_common.diagnostics import Level
from nav_common.ros import ParameterError, Spinner
from nav_common.testing import unique_domain_id


@pytest.fixture(scope="module", autouse=True)
def _ros() -> Iterator[None]:
    rclpy.init(domain_id=unique_domain_id())
    yield
    rclpy.try_shutdown()


@pytest.fixture
def node() -> Iterator[NavAgent]:
    one = NavAgent()
    yield one
    one.destroy_node()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("speed", 99.0, "parameter speed is 99.0, must be 0.1 to 10.0"),
        ("max_decisions", 0, "parameter max_decisions is 0, must be 1 to 10000"),
        ("speed", "fast", "parameter speed is fast of type str"),
        ("prompt", "nope", "no prompt 'nope'; there are: pilot"),
    ],
)
def test_a_wrong_parameter_stops_the_node_with_its_name_value_and_range(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NavAgent(parameter_overrides=[Parameter(name, value=value)])


def test_parameter_errors_are_the_kind_that_the_main_reports() -> None:
    with pytest.raises(ParameterError):
        NavAgent(parameter_overrides=[Parameter("outage_timeout_s", value=-1.0)])


def test_speeds_and_deadlines_change_in_flight_and_the_safety_numbers_do_not(node: NavAgent) -> None:
    before = node.agent.settings
    (result,) = node.set_parameters([Parameter("speed", value=1.5)])
    assert result.successful
    assert node.agent.settings.motion.speed_m_s == 1.5
    assert node.agent.settings.mission == before.mission
    (result,) = node.set_parameters([Parameter("decision_deadline_s", value=4.0)])
    assert result.successful
    assert node.agent.settings.mission.decision_deadline_s == 4.0
    for refused in (Parameter("speed", value=99.0), Parameter("outage_timeout_s", value=1.0)):
        (result,) = node.set_parameters([refused])
        assert not result.successful
    assert node.agent.settings.motion.speed_m_s == 1.5


def test_its_health_names_what_is_missing(node: NavAgent) -> None:
    health = node._health()
    assert health.level is Level.ERROR
    assert health.message == "no odometry: is airsim_bridge running, and the link up?"
    assert health.values["memory"] == "not there"


def test_a_node_whose_streamer_has_ended_does_not_go_on(
    node: NavAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(node._drone, "take", fails)
    node._streamer.join(5.0)
    with pytest.raises(RuntimeError, match="the thread that sends commands has ended"):
        node._health()


def test_a_cancel_that_overtakes_the_acceptance_is_kept(node: NavAgent) -> None:
    started = []
    handle = SimpleNamespace(
        goal_id=SimpleNamespace(uuid=bytes(range(16))),
        request=Navigate.Goal(instructions=["fly"]),
        execute=lambda: started.append(True),
        is_active=False,
    )
    node._on_cancel(handle)
    node._on_accepted(handle)
    (mission,) = node._missions.values()
    with pytest.raises(GoalEnded) as over:
        mission.check()
    assert over.value.outcome is Outcome.CANCELLED
    assert started
    node._missions.clear()


def test_without_a_bridge_a_goal_is_refused_and_a_take_off_says_so(node: NavAgent) -> None:
    refusal = node.agent.refusal(NavigateGoal(("fly",)))
    assert refusal.startswith("no state from the drone: is airsim_bridge running")
    reply = node._drone.take_off().wait(0.0)
    assert reply is not None
    assert not reply.success
    assert "is airsim_bridge running" in reply.message


def test_without_perception_priming_and_asks_say_so(node: NavAgent) -> None:
    with pytest.raises(MemoryUnavailable, match="is vlm_perception running"):
        node._memory.prime(PrimeRequest("p", "[]"))
    result = node._memory.generate(GenerateGoal("p", "fly")).wait(0.0)
    assert result is not None
    assert result.status is GenerateStatus.ERROR


def test_no_response_of_an_action_is_lost_between_sending_and_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The response is there the moment the request is out; the executor must not take it before it is awaited."""
    node = rclpy.create_node("server_and_client")
    ActionServer(node, Generate, "ordered", lambda handle: handle.succeed() or Generate.Result())
    client = SafeActionClient(node, Generate, "ordered")
    spinner = Spinner(node, threads=3)
    assert client.wait_for_server(timeout_sec=10.0)
    real = client._client_handle

    class Slow:
        """Sends, and comes back only when the response must have arrived."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def send_goal_request(self, request: Any) -> int:
            number: int = real.send_goal_request(request)
            time.sleep(0.3)
            return number

    monkeypatch.setattr(client, "_client_handle", Slow())
    answered = threading.Event()
    client.send_goal_async(Generate.Goal()).add_done_callback(lambda _: answered.set())
    assert answered.wait(5.0)
    spinner.stop()
    node.destroy_node()


class Deaf(ThreadedActionServer):
    """Loses the first requests, as happens to a client that knows only of a server which was killed."""

    requests, heard_from = 0, 2.0

    async def _execute_goal_request(self, request: Any) -> None:
        self.requests += 1
        if self.requests >= self.heard_from:
            await super()._execute_goal_request(request)


def test_a_goal_whose_request_was_lost_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "RESEND_S", 0.2)
    node = rclpy.create_node("deaf_server")
    server = Deaf(node, Generate, "deaf", lambda handle: handle.succeed() or Generate.Result())
    client = SafeActionClient(node, Generate, "deaf")
    spinner = Spinner(node)
    assert client.wait_for_server(timeout_sec=10.0)
    assert client.send_goal_until_answered(Generate.Goal(), timeout_s=10.0).accepted
    assert server.requests >= 2
    server.heard_from = math.inf
    with pytest.raises(TimeoutError, match=r"no answer within 0\.5 s"):
        client.send_goal_until_answered(Generate.Goal(), timeout_s=0.5)
    spinner.stop()
    server.destroy()
    node.destroy_node()


def test_goals_last_beside_each_other_on_an_executor_of_one_thread() -> None:
    node = rclpy.create_node("threaded_server")
    release, running = threading.Event(), threading.Semaphore(0)

    def execute(handle: Any) -> Generate.Result:
        running.release()
        assert release.wait(10.0)
        handle.succeed()
        return Generate.Result(text="done")

    server = ThreadedActionServer(node, Generate, "threaded", execute)
    client = SafeActionClient(node, Generate, "threaded")
    spinner = Spinner(node)
    assert client.wait_for_server(timeout_sec=10.0)
    texts: list[str] = []
    answered = threading.Semaphore(0)

    def on_result(future: Any) -> None:
        texts.append(future.result().result.text)
        answered.release()

    for _ in range(2):
        client.send_goal_async(Generate.Goal()).add_done_callback(
            lambda future: future.result().get_result_async().add_done_callback(on_result)
        )
    assert running.acquire(timeout=10.0)
    assert running.acquire(timeout=10.0)
    release.set()
    assert answered.acquire(timeout=10.0)
    assert answered.acquire(timeout=10.0)
    assert texts == ["done", "done"]
    spinner.stop()
    server.destroy()
    node.destroy_node()
