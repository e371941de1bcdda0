"""The data that crosses a package's border, each type once: what topics, services and actions carry, without ROS.

A dataclass is named as its message and has its fields, numbered enums included; `nav_common.conversions` translates.
Stamps are seconds (a message's Time `x` is `x_s` here) of the clock that is named; 0 means "none". World frame: odom
(east, north, up; m). Body frame: base_link (forward, left, up; m/s, rad/s). Angles in rad, counter-clockwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

import numpy as np

from nav_common import frames
from nav_common.contract import STANDSTILL_M_S, STANDSTILL_RAD_S
from nav_common.frames import Quaternion, Vector
from nav_common.topics import BASE_FRAME, ODOM_FRAME

ZERO = Vector(0.0, 0.0, 0.0)
LEVEL = Quaternion(1.0, 0.0, 0.0, 0.0)


class FlyingMode(IntEnum):
    """DroneState.flying_mode."""

    UNKNOWN = 0
    LANDED = 1
    TAKING_OFF = 2
    AIRBORNE = 3
    LANDING = 4


class GateMode(IntEnum):
    """DroneState.gate_mode."""

    HOLD = 0
    ACTIVE = 1
    BRAKE = 2
    LAND = 3
    EMERGENCY = 4


class GenerateStatus(IntEnum):
    """How a generation ended: status of Generate's result and of Decision."""

    OK = 0
    CANCELLED = 1
    DEADLINE = 2
    NO_FRAME = 3
    ERROR = 4
    UNKNOWN_PROMPT = 5


class NavigateState(IntEnum):
    """Where a goal stands: state of GoalState and of Navigate's feedback."""

    TAKING_OFF = 0
    HOVERING = 1
    LOOKING = 2
    THINKING = 3
    MOVING = 4
    WAITING = 5
    ACCEPTED = 6
    ENDED = 7


class Outcome(IntEnum):
    """How a goal ended: outcome of Navigate's result and of GoalState."""

    FINISHED = 0
    STEP_LIMIT = 1
    TIME_LIMIT = 2
    CANCELLED = 3
    PREEMPTED = 4
    PERCEPTION_LOST = 5
    DRONE_LOST = 6
    STUCK = 7
    LINK_LOST = 8
    ERROR = 9


class MarkerType(IntEnum):
    """Marker.type: those of visualization_msgs that are used here."""

    ARROW = 0
    SPHERE = 2
    LINE_STRIP = 4
    TEXT_VIEW_FACING = 9


class MarkerAction(IntEnum):
    """Marker.action. DELETEALL: take away everything that the topic has drawn."""

    ADD = 0
    DELETEALL = 3


class FinishReason(StrEnum):
    """What the model may say when it calls `finish`."""

    REACHED = "reached"
    NOT_FOUND = "not_found"
    UNSAFE = "unsafe"


# --- the vehicle


@dataclass(frozen=True)
class Twist:
    """A velocity of the body: `linear` m/s, `angular` rad/s about the same axes."""

    linear: Vector = ZERO
    angular: Vector = ZERO

    @classmethod
    def body(
        cls,
        forward_m_s: float = 0.0,
        left_m_s: float = 0.0,
        up_m_s: float = 0.0,
        yaw_rate_rad_s: float = 0.0,
    ) -> Twist:
        """What a multirotor can be commanded."""
        return cls(Vector(forward_m_s, left_m_s, up_m_s), Vector(0.0, 0.0, yaw_rate_rad_s))

    @property
    def is_hover(self) -> bool:
        return not any(self.linear) and not any(self.angular)

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, (*self.linear, *self.angular)))


HOVER = Twist()


@dataclass(frozen=True)
class Odometry:
    """nav_msgs/Odometry: pose in the world, velocities in the body. `stamp_s` on the edge's clock."""

    stamp_s: float
    position: Vector = ZERO
    orientation: Quaternion = LEVEL
    velocity: Vector = ZERO
    angular_velocity: Vector = ZERO
    frame_id: str = ODOM_FRAME
    child_frame_id: str = BASE_FRAME

    @property
    def yaw(self) -> float:
        """Heading, rad in [-pi, pi], counter-clockwise from east."""
        return frames.yaw(self.orientation)

    @property
    def speed(self) -> float:
        """m/s."""
        return math.hypot(*self.velocity)

    @property
    def yaw_rate(self) -> float:
        """rad/s."""
        return self.angular_velocity.z

    @property
    def stands_still(self) -> bool:
        """Slower than the speeds of `contract` below which a vehicle stands still."""
        return self.speed < STANDSTILL_M_S and abs(self.yaw_rate) < STANDSTILL_RAD_S


