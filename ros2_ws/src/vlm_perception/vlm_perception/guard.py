"""The guard of a model that must answer in time: token budgets, a circuit breaker, alerts, counters, recovery.

It stands between a request and the model, wherever the request comes from: one guard for a model, whatever streams it
serves. The numbers were measured on a machine without a GPU; all of them may be changed while it
runs. Tokens are *sampled* ones: what a grammar forces is free and never cut, and of the drone's calls, as a model of
the family writes them, the longest samples 7.

The breaker is a loop of two attempts with a deadline that the decoding loop watches. The libraries for it (pybreaker,
tenacity) begin where this ends: they cannot stop a call that is too slow, and open for a time in which every call is
refused; here the next decision is asked anew, while the drone hovers.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from nav_common.atomic import write_text
from vlm_perception.engine import Generation

T = TypeVar("T")

ALERT_MS = {8: 800.0, 16: 1000.0, 24: 2500.0}
"""A request that was allowed so many tokens and took longer is an alert."""
OTHER_ALERT_MS = 3000.0
"""The same for every other number of tokens."""
NORMAL_TOKENS_VARIABLE = "DEFAULT_MAX_TOKENS"
BREAK_MS_VARIABLE = "CIRCUIT_BREAKER_THRESHOLD"
"""Names of the environment, which the policy reads too (nav_server.policy)."""
CACHED_ANSWERS = 64
"""Of one memory as it is now (chosen: a page that polls asks a handful of questions)."""


class RequestKind(StrEnum):
    """How much of an answer a request is after; decides its token budget."""

    QUICK = "quick"
    NORMAL = "normal"
    ANALYSIS = "analysis"
    DETAILED = "detailed"


@dataclass(frozen=True)
class GuardSettings:
    """Tokens that may be sampled by kind of request, the time after which a request is broken off, and the errors in a
    row after which the process is due to be started anew."""

    quick_tokens: int = 8
    normal_tokens: int = 16
    analysis_tokens: int = 20
    detailed_tokens: int = 24
    break_ms: float = 3000.0
    errors_to_recovery: int = 10

    def __post_init__(self) -> None:
        budgets = [self.budget(kind) for kind in RequestKind]
        if budgets[0] < 1 or budgets != sorted(budgets):
            raise ValueError(
                f"quick_tokens, normal_tokens, analysis_tokens and detailed_tokens are {budgets}: they must be at "
                "least 1 and must not fall"
            )
        if not 0 < self.break_ms < math.inf:
            raise ValueError(f"break_ms is {self.break_ms}, must be positive")
        if self.errors_to_recovery < 1:
            raise ValueError(f"errors_to_recovery is {self.errors_to_recovery}, must be at least 1")

    @classmethod
    def around(cls, normal_tokens: int, break_ms: float) -> Self:
        """With this budget of a normal request, and the others moved out of its way where they must be."""
        default = cls()
        return cls(
            min(default.quick_tokens, normal_tokens),
            normal_tokens,
            max(default.analysis_tokens, normal_tokens),
            max(default.detailed_tokens, normal_tokens),
            break_ms,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As NORMAL_TOKENS_VARIABLE and BREAK_MS_VARIABLE say.

        Raises:
            ValueError: one of them is no such number.
        """
        default = cls()
        try:
            return cls.around(
                int(environment.get(NORMAL_TOKENS_VARIABLE) or default.normal_tokens),
                float(environment.get(BREAK_MS_VARIABLE) or default.break_ms),
            )
        except ValueError as error:
            names = f"{NORMAL_TOKENS_VARIABLE} (tokens) and {BREAK_MS_VARIABLE} (ms)"
            raise ValueError(f"environment: {names} must be positive numbers: {error}") from None

    def budget(self, kind: RequestKind) -> int:
        """Tokens that a request of this kind may sample."""
        return int(getattr(self, f"{kind}_tokens"))

    def allowed(self, kind: RequestKind, ceiling: int) -> int:
        """The budget of a kind below the request's own `max_new_tokens`; 0: it names none."""
        return min(self.budget(kind), ceiling) if ceiling > 0 else self.budget(kind)


def alert_ms(tokens: int) -> float:
    """The latency above which a request that was allowed so many tokens is an alert."""
    return ALERT_MS.get(tokens, OTHER_ALERT_MS)


