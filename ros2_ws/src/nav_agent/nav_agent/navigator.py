"""Navigator: the agent from Python, in a few calls."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import rclpy
from nav_msgs_ext.action import Navigate
from rclpy.node import Node

from nav_agent.actions import SafeActionClient
from nav_common import topics
from nav_common.data import GoalState, NavigateFeedback, NavigateGoal, NavigateResult
from nav_common.ros import Spinner, from_ros, subscription, to_ros

UNREAD = 1000
"""Feedback that is kept for `unread_feedback`: some minutes of it."""


class GoalRejected(RuntimeError):
    """The agent did not accept the goal; the text says why."""


class Navigator:
    """Flies by instructions in words.

        with Navigator() as navigator:
            navigator.fly("fly to the red beacon")
            while not navigator.is_done():
                print(navigator.feedback())
                time.sleep(1)
            print(navigator.result())

    One flight at a time: another `fly` preempts it. Initialises rclpy if nobody has.
    """

    def __init__(self, name: str = "navigator") -> None:
        self._owns_context = not rclpy.ok()
        if self._owns_context:
            rclpy.init()
        self._node = Node(name)
        self._client = SafeActionClient(self._node, Navigate, topics.NAVIGATE_ACTION)
        subscription(self._node, topics.GOAL_STATE, "", self._on_goal_state)
        self._changed = threading.Condition()
        self._handle: Any = None
        self._feedback: NavigateFeedback | None = None
        self._unread: deque[NavigateFeedback] = deque(maxlen=UNREAD)
        self._result: NavigateResult | None = None
        self._rejection = ""
        self._spinner = Spinner(self._node, name=name)

    def __enter__(self) -> Navigator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; a flight under way goes on."""
        self._spinner.stop()
        self._node.destroy_node()
        if self._owns_context:
            rclpy.try_shutdown()

    def fly(
        self,
        *instructions: str,
        max_decisions: int = 0,
        time_limit_s: float = 0.0,
        watches: Sequence[str] = (),
        hover_watches: Sequence[str] = (),
        switch_frame_indices: Sequence[int] = (),
        timeout_s: float = 10.0,
    ) -> None:
        """Send a flight; returns when it is accepted. Limits of 0: the agent's own. Watches are yes/no questions that
        the memory is asked on each new frame; of `hover_watches` one that comes true stops the motion.
        `switch_frame_indices`: the frames at which the instructions after the first begin; none: when the one before is
        reached.

        Raises:
            GoalRejected: the agent does not accept it, and why.
            TimeoutError: no agent answers within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        if not self._client.wait_for_server(timeout_sec=timeout_s):
            raise TimeoutError(
                f"no agent at {topics.NAVIGATE_ACTION} within {timeout_s:g} s: is nav_agent running?"
            )
        with self._changed:
            self._handle = self._feedback = self._result = None
            self._unread.clear()
            self._rejection = ""
        goal = to_ros(
            NavigateGoal(
                instructions,
                max_decisions,
                time_limit_s,
                tuple(watches),
                tuple(hover_watches),
                tuple(switch_frame_indices),
            )
        )
        try:
            handle = self._client.send_goal_until_answered(
                goal, deadline - time.monotonic(), self._on_feedback
            )
        except TimeoutError:
            raise TimeoutError(f"the agent did not answer within {timeout_s:g} s") from None
        with self._changed:
            if not handle.accepted:
                # The reason comes on a topic of its own, a moment earlier or later.
                self._changed.wait_for(lambda: bool(self._rejection), 1.0)
                raise GoalRejected(self._rejection or "rejected without a reason")
            self._handle = handle
        handle.get_result_async().add_done_callback(lambda future: self._on_result(handle, future))

    def is_done(self) -> bool:
        """Whether the flight has ended."""
        return self._result is not None

    def feedback(self) -> NavigateFeedback | None:
        """The newest, None before the first."""
        return self._feedback

    def unread_feedback(self) -> list[NavigateFeedback]:
        """All that came since this was asked before, in its order."""
        return [self._unread.popleft() for _ in range(len(self._unread))]

    def cancel(self) -> None:
        """End the flight: the drone hovers. Returns at once; `result` says when it is over."""
        if self._handle is not None and not self.is_done():
            self._handle.cancel_goal_async()

    def result(self, timeout_s: float | None = None) -> NavigateResult:
        """How the flight ended, once it has.

        Raises:
            TimeoutError: it has not ended within `timeout_s` (None: wait for ever).
            RuntimeError: nothing was flown.
        """
        if self._handle is None:
            raise RuntimeError("no flight was accepted: call fly first")
        with self._changed:
            if not self._changed.wait_for(self.is_done, timeout_s):
                raise TimeoutError(f"the flight has not ended within {timeout_s} s")
            assert self._result is not None
            return self._result

    def _on_feedback(self, message: Any) -> None:
        self._feedback = from_ros(NavigateFeedback, message.feedback)
        self._unread.append(self._feedback)

    def _on_result(self, handle: Any, future: Any) -> None:
        result = from_ros(NavigateResult, future.result().result)
        with self._changed:
            if handle is self._handle:
                self._result = result
            self._changed.notify_all()

    def _on_goal_state(self, message: Any) -> None:
        state = from_ros(GoalState, message)
        if state.goal_id:  # only a goal that was rejected has none
            return
        with self._changed:
            self._rejection = state.reason
            self._changed.notify_all()
