"""A synthetic stand-in for OVO-Bench: small films of coloured shapes and words, with records in the same JSON shape.

It shows that loader, modes and scorer work where the true videos are not. A score on it says nothing of a model.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .ovo_records import VIDEO_FOLDER

FILMS, SCENES, SCENE_S, FILM_FPS, SIZE = 4, 12, 4, 4, (224, 168)
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 90, 230), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle")
MOVES = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
WORDS = [
    "TOWER",
    "RIVER",
    "BRIDGE",
    "HARBOUR",
    "WIND",
    "STONE",
    "LIGHT",
    "GATE",
    "NORTH",
    "SOUTH",
    "CLOUD",
    "FIELD",
]
# Scenes in whose middle the nine tasks with options are asked: late enough to have something behind them.
ASKED = (3, 5, 7, 9, 10)


@dataclass(frozen=True)
class Scene:
    """What is shown for SCENE_S seconds. flash: its first second has a white border."""

    colour: str
    shape: str
    side: str
    move: str
    word: str
    flash: bool


def write_synthetic(folder: Path) -> Path:
    """Write films and records below `folder` as OVO-Bench has them, the same at each call; returns `folder`."""
    videos = folder / VIDEO_FOLDER / "synthetic"
    videos.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for film in range(FILMS):
        chance = random.Random(film)
        scenes = _scenes(chance)
        _write_film(videos / f"film_{film}.mp4", scenes)
        for record in _records(scenes, chance):
            records.append({"id": len(records), "video": f"synthetic/film_{film}.mp4", **record})
    (folder / "ovo_bench_synthetic.json").write_text(json.dumps(records, indent=1) + "\n")
    return folder


def _scenes(chance: random.Random) -> list[Scene]:
    """Colours come round in a fixed order, so that the next one can be known; words come once each."""
    words = chance.sample(WORDS, SCENES)
    colours = chance.sample(list(COLOURS), len(COLOURS))
    return [
        Scene(
            colours[i % len(colours)],
            chance.choice(SHAPES),
            chance.choice(("left", "right")),
            chance.choice(list(MOVES)),
            words[i],
            chance.random() < 0.5,
        )
        for i in range(SCENES)
    ]


def _write_film(path: Path, scenes: list[Scene]) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FILM_FPS, SIZE)
    if not writer.isOpened():
        raise OSError(f"{path} cannot be written: OpenCV has no mp4v encoder here, or the folder is full")
    for scene in scenes:
        for step in range(SCENE_S * FILM_FPS):
            writer.write(np.ascontiguousarray(_picture(scene, step)[:, :, ::-1]))
    writer.release()


def _picture(scene: Scene, step: int) -> np.ndarray:
    """RGB uint8 (height, width, 3); `step` counts the scene's frames."""
    width, height = SIZE
    picture = np.full((height, width, 3), 24, np.uint8)
    along = 2 * step - SCENE_S * FILM_FPS
    x = width * (1 if scene.side == "left" else 3) // 4 + MOVES[scene.move][0] * along
    y = height * 2 // 5 + MOVES[scene.move][1] * along
    colour, r = COLOURS[scene.colour], 26
    if scene.shape == "circle":
        cv2.circle(picture, (x, y), r, colour, -1)
    elif scene.shape == "square":
        cv2.rectangle(picture, (x - r, y - r), (x + r, y + r), colour, -1)
    else:
        cv2.fillPoly(picture, [np.array([(x, y - r), (x - r, y + r), (x + r, y + r)])], colour)
    cv2.putText(picture, scene.word, (12, height - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    if scene.flash and step < FILM_FPS:
        cv2.rectangle(picture, (0, 0), (width - 1, height - 1), (255, 255, 255), 8)
    return picture


def _records(scenes: list[Scene], chance: random.Random) -> list[dict[str, Any]]:
    asked = [record for at in ASKED for record in _with_options(scenes, at, chance)]
    return [*asked, _count_flashes(scenes), _show_steps(scenes), _wait_for_word(scenes)]


def _with_options(scenes: list[Scene], at: int, chance: random.Random) -> list[dict[str, Any]]:
    now, past = scenes[at], scenes[chance.randrange(at - 1)]
    after = scenes[scenes.index(past) + 1]
    others = [scene.word for scene in scenes if scene is not after]
    cannot = "Unable to answer"
    asked = [
        ("EPM", f"What colour was the shape while the word {past.word} was shown?", past.colour, [*COLOURS]),
        (
            "ASI",
            f"Which word came directly after {past.word}?",
            after.word,
            [after.word, *chance.sample(others, 3)],
        ),
        ("HLD", "What did the dog carry?", cannot, ["a ball", "a stick", "a shoe", cannot]),
        (
            "OCR",
            "Which word is written at the bottom?",
            now.word,
            [now.word, *chance.sample([w for w in WORDS if w != now.word], 3)],
        ),
        ("ACR", "Which way is the shape moving?", now.move, [*MOVES]),
        ("ATR", "What colour is the shape?", now.colour, [*COLOURS]),
        ("STU", "In which half of the picture is the shape?", now.side, ["left", "right"]),
        (
            "FPD",
            "Which colour will the next shape have?",
            scenes[(at + 1) % len(COLOURS)].colour,
            [*COLOURS],
        ),
        ("OJR", "Which shape is shown?", now.shape, [*SHAPES]),
    ]
    return [
        _option_record(task, question, answer, options, _middle(at), chance)
        for task, question, answer, options in asked
    ]


def _option_record(
    task: str, question: str, answer: str, options: list[str], time_s: float, chance: random.Random
) -> dict[str, Any]:
    shuffled = chance.sample(options, len(options))
    return {
        "task": task,
        "realtime": time_s,
        "question": question,
        "answer": answer,
        "options": shuffled,
        "gt": shuffled.index(answer),
    }


def _middle(scene: int) -> float:
    return scene * SCENE_S + SCENE_S / 2


def _count_flashes(scenes: list[Scene]) -> dict[str, Any]:
    starts = [i * SCENE_S for i, scene in enumerate(scenes) if scene.flash]
    times = [_middle(i) for i in (1, 4, 7, 10)]
    tests = [{"realtime": time, "count": sum(start < time for start in starts)} for time in times]
    return {
        "task": "REC",
        "activity": "a white frame flashing up",
        "start_times": starts,
        "end_times": [start + 1 for start in starts],
        "test_info": tests,
    }


def _show_steps(scenes: list[Scene]) -> dict[str, Any]:
    steps = [f"showing the word {scenes[i].word}" for i in (2, 6, 9)]
    tests = [
        {"realtime": _middle(place + late), "step": step, "type": int(late == 0)}
        for place, step in zip((2, 6, 9), steps, strict=True)
        for late in (-1, 0, 1)
    ]
    return {
        "task": "SSR",
        "tutorial": "Words",
        "all_steps": steps,
        "start_time": [i * SCENE_S for i in (2, 6, 9)],
        "end_time": [(i + 1) * SCENE_S for i in (2, 6, 9)],
        "test_info": tests,
    }


def _wait_for_word(scenes: list[Scene]) -> dict[str, Any]:
    ask, clue = 5, 7
    return {
        "task": "CRR",
        "question": f"Which word comes two after {scenes[ask].word}?",
        "answer": scenes[clue].word,
        "ask_time": _middle(ask),
        "clue_time": clue * SCENE_S,
        "test_info": [{"realtime": _middle(i), "type": int(i >= clue)} for i in (ask, 6, clue, 8, 9)],
    }
