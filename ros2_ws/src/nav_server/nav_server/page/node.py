"""The page's hold on the graph: takes what is said ten times a second, and gives what visitors ask for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from action_msgs.srv import CancelGoal
from nav_msgs_ext.action import Navigate
from rclpy.node import Node
from std_msgs.msg import Bool

from nav_agent.actions import SafeActionClient
from nav_common import topics
from nav_common.clock import Clock
from nav_common.data import (
    ActiveFrames,
    CompressedImage,
    Decision,
    DroneState,
    EngineStatus,
    GoalState,
    LinkState,
    NavigateGoal,
    Odometry,
    WatchEvent,
)
from nav_common.ros import PolledSubscription, publisher, to_ros
from nav_server.page.board import Board

PERIOD_S = 0.1
_ANSWER_LIMIT_S = 5.0
_REASON_LIMIT_S = 1.0
_TOPICS = (
    (topics.FRONT_IMAGE, CompressedImage),
    (topics.ODOM, Odometry),
    (topics.STATE, DroneState),
    (topics.ENGINE_STATUS, EngineStatus),
    (topics.DECISION, Decision),
    (topics.GOAL_STATE, GoalState),
    (topics.LINK_STATE, LinkState),
    (topics.WATCH_EVENT, WatchEvent),
    (topics.ACTIVE_FRAMES, ActiveFrames),
)


class GraphFeed:
    """Fills a board from the topics, and is the page's `Controls`. `node` must be served by an executor.

    Args:
        memory: stamps of the frames in the memory now, oldest first; called by this feed's thread.
    """

    def __init__(
        self,
        node: Node,
        namespace: str,
        board: Board,
        clock: Clock,
        memory: Callable[[], Sequence[float]] = tuple,
    ) -> None:
        self._node = node
        self._board = board
        self._clock = clock
        self._memory = memory
        self._topics = [PolledSubscription[Any](node, topic, cls, namespace) for topic, cls in _TOPICS]
        self._stop = publisher(node, topics.EMERGENCY_STOP, namespace)
        self._navigate = SafeActionClient(node, Navigate, topics.NAVIGATE_ACTION)
        self._cancel = node.create_client(CancelGoal, f"{topics.NAVIGATE_ACTION}/_action/cancel_goal")
        self._starting = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Before the node is destroyed."""
        self._closing.set()
        self._thread.join(2.0)

    def emergency_stop(self, engaged: bool) -> None:
        self._stop.publish(Bool(data=engaged))

    def cancel(self) -> str:
        """Asks the agent to end whatever is flown; why that cannot be, or ""."""
        if not self._cancel.service_is_ready():
            return f"no agent at {topics.NAVIGATE_ACTION}: is nav_agent running?"
        self._cancel.call_async(CancelGoal.Request())  # neither an id nor a time: all goals
        return ""

    def start(self, instruction: str) -> str:
        """Waits for the agent's answer; why it did not accept, or ""."""
        if not self._navigate.server_is_ready():
            return f"no agent at {topics.NAVIGATE_ACTION}: is nav_agent running?"
        with self._starting:
            self._board.forget_rejection()
            try:
                handle = self._navigate.send_goal_until_answered(
                    to_ros(NavigateGoal((instruction,))), _ANSWER_LIMIT_S
                )
            except TimeoutError:
                return f"the agent did not answer within {_ANSWER_LIMIT_S:g} s"
            if handle.accepted:
                return ""
            # The reason comes on a topic of its own, which is polled.
            until_s = self._clock.now() + _REASON_LIMIT_S
            while not self._board.rejection() and self._clock.now() < until_s:
                self._closing.wait(PERIOD_S)
            return self._board.rejection() or "the agent rejected it without a reason"

    def _run(self) -> None:
        while not self._closing.wait(PERIOD_S):
            now_s = self._clock.now()
            for topic in self._topics:
                for data in topic.take():
                    self._board.take(data, now_s)
            self._board.take_memory(self._memory())
            self._board.tick(now_s)
