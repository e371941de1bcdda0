"""Frames on disk: whole or not at all, bounded, and never in the way."""

import json

import pytest

from vlm_perception.identity.archive import ArchivedFrame, FrameArchive

JPEG = b"\xff\xd8" + bytes(1000) + b"\xff\xd9"


@pytest.fixture
def warnings():
    return []


def open_archive(path, warnings, max_bytes=10_000):
    return FrameArchive(path, max_bytes=max_bytes, on_warning=warnings.append)


def frame(number, *entity_ids):
    return ArchivedFrame(f"p1_c{number}_f0", float(number), entity_ids or ("car_1",), (1.0, 2.0, 3.0), 0.5)


def test_a_later_process_finds_what_an_earlier_one_kept(tmp_path, warnings):
    archive = open_archive(tmp_path, warnings)
    assert archive.add(frame(1), JPEG)
    later = open_archive(tmp_path, warnings)
    assert later.frames == archive.frames == {"p1_c1_f0": frame(1)}
    assert later.read("p1_c1_f0") == JPEG
    assert warnings == []


def test_the_oldest_frames_make_room(tmp_path, warnings):
    archive = open_archive(tmp_path, warnings, max_bytes=3 * len(JPEG))
    for number in range(1, 6):
        archive.add(frame(number), JPEG)
    assert list(archive.frames) == ["p1_c3_f0", "p1_c4_f0", "p1_c5_f0"]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jpg")) == 3 * len(JPEG)
    smaller = open_archive(tmp_path, warnings, max_bytes=len(JPEG))
    assert list(smaller.frames) == ["p1_c5_f0"]


def test_a_frame_larger_than_the_archive_is_not_kept_and_nothing_is_lost_for_it(tmp_path, warnings):
    archive = open_archive(tmp_path, warnings, max_bytes=2000)
    archive.add(frame(1), JPEG)
    assert not archive.add(frame(2), bytes(2001))
    assert list(archive.frames) == ["p1_c1_f0"]
    assert "2001 bytes" in warnings[0]


def test_what_a_kill_left_unfinished_goes(tmp_path, warnings):
    archive = open_archive(tmp_path, warnings)
    archive.add(frame(1), JPEG)
    (tmp_path / "p1_c2_f0.jpg").write_bytes(JPEG)
    (tmp_path / "p1_c3_f0.jpg.part").write_bytes(JPEG[:10])
    assert list(open_archive(tmp_path, warnings).frames) == ["p1_c1_f0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p1_c1_f0.jpg", "p1_c1_f0.json"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"stamp_s": 1}', json.dumps({"stamp_s": "x", "entity_ids": 3})]
)
def test_a_damaged_index_is_named_and_left_alone(tmp_path, warnings, content):
    open_archive(tmp_path, warnings).add(frame(1), JPEG)
    (tmp_path / "p1_c1_f0.json").write_text(content)
    assert open_archive(tmp_path, warnings).frames == {}
    assert "p1_c1_f0.json cannot be used" in warnings[0]


def test_a_picture_that_is_gone_is_forgotten(tmp_path, warnings):
    archive = open_archive(tmp_path, warnings)
    archive.add(frame(1), JPEG)
    (tmp_path / "p1_c1_f0.jpg").unlink()
    assert archive.read("p1_c1_f0") is None
    assert archive.frames == {}
    assert "cannot be read" in warnings[0]


def test_a_folder_that_cannot_be_made_costs_the_memory_only(tmp_path, warnings):
    (tmp_path / "file").write_text("")
    archive = open_archive(tmp_path / "file" / "frames", warnings)
    assert not archive.add(frame(1), JPEG)
    assert archive.frames == {}
    assert len(warnings) == 2


def test_the_newest_frame_of_an_entity_comes_first(tmp_path, warnings):
    archive = open_archive(tmp_path, warnings)
    for number, entity in ((1, "car_1"), (2, "tree_1"), (3, "car_1")):
        archive.add(frame(number, entity), JPEG)
    assert [kept.name for kept in archive.of_entity("car_1")] == ["p1_c3_f0", "p1_c1_f0"]


@pytest.mark.parametrize("name", ["", "../x", "p1_c1_f0.jpg", "p1_c1"])
def test_names_are_the_guides(tmp_path, warnings, name):
    with pytest.raises(ValueError, match="no frame's name"):
        open_archive(tmp_path, warnings).add(ArchivedFrame(name, 1.0, ()), JPEG)
