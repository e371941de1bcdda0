"""The demonstration video of a recorded flight: what the drone saw beside the log of its decisions and its cache."""

from __future__ import annotations

import textwrap
from pathlib import Path

import cv2
import numpy as np

from nav_common import topics
from nav_common.data import Decision, EngineStatus
from nav_eval.bags import Bag, BagError, Logged
from nav_eval.flight_log import load
from nav_eval.flight_view import at_time, call_text
from nav_eval.pictures import PictureError

PICTURE_SIZE = (640, 480)
PANEL_WIDTH = 560
BACKGROUND, TEXT, DIM, CURRENT, CACHE = (
    (24, 24, 24),
    (230, 230, 230),
    (150, 150, 150),
    (90, 200, 255),
    (200, 130, 60),
)
FONT, LINE_HEIGHT, MARGIN = cv2.FONT_HERSHEY_SIMPLEX, 20, 16
LINE_CHARACTERS = 62
"""What fits into the panel at its font size (measured)."""
DEFAULT_RATE_HZ = 2.0


def write_demo(bag: Path, video: Path, vehicle_namespace: str | None = None) -> int:
    """Write the video (.mp4) at the mean rate of the recording's pictures; returns the number of frames.

    Raises:
        BagError: the recording cannot be read, or has no pictures.
        PictureError: a picture cannot be decoded, or the video cannot be written.
    """
    log = load(bag, vehicle_namespace)
    times = [row.time_s for row in log.image_stamps]
    if not times:
        raise BagError(f"{bag} holds no picture")
    span_s = times[-1] - times[0]
    rate_hz = (len(times) - 1) / span_s if span_s > 0 else DEFAULT_RATE_HZ
    status_times = [row.time_s for row in log.statuses]
    size = (PICTURE_SIZE[0] + PANEL_WIDTH, PICTURE_SIZE[1])
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), rate_hz, size)
    try:
        if not writer.isOpened():
            raise PictureError(f"{video} cannot be written as a video: choose a name ending in .mp4")
        with Bag(bag) as recording:
            for number, (_, row) in enumerate(
                recording.rows([topics.FRONT_IMAGE.resolve(log.vehicle_namespace)])
            ):
                picture = cv2.imdecode(np.frombuffer(row.data.data, np.uint8), cv2.IMREAD_COLOR)
                if picture is None:
                    raise PictureError(
                        f"{bag}: picture {number} ({len(row.data.data)} bytes) cannot be decoded"
                    )
                known = [d for d in log.decisions if d.time_s <= row.time_s]
                status = at_time(log.statuses, status_times, row.time_s)
                panel = _panel(known, status.data if status else None, row.time_s - times[0])
                writer.write(np.hstack([cv2.resize(picture, PICTURE_SIZE), panel]))
    finally:
        writer.release()
    return len(times)


def _panel(decisions: list[Logged[Decision]], status: EngineStatus | None, time_s: float) -> np.ndarray:
    """Time, instruction, the newest decisions that fit (the last one marked) and the cache's bar."""
    panel = np.full((PICTURE_SIZE[1], PANEL_WIDTH, 3), BACKGROUND, np.uint8)
    instruction = decisions[-1].data.instruction if decisions else ""
    _write(panel, 0, f"{time_s:6.1f} s   {instruction}", TEXT)
    lines: list[tuple[str, tuple[int, int, int]]] = []
    for index, row in enumerate(decisions):
        colour = CURRENT if row is decisions[-1] else DIM
        following = decisions[index + 1].data.previous_result if index + 1 < len(decisions) else ""
        text = f"{row.data.step:2d}  {call_text(row.data) or row.data.status.name.lower()}"
        lines += [(line, colour) for line in textwrap.wrap(text, LINE_CHARACTERS)]
        lines += [(f"      {line}", DIM) for line in textwrap.wrap(following, LINE_CHARACTERS - 6)]
    most = (PICTURE_SIZE[1] - 6 * LINE_HEIGHT) // LINE_HEIGHT
    for number, (line, colour) in enumerate(lines[-most:], 2):
        _write(panel, number, line, colour)
    if status and status.budget_tokens:
        _draw_cache(panel, status)
    return panel


def _draw_cache(panel: np.ndarray, status: EngineStatus) -> None:
    top, width = PICTURE_SIZE[1] - 2 * LINE_HEIGHT, PANEL_WIDTH - 2 * MARGIN
    text = f"cache {status.cached_tokens} of {status.budget_tokens} tokens, {status.evictions} chunks evicted"
    cv2.putText(panel, text, (MARGIN, top - 8), FONT, 0.45, DIM, 1, cv2.LINE_AA)
    for tokens, colour in ((status.cached_tokens, CACHE), (status.sink_tokens, DIM)):
        filled = round(width * min(1.0, tokens / status.budget_tokens))
        cv2.rectangle(panel, (MARGIN, top), (MARGIN + filled, top + LINE_HEIGHT), colour, -1)
    cv2.rectangle(panel, (MARGIN, top), (MARGIN + width, top + LINE_HEIGHT), DIM, 1)


def _write(panel: np.ndarray, line: int, text: str, colour: tuple[int, int, int]) -> None:
    place = (MARGIN, MARGIN + LINE_HEIGHT * (line + 1) - 6)
    cv2.putText(panel, text, place, FONT, 0.45, colour, 1, cv2.LINE_AA)
