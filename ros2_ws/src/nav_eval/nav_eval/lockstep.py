"""Lock-step: simulator, bridge, gate, agent and streaming memory in one process on one virtual clock.

Nothing here flies: it only puts the cores together as the ROS graph does, so that a mission runs faster than real time
and the same way each time. What takes time in reality is given time here: a decision `think_s`, a frame `append_s` of
the memory's thread, during which the drone hovers and the camera goes on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from airsim_bridge.bridge import Bridge, CameraSettings
from airsim_bridge.bridge import Settings as BridgeSettings
from airsim_bridge.reflex import DepthReflex
from airsim_bridge.vehicle import Vehicle
from airsim_sim.model import TIMESTEP_S
from airsim_sim.simulation import START_TIME_NS, Simulation
from airsim_sim.world import World
from nav_agent import toolset
from nav_agent.agent import Agent
from nav_agent.agent import Settings as AgentSettings
from nav_agent.markers import PERIOD_S as DRAWING_PERIOD_S
from nav_agent.markers import FlightMarkers
from nav_agent.mission import MissionSettings
from nav_agent.motion import MotionSettings
from nav_agent.ports import Memory, Pending
from nav_agent.prompts import load_prompt
from nav_common import topics
from nav_common.bag_writer import BagWriter
from nav_common.clock import VirtualClock, wait_until
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.conversions import encode
from nav_common.data import (
    ActiveFrames,
    AskRequest,
    AskResponse,
    CameraInfo,
    CompressedImage,
    Decision,
    DepthImage,
    DroneState,
    EngineStatus,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    GoalState,
    Imu,
    NavigateFeedback,
    NavigateGoal,
    NavigateResult,
    Odometry,
    PrimeRequest,
    PrimeResponse,
    ServiceReply,
    Twist,
    VelocityCommand,
    WatchEvent,
    WatchRequest,
    WatchResponse,
)
from nav_common.topics import Topic
from nav_eval.bags import Logged
from nav_eval.flight_log import FlightLog
from nav_eval.leave_one_out import MomentRecorder
from nav_eval.metrics import Contact, TakenDecision, TrackPoint
from nav_eval.policies import Policy
from nav_eval.profile import PROFILE
from nav_eval.virtual_link import Connection, Direction, LinkSettings, VirtualLink
from vlm_perception.engine import QwenModel
from vlm_perception.identity.bank import MemoryBank
from vlm_perception.recollection import RecallCounts
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream
from vlm_perception.tickets import Ticket

T = TypeVar("T")

MEMORY_PERIOD_S = 0.01
WAIT_PERIOD_S = 0.005
STATUS_PERIOD_S = 1.0
"""Twice perception's own: the published figures of lock-step were measured with it."""
TRACK_PERIOD_S = 0.2
DECISIONS, DECISIONS_EACH = 40, 15
"""Most decisions of a mission, and of each of its instructions where it has many (chosen: an expert takes 3 to 12)."""
_ODOMETRY_BYTES, _STATE_BYTES, _COMMAND_BYTES = (
    len(encode(data)) for data in (Odometry(0.0), DroneState(0.0), VelocityCommand(0.0, 0, 0, Twist()))
)


@dataclass(frozen=True)
class LockStepSettings:
    """How the composition is run.

    Attributes:
        think_s: virtual time that a generation takes once its barrier frame is in.
        append_s: virtual time that appending a frame keeps the memory's thread busy.
        image_rate_hz: 4 gives the memory its frame each 0.5 s and a barrier frame within 0.25 s; the graph's 10 would
            render twice as long for pictures that nobody looks at.
        blank: the memory gets grey pictures instead of the camera's.
        max_decisions: 0: DECISIONS, or DECISIONS_EACH for each instruction where that is more.
        reflex: whether the bridge slows down before obstacles.
        speed_m_s: of the agent's level flight.
        link: what lies between edge and server; None: nothing.
    """

    think_s: float = 0.3
    append_s: float = 0.05
    image_rate_hz: float = 4.0
    max_decisions: int = 0
    time_limit_s: float = MissionSettings.time_limit_s
    blank: bool = False
    reflex: bool = False
    speed_m_s: float = MotionSettings.speed_m_s
    link: LinkSettings | None = None


