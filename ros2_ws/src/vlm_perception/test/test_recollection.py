"""A stream with a memory bank: what an instruction needs comes back, and only that."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nav_common.clock import VirtualClock
from nav_common.data import ActiveFrames, GenerateStatus, Odometry, RecallRequest, RecallResponse
from nav_common.frames import Vector
from vlm_perception import prompting
from vlm_perception.engine import Generation, QwenModel
from vlm_perception.engine.decoding import Finish
from vlm_perception.identity.bank import MemoryBank
from vlm_perception.memory import ChoiceAnswer, Memory
from vlm_perception.recollection import RecallCounts
from vlm_perception.testing.bench import FORM, PROMPT, START, Bench
from vlm_perception.testing.drone_tools import DRONE_TOOLS

FRAME_TOKENS = 14  # 112 x 84 pixels: 4 x 3 tokens and the marks around them


class World:
    """A bank on a bench; `sees` says what the model answers when it is asked what it sees."""

    def __init__(
        self,
        model: QwenModel,
        jpeg: Callable[[int], bytes],
        folder: Path,
        window_frames: int = 6,
        max_bytes: int = 1 << 20,
        on_warning: Callable[[str], None] = pytest.fail,
    ):
        tokens = len(model.tokenize(prompting.prime_text(PROMPT, DRONE_TOOLS)))
        form = dataclasses.replace(FORM, max_cache_tokens=tokens + FRAME_TOKENS * (window_frames + 1))
        self.bank = MemoryBank(folder, max_bytes=max_bytes, on_warning=on_warning)
        self.told: list[ActiveFrames] = []
        self.bench = Bench(
            model, jpeg, form, VirtualClock(START), bank=self.bank, on_active_frames=self.told.append
        )
        self.bench.prime()
        self.questions: list[str] = []
        self.sees = ""
        self.bench.stream.memory.choose = self._choose  # type: ignore[method-assign]
        self.bench.stream.memory.answer_json = self._read  # type: ignore[method-assign]
        self.reads = '{"things": []}'
        self.cancelled_reads = 0
        self._now = 0.0

    @property
    def counts(self) -> RecallCounts:
        assert self.bench.stream.recollection is not None
        return self.bench.stream.recollection.counts

    def _choose(self, question: str, choices: object) -> ChoiceAnswer:
        self.questions.append(question)
        return ChoiceAnswer("yes" if self.sees and self.sees in question else "no", 1.0, 1, 0.0, 0.0)

    def _read(
        self, question: str, schema: object, *, max_new_tokens: int, cancel: Callable[[], bool]
    ) -> Generation:
        self.cancelled_reads += cancel()
        finish: Finish = "cancelled" if cancel() else "stop"
        return Generation("" if cancel() else self.reads, (), finish, 1, 0, 0, 0, 0.0, 0.0)

    @property
    def notes(self) -> list[str]:
        """What the last decision was told beside the instruction."""
        assert self.bench.stream.recollection is not None
        return self.bench.stream.recollection.notes()

    def recall(self, entity: str) -> RecallResponse:
        ticket = self.bench.stream.submit_recall(RecallRequest(entity))
        self.bench.stream.run_until_idle()
        return ticket.result

    def fly(self, frames: int, sees: str = "") -> None:
        """So many frames from as many places, a metre apart."""
        self.sees = sees
        for _ in range(frames):
            self._now += 0.5
            self.bench.stream.submit_odometry(Odometry(START + self._now, Vector(2 * self._now, 0.0, 2.0)))
            self.bench.frames(self._now)

    def see_and_leave_a_red_car(self, frames_in_sight: int = 1) -> None:
        """It is named, is in sight for so many frames, and then none of these is in the window any more."""
        self.fly(3)
        self.decide("go to the red car")
        self.fly(frames_in_sight, sees="red car")
        self.fly(12)

    def decide(self, instruction: str) -> None:
        ticket = self.bench.generate(instruction=instruction)
        self.bench.stream.run_until_idle()
        assert ticket.result.status == GenerateStatus.OK, ticket.result.message
        assert ticket.result.frame_stamp_s == START + self._now, "it rests on the newest frame of the camera"


@pytest.fixture
def world(tiny_model: QwenModel, jpeg: Callable[[int], bytes], tmp_path: Path) -> World:
    return World(tiny_model, jpeg, tmp_path)


def test_a_known_entity_that_left_the_window_comes_back_once(world: World, tmp_path: Path) -> None:
    world.fly(3)
    world.decide("go to the red car")
    world.fly(2, sees="red car")
    assert [frame.entity_ids for frame in world.bank.active] == [("car_1",), ("car_1",)]
    world.decide("look for the white shed")
    world.fly(12)
    assert world.bank.to_recall() == []
    appended = recorded(world.bench.stream.memory)
    world.decide("fly back to the car")
    assert appended == ["recalled", "newest again"]
    assert world.notes == ["the red car was seen 180 deg to the left, 10 m from here"]
    world.decide("fly back to the car")
    assert len(appended) == 2, "its frame is in the cache now"
    counts = world.counts
    assert (counts.retrievals, counts.extra_s > 0) == (1, True)
    assert FRAME_TOKENS * 2 < counts.extra_tokens < FRAME_TOKENS * 2 + 40
    world.fly(12)
    world.decide("fly back to the car")
    assert len(appended) == 4, "it has aged out and is still needed"
    world.fly(1, sees="red car")
    world.decide("fly back to the car")
    assert world.notes == [], "it is in sight again"


def test_an_entity_is_recalled_by_its_id_or_by_words(world: World) -> None:
    world.fly(3)
    world.decide("go to the red car")
    world.fly(1, sees="red car")
    world.decide("look for the white shed")
    world.fly(12)
    answer = world.recall("that red car")
    assert (answer.success, answer.entity_id, answer.name) == (True, "car_1", "the red car")
    assert answer.frames == ("p1_c4_f0",)
    assert world.counts.retrievals == 1
    assert world.told[-1].recalled == ("p1_c4_f0",)
    assert world.notes == ["the red car was seen 180 deg to the left, 10 m from here"]
    assert world.recall("car_1").success, "it is in the memory: nothing more to do"
    assert world.counts.retrievals == 1
    world.decide("look for the white shed again")
    assert world.notes == [], "it was sought until the next instruction"


def test_a_recall_that_cannot_be_says_why(
    world: World, tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    assert "no frame is in memory yet" in world.recall("the red car").message
    world.fly(3)
    assert "'the red car' is not known; known are none yet" in world.recall("the red car").message
    world.decide("go to the red car")
    assert world.recall("car_1").message == "no frame is archived that shows car_1"
    assert "known are car_1" in world.recall("飞到").message
    assert "the entity is empty" in world.recall(" ").message
    bench = Bench(tiny_model, jpeg)
    assert "no memory bank" in bench.stream.submit_recall(RecallRequest("the red car")).result.message
    world.bench.stream.close()
    assert world.recall("the red car").message == "the stream is being shut down"


def test_what_is_active_is_told_when_it_changes(world: World) -> None:
    world.fly(3)
    world.decide("go to the red car")
    assert [one.frames for one in world.told] == []
    world.fly(2, sees="red car")
    world.fly(1)
    assert [one.frames for one in world.told] == [("p1_c4_f0",), ("p1_c4_f0", "p1_c5_f0")]
    assert world.told[-1].entities == ("car_1", "car_1")
    world.fly(12)
    assert (world.told[-1].frames, world.told[-1].archived) == ((), 2)


def test_what_is_excluded_is_not_brought_back(world: World) -> None:
    world.see_and_leave_a_red_car()
    world.decide("go to the white shed, not to the red car")
    assert world.counts.retrievals == 0


def recorded(memory: Memory) -> list[str]:
    """What a recall puts into the cache from now on."""
    seen: list[str] = []
    repeat, recall = memory.repeat_newest, memory.append_recalled

    def record_repeat():
        seen.append("newest again")
        return repeat()

    def record_recall(pictures):
        seen.append("recalled")
        return recall(pictures)

    memory.repeat_newest, memory.append_recalled = record_repeat, record_recall  # type: ignore[method-assign]
    return seen


def test_only_what_is_sought_is_asked_about_and_only_of_the_newest_frame(world: World) -> None:
    world.fly(2)
    assert world.questions == []
    world.decide("go to the red car next to the tree")
    world.fly(1)
    assert world.questions == ["do you see the red car?", "do you see the tree?"]


def test_a_decision_goes_before_the_archive(world: World) -> None:
    world.fly(3)
    world.decide("go to the red car")
    world.bench.frame(10.0)
    ticket = world.bench.generate(earliest_frame_s=START + 9.0)
    while not ticket.done:
        assert world.questions == []
        assert world.bench.stream.step()
    world.bench.stream.run_until_idle()
    assert world.questions


def test_a_decision_waits_for_one_question_at_most(world: World) -> None:
    instruction = "look for the red car, the blue van, the tree, the lamp and the gate"
    world.fly(3)
    world.decide(instruction)
    world.bench.frame(10.0)
    while not world.questions:
        assert world.bench.stream.step()
    ticket = world.bench.generate(earliest_frame_s=START + 9.0, instruction=instruction)
    while not ticket.done:
        assert world.bench.stream.step()
        assert len(world.questions) == 1
    world.bench.stream.run_until_idle()
    assert len(world.questions) == 5


def test_where_frames_come_fast_each_thing_sought_has_its_turn(world: World) -> None:
    world.fly(3)
    world.decide("look for the red car, the blue van and the tree")
    world.sees = "blue van"
    for number in range(4):
        world.bench.frame(10.0 + number)
        while len(world.questions) <= number:
            assert world.bench.stream.step()
    asked = ["red car", "blue van", "tree", "red car"]
    assert world.questions == [f"do you see the {thing}?" for thing in asked]
    assert len(world.bank.archive.frames) == 1, "what was found so far is kept when the next frame comes"


def test_a_reset_forgets_the_cache_and_keeps_the_archive(world: World) -> None:
    world.fly(3)
    world.decide("go to the red car")
    world.fly(2, sees="red car")
    world.bench.stream.submit_reset()
    world.bench.stream.run_until_idle()
    assert world.bank.active == []
    world.fly(2)
    world.decide("go to the red car")
    assert world.counts.retrievals == 1


def test_a_damaged_picture_is_left_out_and_the_decision_made(world: World, tmp_path: Path) -> None:
    world.see_and_leave_a_red_car()
    (picture,) = (tmp_path / "frames").glob("*.jpg")
    picture.write_bytes(b"no picture")
    world.decide("go to the red car now")
    assert world.counts.retrievals == 0
    assert world.bank.archive.frames == {}


def test_an_engine_that_refuses_costs_the_recall_only(world: World) -> None:
    world.see_and_leave_a_red_car()

    def refuse(pictures):
        raise RuntimeError("out of memory")

    world.bench.stream.memory.append_recalled = refuse  # type: ignore[method-assign]
    world.decide("go to the red car now")
    assert "nothing recalled" in world.bench.warnings[-1]


def test_an_instruction_may_be_anything(world: World) -> None:
    world.fly(3)
    for text in ("x" * 400, "<|im_end|> the car", "飞到红色的车", json.dumps({"a": 1}), "the car " * 60):
        world.decide(text)


def test_fifty_things_named_at_once_are_all_sought_and_the_decision_is_made(world: World) -> None:
    colours = ("red", "blue", "white", "yellow", "purple")
    kinds = ("car", "tree", "box", "lamp", "house", "bench", "van", "gate", "person", "dog")
    things = [f"the {colour} {kind}" for colour in colours for kind in kinds]
    world.fly(3)
    world.decide("look for " + ", ".join(things))
    assert len(world.bank.sought) == len(things)
    world.fly(1, sees="purple dog")
    assert [len(frame.entity_ids) for frame in world.bank.active] == [1]
    world.fly(12)
    world.decide("go back to the purple dog")
    assert world.counts.retrievals == 1


def test_a_full_archive_keeps_the_newest_and_the_flight_goes_on(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    """There is room for two pictures."""
    world = World(tiny_model, jpeg, tmp_path, max_bytes=int(2.5 * len(jpeg(0))))
    world.see_and_leave_a_red_car(5)
    world.decide("go to the red car now")
    assert world.counts.retrievals == 1
    assert len(world.bank.archive.frames) == 2
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jpg")) <= 2.5 * len(jpeg(0))


def test_a_disk_that_takes_nothing_costs_the_memory_only(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    """A file stands where the session's folder should be: nobody, root neither, can write there."""
    (tmp_path / "file").write_text("")
    warnings: list[str] = []
    world = World(tiny_model, jpeg, tmp_path / "file", on_warning=warnings.append)
    world.see_and_leave_a_red_car()
    world.decide("go to the red car now")
    assert world.counts.retrievals == 0
    assert any("cannot be written" in text for text in warnings)


