"""The agent as a ROS node: the Navigate action in front, drone and memory behind."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from action_msgs.msg import GoalStatus
from nav_msgs_ext.action import Generate, Navigate
from nav_msgs_ext.msg import Decision, DroneState, EngineStatus, GoalState, VelocityCommand
from nav_msgs_ext.srv import Prime
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger

from nav_agent import ports, toolset
from nav_agent.action_client import SafeActionClient
from nav_agent.agent import Agent
from nav_agent.flight import FlightSettings
from nav_agent.mission import DecisionRecord, Goal, Mission, MissionSettings, Report, Result
from nav_agent.outcome import Outcome, State
from nav_agent.prompts import load_prompt
from nav_agent.streamer import PERIOD_S
from nav_common import frames, stamps, topics
from nav_common.clock import WallClock
from nav_common.ros import declare, publisher, run, subscription, to_time

FEEDBACK_PERIOD_S = 0.5
PRIME_PERIOD_S = 1.0
PREEMPTION_S = 2.0
_SERVER_CHECK_S = 0.25


class NavAgent(Node):
    """Parameters: see `_settings`; topics, services and actions: nav_common.topics."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("nav_agent", **kwargs)
        self._wall = WallClock()
        namespace: str = declare(
            self, "vehicle_namespace", topics.DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        flight, mission = self._settings()
        self._drone = RosDrone(self, namespace, self._wall)
        self._memory = RosMemory(self, self._wall)
        self._decisions = publisher(self, topics.DECISION, namespace)
        self._goal_states = publisher(self, topics.GOAL_STATE, namespace)
        self.agent = Agent(
            self._drone,
            self._memory,
            self._wall,
            self._system_prompt,
            self,
            flight=flight,
            mission=mission,
            dry_run_interval_s=self._dry_run_interval_s,
        )
        self._lock = threading.Lock()
        self._handles: dict[str, Any] = {}
        self._missions: dict[str, Mission] = {}
        self._cancel_asked: set[str] = set()
        """Goals that their client wants cancelled; perhaps before `_on_accepted` knows of them."""
        self._told: tuple[str, State] | None = None
        self._priming: ports.Pending[ports.Primed] | None = None
        self._stopping = threading.Event()
        self._streaming = threading.Thread(target=self._stream, name="streamer", daemon=True)
        self._streaming.start()
        self._server = ActionServer(
            self,
            Navigate,
            topics.NAVIGATE_ACTION,
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
            callback_group=ReentrantCallbackGroup(),
        )
        timers = MutuallyExclusiveCallbackGroup()
        self.create_timer(FEEDBACK_PERIOD_S, self._feed_back, callback_group=timers)
        self._prime_timer = self.create_timer(PRIME_PERIOD_S, self._prime_early, callback_group=timers)

    def destroy_node(self) -> None:
        """Ends the goal under way, hovers, falls silent."""
        with self._lock:
            missions = list(self._missions.values())
        for mission in missions:
            self.agent.cancel(mission, "the agent is shut down")
        ended = self._wall.now() + 1.0
        while self._missions and self._wall.now() < ended:
            self._wall.sleep(0.01)
        self._stopping.set()
        self._streaming.join(timeout=1.0)
        self._server.destroy()
        super().destroy_node()

    # Parameters.

    def _settings(self) -> tuple[FlightSettings, MissionSettings]:
        def number(name: str, default: float, what: str, low: float, high: float) -> float:
            return float(declare(self, name, default, what, minimum=low, maximum=high))

        flight, mission = FlightSettings(), MissionSettings()
        patience_s = number("patience_s", mission.patience_s, "longest outage a goal outlives, s", 0.0, 600.0)
        self._max_decisions = int(
            declare(
                self, "max_decisions", 40, "decisions a goal, if it does not say", minimum=1, maximum=10000
            )
        )
        self._time_limit_s = number("time_limit_s", 600.0, "time a goal, if it does not say, s", 1.0, 86400.0)
        self._system_prompt = load_prompt(
            declare(self, "prompt", "pilot", "system prompt: a file in prompts/")
        )
        interval_s = number("dry_run_interval_s", 2.0, "time a call takes in a dry run, s", 0.1, 60.0)
        dry_run = declare(
            self, "dry_run", False, "fly and send nothing, only note what would be done: for replays"
        )
        self._dry_run_interval_s = interval_s if dry_run else None
        return (
            FlightSettings(
                speed_m_s=number("speed", flight.speed_m_s, "level speed, m/s", 0.1, 10.0),
                vertical_speed_m_s=number(
                    "vertical_speed", flight.vertical_speed_m_s, "climb and descent, m/s", 0.1, 5.0
                ),
                yaw_rate_rad_s=number("yaw_rate", flight.yaw_rate_rad_s, "turning, rad/s", 0.1, 3.0),
                still_m_s=number(
                    "still_speed", flight.still_m_s, "slower than this is standing still, m/s", 0.01, 2.0
                ),
                look_s=number(
                    "look_time_s", flight.look_s, "hover at each quarter of look_around, s", 0.0, 10.0
                ),
                standoff_m=number(
                    "standoff",
                    flight.standoff_m,
                    "distance fly_towards keeps from what it points at, m",
                    0.0,
                    20.0,
                ),
                lowest_m=number(
                    "lowest_altitude", flight.lowest_m, "no tool flies lower above the start, m", 0.0, 50.0
                ),
                patience_s=patience_s,
            ),
            MissionSettings(
                decision_deadline_s=number(
                    "decision_deadline_s", mission.decision_deadline_s, "longest generation, s", 0.1, 300.0
                ),
                patience_s=patience_s,
                max_new_tokens=int(
                    declare(
                        self,
                        "max_new_tokens",
                        0,
                        "tokens sampled a decision; 0: the server's default",
                        minimum=0,
                        maximum=4096,
                    )
                ),
                temperature=number(
                    "temperature", mission.temperature, "of the decision; 0: greedy", 0.0, 5.0
                ),
            ),
        )

    # The action.

    def _on_goal(self, request: Navigate.Goal) -> GoalResponse:
        reason = self.agent.refusal(self._goal("", request))
        if not reason and not (math.isfinite(request.time_limit_s) and request.time_limit_s >= 0):
            reason = f"time_limit_s is {request.time_limit_s}: 0 or a positive number of seconds"
        if not reason:
            return GoalResponse.ACCEPT
        self.get_logger().warning(f"goal rejected: {reason}")
        # The action's protocol has no place for words: they go out here, without a goal's id.
        instruction = request.instructions[0] if request.instructions else ""
        self._publish_state(
            Report("", State.ENDED, instruction, outcome=Outcome.ERROR, reason=f"rejected: {reason}")
        )
        return GoalResponse.REJECT

    def _on_accepted(self, handle: Any) -> None:
        goal_id = _hex(handle)
        mission = self.agent.begin(self._goal(goal_id, handle.request))
        with self._lock:
            self._handles[goal_id] = handle
            self._missions[goal_id] = mission
            cancelled = goal_id in self._cancel_asked
        if cancelled:
            self.agent.cancel(mission)
        self.get_logger().info(f"goal {goal_id[:8]}: {' | '.join(mission.goal.instructions)}")
        handle.execute()

    def _on_cancel(self, handle: Any) -> CancelResponse:
        goal_id = _hex(handle)
        with self._lock:
            mission = self._missions.get(goal_id)
            self._cancel_asked.add(goal_id)
        if mission is not None:
            self.agent.cancel(mission)
        return CancelResponse.ACCEPT

    def _execute(self, handle: Any) -> Navigate.Result:
        goal_id = _hex(handle)
        # The goal before this one, preempted, has the time of a loop to end: goals never overlap in a recording.
        end = self._wall.now() + PREEMPTION_S
        while next(iter(self._missions)) != goal_id and self._wall.now() < end:
            self._wall.sleep(0.005)
        try:
            result = self._missions[goal_id].run()
            self.get_logger().info(f"goal {goal_id[:8]} ended: {result.outcome.name}, {result.reason}")
            self._conclude(handle, result)
        finally:
            with self._lock:
                self._missions.pop(goal_id, None)
                self._handles.pop(goal_id, None)
                self._cancel_asked.discard(goal_id)
        return Navigate.Result(
            outcome=int(result.outcome),
            reason=result.reason,
            decisions=result.decisions,
            distance_m=float(result.distance_m),
            collisions=result.collisions,
        )

    def _conclude(self, handle: Any, result: Result) -> None:
        if _hex(handle) in self._cancel_asked:
            # The callback that accepted the cancel may not have returned yet, and the handle changes only then.
            end = self._wall.now() + 1.0
            while not handle.is_cancel_requested and handle.is_active and self._wall.now() < end:
                self._wall.sleep(0.001)
        if handle.is_cancel_requested:
            handle.canceled()
        elif result.outcome is Outcome.FINISHED:
            handle.succeed()
        elif handle.is_active:
            handle.abort()

    def _goal(self, goal_id: str, request: Navigate.Goal) -> Goal:
        return Goal(
            goal_id=goal_id,
            instructions=tuple(" ".join(text.split()) for text in request.instructions),
            max_decisions=request.max_decisions or self._max_decisions,
            time_limit_s=request.time_limit_s or self._time_limit_s,
        )

    # What the mission tells (Listener).

    def on_report(self, report: Report) -> None:
        self._publish_state(report)
        self._publish_feedback(report)

    def on_decision(self, record: DecisionRecord) -> None:
        answer = record.answer
        self._decisions.publish(
            Decision(
                stamp=to_time(record.done_s),
                ask_stamp=to_time(record.ask_s),
                frame_stamp=to_time(answer.frame_stamp),
                barrier_stamp=to_time(record.barrier_stamp),
                goal_id=record.goal_id,
                instruction=record.instruction,
                step=record.step,
                tool=record.tool,
                arguments=json.dumps(record.arguments, ensure_ascii=True) if record.tool else "",
                previous_result=record.previous_result,
                # A prompt that is unknown is an error like others here; the rest are numbered alike.
                status=min(int(answer.status), Decision.STATUS_ERROR),
                message=answer.message,
                barrier_ms=float(answer.barrier_ms),
                ttft_ms=float(answer.ttft_ms),
                generate_ms=float(answer.total_ms),
                framework_ms=float(record.framework_ms),
                total_ms=1e3 * (record.done_s - record.ask_s),
                tokens_in=answer.tokens_in,
                tokens_sampled=answer.tokens_sampled,
                tokens_forced=answer.tokens_forced,
                cached_tokens=answer.cached_tokens,
                hovering=record.hovering,
            )
        )

    def _publish_state(self, report: Report) -> None:
        if report.state is not State.ENDED and self._told == (report.goal_id, report.state):
            return
        self._told = (report.goal_id, report.state)
        self._goal_states.publish(
            GoalState(
                stamp=to_time(self._wall.now()),
                goal_id=report.goal_id,
                instruction=report.instruction,
                state=int(report.state),
                decisions=report.decisions,
                outcome=int(report.outcome or 0),
                reason=report.reason or report.waiting_for,
            )
        )

    def _publish_feedback(self, report: Report) -> None:
        handle = self._handles.get(report.goal_id)
        if handle is None or not handle.is_active:
            return
        age = self._drone.odometry_age()
        handle.publish_feedback(
            Navigate.Feedback(
                state=int(report.state),
                decisions=report.decisions,
                instruction_index=report.instruction_index,
                last_tool_call=report.last_tool_call,
                last_result=report.last_result,
                odometry_age_s=age if math.isfinite(age) else -1.0,
                frame_age_s=float(report.frame_age_s),
                cache_use=float(report.cache_use),
            )
        )

    # Timers and threads.

    def _feed_back(self) -> None:
        with self._lock:
            missions = list(self._missions.values())
        for mission in missions:
            self._publish_feedback(mission.report)

    def _prime_early(self) -> None:
        """The memory begins with the prompt: prime it as soon as it is there, not only when the first goal comes."""
        if self._priming is None:
            self._priming = self._memory.prime(self._system_prompt, toolset.tools_json())
        primed = self._priming.poll()
        if primed is None:
            return
        self._priming = None
        if primed.prompt_id or primed.refused:
            self._prime_timer.cancel()
            if primed.refused:
                self.get_logger().error(f"perception refuses the prompt: {primed.message}")

    def _stream(self) -> None:
        due = self._wall.now()
        while not self._stopping.is_set():
            self.agent.streamer.tick()
            due = max(due + PERIOD_S, self._wall.now())
            self._stopping.wait(due - self._wall.now())


class RosDrone:
    """ports.Drone over the vehicle's topics."""

    def __init__(self, node: Node, namespace: str, clock: WallClock) -> None:
        self._clock = clock
        self._odometry: ports.Odometry | None = None
        self._arrived_s = -math.inf
        self._status: ports.DroneStatus | None = None
        self._camera: ports.Camera | None = None
        self._depth_message: Image | None = None
        self._commands = publisher(node, topics.COMMAND, namespace)
        group = MutuallyExclusiveCallbackGroup()
        pictures = MutuallyExclusiveCallbackGroup()
        for topic, callback, where in (
            (topics.ODOM, self._on_odometry, group),
            (topics.STATE, self._on_state, group),
            (topics.FRONT_INFO, self._on_camera_info, pictures),
            (topics.FRONT_DEPTH, self._on_depth, pictures),
        ):
            subscription(node, topic, namespace, callback, callback_group=where)
        self._take_off = node.create_client(
            Trigger,
            topics.resolve(topics.TAKEOFF_SERVICE, namespace),
            callback_group=ReentrantCallbackGroup(),
        )

    def odometry(self) -> ports.Odometry | None:
        return self._odometry

    def odometry_age(self) -> float:
        return self._clock.now() - self._arrived_s

    def status(self) -> ports.DroneStatus | None:
        return self._status

    def camera(self) -> ports.Camera | None:
        return self._camera

    def depth(self) -> ports.Depth | None:
        message = self._depth_message
        if message is None or message.encoding != "32FC1" or message.step != 4 * message.width:
            return None
        if len(message.data) != message.step * message.height:
            return None
        order = ">f4" if message.is_bigendian else "<f4"
        metres = np.frombuffer(message.data, order).reshape(message.height, message.width)
        return ports.Depth(stamps.to_seconds(message.header.stamp), metres)

    def send(self, command: ports.Command) -> None:
        message = VelocityCommand(
            stamp=to_time(command.stamp), epoch=command.epoch, sequence=command.sequence
        )
        velocity = command.velocity
        message.twist.linear.x = float(velocity.forward)
        message.twist.linear.y = float(velocity.left)
        message.twist.linear.z = float(velocity.up)
        message.twist.angular.z = float(velocity.yaw_rate)
        self._commands.publish(message)

    def take_off(self) -> ports.Pending[ports.Reply]:
        if not self._take_off.service_is_ready():
            return _Known(
                ports.Reply(False, f"no service {self._take_off.srv_name}: is airsim_bridge running?")
            )
        return _Called(
            self._take_off.call_async(Trigger.Request()), lambda r: ports.Reply(r.success, r.message)
        )

    def _on_odometry(self, message: Any) -> None:
        p, q = message.pose.pose.position, message.pose.pose.orientation
        v, w = message.twist.twist.linear, message.twist.twist.angular
        values = (p.x, p.y, p.z, q.w, q.x, q.y, q.z, v.x, v.y, v.z, w.z)
        stamp = stamps.to_seconds(message.header.stamp)
        if not all(map(math.isfinite, values)):
            return
        previous = self._odometry
        # Out of order on the way; a bridge on another clock (restarted machine) starts anew.
        if previous is not None and previous.stamp - 1.0 < stamp <= previous.stamp:
            return
        yaw = frames.yaw(frames.Quaternion(q.w, q.x, q.y, q.z))
        self._odometry = ports.Odometry(stamp, p.x, p.y, p.z, yaw, v.x, v.y, v.z, w.z)
        self._arrived_s = self._clock.now()

    def _on_state(self, message: DroneState) -> None:
        self._status = ports.DroneStatus(
            stamp=stamps.to_seconds(message.stamp),
            flying=ports.Flying(message.flying_mode),
            gate=ports.Gate(message.gate_mode),
            gate_reason=message.gate_reason,
            epoch=message.epoch,
            connected=message.connected,
            fault=message.fault,
            api_control=message.api_control,
            collision_count=message.collision_count,
            last_collision_object=message.last_collision_object,
            reflex_interventions=message.reflex_interventions,
            reflex_reason=message.reflex_reason,
        )

    def _on_camera_info(self, message: CameraInfo) -> None:
        width, height, k = message.width, message.height, message.k
        if width and height and k[0] > 0 and k[4] > 0:
            self._camera = ports.Camera(k[0] / width, k[4] / height, k[2] / width, k[5] / height)

    def _on_depth(self, message: Image) -> None:
        self._depth_message = message


class RosMemory:
    """ports.Memory over Prime and Generate."""

    def __init__(self, node: Node, clock: WallClock) -> None:
        self._clock = clock
        self._cache_use = 0.0
        self._publishers_alive = 0
        group = ReentrantCallbackGroup()
        self._prime = node.create_client(Prime, topics.PRIME_SERVICE, callback_group=group)
        self._generate = SafeActionClient(node, Generate, topics.GENERATE_ACTION, callback_group=group)
        subscription(
            node,
            topics.ENGINE_STATUS,
            "",
            self._on_status,
            callback_group=group,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness),
        )

    def prime(self, system_prompt: str, tools_json: str) -> ports.Pending[ports.Primed]:
        if not self._prime.service_is_ready():
            return _Known(ports.Primed("", f"no service {topics.PRIME_SERVICE}: is vlm_perception running?"))
        request = Prime.Request(system_prompt=system_prompt, tools=tools_json)
        return _Called(
            self._prime.call_async(request),
            lambda r: ports.Primed(r.prompt_id if r.success else "", r.message, refused=not r.success),
        )

    def generate(self, ask: ports.Ask) -> ports.Pending[ports.Answer]:
        if not self._generate.server_is_ready():
            return _Known(_no_server())
        goal = Generate.Goal(
            prompt_id=ask.prompt_id,
            instruction=ask.instruction,
            recent_calls=list(ask.recent_turns),
            max_new_tokens=ask.max_new_tokens,
            temperature=float(ask.temperature),
            earliest_frame=to_time(ask.earliest_frame),
            deadline_s=float(ask.deadline_s),
        )
        return _Generation(self._generate, goal, self._clock)

    def alive(self) -> bool:
        return self._publishers_alive > 0

    def cache_use(self) -> float:
        return self._cache_use

    def _on_liveliness(self, event: Any) -> None:
        self._publishers_alive = event.alive_count

    def _on_status(self, message: EngineStatus) -> None:
        self._cache_use = message.cached_tokens / message.budget_tokens if message.budget_tokens else 0.0


