"""Entry points of the nodes: Ctrl-C ends them quietly while their imports, which take seconds, still run."""

from __future__ import annotations

from nav_common.process import exit_on_signals


def record() -> None:
    exit_on_signals()
    from nav_eval.node import record as run

    run()


def live() -> None:
    exit_on_signals()
    from nav_eval.node import live as run

    run()


def truth() -> None:
    exit_on_signals()
    from nav_eval.node import truth as run

    run()


def play() -> None:
    exit_on_signals()
    from nav_eval.node import play as run

    run()
