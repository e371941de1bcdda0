"""What may be sent now: rates, and as many messages under way as the link carries. Pure; time is passed in."""

from __future__ import annotations

import functools
import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class RateCap:
    """At most `rate_hz`, kept on average: a message may come a little early when the one before was late."""

    def __init__(self, rate_hz: float, burst: int = 1) -> None:
        self.rate_hz = rate_hz
        self._burst = burst
        self._tokens = float(burst)
        self._last_s: float | None = None

    def allow(self, now_s: float) -> bool:
        if self._last_s is not None:
            gained = max(now_s - self._last_s, 0.0) * self.rate_hz
            self._tokens = min(self._tokens + gained, float(self._burst))
        self._last_s = now_s
        if self._tokens < 1.0 - _EARLY:
            return False
        self._tokens -= 1.0
        return True


_EARLY = 0.1  # of a period: sources jitter, and a message in time must not wait for the next one


@dataclass(frozen=True)
class _UnderWay:
    number: int
    sent_s: float


class CreditWindow:
    """How many messages may be under way, unacknowledged: from 1 to `HIGHEST`, following the link's round trip.

    One is too few where the round trip is long (the link idles), many queue where the link is slow. So: one more when
    a message had to wait and the delay is still near the least seen, one less when the delay says that they queue.
    An acknowledgement counts for all messages before it too: on one connection nothing overtakes.
    """

    LOWEST, INITIAL, HIGHEST = 1, 2, 8
    NEAR = 1.3
    """A delay below so many times the least one (plus SLACK_S): nothing queues."""
    QUEUED = 2.0
    SLACK_S = 0.02
    HISTORY_S = 30.0
    """The least delay is that of the last half minute: the route or the pictures' size may change."""
    LOST_S = 2.0
    """A message without acknowledgement for so long was lost on the way, or its acknowledgement was."""

    def __init__(self) -> None:
        self.size = self.INITIAL
        self.delay_s = 0.0
        """Sending to acknowledgement, of the newest."""
        self._under_way: deque[_UnderWay] = deque()
        self._delays: deque[tuple[float, float]] = deque()
        self._waited = False
        self.lost = 0

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def may_send(self, now_s: float) -> bool:
        """Whether there is room; if not, the window knows that somebody waited."""
        while self._under_way and now_s - self._under_way[0].sent_s > self.LOST_S:
            self._under_way.popleft()
            self.lost += 1
        if len(self._under_way) < self.size:
            return True
        self._waited = True
        return False

    def sent(self, number: int, now_s: float) -> None:
        self._under_way.append(_UnderWay(number, now_s))

    def acknowledged(self, number: int, now_s: float) -> bool:
        """Whether `number` was under way."""
        if all(each.number != number for each in self._under_way):
            return False
        while True:
            each = self._under_way.popleft()
            if each.number == number:
                self._adapt(now_s - each.sent_s, now_s)
                return True

    def forget(self, number: int) -> None:
        """`number` was not sent after all."""
        self._under_way = deque(each for each in self._under_way if each.number != number)

    def reset(self) -> None:
        """The connection was lost: nothing of what was under way will be acknowledged."""
        self._under_way.clear()
        self._delays.clear()
        self.size, self._waited = self.INITIAL, False

    def _adapt(self, delay_s: float, now_s: float) -> None:
        self.delay_s = delay_s
        self._delays.append((now_s, delay_s))
        while now_s - self._delays[0][0] > self.HISTORY_S:
            self._delays.popleft()
        least = min(each for _, each in self._delays)
        if delay_s > self.QUEUED * least + self.SLACK_S:
            self.size = max(self.size - 1, self.LOWEST)
        elif self._waited and delay_s < self.NEAR * least + self.SLACK_S:
            self.size = min(self.size + 1, self.HIGHEST)
        self._waited = False


