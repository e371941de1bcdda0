"""OVO-Bench: records in the benchmark's form, the four modes, the scorer, and what bad input costs."""

from __future__ import annotations

import json
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_perception.engine import QwenModel, VideoStreamingInference
from vlm_perception.experiments import ovo as ovo_module
from vlm_perception.experiments.ovo import (
    LAST_FRAMES,
    Answered,
    LastFrames,
    Recomputed,
    Streaming,
    UniformFrames,
    figure,
    main,
    play,
    score,
)
from vlm_perception.experiments.ovo_records import (
    GROUPS,
    TASKS,
    OvoError,
    Question,
    Record,
    load_records,
    sample,
)
from vlm_perception.experiments.ovo_synthetic import write_synthetic

AREA = 112 * 84


class Fake:
    """A mode without a model, which keeps what it was shown and asked."""

    def __init__(self, answer: Callable[[Question], str]):
        self._answer = answer
        self.begun = 0
        self.newest_s: float | None = None
        self.asked: list[tuple[Question, float | None]] = []

    def begin(self) -> None:
        self.begun += 1
        self.newest_s = None

    def show(self, stamp_s: float, frame: np.ndarray) -> None:
        assert self.newest_s is None or stamp_s > self.newest_s
        assert frame.dtype == np.uint8
        assert frame.shape[0] * frame.shape[1] <= AREA
        self.newest_s = stamp_s

    def answer(self, question: Question) -> str:
        self.asked.append((question, self.newest_s))
        return self._answer(question)


def knowing() -> Fake:
    return Fake(lambda question: question.answer)


def guessing(seed: int) -> Fake:
    chance = random.Random(seed)
    return Fake(lambda question: chance.choice(question.choices))


@pytest.fixture(scope="module")
def ovo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("ovo"))


@pytest.fixture(scope="module")
def records(ovo: Path) -> list[Record]:
    return load_records(ovo)


# -- records -----------------------------------------------------------------------------------------------------------
def test_the_synthetic_records_cover_every_task_and_each_has_a_right_answer(records: list[Record]) -> None:
    assert {record.task for record in records} == set(TASKS)
    assert all(record.video.is_file() for record in records)
    for question in (q for record in records for q in record.questions):
        assert question.choices.count(question.answer) == 1
    forward = [record for record in records if record.task in GROUPS["forward"]]
    assert all(len(record.questions) > 1 for record in forward)
    letters = [q.choices for r in records if r.task not in GROUPS["forward"] for q in r.questions]
    assert all(choices == tuple("ABCDEFGH"[: len(choices)]) for choices in letters)


def test_a_sample_is_spread_over_the_file_and_over_all_tasks(records: list[Record]) -> None:
    chosen = sample(records, 4)
    assert {task: sum(r.task == task for r in chosen) for task in TASKS} == dict.fromkeys(TASKS, 4)
    assert len({record.video for record in chosen if record.task == "OCR"}) == 4
    assert sample(records, 4) == chosen
    assert len(sample(records, 10_000)) == len(records)


OPTIONS = {
    "id": 7,
    "task": "OCR",
    "video": "a/b.mp4",
    "realtime": 12.5,
    "question": "Which?",
    "answer": "x",
    "options": ["x", "y", "z"],
    "gt": 2,
}
COUNT = {
    "id": 7,
    "task": "REC",
    "video": "a.mp4",
    "activity": "jumping",
    "start_times": [6],
    "end_times": [7],
    "test_info": [{"realtime": 17, "count": 3}],
}
STEP = {"id": 7, "task": "SSR", "video": "a.mp4", "test_info": [{"realtime": 17, "step": "cut", "type": 1}]}
CLUE = {
    "id": 7,
    "task": "CRR",
    "video": "a.mp4",
    "question": "Who?",
    "test_info": [{"realtime": 1, "type": 0}],
}


def write(folder: Path, *records: object) -> Path:
    (folder / "ovo_bench_new.json").write_text(json.dumps(records))
    return folder


def test_records_of_each_form_become_questions_with_the_answer_they_allow(tmp_path: Path) -> None:
    made = load_records(write(tmp_path, OPTIONS, {**COUNT, "id": 8}, {**STEP, "id": 9}, {**CLUE, "id": 10}))
    answers = [record.questions[0].answer for record in made]
    assert answers == ["C", "3", "Yes", "No"]
    assert made[0].questions[0].time_s == 12.5
    assert "B. y" in made[0].questions[0].text
    assert made[0].video == tmp_path / "a/b.mp4"


