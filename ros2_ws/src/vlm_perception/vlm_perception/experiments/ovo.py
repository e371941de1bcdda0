"""OVO-Bench in four modes: what the streaming memory knows of a video, beside recomputation and beside no memory.

python -m vlm_perception.experiments.ovo [--folder OVO] [--model DIR] [--samples 20] [--mode MODE ...]

--folder has OVO-Bench's JSON file and its videos (src_videos beside it). Without it synthetic films of the same form
are made and asked about, which shows that everything works and says nothing of the model.

Each video is played once in each mode and stopped at each question's time; answers are the likeliest of those allowed:
one letter, and with the forward tasks Yes or No (SSR, CRR) or a number from 0 to 10 (REC), as the benchmark asks.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import os
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from scipy.stats import binomtest

from vlm_perception.engine import ModelError, QwenModel, VideoStreamingInference, default_budget
from vlm_perception.engine.preprocess import PictureFormat, smart_resize
from vlm_perception.engine.video_file import video_frames

from .ovo_records import GROUPS, OvoError, Question, Record, load_records, sample
from .ovo_synthetic import write_synthetic
from .setting import Report, Setting, setting

# 448x336 is 192 tokens for a pair of frames; one frame a second suits questions that are asked every few seconds;
# 64 frames are what the benchmark's authors give Qwen2-VL (all chosen, and said in the report).
AREA, FPS, FRAMES_PER_CHUNK, FULL_FRAMES, LAST_FRAMES = 448 * 336, 1.0, 2, 64, 4
# What the mode with eviction remembers, in seconds of video: below the benchmark's mean question time of 263 s, so that
# it evicts; a third of a synthetic film.
MEMORY_S, SYNTHETIC_MEMORY_S = 100.0, 16.0
MODES = {
    "full": f"the video so far encoded anew for each question, {FULL_FRAMES} frames at most, evenly spaced",
    "streaming": "appended to the memory once, nothing evicted",
    "streaming+eviction": "appended to the memory once, the oldest evicted",
    "last-4": f"no memory: the last {LAST_FRAMES} frames encoded anew for each question",
}


class Mode(Protocol):
    """One way to watch a video and answer. Any number of videos, one after the other."""

    def begin(self) -> None:
        """A new video: everything before is forgotten."""

    def show(self, stamp_s: float, frame: np.ndarray) -> None:
        """The next frame, RGB uint8, seconds from the start."""

    def answer(self, question: Question) -> str:
        """One of the question's choices, from what was shown so far. ValueError: it cannot be asked."""


class Streaming:
    """The memory. With `evicts` False, a video that outgrows the budget is an error."""

    def __init__(self, model: QwenModel, budget: int, evicts: bool):
        self.stream = VideoStreamingInference(model, max_cache_tokens=budget)
        self.evicts, self.evictions = evicts, 0
        self._waiting: list[tuple[float, np.ndarray]] = []

    def begin(self) -> None:
        self.stream.reset()
        self._waiting = []

    def show(self, stamp_s: float, frame: np.ndarray) -> None:
        self._waiting.append((stamp_s, frame))
        if len(self._waiting) == FRAMES_PER_CHUNK:
            self._append()

    def answer(self, question: Question) -> str:
        if self._waiting:
            self._append()
        return self.stream.ask_choice(question.text, question.choices)[0]

    def _append(self) -> None:
        stamps, frames = zip(*self._waiting, strict=True)
        self._waiting = []
        gone = self.stream.append_video_chunk(frames, stamps=stamps).evicted_chunks
        self.evictions += bool(gone)
        if gone and not self.evicts:
            budget = self.stream.cache.config.max_cache_tokens
            raise ValueError(
                f"at {stamps[-1]:.0f} s the video outgrows the {budget:,} tokens of the mode without eviction: lower "
                "--fps or --area, or raise --budget"
            )


