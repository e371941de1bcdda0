"""rosbag2 recordings: written so that a kill at any moment leaves a readable file, read with clear errors.

The format is the library `rosbags`'; what is added here is the checkpoint. An MCAP file is readable when it ends with
its index. So at each checkpoint the new chunk and the whole index after it are written in one go, and the next
checkpoint begins by writing over that index. metadata.yaml is renewed at each checkpoint too.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import yaml
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import (
    Connection,
    Nodetype,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.interfaces import Qos as BagQos
from rosbags.rosbag2 import (
    CompressionFormat,
    CompressionMode,
    ReaderError,
    StoragePlugin,
    Writer,
    WriterError,
)
from rosbags.rosbag2.metadata import dump_qos_v9
from rosbags.rosbag2.storage_mcap import McapReader, McapWriter
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from nav_common.topics import Qos

METADATA_VERSION: Literal[9] = 9  # what rosbag2 of ROS 2 Jazzy writes
MCAP_MAGIC = b"\x89MCAP0\r\n"
# A checkpoint follows when so much is unwritten, whatever the time: bounds memory and what a kill can lose.
CHECKPOINT_BYTES = 4 << 20


class BagError(Exception):
    """A recording that cannot be read or written; the message names the file and what to do."""


def _interface_files() -> list[Path]:
    """The .msg files of nav_msgs_ext, from the sourced workspace or from the source tree beside this file."""
    roots = [
        Path(p) / "share/nav_msgs_ext/msg" for p in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if p
    ]
    roots.append(Path(__file__).resolve().parents[2] / "nav_msgs_ext/msg")
    for root in roots:
        if files := sorted(root.glob("*.msg")):
            return files
    raise BagError(
        "the definitions of nav_msgs_ext are not found: source ros2_ws/install/setup.bash (AMENT_PREFIX_PATH is "
        f"{os.environ.get('AMENT_PREFIX_PATH', '')!r})"
    )


@cache
def typestore() -> Typestore:
    """ROS 2 Jazzy's message types and ours."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for path in _interface_files():
        types.update(get_types_from_msg(path.read_text(), f"nav_msgs_ext/msg/{path.stem}"))
    store.register(types)
    return store


def make(type_name: str, **fields: Any) -> Any:
    """A message as `rosbags` holds it, fields not given at their zero."""
    return _make(typestore(), type_name, fields)


def _make(store: Typestore, type_name: str, given: dict[str, Any]) -> Any:
    fields = dict(store.fielddefs[type_name][1])
    if unknown := set(given) - set(fields):
        raise TypeError(f"{type_name} has no field {', '.join(sorted(unknown))}")

    def zero(description: Any) -> Any:
        kind, detail = description
        if kind == Nodetype.BASE:
            name = detail[0]
            return "" if name == "string" else False if name == "bool" else 0.0 if "float" in name else 0
        if kind == Nodetype.NAME:
            return _make(store, detail, {})
        element, length = detail
        count = length if kind == Nodetype.ARRAY else 0
        if element[0] == Nodetype.BASE and element[1][0] != "string":
            return np.zeros(count, dtype="uint8" if element[1][0] in ("octet", "byte") else element[1][0])
        return [zero(element) for _ in range(count)]

    values = {name: given[name] if name in given else zero(field) for name, field in fields.items()}
    return store.types[type_name](**values)


def serialize(message: Any) -> bytes:
    """CDR of a message made by `make` or read from a bag."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


# --------------------------------------------------------------------------------------------- writing


class _CheckpointFile:
    """A file that the MCAP writer fills in memory, and that is committed chunk and index together by one write."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._data_end = 0  # where the data stops and the index of the last checkpoint begins
        self._index = b""
        self._pending = BytesIO()
        self._index_start: int | None = None
        self.final = False

    def tell(self) -> int:
        return self._data_end + self._pending.tell()

    def write(self, data: bytes | memoryview) -> int:
        return self._pending.write(data)

    def begin_index(self) -> None:
        self._index_start = self._pending.tell()

    def close(self) -> None:
        """Commit data and index; the file is closed too when `final`.

        Raises:
            OSError: nothing of this checkpoint was kept (disk full); the file is as it was after the last one.
        """
        assert self._index_start is not None
        block = self._pending.getvalue()
        try:
            self._write_at(self._data_end, block)
        except OSError:
            self._write_at(self._data_end, self._index)  # over the same bytes: needs no new space
            raise
        self._data_end += self._index_start
        self._index = block[self._index_start :]
        self._pending = BytesIO()
        self._index_start = None
        if self.final:
            os.close(self._fd)

    def abandon(self) -> None:
        os.close(self._fd)

    def _write_at(self, offset: int, block: bytes) -> None:
        view = memoryview(block)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written
        os.ftruncate(self._fd, offset)


