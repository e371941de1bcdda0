"""Files of missions: what is read, and what is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nav_bringup.graph import ArgumentError
from nav_bringup.mission_file import PlannedMission, read


def test_a_text_file_has_a_mission_of_one_instruction_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "missions.txt"
    path.write_text("fly to the red car\n\n  go to the beacon \n")
    assert read(path) == [PlannedMission(("fly to the red car",)), PlannedMission(("go to the beacon",))]


def test_a_jsonl_file_has_a_mission_of_several_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "missions.jsonl"
    path.write_text(
        '{"prompts": ["a", "b"]}\n{"prompts": ["a", "b", "c"], "switch_frame_indices": [40, 80]}\n'
    )
    assert read(path) == [PlannedMission(("a", "b")), PlannedMission(("a", "b", "c"), (40, 80))]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("m.yaml", "a", r"m.yaml': a .txt .* or a .jsonl is wanted"),
        ("m.txt", " \n", "m.txt is empty"),
        ("m.txt", b"\xff\xfe", "m.txt cannot be read"),
        ("m.jsonl", '{"prompts": ["a"]}\n{"prompts"', "m.jsonl, line 2: no JSON"),
        ("m.jsonl", '["a"]', 'line 1: expected {"prompts"'),
        ("m.jsonl", '{"prompts": ["a"], "frames": 3}', 'line 1: expected {"prompts"'),
        ("m.jsonl", '{"prompts": []}', "prompts are .*, must be texts, at least one"),
        ("m.jsonl", '{"prompts": ["a", " "]}', "must be texts"),
        (
            "m.jsonl",
            '{"prompts": ["a", "b"], "switch_frame_indices": [true]}',
            "must be positive whole numbers",
        ),
        ("m.jsonl", '{"prompts": ["a", "b"], "switch_frame_indices": [1, 2]}', "2 prompts need 1 switch"),
        (
            "m.jsonl",
            '{"prompts": ["a", "b", "c"], "switch_frame_indices": [2, 2]}',
            "each higher than the one before",
        ),
    ],
)
def test_what_is_no_mission_is_refused(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArgumentError, match=problem):
        read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"missing.txt cannot be read: .*No such file"):
        read(tmp_path / "missing.txt")
