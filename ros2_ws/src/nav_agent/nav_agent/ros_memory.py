"""The memory (nav_agent.ports) over perception's Prime and Generate."""

from __future__ import annotations

import threading
from typing import Any

from action_msgs.msg import GoalStatus
from nav_msgs_ext.action import Generate
from nav_msgs_ext.srv import Ask, Prime, Watch
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node

from nav_agent.actions import SafeActionClient
from nav_agent.ports import MemoryUnavailable, Pending
from nav_agent.ros_calls import Answered, ServiceCall
from nav_common import topics
from nav_common.clock import Clock
from nav_common.conversions import ConversionError
from nav_common.data import (
    AskRequest,
    AskResponse,
    EngineStatus,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    PrimeRequest,
    PrimeResponse,
    WatchRequest,
    WatchResponse,
)
from nav_common.ros import from_ros, subscription, to_ros

_SERVER_CHECK_S = 0.25


class RosMemory:
    """Whether its process runs is known from the lease of its status topic."""

    def __init__(self, node: Node, clock: Clock) -> None:
        self._clock = clock
        self._status = EngineStatus()
        self._publishers_alive = 0
        self._prime = node.create_client(Prime, topics.PRIME_SERVICE)
        self._ask = node.create_client(Ask, topics.ASK_SERVICE)
        self._watch = node.create_client(Watch, topics.WATCH_SERVICE)
        self._generate = SafeActionClient(node, Generate, topics.GENERATE_ACTION)
        subscription(
            node,
            topics.ENGINE_STATUS,
            "",
            self._on_status,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness),
        )

    def prime(self, request: PrimeRequest) -> Pending[PrimeResponse]:
        if not self._prime.service_is_ready():
            raise MemoryUnavailable(f"no service {topics.PRIME_SERVICE}: is vlm_perception running?")
        return ServiceCall(self._prime.call_async(to_ros(request)), PrimeResponse)

    def generate(self, goal: GenerateGoal) -> Pending[GenerateResult]:
        if not self._generate.server_is_ready():
            return Answered(_no_server())
        return _Generation(self._generate, to_ros(goal), self._clock)

    def ask(self, request: AskRequest) -> Pending[AskResponse]:
        if not self._ask.service_is_ready():
            raise MemoryUnavailable(f"no service {topics.ASK_SERVICE}: is vlm_perception running?")
        return ServiceCall(self._ask.call_async(to_ros(request)), AskResponse)

    def watch(self, request: WatchRequest) -> Pending[WatchResponse]:
        if not self._watch.service_is_ready():
            raise MemoryUnavailable(f"no service {topics.WATCH_SERVICE}: is vlm_perception running?")
        return ServiceCall(self._watch.call_async(to_ros(request)), WatchResponse)

    def alive(self) -> bool:
        return self._publishers_alive > 0

    def cache_use(self) -> float:
        return self._status.cache_use

    def frames(self) -> int:
        return self._status.frames_appended

    def _on_liveliness(self, event: Any) -> None:
        self._publishers_alive = event.alive_count

    def _on_status(self, message: Any) -> None:
        self._status = from_ros(EngineStatus, message)


class _Generation:
    """A Generate goal under way. A cancel that comes before its acceptance follows it."""

    def __init__(self, client: Any, goal: Any, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._handle: Any = None
        self._cancelled = False
        self._result: GenerateResult | None = None
        self._changed = threading.Event()
        self._server_seen_s = clock.now()
        client.send_goal_async(goal).add_done_callback(self._on_response)

    def wait(self, timeout_s: float) -> GenerateResult | None:
        self._changed.wait(timeout_s)
        if self._result is None and not self._cancelled:
            now_s = self._clock.now()
            if now_s - self._server_seen_s > _SERVER_CHECK_S:
                self._server_seen_s = now_s
                if not self._client.server_is_ready():
                    return _no_server()
        return self._result

    def cancel(self) -> None:
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            handle = self._handle
        self._changed.set()
        if handle is not None and self._result is None:
            handle.cancel_goal_async()

    def _on_response(self, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            self._finish(GenerateResult(GenerateStatus.ERROR, "vlm_perception rejected the ask"))
            return
        with self._lock:
            self._handle = handle
            cancelled = self._cancelled
        if cancelled:
            handle.cancel_goal_async()
        handle.get_result_async().add_done_callback(self._on_result)

    def _on_result(self, future: Any) -> None:
        response = future.result()
        if response.status == GoalStatus.STATUS_UNKNOWN:
            lost = "vlm_perception lost the ask: was it restarted?"
            self._finish(GenerateResult(GenerateStatus.ERROR, lost))
            return
        try:
            result = from_ros(GenerateResult, response.result)
        except ConversionError as error:
            result = GenerateResult(GenerateStatus.ERROR, str(error))
        self._finish(result)

    def _finish(self, result: GenerateResult) -> None:
        self._result = result
        self._changed.set()


def _no_server() -> GenerateResult:
    missing = f"no action {topics.GENERATE_ACTION}: is vlm_perception running?"
    return GenerateResult(GenerateStatus.ERROR, missing)
