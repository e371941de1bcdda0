"""The experiments on the streaming memory: A sink detection, B no out-of-memory, C quality after eviction, and time.

python -m vlm_perception.experiments [a] [b] [c] [time] [--model DIR] [--video FILE] [--out DIR]

Each writes a report as text and JSON, whose first line says what ran on which machine and model. Without a model
folder (or QWEN_MODEL_PATH) a random one is used: on a GPU the 3B's shape at the true budgets, otherwise a tiny one
with the budgets scaled to hold as many chunks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .elapsed_time import experiment_time
from .memory_use import experiment_b
from .quality import experiment_c
from .setting import Report, Setting, setting
from .sink_detection import experiment_a

EXPERIMENTS: dict[str, Callable[[Setting, Path | None], Report]] = {
    "a": experiment_a,
    "b": experiment_b,
    "c": experiment_c,
    "time": experiment_time,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_perception.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(EXPERIMENTS)}; default all")
    parser.add_argument("--model", default=os.environ.get("QWEN_MODEL_PATH"), help="model folder")
    parser.add_argument(
        "--video", type=Path, default=os.environ.get("VIDEO") or None, help="for c: a real video"
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}")
    given, passed = setting(options.model), True
    for name in options.names or EXPERIMENTS:
        started = time.perf_counter()
        report = EXPERIMENTS[name](given, options.video)
        report.say(f"{'passed' if report.passed else 'FAILED'} in {time.perf_counter() - started:.0f} s")
        report.write(options.out)
        passed &= report.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
