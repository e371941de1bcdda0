"""How reliable `make test` is: it whole, several times in a row, and beside one process that keeps a core busy.

    make bench-tests ARGS="--quiet 10 --busy 5"

Each run is written to benchmarks/results/tests.json as soon as it has ended: its commit, its last line and the tests
that failed. Runs of the same code go on where the ones before were broken off (documents, recorded figures and weights
for comparisons may have changed in between); those of other code go.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
# The pilots of a comparison fly in evaluations only.
NO_CODE = (
    "docs/",
    "benchmarks/results/",
    "README.md",
    "CHANGELOG.md",
    "ros2_ws/src/nav_pilot/nav_pilot/model-",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quiet", type=int, default=10, help="runs with nothing beside them")
    parser.add_argument("--busy", type=int, default=5, help="runs beside a busy process")
    options = parser.parse_args()
    if changed := uncommitted():
        print(f"bench-tests: {changed[0]} is not committed: the runs count for a commit", file=sys.stderr)
        return 2
    described, tested = machine.describe(), code()
    runs = earlier_runs(tested)
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
                found = {"machine": described, "code": tested, "green": green, "runs": runs}
                file.write(f"{json.dumps(found, indent=2)}\n".encode())
    return 0 if all(run["green"] for run in runs) else 1


def uncommitted() -> list[str]:
    """Changed and new files that count as code."""
    lines = _git("status", "--porcelain", "--no-renames", "--untracked-files=all")
    return [path for line in lines if not (path := line[3:]).startswith(NO_CODE)]


def code() -> str:
    """Which code is tested: a hash over the committed files but those of `NO_CODE`."""
    files = [line for line in _git("ls-tree", "-r", "HEAD") if not line.split("\t")[1].startswith(NO_CODE)]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()[:12]


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def earlier_runs(tested: str) -> list[dict[str, Any]]:
    """What was recorded of this code."""
    if not RESULTS.exists():
        return []
    recorded = json.loads(RESULTS.read_text())
    runs: list[dict[str, Any]] = recorded["runs"]
    return runs if recorded["code"] == tested else []


def one_run(busy: bool) -> dict[str, Any]:
    """One whole `make test`."""
    load = os.getloadavg()[0]
    began = time.monotonic()
    done = subprocess.run(["make", "test"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:  # lint, for one, is no test: what it says is seen here only
        print(done.stdout, flush=True)
    counted = [line for line in done.stdout.splitlines() if " passed, " in line and line.endswith(" skipped")]
    return {
        "commit": machine.commit(),
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
        for path in sorted((ROOT / "ros2_ws/build").rglob("pytest.xml"))
        for case in ElementTree.parse(path).getroot().iter("testcase")
    )
    return [
        f"{path.parent.name}: {case.get('classname')}.{case.get('name')}"
        for path, case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
