"""`python -m airsim_sim --scene field --seed 1`: the simulator as a server, until SIGINT, SIGTERM or SIGHUP."""

from __future__ import annotations

import sys

from nav_common.process import StopSignals, exit_on_signals


def main() -> int:
    """Runs the command; its exit status."""
    exit_on_signals()  # before the imports, which take a second
    from airsim_sim.command import run

    return run(sys.argv[1:], StopSignals().wait)


if __name__ == "__main__":
    sys.exit(main())
