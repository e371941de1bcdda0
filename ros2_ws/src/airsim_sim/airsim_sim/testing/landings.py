"""Landings after turns, and how each went: rebound, sinking into the ground, contacts counted as collisions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from airsim_sim.model import DRONE_HALF_HEIGHT_M
from airsim_sim.simulation import Simulation
from airsim_sim.world import parse_world
from nav_common.contract import COMMAND_DURATION_S, COMMAND_PERIOD_S

EMPTY = "name: empty\nobjects:\n  - {name: post, kind: pillar, at: [300, 0]}\ngoals: [post]\n"
REBOUND_M, SINK_M = 0.05, 0.01


@dataclass(frozen=True)
class Landing:
    """How it went. `rebound_m`: highest rise above what it had come down to; `sunk_m`: deepest below the ground."""

    landed: bool
    rebound_m: float
    sunk_m: float
    contacts: int


def steady(rate_deg_s: float = 0.0) -> dict[str, object]:
    return {"is_rate": True, "yaw_or_rate": rate_deg_s}


def empty_simulation() -> Simulation:
    return Simulation(parse_world(EMPTY, "empty.yaml"))


def flown_with_turns(seed: int) -> Simulation:
    """Hovering between 1 and 3 m after some random motions that all turn."""
    rng = random.Random(seed)
    sim = empty_simulation()
    sim.call("enableApiControl", True, "")
    sim.call("armDisarm", True, "")
    assert sim.run_until(sim.call("takeoff", 20.0, ""))
    for _ in range(rng.randint(2, 8)):
        motion = (rng.uniform(-3, 3), rng.uniform(-1, 1), rng.uniform(-0.5, 0.3), rng.uniform(0.5, 2))
        task = sim.call("moveByVelocityBodyFrame", *motion, 0, steady(rng.uniform(-45, 45)), "")
        sim.run_until(task)
    sim.run_until(sim.call("moveToZ", -rng.uniform(1, 3), 1.0, 30.0, steady(), -1.0, 1.0, ""))
    sim.step(1.5)
    return sim


def land_as_airsim(sim: Simulation) -> None:
    assert sim.run_until(sim.call("land", 60.0, "")) is True


def land_as_the_bridge(sim: Simulation) -> None:
    """At the gate's default `land_speed`, streamed as the gate does."""
    for _ in range(400):
        if sim.flight.landed:
            break
        sim.call("moveByVelocity", 0.0, 0.0, 0.7, COMMAND_DURATION_S, 0, steady(), "")
        sim.step(COMMAND_PERIOD_S)
    sim.call("hover", "")


def landed_after_turns(seed: int, land: Callable[[Simulation], None]) -> Landing:
    """The flight of `seed`, then `land`, then three seconds on the ground."""
    sim = flown_with_turns(seed)
    begin = len(sim.log.rows())
    land(sim)
    sim.step(3.0)
    height = sim.log.rows()[begin:, 3]
    rebound = float((height - np.minimum.accumulate(height)).max())
    sunk = DRONE_HALF_HEIGHT_M - float(height.min())
    return Landing(sim.flight.landed, rebound, sunk, len(sim.collisions))