class Recomputed:
    """No memory kept between questions: chosen frames as one video, encoded anew wherever new frames have come."""

    def __init__(self, model: QwenModel, budget: int, frames: UniformFrames | LastFrames):
        self.stream = VideoStreamingInference(model, max_cache_tokens=budget)
        self.frames, self._stale = frames, True

    def begin(self) -> None:
        self.frames.clear()
        self._stale = True

    def show(self, stamp_s: float, frame: np.ndarray) -> None:
        self.frames.add(stamp_s, frame)
        self._stale = True

    def answer(self, question: Question) -> str:
        if self._stale:
            self.stream.reset()
            stamps, frames = zip(*self.frames.chosen(), strict=True)
            self.stream.append_video_chunk(frames, stamps=stamps)
            self._stale = False
        return self.stream.ask_choice(question.text, question.choices)[0]


class LastFrames:
    """The newest `limit` frames."""

    def __init__(self, limit: int):
        self._kept: deque[tuple[float, np.ndarray]] = deque(maxlen=limit)

    def clear(self) -> None:
        self._kept.clear()

    def add(self, stamp_s: float, frame: np.ndarray) -> None:
        self._kept.append((stamp_s, frame))

    def chosen(self) -> list[tuple[float, np.ndarray]]:
        return list(self._kept)


class UniformFrames:
    """At most `limit` frames, evenly spaced over a video of unknown length, the newest always among them.

    Every `stride`-th frame is kept, at most twice the limit; then every second of these goes and the stride doubles.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        self._kept: list[tuple[float, np.ndarray]] = []
        self._newest: tuple[float, np.ndarray] | None = None
        self._stride, self._count = 1, 0

    def add(self, stamp_s: float, frame: np.ndarray) -> None:
        self._newest = (stamp_s, frame)
        if self._count % self._stride == 0:
            self._kept.append(self._newest)
        self._count += 1
        if len(self._kept) > 2 * self.limit:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def chosen(self) -> list[tuple[float, np.ndarray]]:
        frames = list(self._kept)
        if self._newest is not None and frames[-1] is not self._newest:
            frames.append(self._newest)
        if len(frames) <= self.limit:
            return frames
        return [frames[i] for i in np.linspace(0, len(frames) - 1, self.limit).round().astype(int)]


@dataclass(frozen=True)
class Answered:
    """One question with the answer given, and the wall time from its moment to the answer, ms."""

    question: Question
    given: str
    elapsed_ms: float

    @property
    def correct(self) -> bool:
        return self.given == self.question.answer


@dataclass(frozen=True)
class Played:
    """What came of playing records' videos in one mode. skipped: reasons by record id."""

    answers: list[Answered]
    skipped: dict[int, str]


def play(
    records: Sequence[Record],
    mode: Mode,
    fps: float,
    area: int,
    progress: Callable[[int, int], None] = lambda done, videos: None,
) -> Played:
    """Play each video once and ask all its questions, in order of their times.

    A video that is missing or broken, a question behind its end, and one that the mode cannot take cost their record
    its place, with the reason; all others go on.
    """
    by_video: dict[Path, list[Record]] = defaultdict(list)
    for record in records:
        by_video[record.video].append(record)
    played = Played([], {})
    for done, (video, of_video) in enumerate(by_video.items(), 1):
        questions = sorted((q for r in of_video for q in r.questions), key=lambda q: q.time_s)
        mode.begin()
        try:
            _play_one(video, questions, mode, fps, area, played)
        except ValueError as error:
            why = f"field 'video' is {str(video)!r}: {error}"
            played.skipped.update({record.id: f"record {record.id}: {why}" for record in of_video})
        progress(done, len(by_video))
    return Played([a for a in played.answers if a.question.record not in played.skipped], played.skipped)


