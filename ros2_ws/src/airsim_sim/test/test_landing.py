"""Landings after turns: no rebound, no sinking into the ground, no contact counted as a collision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from airsim_sim.model import DRONE_HALF_HEIGHT_M
from airsim_sim.simulation import Simulation
from airsim_sim.testing.landings import (
    REBOUND_M,
    SINK_M,
    empty_simulation,
    flown_with_turns,
    land_as_airsim,
    land_as_the_bridge,
    landed_after_turns,
)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("land", [land_as_airsim, land_as_the_bridge])
def test_a_landing_neither_rebounds_nor_sinks_nor_counts_as_a_collision(
    land: Callable[[Simulation], None], seed: int
) -> None:
    landing = landed_after_turns(seed, land)
    assert landing.landed
    assert landing.contacts == 0
    assert landing.rebound_m < REBOUND_M
    assert landing.sunk_m < SINK_M


def test_the_attitude_stays_of_unit_length() -> None:
    sim = flown_with_turns(3)
    sim.run_until(sim.call("rotateByYawRate", 80.0, 60.0, ""))
    assert abs(np.linalg.norm(sim.data.qpos[3:7]) - 1) < 1e-12


@pytest.mark.parametrize(("roll", "pitch"), [(0.0, 0.0), (0.6, 0.0), (0.0, -0.6), (1.5, 0.3), (3.1, 0.0)])
def test_a_drone_let_go_at_any_attitude_comes_to_rest_on_the_ground(roll: float, pitch: float) -> None:
    sim = empty_simulation()
    sim.set_pose((0.0, 0.0, 0.5), 40.0)
    cr, sr, cp, sp = np.cos(roll / 2), np.sin(roll / 2), np.cos(pitch / 2), np.sin(pitch / 2)
    sim.data.qpos[3:7] = (cr * cp, sr * cp, cr * sp, -sr * sp)
    sim.step(3.0)
    assert sim.position[2] == pytest.approx(DRONE_HALF_HEIGHT_M, abs=SINK_M)
    assert sim.log.rows()[:, 3].max() < 0.55