class _Known:
    """A pending answer that is there already."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def poll(self) -> Any:
        return self._answer

    def cancel(self) -> None:
        """Nothing is under way."""


class _Called:
    """A service call under way. Services cannot be cancelled: the answer is merely no longer waited for."""

    def __init__(self, future: Any, convert: Callable[[Any], Any]) -> None:
        self._future = future
        self._convert = convert

    def poll(self) -> Any:
        return self._convert(self._future.result()) if self._future.done() else None

    def cancel(self) -> None:
        self._future.cancel()


class _Generation:
    """A Generate goal under way. A cancel that comes before its acceptance follows it."""

    def __init__(self, client: Any, goal: Generate.Goal, clock: WallClock) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._handle: Any = None
        self._cancelled = False
        self._answer: ports.Answer | None = None
        self._looked_s = clock.now()
        client.send_goal_async(goal).add_done_callback(self._on_response)

    def poll(self) -> ports.Answer | None:
        if self._answer is None:
            now = self._clock.now()
            if now - self._looked_s > _SERVER_CHECK_S:
                self._looked_s = now
                if not self._client.server_is_ready():
                    return _no_server()
        return self._answer

    def cancel(self) -> None:
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            handle = self._handle
        if handle is not None and self._answer is None:
            handle.cancel_goal_async()

    def _on_response(self, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            self._answer = ports.Answer(ports.AnswerStatus.ERROR, "vlm_perception rejected the ask")
            return
        with self._lock:
            self._handle = handle
            cancelled = self._cancelled
        if cancelled:
            handle.cancel_goal_async()
        handle.get_result_async().add_done_callback(self._on_result)

    def _on_result(self, future: Any) -> None:
        response = future.result()
        if response.status == GoalStatus.STATUS_UNKNOWN:
            self._answer = ports.Answer(
                ports.AnswerStatus.ERROR, "vlm_perception lost the ask: was it restarted?"
            )
            return
        r = response.result
        self._answer = ports.Answer(
            status=ports.AnswerStatus(r.status),
            message=r.message,
            text=r.text,
            tool_call=r.tool_call,
            frame_stamp=stamps.to_seconds(r.frame_stamp),
            memory_resets=r.memory_resets,
            barrier_ms=r.barrier_ms,
            ttft_ms=r.ttft_ms,
            total_ms=r.total_ms,
            tokens_in=r.tokens_in,
            tokens_sampled=r.tokens_sampled,
            tokens_forced=r.tokens_forced,
            cached_tokens=r.cached_tokens,
        )


def _no_server() -> ports.Answer:
    return ports.Answer(
        ports.AnswerStatus.ERROR, f"no action {topics.GENERATE_ACTION}: is vlm_perception running?"
    )


def _hex(handle: Any) -> str:
    return bytes(handle.goal_id.uuid).hex()


def main() -> int:
    return run(NavAgent, threads=6)
