"""Missions as two machines fly them (`make two-machines`): edge and server apart, a bad internet between them.

    python -m nav_bringup.two_machines --internet wan cut

flies one mission across each profile and writes `link.json` beside the last flight's summary: ages and losses as both
sides' graphs saw them, how soon the drone stood after an outage, how soon it flew again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from nav_bringup import mission
from nav_bringup.graph import ArgumentError, deployment, edge_domain
from nav_common import conversions, topics
from nav_common.data import Decision, DroneState, GateMode, LinkState, VelocityCommand
from nav_common.process import CONFIGURATION_ERROR, exit_on_signals
from nav_common.ros import subscription
from nav_common.topics import Topic


class Watch:
    """What one side's graph says, with a ROS domain of its own: data by type, in order of arrival."""

    def __init__(self, domain: int | None, watched: dict[Topic, type[Any]]) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = Node("two_machines", context=self._context)
        self._heard: dict[type[Any], list[Any]] = {cls: [] for cls in watched.values()}
        for topic, cls in watched.items():
            self._listen(topic, cls)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._spinner = threading.Thread(target=self._executor.spin, name="watch", daemon=True)
        self._spinner.start()

    def _listen(self, topic: Topic, cls: type[Any]) -> None:
        def keep(payload: bytes) -> None:
            self._heard[cls].append(conversions.decode(cls, payload))

        subscription(self._node, topic, topics.DEFAULT_VEHICLE_NAMESPACE, keep, raw=True)

    def of(self, cls: type[Any]) -> list[Any]:
        return list(self._heard[cls])

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._spinner.join(2.0)
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)


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
    server_links = [state for state in server.of(LinkState) if state.up]
    edge_links = [state for state in edge.of(LinkState) if state.up]
    sent = {(command.epoch, command.sequence) for command in server.of(VelocityCommand)}
    received = {(command.epoch, command.sequence) for command in edge.of(VelocityCommand)}
    hover_s, recover_s = outages(edge.of(LinkState), edge.of(DroneState))
    latencies_ms = [decision.total_ms for decision in server.of(Decision)]
    return {
        "image_age_ms": _percentiles([s.image_age_ms for s in server_links if s.image_age_ms >= 0]),
        "command_age_ms": _percentiles([s.command_age_ms for s in edge_links if s.command_age_ms >= 0]),
        "commands_sent": len(sent),
        "commands_lost": len(sent - received),
        "outages": max((state.outages for state in edge.of(LinkState)), default=0),
        "time_to_hover_s": max(hover_s, default=None),
        "time_to_recover_s": max(recover_s, default=None),
        "decision_latency_ms": statistics.median(latencies_ms) if latencies_ms else None,
        "uplink_mbit_s": statistics.fmean(s.sent_mbit_s for s in edge_links) if edge_links else None,
    }


def outages(links: Sequence[LinkState], states: Sequence[DroneState]) -> tuple[list[float], list[float]]:
    """Of each outage in flight: from the last answer until the gate no longer followed commands, and from the link's
    return until it followed them again; s, on the edge's clock."""
    hover_s, recover_s = [], []
    for before, after in itertools.pairwise(links):
        if before.up and not after.up:
            began = after.stamp_s - after.answer_age_s
            active = [state.gate_mode is GateMode.ACTIVE for state in states if state.stamp_s <= began]
            if active and active[-1]:
                held = (s for s in states if s.stamp_s > began and s.gate_mode is not GateMode.ACTIVE)
                hover_s += [s.stamp_s - began for s in itertools.islice(held, 1)]
        elif after.up and not before.up:
            flying = (s for s in states if s.stamp_s > after.stamp_s and s.gate_mode is GateMode.ACTIVE)
            recover_s += [s.stamp_s - after.stamp_s for s in itertools.islice(flying, 1)]
    # The link comes up before the first take-off too: that is no return.
    return hover_s, recover_s[1:]


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
    path.write_text(json.dumps({"profiles": profiles}, indent=2) + "\n")
    print(json.dumps(profiles, indent=2))
    print(path)
    return worst


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
