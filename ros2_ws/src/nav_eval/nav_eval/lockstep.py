"""Lock-step: simulator, bridge, gate, agent and streaming memory in one process on one virtual clock.

Nothing here flies: it only puts the cores together as the ROS graph does, so that a mission runs faster than real time
and the same way each time. What takes time in reality is given time here: a decision `think_s`, a frame `append_s` of
the memory's thread, during which the drone hovers and the camera goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np

from airsim_bridge.bridge import Bridge, CameraSettings
from airsim_bridge.bridge import Settings as BridgeSettings
from airsim_bridge.reflex import DepthReflex
from airsim_bridge.vehicle import Vehicle
from airsim_sim.simulation import START_TIME_NS, Simulation
from airsim_sim.world import World
from nav_agent import ports
from nav_agent.agent import Agent
from nav_agent.mission import DecisionRecord, Goal, MissionSettings, Report, Result
from nav_agent.prompts import load_prompt
from nav_agent.streamer import PERIOD_S as STREAM_PERIOD_S
from nav_common import topics
from nav_common.bag_writer import BagWriter
from nav_common.clock import VirtualClock
from nav_common.conversions import encode
from nav_common.data import (
    CameraInfo,
    CompressedImage,
    Decision,
    DepthImage,
    DroneState,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    GoalState,
    Imu,
    NavigateState,
    Odometry,
    Outcome,
    PrimeRequest,
    Twist,
    VelocityCommand,
)
from nav_common.topics import Topic
from nav_eval.flight_log import FlightLog
from nav_eval.profile import PROFILE
from vlm_perception.engine import QwenModel
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream
from vlm_perception.tickets import Ticket

T = TypeVar("T")

SIMULATION_STEP_S = 0.005  # the simulator's own
GATE_PERIOD_S = 0.05
MEMORY_PERIOD_S = 0.01
ODOMETRY_PERIOD_S = 1 / 30
STATUS_PERIOD_S = 1.0


@dataclass(frozen=True)
class LockStepSettings:
    """How the composition is run.

    Attributes:
        think_s: virtual time that a generation takes once its barrier frame is in.
        append_s: virtual time that appending a frame keeps the memory's thread busy.
        image_rate_hz: 4 gives the memory its frame each 0.5 s and a barrier frame within 0.25 s; the graph's 10 would
            render twice as long for pictures that nobody looks at.
        blank: the memory gets grey pictures instead of the camera's.
        reflex: whether the bridge slows down before obstacles.
    """

    think_s: float = 0.3
    append_s: float = 0.05
    image_rate_hz: float = 4.0
    max_decisions: int = 40
    time_limit_s: float = 300.0
    blank: bool = False
    reflex: bool = False


@dataclass(frozen=True)
class FlownMission:
    """A mission that was flown: its result, its log for the judge, and what only the simulator knows.

    `goal_distance_m`: horizontal, from the end of the flight to the goal's centre. `contacts`: objects touched.
    """

    result: Result
    log: FlightLog
    goal_distance_m: float
    contacts: tuple[str, ...]
    virtual_s: float
    calls: tuple[str, ...]


def load_model(folder: Path | str) -> tuple[QwenModel, ServingForm]:
    """A model with its serving form, as the perception node loads them."""
    form = ServingForm.load(folder)
    return QwenModel.load(folder, size=(form.width, form.height)), form


def fly(
    world: World,
    instruction: str,
    model: QwenModel,
    form: ServingForm,
    settings: LockStepSettings | None = None,
    *,
    record: Path | None = None,
    on_decision: Callable[[DecisionRecord], None] = lambda decision: None,
) -> FlownMission:
    """Fly one mission from the start of `world` to an outcome, and close everything."""
    settings = settings or LockStepSettings()
    simulation = Simulation(world)
    composition = _Composition(simulation, model, form, settings, record, on_decision)
    try:
        result = composition.fly(instruction)
        north, west, _ = simulation.position
        goal = world.goal.position
        return FlownMission(
            result,
            composition.flight_log,
            math.hypot(north - goal[0], west - goal[1]),
            tuple(contact.object_name for contact in simulation.collisions),
            simulation.time_s,
            tuple(composition.calls),
        )
    finally:
        composition.close()
        simulation.close()


class _Composition:
    """The cores of one mission, wired. Implements what each of them wants of the others."""

    def __init__(
        self,
        simulation: Simulation,
        model: QwenModel,
        form: ServingForm,
        settings: LockStepSettings,
        record: Path | None,
        on_decision: Callable[[DecisionRecord], None],
    ) -> None:
        self.settings = settings
        self.clock = VirtualClock(START_TIME_NS * 1e-9)
        self.calls: list[str] = []
        self._on_decision = on_decision
        self.flight_log = FlightLog(record or Path("lockstep"), topics.DEFAULT_VEHICLE_NAMESPACE)
        self._writer = self._open(record) if record else None
        self._grey = cv2.imencode(".jpg", np.full((240, 320, 3), 128, np.uint8))[1].tobytes()

        # Without the reflex only fly_towards looks at depth, and then it is rendered on demand.
        camera = CameraSettings(
            image_rate_hz=settings.image_rate_hz, depth_rate_hz=5.0 if settings.reflex else 0.0
        )
        self.bridge = Bridge(
            Vehicle(simulation, self.clock),
            self.clock,
            self,
            BridgeSettings(cameras=(camera,), odom_rate_hz=1 / ODOMETRY_PERIOD_S, check_colour_order=False),
            reflex=DepthReflex() if settings.reflex else None,
        )
        self.stream = Stream(model, form, self.clock)
        self.drone = _Drone(self.bridge, camera.name, self.clock, self._sent)
        self.memory = _Memory(self.stream, self.clock, settings)
        self.agent = Agent(
            self.drone,
            self.memory,
            self.clock,
            form.system_prompt or load_prompt(),
            self,
            mission=MissionSettings(),
        )
        every = self.clock.call_every
        every(SIMULATION_STEP_S, simulation.step)
        every(ODOMETRY_PERIOD_S, self.bridge.poll_state)
        every(1 / camera.rate_hz, lambda: self.bridge.grab(camera.topic))
        every(GATE_PERIOD_S, self.bridge.tick_gate)
        every(STREAM_PERIOD_S, self.agent.streamer.tick)
        every(MEMORY_PERIOD_S, self.memory.tick)
        every(STATUS_PERIOD_S, self._on_status)

    def fly(self, instruction: str) -> Result:
        self.clock.sleep(0.5)  # the bridge connects, the first pictures come
        goal = Goal("lockstep", (instruction,), self.settings.max_decisions, self.settings.time_limit_s)
        refusal = self.agent.refusal(goal)
        if refusal:
            raise RuntimeError(f"the agent refuses the mission: {refusal}")
        result = self.agent.begin(goal).run()
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
        if self._writer:
            self._writer.put(topic.resolve(), round(now * 1e9), encode(data))

    # The bridge's Outputs.

    def on_odometry(self, odometry: Odometry) -> None:
        self.drone.on_odometry(odometry)
        self.stream.submit_odometry(odometry)
        self._record(topics.ODOM, odometry)

    def on_state(self, state: DroneState) -> None:
        self.drone.on_state(state)
        self._record(topics.STATE, state)

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        self.drone.on_camera(info)
        self.stream.submit_frame(replace(image, data=self._grey) if self.settings.blank else image)
        self._record(topics.FRONT_IMAGE, image)

    def on_depth(self, camera: str, depth: DepthImage) -> None:
        """The reflex's; the agent's is made when it asks."""

    def on_imu(self, imu: Imu) -> None:
        """Not asked for."""

    def log(self, text: str) -> None:
        """The rows hold what the log would."""

    # The agent's Listener, and the commands it sends.

    def _sent(self, command: VelocityCommand) -> None:
        self._record(topics.COMMAND, command)

    def on_report(self, report: Report) -> None:
        last = self.flight_log.goal_states[-1].data if self.flight_log.goal_states else None
        state = NavigateState(report.state)
        if last is not None and last.state is state is not NavigateState.ENDED:
            return
        self._record(
            topics.GOAL_STATE,
            GoalState(
                self.clock.now(),
                report.goal_id,
                report.instruction,
                state,
                report.decisions,
                Outcome(report.outcome) if report.outcome is not None else Outcome.FINISHED,
                report.reason or report.waiting_for,
            ),
        )

    def on_decision(self, record: DecisionRecord) -> None:
        answer = record.answer
        decision = Decision(
            stamp_s=record.done_s,
            ask_stamp_s=record.ask_s,
            frame_stamp_s=answer.frame_stamp,
            barrier_stamp_s=record.barrier_stamp,
            goal_id=record.goal_id,
            instruction=record.instruction,
            step=record.step,
            tool=record.tool,
            arguments=json.dumps(record.arguments) if record.tool else "",
            previous_result=record.previous_result,
            status=GenerateStatus(answer.status),
            message=answer.message,
            barrier_ms=answer.barrier_ms,
            ttft_ms=answer.ttft_ms,
            generate_ms=answer.total_ms,
            framework_ms=record.framework_ms,
            total_ms=(record.done_s - record.ask_s) * 1e3,
            tokens_in=answer.tokens_in,
            tokens_sampled=answer.tokens_sampled,
            tokens_forced=answer.tokens_forced,
            cached_tokens=answer.cached_tokens,
            hovering=record.hovering,
        )
        self._record(topics.DECISION, decision)
        arguments = ", ".join(f"{name}={value}" for name, value in record.arguments.items())
        self.calls.append(f"{record.tool}({arguments})")
        self._on_decision(record)

    def _on_status(self) -> None:
        self._record(topics.ENGINE_STATUS, self.stream.status())


class _Drone:
    """The agent's Drone: the newest of what the bridge put out, and its gate."""

    def __init__(
        self, bridge: Bridge, camera: str, clock: VirtualClock, sent: Callable[[VelocityCommand], None]
    ) -> None:
        self._bridge = bridge
        self._camera_name = camera
        self._clock = clock
        self._sent = sent
        self._odometry: ports.Odometry | None = None
        self._received_s = -math.inf
        self._status: ports.DroneStatus | None = None
        self._camera: ports.Camera | None = None

    def on_odometry(self, odometry: Odometry) -> None:
        self._received_s = self._clock.now()
        self._odometry = ports.Odometry(
            odometry.stamp_s, *odometry.position, odometry.yaw, *odometry.velocity, odometry.yaw_rate
        )

    def on_state(self, state: DroneState) -> None:
        self._status = ports.DroneStatus(
            stamp=state.stamp_s,
            flying=ports.Flying(state.flying_mode),
            gate=ports.Gate(state.gate_mode),
            api_control=state.api_control,
            gate_reason=state.gate_reason,
            epoch=state.epoch,
            connected=state.connected,
            fault=state.fault,
            collision_count=state.collision_count,
            last_collision_object=state.last_collision_object,
            reflex_interventions=state.reflex_interventions,
            reflex_reason=state.reflex_reason,
        )

    def on_camera(self, info: CameraInfo) -> None:
        self._camera = ports.Camera(info.fx / info.width, info.fy / info.height)

    def odometry(self) -> ports.Odometry | None:
        return self._odometry

    def odometry_age(self) -> float:
        return self._clock.now() - self._received_s

    def status(self) -> ports.DroneStatus | None:
        return self._status

    def camera(self) -> ports.Camera | None:
        return self._camera

    def depth(self) -> ports.Depth | None:
        depth = self._bridge.vehicle.depth(self._camera_name)
        return ports.Depth(depth.stamp_s, depth.pixels)

    def send(self, command: ports.Command) -> None:
        v = command.velocity
        twist = Twist.body(v.forward, v.left, v.up, v.yaw_rate)
        sent = VelocityCommand(command.stamp, command.epoch, command.sequence, twist)
        self._sent(sent)
        self._bridge.gate.submit(sent)

    def take_off(self) -> ports.Pending[ports.Reply]:
        reply = self._bridge.take_off()
        return _Completed(ports.Reply(reply.success, reply.message))


