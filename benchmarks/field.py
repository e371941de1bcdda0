"""How often the shipped pilot reaches the beacon of the open field: `python benchmarks/field.py [--seeds 1001-1010]`.

Missions in lock-step (nav_eval.lockstep) over seeds that nothing was trained on, reflex off; and the same with grey
pictures, which tells that it is the pictures that fly. Writes benchmarks/results/field.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import nav_pilot
from nav_eval import machine
from nav_eval.lockstep import LockStepSettings
from nav_eval.missions import parse_seeds, run, summary

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1001-1010")
    parser.add_argument("--model", type=Path, help="default: the pilot shipped in nav_pilot")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/field.json")
    options = parser.parse_args()
    seeds = parse_seeds(options.seeds)
    results: dict[str, object] = {"scene": "field", "seeds": options.seeds, "machine": machine.describe()}
    for name, settings in (("seeing", LockStepSettings()), ("blank", LockStepSettings(blank=True))):
        print(name)
        episodes = run("field", seeds, options.model or nav_pilot.model_folder(), settings)
        results[name] = {
            "settings": asdict(settings),
            "summary": summary(episodes),
            "episodes": [asdict(episode) for episode in episodes],
        }
        print(json.dumps(summary(episodes), indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