@dataclass(frozen=True)
class FlownMission:
    """A mission that was flown: its result, its log for the judge, and what only the simulator knows.

    Attributes:
        pictures: the camera's, as they were taken (also where the memory got grey ones).
        track: where the drone truly was, each TRACK_PERIOD_S from the first decision on.
        decisions: the calls, each with the true pose at which it was made.
        contacts: what was touched.
        engine_ms: wall time that the model took for each decision.
        virtual_s: how long it all took on the virtual clock.
        image_ages_s: across a link, of the pictures on arrival.
        recalls: what a memory bank brought back; None without one.
    """

    result: NavigateResult
    log: FlightLog
    pictures: tuple[Logged[CompressedImage], ...]
    track: tuple[TrackPoint, ...]
    decisions: tuple[TakenDecision, ...]
    contacts: tuple[Contact, ...]
    engine_ms: tuple[float, ...]
    virtual_s: float
    image_ages_s: tuple[float, ...] = ()
    recalls: RecallCounts | None = None


class Pilot(NamedTuple):
    """A model as it is served."""

    model: QwenModel
    form: ServingForm


@dataclass(frozen=True)
class ForcedCall:
    """A call made in place of the model's at one decision, numbered from 1. The model works as ever, and takes the call
    for its own from then on."""

    decision: int
    tool: str
    arguments: Mapping[str, toolset.Value]


def load_model(folder: Path | str, device: str | None = None) -> Pilot:
    """A model with its serving form, as the perception node loads them. device: "cpu", "cuda" or None for a GPU if
    there is one."""
    form = ServingForm.load(folder)
    return Pilot(QwenModel.load(folder, size=(form.width, form.height), device=device), form)


def fly(
    world: World,
    instructions: Sequence[str],
    pilot: Pilot | Sequence[Policy],
    settings: LockStepSettings | None = None,
    *,
    record: Path | None = None,
    forced: ForcedCall | None = None,
    moments: MomentRecorder | None = None,
    bank: MemoryBank | None = None,
) -> FlownMission:
    """Fly one mission from the start of `world` to an outcome, and close everything.

    Args:
        instructions: flown in order, each after the one before was reached.
        pilot: a model, or a policy for each instruction.
        record: a bag to make.
        forced: for a model: a call that takes the place of its own at one decision. Up to there the flight is the same
            as without it.
        moments: for a model: gets each of its decisions, with what was in memory.
        bank: for a model: its memory with identity.

    Raises:
        ValueError: a call is to be forced on policies, or moments or a bank are wanted of them.
    """
    if (forced or moments or bank) and not isinstance(pilot, Pilot):
        raise ValueError("a forced call, moments and a bank are a model's: a policy has no memory")
    settings = settings or LockStepSettings()
    simulation = Simulation(world)
    composition = _Composition(simulation, pilot, settings, record, forced, moments, bank)
    try:
        result = composition.fly(instructions)
        return FlownMission(
            result,
            composition.flight_log,
            tuple(composition.pictures),
            tuple(composition.track),
            tuple(composition.decisions),
            tuple(Contact(contact.time_s, contact.object_name) for contact in simulation.collisions),
            tuple(composition.memory.engine_ms),
            simulation.time_s,
            tuple(composition.link.ages_s) if composition.link else (),
            composition.memory.recalls() if bank else None,
        )
    finally:
        composition.close()
        simulation.close()


