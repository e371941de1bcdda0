"""Entry point of the node: Ctrl-C ends it quietly while its imports, which take seconds, still run."""

from __future__ import annotations

from nav_common.process import exit_on_signals


def main() -> int:
    exit_on_signals()
    from zenoh_link.node import main as run

    return run()
