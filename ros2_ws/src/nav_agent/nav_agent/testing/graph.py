"""The real graph for tests: simulator, bridge and agent as processes, a scripted model behind Prime and Generate."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rclpy
from nav_msgs_ext.action import Generate
from nav_msgs_ext.srv import Prime
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node

from nav_agent.navigator import GoalRejected, Navigator
from nav_agent.testing.rig import NO_ANSWER
from nav_common import stamps, topics
from nav_common.data import (
    Decision,
    DroneState,
    GateMode,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    GoalState,
    VelocityCommand,
)
from nav_common.process import SWITCH_INTERVAL_S
from nav_common.ros import Spinner, from_ros, publisher, subscription, to_ros
from nav_common.testing import free_port, unique_domain_id
from nav_common.topics import Topic

Script = Callable[[GenerateGoal], str]


def executable(package: str, name: str) -> str:
    """An installed executable of the workspace."""
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        path = Path(prefix) / "lib" / package / name
        if path.is_file():
            return str(path)
    raise FileNotFoundError(f"{package}/{name}: build the workspace and source it")


class ScriptedPerception(Node):
    """Answers Generate with what `script` says: a tool call's JSON, another text, NO_ANSWER (until it is cancelled)."""

    def __init__(self, script: Script) -> None:
        super().__init__("scripted_perception")
        self.script = script
        self.think_s = 0.1
        self.newest_frame_s = 0.0
        self.asks: list[GenerateGoal] = []
        self.cancelled = 0
        self.prompts: set[str] = set()
        group = ReentrantCallbackGroup()
        subscription(
            self, topics.FRONT_IMAGE, topics.DEFAULT_VEHICLE_NAMESPACE, self._on_image, callback_group=group
        )
        self.create_service(Prime, topics.PRIME_SERVICE, self._on_prime, callback_group=group)
        self._alive = publisher(self, topics.ENGINE_STATUS, "")  # its being there is the sign of life
        self._action = ActionServer(
            self,
            Generate,
            topics.GENERATE_ACTION,
            self._execute,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=group,
        )

    def _on_image(self, message: Any) -> None:
        self.newest_frame_s = stamps.to_seconds(message.header.stamp)

    def _on_prime(self, request: Prime.Request, response: Prime.Response) -> Prime.Response:
        self.prompts.add("p1")
        response.success, response.prompt_id = True, "p1"
        return response

    def _execute(self, handle: Any) -> Any:
        goal = from_ros(GenerateGoal, handle.request)
        self.asks.append(goal)
        result = self._answer(goal, lambda: bool(handle.is_cancel_requested))
        if result.status is GenerateStatus.CANCELLED:
            self.cancelled += 1
            handle.canceled()
        elif result.status is GenerateStatus.OK:
            handle.publish_feedback(Generate.Feedback(text=result.text))
            handle.succeed()
        else:
            handle.abort()
        return to_ros(result)

    def _answer(self, goal: GenerateGoal, is_cancelled: Callable[[], bool]) -> GenerateResult:
        began_s = time.monotonic()
        if goal.prompt_id not in self.prompts:
            return GenerateResult(GenerateStatus.UNKNOWN_PROMPT, "prompt not primed")
        text = self.script(goal)
        while (
            text == NO_ANSWER
            or self.newest_frame_s < goal.earliest_frame_s - 1e-9
            or time.monotonic() - began_s < self.think_s
        ):
            if is_cancelled():
                return GenerateResult(GenerateStatus.CANCELLED)
            if time.monotonic() - began_s > goal.deadline_s and text != NO_ANSWER:
                return GenerateResult(GenerateStatus.NO_FRAME, "no frame")
            if not self.context.ok():
                return GenerateResult(GenerateStatus.ERROR)
            time.sleep(0.01)
        return GenerateResult(
            GenerateStatus.OK,
            text=text,
            tool_call=text,
            frame_stamp_s=self.newest_frame_s,
            total_ms=1e3 * (time.monotonic() - began_s),
            tokens_in=30,
            tokens_sampled=4,
        )