class FrameRequests:
    """Which pictures the other side wants: the first of a stamp or later each time, and between them a preview.

    Requests are repeated by who makes them, so that one that is lost costs little; one that is repeated long after it
    was answered is answered anew, as the picture was lost then.
    """

    LEASE_S = 2.0
    """A request that is not repeated for so long is void: who made it has ended."""
    RETRY_S = 2.0

    def __init__(self, preview_hz: float) -> None:
        self._preview_period_s = 1 / preview_hz
        self._wanted_ns: int | None = None
        self._made_s = float("-inf")
        self._answered_s: float | None = None
        self._sent_s = float("-inf")

    def want(self, stamp_ns: int, now_s: float) -> None:
        """A request arrived."""
        if stamp_ns != self._wanted_ns:
            self._wanted_ns, self._answered_s = stamp_ns, None
        self._made_s = now_s

    def is_due(self, stamp_ns: int, now_s: float) -> bool:
        """Whether a picture of that stamp is to be sent."""
        if now_s - self._sent_s >= self._preview_period_s * (1 - _EARLY):
            return True
        if self._wanted_ns is None or stamp_ns < self._wanted_ns or now_s - self._made_s > self.LEASE_S:
            return False
        return self._answered_s is None or now_s - self._answered_s > self.RETRY_S

    def sent(self, stamp_ns: int, now_s: float) -> None:
        self._sent_s = now_s
        if self._wanted_ns is not None and stamp_ns >= self._wanted_ns:
            self._answered_s = now_s

    def reset(self) -> None:
        """The connection was lost, and what was under way with it."""
        self._answered_s, self._sent_s = None, float("-inf")


@dataclass(frozen=True)
class Level:
    """How pictures are sent: JPEG quality, scale of their sides, rate."""

    quality: int
    scale: float
    rate_hz: float


def levels(quality: tuple[int, int], rate_hz: float) -> tuple[Level, ...]:
    """From the best to the least: quality goes first, then the size. The rate stays: pictures are sent on request, and
    at a lower rate than that of the requests they would only wait."""
    q_low, q_high = quality
    return (
        Level(q_high, 1.0, rate_hz),
        Level(round((q_low + q_high) / 2), 1.0, rate_hz),
        Level(q_low, 1.0, rate_hz),
        Level(q_low, 0.7, rate_hz),
        Level(q_low, 0.5, rate_hz),
    )


class Ladder:
    """Chooses the level from the pictures' delays: down before they grow old, up again when there is room.

    A step up that had to be taken back is tried again only after twice as long.
    """

    OLD_S = 0.12
    """Delay beyond the round trip from which a picture counts as growing old."""
    ROOM_S = 0.06
    LOOKED_AT = 10
    """Pictures: the newest at this level."""
    DOWN_AFTER = 2
    """Old pictures of those looked at; one lost packet makes one picture late. After a step up one is enough."""
    UP_AFTER_S, UP_AFTER_MOST_S = 10.0, 120.0
    SETTLE_S = 0.5
    """After a step, what was sent before it is still arriving."""

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self._levels = levels
        self._at = 0
        self._queued: deque[float] = deque(maxlen=self.LOOKED_AT)
        self._changed_s = float("-inf")
        self._up_after_s = self.UP_AFTER_S
        self._last_was_up = False

    @property
    def level(self) -> Level:
        return self._levels[self._at]

    def delay(self, delay_s: float, round_trip_s: float, now_s: float) -> None:
        """A picture was acknowledged after `delay_s`."""
        if self._changed_s == float("-inf"):
            self._changed_s = now_s - self.SETTLE_S
        if now_s - self._changed_s < self.SETTLE_S:
            return
        self._queued.append(delay_s - round_trip_s)
        old = sum(queued_s > self.OLD_S for queued_s in self._queued)
        is_tried = self._last_was_up and now_s - self._changed_s < self._up_after_s
        if old >= (1 if is_tried else self.DOWN_AFTER):
            self._step(+1, now_s)
        elif self._at > 0 and self._has_room() and now_s - self._changed_s >= self._up_after_s:
            self._step(-1, now_s)

    def _has_room(self) -> bool:
        late = sum(queued_s > self.ROOM_S for queued_s in self._queued)
        return len(self._queued) == self.LOOKED_AT and late < self.DOWN_AFTER

    def lost(self, now_s: float) -> None:
        """A picture was not acknowledged at all."""
        if now_s - self._changed_s >= self.SETTLE_S:
            self._step(+1, now_s)

    def _step(self, by: int, now_s: float) -> None:
        at = min(max(self._at + by, 0), len(self._levels) - 1)
        if by > 0:
            failed = self._last_was_up and now_s - self._changed_s < self._up_after_s
            self._up_after_s = min(2 * self._up_after_s, self.UP_AFTER_MOST_S) if failed else self.UP_AFTER_S
        self._last_was_up = by < 0
        self._at, self._changed_s = at, now_s
        self._queued.clear()


