"""The whole graph under the runner: it comes up, survives kill -9 of its parts in flight, ends and leaves nothing."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import rclpy
from nav_msgs_ext.srv import Prime

from airsim_bridge.client import AirSimClient
from nav_agent.navigator import GoalRejected, Navigator
from nav_common import contract, topics
from nav_common.testing import free_port, unique_domain_id
from nav_pilot import model_folder

pytestmark = pytest.mark.skipif(
    not (model_folder() / "config.json").is_file(),
    reason="no weights: python -m nav_pilot.train",
)

T = TypeVar("T")
NODES = {"airsim_sim", "airsim_bridge", "vlm_perception", "nav_agent"}
# Zero velocity in time, then standstill within v/a: 2 m/s at the gate's least braking, 2 m/s2.
STANDSTILL_S = contract.ZERO_VELOCITY_WITHIN_S + 1.0
MOVING = 0.3  # m/s or rad/s


def wait_for(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """What `condition` gives once it is true; polled, since the events happen in other processes."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.01)
    return value


def children(pid: int) -> dict[str, int]:
    """The runner's processes by node name."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            line = Path(f"/proc/{child}/cmdline").read_bytes().decode()
        except FileNotFoundError:
            continue
        for name in NODES:
            if f"/{name}\0" in line or line.endswith(f"/{name}") or f"-m\0{name}\0" in line:
                found[name] = int(child)
    return found


class Graph:
    """A runner with the full stack, and clients of simulator and agent."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.output = folder / "output.log"
        with self.output.open("wb") as output:
            self.runner = subprocess.Popen(
                [sys.executable, "-m", "nav_bringup.runner", "full_stack", f"airsim_port:={self.port}"],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.client = AirSimClient("127.0.0.1", self.port)
        self.node = rclpy.create_node("runner_test")
        self.prime = self.node.create_client(Prime, topics.PRIME_SERVICE)
        self.navigator = Navigator("runner_test_navigator")

    def spin(self) -> None:
        assert self.runner.poll() is None, self.output.read_text()
        rclpy.spin_once(self.node, timeout_sec=0.02)

    def fly(self) -> None:
        """A mission under way, in the air, at least once in motion."""

        def ready() -> bool:
            self.spin()
            return self.prime.service_is_ready()

        wait_for(ready, 300.0, "perception")
        for _ in range(3):  # a starved machine may lose the drone at take-off, and the agent then says so
            wait_for(self.accepted, 120.0, "the agent")
            if self.until_moving():
                return
        raise AssertionError(
            f"three missions ended before they moved, the last with {self.navigator.result(0)}"
        )

    def keep_flying(self) -> None:
        """A mission in motion: the one under way, or another."""
        if self.navigator.feedback() is None or self.navigator.is_done() or self.motion() < MOVING:
            self.fly()

    def flies_again(self) -> None:
        """The mission goes on, or, where it timed out before the process was back, another one flies."""
        if not self.until_moving():
            self.fly()

    def accepted(self) -> bool:
        """Send a mission. An attempt is lost when DDS has not yet noticed that an agent was killed, and refused when no
        state of the drone has come yet."""
        self.spin()
        try:
            self.navigator.fly("fly to the red beacon", timeout_s=5.0)
        except TimeoutError:
            return False
        except GoalRejected as rejected:
            if "no state from the drone" not in str(rejected):
                raise
            return False
        return True

    def until_moving(self) -> bool:
        """Wait until a decision of the mission moves the drone; False when it ends before that."""

        def moving() -> bool:
            assert self.runner.poll() is None, self.output.read_text()
            feedback = self.navigator.feedback()
            flying = feedback is not None and feedback.decisions > 0  # before the first: the take-off
            return self.navigator.is_done() or (flying and self.motion() > MOVING)

        wait_for(moving, 180.0, f"motion, {self.navigator.feedback()}")
        return not self.navigator.is_done()

    def motion(self) -> float:
        """Speed or yaw rate of the drone in the simulator, m/s or rad/s, the larger number."""
        truth: dict[str, dict[str, float]] = self.client.call("simGetGroundTruthKinematics", "")
        speed = math.hypot(*truth["linear_velocity"].values())
        return max(speed, abs(truth["angular_velocity"]["z_val"]))

    def place(self) -> list[float]:
        """Position of the drone in the simulator, NED metres."""
        return list(self.client.call("simGetVehiclePose", "")["position"].values())

    def kill(self, name: str) -> float:
        """kill -9; the time of it."""
        pid = children(self.runner.pid)[name]
        os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    def started_again(self, name: str, timeout_s: float = 60.0) -> None:
        def said() -> bool:
            return f"{name} was killed by SIGKILL; restarting" in self.output.read_text()

        wait_for(lambda: said() and name in children(self.runner.pid), timeout_s, f"another {name}")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    os.environ["ROS_DOMAIN_ID"] = str(unique_domain_id())
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init()
    graph = Graph(tmp_path_factory.mktemp("graph"))
    try:
        yield graph
    finally:
        if graph.runner.poll() is None:
            graph.runner.send_signal(signal.SIGINT)
            graph.runner.wait(timeout=60)
        graph.navigator.close()
        graph.node.destroy_node()
        graph.client.close()
        rclpy.shutdown()


def stands_still_in_time(graph: Graph, killed: float) -> None:
    wait_for(lambda: graph.motion() < contract.STANDSTILL_M_S, STANDSTILL_S, "standstill")
    assert time.monotonic() - killed < STANDSTILL_S
    assert graph.motion() < contract.STANDSTILL_M_S


def test_a_killed_bridge_leaves_a_drone_that_stops_and_missions_fly_again(graph: Graph) -> None:
    graph.fly()
    stands_still_in_time(graph, graph.kill("airsim_bridge"))
    graph.started_again("airsim_bridge")
    graph.flies_again()


def test_a_killed_agent_leaves_a_drone_that_stops_and_stays_until_the_next_mission(graph: Graph) -> None:
    graph.keep_flying()
    stands_still_in_time(graph, graph.kill("nav_agent"))
    place = graph.place()
    graph.started_again("nav_agent")
    wait_for(graph.accepted, 120.0, "the new agent")
    assert max(abs(now - then) for now, then in zip(graph.place(), place, strict=True)) < 0.3
    assert graph.until_moving(), graph.navigator.result(0)


def test_a_killed_perception_leaves_a_drone_that_stops_and_missions_fly_again(graph: Graph) -> None:
    graph.keep_flying()
    stands_still_in_time(graph, graph.kill("vlm_perception"))
    graph.started_again("vlm_perception")
    graph.flies_again()


def test_ctrl_c_ends_everything_and_leaves_no_process(graph: Graph) -> None:
    pids = children(graph.runner.pid)
    assert set(pids) == NODES
    graph.runner.send_signal(signal.SIGINT)
    assert graph.runner.wait(timeout=60) == 0
    assert graph.output.read_text().rstrip().endswith("runner: all ended")
    assert not [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
