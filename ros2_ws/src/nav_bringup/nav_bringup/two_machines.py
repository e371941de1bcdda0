"""Missions as two machines fly them (`make two-machines`): edge and server apart, a bad internet between them.

    python -m nav_bringup.two_machines --internet wan cut

flies one mission across each profile and writes `link.json` beside the last flight's summary: ages and losses as both
sides' graphs saw them, how soon the drone stood after an outage, how soon it flew again.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nav_bringup import mission
from nav_bringup.graph import ArgumentError, deployment, edge_domain
from nav_bringup.watch import Received, Watch
from nav_common import topics
from nav_common.contract import COMMAND_MAX_AGE_S, COMMAND_TIMEOUT_S, STATE_PERIOD_S
from nav_common.data import Decision, DroneState, GateMode, LinkState, Twist, VelocityCommand
from nav_common.process import CONFIGURATION_ERROR, exit_on_signals
from nav_common.topics import Topic
from nav_eval import machine


def fly(internet: str, words: Sequence[str], runs: Path) -> tuple[int, Path, dict[str, Any]]:
    """One mission: (exit status, its folder, its figures)."""
    of_both: dict[Topic, type[Any]] = {topics.LINK_STATE: LinkState, topics.COMMAND: VelocityCommand}
    server = Watch(None, {**of_both, topics.DECISION: Decision})
    edge = Watch(edge_domain(), {**of_both, topics.STATE: DroneState})
    try:
        status = mission.main([*words, "--link", "--internet", internet, "--runs", str(runs)])
        folder = (runs / "latest").resolve()
        flown = json.loads((folder / "summary.json").read_text())
        return status, folder, {**figures(server, edge), **{key: flown.get(key) for key in SUMMARY}}
    finally:
        edge.close()
        server.close()


SUMMARY = ("hover_violations", "breaches", "outcome", "success")


def figures(server: Watch, edge: Watch) -> dict[str, Any]:
    """Of one flight. Ages are samples of the link states, ten a second, while the link is up."""
    server_links = [state for state in server.of(topics.LINK_STATE) if state.up]
    edge_links = [state for state in edge.of(topics.LINK_STATE) if state.up]
    sent = {(command.epoch, command.sequence) for command in server.of(topics.COMMAND)}
    received = {(command.epoch, command.sequence) for command in edge.of(topics.COMMAND)}
    hover_s, recover_s = outages(
        edge.of(topics.LINK_STATE), edge.of(topics.STATE), edge.received(topics.COMMAND)
    )
    decisions: list[Decision] = server.of(topics.DECISION)
    latencies_ms = [decision.total_ms for decision in decisions]
    frame_ages_ms = [1000 * (d.stamp_s - d.frame_stamp_s) for d in decisions if d.tool]
    commands, states = edge.received(topics.COMMAND), edge.of(topics.STATE)
    return {
        "image_age_ms": _percentiles([s.image_age_ms for s in server_links if s.image_age_ms >= 0]),
        "command_age_ms": _percentiles([s.command_age_ms for s in edge_links if s.command_age_ms >= 0]),
        "commands_sent": len(sent),
        "commands_lost": len(sent - received),
        "commands_arrived_stale": sum(_is_stale(command) for command in commands),
        "stale_commands_executed": stale_commands_executed(commands, states),
        "outages": max((state.outages for state in edge.of(topics.LINK_STATE)), default=0),
        "time_to_hover_s": max(hover_s, default=None),
        "time_to_recover_s": max(recover_s, default=None),
        "decision_latency_ms": statistics.median(latencies_ms) if latencies_ms else None,
        "frame_age_at_decision_ms": _percentiles(frame_ages_ms),
        "uplink_mbit_s": statistics.fmean(s.sent_mbit_s for s in edge_links) if edge_links else None,
    }


def outages(
    links: Sequence[LinkState], states: Sequence[DroneState], commands: Sequence[Received]
) -> tuple[list[float], list[float]]:
    """Of each outage in flight: from the last answer until the gate no longer followed commands, and from the link's
    return until a command moved the drone that was sent for a new decision (after the gate's stop: of an epoch not
    older than the one at the return); s, on the edge's clock."""
    hover_s, recover_s = [], []
    lost = False  # before the first take-off the link comes up too: that is no return
    for before, after in itertools.pairwise(links):
        if before.up and not after.up:
            lost = True
            began = after.stamp_s - after.answer_age_s
            active = [state.gate_mode is GateMode.ACTIVE for state in states if state.stamp_s <= began]
            if active and active[-1]:
                held = (s for s in states if s.stamp_s > began and s.gate_mode is not GateMode.ACTIVE)
                hover_s += [s.stamp_s - began for s in itertools.islice(held, 1)]
        elif after.up and not before.up and lost:
            epoch = max((state.epoch for state in states if state.stamp_s <= after.stamp_s), default=0)
            moving = (
                c
                for c in commands
                if c.at_s > after.stamp_s and c.data.epoch >= epoch and c.data.twist != Twist()
            )
            recover_s += [c.at_s - after.stamp_s for c in itertools.islice(moving, 1)]
    return hover_s, recover_s


def _is_stale(command: Received) -> bool:
    return bool(command.at_s - command.data.stamp_s > COMMAND_MAX_AGE_S)


def stale_commands_executed(commands: Sequence[Received], states: Sequence[DroneState]) -> int:
    """Commands that came to the edge older than the gate takes them, and kept the gate ACTIVE: those after which it
    says so in the command's own epoch, before a fresh command came and too long after the last one for that to be the
    reason. On the edge's clock."""
    executed, fresh_s = 0, float("-inf")
    times_s = [state.stamp_s for state in states]
    for index, command in enumerate(commands):
        if not _is_stale(command):
            fresh_s = command.at_s
            continue
        began_s = max(command.at_s, fresh_s + COMMAND_TIMEOUT_S + STATE_PERIOD_S)
        next_fresh_s = (later.at_s for later in commands[index + 1 :] if not _is_stale(later))
        ended_s = min(command.at_s + COMMAND_TIMEOUT_S, next(next_fresh_s, float("inf")))
        said = states[bisect.bisect_right(times_s, began_s) : bisect.bisect_left(times_s, ended_s)]
        executed += any(s.gate_mode is GateMode.ACTIVE and s.epoch == command.data.epoch for s in said)
    return executed


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"p50": None, "p95": None}
    cuts = statistics.quantiles(values, n=20)
    return {"p50": cuts[9], "p95": cuts[18]}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: of the flights the worst."""
    parser = argparse.ArgumentParser(
        prog="python -m nav_bringup.two_machines", description="Missions across a bad internet."
    )
    parser.add_argument("--internet", nargs="+", default=["wan"], help="profiles; default: wan")
    parser.add_argument("--runs", default=Path("runs"), type=Path, help="where the flights' folders are made")
    options, of_the_mission = parser.parse_known_args(words)
    try:
        for internet in options.internet:
            deployment("full_stack").processes({"link": "true", "internet": internet})
    except ArgumentError as error:
        print(f"two-machines: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    profiles: dict[str, Any] = {}
    worst, folder = 0, options.runs
    for internet in options.internet:
        status, folder, profiles[internet] = fly(internet, of_the_mission, options.runs)
        worst = max(worst, status)
    path = folder / "link.json"
    path.write_text(json.dumps({"machine": machine.describe(), "profiles": profiles}, indent=2) + "\n")
    print(json.dumps(profiles, indent=2))
    print(path)
    return worst


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
