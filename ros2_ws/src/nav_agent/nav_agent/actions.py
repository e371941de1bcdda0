"""An action client that loses no response, and an action server whose goals need no thread of the executor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.action.client import ActionClient
from rclpy.action.server import ActionServer

RESEND_S = 2.0


class SafeActionClient(ActionClient):
    """rclpy's client (7.1.6) sends a request first and notes afterwards that it awaits the response. On a busy machine
    the executor takes the response in between, and drops it as unexpected: the goal flies, but its client never knows.
    Here nothing is taken between the sending and the note.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._requesting = threading.RLock()
        super().__init__(*args, **kwargs)

    def send_goal_async(self, *args: Any, **kwargs: Any) -> Any:
        with self._requesting:
            return super().send_goal_async(*args, **kwargs)

    def send_goal_until_answered(
        self, goal: Any, timeout_s: float, feedback_callback: Callable[[Any], None] | None = None
    ) -> Any:
        """The server's answer to a goal: its handle, accepted or not. Not to be called in a callback.

        A server that was killed counts as there until its DDS lease ends (20 s), and a request that finds no other is
        lost. So a goal that is not answered within RESEND_S is sent anew, with an id of its own: of a server where a
        goal preempts the one before, it is the last one that counts.

        Raises:
            TimeoutError: no server answers within `timeout_s`.
        """
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            answered = threading.Event()
            future = self.send_goal_async(goal, feedback_callback)
            future.add_done_callback(lambda _, answered=answered: answered.set())
            if answered.wait(min(left_s, RESEND_S)):
                return future.result()
        raise TimeoutError(f"no answer within {timeout_s:g} s")

    def _cancel_goal_async(self, goal_handle: Any) -> Any:
        with self._requesting:
            return super()._cancel_goal_async(goal_handle)

    def _get_result_async(self, goal_handle: Any) -> Any:
        with self._requesting:
            return super()._get_result_async(goal_handle)

    def take_data(self) -> Any:
        with self._requesting:
            return super().take_data()


class ThreadedActionServer(ActionServer):
    """Executes each goal in a thread of its own, so that an executor of one thread serves all the rest. rclpy's server
    would occupy a thread of the executor's pool for as long as the goal lasts."""

    def notify_execute(self, goal_handle: Any, execute_callback: Any) -> None:
        callback = execute_callback or self._execute_callback
        threading.Thread(
            target=self._execute_in_thread, args=(callback, goal_handle), name="goal", daemon=True
        ).start()

    def _execute_in_thread(self, callback: Any, goal_handle: Any) -> None:
        # rclpy's coroutine awaits nothing but the callback: one step runs it to its end.
        try:
            self._execute_goal(callback, goal_handle).send(None)
        except StopIteration:
            return
        raise RuntimeError("a goal's execute callback must be a plain function")
