"""The memory bank: which frames are active, which are archived, and which an instruction needs back.

The cache's own eviction knows nothing of this: it stays sink and window. The bank only chooses pictures. From the
third chunk on, a frame that shows a sought entity becomes active; at most `max_memory_frames` are, and of those
that must go the one is archived whose entities the others show as well, else the oldest. An instruction that names
a known entity asks for its archived frames: they are encoded again and appended at the tail of the stream as
labelled chunks. (The guide that this follows keeps keys and values of key frames, a "KV bank". Old keys and values
are not pasted back here: they were computed with other frames before them and at other positions, and a picture of
some hundred tokens is encoded again in less than a frame interval.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nav_common.atomic import write_text

from .archive import ArchivedFrame, FrameArchive
from .mentions import Mention, find_mentions
from .registry import EntityRegistry, Match

FIRST_CHUNK = 3
"""Chunks before it stay in the sink, or are too few to choose from."""


@dataclass(frozen=True)
class Candidate:
    """A frame that may be remembered. chunk and frame: numbers in the stream, the primed prompt being chunk 0, and in
    the chunk, from 0. position, yaw: as in ArchivedFrame."""

    chunk: int
    frame: int
    stamp_s: float
    jpeg: bytes
    position: tuple[float, float, float] | None = None
    yaw: float = 0.0


class MemoryBank:
    """See the module's text. Not thread-safe.

    folder: of the session: `frames/`, `instructions.json` (with the mentions that a model read in each) and, with
    several instructions, `mapping.json`. What is there already is taken up: the memory survives a restart. several:
    entities are matched across instructions and their frames come back; without it every instruction begins with no
    known entity. on_warning: gets a line for
    what the disk refused.
    """

    def __init__(
        self,
        folder: Path,
        *,
        several: bool = True,
        max_memory_frames: int = 3,
        max_bytes: int = 64 << 20,
        on_warning: Callable[[str], None],
    ) -> None:
        if max_memory_frames < 1:
            raise ValueError(f"max_memory_frames is {max_memory_frames}, must be at least 1")
        self.archive = FrameArchive(folder / "frames", max_bytes=max_bytes, on_warning=on_warning)
        self.registry = EntityRegistry()
        self._folder = folder
        self._several = several
        self._max_memory_frames = max_memory_frames
        self._on_warning = on_warning
        self._instructions: list[dict[str, Any]] = []
        """As in instructions.json."""
        self._sought: tuple[str, ...] = ()
        self._active: list[ArchivedFrame] = []
        self._cached: dict[str, int] = {}
        """Chunk of each frame of the archive that is in the cache, by name."""
        self._changed = False
        """Since mapping.json was written."""
        self._recalled: set[str] = set()
        """Those of them that were brought back."""
        self._load()

    @property
    def sought(self) -> tuple[str, ...]:
        """Ids of the entities that the instruction names, those that it excludes left out."""
        return self._sought

    @property
    def active(self) -> list[ArchivedFrame]:
        """The frames that are remembered now, in the order in which they were chosen."""
        return [frame for frame in self._active if frame.name in self.archive.frames]

    def add_instruction(self, text: str) -> list[Match]:
        """The next instruction begins; the mentions that were matched."""
        matches = self._match(text)
        self._write_instructions()
        return matches

    def add_mentions(self, mentions: Sequence[Mention]) -> None:
        """Further mentions of the newest instruction, which a model has read in it."""
        self._match_read(mentions)
        self._write_instructions()

    def seek(self, entity_id: str) -> None:
        """Seek this entity as well, until the next instruction.

        Raises:
            KeyError: it is not known.
        """
        self._sought = tuple(dict.fromkeys((*self._sought, self.registry.entities[entity_id].id)))

    def cached_frames(self, entity_id: str) -> list[ArchivedFrame]:
        """Frames that show an entity and are in the cache, newest first."""
        return [frame for frame in self.archive.of_entity(entity_id) if frame.name in self._cached]

    @property
    def recalled_names(self) -> frozenset[str]:
        """Names of the frames in the cache that were brought back."""
        return frozenset(self._recalled)

    def _match(self, text: str) -> list[Match]:
        self._instructions.append({"text": text, "read": []})
        if not self._several:
            self.registry = EntityRegistry()
        matches = self.registry.add_instruction(find_mentions(text))
        self._sought = ()
        self._seek(matches)
        return matches

    def _match_read(self, mentions: Sequence[Mention]) -> None:
        self._seek(self.registry.add_mentions(mentions))
        self._instructions[-1]["read"] += [mention.as_json() for mention in mentions]

    def _seek(self, matches: Sequence[Match]) -> None:
        meant = [match for match in matches if not match.mention.negated]
        self._sought = tuple(dict.fromkeys((*self._sought, *(i for m in meant for i in m.entity_ids))))

    def to_recall(self) -> list[ArchivedFrame]:
        """For each entity sought that no frame in the cache shows, its newest archived frame; oldest first."""
        if not self._several:
            return []
        cached = [self.archive.frames[name] for name in self._cached if name in self.archive.frames]
        shown = {entity_id for frame in cached for entity_id in frame.entity_ids}
        missing = [entity_id for entity_id in self._sought if entity_id not in shown]
        chosen = {frame.name: frame for i in missing for frame in self.archive.of_entity(i)[:1]}
        return sorted(chosen.values(), key=lambda frame: frame.stamp_s)[-self._max_memory_frames :]

    def recalled(self, frames: Sequence[ArchivedFrame], chunk: int) -> None:
        """Archived frames are in the cache again, in this chunk of the stream."""
        for frame in frames:
            self._recalled.add(frame.name)
            self._activate(frame, chunk)

    def only_recalled(self) -> dict[str, ArchivedFrame]:
        """The newest frame of each entity sought that the cache shows in recalled frames alone."""
        found: dict[str, ArchivedFrame] = {}
        for entity_id in self._sought:
            shown = self.cached_frames(entity_id)
            if shown and all(frame.name in self._recalled for frame in shown):
                found[entity_id] = shown[0]
        return found

    def keep_cached(self, chunks: Container[int]) -> None:
        """Only these chunks are still in the cache: the frames of others are only archived now."""
        gone = {name for name, chunk in self._cached.items() if chunk not in chunks}
        if gone:
            self._cached = {name: chunk for name, chunk in self._cached.items() if name not in gone}
            self._recalled -= gone
            self._active = [frame for frame in self._active if frame.name not in gone]
            self._changed = True

    def add_frame(self, candidate: Candidate, shown: Sequence[str]) -> None:
        """A frame entered the cache; `shown`: which of the entities sought it shows."""
        if candidate.chunk < FIRST_CHUNK or not shown:
            return
        name = f"p{max(len(self._instructions), 1)}_c{candidate.chunk}_f{candidate.frame}"
        frame = ArchivedFrame(name, candidate.stamp_s, tuple(shown), candidate.position, candidate.yaw)
        if self.archive.add(frame, candidate.jpeg):
            self._activate(frame, candidate.chunk)
            self.save()

    def _activate(self, new: ArchivedFrame, chunk: int) -> None:
        self._cached[new.name] = chunk
        self._active = [frame for frame in self.active if frame.name != new.name] + [new]
        while len(self._active) > self._max_memory_frames:
            del self._active[self._most_redundant()]
        self._changed = True

    def _most_redundant(self) -> int:
        """Index of the oldest frame whose entities all stand in newer ones, else of the oldest."""
        for index, frame in enumerate(self._active):
            newer = {i for later in self._active[index + 1 :] for i in later.entity_ids}
            if set(frame.entity_ids) <= newer:
                return index
        return 0

    # -- on disk

    def as_json(self) -> dict[str, Any]:
        """What mapping.json holds, with the guide's names."""
        active = [frame.name for frame in self.active]
        archived = {n: list(f.entity_ids) for n, f in self.archive.frames.items() if n not in active}
        return {
            "global_registry": self.registry.as_json(),
            "frame_archive": archived,
            "frame_active_memory": active,
        }

    def save(self) -> None:
        """Write mapping.json if it has changed. What is recalled, or leaves the cache, does not wait for the disk."""
        if self._changed:
            self._write_mapping()

    def _load(self) -> None:
        """The instructions of an earlier process once more: they make the same registry."""
        path = self._folder / "instructions.json"
        try:
            if path.exists():
                for said in json.loads(path.read_bytes()):
                    self._match(str(said["text"]))
                    self._match_read([Mention.from_json(fields) for fields in said["read"]])
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._on_warning(f"{path} cannot be used: {error!r}; the memory begins without known entities")
        self._sought = ()
        self._write_mapping()

    def _write_instructions(self) -> None:
        self._write("instructions.json", self._instructions)
        self._write_mapping()

    def _write_mapping(self) -> None:
        self._changed = False
        if self._several:
            self._write("mapping.json", self.as_json())

    def _write(self, name: str, content: object) -> None:
        path = self._folder / name
        try:
            write_text(path, json.dumps(content, indent=2))
        except OSError as error:
            self._on_warning(f"{path} cannot be written: {error.strerror}; the flight goes on without it")
