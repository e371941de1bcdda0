"""Pictures and videos to recordings and back: files that other programs make and read.

A folder holds 00000.jpg, 00001.jpg ... in the order of their names and, where the pictures were not taken at a steady
pace, `stamps.csv` with a line `file,stamp_s` for each. Compressed pictures are kept byte for byte.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from nav_common import topics
from nav_common.cdr import stamp_ns
from nav_common.conversions import encode
from nav_common.data import CompressedImage
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE
from nav_eval.bags import Bag, BagError, BagWriter

SUFFIXES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
STAMPS_FILE = "stamps.csv"
# Of the first picture where nothing tells when it was taken; not 0, which in ROS means "no stamp".
FIRST_STAMP_S = 1.0
JPEG_QUALITY = 85


class PictureError(ValueError):
    """A folder, picture or video that cannot be used; the message names the file."""


def folder_to_bag(
    folder: Path, bag: Path, *, interval_s: float = 0.5, vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE
) -> int:
    """Make a recording of a folder's pictures; returns how many. `interval_s` counts where there is no `stamps.csv`.

    Raises:
        PictureError: no pictures, one that is none, or stamps that are missing or do not increase.
        BagError: the recording cannot be made.
    """
    if not folder.is_dir():
        raise PictureError(f"{folder} is no folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise PictureError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    times = _stamps(folder, files, interval_s)
    for path in files:
        if _decode(path.read_bytes()) is None:
            raise PictureError(f"{path} ({path.stat().st_size} bytes) is no picture that can be decoded")
    pictures = ((path.read_bytes(), SUFFIXES[path.suffix.lower()]) for path in files)
    return _write(bag, zip(times, pictures, strict=True), vehicle_namespace)


def video_to_bag(
    video: Path, bag: Path, *, fps: float = 0.0, vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE
) -> int:
    """Make a recording of a video; returns how many frames. `fps` thins it out to at most that many a second; 0: all.

    Raises:
        PictureError: it cannot be read as a video, or has no frame.
        BagError: the recording cannot be made.
    """
    if not video.is_file():
        raise PictureError(f"{video} does not exist")
    capture = cv2.VideoCapture(str(video))
    try:
        if not capture.isOpened():
            raise PictureError(f"{video} cannot be read as a video")
        rate = capture.get(cv2.CAP_PROP_FPS)
        if not (math.isfinite(rate) and rate > 0):
            raise PictureError(f"{video} has no frame rate, so its frames have no time")

        def frames() -> Iterator[tuple[float, tuple[bytes, str]]]:
            number, next_s = 0, 0.0
            while True:
                there, picture = capture.read()
                if not there:
                    return
                time_s = number / rate
                number += 1
                if fps > 0 and time_s < next_s - 0.5 / rate:
                    continue
                next_s = next_s + 1.0 / fps if fps > 0 else 0.0
                encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
                yield FIRST_STAMP_S + time_s, (encoded.tobytes(), "jpeg")

        count = _write(bag, frames(), vehicle_namespace)
    finally:
        capture.release()
    if not count:
        raise PictureError(f"{video} holds no frame")
    return count


def bag_to_folder(bag: Path, folder: Path, vehicle_namespace: str | None = None) -> int:
    """Write a recording's pictures as 00000.jpg ... with `stamps.csv`; returns how many.

    Raises:
        BagError: the recording cannot be read, or has no pictures.
        PictureError: the folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise PictureError(f"{folder} is not empty: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / STAMPS_FILE).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "stamp_s"])
        for stamp_s, data in frames_of(bag, vehicle_namespace):
            name = f"{count:05d}" + (".png" if data[:4] == b"\x89PNG" else ".jpg")
            (folder / name).write_bytes(data)
            table.writerow([name, f"{stamp_s:.6f}"])
            count += 1
    if not count:
        raise BagError(f"{bag} holds no picture")
    return count


def bag_to_video(bag: Path, video: Path, vehicle_namespace: str | None = None) -> int:
    """Write a recording's pictures as a video (.mp4) at their mean rate; returns how many.

    Raises:
        BagError: the recording cannot be read, or has no pictures.
        PictureError: a picture cannot be decoded, or the video cannot be written.
    """
    times = [stamp_s for stamp_s, _ in frames_of(bag, vehicle_namespace)]
    if not times:
        raise BagError(f"{bag} holds no picture")
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0 else 2.0
    writer: cv2.VideoWriter | None = None
    size = (0, 0)
    try:
        for number, (_, data) in enumerate(frames_of(bag, vehicle_namespace)):
            picture = _decode(data)
            if picture is None:
                raise PictureError(f"{bag}: picture {number} ({len(data)} bytes) cannot be decoded")
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise PictureError(f"{video} cannot be written as a video: choose a name ending in .mp4")
            writer.write(cv2.resize(picture, size) if picture.shape[1::-1] != size else picture)
    finally:
        if writer is not None:
            writer.release()
    return len(times)


def frames_of(bag: Path, vehicle_namespace: str | None = None) -> Iterator[tuple[float, bytes]]:
    """(stamp in s, compressed picture) of each frame, in the order of the recording."""
    with Bag(bag) as recording:
        namespace = vehicle_namespace or recording.vehicle_namespace()
        topic = topics.FRONT_IMAGE.resolve(namespace)
        recording.require(topic, topics.FRONT_IMAGE.type)
        for _, row in recording.rows([topic]):
            yield row.data.stamp_s, row.data.data


def _stamps(folder: Path, files: list[Path], interval_s: float) -> list[float]:
    table = folder / STAMPS_FILE
    if not table.is_file():
        if not (math.isfinite(interval_s) and interval_s > 0):
            raise PictureError(f"the interval is {interval_s} s, must be positive")
        return [FIRST_STAMP_S + number * interval_s for number in range(len(files))]
    times: dict[str, float] = {}
    with table.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                times[row["file"]] = float(row["stamp_s"])
            except (KeyError, TypeError, ValueError):
                raise PictureError(
                    f"{table} line {number} is {row}: wanted are the columns file, stamp_s"
                ) from None
    result: list[float] = []
    for path in files:
        stamp = times.get(path.name)
        if stamp is None:
            raise PictureError(f"{table} has no stamp for {path.name}")
        if not (math.isfinite(stamp) and stamp > 0) or (result and stamp <= result[-1]):
            before = f" after {result[-1]}" if result else ""
            raise PictureError(
                f"{table}: {path.name} has the stamp {stamp}{before}; stamps must be positive and increase"
            )
        result.append(stamp)
    return result


def _write(bag: Path, pictures: Iterator[tuple[float, tuple[bytes, str]]], vehicle_namespace: str) -> int:
    topic = topics.FRONT_IMAGE
    name = topic.resolve(vehicle_namespace)
    count = 0
    with BagWriter(bag) as writer:
        writer.add_topic(name, topic.type, topic.qos)
        for stamp_s, (data, kind) in pictures:
            image = encode(CompressedImage(stamp_s, data, kind, topics.optical_frame("front")))
            writer.put(name, stamp_ns(image), image)
            count += 1
    return count


def _decode(data: bytes) -> np.ndarray | None:
    if not data:
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
