"""Landings after turns: python benchmarks/landings.py, about a minute; writes benchmarks/results/landings.json.

Each landing is a flight of its own in the embedded simulator, drawn by a seed: some motions that turn, then down from 1
to 3 m, in turn by AirSim's own `land` and as the bridge lands. A rebound is a rise above what the drone had come down
to; a ground contact is one that the simulator counts as a collision. Exit status 1 when there was either.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from airsim_sim.testing.landings import REBOUND_M, land_as_airsim, land_as_the_bridge, landed_after_turns
from nav_common import atomic
from nav_eval import machine

RESULT = Path(__file__).resolve().parent / "results/landings.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--landings", type=int, default=300)
    options = parser.parse_args()
    rebounds_m = []
    contacts = 0
    for seed in range(options.landings):
        landing = landed_after_turns(seed, land_as_the_bridge if seed % 2 else land_as_airsim)
        if not landing.landed:
            raise RuntimeError(f"the flight of seed {seed} did not end on the ground")
        rebounds_m.append(landing.rebound_m)
        contacts += landing.contacts
        print(
            f"landing {seed + 1} of {options.landings}, highest rebound {max(rebounds_m):.3f} m, "
            f"{contacts} ground contacts",
            end="\r",
            flush=True,
        )
    print()
    rebounds = sum(rebound_m > REBOUND_M for rebound_m in rebounds_m)
    result = {
        "machine": machine.describe(),
        "landings": options.landings,
        "rebounds_over_5_cm": rebounds,
        "ground_contacts": contacts,
        "highest_rebound_m": round(max(rebounds_m), 4),
    }
    atomic.write_text(RESULT, json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())
    return 1 if rebounds or contacts else 0


if __name__ == "__main__":
    sys.exit(main())
