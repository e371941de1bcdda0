"""The drone (nav_agent.ports) over the vehicle's topics.

What is only wanted newest is not subscribed through the executor, which would wake some 60 times a second for it, each
time holding Python's lock for 1 to 2 ms, and make the streamer late. The thread that needs it takes it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from std_srvs.srv import Trigger

from nav_agent.odometry_filter import OdometryFilter, Refused
from nav_agent.ports import Pending
from nav_agent.ros_calls import Answered, ServiceCall
from nav_common import topics
from nav_common.clock import Clock
from nav_common.conversions import ConversionError
from nav_common.data import (
    CameraInfo,
    DepthImage,
    DroneState,
    Odometry,
    ServiceReply,
    VelocityCommand,
)
from nav_common.ros import from_ros, publisher, subscription, to_ros
from nav_common.topics import Topic

T = TypeVar("T")

_LOG_PERIOD_S = 5.0


class _NotExecuted(CallbackGroup):
    """Of entities that no executor serves."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing was begun."""


class RosDrone:
    """`take` is to be called each contract.COMMAND_PERIOD_S: a sample's age is measured from when it is taken."""

    def __init__(self, node: Node, namespace: str, clock: Clock) -> None:
        self._node = node
        self._namespace = namespace
        self._clock = clock
        self._lock = threading.Lock()
        self._filter = OdometryFilter()
        self._state: DroneState | None = None
        self._camera: CameraInfo | None = None
        self._depth: DepthImage | None = None
        self._jumps = 0
        self._jump_logged_s = -math.inf
        self._commands = publisher(node, topics.COMMAND, namespace)
        group = _NotExecuted()

        def subscribe(topic: Topic) -> Any:
            return subscription(node, topic, namespace, lambda message: None, callback_group=group)

        self._odometry_subscription = subscribe(topics.ODOM)
        self._state_subscription = subscribe(topics.STATE)
        self._camera_subscription = subscribe(topics.FRONT_INFO)
        self._depth_subscription = subscribe(topics.FRONT_DEPTH)
        self._take_off = node.create_client(Trigger, topics.resolve(topics.TAKEOFF_SERVICE, namespace))

    @property
    def odometry_jumps(self) -> int:
        """How many samples were refused because they do not continue those before."""
        return self._jumps

    def odometry_publishers(self) -> list[str]:
        """The full names of the nodes that publish odometry."""
        topic = topics.ODOM.resolve(self._namespace)
        infos = self._node.get_publishers_info_by_topic(topic)
        return sorted(f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos)

    def take(self) -> None:
        """Whatever has come since the last time."""
        with self._lock:
            for odometry in self._read(self._odometry_subscription, Odometry):
                self._take_odometry(odometry)
            for state in self._read(self._state_subscription, DroneState):
                self._state = state

    def odometry(self) -> Odometry | None:
        self.take()
        return self._filter.newest

    def odometry_age_s(self) -> float:
        self.take()
        return self._clock.now() - self._filter.arrived_s

    def state(self) -> DroneState | None:
        self.take()
        return self._state

    def camera(self) -> CameraInfo | None:
        with self._lock:
            for camera in self._read(self._camera_subscription, CameraInfo):
                if camera.width and camera.height and camera.fx > 0 and camera.fy > 0:
                    self._camera = camera
            return self._camera

    def depth(self) -> DepthImage | None:
        with self._lock:
            for depth in self._read(self._depth_subscription, DepthImage):
                self._depth = depth
            return self._depth

    def send(self, command: VelocityCommand) -> None:
        self._commands.publish(to_ros(command))

    def take_off(self) -> Pending[ServiceReply]:
        if not self._take_off.service_is_ready():
            missing = f"no service {self._take_off.srv_name}: is airsim_bridge running?"
            return Answered(ServiceReply(False, missing))
        return ServiceCall(self._take_off.call_async(Trigger.Request()), ServiceReply)

    def _read(self, source: Any, cls: type[T]) -> Iterator[T]:
        """The messages that have arrived, oldest first."""
        with source.handle:
            while (taken := source.handle.take_message(source.msg_type, False)) is not None:
                try:
                    yield from_ros(cls, taken[0])
                except ConversionError as error:
                    self._node.get_logger().warning(
                        f"{source.topic} ignored: {error}", throttle_duration_sec=_LOG_PERIOD_S
                    )

    def _take_odometry(self, odometry: Odometry) -> None:
        now_s = self._clock.now()
        refused = self._filter.take(odometry, now_s)
        if refused is None or refused is Refused.OUT_OF_ORDER:
            return
        self._jumps += 1
        if now_s - self._jump_logged_s < _LOG_PERIOD_S:
            return
        self._jump_logged_s = now_s
        position = tuple(round(value, 1) for value in odometry.position)
        self._node.get_logger().warning(
            f"odometry refused: {refused.value} (stamp {odometry.stamp_s:.3f} s, position {position}). "
            f"{topics.ODOM.resolve(self._namespace)} is published by "
            f"{', '.join(self.odometry_publishers()) or 'nobody any more'}: only the vehicle's bridge may"
        )
