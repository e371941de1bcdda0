"""Reads rosbag2 recordings, with clear errors for what cannot be read."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError

from nav_common import cdr, conversions
from nav_common.bag_writer import BagError, typestore
from nav_eval.bags.mcap_records import MCAP_MAGIC, whole_length

T = TypeVar("T")


_DATA_TYPES = {conversions.type_name(cls): cls for cls in conversions.TYPES}


@dataclass(frozen=True)
class Logged(Generic[T]):
    """What was recorded, with its log time in s (when the recorder received it)."""

    time_s: float
    data: T


class Bag:
    """A recording, open for reading. A context manager.

    Args:
        path: a rosbag2 directory, or an .mcap or .db3 file.

    Raises:
        BagError: it is not there, empty, cut off, of a later version or not a recording.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._reader = AnyReader([_storage_of(self.path)], default_typestore=typestore())
        try:
            self._reader.open()
        except (
            AnyReaderError,
            ReaderError,
            AssertionError,
            OSError,
            ValueError,
            struct.error,
            TypeError,
        ) as error:
            raise BagError(_why_unreadable(self.path, error)) from error
        if not self._reader.connections:
            self._reader.close()
            raise BagError(f"{self.path} holds no topic at all: nothing was recorded")

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    @property
    def types(self) -> dict[str, str]:
        """Type of each topic."""
        return {connection.topic: connection.msgtype for connection in self._reader.connections}

    @property
    def counts(self) -> dict[str, int]:
        """Messages of each topic."""
        counts: dict[str, int] = {}
        for connection in self._reader.connections:
            counts[connection.topic] = counts.get(connection.topic, 0) + connection.msgcount
        return counts

    def vehicle_namespace(self) -> str:
        """The namespace that the recorded vehicle's topics have.

        Raises:
            BagError: the recording holds none, or several.
        """
        types = {"nav_msgs_ext/msg/DroneState", "nav_msgs/msg/Odometry", "sensor_msgs/msg/CompressedImage"}
        found = {
            topic.removesuffix(ending)
            for topic, type_name in self.types.items()
            if type_name in types
            for ending in ("/state", "/odom", "/camera/front/image/compressed")
            if topic.endswith(ending)
        }
        if len(found) != 1:
            what = "no vehicle" if not found else "several vehicles: " + ", ".join(sorted(found))
            raise BagError(
                f"{self.path} holds {what}; its topics are {', '.join(sorted(self.types)) or 'none'}"
                + ("; name one with --vehicle" if found else "")
            )
        return found.pop() or "/"

    def require(self, topic: str, type_name: str) -> None:
        """Raises BagError unless `topic` is there with that type."""
        have = self.types.get(topic)
        if have is None:
            raise BagError(f"{self.path} has no topic {topic}; it has {', '.join(sorted(self.types))}")
        if have != type_name:
            raise BagError(f"{self.path}: topic {topic} is of type {have}, not {type_name}")

    def rows(self, topics: Collection[str]) -> Iterator[tuple[str, Logged[Any]]]:
        """(topic, data) in the order of log times, of these topics: data of nav_common.data where the type has one,
        otherwise the message of nav_common.cdr.

        Raises:
            BagError: a message cannot be read; the error names it by number (from 0), topic and time.
        """
        types = self.types
        for number, (topic, time_ns, payload) in enumerate(self.payloads(topics)):
            try:
                data = _decode(types[topic], payload)
            except ValueError as error:
                raise BagError(
                    f"{self.path}: message {number} ({topic}, {len(payload)} bytes, log time {time_ns * 1e-9:.3f}) "
                    f"is not a valid {types[topic]}: {error}"
                ) from error
            yield topic, Logged(time_ns * 1e-9, data)

    def payloads(self, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
        """(topic, log time in ns, CDR) in the order of log times, of these topics (None: all).

        Raises:
            BagError: the recording is damaged.
        """
        chosen = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        number = 0
        try:
            for connection, time_ns, payload in self._reader.messages(chosen):
                yield connection.topic, time_ns, payload
                number += 1
        except (ReaderError, AnyReaderError, struct.error, RuntimeError, EOFError, TypeError) as error:
            raise BagError(
                f"{self.path} is damaged after message {number}: {error}. {_repair_hint(self.path)}"
            ) from error


def _decode(type_name: str, payload: bytes) -> Any:
    cls = _DATA_TYPES.get(type_name)
    return conversions.decode(cls, payload) if cls else cdr.unpack(type_name, payload)


def _repair_hint(path: Path) -> str:
    return f"`python -m nav_eval repair {path} {path.with_suffix('')}_repaired` saves what is whole."


def _storage_of(path: Path) -> Path:
    """What to open for `path`: itself, or its only storage file where metadata.yaml is missing."""
    if not path.exists():
        raise BagError(f"no recording at {path}")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        files = sorted([*path.glob("*.mcap"), *path.glob("*.db3")])
        if len(files) != 1:
            raise BagError(
                f"{path} is no recording: it has no metadata.yaml and {len(files)} files .mcap or .db3 where one could "
                "be read without it"
            )
        return files[0]
    if path.is_file() and path.suffix not in (".mcap", ".db3"):
        raise BagError(
            f"{path} is no recording: a directory with metadata.yaml, an .mcap or a .db3 is wanted"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise BagError(f"{path} is empty (0 bytes)")
    return path


def _why_unreadable(path: Path, error: Exception) -> str:
    text = f"{path} cannot be read: {error or type(error).__name__}"
    storage = next(iter(sorted(path.glob("*.mcap"))), None) if path.is_dir() else path
    if storage is None or storage.suffix != ".mcap" or not storage.exists():
        return text
    size = storage.stat().st_size
    with storage.open("rb") as file:
        if size < len(MCAP_MAGIC) or file.read(8) != MCAP_MAGIC:
            return f"{text}: {storage} ({size} bytes) does not begin as an MCAP file"
        file.seek(-8, os.SEEK_END)
        if file.read() == MCAP_MAGIC:
            return text
    return (
        f"{text}: {storage} is cut off; its last whole record ends at offset {whole_length(storage)} of {size}. "
        f"{_repair_hint(path)}"
    )
