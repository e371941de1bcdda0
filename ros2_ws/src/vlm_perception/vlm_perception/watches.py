"""Standing questions to a memory, answered again and again on new frames between decisions, within a time budget.

An ask changes nothing and copies nothing, so questions may be left with the memory: "a person ahead?". Each is answered
by the likelier of yes and no; one that comes true, or is true no longer, is an event.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field

from nav_common.data import WatchEvent, WatchRequest
from vlm_perception import prompting
from vlm_perception.memory import ChoiceAnswer

MAX_WATCHES = 16
"""In all: more than a mission and a few clients leave is a mistake somewhere."""
DEFAULT_SHARE = 0.2
"""Of the time, that watches may take (chosen: frames and decisions keep the rest)."""


@dataclass(frozen=True)
class Watch:
    """A standing question. text: as it was left; answer: the one that makes it true, of prompting.YES_NO."""

    owner: str
    text: str
    question: str
    answer: str
    hover: bool

    @classmethod
    def parse(cls, owner: str, text: str, hover: bool) -> Watch:
        """A question, or "no: QUESTION", which is true when the answer is no.

        Raises:
            ValueError: there is no question in it.
        """
        head, colon, rest = text.partition(":")
        answer = head.strip().lower()
        if not (colon and answer in prompting.YES_NO):
            answer, rest = prompting.YES_NO[0], text
        question = prompting.clean(rest).strip()
        if not question:
            raise ValueError(f'watch {text!r} has no question: say what to look for, as "a person ahead?"')
        return cls(owner, text, question, answer, hover)


@dataclass
class _State:
    """What is known of a watch."""

    asked_of: Hashable = None
    holds: bool = False


@dataclass
class Watches:
    """The watches of one memory. `replace` and `answers` for any thread, the rest for the one that steps."""

    answers: int = 0
    """Questions answered so far."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _states: dict[Watch, _State] = field(default_factory=dict)
    """Those that were answered longest ago first."""
    _not_before_s: float = -math.inf

    # -- from any thread

    def replace(self, request: WatchRequest) -> None:
        """The owner's watches from now on; those that it had already go on as they stand.

        Raises:
            ValueError: a watch without a question, or too many; then nothing has changed.
        """
        wanted = dict.fromkeys(
            [
                *(Watch.parse(request.owner, text, hover=True) for text in request.hover_watches),
                *(Watch.parse(request.owner, text, hover=False) for text in request.watches),
            ]
        )
        with self._lock:
            kept = {w: state for w, state in self._states.items() if w.owner != request.owner or w in wanted}
            after = {**kept, **{watch: _State() for watch in wanted if watch not in kept}}
            if len(after) > MAX_WATCHES:
                raise ValueError(f"{len(after)} watches, at most {MAX_WATCHES} at a time: leave fewer")
            self._states = after

    def __len__(self) -> int:
        return len(self._states)

    # -- by the stepping thread

    def due(self, now_s: float, cache_version: Hashable) -> Watch | None:
        """The watch to ask now of the memory as it is: one that has not been asked of it, if there is time left."""
        return self._waiting(cache_version) if now_s >= self._not_before_s else None

    def next_due_s(self, cache_version: Hashable) -> float:
        """When `due` may give one; inf: never, while the memory stays as it is."""
        return self._not_before_s if self._waiting(cache_version) else math.inf

    def _waiting(self, cache_version: Hashable) -> Watch | None:
        with self._lock:
            waiting = (watch for watch, state in self._states.items() if state.asked_of != cache_version)
            return next(waiting, None)

    def answered(
        self,
        watch: Watch,
        best: ChoiceAnswer,
        cache_version: Hashable,
        *,
        began_s: float,
        now_s: float,
        share: float,
        frame_stamp_s: float,
    ) -> WatchEvent | None:
        """Note an answer; the event, if it has turned the watch. share: of the time, that watches may take."""
        cost_s, holds = now_s - began_s, best.answer == watch.answer
        self.answers += 1
        self._rest(cost_s, now_s, share)
        with self._lock:
            state = self._states.pop(watch, None)
            if state is None:  # taken away meanwhile
                return None
            turned, state.holds, state.asked_of = holds != state.holds, holds, cache_version
            self._states[watch] = state
        if not turned:
            return None
        probability = best.probability if holds else 1.0 - best.probability
        return WatchEvent(
            now_s, watch.owner, watch.text, holds, watch.hover, probability, frame_stamp_s, 1e3 * cost_s
        )

    def unanswered(
        self, watch: Watch, cache_version: Hashable, *, began_s: float, now_s: float, share: float
    ) -> None:
        """The model failed: the watch stands as it is, and is asked of the memory's next state."""
        self._rest(now_s - began_s, now_s, share)
        with self._lock:
            state = self._states.pop(watch, None)
            if state is not None:
                state.asked_of = cache_version
                self._states[watch] = state

    def _rest(self, cost_s: float, now_s: float, share: float) -> None:
        self._not_before_s = now_s + cost_s * (1.0 / share - 1.0)

    def failed(self, watch: Watch) -> None:
        """A watch that cannot be asked is taken away."""
        with self._lock:
            self._states.pop(watch, None)
