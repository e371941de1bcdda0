"""`python -m airsim_sim --scene field --seed 1`: the simulator as a server, until SIGINT, SIGTERM or SIGHUP."""

from __future__ import annotations

import queue
import signal
import sys


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; its exit status. The signals' handlers are back in place when it returns."""
    # Handlers before the imports, which take a second. A SimpleQueue, since `put` is reentrant: a second signal may
    # come while the handler of the first one runs, and then `Event.set` would wait for its own lock.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    replaced = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            replaced[number] = signal.signal(number, lambda number, _: signals.put(number))
    try:
        from airsim_sim.command import run

        return run(arguments, signals)
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
