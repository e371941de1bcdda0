"""The drone (nav_agent.ports) over the vehicle's topics.

What is only wanted newest is not subscribed through the executor, which would wake some 60 times a second for it, each
time holding Python's lock for 1 to 2 ms, and make the streamer late. The thread that needs it takes it.
"""

from __future__ import annotations

import math
import threading

from rclpy.node import Node
from std_srvs.srv import Trigger

from nav_agent.odometry_filter import OdometryFilter, RejectedSample
from nav_agent.ports import Pending
from nav_agent.ros_calls import Answered, ServiceCall
from nav_common import topics
from nav_common.clock import Clock
from nav_common.data import (
    CameraInfo,
    DepthImage,
    DroneState,
    Odometry,
    ServiceReply,
    VelocityCommand,
)
from nav_common.ros import PolledSubscription, publisher, to_ros

_LOG_PERIOD_S = 5.0


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
        self._refused = 0
        self._refusal_logged_s = -math.inf
        self._commands = publisher(node, topics.COMMAND, namespace)
        self._odometry_topic = PolledSubscription(node, topics.ODOM, Odometry, namespace)
        self._state_topic = PolledSubscription(node, topics.STATE, DroneState, namespace)
        self._camera_topic = PolledSubscription(node, topics.FRONT_INFO, CameraInfo, namespace)
        self._depth_topic = PolledSubscription(node, topics.FRONT_DEPTH, DepthImage, namespace)
        self._take_off = node.create_client(Trigger, topics.resolve(topics.TAKEOFF_SERVICE, namespace))

    @property
    def odometry_refused(self) -> int:
        """How many samples were refused because they do not continue those before."""
        return self._refused

    def odometry_publishers(self) -> list[str]:
        """The full names of the nodes that publish odometry."""
        topic = topics.ODOM.resolve(self._namespace)
        infos = self._node.get_publishers_info_by_topic(topic)
        return sorted(f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos)

    def take(self) -> None:
        """Whatever has come since the last time."""
        with self._lock:
            for odometry in self._odometry_topic.take():
                self._take_odometry(odometry)
            for state in self._state_topic.take():
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
            for camera in self._camera_topic.take():
                if camera.width and camera.height and camera.fx > 0 and camera.fy > 0:
                    self._camera = camera
            return self._camera

    def depth(self) -> DepthImage | None:
        with self._lock:
            for depth in self._depth_topic.take():
                self._depth = depth
            return self._depth

    def send(self, command: VelocityCommand) -> None:
        self._commands.publish(to_ros(command))

    def take_off(self) -> Pending[ServiceReply]:
        if not self._take_off.service_is_ready():
            missing = f"no service {self._take_off.srv_name}: is airsim_bridge running?"
            return Answered(ServiceReply(False, missing))
        return ServiceCall(self._take_off.call_async(Trigger.Request()), ServiceReply)

    def _take_odometry(self, odometry: Odometry) -> None:
        now_s = self._clock.now()
        refused = self._filter.take(odometry, now_s)
        if refused is None:
            return
        self._refused += 1
        if now_s - self._refusal_logged_s < _LOG_PERIOD_S:
            return
        publishers = self.odometry_publishers()
        if refused is RejectedSample.OUT_OF_ORDER and len(publishers) < 2:
            return  # late on its way
        self._refusal_logged_s = now_s
        position = tuple(round(value, 1) for value in odometry.position)
        self._node.get_logger().warning(
            f"odometry refused: {refused.value} (stamp {odometry.stamp_s:.3f} s, position {position}). "
            f"{topics.ODOM.resolve(self._namespace)} is published by "
            f"{', '.join(publishers) or 'no node any more'}: only the vehicle's bridge may"
        )
