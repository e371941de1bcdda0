"""Writes rosbag2 recordings (MCAP) such that a kill at any moment leaves a readable file. Needs no ROS.

The format is the library `rosbags`'; what is added here is the checkpoint. An MCAP file is readable when it ends with
its index. So at each checkpoint the new chunk and the whole index after it are written by one call, and the next
checkpoint begins by writing over that index. metadata.yaml is renewed at each checkpoint too.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import yaml
from rosbags.interfaces import (
    Connection,
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
    StoragePlugin,
    Writer,
    WriterError,
)
from rosbags.rosbag2.metadata import dump_qos_v9
from rosbags.rosbag2.storage_mcap import McapWriter, PendingChunk
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from nav_common.atomic import write_text
from nav_common.topics import Qos

METADATA_VERSION: Literal[9] = 9  # what rosbag2 of ROS 2 Jazzy writes
# What a kill loses at most, s; rewriting the index each second costs under 1 % of a core in the first hour.
CHECKPOINT_S = 1.0
# A checkpoint follows when so much is unwritten, whatever the time: bounds memory.
CHECKPOINT_BYTES = 4 << 20
_NO_START_NS = 2**63 - 1  # how `rosbags` says that no message has come
_INFINITE = QosTime(9223372036, 854775807)  # rosbag2's infinite duration


class BagError(ValueError):
    """A recording that cannot be read or written; the message names the file and what to do."""


class BagWriteError(BagError):
    """The disk refused a part of a recording (it is full, or a limit is reached); what was on it stays readable."""


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
    """ROS 2 Jazzy's message types and nav_msgs_ext's.

    Raises:
        BagError: the definitions of nav_msgs_ext are not found.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for path in _interface_files():
        types.update(get_types_from_msg(path.read_text(), f"nav_msgs_ext/msg/{path.stem}"))
    store.register(types)
    return store


class _CheckpointFile:
    """A file that the MCAP writer fills in memory, and that is committed chunk and index together by one write."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
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
        block, split, self._index_start = self._pending.getvalue(), self._index_start, None
        try:
            self._write_at(self._data_end, block)
        except OSError:
            self._write_at(self._data_end, self._index)  # over the same bytes: needs no new space
            self._pending.truncate(split)
            self._pending.seek(split)
            raise
        self._data_end += split
        self._index = block[split:]
        self._pending = BytesIO()
        if self.final:
            os.close(self._fd)

    def abandon(self) -> None:
        os.close(self._fd)

    def _write_at(self, offset: int, block: bytes) -> None:
        view = memoryview(block)
        if hasattr(os, "pwrite"):
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        else:  # Windows
            os.lseek(self._fd, offset, os.SEEK_SET)
            while view:
                written = os.write(self._fd, view)
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
        """One checkpoint. No chunk is written without a message: the genuine reader refuses a file that has one.

        Schemas and channels that no message follows yet wait for the first chunk; the index has them in any case.
        """
        waiting: PendingChunk | None = None
        if self.chunk.msgs:
            self.close_chunk()
        elif self.chunk.bio.tell():
            waiting = self.chunk
            self.chunk = PendingChunk(_NO_START_NS, 0, BytesIO(), defaultdict(list))
        start_ns = self.message_start_time
        self.message_start_time = start_ns if start_ns != _NO_START_NS else 0
        self.bio.begin_index()
        try:
            super().close(version, metadata)
        finally:
            self.message_start_time = start_ns
            if waiting is not None:
                self.chunk = waiting

    def abort(self) -> None:
        self.bio.abandon()


class BagWriter(Writer):
    """A rosbag2 MCAP recording of serialized messages, for one thread. A context manager.

    Args:
        path: the directory to make; must not exist.
        checkpoint_s: the file on disk is made whole each so many seconds of the machine's clock, by the first `put` or
            `checkpoint_if_due` after them.

    Raises:
        BagError: `path` exists or cannot be made.
    """

    STORAGE_PLUGINS = {StoragePlugin.MCAP: _CheckpointedMcap}  # noqa: RUF012 (rosbags declares it so)

    def __init__(self, path: Path | str, *, checkpoint_s: float = CHECKPOINT_S) -> None:
        try:
            super().__init__(path, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP)
        except WriterError as error:
            raise BagError(f"{error} Choose another place for the recording.") from error
        # MCAP's own chunk compression: pictures stay as they are, odometry's covariances shrink to a tenth.
        self.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._checkpoint_s = checkpoint_s
        self._checkpoint_due_s = time.monotonic() + checkpoint_s
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
            BagWriteError: the disk refused a checkpoint; all up to the one before is on it.
        """
        self.write(self._by_topic[topic], time_ns, data)
        self.pending_bytes += len(data)
        if self.pending_bytes >= CHECKPOINT_BYTES:
            self.checkpoint()
        else:
            self.checkpoint_if_due()

    def checkpoint_if_due(self) -> None:
        """Make the recording whole if `checkpoint_s` has passed and something is unwritten.

        Raises:
            BagWriteError: as `checkpoint`.
        """
        if self.pending_bytes and time.monotonic() >= self._checkpoint_due_s:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make the recording on disk whole: what was put until now survives a kill.

        Raises:
            BagWriteError: the disk refused; all up to the checkpoint before is on it.
        """
        assert self.storage
        information = self._information()
        try:
            self.storage.close(METADATA_VERSION, _yaml(information))
            write_text(self.metapath, _yaml({"rosbag2_bagfile_information": information}))
        except OSError as error:
            raise BagWriteError(
                f"recording {self.path} stopped: {error.strerror} (free some space); what was there at the last "
                "checkpoint is kept"
            ) from error
        self.pending_bytes = 0
        self._checkpoint_due_s = time.monotonic() + self._checkpoint_s

    def close(self) -> None:
        """The last checkpoint.

        Raises:
            BagWriteError: as `checkpoint`.
        """
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

    text: str = yaml.dump(data, Dumper=Plain, sort_keys=False)
    return text


def _bag_qos(qos: Qos) -> BagQos:
    """As offered: without the lease, a player's topic would not match subscribers that ask for one."""
    lease_ns = round(qos.lease_s * 1e9)
    return BagQos(
        QosHistory.KEEP_LAST,
        qos.depth,
        QosReliability.RELIABLE if qos.reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if qos.transient_local else QosDurability.VOLATILE,
        _INFINITE,
        _INFINITE,
        QosLiveliness.AUTOMATIC,
        QosTime(*divmod(lease_ns, 10**9)) if lease_ns else _INFINITE,
        False,
    )