@dataclass(frozen=True)
class VelocityCommand:
    """nav_msgs_ext/VelocityCommand. `stamp_s`: the newest odometry stamp that the sender had received, echoed."""

    stamp_s: float
    epoch: int
    sequence: int
    twist: Twist


@dataclass(frozen=True)
class DroneState:
    """nav_msgs_ext/DroneState. `stamp_s` on the edge's clock; `epoch` is the gate's."""

    stamp_s: float
    flying_mode: FlyingMode = FlyingMode.UNKNOWN
    gate_mode: GateMode = GateMode.HOLD
    gate_reason: str = ""
    epoch: int = 0
    connected: bool = False
    fault: str = ""
    api_control: bool = False
    armed: bool = False
    landed: bool = False
    collision_count: int = 0
    last_collision_object: str = ""
    reflex_interventions: int = 0
    reflex_reason: str = ""
    commands_refused: int = 0
    last_refusal: str = ""
    clock_offset_s: float = 0.0


@dataclass(frozen=True)
class Imu:
    """sensor_msgs/Imu, in the body: rad/s, m/s^2 with gravity; orientation in the world."""

    stamp_s: float
    orientation: Quaternion = LEVEL
    angular_velocity: Vector = ZERO
    linear_acceleration: Vector = ZERO
    frame_id: str = BASE_FRAME


# --- cameras


@dataclass(frozen=True)
class CompressedImage:
    """sensor_msgs/CompressedImage: an encoded picture, taken at `stamp_s` on the edge's clock."""

    stamp_s: float
    data: bytes
    format: str = "bgr8; jpeg compressed bgr8"
    frame_id: str = ""


@dataclass(frozen=True)
class DepthImage:
    """sensor_msgs/Image of encoding 32FC1. `depth_m`: [height, width] float32, distance along the optical axis, m."""

    stamp_s: float
    depth_m: np.ndarray
    frame_id: str = ""


@dataclass(frozen=True)
class CameraInfo:
    """sensor_msgs/CameraInfo of a pinhole without distortion: focal lengths and principal point in pixels."""

    stamp_s: float
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    frame_id: str = ""


# --- the link between two machines


@dataclass(frozen=True)
class FrameRequest:
    """std_msgs/Header: perception's next picture is the first of `stamp_s` or later (the vehicle's clock; 0: any)."""

    stamp_s: float
    frame_id: str = ""


@dataclass(frozen=True)
class LinkState:
    """nav_msgs_ext/LinkState, as one side sees it. `stamp_s` on that side's clock; negative ages: unknown."""

    stamp_s: float
    up: bool = False
    peer: str = ""
    fault: str = ""
    outages: int = 0
    answer_age_s: float = -1.0
    round_trip_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    clock_offset_s: float = 0.0
    clock_offset_bound_s: float = 0.0
    image_age_ms: float = -1.0
    command_age_ms: float = -1.0
    window: int = 0
    jpeg_quality: int = 0
    image_rate_hz: float = 0.0
    sent_mbit_s: float = 0.0
    received_mbit_s: float = 0.0
    sent: int = 0
    received: int = 0
    dropped: int = 0
    refused: int = 0


# --- the agent


@dataclass(frozen=True)
class Decision:
    """nav_msgs_ext/Decision: one decision with the parts of its latency. `stamp_s` and `ask_stamp_s` on the agent's
    clock, `frame_stamp_s` and `barrier_stamp_s` on the edge's."""

    stamp_s: float
    ask_stamp_s: float
    frame_stamp_s: float = 0.0
    barrier_stamp_s: float = 0.0
    goal_id: str = ""
    instruction: str = ""
    step: int = 0
    tool: str = ""
    arguments: str = ""
    previous_result: str = ""
    status: GenerateStatus = GenerateStatus.OK
    message: str = ""
    barrier_ms: float = 0.0
    ttft_ms: float = 0.0
    generate_ms: float = 0.0
    framework_ms: float = 0.0
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_sampled: int = 0
    tokens_forced: int = 0
    cached_tokens: int = 0
    hovering: bool = False
    reason: str = ""


