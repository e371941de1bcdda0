"""A whole edge and the simulator in one process on a virtual clock: faster than real time, the same every time."""

from __future__ import annotations

import math

from airsim_bridge.bridge import Bridge, CameraSettings, Settings
from airsim_bridge.gate import Command, GateLimits
from airsim_bridge.reflex import DepthReflex
from airsim_bridge.vehicle import Vehicle
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.clock import VirtualClock
from nav_common.frames import Vector


class Seen:
    """Outputs that keep the newest of everything."""

    def __init__(self) -> None:
        self.odometry = self.state = self.frame = self.depth = self.imu = None
        self.frames: list = []
        self.states: list = []
        self.said: list[str] = []

    def on_odometry(self, telemetry) -> None:
        self.odometry = telemetry

    def on_state(self, state) -> None:
        self.state = state
        self.states.append(state)

    def on_frame(self, frame) -> None:
        self.frame = frame
        self.frames.append(frame.stamp)

    def on_depth(self, depth) -> None:
        self.depth = depth

    def on_imu(self, imu) -> None:
        self.imu = imu

    def log(self, text: str) -> None:
        self.said.append(text)


class Lockstep:
    """`deaf_s`: how long the edge's commands take to the vehicle and its pictures to the edge."""

    def __init__(
        self,
        *,
        scene: str = "field",
        seed: int = 1,
        reflex: bool = False,
        image_rate_hz: float = 0.0,
        depth_rate_hz: float = 0.0,
        limits: GateLimits | None = None,
        simulation: Simulation | None = None,
        **settings,
    ) -> None:
        self.clock = VirtualClock()
        self.simulation = simulation or Simulation(load_world(scene, seed))
        self.seen = Seen()
        camera = CameraSettings("front_center", "front", image_rate_hz, depth_rate_hz)
        self.bridge = Bridge(
            Vehicle(self.simulation, self.clock, flavor=self.simulation.flavor),
            self.clock,
            self.seen,
            Settings(cameras=[camera], **settings),
            limits,
            reflex=DepthReflex() if reflex else None,
        )
        self.sequence = 0
        self.clock.call_every(0.005, self.simulation.step)
        self.clock.call_every(1 / 30, self.bridge.poll_state)
        self.clock.call_every(0.05, self.bridge.tick_gate)
        if camera.rate_hz > 0:
            self.clock.call_every(1.0 / camera.rate_hz, lambda: self.bridge.grab("front"))
        self.clock.sleep(0.3)

    def place(self, x: float, y: float, z: float, yaw_deg: float = 0.0) -> None:
        """In the air there, holding, under API control and armed. World frame: north, west, up."""
        self.simulation.call("enableApiControl", True, "")
        self.simulation.call("armDisarm", True, "")
        self.simulation.set_pose((x, y, z), yaw_deg)
        self.clock.sleep(0.7)

    def command(self, linear: Vector, yaw_rate: float = 0.0, epoch: int | None = None) -> str:
        self.sequence += 1
        gate = self.bridge.gate
        stamp = self.seen.odometry.stamp
        return gate.submit(
            Command(
                stamp, gate.epoch if epoch is None else epoch, self.sequence, linear, Vector(0, 0, yaw_rate)
            )
        )

    def stream(self, seconds: float, linear: Vector, yaw_rate: float = 0.0) -> None:
        """Commands at 20 Hz."""
        for _ in range(round(seconds / 0.05)):
            self.command(linear, yaw_rate)
            self.clock.sleep(0.05)

    @property
    def speed(self) -> float:
        return math.hypot(*self.simulation.velocity)

    def first_zero(self, since_s: float) -> float:
        """Simulated time of the first zero velocity (or hover) commanded from `since_s` on."""
        for at, name, values in self.simulation.log.commands:
            if at >= since_s and (
                name == "hover" or (name == "moveByVelocityBodyFrame" and not any(values[:3]))
            ):
                return at
        return math.inf
