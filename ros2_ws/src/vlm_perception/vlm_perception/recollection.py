"""What ties a memory bank to one stream: it looks which frames show what is sought, and brings frames back.

An instruction that names a known entity, none of whose frames is in the cache any more, brings archived frames back
before the decision: as one chunk, each encoded again behind a label. Then the newest frame follows once more, so that
the last thing before the words is what the camera shows. As long as nothing but recalled frames shows the entity, each
ask says where they were taken, seen from the drone's present place. The newest stamp and the frame barrier do not move:
a decision never rests on a recalled frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from nav_common.data import ActiveFrames, RecallResponse
from vlm_perception import pictures, prompting
from vlm_perception.admission import FrameGroup
from vlm_perception.identity import extraction
from vlm_perception.identity.archive import ArchivedFrame
from vlm_perception.identity.bank import Candidate, MemoryBank
from vlm_perception.identity.mentions import find_mentions
from vlm_perception.memory import Memory


@dataclass(frozen=True)
class RecallCounts:
    """Frames brought back, the decisions before which that happened, the tokens and the seconds that it cost (the
    newest frame's repetition included), and questions asked for the archive."""

    retrievals: int = 0
    decisions: int = 0
    extra_tokens: int = 0
    extra_s: float = 0.0
    questions: int = 0


@dataclass
class _Rating:
    """What the newest frame shows, as far as the model was asked: `unasked` entities are to come, None before the first
    question."""

    candidate: Candidate
    unasked: list[str] | None = None
    shown: list[str] = field(default_factory=list)


class Recollection:
    """See the module's text. The thread that steps the stream calls it."""

    def __init__(self, bank: MemoryBank, memory: Memory) -> None:
        self.bank = bank
        self.counts = RecallCounts()
        self._memory = memory
        self._instruction = ""
        self._rating: _Rating | None = None
        """Of the newest frame, while it is not known what it shows."""
        self._last_asked = ""
        self._unread = ""
        """The instruction that the model has yet to read for what the rules leave out."""
        self._newest: FrameGroup | None = None

    def appended(self, chunk: FrameGroup, chunk_id: int) -> None:
        """A chunk of frames is in the cache; what it shows is asked when there is time, until a newer one comes."""
        self._keep_rated()
        self._newest = chunk
        last = chunk.frames[-1]
        pose = last.pose
        candidate = Candidate(
            chunk_id,
            len(chunk.frames) - 1,
            last.frame.stamp_s,
            last.frame.image.data,
            (pose.position.x, pose.position.y, pose.position.z) if pose else None,
            pose.yaw if pose else 0.0,
        )
        self._rating = _Rating(candidate)

    def step(self, gives_way: Callable[[], bool]) -> bool:
        """Let the model read the instruction, or ask it whether the newest frame shows one of the entities sought;
        False: nothing to do. One question a step, so that a decision waits for one at most, however many are sought.

        gives_way: whether something waits that a long answer is broken off for.

        Raises:
            ValueError, RuntimeError: the model's answer cannot be used, or there is none.
        """
        self.bank.keep_cached(self._memory.chunk_ids)
        self.bank.save()
        if self._unread and self._memory.prompt is not None:
            self._read(gives_way)
            return True
        rating = self._rating
        if rating is None or self._memory.prompt is None:
            return False
        if rating.unasked is None:
            rating.unasked = self._in_turn()
        if not rating.unasked:
            self._keep_rated()
            return False
        self._last_asked = rating.unasked.pop(0)
        if self._is_seen(self._last_asked):
            rating.shown.append(self._last_asked)
        if not rating.unasked:
            self._keep_rated()
        return True

    def _read(self, gives_way: Callable[[], bool]) -> None:
        """What the model finds in the instruction is sought too."""
        instruction, self._unread = self._unread, ""
        done = self._memory.answer_json(
            extraction.question(instruction),
            extraction.SCHEMA,
            max_new_tokens=extraction.MAX_TOKENS,
            cancel=gives_way,
        )
        if done.finish == "cancelled":
            self._unread = instruction
            return
        found = extraction.further_mentions(instruction, done.text, find_mentions(instruction))
        if found:
            self.bank.add_mentions(found)

    def _in_turn(self) -> list[str]:
        """What is sought, from behind what was asked last: where frames come too fast for all, each has its turn."""
        sought = list(self.bank.sought)
        first = sought.index(self._last_asked) + 1 if self._last_asked in sought else 0
        return sought[first:] + sought[:first]

    def _keep_rated(self) -> None:
        """The frame that was asked about goes to the bank, with what it was found to show."""
        if self._rating is not None:
            self.bank.add_frame(self._rating.candidate, self._rating.shown)
        self._rating = None

    def _is_seen(self, entity_id: str) -> bool:
        question = prompting.sees_question(self.bank.registry.reference(entity_id))
        self.counts = replace(self.counts, questions=self.counts.questions + 1)
        return self._memory.choose(question, prompting.YES_NO).answer == "yes"

    def before_decision(self, instruction: str) -> None:
        """Bring back what the instruction needs and the cache no longer holds.

        Raises:
            ValueError, RuntimeError: the engine refused a frame; those before it are in the cache.
        """
        if instruction != self._instruction:
            if self._rating is not None and self._rating.unasked is not None:
                self._keep_rated()
            self.bank.add_instruction(instruction)
            self._instruction = instruction
            self._unread = instruction if self._memory.form.answers_in_words else ""
        self._bring_back()

    def recall(self, entity: str) -> RecallResponse:
        """Bring back what shows an entity: an id, or words for it. It is sought until the next instruction.

        Raises:
            ValueError, RuntimeError: as `before_decision`.
        """
        if self._newest is None:
            return RecallResponse(
                False, "no frame is in memory yet: what is recalled follows what the camera shows"
            )
        entity_id = self.bank.registry.known(entity)
        if entity_id is None:
            ids = ", ".join(self.bank.registry.entities) or "none yet"
            return RecallResponse(False, f"{entity!r:.80} is not known; known are {ids}")
        self.bank.seek(entity_id)
        self._bring_back()
        frames = self.bank.cached_frames(entity_id)
        return RecallResponse(
            bool(frames),
            "" if frames else f"no frame is archived that shows {entity_id}",
            entity_id,
            self.bank.registry.entities[entity_id].name,
            tuple(frame.stamp_s for frame in frames),
            tuple(frame.name for frame in frames),
        )

    def _bring_back(self) -> None:
        """The archived frames of what is sought and not in the cache, and then the newest frame once more."""
        self.bank.keep_cached(self._memory.chunk_ids)
        frames = self.bank.to_recall()
        if not frames or self._newest is None:
            return
        found = [(frame, pixels) for frame in frames if (pixels := self._pixels(frame)) is not None]
        if not found:
            return
        recalled = self._memory.append_recalled([pixels for _, pixels in found])
        self.bank.recalled([frame for frame, _ in found], recalled.chunk)
        done = (recalled, self._memory.repeat_newest())
        counts = self.counts
        self.counts = replace(
            counts,
            retrievals=counts.retrievals + len(found),
            decisions=counts.decisions + 1,
            extra_tokens=counts.extra_tokens + sum(appended.tokens for appended in done),
            extra_s=counts.extra_s + sum(appended.vision_s + appended.prefill_s for appended in done),
        )

    def active_frames(self, now_s: float) -> ActiveFrames:
        """What the bank holds active, for people to see."""
        active, recalled, counts = self.bank.active, self.bank.recalled_names, self.counts
        return ActiveFrames(
            stamp_s=now_s,
            frames=tuple(frame.name for frame in active),
            frame_stamps_s=tuple(frame.stamp_s for frame in active),
            entities=tuple(",".join(frame.entity_ids) for frame in active),
            recalled=tuple(frame.name for frame in active if frame.name in recalled),
            archived=len(self.bank.archive.frames) - len(active),
            retrievals=counts.retrievals,
            extra_tokens=counts.extra_tokens,
            extra_latency_ms=1e3 * counts.extra_s,
        )

    def notes(self) -> list[str]:
        """Where each entity sought was seen that nothing but recalled frames shows; lines for the ask."""
        if self._newest is None:
            return []
        lines, pose = [], self._newest.frames[-1].pose
        for entity_id, frame in self.bank.only_recalled().items():
            if pose is None or frame.position is None:
                continue
            dx, dy = frame.position[0] - pose.position.x, frame.position[1] - pose.position.y
            bearing = math.degrees(math.atan2(dy, dx) - pose.yaw)
            reference = self.bank.registry.reference(entity_id)
            lines.append(prompting.whereabouts(reference, math.hypot(dx, dy), bearing))
        return lines

    def _pixels(self, frame: ArchivedFrame) -> np.ndarray | None:
        """An archived frame's picture; None: it is lost."""
        jpeg = self.bank.archive.read(frame.name)
        if jpeg is None:
            return None
        try:
            return pictures.decode(jpeg)
        except pictures.BrokenPictureError:
            self.bank.archive.remove(frame.name)
            return None

    def forget_cache(self) -> None:
        """The cache was emptied; the archive stays."""
        self._rating = self._newest = None
        self.bank.keep_cached(())