@dataclass(frozen=True)
class GoalState:
    """nav_msgs_ext/GoalState. `stamp_s` on the agent's clock; `outcome` counts only with ENDED."""

    stamp_s: float
    goal_id: str
    instruction: str = ""
    state: NavigateState = NavigateState.ACCEPTED
    decisions: int = 0
    outcome: Outcome = Outcome.FINISHED
    reason: str = ""


@dataclass(frozen=True)
class NavigateGoal:
    """Navigate's goal. 0: the server's default. `watches`, `hover_watches`: see WatchRequest, while the goal lasts.
    `switch_frame_indices`: of each instruction after the first, the frame at which it takes the place of the one
    before, counted from the goal's first; (): each begins when the one before is reached."""

    instructions: tuple[str, ...]
    max_decisions: int = 0
    time_limit_s: float = 0.0
    watches: tuple[str, ...] = ()
    hover_watches: tuple[str, ...] = ()
    switch_frame_indices: tuple[int, ...] = ()


@dataclass(frozen=True)
class NavigateResult:
    """Navigate's result. `reason` is the model's with FINISHED, else in words; `instruction_index` of the instruction
    that was flown last, from 0."""

    outcome: Outcome
    reason: str = ""
    decisions: int = 0
    distance_m: float = 0.0
    collisions: int = 0
    instruction_index: int = 0


@dataclass(frozen=True)
class NavigateFeedback:
    """Navigate's feedback. Ages in s, negative while unknown; `cache_use` from 0 to 1."""

    state: NavigateState
    decisions: int = 0
    instruction_index: int = 0
    last_tool_call: str = ""
    last_result: str = ""
    odometry_age_s: float = -1.0
    frame_age_s: float = 0.0
    cache_use: float = 0.0


# --- perception


@dataclass(frozen=True)
class EngineStatus:
    """nav_msgs_ext/EngineStatus: one stream of the engine in flat numbers. `stamp_s` on perception's clock; `backend`:
    what answers, and why it is this one."""

    stamp_s: float = 0.0
    memory_resets: int = 0
    cached_tokens: int = 0
    sink_tokens: int = 0
    window_tokens: int = 0
    budget_tokens: int = 0
    chunks: int = 0
    chunks_appended: int = 0
    frames_received: int = 0
    frames_broken: int = 0
    frames_replaced: int = 0
    frames_appended: int = 0
    frames_provisional: int = 0
    evictions: int = 0
    asks: int = 0
    generations: int = 0
    append_ms: float = 0.0
    ask_ms: float = 0.0
    ttft_ms: float = 0.0
    frame_latency_ms: float = 0.0
    frame_age_s: float = 0.0
    rss_mib: float = 0.0
    gpu_mib: float = 0.0
    backend: str = ""

    @property
    def cache_use(self) -> float:
        """Cached tokens over the budget, 0 to 1; 0 while there is no budget."""
        return self.cached_tokens / self.budget_tokens if self.budget_tokens else 0.0


@dataclass(frozen=True)
class GenerateGoal:
    """Generate's goal. `earliest_frame_s` on the edge's clock, 0: any frame; `deadline_s` 0: the server's default.
    `kind`: how many tokens may be sampled (quick, normal, analysis, detailed; "": normal), below `max_new_tokens`
    (0: none)."""

    prompt_id: str
    instruction: str
    recent_calls: tuple[str, ...] = ()
    max_new_tokens: int = 0
    temperature: float = 0.0
    earliest_frame_s: float = 0.0
    deadline_s: float = 0.0
    kind: str = ""


@dataclass(frozen=True)
class GenerateResult:
    """Generate's result. `tool_call`: the JSON of one call, "" if there is none; `frame_stamp_s` on the edge's
    clock."""

    status: GenerateStatus
    message: str = ""
    text: str = ""
    tool_call: str = ""
    frame_stamp_s: float = 0.0
    memory_resets: int = 0
    barrier_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_sampled: int = 0
    tokens_forced: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class PrimeRequest:
    """Prime's request. `tools`: a JSON list of function schemas."""

    system_prompt: str
    tools: str


