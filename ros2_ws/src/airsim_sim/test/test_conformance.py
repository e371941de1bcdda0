"""The real clients, airsim 1.8.1 and cosysairsim 3.5.0, take the simulator for AirSim.

They need numpy 1 and so an environment of their own, `.venv-conformance` at the repository's root, which
`requirements-conformance.txt` describes and `make test` makes. Without it these tests are skipped, and say so.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from airsim_sim.examples import conformance_python
from airsim_sim.server import Server
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world

SCRIPT = Path(__file__).with_name("conformance_client.py")
CHECKS = 15


@pytest.mark.parametrize(("package", "flavor"), [("airsim", "airsim"), ("cosysairsim", "cosys")])
def test_the_real_client_flies_the_simulator(package: str, flavor: str) -> None:
    python = conformance_python()
    if python is None:
        pytest.skip(
            "no .venv-conformance at the repository's root (`make test` makes it): the real clients did not run"
        )
    # Four times real time: the clients wait for every motion.
    with Server(Simulation(load_world("field", 1), flavor=flavor), port=0, clock_speed=4.0) as server:
        done = subprocess.run(
            [str(python), str(SCRIPT), package, str(server.port)],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CHECKS} of {CHECKS} checks passed" in done.stdout
