"""What the agent needs from the outside: a drone, and a memory that answers. ROS and lock-step each implement both.

Stamps are seconds of the edge's clock and are only compared with each other or echoed; ages are measured on the
agent's own clock.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from nav_common.data import (
    AskRequest,
    AskResponse,
    CameraInfo,
    DepthImage,
    DroneState,
    GenerateGoal,
    GenerateResult,
    Odometry,
    PrimeRequest,
    PrimeResponse,
    ServiceReply,
    VelocityCommand,
    WatchRequest,
    WatchResponse,
)

T_co = TypeVar("T_co", covariant=True)


class MemoryUnavailable(ConnectionError):
    """No process offers the memory at present; the text says what is missing."""


class Pending(Protocol[T_co]):
    """Something asked for that will be answered."""

    def wait(self, timeout_s: float) -> T_co | None:
        """The answer, waiting for it at most `timeout_s` of the agent's clock; None while there is none."""
        ...

    def cancel(self) -> None:
        """Give up: whoever works on it stops, whoever waits returns at once. Safe from any thread, at any time."""
        ...


class Drone(Protocol):
    """The vehicle behind its gate. Every method returns at once and may be called from any thread."""

    def odometry(self) -> Odometry | None:
        """The newest, None before the first."""
        ...

    def odometry_age_s(self) -> float:
        """Seconds since it arrived, infinite before the first."""
        ...

    def state(self) -> DroneState | None:
        """The newest, None before the first."""
        ...

    def camera(self) -> CameraInfo | None:
        """The front camera, None while unknown."""
        ...

    def depth(self) -> DepthImage | None:
        """The newest depth picture of the front camera, None where there is none."""
        ...

    def send(self, command: VelocityCommand) -> None:
        """To the gate."""
        ...

    def take_off(self) -> Pending[ServiceReply]:
        """Take control, arm and take off, as far as each is still to be done."""
        ...


class Memory(Protocol):
    """The streaming memory. Every method returns at once."""

    def prime(self, request: PrimeRequest) -> Pending[PrimeResponse]:
        """Put prompt and tools at the head of the stream; the same ones again change nothing.

        Raises:
            MemoryUnavailable: nobody is there to be primed.
        """
        ...

    def generate(self, goal: GenerateGoal) -> Pending[GenerateResult]:
        """One tool call. A server that is not there, or goes away, answers with ERROR."""
        ...

    def ask(self, request: AskRequest) -> Pending[AskResponse]:
        """A question.

        Raises:
            MemoryUnavailable: nobody is there to be asked.
        """
        ...

    def watch(self, request: WatchRequest) -> Pending[WatchResponse]:
        """Leave standing questions with the memory, in place of the owner's earlier ones.

        Raises:
            MemoryUnavailable: nobody is there to be asked.
        """
        ...

    def alive(self) -> bool:
        """Whether the memory's process is running, known within contract.LIVELINESS_LEASE_S of its end."""
        ...

    def cache_use(self) -> float:
        """Cached tokens over the budget, 0 to 1; 0 while unknown."""
        ...

    def frames(self) -> int:
        """Frames that have ever entered the memory; 0 while unknown."""
        ...
