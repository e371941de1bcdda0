"""Entry points: Ctrl-C ends the process quietly while its imports, which take seconds, still run."""

from __future__ import annotations

from nav_common.process import exit_on_signals


def main() -> int:
    """The node."""
    exit_on_signals()
    from airsim_bridge.node import main as run

    return run()


def edge() -> int:
    """The edge without ROS."""
    exit_on_signals()
    from airsim_bridge.edge import main as run

    return run()


def record_flight() -> int:
    """A flight by hand, recorded."""
    exit_on_signals()
    from airsim_bridge.record_flight import main as run

    return run()