class _Composition:
    """The cores of one mission, wired. Implements what each of them wants of the others."""

    def __init__(
        self,
        simulation: Simulation,
        pilot: Pilot | Sequence[Policy],
        settings: LockStepSettings,
        record: Path | None,
        forced: ForcedCall | None = None,
        moments: MomentRecorder | None = None,
        bank: MemoryBank | None = None,
    ) -> None:
        self.settings = settings
        self.clock = VirtualClock(START_TIME_NS * 1e-9)
        self.pictures: list[Logged[CompressedImage]] = []
        self.track: list[TrackPoint] = []
        self.decisions: list[TakenDecision] = []
        self._simulation = simulation
        self.flight_log = FlightLog(record or Path("lockstep"), topics.DEFAULT_VEHICLE_NAMESPACE)
        self._writer = self._open(record) if record else None
        self._markers = FlightMarkers()
        self._grey = cv2.imencode(".jpg", np.full((240, 320, 3), 128, np.uint8))[1].tobytes()

        # Without the reflex only fly_towards looks at depth, and then it is rendered on demand.
        camera = CameraSettings(
            image_rate_hz=settings.image_rate_hz,
            depth_rate_hz=5.0 if settings.reflex else 0.0,
            jpeg_quality=settings.link.jpeg_quality if settings.link else CameraSettings.jpeg_quality,
        )
        self.bridge = Bridge(
            Vehicle(simulation, self.clock),
            self.clock,
            self,
            BridgeSettings(cameras=(camera,), check_colour_order=False),
            reflex=DepthReflex() if settings.reflex else None,
        )
        self.drone = _Drone(self.bridge, camera.name, self.clock, self._sent)
        system_prompt = load_prompt()
        self.memory: _StreamMemory | _PolicyMemory
        if isinstance(pilot, Pilot):
            stream = Stream(
                pilot.model,
                pilot.form,
                self.clock,
                bank=bank,
                on_watch=self._on_watch,
                on_active_frames=self._on_active_frames,
            )
            if moments:
                stream.on_append = moments.on_append
            self.memory = _StreamMemory(stream, self.clock, settings, moments)
            system_prompt = pilot.form.system_prompt or system_prompt
        else:
            self.memory = _PolicyMemory(pilot, self._true_pose, self.clock, settings.think_s)
        self.link = (
            VirtualLink(settings.link, self.clock, self.memory.frame_wanted_s, self._deliver_image)
            if settings.link
            else None
        )
        memory = _ForcedMemory(self.memory, forced) if forced else self.memory
        motion = MotionSettings(speed_m_s=settings.speed_m_s)
        self.agent = Agent(self.drone, memory, self.clock, system_prompt, self, AgentSettings(motion))
        every = self.clock.call_every
        every(TIMESTEP_S, simulation.step)
        every(1 / BridgeSettings.odom_rate_hz, self.bridge.poll_state)
        every(1 / camera.rate_hz, lambda: self.bridge.grab(camera.topic))
        every(COMMAND_PERIOD_S, self.bridge.tick_gate)
        every(COMMAND_PERIOD_S, self.agent.streamer.tick)
        every(MEMORY_PERIOD_S, self.memory.tick)
        if self.link:
            every(MEMORY_PERIOD_S, self.link.tick)
        every(STATUS_PERIOD_S, self._on_status)
        every(TRACK_PERIOD_S, self._on_track)
        if self._writer:
            every(DRAWING_PERIOD_S, self._draw)

    def fly(self, instructions: Sequence[str]) -> NavigateResult:
        # The bridge connects, the first pictures come.
        self.clock.sleep(0.5 + (self.link.settings.profile.rtt_ms / 1000 if self.link else 0.0))
        limit = self.settings.max_decisions or max(DECISIONS, DECISIONS_EACH * len(instructions))
        goal = NavigateGoal(tuple(instructions), limit, self.settings.time_limit_s)
        refusal = self.agent.refusal(goal)
        if refusal:
            raise RuntimeError(f"the agent refuses the mission: {refusal}")
        result = self.agent.begin("lockstep", goal).run()
        self.clock.sleep(1.5)  # the last hover; the drone comes to rest
        return result

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _open(self, path: Path) -> BagWriter:
        writer = BagWriter(path)
        writer.open()
        for recorded in PROFILE:
            writer.add_topic(recorded.topic.resolve(), recorded.topic.type, recorded.topic.qos)
        return writer

    def _record(self, topic: Topic, data: Any) -> None:
        now = self.clock.now()
        self.flight_log.add(topic, now, data)
        self._write(topic, data)

    def _write(self, topic: Topic, data: Any) -> None:
        if self._writer:
            self._writer.put(topic.resolve(), round(self.clock.now() * 1e9), encode(data))

    def _draw(self) -> None:
        drawing = self._markers.draw(self.clock.now())
        if drawing is not None:
            self._write(topics.MARKERS, drawing)

    # The bridge's Outputs.

    def on_odometry(self, odometry: Odometry) -> None:
        def deliver() -> None:
            self.drone.on_odometry(odometry)
            self.memory.submit_odometry(odometry)

        self._cross(Direction.UP, _ODOMETRY_BYTES, deliver)
        self._record(topics.ODOM, odometry)
        self._markers.take_odometry(odometry)

    def on_state(self, state: DroneState) -> None:
        self._cross(Direction.UP, _STATE_BYTES, lambda: self.drone.on_state(state))
        self._record(topics.STATE, state)

    def _cross(self, direction: Direction, size: int, deliver: Callable[[], None]) -> None:
        """Over the link, where there is one."""
        if self.link:
            self.link.send(direction, Connection.CONTROL, size, deliver)
        else:
            deliver()

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        self.drone.on_camera(info)
        if self.link:
            self.link.offer_image(image)
        else:
            self._deliver_image(image)
        self.pictures.append(Logged(self.clock.now(), image))
        self._record(topics.FRONT_IMAGE, image)

    def _deliver_image(self, image: CompressedImage) -> None:
        self.memory.submit_frame(replace(image, data=self._grey) if self.settings.blank else image)

    def on_depth(self, camera: str, depth: DepthImage) -> None:
        """The reflex's; the agent's is made when it asks."""

    def on_imu(self, imu: Imu) -> None:
        """Not asked for."""

    def log(self, text: str) -> None:
        """The rows hold what the log would."""

    def _on_watch(self, event: WatchEvent) -> None:
        if event.holds and event.hover:
            self.bridge.gate.stop(f"watch: {event.watch}")
        self._write(topics.WATCH_EVENT, event)

    def _on_active_frames(self, frames: ActiveFrames) -> None:
        self._record(topics.ACTIVE_FRAMES, frames)

    # The agent's Listener, and the commands it sends.

    def _sent(self, command: VelocityCommand) -> None:
        self._record(topics.COMMAND, command)
        self._cross(Direction.DOWN, _COMMAND_BYTES, lambda: self._submit(command))

    def _submit(self, command: VelocityCommand) -> None:
        self.bridge.gate.submit(command)

    def on_goal_state(self, state: GoalState) -> None:
        self._record(topics.GOAL_STATE, state)
        self._markers.take_goal_state(state)

    def on_feedback(self, goal_id: str, feedback: NavigateFeedback) -> None:
        """Not recorded."""

    def on_decision(self, decision: Decision) -> None:
        self._record(topics.DECISION, decision)
        self._markers.take_decision(decision)
        if decision.tool:
            position, heading = self._true_pose()
            arguments = json.loads(decision.arguments)
            taken = TakenDecision(decision.tool, arguments, position, heading, self._simulation.time_s)
            self.decisions.append(taken)

    def _on_status(self) -> None:
        self._record(topics.ENGINE_STATUS, self.memory.status())

    def _on_track(self) -> None:
        if self.decisions:
            self.track.append(TrackPoint(self._simulation.time_s, self._true_pose()[0]))

    def _true_pose(self) -> tuple[tuple[float, float, float], float]:
        return self._simulation.position, math.radians(self._simulation.yaw_deg)


