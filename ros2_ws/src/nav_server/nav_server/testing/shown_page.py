"""The monitoring page over a made flight, in a thread of this process: no model, no ROS."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from fastapi import FastAPI

from nav_common.data import (
    ActiveFrames,
    CompressedImage,
    Decision,
    DroneState,
    EngineStatus,
    FlyingMode,
    GateMode,
    GoalState,
    LinkState,
    NavigateState,
    Odometry,
    WatchEvent,
)
from nav_common.frames import Vector
from nav_server.page.board import Board
from nav_server.page.view import add_page
from nav_server.settings import HttpSettings
from nav_server.testing.serving import listening


@dataclass
class NotedControls:
    """Notes what is asked for. `answer`: what `start` and `cancel` say."""

    answer: str = ""
    asked: list[tuple[str, object]] = field(default_factory=list)

    def start(self, instruction: str) -> str:
        self.asked.append(("start", instruction))
        return self.answer

    def cancel(self) -> str:
        self.asked.append(("cancel", None))
        return self.answer

    def emergency_stop(self, engaged: bool) -> None:
        self.asked.append(("emergency_stop", engaged))


def picture(number: int) -> bytes:
    """A JPEG of 320x240: a red disc that wanders over a field."""
    pixels = np.full((240, 320, 3), (200, 160, 120), np.uint8)
    pixels[120:] = (70, 140, 80)
    cv2.circle(pixels, (60 + (7 * number) % 200, 130), 16, (30, 30, 210), -1)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def make_flight(board: Board, now_s: float, *, seconds: float = 20.0, mission: str = "") -> None:
    """Fills `board` with a flight that has lasted so long, at 5 Hz."""
    mission = mission or "fly to the red beacon"
    for number in range(int(seconds * 5) + 1):
        at_s = now_s - seconds + number / 5
        say(board, at_s, number, mission)
        if number % 20 == 0:
            decision = Decision(
                stamp_s=at_s,
                ask_stamp_s=at_s - 0.09,
                instruction=mission,
                step=number // 20,
                tool="fly_towards",
                arguments='{"u": 600, "v": 540}',
                previous_result="flew 2.0 m",
                reason="The red beacon is right of the middle.",
                ttft_ms=40.0 + number % 7,
                total_ms=90.0 + number % 11,
            )
            board.take(decision, at_s)
    ages_s = (8.0, 6.0, 4.0, 2.0, 0.0)
    board.take_memory([now_s - age_s for age_s in ages_s])
    stamps_s = (now_s - 8.0, now_s - 2.0)
    board.take(ActiveFrames(now_s, ("p1", "p2"), stamps_s, ("car_1", "car_1,tree_2"), ("p1",)), now_s)
    board.take(WatchEvent(now_s, "", "is a person near?", True, True, 0.93), now_s)
    board.take(WatchEvent(now_s - 3, "", "no: is the way clear?", False, False, 0.2), now_s)


def say(board: Board, at_s: float, number: int, mission: str = "fly to the red beacon") -> None:
    """What a graph in flight says in one period."""
    angle = number / 25
    position = Vector(12 * math.sin(angle), 8 * (1 - math.cos(angle)), 2.0)
    board.take(CompressedImage(at_s, picture(number)), at_s)
    board.take(Odometry(at_s, position, velocity=Vector(1.2, 0.0, 0.0)), at_s)
    board.take(DroneState(at_s, FlyingMode.AIRBORNE, GateMode.ACTIVE, connected=True, epoch=3), at_s)
    engine = EngineStatus(
        stamp_s=at_s,
        cached_tokens=1040,
        sink_tokens=300,
        window_tokens=600,
        budget_tokens=1536,
        chunks=12,
        append_ms=31.0 + number % 5,
        frame_age_s=0.4 + number % 10 / 10,
    )
    board.take(engine, at_s)
    board.take(GoalState(at_s, "7", mission, NavigateState.MOVING, decisions=number // 20), at_s)
    link = LinkState(
        at_s,
        True,
        "edge",
        round_trip_ms=42.0,
        jitter_ms=3.0,
        loss=0.01,
        image_age_ms=80.0,
        command_age_ms=31.0,
    )
    board.take(link, at_s)
    board.tick(at_s)


@contextlib.contextmanager
def shown_page(board: Board, controls: NotedControls, runs: Path) -> Iterator[str]:
    """Serves the page on a free port of loopback within this block; its address."""
    app = FastAPI()
    add_page(app, board, controls, now=time.time, runs=runs, tokens=False)
    with listening(app, HttpSettings(port=0)) as address:
        yield address
