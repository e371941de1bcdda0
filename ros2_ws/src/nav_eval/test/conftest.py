"""What the tests of reports and forks share: one flight."""

from __future__ import annotations

import json

import pytest

from airsim_sim.true_map import TrueMap
from airsim_sim.world import load_world
from nav_eval.episodes import mission_of, record
from nav_eval.harness import Record
from nav_eval.lockstep import fly
from nav_eval.policies import experts


@pytest.fixture(scope="session")
def flown() -> Record:
    """A flight of the expert with the map: no model is needed."""
    mission = mission_of(load_world("field", 7))
    true_map = TrueMap(mission.world)
    log = fly(mission.world, mission.instructions, experts(true_map, mission.asked))
    return json.loads(json.dumps(record(mission, true_map, log, 1.0)))  # type: ignore[no-any-return]