RED_CAR_IN_CHINESE = (
    '{"things": [{"phrase": "红色的车", "kind": "car", "attributes": ["red"], "avoid": false}]}'
)


def test_what_the_model_reads_in_an_instruction_is_sought_and_comes_back(
    world: World, tmp_path: Path
) -> None:
    world.fly(3)
    world.reads = RED_CAR_IN_CHINESE
    world.decide("飞到红色的车")
    assert world.bank.sought == ("car_1",)
    world.fly(1, sees="red car")
    world.reads = '{"things": []}'
    world.decide("wait")
    world.fly(12)
    world.decide("go back to the red car")
    assert (world.counts.retrievals, world.bank.sought) == (1, ("car_1",))
    again = MemoryBank(tmp_path, on_warning=pytest.fail)
    assert again.registry.entities == world.bank.registry.entities, "a restart knows it too"


def test_a_decision_breaks_off_the_reading_which_begins_anew(world: World) -> None:
    world.fly(3)
    world.reads = RED_CAR_IN_CHINESE
    recollection = world.bench.stream.recollection
    assert recollection is not None
    recollection.before_decision("飞到红色的车")
    assert recollection.step(lambda: True)
    assert (world.cancelled_reads, world.bank.sought) == (1, ())
    assert recollection.step(lambda: False)
    assert world.bank.sought == ("car_1",)


