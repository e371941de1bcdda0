"""Which frames are active, which come back, and what a kill leaves."""

import json
import random

import pytest

from vlm_perception.identity.bank import Candidate, MemoryBank
from vlm_perception.testing import bank_writer


@pytest.fixture
def bank(tmp_path):
    return open_bank(tmp_path)


def open_bank(folder, **options):
    def fail(text):
        raise AssertionError(text)

    return MemoryBank(folder, **{"on_warning": fail, **options})


def see(bank, chunk, *entities):
    bank.add_frame(Candidate(chunk, 0, float(chunk), b"jpeg%d" % chunk), entities)


def names(frames):
    return [frame.name for frame in frames]


def test_the_first_two_chunks_and_what_shows_nothing_sought_are_not_chosen(bank):
    bank.add_instruction("go to the red car")
    see(bank, 1, "car_1")
    see(bank, 2, "car_1")
    see(bank, 3)
    assert bank.active == []
    assert bank.archive.frames == {}
    see(bank, 4, "car_1")
    assert names(bank.active) == ["p1_c4_f0"]


def test_the_frame_goes_whose_entities_newer_ones_show(bank):
    bank.add_instruction("go to the red car next to the tree, then to the shed")
    for chunk, entity in ((3, "car_1"), (4, "tree_1"), (5, "tree_1"), (6, "shed_1")):
        see(bank, chunk, entity)
    assert names(bank.active) == ["p1_c3_f0", "p1_c5_f0", "p1_c6_f0"]
    assert "p1_c4_f0" in bank.archive.frames


def test_a_known_entity_brings_its_newest_frame_back_once(bank):
    bank.add_instruction("go to the red car")
    see(bank, 3, "car_1")
    see(bank, 4, "car_1")
    bank.add_instruction("look for the white shed")
    assert bank.to_recall() == []
    for chunk in range(5, 9):
        see(bank, chunk, "shed_1")
    bank.add_instruction("fly back to that red thing")
    assert bank.to_recall() == [], "the car's frame has not left the window"
    bank.keep_cached(range(5, 9))
    (frame,) = bank.to_recall()
    assert frame.name == "p1_c4_f0"
    assert bank.archive.read(frame.name) == b"jpeg4"
    bank.recalled([frame], chunk=9)
    assert bank.to_recall() == []
    assert frame in bank.active
    bank.keep_cached(range(10, 12))
    assert bank.to_recall() == [frame]
    assert bank.active == []


def test_mapping_has_the_guides_form(bank, tmp_path):
    bank.add_instruction("go to the red car")
    for chunk in range(3, 7):
        see(bank, chunk, "car_1")
    mapping = json.loads((tmp_path / "mapping.json").read_text())
    assert set(mapping) == {"global_registry", "frame_archive", "frame_active_memory"}
    assert set(mapping["global_registry"]["car_1"]) == {"name", "all_entities", "all_attrs", "instances"}
    assert mapping["frame_archive"] == {"p1_c3_f0": ["car_1"]}
    assert mapping["frame_active_memory"] == ["p1_c4_f0", "p1_c5_f0", "p1_c6_f0"]


def test_one_instruction_at_a_time_matches_nothing_and_writes_no_mapping(tmp_path):
    bank = open_bank(tmp_path, several=False)
    bank.add_instruction("go to the red car")
    see(bank, 3, "car_1")
    matches = bank.add_instruction("go back to the red car")
    assert matches[0].new
    assert bank.to_recall() == []
    assert not (tmp_path / "mapping.json").exists()


def test_a_restart_keeps_entities_and_frames(tmp_path):
    bank = open_bank(tmp_path)
    bank.add_instruction("go to the red car")
    see(bank, 3, "car_1")
    later = open_bank(tmp_path)
    assert later.active == []
    later.add_instruction("back to the red car")
    assert names(later.to_recall()) == ["p1_c3_f0"]


def test_a_damaged_session_is_named_and_the_flight_goes_on(tmp_path):
    (tmp_path / "instructions.json").write_text("{")
    warnings = []
    bank = open_bank(tmp_path, on_warning=warnings.append)
    bank.add_instruction("go to the red car")
    assert "instructions.json cannot be used" in warnings[0]


def test_a_disk_that_takes_nothing_costs_the_memory_only(tmp_path):
    (tmp_path / "file").write_text("")
    warnings = []
    bank = open_bank(tmp_path / "file", on_warning=warnings.append)
    bank.add_instruction("go to the red car")
    see(bank, 3, "car_1")
    assert bank.active == []
    assert any("cannot be written" in text for text in warnings)


def test_max_memory_frames_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="max_memory_frames is 0"):
        open_bank(tmp_path, max_memory_frames=0)


def test_a_kill_at_any_moment_leaves_a_consistent_bank(tmp_path):
    rng = random.Random(7)
    for seed in range(4):
        bank_writer.kill_while_writing(tmp_path, seed, rng.uniform(0.0, 0.2))
        assert bank_writer.inconsistencies(tmp_path) == []