@dataclass
class Latencies:
    """How often something took how long; ms."""

    count: int = 0
    total_ms: float = 0.0
    min_ms: float = 0.0
    max_ms: float = 0.0

    @property
    def avg_ms(self) -> float:
        return self.total_ms / self.count if self.count else 0.0

    def add(self, latency_ms: float) -> None:
        self.min_ms = min(self.min_ms, latency_ms) if self.count else latency_ms
        self.max_ms = max(self.max_ms, latency_ms)
        self.count += 1
        self.total_ms += latency_ms


@dataclass
class Record:
    """What the guard has counted, since the first start that this record knows of.

    by_kind, by_tokens: latencies by kind of request and by tokens allowed. hovers: requests that were broken off twice.
    restarts: recoveries asked for.
    """

    latencies: Latencies = field(default_factory=Latencies)
    by_kind: dict[str, Latencies] = field(default_factory=dict)
    by_tokens: dict[int, Latencies] = field(default_factory=dict)
    errors: int = 0
    breaks: int = 0
    hovers: int = 0
    alerts: int = 0
    cache_hits: int = 0
    restarts: int = 0
    last_error: str = ""

    def counters(self) -> dict[str, Any]:
        """Under the names of the service's interface; latencies in ms."""
        whole = self.latencies
        return {
            "total_requests": whole.count,
            "avg_latency": whole.avg_ms,
            "min_latency": whole.min_ms,
            "max_latency": whole.max_ms,
            "errors": self.errors,
            "by_tokens": {
                str(n): {"count": one.count, "avg": one.avg_ms} for n, one in self.by_tokens.items()
            },
            "by_kind": {kind: {"count": one.count, "avg": one.avg_ms} for kind, one in self.by_kind.items()},
            "breaks": self.breaks,
            "hovers": self.hovers,
            "alerts": self.alerts,
            "cache_hits": self.cache_hits,
            "restarts": self.restarts,
            "last_error": self.last_error,
        }

    @classmethod
    def from_json(cls, text: str) -> Record:
        """ValueError: it is no record."""
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != {each.name for each in fields(cls)}:
            raise ValueError("other fields than a record's")
        kinds, tokens = values.pop("by_kind"), values.pop("by_tokens")
        whole = Latencies(**values.pop("latencies"))
        record = cls(
            whole,
            {str(kind): Latencies(**one) for kind, one in kinds.items()},
            {int(count): Latencies(**one) for count, one in tokens.items()},
            **values,
        )
        numbers = [record.errors, record.breaks, record.hovers, record.alerts, record.restarts, whole.count]
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError("a count that is no whole number")
        return record


