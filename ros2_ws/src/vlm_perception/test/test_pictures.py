"""Compressed pictures: whole ones become arrays, all others are refused with the reason."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from vlm_perception.pictures import BrokenPictureError, decode


def test_colours_come_out_as_rgb() -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes B, G, R
    for kind in (".jpg", ".png"):
        picture = decode(cv2.imencode(kind, red)[1].tobytes())
        assert picture.shape == (48, 64, 3)
        assert picture[..., 0].min() > 250
        assert picture[..., 2].max() < 5


def test_a_truncated_jpeg_is_refused_and_not_filled_up_with_grey(jpeg: Callable[[int], bytes]) -> None:
    whole = jpeg(0)
    with pytest.raises(BrokenPictureError, match="no end"):
        decode(whole[: len(whole) // 2])
    assert decode(whole + b"\0\0").shape == (120, 160, 3)  # some cameras pad


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"no picture", "no picture"),
        (b"\xff\xd8\xff\xd9", "no picture"),
        (b"\xff\xd8", "no end"),
    ],
)
def test_bytes_that_are_no_picture_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenPictureError, match=reason):
        decode(data)