class Watcher(Node):
    """Keeps what was published, as data. It is to be judged by stamps and sequence numbers: when something arrives here
    means nothing on a busy machine."""

    def __init__(self) -> None:
        super().__init__("watcher")
        self.commands: list[VelocityCommand] = []
        self.arrivals: list[float] = []
        """When each command came here (monotonic, s)."""
        self.decisions: list[Decision] = []
        self.goal_states: list[GoalState] = []
        self.states: list[DroneState] = []
        for topic, cls, rows in (
            (topics.COMMAND, VelocityCommand, self.commands),
            (topics.DECISION, Decision, self.decisions),
            (topics.GOAL_STATE, GoalState, self.goal_states),
            (topics.STATE, DroneState, self.states),
        ):
            self._keep(topic, cls, rows)

    def _keep(self, topic: Topic, cls: type[Any], rows: list[Any]) -> None:
        def keep(message: Any) -> None:
            if cls is VelocityCommand:
                self.arrivals.append(time.monotonic())
            rows.append(from_ros(cls, message))

        subscription(self, topic, topics.DEFAULT_VEHICLE_NAMESPACE, keep)

    @property
    def state(self) -> DroneState | None:
        """The newest."""
        return self.states[-1] if self.states else None

    @property
    def is_moving(self) -> bool:
        """Whether the newest command is not hover."""
        return bool(self.commands) and not self.commands[-1].twist.is_hover

    @property
    def gate_mode(self) -> GateMode | None:
        return self.state.gate_mode if self.state else None


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """What `condition` gives once it is true. Polls, as events come from other processes."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.01)
    return value


def fly(navigator: Navigator, *instructions: str, **limits: float) -> None:
    """Send a goal, again while it is rejected: the agent may not have received the drone's state yet."""

    end_s = time.monotonic() + 60.0
    while True:
        try:
            navigator.fly(*instructions, **limits)  # type: ignore[arg-type]
            return
        except GoalRejected:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)


class Graph:
    """The processes, and the test's own nodes on an executor."""

    def __init__(self, folder: Path, script: Script) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = free_port()
        self.perception = ScriptedPerception(script)
        self.watcher = Watcher()
        self._spinner = Spinner(self.perception, self.watcher, threads=6, name="test-executor")

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def start_simulator(self) -> None:
        simulator = (sys.executable, "-m", "airsim_sim")
        self.start("simulator", *simulator, "--scene", "field", "--seed", "1", "--port", str(self.port))

    def start_bridge(self) -> None:
        bridge = executable("airsim_bridge", "airsim_bridge")
        self.start("bridge", bridge, "--ros-args", "-p", f"port:={self.port}")

    def start_agent(self, *parameters: str) -> None:
        arguments = [part for parameter in parameters for part in ("-p", parameter)]
        self.start("agent", executable("nav_agent", "nav_agent"), "--ros-args", *arguments)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def ready(self, timeout_s: float = 120.0) -> None:
        """Frames flow, the drone is connected, the memory is primed by the agent."""
        wait_for(lambda: self._connected(), timeout_s, "the drone")
        wait_for(lambda: self.perception.newest_frame_s > 0, timeout_s, "a frame")
        wait_for(lambda: self.perception.prompts, timeout_s, "the agent")

    def _connected(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}"
        return self.watcher.state is not None and self.watcher.state.connected

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.processes[name].send_signal(signal.SIGINT)
        for name, process in self.processes.items():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                print(f"{name} did not end on SIGINT")
                process.kill()
                process.wait()
        self._spinner.stop()
        self.perception.destroy_node()
        self.watcher.destroy_node()


@contextlib.contextmanager
def running_graph(folder: Path, script: Script, *parameters: str) -> Iterator[Graph]:
    """A graph that is ready to fly, in a ROS domain of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    domain = unique_domain_id()
    before = os.environ.get("ROS_DOMAIN_ID")
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    rclpy.init(domain_id=domain)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    graph = Graph(folder, script)
    try:
        graph.start_simulator()
        graph.start_bridge()
        graph.start_agent(*parameters)
        try:
            graph.ready()
            yield graph
        except BaseException:
            print(graph.logs())
            raise
    finally:
        graph.close()
        rclpy.try_shutdown()
        if before is None:
            del os.environ["ROS_DOMAIN_ID"]
        else:
            os.environ["ROS_DOMAIN_ID"] = before
