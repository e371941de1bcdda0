"""The life of a stream's KV cache: one preallocated buffer in which the live region [segments][window][tail] slides.

Eviction moves the start of the window forward and rewrites the front segments (today the sink) just before it, rotated
from pristine keys so that no gap of positions remains. Window keys are never touched and nothing is ever cloned: an
ask lives in the tail and is cut off by setting the length back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import attend
from .budget import capacity_tokens
from .decoder import Decoder, as_pairs, rotate
from .kv_cache_eviction import Chunk, ChunkStats, EvictionConfig, KVCacheEvictor, TokenTypeTracker
from .stream_qwen_model import StreamQwenModel, StreamState


@dataclass
class Segment:
    """Keys and values kept at the front for good. The keys are pristine: as computed, at their own positions.

    keys, values (layers, tokens, kv_heads, dim); positions: first, and one past the last.
    """

    keys: Tensor
    values: Tensor
    positions: tuple[int, int]

    @property
    def tokens(self) -> int:
        return self.keys.shape[1]


@dataclass(frozen=True)
class Snapshot:
    """A point to return to: a few integers and references. It copies no keys and no values."""

    length: int
    writes: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    segments: tuple[Segment, ...]
    next_chunk_id: int
    sink: tuple[int, int]
    chunk_stats: tuple[ChunkStats, ChunkStats]
    state: StreamState


class StaleSnapshotError(RuntimeError):
    """A snapshot whose tokens are no longer in the cache as they were."""


class EagerStep:
    """One forward pass over the live region, offsets as plain integers."""

    def __init__(self, cache: KVCacheManager, tokens: int, tree: Tensor | None):
        self.keys, self.values, self.tree = cache.keys, cache.values, tree
        self.start, self.write = cache.start, cache.start + cache.length
        self.stop = self.write + tokens

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys[layer, self.write : self.stop] = key
        self.values[layer, self.write : self.stop] = value
        live = slice(self.start, self.stop)
        return attend(query, self.keys[layer, live], self.values[layer, live], self.tree)


class KVCacheManager:
    """Buffers, offsets and eviction of one stream.

    tail_tokens: room that an ask may use beyond the budget, so that an ask never evicts.
    """

    def __init__(self, decoder: Decoder, config: EvictionConfig, tail_tokens: int, dtype: torch.dtype):
        shape = decoder.shape
        self.decoder, self.config, self.tail_tokens = decoder, config, tail_tokens
        self.capacity = capacity_tokens(config.max_cache_tokens, tail_tokens)
        self.max_append = self.capacity - config.max_cache_tokens
        device = decoder.embedding.device
        size = (shape.layers, self.capacity, shape.kv_heads, shape.head_dim)
        # zeros, not empty: a slot never written must hold a number, since masked attention multiplies it by zero
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self._serial = itertools.count()
        self.reset()

    def reset(self) -> None:
        self.start = 0
        self.length = 0
        self.moves = 0
        self.next_chunk_id = 0
        self.segments: list[Segment] = []
        self.tracker = TokenTypeTracker()
        self.evictor = KVCacheEvictor(self.config)
        self._stats_before_newest = ChunkStats()
        self._newest_snapshot: Snapshot | None = None
        # What is cached, as the serial numbers of the writes that put it there, one for the empty buffer and one for
        # each chunk. No number is used twice, so equal beginnings mean equal keys and values.
        self.writes = [next(self._serial)]

    # -- the live region ---------------------------------------------------------------------------------------
    def live_keys(self) -> Tensor:
        """(layers, length, kv_heads, dim), a view."""
        return self.keys[:, self.start : self.start + self.length]

    def live_values(self) -> Tensor:
        return self.values[:, self.start : self.start + self.length]

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.keys[:, 0].numel() * self.keys.element_size()

    def step(self, tokens: int, tree: Tensor | None = None) -> EagerStep:
        """Room for `tokens` more at the tail. Nothing of the stream changes until `length` is moved."""
        self.make_room(tokens)
        return EagerStep(self, tokens, tree)

    def make_room(self, tokens: int) -> None:
        """Move the live region to the front if `tokens` more would run over the end of the buffer."""
        if self.start + self.length + tokens <= self.capacity:
            return
        if self.length + tokens > self.capacity:
            raise ValueError(
                f"{tokens} tokens do not fit behind the {self.length} cached ones (buffer of {self.capacity}): "
                "raise max_cache_tokens or tail_tokens, or lower the resolution"
            )
        for buffer in (self.keys, self.values):
            _move_to_front(buffer, self.start, self.length)
        self.start = 0
        self.moves += 1

    # -- chunks ------------------------------------------------------------------------------------------------
    def check_fits(self, tokens: int) -> None:
        """Raise, before anything has changed, if a chunk of this many tokens can never be kept."""
        if self.evictor.sink_chunks:
            room, what = min(self.evictor.window_size, self.max_append), "the window beside the sink"
        else:
            room = self.config.max_cache_tokens - self.config.sampled_tokens - self.length - 1
            what = "the budget, which must exceed the sink,"
        if tokens > room:
            raise ValueError(
                f"a chunk of {tokens} tokens: {what} has room for {room} (max_cache_tokens "
                f"{self.config.max_cache_tokens}, sink {self.evictor.effective_sink_size}). Raise max_cache_tokens or "
                "lower the resolution"
            )

    @contextmanager
    def without_newest(self, model: StreamQwenModel) -> Iterator[None]:
        """Cut the newest chunk off, to append another in its place; if that fails the old one is back, bit for bit."""
        before = self.mark(model)
        newest = self.tracker.chunks.pop()
        self.length -= newest.tokens
        old = slice(self.start + self.length, self.start + before.length)
        keys, values = self.keys[:, old].clone(), self.values[:, old].clone()
        self.writes.pop()
        rest = list(self.writes)
        self.next_chunk_id = newest.id
        self.evictor.chunk_stats = self._stats_before_newest
        if self.evictor.sink_chunks > len(self.tracker.chunks):
            self._open_sink()
        model.advance(newest.positions[0])
        try:
            yield
        except BaseException:
            if self.writes == rest:  # else the failure emptied the stream, and nothing can be put back
                self._set(before, model)
                old = slice(self.start + self.length - newest.tokens, self.start + self.length)
                self.keys[:, old], self.values[:, old] = keys, values
            raise

    def commit(self, chunk: Chunk) -> None:
        """The tokens just computed at the tail become the newest chunk. If memory runs out nothing has changed."""
        chunks, evictor = [*self.tracker.chunks, chunk], self.evictor
        length = self.length + chunk.tokens
        if not evictor.sink_chunks and length >= self.config.sink_size:
            sink = self._segment(self.start, length, (chunks[0].positions[0], chunk.positions[1]))
            evictor.set_first_chunk_info(length, len(chunks))
            self.segments = [sink]
        self.length = length
        self.next_chunk_id = chunk.id + 1
        self.tracker.append(chunk)
        self.writes.append(next(self._serial))
        self._stats_before_newest = evictor.chunk_stats
        evictor.update_chunk_stats(chunk.tokens)

    def _open_sink(self) -> None:
        self.evictor.effective_sink_size = self.evictor.sink_chunks = 0
        self.segments = []

    def evict_if_needed(self) -> list[Chunk]:
        """Evict whole chunks, oldest first, until the window fits; returns those that left it.

        An error in here (memory) leaves the front half written: the stream must then be reset.
        """
        evictor, chunks = self.evictor, self.tracker.chunks
        front = evictor.sink_chunks + len(self.segments[1:])
        front_tokens = sum(segment.tokens for segment in self.segments)
        if not evictor.should_evict(self.length - front_tokens):
            return []
        sink, sampled = chunks[: evictor.sink_chunks], chunks[evictor.sink_chunks : front]
        window = chunks[front:]
        count = evictor.evict(window)
        gone, kept = window[:count], evictor.sample(sampled + window[:count])
        held = {chunk.id: segment for chunk, segment in zip(sampled, self.segments[1:], strict=True)}
        at, end = self.start + front_tokens, self.start + self.length
        for chunk in gone:
            if chunk in kept:
                held[chunk.id] = self._segment(at, chunk.tokens, chunk.positions)
            at += chunk.tokens
        self.segments[1:] = [held[chunk.id] for chunk in kept]
        self.tracker.chunks = sink + kept + window[count:]
        self.writes = [next(self._serial) for _ in [None, *self.tracker.chunks]]
        self.start = at - sum(segment.tokens for segment in self.segments)
        self.length = end - self.start
        self._write_segments(at, window[count].positions[0])
        return gone

    def _segment(self, at: int, tokens: int, positions: tuple[int, int]) -> Segment:
        part = slice(at, at + tokens)
        return Segment(self.keys[:, part].clone(), self.values[:, part].clone(), positions)

    def _write_segments(self, at: int, position: int) -> None:
        """Write the front segments before the window at `at`, moved so that they end where its positions begin."""
        for segment in reversed(self.segments):
            offset = position - segment.positions[1] if self.config.close_gap else 0
            phases = self.decoder.rope.shift(offset)
            _rotate_into(self.keys[:, at - segment.tokens : at], segment.keys, phases)
            self.values[:, at - segment.tokens : at] = segment.values
            at -= segment.tokens
            position -= segment.positions[1] - segment.positions[0]

    # -- snapshots ---------------------------------------------------------------------------------------------
    def snapshot(self, model: StreamQwenModel) -> Snapshot:
        """Where the stream stands now; `restore(model)` returns to it."""
        self._newest_snapshot = self.mark(model)
        return self._newest_snapshot

    def mark(self, model: StreamQwenModel) -> Snapshot:
        """A snapshot for `restore(model, mark)` only: `restore(model)` still means the one taken by `snapshot`."""
        evictor = self.evictor
        return Snapshot(
            self.length,
            tuple(self.writes),
            tuple(self.tracker.chunks),
            tuple(self.segments),
            self.next_chunk_id,
            (evictor.effective_sink_size, evictor.sink_chunks),
            (evictor.chunk_stats, self._stats_before_newest),
            model.stream_state,
        )

    def holds(self, snapshot: Snapshot) -> bool:
        """Whether all tokens of the snapshot are still there as they were."""
        return tuple(self.writes[: len(snapshot.writes)]) == snapshot.writes

    def restore(self, model: StreamQwenModel, snapshot: Snapshot | None = None) -> None:
        """Cut off everything appended since the snapshot (default: the newest one taken).

        StaleSnapshotError if its tokens are no longer there as they were: chunks were evicted or replaced, the stream
        was reset, or it was cut back to an older snapshot. Then nothing changes.
        """
        snapshot = snapshot or self._newest_snapshot
        if snapshot is None:
            raise StaleSnapshotError("no snapshot was taken since the stream was emptied: take one first")
        if not self.holds(snapshot):
            raise StaleSnapshotError(
                f"the snapshot of {snapshot.length} tokens is stale: since then chunks that it counts on were "
                "evicted, replaced or cut off, or the stream was reset. Take a snapshot after the last such change"
            )
        self._set(snapshot, model)

    def _set(self, snapshot: Snapshot, model: StreamQwenModel) -> None:
        self.length = snapshot.length
        self.writes = list(snapshot.writes)
        self.tracker.chunks = list(snapshot.chunks)
        self.segments = list(snapshot.segments)
        self.next_chunk_id = snapshot.next_chunk_id
        self.evictor.effective_sink_size, self.evictor.sink_chunks = snapshot.sink
        self.evictor.chunk_stats, self._stats_before_newest = snapshot.chunk_stats
        model.stream_state = snapshot.state


def _move_to_front(buffer: Tensor, start: int, length: int) -> None:
    """Slide buffer[:, start:start+length] to 0 in steps that never overlap."""
    for done in range(0, length, start):
        count = min(start, length - done)
        buffer[:, done : done + count] = buffer[:, start + done : start + done + count]


def _rotate_into(target: Tensor, keys: Tensor, phases: Tensor) -> None:
    """target = keys turned, in float32 whatever the cache holds; both (layers, tokens, kv_heads, dim)."""
    if target.dtype == torch.float32:
        torch.mul(as_pairs(keys), phases, out=as_pairs(target))
    else:
        target.copy_(rotate(keys, phases))
