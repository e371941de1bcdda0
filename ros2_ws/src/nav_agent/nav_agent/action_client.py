"""An action client that loses no response."""

from __future__ import annotations

import threading
from typing import Any

from rclpy.action import ActionClient


class SafeActionClient(ActionClient):
    """rclpy's client (7.1.6) sends a request first and notes afterwards that it awaits the response. On a busy machine
    the executor takes the response in between, and drops it as unexpected: the goal flies, but nobody hears of it.
    Here nothing is taken between the sending and the note.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._requesting = threading.RLock()
        super().__init__(*args, **kwargs)

    def send_goal_async(self, *args: Any, **kwargs: Any) -> Any:
        with self._requesting:
            return super().send_goal_async(*args, **kwargs)

    def _cancel_goal_async(self, goal_handle: Any) -> Any:
        with self._requesting:
            return super()._cancel_goal_async(goal_handle)

    def _get_result_async(self, goal_handle: Any) -> Any:
        with self._requesting:
            return super()._get_result_async(goal_handle)

    def take_data(self) -> Any:
        with self._requesting:
            return super().take_data()