class _Drone:
    """The agent's Drone: the newest of what the bridge put out, and its gate."""

    def __init__(
        self, bridge: Bridge, camera: str, clock: VirtualClock, sent: Callable[[VelocityCommand], None]
    ) -> None:
        self._bridge = bridge
        self._camera_name = camera
        self._clock = clock
        self._sent = sent
        self._odometry: Odometry | None = None
        self._received_s = -math.inf
        self._state: DroneState | None = None
        self._camera: CameraInfo | None = None

    def on_odometry(self, odometry: Odometry) -> None:
        self._received_s = self._clock.now()
        self._odometry = odometry

    def on_state(self, state: DroneState) -> None:
        self._state = state

    def on_camera(self, info: CameraInfo) -> None:
        self._camera = info

    def odometry(self) -> Odometry | None:
        return self._odometry

    def odometry_age_s(self) -> float:
        return self._clock.now() - self._received_s

    def state(self) -> DroneState | None:
        return self._state

    def camera(self) -> CameraInfo | None:
        return self._camera

    def depth(self) -> DepthImage | None:
        depth = self._bridge.vehicle.depth(self._camera_name)
        return DepthImage(depth.stamp_s, depth.pixels)

    def send(self, command: VelocityCommand) -> None:
        self._sent(command)

    def take_off(self) -> Pending[ServiceReply]:
        return _Completed(self._bridge.take_off())


