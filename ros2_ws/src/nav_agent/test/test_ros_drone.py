"""The drone over topics: taken by whoever needs it, without an executor; what comes in broken or from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("nav_msgs_ext.msg", reason="the workspace is not built")

import rclpy
import sensor_msgs.msg
from rclpy.node import Node

from nav_agent.ros_drone import RosDrone
from nav_common import topics
from nav_common.clock import WallClock, wait_until
from nav_common.data import (
    HOVER,
    CameraInfo,
    DroneState,
    FlyingMode,
    GateMode,
    Odometry,
    VelocityCommand,
)
from nav_common.frames import Quaternion, Vector
from nav_common.ros import publisher, subscription, to_ros
from nav_common.testing import unique_domain_id
from nav_common.topics import Topic

NAMESPACE = "/drone"
CLOCK = WallClock()


@pytest.fixture(scope="module", autouse=True)
def _ros() -> Iterator[None]:
    rclpy.init(domain_id=unique_domain_id())
    yield
    rclpy.try_shutdown()


@pytest.fixture
def agent() -> Iterator[Node]:
    node = rclpy.create_node("agent")
    yield node
    node.destroy_node()


@pytest.fixture
def bridge() -> Iterator[Node]:
    node = rclpy.create_node("bridge")
    yield node
    node.destroy_node()


@pytest.fixture
def drone(agent: Node) -> RosDrone:
    return RosDrone(agent, NAMESPACE, CLOCK)


def until(condition: Callable[[], Any], act: Callable[[], None] = lambda: None) -> None:
    """Act, again and again (a best-effort topic), until the condition holds."""

    def look() -> bool:
        act()
        return bool(condition())

    assert wait_until(CLOCK, look, 20.0, 0.05)


def sender(node: Node, topic: Topic) -> Callable[[Any], None]:
    outlet = publisher(node, topic, NAMESPACE)
    return lambda message: outlet.publish(message)


def test_odometry_and_state_are_there_without_an_executor(bridge: Node, drone: RosDrone) -> None:
    assert drone.odometry() is None
    assert drone.odometry_age_s() == math.inf
    assert drone.state() is None
    send_odometry, send_state = sender(bridge, topics.ODOM), sender(bridge, topics.STATE)
    turned = Quaternion(math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5))
    odometry = Odometry(CLOCK.now(), Vector(1.0, 2.0, 3.0), turned, Vector(0.5, 0.0, 0.0))
    state = DroneState(7.0, FlyingMode.AIRBORNE, GateMode.ACTIVE, epoch=3, connected=True)
    until(drone.odometry, lambda: send_odometry(to_ros(odometry)))
    until(drone.state, lambda: send_state(to_ros(state)))
    newest = drone.odometry()
    assert newest is not None
    assert newest.stamp_s == pytest.approx(odometry.stamp_s, abs=1e-6)
    assert (newest.position, newest.velocity) == (odometry.position, odometry.velocity)
    assert newest.yaw == pytest.approx(math.pi / 2)
    assert drone.odometry_age_s() < 5.0
    assert drone.state() == state


def test_a_second_publisher_of_odometry_is_refused_and_named(bridge: Node, drone: RosDrone) -> None:
    intruder = rclpy.create_node("intruder", namespace="/other")
    send, intrude = sender(bridge, topics.ODOM), sender(intruder, topics.ODOM)

    def both() -> None:
        send(to_ros(Odometry(CLOCK.now())))
        intrude(to_ros(Odometry(CLOCK.now() + 1e6)))

    until(drone.odometry, lambda: send(to_ros(Odometry(CLOCK.now()))))
    until(lambda: drone.odometry() and drone.odometry_refused, both)
    newest = drone.odometry()
    assert newest is not None
    assert newest.stamp_s < CLOCK.now() + 1.0
    assert drone.odometry_publishers() == ["/bridge", "/other/intruder"]
    intruder.destroy_node()


def test_an_intruder_whose_samples_shut_the_vehicle_s_out_is_named(
    agent: Node, bridge: Node, drone: RosDrone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be the vehicle itself: half a second ahead, and nearby."""
    warnings: list[str] = []
    monkeypatch.setattr(agent.get_logger(), "warning", warnings.append)
    intruder = rclpy.create_node("intruder")
    send, intrude = sender(bridge, topics.ODOM), sender(intruder, topics.ODOM)

    def both() -> None:
        now_s = CLOCK.now()
        intrude(to_ros(Odometry(now_s + 0.5)))
        send(to_ros(Odometry(now_s)))

    until(lambda: drone.odometry() and warnings, both)
    assert "out of order" in warnings[0]
    assert "/bridge, /intruder" in warnings[0]
    intruder.destroy_node()


def test_a_late_sample_of_the_only_publisher_is_no_news(
    agent: Node, bridge: Node, drone: RosDrone, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(agent.get_logger(), "warning", warnings.append)
    send = sender(bridge, topics.ODOM)
    now_s = CLOCK.now()

    def out_of_order() -> None:
        send(to_ros(Odometry(now_s)))
        send(to_ros(Odometry(now_s - 0.1)))

    until(lambda: drone.odometry() and drone.odometry_refused, out_of_order)
    assert not warnings


def test_a_state_that_cannot_be_read_is_ignored(bridge: Node, drone: RosDrone) -> None:
    send = sender(bridge, topics.STATE)
    broken, good = to_ros(DroneState(1.0)), to_ros(DroneState(2.0, epoch=9))
    broken.gate_mode = 77

    def both() -> None:
        send(broken)
        send(good)

    until(drone.state, both)
    assert drone.state() == DroneState(2.0, epoch=9)


def test_depth_and_camera_of_another_form_are_none(bridge: Node, drone: RosDrone) -> None:
    send_depth, send_camera = sender(bridge, topics.FRONT_DEPTH), sender(bridge, topics.FRONT_INFO)
    wrong = sensor_msgs.msg.Image(height=2, width=2, encoding="16UC1", step=4)
    short = sensor_msgs.msg.Image(height=3, width=2, encoding="32FC1", step=8)
    right = sensor_msgs.msg.Image(height=1, width=2, encoding="32FC1", step=8)
    right.data.frombytes(bytes.fromhex("0000803f00000040"))
    empty, camera = CameraInfo(1.0, 0, 0, 0.0, 0.0, 0.0, 0.0), CameraInfo(2.0, 4, 3, 2.0, 2.0, 2.0, 1.5)

    until(lambda: bridge.count_subscribers("/drone/camera/front/depth"))
    for message in (wrong, short):
        send_depth(message)
    assert drone.depth() is None
    until(drone.depth, lambda: send_depth(right))
    depth = drone.depth()
    assert depth is not None
    assert depth.depth_m.tolist() == [[1.0, 2.0]]
    send_camera(to_ros(empty))
    assert drone.camera() is None
    until(drone.camera, lambda: send_camera(to_ros(camera)))
    assert drone.camera() == camera


def test_a_command_goes_out(bridge: Node, drone: RosDrone) -> None:
    received: list[Any] = []
    subscription(bridge, topics.COMMAND, NAMESPACE, received.append)

    def send() -> None:
        drone.send(VelocityCommand(5.5, 2, 1, HOVER))
        rclpy.spin_once(bridge, timeout_sec=0.05)

    until(lambda: received, send)
    assert (received[0].epoch, received[0].sequence, received[0].stamp.sec) == (2, 1, 5)
