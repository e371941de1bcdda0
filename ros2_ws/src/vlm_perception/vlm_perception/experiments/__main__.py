"""The experiments on the streaming memory: A sink detection, B no out-of-memory, C quality after eviction, and time.

python -m vlm_perception.experiments [a] [b] [c] [time] [--model DIR] [--video FILE] [--quick] [--out DIR]

They run in this order, and a failure ends the run. Each writes a report as text and JSON, whose first line says what
ran on which machine and model, with which budgets. Without a model folder (or QWEN_MODEL_PATH) a random one is used: on
a GPU the 3B's shape at the true budgets, otherwise a tiny one with the budgets scaled to hold as many chunks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vlm_perception.engine import DeviceLostError, ModelError

from .elapsed_time import experiment_time
from .memory_use import experiment_b
from .quality import experiment_c
from .setting import Report, Setting, setting
from .sink_detection import experiment_a

# In the order in which they are to pass: a failure ends the run, to be mended first. `time` stands apart.
EXPERIMENTS: dict[str, tuple[str, Callable[[Setting, Path | None, Report], None]]] = {
    "a": ("Experiment A: sink detection", experiment_a),
    "b": ("Experiment B: no out-of-memory over 320 frames", experiment_b),
    "c": ("Experiment C: quality after eviction", experiment_c),
    "time": ("Time in the memory: tags, jumps, nothing", experiment_time),
}


def run(name: str, given: Setting, video: Path | None, out: Path) -> bool:
    """Run one experiment and write its report, whatever ends it; whether it passed."""
    title, experiment = EXPERIMENTS[name]
    report, started = Report(name, title), time.perf_counter()
    try:
        experiment(given, video, report)
    except (
        ValueError,
        RuntimeError,
        DeviceLostError,
    ) as error:  # a budget that does not fit, no memory, a lost GPU
        report.check(f"it ran to its end ({type(error).__name__}: {error})", False)
    report.say(f"{'passed' if report.passed else 'FAILED'} in {time.perf_counter() - started:.0f} s")
    report.write(out)
    return report.passed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_perception.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(EXPERIMENTS)}; default all")
    parser.add_argument("--model", default=os.environ.get("QWEN_MODEL_PATH"), help="model folder")
    parser.add_argument(
        "--video", type=Path, default=os.environ.get("VIDEO") or None, help="for c: a real video"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=None, help="default: a GPU if there is one"
    )
    parser.add_argument(
        "--quick", action="store_true", help="b at its first budget only, c over a short film"
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}")
    try:
        given = setting(options.model, options.device, options.quick)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = [name for name in EXPERIMENTS if name in (options.names or EXPERIMENTS)]
    for name in names:
        if not run(name, given, options.video, options.out):
            left = names[names.index(name) + 1 :]
            print(
                f"experiment {name} failed: its report is in {options.out}; not run: {', '.join(left) or 'none'}"
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