class _Completed(Generic[T]):
    """An answer that is there already."""

    def __init__(self, answer: T) -> None:
        self._answer = answer

    def wait(self, timeout_s: float) -> T | None:
        return self._answer

    def cancel(self) -> None:
        """Too late."""


class _PendingGeneration:
    """A generation: its answer once the memory's thread would have been done with it."""

    def __init__(
        self, goal: GenerateGoal, ticket: Ticket[GenerateResult], clock: VirtualClock, think_s: float
    ) -> None:
        self.goal = goal
        self._ticket = ticket
        self._clock = clock
        self._think_s = think_s
        self._cancelled = False
        self.ready_s: float | None = None

    def wait(self, timeout_s: float) -> GenerateResult | None:
        wait_until(self._clock, lambda: self._is_ready or self._cancelled, timeout_s, WAIT_PERIOD_S)
        if not self._is_ready:
            return None
        think_ms = self._think_s * 1e3
        return replace(self.result, ttft_ms=think_ms, total_ms=think_ms)

    @property
    def result(self) -> GenerateResult:
        """The answer, once `look` has seen that it is there."""
        return self._ticket.result

    @property
    def _is_ready(self) -> bool:
        return self.ready_s is not None and self._clock.now() >= self.ready_s

    def cancel(self) -> None:
        self._cancelled = True
        self._ticket.cancel()

    def look(self, extra_s: float = 0.0) -> bool:
        """Whether the answer has just come into being; it will be given `think_s` and `extra_s` later."""
        if self.ready_s is not None or not self._ticket.done:
            return False
        self.ready_s = self._clock.now() + self._think_s + extra_s
        return True


class _StreamMemory:
    """The agent's memory: a stream, whose thread is busy for as long as its work would take."""

    def __init__(
        self,
        stream: Stream,
        clock: VirtualClock,
        settings: LockStepSettings,
        moments: MomentRecorder | None = None,
    ) -> None:
        self.engine_ms: list[float] = []
        self.submit_frame = stream.submit_frame
        self.submit_odometry = stream.submit_odometry
        self.frame_wanted_s = stream.frame_wanted_s
        self.status = stream.status
        self._stream = stream
        self._clock = clock
        self._settings = settings
        self._moments = moments
        self._busy_until = -math.inf
        self._appended = 0
        self._recalled = 0
        self._generation: _PendingGeneration | None = None

    def recalls(self) -> RecallCounts:
        """What the bank has brought back so far; nothing without a bank."""
        recollection = self._stream.recollection
        return recollection.counts if recollection else RecallCounts()

    def tick(self) -> None:
        while self._clock.now() >= self._busy_until:
            began = time.perf_counter()
            if not self._stream.step():
                return
            appended = self._stream.status().frames_appended
            if self._generation is not None and self._generation.look(self._recall_s()):
                self.engine_ms.append(1e3 * (time.perf_counter() - began))
                self._busy_until = self._generation.ready_s or 0.0
                if self._moments:
                    self._moments.on_answer(
                        self._stream.memory, self._generation.goal, self._generation.result
                    )
            elif appended != self._appended:
                self._busy_until = self._clock.now() + self._settings.append_s
            self._appended = appended

    def _recall_s(self) -> float:
        """Virtual time of the frames that this decision brought back, and of the newest one, which followed them."""
        before, self._recalled = self._recalled, self.recalls().retrievals
        frames = self._recalled - before
        return self._settings.append_s * (frames + 1) if frames else 0.0

    def prime(self, request: PrimeRequest) -> Pending[PrimeResponse]:
        ticket = self._stream.submit_prime(request)
        while not ticket.done:
            self._stream.step()
        return _Completed(ticket.result)

    def generate(self, goal: GenerateGoal) -> Pending[GenerateResult]:
        self._generation = _PendingGeneration(
            goal, self._stream.submit_generate(goal), self._clock, self._settings.think_s
        )
        return self._generation

    def ask(self, request: AskRequest) -> Pending[AskResponse]:
        ticket = self._stream.submit_ask(request)
        self._stream.run_until_idle()
        return _Completed(ticket.result)

    def watch(self, request: WatchRequest) -> Pending[WatchResponse]:
        return _Completed(self._stream.submit_watches(request))

    def alive(self) -> bool:
        return True

    def cache_use(self) -> float:
        return self._stream.status().cache_use

    def frames(self) -> int:
        return self._stream.status().frames_appended