def test_the_file_may_lie_in_data_with_the_videos_beside_it(tmp_path: Path) -> None:
    (tmp_path / "data" / "src_videos").mkdir(parents=True)
    write(tmp_path / "data", OPTIONS)
    assert load_records(tmp_path)[0].video == tmp_path / "data/src_videos/a/b.mp4"


USED = ("task", "video", "realtime", "question", "options", "gt")


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (without(OPTIONS, "id"), ["index 0", "'id'", "missing"]),
        ({**OPTIONS, "task": "ABC"}, ["record 7", "'task'", "'ABC'", "CRR"]),
        *((without(OPTIONS, name), ["record 7", repr(name), "missing"]) for name in USED),
        ({**OPTIONS, "gt": 3}, ["record 7", "'gt'", "3", "0 to 2"]),
        ({**OPTIONS, "gt": -1}, ["record 7", "'gt'", "-1", "0 to 2"]),
        ({**OPTIONS, "gt": True}, ["record 7", "'gt'", "True"]),
        ({**OPTIONS, "options": ["x"]}, ["record 7", "'options'"]),
        ({**OPTIONS, "realtime": -2}, ["record 7", "'realtime'", "-2"]),
        ({**OPTIONS, "realtime": float("nan")}, ["record 7", "'realtime'", "nan"]),
        ({**COUNT, "test_info": []}, ["record 7", "'test_info'", "at least one"]),
        ({**COUNT, "test_info": [3]}, ["record 7", "test_info[0]", "int"]),
        ({**COUNT, "test_info": [{"realtime": 1, "count": 11}]}, ["record 7", "test_info[0]", "'count'", "0 to 10"]),
        ({**STEP, "test_info": [{"realtime": 1, "type": 1}]}, ["record 7", "test_info[0]", "'step'", "missing"]),
        ({**CLUE, "test_info": [{"realtime": 1, "type": 2}]}, ["record 7", "test_info[0]", "'type'", "2"]),
        ([1], ["index 0", "list"]),
    ],
)  # fmt: skip
def test_a_record_in_another_form_is_refused_with_file_record_and_field(
    tmp_path: Path, record: object, parts: list[str]
) -> None:
    with pytest.raises(OvoError) as caught:
        load_records(write(tmp_path, record))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("ovo_bench_new.json", *parts):
        assert part in message