@dataclass(frozen=True)
class PrimeResponse:
    """Prime's response, and a reset's."""

    success: bool
    message: str = ""
    prompt_id: str = ""
    memory_resets: int = 0
    tokens: int = 0
    elapsed_ms: float = 0.0


@dataclass(frozen=True)
class AskRequest:
    """Ask's request. `choices`: when not empty, the answer is one of them. `kind`: as a GenerateGoal's, but "" is
    detailed."""

    question: str
    choices: tuple[str, ...] = ()
    max_new_tokens: int = 0
    kind: str = ""


@dataclass(frozen=True)
class AskResponse:
    """Ask's response. `frame_stamp_s`: of the newest frame in memory, on the edge's clock."""

    success: bool
    message: str = ""
    answer: str = ""
    frame_stamp_s: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_sampled: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class WatchRequest:
    """Watch's request: standing questions that replace those of the same owner. A question is true when its answer is
    yes, "no: QUESTION" when it is no; those in `hover_watches` stop the motion once they come true."""

    owner: str
    watches: tuple[str, ...] = ()
    hover_watches: tuple[str, ...] = ()


@dataclass(frozen=True)
class WatchResponse:
    """Watch's response."""

    success: bool
    message: str = ""


@dataclass(frozen=True)
class WatchEvent:
    """nav_msgs_ext/WatchEvent: a standing question came true (`holds`), or is true no longer. `stamp_s` on perception's
    clock, `frame_stamp_s` on the edge's; `probability` of the answer that makes it true, among yes and no."""

    stamp_s: float
    owner: str
    watch: str
    holds: bool
    hover: bool = False
    probability: float = 0.0
    frame_stamp_s: float = 0.0
    cost_ms: float = 0.0


class Color(NamedTuple):
    """std_msgs/ColorRGBA: red, green, blue, opacity, each from 0 to 1."""

    r: float
    g: float
    b: float
    a: float = 1.0


WHITE = Color(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Marker:
    """visualization_msgs/Marker: something drawn in three dimensions, named by `ns` and `id`, in the frame `frame_id`.
    `scale` is, in m, an arrow's length, width and height, a text's height (z), a line's width (x)."""

    stamp_s: float = 0.0
    ns: str = ""
    id: int = 0
    type: MarkerType = MarkerType.ARROW
    action: MarkerAction = MarkerAction.ADD
    position: Vector = ZERO
    orientation: Quaternion = LEVEL
    scale: Vector = ZERO
    color: Color = WHITE
    points: tuple[Vector, ...] = ()
    text: str = ""
    frame_id: str = ODOM_FRAME


@dataclass(frozen=True)
class MarkerArray:
    """visualization_msgs/MarkerArray."""

    markers: tuple[Marker, ...] = ()


@dataclass(frozen=True)
class ActiveFrames:
    """nav_msgs_ext/ActiveFrames: the frames that the identity memory holds active, oldest first. `entities`: of each
    frame the ids of those that it shows, with commas between them. `recalled`: those of the frames that came back from
    the archive. `stamp_s` on perception's clock, `frame_stamps_s` on the edge's."""

    stamp_s: float = 0.0
    frames: tuple[str, ...] = ()
    frame_stamps_s: tuple[float, ...] = ()
    entities: tuple[str, ...] = ()
    recalled: tuple[str, ...] = ()
    archived: int = 0
    retrievals: int = 0
    extra_tokens: int = 0
    extra_latency_ms: float = 0.0


@dataclass(frozen=True)
class RecallRequest:
    """Recall's request. `entity`: an id, or words as in an instruction."""

    entity: str


@dataclass(frozen=True)
class RecallResponse:
    """Recall's response: the entity, and its frames that are in the memory now."""

    success: bool
    message: str = ""
    entity_id: str = ""
    name: str = ""
    frame_stamps_s: tuple[float, ...] = ()
    frames: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServiceReply:
    """std_srvs/Trigger's and SetBool's response: what became of something asked of the vehicle or the memory."""

    success: bool
    message: str = ""