class _ForcedMemory:
    """A memory whose answer at one decision is replaced."""

    def __init__(self, memory: Memory, forced: ForcedCall) -> None:
        self.prime = memory.prime
        self.ask = memory.ask
        self.watch = memory.watch
        self.alive = memory.alive
        self.cache_use = memory.cache_use
        self.frames = memory.frames
        self._memory = memory
        self._forced = forced
        self._decisions = 0

    def generate(self, goal: GenerateGoal) -> Pending[GenerateResult]:
        return _PendingForced(self._memory.generate(goal), self._replaced)

    def _replaced(self, result: GenerateResult) -> GenerateResult:
        if result.status is not GenerateStatus.OK:
            return result  # no decision: the agent asks again
        self._decisions += 1
        forced = self._forced
        if self._decisions != forced.decision:
            return result
        call = json.dumps({"name": forced.tool, "arguments": dict(forced.arguments)})
        return replace(result, text=call, tool_call=call)


class _PendingForced:
    """A generation whose answer goes through `change` once it is there."""

    def __init__(
        self, pending: Pending[GenerateResult], change: Callable[[GenerateResult], GenerateResult]
    ) -> None:
        self.cancel = pending.cancel
        self._pending = pending
        self._change = change

    def wait(self, timeout_s: float) -> GenerateResult | None:
        result = self._pending.wait(timeout_s)
        return None if result is None else self._change(result)


class _PolicyMemory:
    """In place of a memory: policies that choose from the true pose, one for each instruction."""

    def __init__(
        self,
        policies: Sequence[Policy],
        true_pose: Callable[[], tuple[tuple[float, float, float], float]],
        clock: VirtualClock,
        think_s: float,
    ) -> None:
        self.engine_ms: list[float] = []
        self._policies = policies
        self._true_pose = true_pose
        self._clock = clock
        self._think_s = think_s
        self._current = 0

    def tick(self) -> None:
        """Nothing goes on between decisions."""

    def recalls(self) -> RecallCounts:
        """A policy has no memory."""
        return RecallCounts()

    def submit_frame(self, image: CompressedImage) -> None:
        """Not looked at."""

    def submit_odometry(self, odometry: Odometry) -> bool:
        return True

    def frame_wanted_s(self) -> float:
        return 0.0

    def status(self) -> EngineStatus:
        return EngineStatus(self._clock.now())

    def prime(self, request: PrimeRequest) -> Pending[PrimeResponse]:
        return _Completed(PrimeResponse(True, prompt_id="policy"))

    def generate(self, goal: GenerateGoal) -> Pending[GenerateResult]:
        began = time.perf_counter()
        name, arguments = self._policies[self._current](*self._true_pose())
        if name == "finish":
            self._current = min(self._current + 1, len(self._policies) - 1)
        self.engine_ms.append(1e3 * (time.perf_counter() - began))
        ticket: Ticket[GenerateResult] = Ticket()
        ticket.finish(
            GenerateResult(
                GenerateStatus.OK,
                tool_call=json.dumps({"name": name, "arguments": arguments}),
                frame_stamp_s=max(goal.earliest_frame_s, self._clock.now()),
            )
        )
        pending = _PendingGeneration(goal, ticket, self._clock, self._think_s)
        pending.look()
        return pending

    def ask(self, request: AskRequest) -> Pending[AskResponse]:
        """A policy has no words."""
        return _Completed(AskResponse(False, "a policy has no words"))

    def watch(self, request: WatchRequest) -> Pending[WatchResponse]:
        """A policy sees nothing to watch."""
        return _Completed(WatchResponse(True))

    def alive(self) -> bool:
        return True

    def cache_use(self) -> float:
        return 0.0

    def frames(self) -> int:
        return 0
