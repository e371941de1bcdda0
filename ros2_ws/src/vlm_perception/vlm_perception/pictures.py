"""Compressed pictures to arrays, broken ones refused."""

from __future__ import annotations

import cv2
import numpy as np


class BrokenPictureError(ValueError):
    """Bytes that are no whole picture; the text says why."""


def check(data: bytes) -> None:
    """Raises BrokenPictureError where the bytes alone show it: a decoder fills a cut JPEG up with grey."""
    if not data:
        raise BrokenPictureError("the picture has zero bytes")
    if data[:2] == b"\xff\xd8" and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise BrokenPictureError(f"the JPEG of {len(data)} bytes has no end")


def decode(data: bytes) -> np.ndarray:
    """RGB uint8 (height, width, 3) from JPEG or PNG bytes. BrokenPictureError where they are none."""
    check(data)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BrokenPictureError(f"the {len(data)} bytes cannot be decoded: {error}") from None
    if picture is None or picture.size == 0:
        raise BrokenPictureError(f"the {len(data)} bytes are no picture that can be decoded")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