# --- the other side: answers, delay, clock


def _locked(method: Callable[Concatenate[PeerClock, P], T]) -> Callable[Concatenate[PeerClock, P], T]:
    @functools.wraps(method)
    def run(self: PeerClock, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return run


@dataclass(frozen=True)
class _Answer:
    at_s: float
    round_trip_s: float
    offset_s: float


class PeerClock:
    """From pings and their answers: whether the other side answers, round trip, loss, and its clock.

    May be used from several threads.
    """

    UP_S = 1.0
    """Without an answer for so long the link is lost: ten pings."""
    WINDOW_S = 10.0
    OFFSET_WINDOW_S = 60.0
    DRIFT = 50e-6
    """Most by which two machines' clocks run apart, s/s: five times a usual crystal's error."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pings: deque[tuple[int, float]] = deque()
        self._answered: set[int] = set()
        self._answers: deque[_Answer] = deque()
        self._last_answer_s: float | None = None

    @_locked
    def ping(self, number: int, now_s: float) -> None:
        self._pings.append((number, now_s))
        while self._pings and now_s - self._pings[0][1] > self.WINDOW_S:
            self._answered.discard(self._pings.popleft()[0])
        while self._answers and now_s - self._answers[0].at_s > self.OFFSET_WINDOW_S:
            self._answers.popleft()

    @_locked
    def answer(self, number: int, sent_s: float, received_s: float, replied_s: float, now_s: float) -> bool:
        """`sent_s` and `now_s` on this clock, `received_s` and `replied_s` on the other side's (as NTP does it).

        Returns whether it belongs to a ping of ours.
        """
        round_trip_s = (now_s - sent_s) - (replied_s - received_s)
        if round_trip_s < 0 or number in self._answered or (number, sent_s) not in self._pings:
            return False
        self._answered.add(number)
        if round_trip_s < self.UP_S:
            self._last_answer_s = now_s
        self._answers.append(_Answer(now_s, round_trip_s, ((received_s - sent_s) + (replied_s - now_s)) / 2))
        return True

    @_locked
    def is_up(self, now_s: float) -> bool:
        """An answer that was under way for longer than UP_S does not count: the connection had kept it."""
        return self._last_answer_s is not None and self.answer_age_s(now_s) < self.UP_S

    @_locked
    def answer_age_s(self, now_s: float) -> float:
        """Since the last answer that was in time; negative: none yet."""
        return -1.0 if self._last_answer_s is None else now_s - self._last_answer_s

    @_locked
    def round_trips_s(self, now_s: float, since_s: float) -> list[float]:
        """Of the answers since then, at most of the last minute, in order of size."""
        return sorted(a.round_trip_s for a in self._answers if since_s <= a.at_s <= now_s)

    def _recent(self, now_s: float) -> list[float]:
        return self.round_trips_s(now_s, now_s - self.WINDOW_S)

    @_locked
    def round_trip_s(self, now_s: float) -> float:
        """Median of the last seconds; 0 without any."""
        recent = self._recent(now_s)
        return statistics.median(recent) if recent else 0.0

    @_locked
    def jitter_s(self, now_s: float) -> float:
        """95th percentile less the median."""
        recent = self._recent(now_s)
        return recent[int(0.95 * (len(recent) - 1))] - statistics.median(recent) if recent else 0.0

    @_locked
    def loss(self, now_s: float) -> float:
        """Part of the pings older than UP_S that have no answer."""
        due = [number for number, sent_s in self._pings if now_s - sent_s > self.UP_S]
        return sum(number not in self._answered for number in due) / len(due) if due else 0.0

    @_locked
    def offset(self, now_s: float) -> tuple[float, float]:
        """(the other clock minus this one, the most by which that is wrong), s; (0, inf) while unknown.

        Taken from the fastest answer of the last minute: half its round trip bounds the error, plus the drift since.
        """
        if not self._answers:
            return 0.0, float("inf")

        def bound(answer: _Answer) -> float:
            return answer.round_trip_s / 2 + self.DRIFT * (now_s - answer.at_s)

        best = min(self._answers, key=bound)
        return best.offset_s, bound(best)
