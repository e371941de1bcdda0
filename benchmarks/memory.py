"""The identity memory without a flight: `python benchmarks/memory.py` writes benchmarks/results/memory.json.

- match_precision, match_recall: links between mentions of one entity, over the sequences of
  benchmarks/instructions/reported.txt, which nothing was tuned on.
- kills, inconsistent: a process that writes to a memory bank is killed at random moments; after each kill the bank is
  opened again, and counted when mapping.json and the archived frames do not agree or a frame is not whole.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from nav_eval import machine
from vlm_perception.testing import bank_writer, instruction_sequences

ROOT = Path(__file__).resolve().parent.parent


def matching() -> dict[str, object]:
    sequences = instruction_sequences.read(ROOT / "benchmarks/instructions/reported.txt")
    score = instruction_sequences.score(sequences)
    return {
        "sequences": len(sequences),
        "links": score.existing,
        "match_precision": round(score.precision, 3),
        "match_recall": round(score.recall, 3),
        "mistakes": score.mistakes,
    }


def kills(count: int) -> dict[str, object]:
    rng = random.Random(0)
    inconsistent = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            bank_writer.kill_while_writing(Path(folder), number, rng.uniform(0.0, 0.3))
            inconsistent += [f"kill {number}: {text}" for text in bank_writer.inconsistencies(Path(folder))]
            print(f"kill {number + 1} of {count}, {len(inconsistent)} inconsistent", end="\r", flush=True)
    print()
    return {"kills": count, "inconsistent": len(inconsistent), "inconsistencies": inconsistent}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    result = {"machine": machine.describe(), **matching(), **kills(options.kills)}
    path = ROOT / "benchmarks/results/memory.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
