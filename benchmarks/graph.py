"""The whole graph in real time: `python benchmarks/graph.py` (`make bench-graph`) writes benchmarks/results/graph.json.

- flights: `make fly` on development seeds, the shipped pilot: how soon a mission starts, how old a frame is when it
  reaches perception's queue, what a decision takes, what the judge finds in the recording.
- kills: agent, perception and bridge each killed by SIGKILL in flight; from the kill to the last moment at which the
  simulated drone was still told to move, and to standstill, on the simulator's own log.
- motions_broken_off: tool calls by a scripted memory in the real graph (simulator, bridge and agent as processes), on a
  quiet machine and beside one busy process: how many the gate ended because no command came for 0.3 s, and the gaps
  between commands by the odometry stamps that they echo (30 Hz), not by when they arrive in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airsim_bridge.testing.graph import Simulator, await_, own_domain
from nav_agent.navigator import GoalRejected, Navigator
from nav_agent.testing.graph import fly, running_graph
from nav_agent.testing.rig import call
from nav_common.contract import STANDSTILL_M_S, ZERO_VELOCITY_WITHIN_S
from nav_common.data import DroneState, GateMode, GenerateGoal, GenerateStatus, VelocityCommand
from nav_common.result_lines import StopReason
from nav_common.testing import busy_process, free_port
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


@contextlib.contextmanager
def graph(simulator: Simulator, *more: str, **environment: str) -> Iterator[int]:
    """The full stack beside a simulator in this process, with `more` arguments; the runner's process id."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["airsim_host:=127.0.0.1", f"airsim_port:={simulator.port}", *more]
        runner = subprocess.Popen(
            [sys.executable, "-m", "nav_bringup.runner", "full_stack", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
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


# Around a square, so that the flight stays where it began.
SQUARE = (call("move_forward", distance_m=4), call("turn_left", angle_deg=90))
MOTION_S = 12.0  # the longest that one call may take


def motions(calls: int, busy: bool) -> dict[str, Any]:
    """`calls` tool calls, beside one busy process or not."""
    script = itertools.cycle(SQUARE)

    def answer(_: GenerateGoal) -> str:
        return next(script)

    with (
        busy_process() if busy else contextlib.nullcontext(),
        tempfile.TemporaryDirectory() as folder,
        running_graph(Path(folder) / "logs", answer) as graph,
        Navigator("bench") as navigator,
    ):
        # One more decision than calls: a call's result is told with the next one.
        fly(navigator, "fly squares", max_decisions=calls + 1, time_limit_s=MOTION_S * calls)
        result = navigator.result(timeout_s=MOTION_S * calls + 60.0)
        if result.decisions <= calls:
            print(graph.logs())
            raise RuntimeError(f"{result.decisions} of {calls + 1} calls were flown: {result}")
        decisions = [d for d in graph.watcher.decisions if d.status is GenerateStatus.OK]
        results = [decision.previous_result for decision in decisions[1:]]
        gaps = _gaps(graph.watcher.commands)
        reasons = _reasons(graph.watcher.states)
    return {
        "calls": len(results),
        "broken": sum(StopReason.GATE in result for result in results),
        "other_stops": sum(
            reason in result for result in results for reason in StopReason if reason is not StopReason.GATE
        ),
        "gate_reasons": reasons,
        "command_gap_s": gaps,
        "load": round(os.getloadavg()[0], 1),
    }


def _reasons(states: list[DroneState]) -> dict[str, int]:
    """Why the gate left ACTIVE, and how often; after a refusal, with the last one."""
    left = [b for a, b in itertools.pairwise(states) if a.gate_mode is GateMode.ACTIVE is not b.gate_mode]
    return dict(Counter(f"{state.gate_reason} ({state.last_refusal})" for state in left))


def _gaps(commands: list[VelocityCommand]) -> dict[str, float]:
    """Between commands that follow each other by number: lost ones are the network's matter."""
    gaps = sorted(
        b.stamp_s - a.stamp_s for a, b in itertools.pairwise(commands) if b.sequence == a.sequence + 1
    )

    def quantile(q: float) -> float:
        return round(gaps[min(len(gaps) - 1, int(q * len(gaps)))], 3)

    return {
        "n": len(gaps),
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "p99.9": quantile(0.999),
        "max": round(gaps[-1], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flights", type=int, default=len(SEEDS), help="of the development seeds")
    parser.add_argument("--kills", type=int, default=10, help="of each process")
    parser.add_argument(
        "--motions", type=int, default=120, help="tool calls quiet, and as many beside a busy process"
    )
    parser.add_argument("--only-motions", action="store_true", help="the rest of the file stays as it is")
    options = parser.parse_args()
    if options.only_motions:
        result = json.loads(RESULT.read_text())
        result["motions_broken_off"] = both(options.motions)
        return write(result)
    result = {
        "flights": flights(SEEDS[: options.flights]),
        "kills": kills(options.kills),
        "motions_broken_off": both(options.motions),
        "machine": machine.describe(),
    }
    return write(result)


def both(calls: int) -> dict[str, Any]:
    """motions, first quiet and then beside a busy process."""
    return {name: motions(calls, busy) for name, busy in (("quiet", False), ("loaded", True))}


def write(result: dict[str, Any]) -> int:
    """Into the results; the exit status: 1 where a safety figure is missed."""
    text = json.dumps(result, indent=2)
    print(text)
    RESULT.write_text(text + "\n")
    late = max(result["kills"]["zero_velocity_s_max"].values()) > ZERO_VELOCITY_WITHIN_S
    return 1 if late or result["flights"]["hover_violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