class _CheckpointedMcap(McapWriter):
    """`rosbags`' MCAP storage, on a file that is whole after each close, of which all but the last are checkpoints."""

    bio: Any

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        super().__init__(path, compression)
        header_end = self.bio.tell()
        self.bio.close()
        with self.path.open("rb") as written:
            header = written.read(header_end)
        self.path.unlink()
        self.bio = _CheckpointFile(self.path)
        self.bio.write(header)

    def close(self, version: int, metadata: str) -> None:
        if self.chunk.bio.tell():
            self.close_chunk()
        self.bio.begin_index()
        super().close(version, metadata)

    def abort(self) -> None:
        self.bio.abandon()


class BagWriter(Writer):
    """A rosbag2 MCAP recording of serialized messages.

    Args:
        path: the directory to make; must not exist.
        checkpoint_s: after so many seconds of log time the file on disk is made whole.
    """

    STORAGE_PLUGINS = {StoragePlugin.MCAP: _CheckpointedMcap}  # noqa: RUF012 (rosbags declares it so)

    def __init__(self, path: Path | str, *, checkpoint_s: float = 2.0) -> None:
        try:
            super().__init__(path, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP)
        except WriterError as error:
            raise BagError(f"{error} Choose another place for the recording.") from error
        # MCAP's own chunk compression: pictures stay as they are, odometry's covariances shrink to a tenth.
        self.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._checkpoint_ns = int(checkpoint_s * 1e9)
        self._next_checkpoint_ns: int | None = None
        self.pending_bytes = 0
        """Of messages, since the last checkpoint."""
        self._by_topic: dict[str, Connection] = {}

    def open(self) -> None:
        try:
            super().open()
        except (OSError, WriterError) as error:
            raise BagError(f"cannot make the recording {self.path}: {error}") from error

    def add_topic(self, name: str, type_name: str, qos: Qos) -> None:
        """Declare a topic before its messages. A topic of which no message comes is still listed."""
        self._by_topic[name] = self.add_connection(
            name, type_name, typestore=typestore(), offered_qos_profiles=[_bag_qos(qos)]
        )

    def put(self, topic: str, time_ns: int, data: bytes) -> None:
        """Append one serialized message with its log time.

        Raises:
            BagError: the disk refused a checkpoint; all up to the one before is on it.
        """
        self.write(self._by_topic[topic], time_ns, data)
        self.pending_bytes += len(data)
        if self._next_checkpoint_ns is None:
            self._next_checkpoint_ns = time_ns + self._checkpoint_ns
        if time_ns >= self._next_checkpoint_ns or self.pending_bytes >= CHECKPOINT_BYTES:
            self.checkpoint()
            self._next_checkpoint_ns = time_ns + self._checkpoint_ns

    def checkpoint(self) -> None:
        """Make the recording on disk whole: what was put until now survives a kill.

        Raises:
            BagError: the disk refused; all up to the checkpoint before is on it.
        """
        assert self.storage
        information = self._information()
        try:
            self.storage.close(METADATA_VERSION, _yaml(information))
            renewed = self.metapath.with_suffix(".yaml.new")
            renewed.write_text(_yaml({"rosbag2_bagfile_information": information}))
            renewed.replace(self.metapath)
        except OSError as error:
            raise BagError(
                f"recording {self.path} stopped: {error.strerror} (free some space); what was there at the last "
                "checkpoint is kept"
            ) from error
        self.pending_bytes = 0

    def close(self) -> None:
        assert isinstance(self.storage, _CheckpointedMcap)
        self.storage.bio.final = True
        self.checkpoint()
        self.storage = None

    def _information(self) -> dict[str, Any]:
        """What metadata.yaml says (format version 9). The library makes it only when it closes, and slowly."""
        count = sum(self.counts.values())
        span = {
            "starting_time": {"nanoseconds_since_epoch": self.min_timestamp if count else 0},
            "duration": {"nanoseconds": self.max_timestamp - self.min_timestamp if count else 0},
            "message_count": count,
        }
        file_name = f"{self.path.name}.mcap"
        topics = [
            {
                "topic_metadata": {
                    "name": c.topic,
                    "type": c.msgtype,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": dump_qos_v9(c.ext.offered_qos_profiles),  # type: ignore[union-attr]
                    "type_description_hash": c.digest,
                },
                "message_count": self.counts[c.id],
            }
            for c in self.connections
        ]
        return {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            **span,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [file_name],
            "files": [{"path": file_name, **span}],
            "custom_data": None,
            "ros_distro": "jazzy",
        }


