"""Ground truth from a running simulator, and without one."""

from __future__ import annotations

import math

import pytest

from airsim_sim.server import Server
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.testing import free_port
from nav_eval.ground_truth import GroundTruth


def test_path_and_goal_come_from_the_simulator() -> None:
    world = load_world("field", 1)
    simulation = Simulation(world)
    server = Server(simulation, "127.0.0.1", free_port(), 1.0)
    server.start()
    try:
        truth = GroundTruth("127.0.0.1", server.port, world.goal.name)
        truth.stop()  # takes one more sample
        north, west, _ = world.goal.position
        assert truth.distance_m == pytest.approx(math.hypot(north, west), abs=0.05)
        assert truth.path_m == 0.0
    finally:
        server.stop()


def test_a_simulator_that_does_not_run_gives_no_distance_and_no_error() -> None:
    truth = GroundTruth("127.0.0.1", free_port(), "beacon")
    truth.stop()
    assert truth.distance_m is None
    assert truth.path_m == 0.0
