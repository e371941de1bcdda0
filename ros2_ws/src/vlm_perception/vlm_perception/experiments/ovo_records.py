"""OVO-Bench's records: its JSON file becomes questions with a time, the answers allowed and the right one.

The format is that of `ovo_bench_new.json` (github.com/JoeLeelyf/OVO-Bench): nine tasks with `question`, `options`, `gt`
and `realtime`, and three forward tasks whose `test_info` lists the times at which the same thing is asked again.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUPS = {
    "backward": ("EPM", "ASI", "HLD"),
    "real-time": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}
TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)
FILE_PATTERN = "ovo_bench*.json"
VIDEO_FOLDER = "src_videos"
LETTERS = "ABCDEFGH"
# The largest count in the benchmark's own file, and so the largest answer that REC allows.
LARGEST_COUNT = 10
YES_NO = ("No", "Yes")  # at the places of `type` 0 and 1


class OvoError(ValueError):
    """A folder, file or record that cannot be used: names the file, the record, the field and the remedy."""


@dataclass(frozen=True)
class Question:
    """One ask. time_s: seconds from the video's start. answer: the right one of `choices`."""

    record: int
    task: str
    time_s: float
    text: str
    choices: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Record:
    """One sample of the benchmark: one question, or with a forward task one for each entry of `test_info`."""

    id: int
    task: str
    video: Path
    questions: tuple[Question, ...]


def load_records(folder: Path) -> list[Record]:
    """All records of the one JSON file in `folder` or `folder/data`; the videos lie in `src_videos` beside it.

    Raises:
        OvoError: no such file or more than one, not JSON, or a record that does not have the format. Whether the
            videos are there is not looked at.
    """
    file = _records_file(folder)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OvoError(f"{file} is not JSON ({error}): fetch it anew") from None
    if not isinstance(values, list):
        raise OvoError(
            f"{file} holds a {type(values).__name__}, not a list of records: give OVO-Bench's own file"
        )
    beside = file.parent / VIDEO_FOLDER
    videos = beside if beside.is_dir() else file.parent
    records = [_record(_Fields(file, index, entry), videos) for index, entry in enumerate(values)]
    ids = Counter(record.id for record in records)
    for record, count in ids.items():
        if count > 1:
            raise OvoError(
                f"{file}: record {record}: field 'id' is there {count} times; give each record its own"
            )
    return records


def sample(records: Sequence[Record], per_task: int) -> list[Record]:
    """At most so many records of each task, evenly spaced through the file, since it is sorted by source."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record.task].append(record)
    chosen = []
    for task in TASKS:
        of_task = by_task[task]
        count = min(per_task, len(of_task))
        chosen += [of_task[i * len(of_task) // count] for i in range(count)]
    return chosen


def _records_file(folder: Path) -> Path:
    found = sorted([*folder.glob(FILE_PATTERN), *(folder / "data").glob(FILE_PATTERN)])
    if len(found) == 1:
        return found[0]
    if not found:
        raise OvoError(
            f"no {FILE_PATTERN} in {folder} or {folder / 'data'}: give the folder with OVO-Bench's "
            f"ovo_bench_new.json, and its videos in {VIDEO_FOLDER} beside that file"
        )
    raise OvoError(f"{found[0]} and {found[1]} are both there: leave one of them in the folder")


class _Fields:
    """One record's JSON object, read field by field; an error says where."""

    def __init__(self, file: Path, index: int, values: object):
        self.where = f"{file}: record at index {index}"
        if not isinstance(values, dict):
            raise OvoError(f"{self.where}: a {type(values).__name__}, allowed: a JSON object; mend the file")
        self.values: Mapping[str, Any] = values
        self.id = int(self.get("id", _is_whole, "a whole number"))
        self.where = f"{file}: record {self.id}"

    def get(self, name: str, good: Callable[[Any], bool], allowed: str) -> Any:
        if name not in self.values:
            raise OvoError(
                f"{self.where}: field {name!r} is missing; add it ({allowed}) or remove the record"
            )
        value = self.values[name]
        if not good(value):
            raise OvoError(
                f"{self.where}: field {name!r} is {value!r}; allowed: {allowed}. Mend or remove it"
            )
        return value

    def text(self, name: str) -> str:
        return str(self.get(name, _is_text, "text"))

    def time_s(self) -> float:
        return float(self.get("realtime", _is_time, "seconds from the video's start, at least 0"))

    def tests(self) -> list[_Fields]:
        """The entries of `test_info`."""
        entries = self.get(
            "test_info", lambda v: isinstance(v, list) and bool(v), "a list of at least one object"
        )
        return [self._test(number, entry) for number, entry in enumerate(entries)]

    def _test(self, number: int, entry: object) -> _Fields:
        where = f"{self.where}: test_info[{number}]"
        if not isinstance(entry, dict):
            raise OvoError(f"{where}: a {type(entry).__name__}, allowed: a JSON object; mend the file")
        part = object.__new__(_Fields)
        part.where, part.values, part.id = where, entry, self.id
        return part


def _record(fields: _Fields, videos: Path) -> Record:
    task = str(fields.get("task", lambda v: isinstance(v, str) and v in TASKS, f"one of {', '.join(TASKS)}"))
    ask = {"REC": _counted, "SSR": _steps, "CRR": _enough_seen}.get(task, _options)
    return Record(fields.id, task, videos / fields.text("video"), tuple(ask(fields, task)))


def _options(fields: _Fields, task: str) -> list[Question]:
    options = fields.get(
        "options",
        lambda v: isinstance(v, list) and 2 <= len(v) <= len(LETTERS) and all(map(_is_text, v)),
        f"a list of 2 to {len(LETTERS)} texts",
    )
    last = len(options) - 1
    right = fields.get("gt", lambda v: _is_whole(v) and v <= last, f"the right option's place, 0 to {last}")
    letters = tuple(LETTERS[: len(options)])
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    text = "\n".join([fields.text("question"), *lines, "Answer with the letter of the right option only."])
    return [Question(fields.id, task, fields.time_s(), text, letters, letters[right])]


def _counted(fields: _Fields, task: str) -> list[Question]:
    text = (
        f'How many times, in the whole video so far, has this been done: "{fields.text("activity")}"? Each complete '
        "action by anybody counts once. Answer with the number only."
    )
    counts = tuple(map(str, range(LARGEST_COUNT + 1)))
    allowed = f"a whole number from 0 to {LARGEST_COUNT}"
    return [
        Question(
            fields.id,
            task,
            test.time_s(),
            text,
            counts,
            counts[test.get("count", lambda v: _is_whole(v) and v <= LARGEST_COUNT, allowed)],
        )
        for test in fields.tests()
    ]


def _steps(fields: _Fields, task: str) -> list[Question]:
    return [
        _yes_no(
            fields,
            task,
            test,
            f'The video shows a task step by step. Is this step being done at this moment: "{test.text("step")}"?',
        )
        for test in fields.tests()
    ]


def _enough_seen(fields: _Fields, task: str) -> list[Question]:
    text = (
        f"{fields.text('question')}\nDoes the video, up to this moment, show enough to answer this question?"
    )
    return [_yes_no(fields, task, test, text) for test in fields.tests()]


def _yes_no(fields: _Fields, task: str, test: _Fields, text: str) -> Question:
    right = test.get("type", lambda v: _is_whole(v) and v <= 1, "0 (no) or 1 (yes)")
    return Question(
        fields.id, task, test.time_s(), f"{text} Answer Yes or No only.", YES_NO, YES_NO[int(right)]
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