def _play_one(
    video: Path, questions: Sequence[Question], mode: Mode, fps: float, area: int, played: Played
) -> None:
    if not video.is_file():
        raise ValueError("no such file; download it, or leave the record out")
    open_questions = deque(questions)
    last_s = None
    for stamp_s, frame in video_frames(video, fps):
        while last_s is not None and open_questions and open_questions[0].time_s < stamp_s:
            _ask(mode, open_questions.popleft(), played)
        if not open_questions:
            return
        mode.show(stamp_s, _scaled(frame, area))
        last_s = stamp_s
    if last_s is None:
        raise ValueError("no frame of it can be read; fetch it anew")
    while open_questions and open_questions[0].time_s <= last_s + 1 / fps:
        _ask(mode, open_questions.popleft(), played)
    for question in open_questions:
        played.skipped[question.record] = (
            f"record {question.record}: field 'realtime' is {question.time_s:g} s, but {video} ends at about "
            f"{last_s:.0f} s; fetch the video anew, or mend the record"
        )


def _ask(mode: Mode, question: Question, played: Played) -> None:
    started = time.perf_counter()
    try:
        given = mode.answer(question)
    except ValueError as error:  # too long for the room that an ask has
        played.skipped[question.record] = (
            f"record {question.record}: its question at {question.time_s:g} s: {error}"
        )
    else:
        played.answers.append(Answered(question, given, 1000 * (time.perf_counter() - started)))


def _scaled(frame: np.ndarray, area: int) -> np.ndarray:
    """At most `area` pixels, aspect kept, in whole patches; smaller frames stay."""
    height, width = frame.shape[:2]
    if height * width <= area:
        return frame
    size = smart_resize(width, height, PictureFormat(min_pixels=28 * 28, max_pixels=area))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))


# -- figures -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Figure:
    """Right answers of so many, with Wilson's 95 % interval (E. B. Wilson, JASA 22, 1927), and what guessing gives.

    Asks of one record of a forward task depend on each other, so that their interval is too narrow.
    """

    correct: int
    asks: int
    accuracy: float
    low: float
    high: float
    chance: float


def figure(answers: Sequence[Answered]) -> Figure | None:
    """None without answers."""
    if not answers:
        return None
    correct = sum(answer.correct for answer in answers)
    interval = binomtest(correct, len(answers)).proportion_ci(0.95, method="wilson")
    chance = float(np.mean([1 / len(answer.question.choices) for answer in answers]))
    return Figure(
        correct, len(answers), correct / len(answers), float(interval.low), float(interval.high), chance
    )


@dataclass(frozen=True)
class Score:
    """Figures of one mode. benchmark_mean: the mean of the groups' means of their tasks' accuracies, as OVO-Bench sums
    up; None unless every group has answers."""

    tasks: dict[str, Figure]
    groups: dict[str, Figure]
    group_means: dict[str, float]
    overall: Figure | None
    benchmark_mean: float | None


def score(answers: Sequence[Answered]) -> Score:
    by_task: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        by_task[answer.question.task].append(answer)
    tasks: dict[str, Figure] = {}
    groups: dict[str, Figure] = {}
    means: dict[str, float] = {}
    for group, names in GROUPS.items():
        of_group = {name: made for name in names if (made := figure(by_task[name]))}
        pooled = figure([answer for name in names for answer in by_task[name]])
        if pooled:
            tasks |= of_group
            groups[group] = pooled
            means[group] = float(np.mean([made.accuracy for made in of_group.values()]))
    mean = float(np.mean(list(means.values()))) if len(means) == len(GROUPS) else None
    return Score(tasks, groups, means, figure(answers), mean)


# -- the experiment ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Budgets:
    """max_cache_tokens with and without eviction, and why."""

    whole: int
    evicting: int
    reason: str


