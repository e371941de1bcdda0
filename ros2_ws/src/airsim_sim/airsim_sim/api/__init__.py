"""AirSim's RPC methods by name, with its exact argument counts, field names and error texts.

One table for both ways in: `Simulation.call` in process and the TCP server. Values are what msgpack carries: dicts with
AirSim's field names, north-east-down, quaternions of front-right-down bodies. Each module enters its methods when it is
imported: `connection` (control, time), `motion`, `pictures`, `state`, `scene` (objects), `sensors`, `environment`.
"""

from airsim_sim.api import connection, environment, motion, pictures, scene, sensors, state
from airsim_sim.api.table import METHODS, Method, Where, call, find

__all__ = [
    "METHODS", "Method", "Where", "call", "connection", "environment", "find", "motion", "pictures", "scene",
    "sensors", "state",
]  # fmt: skip