class _Completed(Generic[T]):
    """An answer that is there already."""

    def __init__(self, answer: T) -> None:
        self._answer = answer

    def poll(self) -> T | None:
        return self._answer

    def cancel(self) -> None:
        """Too late."""


class _PendingGeneration:
    """A generation: its answer once the memory's thread would have been done with it."""

    def __init__(self, ticket: Ticket[GenerateResult], clock: VirtualClock, think_s: float) -> None:
        self._ticket = ticket
        self._clock = clock
        self._think_s = think_s
        self.ready_s: float | None = None

    def poll(self) -> ports.Answer | None:
        if self.ready_s is None or self._clock.now() < self.ready_s:
            return None
        values = dict(vars(self._ticket.result))
        status = ports.AnswerStatus(values.pop("status"))
        values["frame_stamp"] = values.pop("frame_stamp_s")
        return replace(
            ports.Answer(status, **values), ttft_ms=self._think_s * 1e3, total_ms=self._think_s * 1e3
        )

    def cancel(self) -> None:
        self._ticket.cancel()

    def look(self) -> bool:
        """Whether the answer has just come into being; it will be given `think_s` later."""
        if self.ready_s is not None or not self._ticket.done:
            return False
        self.ready_s = self._clock.now() + self._think_s
        return True


class _Memory:
    """The agent's memory: a stream, whose thread is busy for as long as its work would take."""

    def __init__(self, stream: Stream, clock: VirtualClock, settings: LockStepSettings) -> None:
        self._stream = stream
        self._clock = clock
        self._settings = settings
        self._busy_until = -math.inf
        self._appended = 0
        self._generation: _PendingGeneration | None = None

    def tick(self) -> None:
        while self._clock.now() >= self._busy_until:
            if not self._stream.step():
                return
            appended = self._stream.status().frames_appended
            if self._generation is not None and self._generation.look():
                self._busy_until = self._clock.now() + self._settings.think_s
            elif appended != self._appended:
                self._busy_until = self._clock.now() + self._settings.append_s
            self._appended = appended

    def prime(self, system_prompt: str, tools_json: str) -> ports.Pending[ports.Primed]:
        ticket = self._stream.submit_prime(PrimeRequest(system_prompt, tools_json))
        while not ticket.done:
            self._stream.step()
        primed = ticket.result
        return _Completed(ports.Primed(primed.prompt_id, primed.message, refused=not primed.success))

    def generate(self, ask: ports.Ask) -> ports.Pending[ports.Answer]:
        goal = GenerateGoal(
            ask.prompt_id,
            ask.instruction,
            tuple(ask.recent_turns),
            ask.max_new_tokens,
            ask.temperature,
            ask.earliest_frame,
            ask.deadline_s,
        )
        self._generation = _PendingGeneration(
            self._stream.submit_generate(goal), self._clock, self._settings.think_s
        )
        return self._generation

    def alive(self) -> bool:
        return True

    def cache_use(self) -> float:
        status = self._stream.status()
        return status.cached_tokens / status.budget_tokens
