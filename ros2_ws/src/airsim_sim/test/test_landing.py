"""Landings after turns: no rebound, no sinking into the ground, no contact counted as a collision."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from airsim_sim.model import DRONE_HALF_HEIGHT_M
from airsim_sim.simulation import Simulation
from airsim_sim.world import parse_world

EMPTY = "name: empty\nobjects:\n  - {name: post, kind: pillar, at: [300, 0]}\ngoals: [post]\n"
REBOUND_M, SINK_M = 0.05, 0.01


def steady(rate_deg_s: float = 0.0) -> dict[str, object]:
    return {"is_rate": True, "yaw_or_rate": rate_deg_s}


def flown_with_turns(seed: int) -> Simulation:
    """Hovering between 1 and 3 m after some random motions that all turn."""
    rng = random.Random(seed)
    sim = Simulation(parse_world(EMPTY, "empty.yaml"))
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
    for _ in range(400):
        if sim.flight.landed:
            break
        sim.call("moveByVelocity", 0.0, 0.0, 0.7, 0.35, 0, steady(), "")
        sim.step(0.05)
    sim.call("hover", "")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("land", [land_as_airsim, land_as_the_bridge])
def test_a_landing_neither_rebounds_nor_sinks_nor_counts_as_a_collision(
    land: Callable[[Simulation], None], seed: int
) -> None:
    sim = flown_with_turns(seed)
    begin = len(sim.log.rows())
    land(sim)
    sim.step(3.0)
    height = sim.log.rows()[begin:, 3]
    assert sim.flight.landed
    assert sim.collisions == []
    assert (height - np.minimum.accumulate(height)).max() < REBOUND_M
    assert height.min() > DRONE_HALF_HEIGHT_M - SINK_M


def test_the_attitude_stays_of_unit_length() -> None:
    sim = flown_with_turns(3)
    sim.run_until(sim.call("rotateByYawRate", 80.0, 60.0, ""))
    assert abs(np.linalg.norm(sim.data.qpos[3:7]) - 1) < 1e-12


@pytest.mark.parametrize(("roll", "pitch"), [(0.0, 0.0), (0.6, 0.0), (0.0, -0.6), (1.5, 0.3), (3.1, 0.0)])
def test_a_drone_let_go_at_any_attitude_comes_to_rest_on_the_ground(roll: float, pitch: float) -> None:
    sim = Simulation(parse_world(EMPTY, "empty.yaml"))
    sim.set_pose((0.0, 0.0, 0.5), 40.0)
    cr, sr, cp, sp = np.cos(roll / 2), np.sin(roll / 2), np.cos(pitch / 2), np.sin(pitch / 2)
    sim.data.qpos[3:7] = (cr * cp, sr * cp, cr * sp, -sr * sp)
    sim.step(3.0)
    assert sim.position[2] == pytest.approx(DRONE_HALF_HEIGHT_M, abs=SINK_M)
    assert sim.log.rows()[:, 3].max() < 0.55