def _yaml(data: dict[str, Any]) -> str:
    class Plain(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(data, Dumper=Plain, sort_keys=False)


def _bag_qos(qos: Qos) -> BagQos:
    forever = QosTime(9223372036, 854775807)  # rosbag2's infinite duration
    return BagQos(
        QosHistory.KEEP_LAST,
        qos.depth,
        QosReliability.RELIABLE if qos.reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if qos.transient_local else QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


# --------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Message:
    """One message of a recording: its number (from 0, over all topics asked for), log time in ns, decoded data."""

    number: int
    topic: str
    time_ns: int
    data: Any

    @property
    def time_s(self) -> float:
        return self.time_ns * 1e-9


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

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Message]:
        """Messages in the order of their log times, of these topics (None: all).

        Raises:
            BagError: a message cannot be read; the error names it by number, topic and time.
        """
        raw = self.raw(topics)
        for number, (connection, time_ns, data) in enumerate(raw):
            try:
                decoded = self._reader.deserialize(data, connection.msgtype)
            except Exception as error:
                raise BagError(
                    f"{self.path}: message {number} ({connection.topic}, {len(data)} bytes, log time "
                    f"{time_ns * 1e-9:.3f}) is not a valid {connection.msgtype}: {type(error).__name__} {error}"
                ) from error
            yield Message(number, connection.topic, time_ns, decoded)

    def raw(self, topics: Collection[str] | None = None) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, log time in ns, CDR) in the order of their log times."""
        chosen = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        number = 0
        try:
            for item in self._reader.messages(chosen):
                yield item
                number += 1
        except (ReaderError, AnyReaderError, struct.error, RuntimeError, EOFError, TypeError) as error:
            raise BagError(f"{self.path} is damaged after message {number}: {error}. {_REPAIR}") from error


_REPAIR = "`nav_eval repair BAG` saves what is whole."


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
        f"{text}: {storage} is cut off; its last whole record ends at offset {_whole_length(storage)} of {size}. "
        f"{_REPAIR}"
    )


# --------------------------------------------------------------------------------------------- repair

_FOOTER, _DATA_END = 0x02, 0x0F


def _whole_length(path: Path) -> int:
    """Bytes of `path` up to the end of its last whole record of the data section."""
    size = path.stat().st_size
    end = len(MCAP_MAGIC)
    with path.open("rb") as file:
        while True:
            file.seek(end)
            head = file.read(9)
            if len(head) < 9 or head[0] == _DATA_END:
                return end
            (length,) = struct.unpack("<Q", head[1:])
            if head[0] == 0 or head[0] > _DATA_END or end + 9 + length > size:
                return end
            end += 9 + length


def repair(path: Path | str, output: Path | str) -> int:
    """Copy every whole message of a cut-off MCAP recording into the new recording `output`; returns how many.

    Raises:
        BagError: it is no MCAP file, or nothing of it is whole.
    """
    source = Path(path)
    storage = next(iter(sorted(source.glob("*.mcap"))), None) if source.is_dir() else source
    if storage is None or not storage.is_file():
        raise BagError(f"{source} holds no .mcap file")
    with storage.open("rb") as file:
        if file.read(8) != MCAP_MAGIC:
            raise BagError(f"{storage} does not begin as an MCAP file: nothing can be saved")
    with tempfile.NamedTemporaryFile(suffix=".mcap", dir=Path(output).parent) as whole:
        with storage.open("rb") as file:
            whole.write(file.read(_whole_length(storage)))
        whole.write(struct.pack("<BQI", _DATA_END, 4, 0))
        whole.write(struct.pack("<BQQQI", _FOOTER, 20, 0, 0, 0) + MCAP_MAGIC)
        whole.flush()
        reader = McapReader(Path(whole.name))
        try:
            reader.open()
        except (ReaderError, struct.error, TypeError) as error:
            raise BagError(f"{storage}: nothing can be saved: {error}") from error
        count = 0
        with BagWriter(output) as writer:
            copies = {}
            for connection in reader.connections:
                text = connection.msgdef.data
                types = get_types_from_msg(text, connection.msgtype)
                store = get_typestore(Stores.EMPTY)
                store.register(types)
                copies[connection.id] = writer.add_connection(
                    connection.topic,
                    connection.msgtype,
                    typestore=store,
                    offered_qos_profiles=connection.ext.offered_qos_profiles,  # type: ignore[union-attr]
                )
            for connection, time_ns, data in reader.messages_scan(reader.connections):
                writer.write(copies[connection.id], time_ns, data)
                count += 1
        reader.close()
    if not count:
        raise BagError(f"{storage}: no whole message is in it")
    return count
