"""Instruction sequences with marked mentions, and how well extractor and registry match them.

The files' form is described in benchmarks/instructions/README.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vlm_perception.identity.mentions import find_mentions
from vlm_perception.identity.registry import EntityRegistry

_MARK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")


@dataclass(frozen=True)
class Mark:
    """A mention as a person marked it: characters start to end, and the ids of the entities it stands for."""

    start: int
    end: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class MarkedInstruction:
    text: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Score:
    """Links from a mention back to an earlier one: `made` by the registry, of those `right`; `existing` by the marks,
    of those `found`. mistakes: one line each."""

    made: int
    right: int
    existing: int
    found: int
    mistakes: tuple[str, ...]

    @property
    def precision(self) -> float:
        return self.right / self.made if self.made else 1.0

    @property
    def recall(self) -> float:
        return self.found / self.existing if self.existing else 1.0


def read(path: Path) -> dict[str, list[MarkedInstruction]]:
    """The sequences of a file by name.

    Raises:
        ValueError: a sequence without a name, or two of one name.
    """
    sequences: dict[str, list[MarkedInstruction]] = {}
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        title, *lines = block.splitlines()
        name = title.removeprefix("# ")
        if name == title or name in sequences:
            raise ValueError(f"{path}: {title!r} is no name of a sequence, or the second of that name")
        sequences[name] = [_parse(line) for line in lines]
    return sequences


def _parse(line: str) -> MarkedInstruction:
    text, marks, end = "", [], 0
    for mark in _MARK.finditer(line):
        text += line[end : mark.start()]
        marks.append(Mark(len(text), len(text) + len(mark[1]), tuple(mark[2].split())))
        text += mark[1]
        end = mark.end()
    return MarkedInstruction(text + line[end:], tuple(marks))


def score(sequences: dict[str, list[MarkedInstruction]]) -> Score:
    """Every sequence through a registry of its own."""
    parts = [_score_sequence(name, instructions) for name, instructions in sequences.items()]
    made, right, existing, found = (sum(getattr(p, name) for p in parts) for name in _COUNTS)
    return Score(made, right, existing, found, tuple(line for p in parts for line in p.mistakes))


_COUNTS = ("made", "right", "existing", "found")


def _score_sequence(name: str, instructions: list[MarkedInstruction]) -> Score:
    registry = EntityRegistry()
    truth: dict[str, str] = {}
    """What each of the registry's ids really is: the mark of its first mention."""
    known: set[str] = set()
    made = right = existing = found = 0
    mistakes = []
    for instruction in instructions:
        matches = registry.add_instruction(find_mentions(instruction.text))
        linked: dict[Mark, set[str]] = {mark: set() for mark in instruction.marks}
        for match in matches:
            mention = match.mention
            marks = [m for m in instruction.marks if m.start < mention.end and mention.start < m.end]
            ids = marks[0].ids if marks else ()
            if match.new:
                truth[match.entity_ids[0]] = ids[0] if ids else f"unmarked {mention.text!r}"
                continue
            meant = {truth[entity_id] for entity_id in match.entity_ids}
            made += len(meant)
            right += len(meant & set(ids))
            for mark in marks[:1]:
                linked[mark] |= meant
            if meant - set(ids):
                mistakes.append(f"{name}: {mention.text!r} is {list(ids)}, taken for {sorted(meant)}")
        for mark in instruction.marks:
            expected = set(mark.ids) & known
            existing += len(expected)
            found += len(expected & linked[mark])
            if expected - linked[mark]:
                text = instruction.text[mark.start : mark.end]
                mistakes.append(f"{name}: {text!r} not linked to {sorted(expected - linked[mark])}")
            known |= set(mark.ids)
    return Score(made, right, existing, found, tuple(mistakes))
