"""Rendered films: pictures that move, and text on screen that changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def pictures(width: int, height: int, seed: int = 0) -> Iterator[np.ndarray]:
    """An endless smooth film with a moving block."""
    rows, columns = np.mgrid[0:height, 0:width]
    step = seed
    while True:
        picture = np.stack([(rows + step) % 256, (columns * 2) % 256, (rows + columns) % 256], -1).astype(
            np.uint8
        )
        x = 7 * step % max(width - width // 4, 1)
        picture[height // 4 : height // 2, x : x + width // 4] = (240, 30, 30)
        step += 1
        yield picture


def subtitled_film(seconds_each: float = 5.0, fps: float = 2.0) -> Iterator[tuple[float, np.ndarray, str]]:
    """(time, frame, text on it): a rendered film whose subtitle changes every few seconds."""
    import cv2

    words = [
        "RED",
        "BLUE",
        "NORTH",
        "SOUTH",
        "TOWER",
        "RIVER",
        "BRIDGE",
        "HARBOUR",
        "WIND",
        "STONE",
        "LIGHT",
        "GATE",
    ]
    film = pictures(448, 336)
    index = 0
    while True:
        stamp = index / fps
        line = int(stamp / seconds_each)
        text = f"{words[line * 5 % len(words)]} {words[(line * 7 + 3) % len(words)]} {line + 10}"
        frame = np.ascontiguousarray(next(film))
        cv2.rectangle(frame, (0, 270), (448, 336), (0, 0, 0), -1)
        cv2.putText(frame, text, (16, 314), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2)
        yield stamp, frame, text
        index += 1