def experiment_ovo(
    given: Setting, records: Sequence[Record], title: str, options: argparse.Namespace, report: Report
) -> dict[str, list[Answered]]:
    """Ask everything in every mode; answers by mode, and figures, of the records that could be asked in all of them."""
    budgets = _budgets(given.model, records, options)
    report.title = title
    report.begin(given, f"budgets {budgets.whole:,} tokens, with eviction {budgets.evicting:,}")
    report.say(
        f"{len(records)} records ({options.samples} a task at most), {options.fps:g} frames a second, "
        f"{FRAMES_PER_CHUNK} a chunk, {options.area:,} pixels at most; {budgets.reason}"
    )
    report.say("answers: the likeliest of one letter, of Yes and No (SSR, CRR), of 0 to 10 (REC)")
    played: dict[str, Played] = {}
    evictions: dict[str, int] = {}
    for name in options.mode:
        played[name], evictions[name] = _play_mode(name, given.model, records, budgets, options)
    skipped = {record: why for one in played.values() for record, why in one.skipped.items()}
    for why in skipped.values():
        print(f"ovo: skipped {why}", file=sys.stderr)
    report.facts |= {
        "budgets": asdict(budgets),
        "fps": options.fps,
        "area": options.area,
        "records": len(records),
        "skipped": [{"record": record, "why": why} for record, why in skipped.items()],
        "modes": {},
    }
    report.say(f"skipped, in all modes: {len(skipped)} records")
    answers = {
        name: [answer for answer in one.answers if answer.question.record not in skipped]
        for name, one in played.items()
    }
    for name, of_mode in answers.items():
        _say_mode(report, name, of_mode, evictions[name])
    _judge(report, len(records), len(skipped), evictions)
    return answers


def _play_mode(
    name: str, model: QwenModel, records: Sequence[Record], budgets: Budgets, options: argparse.Namespace
) -> tuple[Played, int]:
    """What came of it, and the number of evictions."""
    gc.collect()  # the mode before holds a cache, and a GPU may have no room for two
    mode = _mode(name, model, budgets)
    played = play(records, mode, options.fps, options.area, _Progress(name))
    return played, mode.evictions if isinstance(mode, Streaming) else 0


def _judge(report: Report, records: int, skipped: int, evictions: dict[str, int]) -> None:
    report.check("at least one record was asked about in every mode", records > skipped)
    if "streaming+eviction" in evictions:
        report.check("the mode with eviction evicted", evictions["streaming+eviction"] > 0)


def _say_mode(report: Report, name: str, answers: Sequence[Answered], evictions: int) -> None:
    made = score(answers)
    elapsed = float(np.median([a.elapsed_ms for a in answers])) if answers else None
    report.facts["modes"][name] = {
        "what": MODES[name],
        **asdict(made),
        "evictions": evictions,
        "median_answer_ms": elapsed,
    }
    report.say("")
    report.say(f"{name}: {MODES[name]}; evictions {evictions}")
    if not made.overall:
        return
    report.say(f"  {'':10} | right  asks | accuracy  Wilson 95 %     | guessing")
    rows = [
        *made.tasks.items(),
        *((f"= {group}", value) for group, value in made.groups.items()),
        ("= all", made.overall),
    ]
    for label, row in rows:
        report.say(
            f"  {label:11}| {row.correct:5} {row.asks:5} | {row.accuracy:8.1%}  {row.low:6.1%} to {row.high:6.1%}"
            f" | {row.chance:7.1%}"
        )
    means = ", ".join(f"{group} {value:.1%}" for group, value in made.group_means.items())
    total = "" if made.benchmark_mean is None else f", all {made.benchmark_mean:.1%}"
    report.say(
        f"  mean of tasks, as OVO-Bench sums up: {means}{total}; an answer took {elapsed:.0f} ms (median)"
    )


def _mode(name: str, model: QwenModel, budgets: Budgets) -> Mode:
    if name == "full":
        return Recomputed(model, budgets.whole, UniformFrames(FULL_FRAMES))
    if name == "last-4":
        return Recomputed(model, budgets.whole, LastFrames(LAST_FRAMES))
    evicts = name == "streaming+eviction"
    return Streaming(model, budgets.evicting if evicts else budgets.whole, evicts)


def _budgets(model: QwenModel, records: Sequence[Record], options: argparse.Namespace) -> Budgets:
    whole = options.budget or default_budget(model).tokens
    tokens = _chunk_tokens(model, records, options, whole)
    evicting = int(options.memory_s * options.fps / FRAMES_PER_CHUNK * tokens)
    return Budgets(
        whole, min(evicting, whole), f"eviction leaves {options.memory_s:g} s, {tokens} tokens a chunk"
    )


