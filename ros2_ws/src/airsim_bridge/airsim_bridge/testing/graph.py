"""A simulator in this process, the real node in another, and an operator who sees and commands over ROS."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from nav_msgs_ext.msg import DroneState
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from airsim_sim.server import Server
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common import stamps, topics
from nav_common.clock import WallClock
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import Twist, VelocityCommand
from nav_common.ros import Spinner, publisher, subscription, to_ros, to_time
from nav_common.testing import free_port, unique_domain_id

NAMESPACE = "/drone"


def await_(condition: Callable[[], object], timeout_s: float = 40.0, what: str = "") -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what or condition}"
        time.sleep(0.01)


class Simulator:
    """The embedded simulator behind its TCP server; can be stopped and started again on the same port."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.simulation = Simulation(load_world("field", 1), start_time_ns=None)
        self.server = Server(self.simulation, "127.0.0.1", self.port)
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    @property
    def time_s(self) -> float:
        return self.simulation.time_s

    def velocities_since(self, time_s: float) -> list[tuple[float, tuple[float, float, float]]]:
        """(time, commanded velocity) of each velocity command; hover counts as zero."""
        found = []
        for at, name, values in list(self.simulation.log.commands):
            if at >= time_s and name == "moveByVelocityBodyFrame":
                found.append((at, values[:3]))
            elif at >= time_s and name == "hover":
                found.append((at, (0.0, 0.0, 0.0)))
        return found

    def speed(self) -> float:
        return math.hypot(*self.simulation.velocity)

    def moving_demands(self, since_s: float) -> list[tuple[float, bool]]:
        """(time, whether the controller demanded a velocity that was not braking) of each step from `since_s` on."""
        rows = self.simulation.log.rows()
        rows = rows[rows[:, 0] >= since_s]
        # Position hold demands a few mm/s; a commanded motion is far above.
        moving = (abs(rows[:, 8:11]).max(axis=1) > 0.3) & (rows[:, 11] == 0.0)
        return list(zip(rows[:, 0].tolist(), moving.tolist(), strict=True))

    def moving_demand_ends(self, since_s: float) -> float:
        """The last time after `since_s` at which the controller still demanded a velocity that was not braking."""
        return max((at for at, moving in self.moving_demands(since_s) if moving), default=since_s)


class BridgeProcess:
    """The node as a process of its own."""

    def __init__(self, port: int, **parameters: object) -> None:
        arguments = [f"port:={port}", *(f"{name}:={value}" for name, value in parameters.items())]
        command = [sys.executable, "-m", "airsim_bridge.node", "--ros-args"]
        for argument in arguments:
            command += ["-p", argument]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and output after the signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=20.0)
        return self.process.returncode, output


class Operator:
    """Someone on the other side of the topics."""

    def __init__(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("operator", context=self.context)
        self.clock = WallClock()
        self.state: DroneState | None = None
        self.states: list[DroneState] = []
        self.odometry: Odometry | None = None
        self.images: list[CompressedImage] = []
        self.infos: list[CameraInfo] = []
        self.depths: list[Image] = []
        self.latencies_s: list[float] = []
        self.diagnostics: list[DiagnosticArray] = []
        self._sequence = itertools.count(1)
        self._command = publisher(self.node, topics.COMMAND, NAMESPACE)
        self._cmd_vel = publisher(self.node, topics.CMD_VEL, NAMESPACE)
        self._stop = publisher(self.node, topics.EMERGENCY_STOP, NAMESPACE)
        self._link = publisher(self.node, topics.LINK_UP, NAMESPACE)
        for topic, callback in (
            (topics.STATE, self._on_state),
            (topics.ODOM, self._on_odometry),
            (topics.FRONT_IMAGE, self._on_image),
            (topics.FRONT_INFO, self.infos.append),
            (topics.FRONT_DEPTH, self.depths.append),
            (topics.DIAGNOSTICS, self.diagnostics.append),
        ):
            subscription(self.node, topic, NAMESPACE, callback)
        self._spinner = Spinner(self.node)

    def close(self) -> None:
        self._spinner.stop()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _on_state(self, state: DroneState) -> None:
        self.state = state
        self.states.append(state)

    def _on_odometry(self, odometry: Odometry) -> None:
        self.odometry = odometry

    def _on_image(self, image: CompressedImage) -> None:
        self.latencies_s.append(self.clock.now() - stamps.to_seconds(image.header.stamp))
        self.images.append(image)

    def diagnostic(self, key: str) -> list[str]:
        """The values of that key in all reports received."""
        values = [value for array in self.diagnostics for status in array.status for value in status.values]
        return [value.value for value in values if value.key == key]

    def forget(self) -> None:
        self.state = self.odometry = None
        for received in (self.states, self.images, self.infos, self.depths):
            received.clear()

    def command(
        self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw_rate: float = 0.0, **changes: Any
    ) -> None:
        """One command from the newest odometry and state; `changes`: other fields of VelocityCommand."""
        assert self.odometry is not None
        assert self.state is not None
        stamp_s = stamps.to_seconds(self.odometry.header.stamp)
        twist = Twist.body(x, y, z, yaw_rate)
        command = VelocityCommand(stamp_s, self.state.epoch, next(self._sequence), twist)
        self._command.publish(to_ros(replace(command, **changes)))

    def stream(self, seconds: float, x: float = 0.0, **changes: Any) -> None:
        """Commands at 20 Hz. With the newest epoch: a busy machine may make a pause of it that the gate ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.command(x, **changes)
            time.sleep(COMMAND_PERIOD_S)

    def cmd_vel(self, x: float = 0.0) -> None:
        message = TwistStamped()
        message.header.stamp = to_time(self.clock.now())
        message.twist.linear.x = x
        self._cmd_vel.publish(message)

    def emergency_stop(self, engaged: bool) -> None:
        self._stop.publish(Bool(data=engaged))

    def link(self, up: bool) -> None:
        self._link.publish(Bool(data=up))

    def ask(self, service: str, data: bool | None = None, timeout_s: float = 30.0) -> Any:
        """The answer of a Trigger service, or of a SetBool one when `data` is given."""
        kind = Trigger if data is None else SetBool
        client = self.node.create_client(kind, topics.resolve(service, NAMESPACE))
        assert client.wait_for_service(10.0), service
        request = kind.Request() if data is None else kind.Request(data=data)
        future = client.call_async(request)
        await_(future.done, timeout_s, service)
        self.node.destroy_client(client)
        return future.result()

    def take_off(self) -> None:
        """Into the air. On a starved machine the vehicle's state may come late enough to end a take-off: again."""
        await_(lambda: self.odometry)
        for _ in range(5):
            self.await_state(lambda s: s.connected)
            answer = self.ask(topics.TAKEOFF_SERVICE, timeout_s=60.0)
            if answer.success:
                break
        assert answer.success, answer.message
        self.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD and not s.landed)

    def await_state(self, condition: Callable[[DroneState], object], timeout_s: float = 40.0) -> DroneState:
        """The first state received from now on for which the condition holds."""
        start = len(self.states)
        found: list[DroneState] = []

        def look() -> bool:
            found.extend(state for state in list(self.states[start:]) if condition(state))
            return bool(found)

        await_(look, timeout_s, f"last state {self.state}")
        return found[0]


def own_domain() -> None:
    os.environ["ROS_DOMAIN_ID"] = str(unique_domain_id())
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
