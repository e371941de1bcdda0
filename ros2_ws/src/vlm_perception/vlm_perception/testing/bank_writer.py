"""A memory bank that is busy until it is killed: `python -m vlm_perception.testing.bank_writer FOLDER SEED`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from vlm_perception.identity.bank import Candidate, MemoryBank

COLOURS = ("red", "blue", "white", "green")
KINDS = ("car", "pillar", "tree", "shed")
MAX_BYTES = 200_000


def write_for_ever(folder: Path, seed: int) -> None:
    """Instructions and frames as fast as the disk takes them; prints a line once the bank is open."""
    rng = random.Random(seed)
    bank = MemoryBank(folder, max_bytes=MAX_BYTES, on_warning=print)
    print("open", flush=True)
    chunk = 3
    while True:
        bank.add_instruction(f"go to the {rng.choice(COLOURS)} {rng.choice(KINDS)}")
        bank.keep_cached(range(chunk - 10, chunk + 1))
        for frame in bank.to_recall():
            chunk += 1
            bank.recalled([frame], chunk)
            bank.save()
        for _ in range(rng.randrange(12)):
            chunk += 1
            jpeg = b"\xff\xd8" + rng.randbytes(rng.randrange(500, 40_000)) + b"\xff\xd9"
            bank.add_frame(Candidate(chunk, 0, float(chunk), jpeg), bank.sought)


def kill_while_writing(folder: Path, seed: int, after_s: float) -> None:
    """Start a writer on the folder and kill it (SIGKILL) `after_s` seconds after it opened."""
    command = [sys.executable, "-m", "vlm_perception.testing.bank_writer", str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(after_s)
        writer.kill()


def inconsistencies(folder: Path) -> list[str]:
    """What is wrong with a bank that is opened after a kill: in what it warns of, and in what mapping.json says."""
    wrong: list[str] = []
    bank = MemoryBank(folder, max_bytes=MAX_BYTES, on_warning=wrong.append)
    mapping = json.loads((folder / "mapping.json").read_bytes())
    named = {*mapping["frame_archive"], *mapping["frame_active_memory"]}
    on_disk = {path.stem for path in (folder / "frames").glob("*.jpg")}
    if named != on_disk:
        wrong.append(f"mapping.json and the folder differ in {sorted(named ^ on_disk)}")
    for name, frame in bank.archive.frames.items():
        jpeg = bank.archive.read(name)
        if not jpeg or jpeg[:2] != b"\xff\xd8" or jpeg[-2:] != b"\xff\xd9":
            wrong.append(f"{name} is not whole")
        unknown = set(frame.entity_ids) - set(mapping["global_registry"])
        if unknown:
            wrong.append(f"{name} was kept for {sorted(unknown)}, which no instruction named")
    return wrong


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]), int(sys.argv[2]))