def _chunk_tokens(
    model: QwenModel, records: Sequence[Record], options: argparse.Namespace, budget: int
) -> int:
    """Tokens of an ordinary chunk, from the first video that can be read."""
    for frames in _readable(records, options.fps):
        stream = VideoStreamingInference(model, max_cache_tokens=budget)
        for _ in range(2):  # the first carries the opening
            tokens = stream.append_video_chunk([_scaled(frame, options.area) for frame in frames]).tokens
        return tokens
    raise OvoError(
        f"none of the {len({record.video for record in records})} videos can be read, the first "
        f"{records[0].video}: put OVO-Bench's videos into src_videos beside its JSON file"
    )


def _readable(records: Iterable[Record], fps: float) -> Iterator[list[np.ndarray]]:
    for video in dict.fromkeys(record.video for record in records):
        try:
            frames = [frame for _, frame in itertools.islice(video_frames(video, fps), FRAMES_PER_CHUNK)]
        except ValueError:
            continue
        if len(frames) == FRAMES_PER_CHUNK:
            yield frames


class _Progress:
    """Videos done and time left, on stderr."""

    def __init__(self, mode: str):
        self.mode, self.started = mode, time.perf_counter()

    def __call__(self, done: int, videos: int) -> None:
        left = (time.perf_counter() - self.started) / done * (videos - done)
        print(f"ovo: {self.mode}: video {done} of {videos}, {left:.0f} s left", file=sys.stderr)


def _write_answers(file: Path, answers: Mapping[str, Sequence[Answered]]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["mode", "record", "task", "realtime", "given", "right"])
        for mode, of_mode in answers.items():
            for one in of_mode:
                asked = one.question
                writer.writerow([mode, asked.record, asked.task, asked.time_s, one.given, asked.answer])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vlm_perception.experiments.ovo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, help="OVO-Bench: JSON file and videos; default a synthetic film"
    )
    parser.add_argument("--model", default=os.environ.get("QWEN_MODEL_PATH"), help="model folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--samples", type=_positive(int), default=20, help="records a task, default 20")
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES), help="default all")
    parser.add_argument("--fps", type=_positive(float), default=FPS, help=f"frames a second, default {FPS:g}")
    parser.add_argument("--area", type=_positive(int), default=AREA, help=f"pixels a frame, default {AREA}")
    parser.add_argument("--budget", type=_positive(int), help="max_cache_tokens without eviction")
    parser.add_argument(
        "--memory-s", type=_positive(float), help=f"seconds that eviction leaves, default {MEMORY_S:g}"
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def positive(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    positive.__name__ = f"positive {kind.__name__}"  # argparse puts it into its message
    return positive


def _title(given: Setting, synthetic: bool) -> str:
    if synthetic:
        return "OVO-Bench's form on a SYNTHETIC film: a trial of the program, its scores claim nothing of the model"
    return "OVO-Bench with a SMALL model: a trial, its scores are no claim" if given.scaled else "OVO-Bench"


def main(arguments: list[str] | None = None) -> int:
    """0: every mode was asked; 1: a check failed; 2: bad input, in one line on stderr."""
    options = _parser().parse_args(arguments)
    synthetic = options.folder is None
    options.memory_s = options.memory_s or (SYNTHETIC_MEMORY_S if synthetic else MEMORY_S)
    report = Report("ovo", "OVO-Bench")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            records = sample(
                load_records(write_synthetic(Path(scratch)) if synthetic else options.folder), options.samples
            )
            if not records:
                raise OvoError(f"the JSON file in {options.folder} holds no record: fetch it anew")
            given = setting(options.model, options.device)
            answers = experiment_ovo(given, records, _title(given, synthetic), options, report)
        except (OvoError, ModelError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    report.write(options.out, "ovo")
    _write_answers(options.out / "ovo_answers.csv", answers)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
