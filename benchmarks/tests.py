"""How reliable `make test` is: it whole, several times in a row, and beside one process that keeps a core busy.

    make bench-tests ARGS="--quiet 10 --busy 5"

Each run is written to benchmarks/results/tests.json as soon as it has ended: its commit, its last line and the tests
that failed. Runs of the same commit go on where the ones before were broken off; those of another commit go.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from nav_common import atomic
from nav_common.testing import busy_process
from nav_eval import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/tests.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quiet", type=int, default=10, help="runs with nothing beside them")
    parser.add_argument("--busy", type=int, default=5, help="runs beside a busy process")
    options = parser.parse_args()
    described = machine.describe()
    runs = earlier_runs(described["commit"])
    for busy, wanted in ((False, options.quiet), (True, options.busy)):
        for _ in range(wanted - sum(run["busy"] == busy for run in runs)):
            with busy_process() if busy else contextlib.nullcontext():
                runs.append(one_run(busy))
            print(json.dumps(runs[-1]), flush=True)
            green = {
                kind: f"{sum(run['green'] for run in ran)} of {len(ran)}"
                for kind in ("quiet", "busy")
                if (ran := [run for run in runs if run["busy"] == (kind == "busy")])
            }
            with atomic.replacing(RESULTS) as file:
                text = json.dumps({"machine": described, "green": green, "runs": runs}, indent=2) + "\n"
                file.write(text.encode())
    return 0 if all(run["green"] for run in runs) else 1


def earlier_runs(commit: str) -> list[dict[str, Any]]:
    """What was recorded of this commit."""
    if not RESULTS.exists():
        return []
    recorded = json.loads(RESULTS.read_text())
    same = recorded["machine"]["commit"].removesuffix("-dirty") == commit.removesuffix("-dirty")
    runs: list[dict[str, Any]] = recorded["runs"]
    return runs if same else []


def one_run(busy: bool) -> dict[str, Any]:
    """One whole `make test`."""
    load = os.getloadavg()[0]
    began = time.monotonic()
    done = subprocess.run(["make", "test"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    counted = [line for line in done.stdout.splitlines() if " passed, " in line and line.endswith(" skipped")]
    return {
        "busy": busy,
        "green": done.returncode == 0,
        "line": counted[-1] if counted else "",
        "failed": failed_tests(),
        "seconds": round(time.monotonic() - began),
        "load_before": round(load, 2),
    }


def failed_tests() -> list[str]:
    """Of the newest run."""
    cases = (
        (path, case)
        for path in sorted((ROOT / "ros2_ws/build").glob("*/pytest.xml"))
        for case in ElementTree.parse(path).getroot().iter("testcase")
    )
    return [
        f"{path.parent.name}: {case.get('classname')}.{case.get('name')}"
        for path, case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
