"""`ros2 run nav_agent fly "fly to the red beacon"`: one flight from the terminal, with its progress."""

from __future__ import annotations

import argparse
import sys
import time

from nav_agent.navigator import GoalRejected, Navigator
from nav_common.data import Outcome


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when the model itself finished the flight, 1 otherwise. Ctrl-C cancels it."""
    parser = argparse.ArgumentParser(prog="fly", description=__doc__)
    parser.add_argument("instruction", nargs="+", help="where to fly, in words; several are flown in order")
    parser.add_argument("--max-decisions", type=int, default=0, help="0: the agent's own limit")
    parser.add_argument("--time-limit", type=float, default=0.0, help="seconds; 0: the agent's own limit")
    watching = (
        'asked on each new frame, such as "a person ahead?" ("no: QUESTION" comes true when it is not so)'
    )
    parser.add_argument("--watch", action="append", default=[], metavar="QUESTION", help=watching)
    parser.add_argument(
        "--hover-watch", action="append", default=[], metavar="QUESTION", help="one that stops the motion"
    )
    options = parser.parse_args(arguments)
    with Navigator() as navigator:
        try:
            navigator.fly(
                *options.instruction,
                max_decisions=options.max_decisions,
                time_limit_s=options.time_limit,
                watches=options.watch,
                hover_watches=options.hover_watch,
            )
        except (GoalRejected, TimeoutError) as error:
            print(error, file=sys.stderr)
            return 1
        try:
            _watch(navigator)
        except KeyboardInterrupt:
            print("cancelling: the drone hovers", flush=True)
            navigator.cancel()
        result = navigator.result(timeout_s=30.0)
    print(
        f"{result.outcome.name.lower()}: {result.reason} ({result.decisions} decisions, {result.distance_m:.1f} m, "
        f"{result.collisions} collisions)"
    )
    return 0 if result.outcome is Outcome.FINISHED else 1


def _watch(navigator: Navigator) -> None:
    before = None
    while not navigator.is_done():
        for feedback in navigator.unread_feedback():
            now = (feedback.state, feedback.decisions, feedback.last_tool_call, feedback.last_result)
            if now != before:
                before = now
                print(
                    f"{feedback.state.name:10} {feedback.decisions:3d}  {feedback.last_tool_call}"
                    f"{' -> ' if feedback.last_result else ''}{feedback.last_result}  "
                    f"[frame {feedback.frame_age_s:.1f} s, cache {feedback.cache_use:.0%}]",
                    flush=True,
                )
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
