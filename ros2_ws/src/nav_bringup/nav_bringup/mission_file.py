"""Files of missions for `make fly MISSION_FILE=...`.

`.txt`: one instruction a line, each a mission of its own. `.jsonl`: a mission a line, its instructions in order and,
where they are not to wait for each other, the frames at which those after the first begin:

    {"prompts": ["fly to the red car", "go to the blue beacon", "go back to the red car"]}
    {"prompts": ["fly to the red car", "go back to the shed"], "switch_frame_indices": [40]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nav_bringup.graph import ArgumentError

_KEYS = {"prompts", "switch_frame_indices"}


@dataclass(frozen=True)
class PlannedMission:
    """Instructions in order. switch_frame_indices: see NavigateGoal."""

    instructions: tuple[str, ...]
    switch_frame_indices: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        return " / ".join(self.instructions)


def read(path: Path) -> list[PlannedMission]:
    """The missions of a file, blank lines left out.

    Raises:
        ArgumentError: it cannot be read, or a line is no mission; names file and line.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ArgumentError(
            f"mission file is {str(path)!r}: a .txt (an instruction a line) or a .jsonl is wanted"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"mission file {path} cannot be read: {error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ArgumentError(f"mission file {path} is empty: write an instruction on each line")
    if path.suffix == ".txt":
        return [PlannedMission((line,)) for _, line in numbered]
    return [_mission(line, f"{path}, line {number}") for number, line in numbered]


def _mission(line: str, where: str) -> PlannedMission:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise ArgumentError(f"{where}: no JSON ({error})") from None
    if not isinstance(given, dict) or not set(given) <= _KEYS or "prompts" not in given:
        raise ArgumentError(f'{where}: expected {{"prompts": [...]}}, perhaps with "switch_frame_indices"')
    prompts, frames = given["prompts"], given.get("switch_frame_indices", [])
    if (
        not isinstance(prompts, list)
        or not prompts
        or not all(isinstance(p, str) and p.strip() for p in prompts)
    ):
        raise ArgumentError(f"{where}: prompts are {prompts!r:.80}, must be texts, at least one")
    if not isinstance(frames, list) or not all(type(frame) is int and frame > 0 for frame in frames):
        raise ArgumentError(
            f"{where}: switch_frame_indices are {frames!r:.80}, must be positive whole numbers"
        )
    if frames and (len(frames) != len(prompts) - 1 or frames != sorted(set(frames))):
        raise ArgumentError(
            f"{where}: {len(prompts)} prompts need {len(prompts) - 1} switch_frame_indices, each higher than the one "
            f"before; there are {frames}"
        )
    return PlannedMission(tuple(prompts), tuple(frames))
