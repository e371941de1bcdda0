"""What is in the cache, and what leaves when the budget is full: whole chunks, oldest first, never by attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Chunk:
    """One appended item: its tokens, by modality in order, and the span of positions they take.

    runs: pairs of (modality, tokens), modality one of "text", "image", "video".
    positions: first position, and one past the last on any axis.
    stamp: time of its newest frame, seconds, where known.
    """

    id: int
    runs: tuple[tuple[str, int], ...]
    positions: tuple[int, int]
    stamp: float | None = None

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.runs)


@dataclass
class EvictionConfig:
    """Budgets, in tokens. `sink_size=0` means: the cache length after the first chunk. `window_size` is what the
    budget leaves beside the sink, unless it is given smaller. `sampled_tokens` is level 2, for comparison only: that
    much of the budget keeps chunks sampled uniformly in time from those that fall out of the window. `close_gap=False`,
    for comparison only, leaves what is kept at the front at its positions, with a gap before the window."""

    max_cache_tokens: int = 100_000
    sink_size: int = 0
    window_size: int | None = None
    sampled_tokens: int = 0
    close_gap: bool = True

    def __post_init__(self) -> None:
        if self.max_cache_tokens <= 0:
            raise ValueError(
                f"max_cache_tokens is {self.max_cache_tokens}; it must be a positive number of tokens"
            )
        if not 0 <= self.sink_size < self.max_cache_tokens:
            raise ValueError(
                f"sink_size {self.sink_size} does not fit a budget of max_cache_tokens {self.max_cache_tokens}: "
                "give 0 (automatic) or less than the budget"
            )
        if not 0 <= self.sampled_tokens < self.max_cache_tokens - self.sink_size:
            raise ValueError(
                f"sampled_tokens {self.sampled_tokens} must be at least 0 and leave room for a window: "
                f"max_cache_tokens {self.max_cache_tokens}, sink_size {self.sink_size}"
            )
        if (
            self.window_size is not None
            and not 0 < self.window_size <= self.max_cache_tokens - self.sink_size
        ):
            raise ValueError(
                f"window_size {self.window_size} must be between 1 and max_cache_tokens - sink_size = "
                f"{self.max_cache_tokens - self.sink_size}"
            )


@dataclass
class TokenTypeTracker:
    """Knows of every cached token its modality and its chunk."""

    chunks: list[Chunk] = field(default_factory=list)

    def append(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    @property
    def tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)

    def counts(self) -> dict[str, int]:
        """Cached tokens by modality."""
        totals = {"text": 0, "image": 0, "video": 0}
        for chunk in self.chunks:
            for modality, count in chunk.runs:
                totals[modality] += count
        return totals

    def at(self, token: int) -> tuple[str, int]:
        """(modality, chunk id) of the cached token with this index, counted from the oldest kept."""
        rest = token
        for chunk in self.chunks:
            for modality, count in chunk.runs:
                if rest < count:
                    return modality, chunk.id
                rest -= count
        raise IndexError(f"token {token} is not cached; the cache holds {self.tokens} tokens")


@dataclass(frozen=True)
class ChunkStats:
    """Chunks appended so far (a replaced one counts once), and their tokens."""

    chunks: int = 0
    tokens: int = 0
    smallest: int = 0
    largest: int = 0

    @property
    def mean(self) -> float:
        return self.tokens / self.chunks if self.chunks else 0.0

    def with_chunk(self, tokens: int) -> ChunkStats:
        smallest = min(self.smallest, tokens) if self.chunks else tokens
        return ChunkStats(self.chunks + 1, self.tokens + tokens, smallest, max(self.largest, tokens))


class KVCacheEvictor:
    """Decides how many of the oldest chunks leave. The sink never does."""

    def __init__(self, config: EvictionConfig):
        self.config = config
        self.effective_sink_size = 0
        self.sink_chunks = 0
        self.total_evictions = 0
        self.evicted_tokens = 0
        self.stride = 1
        self.chunk_stats = ChunkStats()

    @property
    def window_size(self) -> int:
        """Tokens the window may hold."""
        room = self.config.max_cache_tokens - self.effective_sink_size - self.config.sampled_tokens
        return room if self.config.window_size is None else min(self.config.window_size, room)

    def set_first_chunk_info(self, cache_length: int, chunks: int = 1) -> None:
        """The sink is complete: it is the first `chunks` chunks, `cache_length` tokens."""
        if cache_length >= self.config.max_cache_tokens:
            raise ValueError(
                f"the sink (first chunk and prompt) has {cache_length} tokens, the budget max_cache_tokens is "
                f"{self.config.max_cache_tokens}: raise the budget, lower the resolution or shorten the prompt"
            )
        self.effective_sink_size, self.sink_chunks = cache_length, chunks

    def update_chunk_stats(self, tokens: int) -> None:
        self.chunk_stats = self.chunk_stats.with_chunk(tokens)

    def should_evict(self, window_tokens: int) -> bool:
        return bool(self.sink_chunks) and window_tokens > self.window_size

    def evict(self, window: Sequence[Chunk]) -> int:
        """How many of the window's oldest chunks must leave, and count them as gone. The newest always stays."""
        excess = sum(chunk.tokens for chunk in window) - self.window_size
        count = 0
        while excess > 0 and count < len(window) - 1:
            excess -= window[count].tokens
            count += 1
        if count:
            self.total_evictions += 1
            self.evicted_tokens += sum(chunk.tokens for chunk in window[:count])
        return count

    def sample(self, fallen: Sequence[Chunk]) -> list[Chunk]:
        """Level 2: of all chunks ever fallen out, those to keep: every `stride`-th, doubled whenever they outgrow
        their budget, so that they stay spread evenly over the whole time."""
        if not self.config.sampled_tokens:
            return []
        while True:
            kept = [chunk for chunk in fallen if chunk.id % self.stride == 0]
            if sum(chunk.tokens for chunk in kept) <= self.config.sampled_tokens:
                return kept
            self.stride *= 2
