"""Pictures made smaller before they are sent: JPEG again at a lower quality, depth as ROS's compressedDepth.

Both work on serialised messages. compressedDepth (compressed_depth_image_transport) stores 1/distance in 16 bits as
PNG: fine near, coarse far. What is farther than DEPTH_MAX_M counts as that far; unknown distances arrive as NaN.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import cv2
import numpy as np

from nav_common import conversions
from nav_common.data import CompressedImage, DepthImage
from zenoh_link.flow import Level

DEPTH_FORMAT = "32FC1; compressedDepth png"
DEPTH_QUANTIZATION = 100.0
"""compressed_depth_image_transport's default; with DEPTH_MAX_M the error is 1 cm at 10 m, 15 cm at 50 m."""
DEPTH_MAX_M = 100.0
MOST_PIXELS = 4096 * 4096
_DEPTH_HEADER = struct.Struct("<iff")
_LARGEST = 65535


class PictureError(ValueError):
    """A message that holds no such picture."""


def shrink(payload: bytes, level: Level, best_quality: int) -> bytes:
    """A serialised CompressedImage as `level` wants it; unchanged at full size and best quality.

    Raises:
        PictureError: it holds no picture.
    """
    if level.scale == 1.0 and level.quality >= best_quality:
        return payload
    try:
        image = conversions.decode(CompressedImage, payload)
    except conversions.ConversionError as error:
        raise PictureError(str(error)) from error
    pixels = _decoded(image.data, cv2.IMREAD_COLOR)
    if level.scale != 1.0:
        size = (max(int(pixels.shape[1] * level.scale), 1), max(int(pixels.shape[0] * level.scale), 1))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, level.quality])[1].tobytes()
    if len(encoded) >= len(image.data):
        return payload
    return conversions.encode(replace(image, data=encoded))


def compress_depth(payload: bytes) -> bytes:
    """A serialised DepthImage as a serialised CompressedImage of DEPTH_FORMAT.

    Raises:
        PictureError: it holds no depth.
    """
    try:
        depth = conversions.decode(DepthImage, payload)
    except conversions.ConversionError as error:
        raise PictureError(str(error)) from error
    a, b = _coefficients()
    known = depth.depth_m > 0  # NaN is not
    inverse = (
        a
        / np.clip(
            depth.depth_m, a / (_LARGEST - b), DEPTH_MAX_M, where=known, out=np.ones_like(depth.depth_m)
        )
        + b
    )
    pixels = np.where(known, inverse, 0.0).round().astype(np.uint16)
    png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    image = CompressedImage(depth.stamp_s, _DEPTH_HEADER.pack(0, a, b) + png, DEPTH_FORMAT, depth.frame_id)
    return conversions.encode(image)


def expand_depth(payload: bytes) -> bytes:
    """The serialised DepthImage of `compress_depth`.

    Raises:
        PictureError: it is no such message.
    """
    try:
        image = conversions.decode(CompressedImage, payload)
    except conversions.ConversionError as error:
        raise PictureError(str(error)) from error
    if image.format != DEPTH_FORMAT or len(image.data) <= _DEPTH_HEADER.size:
        raise PictureError(f"depth has format {image.format!r:.60}, must be {DEPTH_FORMAT!r}")
    _, a, b = _DEPTH_HEADER.unpack_from(image.data)
    _check_png_size(image.data[_DEPTH_HEADER.size :])
    pixels = _decoded(image.data[_DEPTH_HEADER.size :], cv2.IMREAD_UNCHANGED)
    if pixels.ndim != 2 or pixels.dtype != np.uint16 or not (np.isfinite(a) and np.isfinite(b)):
        raise PictureError(f"depth is {pixels.dtype} of shape {pixels.shape}, must be one channel of uint16")
    values = pixels.astype(np.float32)
    with np.errstate(divide="ignore"):
        depth = np.where(pixels > 0, np.float32(a) / (values - np.float32(b)), np.float32("nan"))
    return conversions.encode(DepthImage(image.stamp_s, depth.astype(np.float32), image.frame_id))


def _check_png_size(png: bytes) -> None:
    """A few bytes can announce more pixels than there is memory."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise PictureError("depth is no PNG")
    width, height = struct.unpack_from(">II", png, 16)
    if width * height > MOST_PIXELS:
        raise PictureError(f"depth has {width}x{height} pixels, at most {MOST_PIXELS} are decoded")


def _coefficients() -> tuple[float, float]:
    a = DEPTH_QUANTIZATION * (DEPTH_QUANTIZATION + 1.0)
    return a, 1.0 - a / DEPTH_MAX_M


def _decoded(data: bytes, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise PictureError(f"picture cannot be decoded: {error}") from error
    if pixels is None:
        raise PictureError(f"picture of {len(data)} bytes cannot be decoded")
    return pixels
