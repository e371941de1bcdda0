"""Frames on disk, with the entities they were kept for: a folder of JPEGs, an index each, bounded in size.

A frame is two files, `p1_c1_f0.jpg` and `p1_c1_f0.json` (instruction, chunk, frame in the chunk). The JPEG is written
first and each file appears by a rename, so a kill at any moment leaves either a whole frame or a JPEG without its
index, which the next start removes. What cannot be written is reported and forgotten: a full disk costs memory of the
flight, never the flight.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nav_common.atomic import PART_SUFFIX, write_bytes, write_text

_NAME = re.compile(r"p\d+_c\d+_f\d+\Z")


@dataclass(frozen=True)
class ArchivedFrame:
    """What is known of an archived frame.

    name: `p1_c1_f0`. stamp_s: when it was taken (edge's clock). entity_ids: whom it was kept for. position: (x, y,
    z) in the odometry's frame (ENU), m, and yaw, rad, counter-clockwise from x: where it was taken, if that is
    known.
    """

    name: str
    stamp_s: float
    entity_ids: tuple[str, ...]
    position: tuple[float, float, float] | None = None
    yaw: float = 0.0


class FrameArchive:
    """See the module's text. Not thread-safe.

    folder: created if it is missing. max_bytes: of JPEGs; the oldest frames go first. on_warning: gets a line for
    whatever could not be read or written.
    """

    def __init__(self, folder: Path, *, max_bytes: int, on_warning: Callable[[str], None]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._on_warning = on_warning
        self._sizes: dict[str, int] = {}
        self.frames: dict[str, ArchivedFrame] = {}
        """By name, oldest first."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._load()
        except OSError as error:
            self._warn("opened", folder, error)

    def add(self, frame: ArchivedFrame, jpeg: bytes) -> bool:
        """Keep a frame, in place of an earlier one of its name. False: it could not be written."""
        if not _NAME.match(frame.name):
            raise ValueError(f"{frame.name!r} is no frame's name; expected p1_c1_f0 and the like")
        if len(jpeg) > self._max_bytes:
            self._on_warning(
                f"frame {frame.name} has {len(jpeg)} bytes, the archive {self._max_bytes}: not kept"
            )
            return False
        self._make_room(len(jpeg), frame.name)
        try:
            write_bytes(self._folder / f"{frame.name}.jpg", jpeg)
            write_text(self._folder / f"{frame.name}.json", json.dumps(asdict(frame)))
        except OSError as error:
            self._warn("written", self._folder / frame.name, error)
            self.remove(frame.name)
            return False
        self.frames.pop(frame.name, None)
        self.frames[frame.name] = frame
        self._sizes[frame.name] = len(jpeg)
        return True

    def read(self, name: str) -> bytes | None:
        """The JPEG of a frame; None: it cannot be read, and is no longer in the archive."""
        try:
            return (self._folder / f"{name}.jpg").read_bytes()
        except OSError as error:
            self._warn("read", self._folder / f"{name}.jpg", error)
            self.remove(name)
            return None

    def of_entity(self, entity_id: str) -> list[ArchivedFrame]:
        """Frames kept for an entity, newest first."""
        kept = [frame for frame in self.frames.values() if entity_id in frame.entity_ids]
        return sorted(kept, key=lambda frame: frame.stamp_s, reverse=True)

    def remove(self, name: str) -> None:
        """Forget a frame; the index goes first, so that a JPEG never has an index without a picture."""
        self.frames.pop(name, None)
        self._sizes.pop(name, None)
        for file in (f"{name}.json", f"{name}.jpg"):
            with contextlib.suppress(OSError):
                (self._folder / file).unlink(missing_ok=True)

    def _make_room(self, size: int, name: str) -> None:
        others = [known for known in self.frames if known != name]
        while others and size + sum(self._sizes[known] for known in others) > self._max_bytes:
            self.remove(others.pop(0))

    def _load(self) -> None:
        """Take up what an earlier process left; its unfinished files go."""
        found = []
        for path in sorted(self._folder.iterdir()):
            if path.suffix == PART_SUFFIX or (
                path.suffix == ".jpg" and not path.with_suffix(".json").exists()
            ):
                path.unlink()
            elif path.suffix == ".json" and _NAME.match(path.stem):
                frame = self._load_frame(path)
                found += [frame] if frame else []
        for frame in sorted(found, key=lambda frame: frame.stamp_s):
            self.frames[frame.name] = frame
            self._sizes[frame.name] = (self._folder / f"{frame.name}.jpg").stat().st_size
        self._make_room(0, "")

    def _load_frame(self, path: Path) -> ArchivedFrame | None:
        try:
            fields = json.loads(path.read_bytes())
            position = fields["position"]
            frame = ArchivedFrame(
                path.stem,
                float(fields["stamp_s"]),
                tuple(map(str, fields["entity_ids"])),
                None if position is None else (float(position[0]), float(position[1]), float(position[2])),
                float(fields["yaw"]),
            )
            path.with_suffix(".jpg").stat()
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            self._warn("used", path, error)
            return None
        return frame

    def _warn(self, what: str, path: Path, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        self._on_warning(f"archived frame {path} cannot be {what}: {reason}; the flight goes on without it")