def test_two_records_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OvoError, match="record 7: field 'id' is there 2 times"):
        load_records(write(tmp_path, OPTIONS, OPTIONS))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no ovo_bench"),
        ({"ovo_bench_new.json": "{"}, "is not JSON"),
        ({"ovo_bench_new.json": "{}"}, "holds a dict"),
        ({"ovo_bench_new.json": "[]"}, "holds no record"),
        ({"ovo_bench_new.json": "[]", "ovo_bench_old.json": "[]"}, "leave one of them"),
    ],
)
def test_a_folder_without_records_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["--folder", str(tmp_path), "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]


# -- playing -----------------------------------------------------------------------------------------------------------
def test_each_video_is_played_once_and_asked_at_each_question_s_time(records: list[Record]) -> None:
    mode = knowing()
    played = play(records, mode, 1.0, AREA)
    assert mode.begun == len({record.video for record in records})
    assert len(mode.asked) == sum(len(record.questions) for record in records)
    for question, newest_s in mode.asked:
        assert newest_s is not None
        assert question.time_s - 1.0 < newest_s <= question.time_s
    assert played.skipped == {}


def asking(video: Path, record: int, time_s: float) -> Record:
    question = Question(record, "OCR", time_s, "Which?", ("A", "B"), "B")
    return Record(record, "OCR", video, (question,))


def test_missing_broken_and_too_short_videos_cost_their_records_only(
    records: list[Record], tmp_path: Path
) -> None:
    film = records[0].video
    broken, empty = tmp_path / "broken.mp4", tmp_path / "empty.mp4"
    broken.write_text("no video")
    empty.write_bytes(film.read_bytes()[:200])
    given_records = [
        asking(tmp_path / "missing.mp4", 1, 1.0),
        asking(broken, 2, 1.0),
        asking(empty, 3, 1.0),
        asking(film, 4, 48.0),  # its very end
        asking(film, 5, 4.0),
        asking(film, 6, 500.0),
    ]
    played = play(given_records, knowing(), 1.0, AREA)
    assert [answer.question.record for answer in played.answers] == [5, 4]
    assert set(played.skipped) == {1, 2, 3, 6}
    for record, why in played.skipped.items():
        assert f"record {record}: field '" in why
    assert "500 s" in played.skipped[6]
    assert "film_0.mp4" in played.skipped[6]
    assert "missing.mp4" in played.skipped[1]


def test_a_question_too_long_for_an_ask_costs_its_record_only(
    model: QwenModel, records: list[Record]
) -> None:
    film = records[0].video
    long = Question(1, "OCR", 2.0, "which " * 3000, ("A", "B"), "B")
    played = play(
        [Record(1, "OCR", film, (long,)), asking(film, 2, 3.0)], Streaming(model, 2000, False), 1.0, AREA
    )
    assert [answer.question.record for answer in played.answers] == [2]
    assert "record 1: its question at 2 s" in played.skipped[1]


# -- scoring -----------------------------------------------------------------------------------------------------------
def test_a_model_that_knows_the_answers_scores_100_percent(records: list[Record]) -> None:
    made = score(play(records, knowing(), 1.0, AREA).answers)
    assert set(made.tasks) == set(TASKS)
    assert {one.accuracy for one in (*made.tasks.values(), *made.groups.values())} == {1.0}
    assert made.benchmark_mean == 1.0
    assert made.overall is not None
    assert made.overall.high == 1.0
    assert 0.98 < made.overall.low < 1.0


def test_a_random_model_is_at_chance_in_every_task(records: list[Record]) -> None:
    answers: list[Answered] = []
    for seed in range(20):
        guesser = guessing(seed)
        answers += [Answered(q, guesser.answer(q), 0.0) for record in records for q in record.questions]
    made = score(answers)
    for task, one in (*made.tasks.items(), *made.groups.items()):
        deviation = (one.chance * (1 - one.chance) / one.asks) ** 0.5
        assert abs(one.accuracy - one.chance) < 4 * deviation, task
    assert made.tasks["REC"].chance == pytest.approx(1 / 11)


def test_groups_are_pooled_and_averaged_over_their_tasks_as_the_benchmark_does() -> None:
    def answered(task: str, right: int, wrong: int) -> list[Answered]:
        question = Question(0, task, 0.0, "", ("A", "B"), "A")
        return [Answered(question, "A", 0.0)] * right + [Answered(question, "B", 0.0)] * wrong

    made = score([*answered("EPM", 9, 1), *answered("ASI", 1, 1), *answered("OCR", 1, 3)])
    assert made.groups["backward"].accuracy == pytest.approx(10 / 12)
    assert made.group_means == {"backward": pytest.approx(0.7), "real-time": 0.25}
    assert made.benchmark_mean is None  # nothing of the forward tasks was asked
    # Wilson's interval of 9 of 10, by his formula
    assert made.tasks["EPM"].low == pytest.approx(0.5958, abs=1e-4)
    assert made.tasks["EPM"].high == pytest.approx(0.9821, abs=1e-4)
    assert figure([]) is None


# -- modes -------------------------------------------------------------------------------------------------------------
QUESTION = Question(1, "OCR", 0.0, "Which?\nA. left\nB. right", ("A", "B"), "A")


def shown(mode: Streaming | Recomputed, frames: list[np.ndarray]) -> None:
    mode.begin()
    for i, frame in enumerate(frames):
        mode.show(float(i), frame)


def chances(stream: VideoStreamingInference) -> dict[str, float]:
    found: dict[str, float] = stream.ask_choice(QUESTION.text, QUESTION.choices)[1]["probabilities"]
    return found


def test_streaming_appends_every_frame_once_and_an_ask_keeps_the_memory(
    model: QwenModel, frames: list[np.ndarray]
) -> None:
    mode = Streaming(model, 2000, evicts=False)
    shown(mode, frames[:5])
    assert mode.answer(QUESTION) in QUESTION.choices
    assert [chunk.stamp for chunk in mode.stream.cache.tracker.chunks] == [1.0, 3.0, 4.0]
    length = mode.stream.cache.length
    mode.answer(QUESTION)
    assert mode.stream.cache.length == length
    mode.begin()
    assert mode.stream.cache.length == 0


def test_only_the_mode_with_eviction_evicts(model: QwenModel, frames: list[np.ndarray]) -> None:
    evicting = Streaming(model, 120, evicts=True)
    shown(evicting, frames[:20])
    assert evicting.evictions > 0
    assert evicting.stream.cache.length <= 120
    with pytest.raises(ValueError, match="outgrows the 120 tokens"):
        shown(Streaming(model, 120, evicts=False), frames[:20])


def test_the_last_four_frames_are_all_that_the_mode_without_memory_knows(
    model: QwenModel, frames: list[np.ndarray]
) -> None:
    mode = Recomputed(model, 2000, LastFrames(LAST_FRAMES))
    shown(mode, frames[:9])
    mode.answer(QUESTION)
    mode.show(9.0, frames[9])
    mode.answer(QUESTION)
    fresh = VideoStreamingInference(model, max_cache_tokens=2000)
    fresh.append_video_chunk(frames[6:10], stamps=[6.0, 7.0, 8.0, 9.0])
    assert chances(mode.stream) == chances(fresh)
    fresh.reset()
    fresh.append_video_chunk(frames[5:10], stamps=[5.0, 6.0, 7.0, 8.0, 9.0])
    assert chances(mode.stream) != chances(fresh)


def test_full_input_encodes_all_frames_so_far_as_one_video(
    model: QwenModel, frames: list[np.ndarray]
) -> None:
    mode = Recomputed(model, 2000, UniformFrames(64))
    shown(mode, frames[:7])
    mode.answer(QUESTION)
    fresh = VideoStreamingInference(model, max_cache_tokens=2000)
    fresh.append_video_chunk(frames[:7], stamps=[float(i) for i in range(7)])
    assert chances(mode.stream) == chances(fresh)


@given(count=st.integers(1, 700), limit=st.integers(2, 16))
def test_frames_of_a_long_video_are_evenly_spaced_with_the_first_and_the_newest(
    count: int, limit: int
) -> None:
    frames = UniformFrames(limit)
    for i in range(count):
        frames.add(float(i), np.zeros((1, 1, 3), np.uint8))
    stamps = [stamp for stamp, _ in frames.chosen()]
    assert len(stamps) == min(count, len(stamps)) <= limit
    assert len(stamps) > min(count, limit) / 2
    assert (stamps[0], stamps[-1]) == (0.0, count - 1.0)
    gaps = np.diff(stamps)
    assert (gaps > 0).all()
    assert gaps.max(initial=0) <= max(1, 4 * count / limit)


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_says_first_that_a_synthetic_film_claims_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(folder), "--samples", "1", "--out", str(tmp_path)]) == 0
    first = (tmp_path / "ovo.txt").read_text().splitlines()[0]
    assert "SYNTHETIC" in first
    assert "claim nothing" in first
    facts = json.loads((tmp_path / "ovo.json").read_text())
    assert set(facts["modes"]) == {"full", "streaming", "streaming+eviction", "last-4"}
    assert facts["modes"]["streaming"]["evictions"] == 0 < facts["modes"]["streaming+eviction"]["evictions"]
    asks = {mode: of_mode["overall"]["asks"] for mode, of_mode in facts["modes"].items()}
    assert len(set(asks.values())) == 1
    assert len((tmp_path / "ovo_answers.csv").read_text().splitlines()) == 1 + sum(asks.values())
    assert "video 1 of" in capsys.readouterr().err


