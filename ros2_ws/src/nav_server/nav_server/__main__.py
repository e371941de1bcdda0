"""Command line: `python -m nav_server COMMAND`. Each module that has a command adds it by its `add_command`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from nav_common.process import CONFIGURATION_ERROR
from nav_server import check, policy, profile, serve

# Each gets the sub-parsers, adds its own, and sets `run` (options -> exit status) as a default.
COMMANDS: tuple[Callable[[argparse._SubParsersAction[argparse.ArgumentParser]], None], ...] = (
    profile.add_command,
    serve.add_command,
    policy.add_command,
    check.add_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2 where its configuration is refused."""
    parser = argparse.ArgumentParser(prog="python -m nav_server", description="The robot brain as a service.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ValueError as error:
        print(f"nav_server {options.command}: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR


if __name__ == "__main__":
    sys.exit(main())
