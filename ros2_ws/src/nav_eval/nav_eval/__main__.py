"""Command line: `python -m nav_eval check BAG`, `repair`, and the rest of what is done with recordings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nav_eval import bags, judge


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 well, 1 breaches found, 2 not possible."""
    parser = argparse.ArgumentParser(prog="nav_eval", description="Record, judge and replay flights.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_check, _add_repair):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except bags.BagError as error:
        print(f"nav_eval {options.command}: {error}", file=sys.stderr)
        return 2


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("check", help="report each breach of the safety invariants in a recording")
    parser.add_argument("bag", type=Path, help="rosbag2 directory, .mcap or .db3 file")
    parser.add_argument(
        "--vehicle", help="namespace of the vehicle's topics (default: the only one recorded)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    report = judge.check(options.bag, options.vehicle)
    print(json.dumps(report.as_dict(), indent=2) if options.json else report.text())
    return 1 if report.breaches else 0


def _add_repair(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("repair", help="save what is whole of an MCAP recording that was cut off")
    parser.add_argument("bag", type=Path)
    parser.add_argument("output", type=Path, help="directory to make for what is saved")
    parser.set_defaults(run=_repair)


def _repair(options: argparse.Namespace) -> int:
    print(f"{bags.repair(options.bag, options.output)} messages saved in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