def test_no_two_caches_are_there_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[VideoStreamingInference]] = []

    class Watched(VideoStreamingInference):
        def __init__(self, *arguments: Any, **options: Any):
            assert [stream for stream in made if stream() is not None] == []
            super().__init__(*arguments, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(ovo_module, "VideoStreamingInference", Watched)
    assert main(["--model", str(folder), "--samples", "1", "--out", str(tmp_path)]) == 0
    assert len(made) == 5  # the chunk's size, and four modes


def test_true_files_are_read_and_what_cannot_be_asked_is_counted(
    folder: Path, ovo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = json.loads((ovo / "ovo_bench_synthetic.json").read_text())[:3]
    for record in true:
        record["video"] = str(ovo / "src_videos" / record["video"])
    write(tmp_path, *true, {**true[0], "id": 99, "video": "gone.mp4"})
    arguments = ["--folder", str(tmp_path), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--mode", "streaming", "last-4"]) == 0
    facts = json.loads((tmp_path / "out" / "ovo.json").read_text())
    assert [one["record"] for one in facts["skipped"]] == [99]
    assert facts["modes"]["last-4"]["overall"]["asks"] == 3
    assert "SYNTHETIC" not in facts["experiment"]
    assert "no claim" in facts["experiment"]  # a tiny model
    skipped = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert len(skipped) == 1
    assert "record 99" in skipped[0]


def test_without_any_video_the_command_says_where_they_belong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, OPTIONS)
    assert main(["--folder", str(tmp_path), "--model", str(folder), "--out", str(tmp_path)]) == 2
    assert "src_videos beside its JSON file" in capsys.readouterr().err