class Guard:
    """See the module's text. `run` and its like are called by the thread that owns the model, the rest by any.

    record_file: where the record is read from at the start and written by `save`; None: it ends with the process.
    on_alert: gets a line for each request that took too long or failed.
    """

    def __init__(
        self,
        settings: GuardSettings | None = None,
        *,
        record_file: str | Path | None = None,
        on_alert: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings = settings or GuardSettings()
        """May be replaced at any time; counts from the next request on."""
        self._file = Path(record_file) if record_file else None
        self._on_alert = on_alert
        self._lock = threading.Lock()  # guards what follows
        self._record = _read(self._file, on_alert) if self._file else Record()
        self._errors_in_a_row = 0
        self._restart_due = ""

    # -- by the thread that owns the model

    def run(
        self,
        kind: RequestKind,
        attempt: Callable[[int, float], Generation],
        *,
        now: Callable[[], float],
        ceiling: int = 0,
        deadline_s: float = math.inf,
    ) -> Generation | None:
        """A request's generation, at most twice tried; None: it was broken off both times, so the answer is to hover.

        attempt: (tokens it may sample, deadline on the clock `now`) -> what came of it. ceiling: the request's own
        max_new_tokens, 0: none. deadline_s: the request's own; what ends by that is no break, as no time is left.
        RuntimeErrors of an attempt count as errors and are passed on; a ValueError is the request's fault.
        """
        settings, spent_s = self.settings, 0.0
        first = settings.allowed(kind, ceiling)
        for tokens in (first, min(first, settings.budget(RequestKind.QUICK))):
            limit_s = min(deadline_s, now() + 1e-3 * settings.break_ms)
            try:
                done = attempt(tokens, limit_s)
            except RuntimeError as error:
                self.count_error(str(error))
                raise
            spent_s += done.total_s
            if done.finish != "deadline":
                if done.finish != "cancelled":
                    self.count(kind, first, spent_s)
                return done
            if limit_s >= deadline_s:
                self.count(kind, first, spent_s, f"the deadline came after {done.sampled} tokens")
                return done
            with self._lock:
                self._record.breaks += 1
            self._on_alert(f"{kind} request of {tokens} tokens broken off after {settings.break_ms:g} ms")
        self.count(kind, first, spent_s, f"broken off twice after {settings.break_ms:g} ms")
        with self._lock:
            self._record.hovers += 1
        return None

    def count(self, kind: RequestKind, tokens: int, seconds: float, error: str = "") -> None:
        """A request that was answered in this time, or (with an error) was not."""
        latency_ms, limit_ms = 1e3 * seconds, alert_ms(tokens)
        with self._lock:
            record = self._record
            for each in (
                record.latencies,
                record.by_kind.setdefault(str(kind), Latencies()),
                record.by_tokens.setdefault(tokens, Latencies()),
            ):
                each.add(latency_ms)
            late = latency_ms > limit_ms
            record.alerts += late
            if not error:
                self._errors_in_a_row = 0
        if late:
            self._on_alert(f"{kind} request of {tokens} tokens took {latency_ms:.0f} ms, above {limit_ms:g}")
        if error:
            self.count_error(error)

    def count_hit(self) -> None:
        """A request that was answered from the response cache."""
        with self._lock:
            self._record.cache_hits += 1

    def count_error(self, reason: str) -> None:
        """A request that was accepted and could not be answered."""
        limit = self.settings.errors_to_recovery
        with self._lock:
            self._record.errors += 1
            self._record.last_error = reason
            self._errors_in_a_row += 1
            if self._errors_in_a_row < limit or self._restart_due:
                return
            self._record.restarts += 1
            self._restart_due = f"{self._errors_in_a_row} errors in a row, the last: {reason}"

    # -- by any thread

    @property
    def restart_due(self) -> str:
        """Why the process should save the record and end, for its supervisor to start it anew; "": it should not."""
        return self._restart_due

    def record(self) -> Record:
        """A copy of what was counted."""
        with self._lock:
            record = self._record
            return replace(
                record,
                latencies=replace(record.latencies),
                by_kind={kind: replace(one) for kind, one in record.by_kind.items()},
                by_tokens={count: replace(one) for count, one in sorted(record.by_tokens.items())},
            )

    def save(self) -> None:
        """Write the record into its file, whole or not at all. OSError: it cannot be written."""
        if self._file is None:
            return
        write_text(self._file, json.dumps(asdict(self.record())))


def _read(file: Path, on_alert: Callable[[str], None]) -> Record:
    """The record in a file; one that cannot be read is put aside, since counters are no reason not to serve.

    ValueError: the file's folder cannot be made, so nothing could be kept.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"guard record {file}: {error}; name a file in another folder") from None
    try:
        return Record.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Record()
    except (ValueError, TypeError, AttributeError) as error:
        aside = file.with_name(file.name + ".broken")
        file.replace(aside)
        on_alert(f"guard record {file} cannot be read ({error}): counting anew, the file is {aside.name} now")
        return Record()


class ResponseCache(Generic[T]):
    """Answers that a memory has given since it last changed. For one thread."""

    def __init__(self) -> None:
        self._cache_version: Hashable = None
        self._answers: dict[Hashable, T] = {}

    def get(self, cache_version: Hashable, question: Hashable) -> T | None:
        """The answer to the same question on the same memory; None: it was not asked. cache_version: names the memory's
        contents, and changes with them."""
        if cache_version != self._cache_version:
            self._cache_version = cache_version
            self._answers.clear()
        return self._answers.get(question)

    def put(self, question: Hashable, answer: T) -> None:
        """The answer on the memory that `get` was last called with."""
        while len(self._answers) >= CACHED_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._answers[question] = answer


def kind_of(name: str, default: RequestKind) -> RequestKind:
    """The kind that a request names; "" is the default.

    Raises:
        ValueError: there is no such kind.
    """
    if not name:
        return default
    try:
        return RequestKind(name)
    except ValueError:
        raise ValueError(f"kind is {name!r}, must be one of {', '.join(RequestKind)}, or empty") from None
