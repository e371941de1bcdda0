"""A whole edge and the simulator in one process on a virtual clock: faster than real time, the same every time."""

from __future__ import annotations

import math

from airsim_bridge.bridge import Bridge, CameraSettings, Settings
from airsim_bridge.gate import CommandRefusal, GateLimits
from airsim_bridge.outputs import Fanout, Outputs
from airsim_bridge.reflex import DepthReflex
from airsim_bridge.vehicle import Vehicle
from airsim_sim.model import TIMESTEP_S
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.clock import VirtualClock
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import (
    CameraInfo,
    CompressedImage,
    DepthImage,
    DroneState,
    Imu,
    Odometry,
    Twist,
    VelocityCommand,
)


class Seen:
    """Outputs that keep the newest of everything, and all states, stamps of pictures and log lines."""

    odometry: Odometry
    state: DroneState
    image: CompressedImage
    info: CameraInfo
    depth: DepthImage
    imu: Imu | None = None

    def __init__(self) -> None:
        self.image_stamps_s: list[float] = []
        self.states: list[DroneState] = []
        self.logged: list[str] = []

    def on_odometry(self, odometry: Odometry) -> None:
        self.odometry = odometry

    def on_state(self, state: DroneState) -> None:
        self.state = state
        self.states.append(state)

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        self.image, self.info = image, info
        self.image_stamps_s.append(image.stamp_s)

    def on_depth(self, camera: str, depth: DepthImage) -> None:
        self.depth = depth

    def on_imu(self, imu: Imu) -> None:
        self.imu = imu

    def log(self, text: str) -> None:
        self.logged.append(text)


class Lockstep:
    """The edge with one camera, over a simulator that steps at 200 Hz."""

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
        outputs: Outputs | None = None,
        frame_prefix: str = "",
    ) -> None:
        """`outputs`: further ones beside `seen`."""
        self.clock = VirtualClock()
        self.simulation = simulation or Simulation(load_world(scene, seed))
        self.seen = Seen()
        camera = CameraSettings("front_center", "front", image_rate_hz, depth_rate_hz)
        self.bridge = Bridge(
            Vehicle(self.simulation, self.clock, flavor=self.simulation.flavor),
            self.clock,
            self.seen if outputs is None else Fanout(self.clock, self.seen, outputs),
            Settings(cameras=[camera], frame_prefix=frame_prefix),
            limits,
            reflex=DepthReflex() if reflex else None,
        )
        self.sequence = 0
        self.clock.call_every(TIMESTEP_S, self.simulation.step)
        self.clock.call_every(1.0 / self.bridge.settings.odom_rate_hz, self.bridge.poll_state)
        self.clock.call_every(COMMAND_PERIOD_S, self.bridge.tick_gate)
        if camera.rate_hz > 0:
            self.clock.call_every(1.0 / camera.rate_hz, lambda: self.bridge.grab("front"))
        self.clock.sleep(0.3)

    def place(self, x: float, y: float, z: float, yaw_deg: float = 0.0) -> None:
        """In the air there, holding, under API control and armed. World frame: north, west, up."""
        self.simulation.call("enableApiControl", True, "")
        self.simulation.call("armDisarm", True, "")
        self.simulation.set_pose((x, y, z), yaw_deg)
        self.clock.sleep(0.7)

    def command(self, twist: Twist, epoch: int | None = None) -> CommandRefusal | None:
        self.sequence += 1
        gate = self.bridge.gate
        return gate.submit(
            VelocityCommand(
                self.seen.odometry.stamp_s, gate.epoch if epoch is None else epoch, self.sequence, twist
            )
        )

    def stream(self, seconds: float, twist: Twist) -> None:
        """Commands at 20 Hz."""
        for _ in range(round(seconds / COMMAND_PERIOD_S)):
            self.command(twist)
            self.clock.sleep(COMMAND_PERIOD_S)

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
