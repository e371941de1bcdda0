"""The agent as a ROS node: the Navigate action in front, drone and memory behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from nav_msgs_ext.action import Navigate
from rclpy.action.server import CancelResponse, GoalResponse
from rclpy.node import Node

from nav_agent import toolset
from nav_agent.actions import ThreadedActionServer
from nav_agent.agent import Agent
from nav_agent.markers import PERIOD_S as DRAWING_PERIOD_S
from nav_agent.markers import FlightMarkers
from nav_agent.mission import PRIME_ANSWER_S, Mission
from nav_agent.parameters import Start, declare_all
from nav_agent.ports import MemoryUnavailable, Pending
from nav_agent.ros_drone import RosDrone
from nav_agent.ros_memory import RosMemory
from nav_common import contract, topics
from nav_common.clock import WallClock
from nav_common.data import (
    Decision,
    GoalState,
    NavigateFeedback,
    NavigateGoal,
    NavigateResult,
    NavigateState,
    Outcome,
    PrimeRequest,
    PrimeResponse,
)
from nav_common.diagnostics import Health, Level
from nav_common.ros import from_ros, publish_diagnostics, publisher, run, to_ros

FEEDBACK_PERIOD_S = 0.5
PRIME_PERIOD_S = 1.0
PREEMPTION_S = 2.0
_SHUTDOWN_S = 1.0


class NavAgent(Node):
    """Parameters: nav_agent.parameters; topics, services and actions: nav_common.topics.

    Threads: the executor's one; "streamer", which sends commands; one for each goal.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("nav_agent", **kwargs)
        self._wall = WallClock()
        start, settings = declare_all(self)
        self._start: Start = start
        self._drone = RosDrone(self, start.vehicle_namespace, self._wall)
        self._memory = RosMemory(self, self._wall)
        self._decisions = publisher(self, topics.DECISION, start.vehicle_namespace)
        self._goal_states = publisher(self, topics.GOAL_STATE, start.vehicle_namespace)
        self._drawings = publisher(self, topics.MARKERS, start.vehicle_namespace)
        self._markers = FlightMarkers()
        self._drawing = threading.Lock()
        self.agent = Agent(
            self._drone,
            self._memory,
            self._wall,
            start.system_prompt,
            self,
            settings.make(),
            dry_run_interval_s=start.dry_run_interval_s,
        )
        settings.on_change(lambda changed: setattr(self.agent, "settings", changed))
        self._goals_changed = threading.Condition()
        self._handles: dict[str, Any] = {}
        self._missions: dict[str, Mission] = {}
        self._cancel_requested: set[str] = set()
        """Goals that their client wants cancelled; perhaps before `_on_accepted` knows of them."""
        self._priming: Pending[PrimeResponse] | None = None
        self._priming_s = 0.0
        self._longest_delay_s = 0.0
        """Of a command behind its period, since the last report on /diagnostics."""
        self._stopping = threading.Event()
        self._streamer = threading.Thread(target=self._stream, name="streamer", daemon=True)
        self._streamer.start()
        self._server = ThreadedActionServer(
            self,
            Navigate,
            topics.NAVIGATE_ACTION,
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )
        self.create_timer(FEEDBACK_PERIOD_S, self._publish_feedback)
        self.create_timer(DRAWING_PERIOD_S, self._draw)
        self._prime_timer = self.create_timer(PRIME_PERIOD_S, self._prime_early)
        publish_diagnostics(self, start.vehicle_namespace.strip("/"), self._health)

    def destroy_node(self) -> None:
        """Ends the goal under way and hovers; then nothing is sent any more."""
        for mission in list(self._missions.values()):
            self.agent.cancel(mission, "the agent is shut down")
        with self._goals_changed:
            self._goals_changed.wait_for(lambda: not self._missions, _SHUTDOWN_S)
        self._stopping.set()
        self._streamer.join(_SHUTDOWN_S)
        self._server.destroy()
        super().destroy_node()

    # The action.

    def _on_goal(self, request: Navigate.Goal) -> GoalResponse:
        goal = _goal(request)
        reason = self.agent.refusal(goal)
        if not reason:
            return GoalResponse.ACCEPT
        self.get_logger().warning(f"goal rejected: {reason}")
        # The action's protocol carries no reason: it is published here, without a goal's id.
        rejected = GoalState(
            stamp_s=self._wall.now(),
            goal_id="",
            instruction=goal.instructions[0] if goal.instructions else "",
            state=NavigateState.ENDED,
            outcome=Outcome.ERROR,
            reason=f"rejected: {reason}",
        )
        self.on_goal_state(rejected)
        return GoalResponse.REJECT

    def _on_accepted(self, handle: Any) -> None:
        goal_id = _hex(handle)
        mission = self.agent.begin(goal_id, _goal(handle.request))
        with self._goals_changed:
            self._handles[goal_id] = handle
            self._missions[goal_id] = mission
            cancelled = goal_id in self._cancel_requested
        if cancelled:
            self.agent.cancel(mission)
        self.get_logger().info(f"goal {goal_id[:8]}: {' | '.join(mission.goal.instructions)}")
        handle.execute()

    def _on_cancel(self, handle: Any) -> CancelResponse:
        goal_id = _hex(handle)
        with self._goals_changed:
            mission = self._missions.get(goal_id)
            self._cancel_requested.add(goal_id)
        if mission is not None:
            self.agent.cancel(mission)
        return CancelResponse.ACCEPT

    def _execute(self, handle: Any) -> Navigate.Result:
        """In a thread of its own."""
        goal_id = _hex(handle)
        with self._goals_changed:
            # The goal before this one, preempted, needs a moment to end: goals never overlap in a recording.
            self._goals_changed.wait_for(lambda: next(iter(self._missions)) == goal_id, PREEMPTION_S)
        try:
            result = self._missions[goal_id].run()
            self.get_logger().info(f"goal {goal_id[:8]} ended: {result.outcome.name}, {result.reason}")
            self._conclude(handle, result)
        finally:
            with self._goals_changed:
                self._missions.pop(goal_id, None)
                self._handles.pop(goal_id, None)
                self._cancel_requested.discard(goal_id)
                self._goals_changed.notify_all()
        return to_ros(result)

    def _conclude(self, handle: Any, result: NavigateResult) -> None:
        if _hex(handle) in self._cancel_requested:
            # The callback that accepted the cancel may not have returned yet, and the handle changes only then.
            end_s = self._wall.now() + _SHUTDOWN_S
            while not handle.is_cancel_requested and handle.is_active and self._wall.now() < end_s:
                self._wall.sleep(0.005)
        if handle.is_cancel_requested:
            handle.canceled()
        elif result.outcome is Outcome.FINISHED:
            handle.succeed()
        elif handle.is_active:
            handle.abort()

    # What the mission reports (Listener).

    def on_goal_state(self, state: GoalState) -> None:
        self._goal_states.publish(to_ros(state))
        self._markers.take_goal_state(state)
        if state.state is NavigateState.ENDED:  # a recording may end with the goal
            self._draw()

    def on_decision(self, decision: Decision) -> None:
        self._decisions.publish(to_ros(decision))
        self._markers.take_decision(decision)

    def on_feedback(self, goal_id: str, feedback: NavigateFeedback) -> None:
        handle = self._handles.get(goal_id)
        if handle is not None and handle.is_active:
            handle.publish_feedback(to_ros(feedback))

    # Timers and threads.

    def _publish_feedback(self) -> None:
        for goal_id, mission in list(self._missions.items()):
            self.on_feedback(goal_id, mission.feedback)

    def _draw(self) -> None:
        with self._drawing:  # two threads; the newest must be the last
            drawing = self._markers.draw(self._wall.now())
            if drawing is not None:
                self._drawings.publish(to_ros(drawing))

    def _prime_early(self) -> None:
        """The memory begins with the prompt: prime it as soon as it is there, not only when the first goal comes."""
        if self._priming is None:
            try:
                request = PrimeRequest(self._start.system_prompt, toolset.tools_json())
                self._priming, self._priming_s = self._memory.prime(request), self._wall.now()
            except MemoryUnavailable:
                return
        response = self._priming.wait(0.0)
        if response is None:
            if self._wall.now() - self._priming_s > PRIME_ANSWER_S:
                self._priming.cancel()
                self._priming = None
            return
        self._prime_timer.cancel()
        if not response.success:
            self.get_logger().error(f"perception refuses the prompt: {response.message}")

    def _stream(self) -> None:
        due_s = self._wall.now()
        while not self._stopping.is_set():
            odometry = self._drone.odometry()
            self.agent.streamer.tick()
            if odometry is not None:
                self._markers.take_odometry(odometry)
            now_s = self._wall.now()
            self._longest_delay_s = max(self._longest_delay_s, now_s - due_s)
            due_s = max(due_s + contract.COMMAND_PERIOD_S, now_s)
            self._stopping.wait(due_s - now_s)

    def _health(self) -> Health:
        if not self._streamer.is_alive():
            raise RuntimeError("the thread that sends commands has ended: see its traceback above")
        age_s = self._drone.odometry_age_s()
        publishers = self._drone.odometry_publishers()
        values = {
            "goal": next((mission.feedback.state.name for mission in self._missions.values()), "none"),
            "odometry age, s": f"{age_s:.2f}",
            "odometry published by": ", ".join(publishers),
            "odometry samples refused": self._drone.odometry_refused,
            "longest delay of a command, ms": round(1e3 * self._longest_delay_s),
            "memory": "alive" if self._memory.alive() else "not there",
        }
        self._longest_delay_s = 0.0
        if len(publishers) > 1:
            return Health(Level.WARN, f"{len(publishers)} publishers of odometry", values)
        if self._start.dry_run_interval_s is None and age_s > contract.ODOMETRY_TIMEOUT_S:
            return Health(Level.ERROR, "no odometry: is airsim_bridge running, and the link up?", values)
        if not self._memory.alive():
            return Health(Level.ERROR, "no memory: is vlm_perception running?", values)
        return Health(Level.OK, "ready" if not self._missions else "flying", values)


def _goal(request: Navigate.Goal) -> NavigateGoal:
    """With the white space of its instructions normalised."""
    goal = from_ros(NavigateGoal, request)
    return replace(goal, instructions=tuple(" ".join(text.split()) for text in goal.instructions))


def _hex(handle: Any) -> str:
    return bytes(handle.goal_id.uuid).hex()


def main() -> int:
    return run(NavAgent, threads=1)
