"""The simulation in process: a world, a drone in it, and AirSim's RPC methods by name; faster than real time.

    sim = Simulation(load_world("field", seed=1))
    sim.call("enableApiControl", True, ""); sim.call("armDisarm", True, "")
    task = sim.call("takeoff", 20.0, "")            # motion methods return a Task at once: .done, .result
    sim.run_until(task)                             # or sim.step(0.05), as often as wanted
    rgb = sim.render("front_center", "scene")       # (240, 320, 3) uint8, R G B
    sim.set_pose((3.0, 1.0, 2.0), yaw_deg=90.0)     # teleport, no physics; then render again
    sim.position, sim.yaw_deg, sim.collisions, sim.log.rows(), sim.log.commands    # ground truth, for judging only

World frame: north-west-up, yaw counter-clockwise. `call` speaks AirSim's north-east-down: (x, -y, -z), yaw clockwise.
"""

from __future__ import annotations

from typing import Any

from airsim_sim import api
from airsim_sim.drone import START_TIME_NS, Collision, Log, SimulatedDrone

__all__ = ["START_TIME_NS", "Collision", "Log", "Simulation"]


class Simulation(SimulatedDrone):
    """A simulated drone that answers AirSim's RPC methods."""

    def call(self, method: str, *args: Any) -> Any:
        """AirSim's RPC methods by name, positional arguments as on the wire. Motion methods return a Task.

        Raises CallError with the text that the RPC error would have.
        """
        return api.call(self, method, args)
