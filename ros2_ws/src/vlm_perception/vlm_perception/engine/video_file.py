"""Frames of a video file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def video_frames(path: Path, fps: float) -> Iterator[tuple[float, np.ndarray]]:
    """(time in seconds, RGB frame) of a video file, thinned to `fps`."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"{path} cannot be read as a video")
    due = 0.0
    own_fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
    try:
        for index in itertools.count():
            read, picture = capture.read()
            if not read:
                return
            stamp = index / own_fps
            if stamp + 1e-9 >= due:
                due += 1.0 / fps
                yield stamp, np.ascontiguousarray(picture[:, :, ::-1])
    finally:
        capture.release()
