"""What the agent needs from the outside: a drone, and a memory that answers. ROS and lock-step each implement both.

Stamps are seconds of the edge's clock and are only compared with each other or echoed; ages are measured on the
agent's own clock. Positions are in the odometry frame (east, north, up, m), velocities in the body (forward, left,
up, m/s), angles in rad, counter-clockwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np


class Flying(IntEnum):
    """Flying modes, numbered as in DroneState."""

    UNKNOWN = 0
    LANDED = 1
    TAKING_OFF = 2
    AIRBORNE = 3
    LANDING = 4


class Gate(IntEnum):
    """Modes of the command gate, numbered as in DroneState."""

    HOLD = 0
    ACTIVE = 1
    BRAKE = 2
    LAND = 3
    EMERGENCY = 4


class AnswerStatus(IntEnum):
    """How a generation ended, numbered as in Generate."""

    OK = 0
    CANCELLED = 1
    DEADLINE = 2
    NO_FRAME = 3
    ERROR = 4
    UNKNOWN_PROMPT = 5


@dataclass(frozen=True)
class Odometry:
    """Where the drone is and how it moves."""

    stamp: float
    x: float
    y: float
    z: float
    yaw: float
    forward: float = 0.0
    left: float = 0.0
    up: float = 0.0
    yaw_rate: float = 0.0

    @property
    def speed(self) -> float:
        return math.hypot(self.forward, self.left, self.up)


@dataclass(frozen=True)
class DroneStatus:
    """What the edge says about the vehicle and its gate; fields as in DroneState."""

    stamp: float
    flying: Flying = Flying.UNKNOWN
    gate: Gate = Gate.HOLD
    gate_reason: str = ""
    epoch: int = 0
    connected: bool = False
    fault: str = ""
    api_control: bool = True
    collision_count: int = 0
    last_collision_object: str = ""
    reflex_interventions: int = 0
    reflex_reason: str = ""


@dataclass(frozen=True)
class Velocity:
    """A velocity in the body, m/s and rad/s. All zero is hover."""

    forward: float = 0.0
    left: float = 0.0
    up: float = 0.0
    yaw_rate: float = 0.0

    @property
    def is_hover(self) -> bool:
        return self == HOVER


HOVER = Velocity()


@dataclass(frozen=True)
class Command:
    """A VelocityCommand: the echoed odometry stamp, the gate's epoch, a rising number and a velocity."""

    stamp: float
    epoch: int
    sequence: int
    velocity: Velocity


@dataclass(frozen=True)
class Camera:
    """Pinhole model of the front camera, in fractions of the picture: x = (u - cx) / fx, y = (v - cy) / fy with
    u, v from 0 to 1; x to the right and y down at unit distance ahead."""

    fx: float
    fy: float
    cx: float = 0.5
    cy: float = 0.5


@dataclass(frozen=True)
class Depth:
    """A planar depth picture of the front camera: distances along the optical axis, m, (height, width)."""

    stamp: float
    metres: np.ndarray


T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """Something asked for that will be answered."""

    def poll(self) -> T_co | None:
        """The answer, once it is there. Never blocks."""
        ...

    def cancel(self) -> None:
        """Give up: whoever works on it stops at once. Safe from any thread, at any time."""
        ...


@dataclass(frozen=True)
class Reply:
    """The answer of a plain service."""

    ok: bool
    message: str = ""


class Drone(Protocol):
    """The vehicle behind its gate. Every method returns at once and may be called from any thread."""

    def odometry(self) -> Odometry | None:
        """The newest, None before the first."""
        ...

    def odometry_age(self) -> float:
        """Seconds since it arrived, infinite before the first."""
        ...

    def status(self) -> DroneStatus | None:
        """The newest, None before the first."""
        ...

    def camera(self) -> Camera | None:
        """The front camera, None while unknown."""
        ...

    def depth(self) -> Depth | None:
        """The newest depth picture of the front camera, None where there is none."""
        ...

    def send(self, command: Command) -> None:
        """To the gate."""
        ...

    def take_off(self) -> Pending[Reply]:
        """Take control, arm and take off, as far as each is still to be done."""
        ...


@dataclass(frozen=True)
class Primed:
    """The answer to a priming. `prompt_id` is empty when it failed; `refused`: asking again is in vain."""

    prompt_id: str
    message: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Ask:
    """One question to the memory, fields as in Generate's goal. `earliest_frame` 0: any frame."""

    prompt_id: str
    instruction: str
    recent_turns: tuple[str, ...]
    earliest_frame: float
    deadline_s: float
    max_new_tokens: int = 0
    temperature: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What came of an ask, fields as in Generate's result. `tool_call` is the JSON of one call, "" if there is none."""

    status: AnswerStatus
    message: str = ""
    text: str = ""
    tool_call: str = ""
    frame_stamp: float = 0.0
    memory_resets: int = 0
    barrier_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_sampled: int = 0
    tokens_forced: int = 0
    cached_tokens: int = 0


class Memory(Protocol):
    """The streaming memory. Every method returns at once."""

    def prime(self, system_prompt: str, tools_json: str) -> Pending[Primed]:
        """Put prompt and tools at the head of the stream; the same ones again change nothing."""
        ...

    def generate(self, ask: Ask) -> Pending[Answer]:
        """One tool call. A server that is not there answers with ERROR."""
        ...

    def alive(self) -> bool:
        """Whether the memory's process lives, known within 0.3 s of its death."""
        ...

    def cache_use(self) -> float:
        """Cached tokens over the budget, 0 to 1; 0 while unknown."""
        ...