def test_a_decision_that_waits_goes_before_the_reading(world: World) -> None:
    world.fly(3)
    world.decide("go to the red car")
    world.bench.generate(instruction="go to the blue van")
    while not world.bank.registry.known("blue van"):
        assert world.bench.stream.step()
    ticket = world.bench.generate(instruction="go to the blue van")
    assert world.bench.stream.recollection is not None
    assert world.bench.stream._step_recollection(lambda: False)
    assert world.cancelled_reads == 1
    world.bench.stream.run_until_idle()
    assert ticket.result.status == GenerateStatus.OK


def test_the_engine_answers_in_the_form_that_is_asked(world: World) -> None:
    """A model of random weights: its list may be of anything, or end too soon, which is said."""
    del world.bench.stream.memory.answer_json  # the engine's own
    world.fly(3)
    world.decide("go to the red car")
    assert "car_1" in world.bank.sought
    assert all("list of things cannot be read" in warning for warning in world.bench.warnings)


@pytest.mark.parametrize("answer", ["", '{"things": [{"phr', "[]", '{"things": [{"phrase": 3}]}'])
def test_a_list_that_cannot_be_read_costs_nothing_that_the_rules_read(world: World, answer: str) -> None:
    world.fly(3)
    world.reads = answer
    world.decide("go to the red car")
    assert world.bank.sought == ("car_1",)
    assert "list of things cannot be read" in world.bench.warnings[-1]


def test_a_memory_of_the_last_frames_has_no_bank(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    form = dataclasses.replace(FORM, recompute_frames=4)
    bank = MemoryBank(tmp_path, on_warning=pytest.fail)
    with pytest.raises(ValueError, match="recalls nothing"):
        Bench(tiny_model, jpeg, form, bank=bank)
