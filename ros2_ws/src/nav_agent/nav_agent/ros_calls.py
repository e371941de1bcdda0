"""Pending answers (nav_agent.ports) of ROS services."""

from __future__ import annotations

import threading
from typing import Any, Generic, TypeVar

from nav_common.ros import from_ros

T = TypeVar("T")


class Answered(Generic[T]):
    """An answer that is there already."""

    def __init__(self, answer: T) -> None:
        self._answer = answer

    def wait(self, timeout_s: float) -> T | None:
        return self._answer

    def cancel(self) -> None:
        """Nothing is under way."""


class ServiceCall(Generic[T]):
    """A service call under way. Services cannot be cancelled: the answer is merely no longer waited for."""

    def __init__(self, future: Any, response: type[T]) -> None:
        self._future = future
        self._response = response
        self._done = threading.Event()
        future.add_done_callback(lambda _: self._done.set())

    def wait(self, timeout_s: float) -> T | None:
        """The response as data."""
        self._done.wait(timeout_s)
        answered = self._future.done() and not self._future.cancelled()
        return from_ros(self._response, self._future.result()) if answered else None

    def cancel(self) -> None:
        self._future.cancel()
        self._done.set()
