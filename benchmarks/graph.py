"""The whole graph in real time: `python benchmarks/graph.py` (`make bench-graph`) writes benchmarks/results/graph.json.

- flights: `make fly` on development seeds, the shipped pilot: how soon a mission starts, how old a frame is when it
  reaches perception's queue, what a decision takes, what the judge finds in the recording.
- kills: agent, perception and bridge each killed by SIGKILL in flight; from the kill to the last moment at which the
  simulated drone was still told to move, and to standstill, on the simulator's own log.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airsim_bridge.testing.graph import Simulator, await_, own_domain
from nav_agent.navigator import GoalRejected, Navigator
from nav_common.contract import STANDSTILL_M_S
from nav_common.testing import free_port
from nav_eval import machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/graph.json"
SEEDS = range(951, 961)  # of development: neither trained on nor kept for judging the pilot
KILLED = ("nav_agent", "vlm_perception", "airsim_bridge")
MOVING_M_S = 1.0


def flights(seeds: range) -> dict[str, Any]:
    """One `make fly` after the other."""
    rows = []
    for seed in seeds:
        own_domain()
        command = [sys.executable, "-m", "nav_bringup.fly", "--seed", str(seed)]
        command += ["--airsim-port", str(free_port())]
        shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
        summary = json.loads((ROOT / "runs/latest/summary.json").read_text())
        print(seed, summary["outcome"], summary["reason"], summary["success"], flush=True)
        if summary["breaches"]:
            print(shown, flush=True)
        rows.append(summary)

    def middle(value: Callable[[dict[str, Any]], float | None]) -> float:
        return round(statistics.median(v for row in rows if (v := value(row)) is not None), 1)

    return {
        "flights": len(rows),
        "succeeded": sum(bool(row["success"]) for row in rows),
        "start_s_max": max(row["start_s"] for row in rows),
        "frame_latency_ms_p50": middle(lambda row: row["frame_latency_ms"]["p50"]),
        "frame_latency_ms_p95": middle(lambda row: row["frame_latency_ms"]["p95"]),
        "decision_latency_ms_p50": middle(lambda row: row["decision_latency_ms"]["p50"]),
        "decision_latency_ms_p95": middle(lambda row: row["decision_latency_ms"]["p95"]),
        "hover_violations": sum(row["hover_violations"] for row in rows),
        "breaches": sum(row["breaches"] for row in rows),
        "collisions": sum(row["collisions"] for row in rows),
    }


@contextmanager
def graph(simulator: Simulator) -> Iterator[int]:
    """The full stack beside a simulator in this process; the runner's process id."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["airsim_host:=127.0.0.1", f"airsim_port:={simulator.port}"]
        runner = subprocess.Popen(
            [sys.executable, "-m", "nav_bringup.runner", "full_stack", *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield runner.pid
        finally:
            runner.send_signal(signal.SIGINT)
            runner.wait()


def process_of(runner: int, name: str) -> int:
    """The process id of one of the runner's children."""
    found: list[int] = []

    def look() -> bool:
        for child in Path(f"/proc/{runner}/task/{runner}/children").read_text().split():
            if f"/{name}\0" in Path(f"/proc/{child}/cmdline").read_bytes().decode():
                found.append(int(child))
        return bool(found)

    await_(look, 60.0, name)
    return found[0]


def kills(count: int) -> dict[str, Any]:
    """Each of the three processes `count` times."""
    own_domain()
    simulator = Simulator()
    found: dict[str, list[float]] = {name: [] for name in KILLED}
    stood: dict[str, list[float]] = {name: [] for name in KILLED}
    with graph(simulator) as runner, Navigator("bench") as navigator:
        for number in range(count * len(KILLED)):
            name = KILLED[number % len(KILLED)]
            fly_until_moving(simulator, navigator)
            pid = process_of(runner, name)
            killed = simulator.time_s
            os.kill(pid, signal.SIGKILL)
            await_(lambda: simulator.speed() < STANDSTILL_M_S, 10.0, "standstill")
            stood[name].append(simulator.time_s - killed)
            found[name].append(simulator.moving_demand_ends(killed) - killed)
            print(f"{name}: told to move for {1e3 * found[name][-1]:.0f} ms more", flush=True)
    simulator.stop()
    return {
        "kills": sum(map(len, found.values())),
        "zero_velocity_s_max": {name: round(max(values), 3) for name, values in found.items()},
        "standstill_s_max": {name: round(max(values), 3) for name, values in stood.items()},
    }


def fly_until_moving(simulator: Simulator, navigator: Navigator) -> None:
    """A mission under way, the drone in forward motion; sent again for as long as one ends before."""
    end = time.monotonic() + 180.0
    while True:
        assert time.monotonic() < end, "no mission came to fly"
        if not simulator.simulation.on_ground:
            simulator.simulation.set_pose((0.0, 0.0, 2.0))
        try:
            navigator.fly("fly to the red beacon", timeout_s=5.0)
        except (TimeoutError, GoalRejected):
            time.sleep(0.2)
            continue
        while not navigator.is_done() and time.monotonic() < end:
            if simulator.speed() > MOVING_M_S and not simulator.simulation.velocity[2] > 0.3:
                return
            time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flights", type=int, default=len(SEEDS), help="of the development seeds")
    parser.add_argument("--kills", type=int, default=10, help="of each process")
    options = parser.parse_args()
    result = {
        "flights": flights(SEEDS[: options.flights]),
        "kills": kills(options.kills),
        "machine": machine.describe(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    RESULT.write_text(text + "\n")
    late = max(result["kills"]["zero_velocity_s_max"].values()) > 0.5
    return 1 if late or result["flights"]["hover_violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
