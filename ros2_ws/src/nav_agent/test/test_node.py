"""The node's own share: numbers of the messages, parameters, what comes in, a cancel that overtakes its goal."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nav_msgs_ext.msg", reason="the workspace is not built")

import nav_msgs.msg
import rclpy
import sensor_msgs.msg
from nav_msgs_ext.action import Generate, Navigate
from nav_msgs_ext.msg import DroneState, GoalState
from rclpy.action import ActionServer
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter

from nav_agent import ports
from nav_agent.action_client import SafeActionClient
from nav_agent.node import NavAgent, RosDrone
from nav_agent.outcome import MissionOver, Outcome, State
from nav_common.clock import WallClock
from nav_common.ros import ParameterError
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


def _numbers(message: Any, prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): getattr(message, name) for name in dir(message) if name.startswith(prefix)
    }


def _members(enum: Any) -> dict[str, int]:
    return {member.name: int(member) for member in enum}


def test_numbers_are_those_of_the_messages() -> None:
    assert _members(Outcome) == _numbers(Navigate.Result, "OUTCOME_")
    assert _members(State) == _numbers(GoalState, "STATE_")
    assert _members(ports.AnswerStatus) == _numbers(Generate.Result, "STATUS_")
    assert _members(ports.Flying) == _numbers(DroneState, "FLYING_")
    assert _members(ports.Gate) == _numbers(DroneState, "GATE_")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("speed", 99.0, "parameter speed is 99.0, must be 0.1 to 10.0"),
        ("max_decisions", 0, "parameter max_decisions is 0, must be 1 to 10000"),
        ("speed", "fast", "parameter speed is fast of type str"),
        ("prompt", "nope", "no prompt 'nope'; there are: pilot"),
    ],
)
def test_a_wrong_parameter_stops_the_node_with_its_name_value_and_range(
    name: str, value: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        NavAgent(parameter_overrides=[Parameter(name, value=value)])


def test_parameter_errors_are_the_kind_that_the_main_reports() -> None:
    with pytest.raises(ParameterError):
        NavAgent(parameter_overrides=[Parameter("patience_s", value=-1.0)])


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
    with pytest.raises(MissionOver) as over:
        mission.check()
    assert over.value.outcome is Outcome.CANCELLED
    assert started
    node._missions.clear()


def _odometry(stamp: int, **velocity: float) -> nav_msgs.msg.Odometry:
    message = nav_msgs.msg.Odometry()
    message.header.stamp.sec = stamp
    message.pose.pose.orientation.z = message.pose.pose.orientation.w = math.sqrt(0.5)
    for name, value in velocity.items():
        setattr(message.twist.twist.linear, name, value)
    return message


def test_odometry_that_is_not_finite_or_out_of_order_is_dropped(node: NavAgent) -> None:
    drone = RosDrone(node, "/other", WallClock())
    assert drone.odometry_age() == math.inf
    drone._on_odometry(_odometry(100, x=1.0))
    assert drone.odometry() == ports.Odometry(100.0, 0.0, 0.0, 0.0, pytest.approx(math.pi / 2), forward=1.0)
    drone._on_odometry(_odometry(101, x=math.nan))
    drone._on_odometry(_odometry(100, x=2.0))
    assert drone.odometry().forward == 1.0  # type: ignore[union-attr]
    assert drone.odometry_age() < 5.0
    drone._on_odometry(_odometry(7, x=3.0))  # the bridge's machine was restarted
    assert drone.odometry().forward == 3.0  # type: ignore[union-attr]


def test_depth_of_another_form_is_none(node: NavAgent) -> None:
    drone = RosDrone(node, "/other", WallClock())
    assert drone.depth() is None
    image = sensor_msgs.msg.Image(height=2, width=2, encoding="16UC1", step=4)
    drone._on_depth(image)
    assert drone.depth() is None
    image = sensor_msgs.msg.Image(height=1, width=2, encoding="32FC1", step=8)
    image.data.frombytes(bytes.fromhex("0000803f00000040"))
    drone._on_depth(image)
    depth = drone.depth()
    assert depth is not None
    assert depth.metres.tolist() == [[1.0, 2.0]]
    drone._on_depth(sensor_msgs.msg.Image(height=3, width=2, encoding="32FC1", step=8))
    assert drone.depth() is None, "a picture that is shorter than it says"


def test_without_a_bridge_a_goal_is_refused_and_a_take_off_says_so(node: NavAgent) -> None:
    goal = node._goal("g", Navigate.Goal(instructions=["fly"]))
    assert node.agent.refusal(goal).startswith("no state from the drone: is airsim_bridge running")
    reply = node._drone.take_off().poll()
    assert reply is not None
    assert not reply.ok
    assert "is airsim_bridge running" in reply.message


def test_without_perception_priming_and_asks_say_so(node: NavAgent) -> None:
    primed = node._memory.prime("p", "[]").poll()
    assert primed is not None
    assert (primed.prompt_id, primed.refused) == ("", False)
    assert "is vlm_perception running" in primed.message
    answer = node._memory.generate(ports.Ask("p", "fly", (), 0.0, 1.0)).poll()
    assert answer is not None
    assert answer.status is ports.AnswerStatus.ERROR


def test_no_response_of_an_action_is_lost_between_sending_and_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The response is there the moment the request is out; the executor must not take it before it is awaited."""
    node = rclpy.create_node("server_and_client")
    ActionServer(node, Generate, "ordered", lambda handle: handle.succeed() or Generate.Result())
    client = SafeActionClient(node, Generate, "ordered")
    executor = MultiThreadedExecutor(num_threads=3)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
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
    executor.shutdown(timeout_sec=2.0)
    thread.join(2.0)
    node.destroy_node()
