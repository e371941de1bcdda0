"""The recorder: takes serialized messages without blocking whoever brings them, writes them on its own thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from nav_common.bag_writer import CHECKPOINT_S, BagWriteError, BagWriter
from nav_common.diagnostics import Health, Level
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE
from nav_eval.profile import PROFILE, RecordedTopic

# Chosen: 10 s of 640x480 JPEG at 20 Hz are about 12 MB; a disk that stalls for longer than that is broken.
DEFAULT_QUEUE_BYTES = 64 << 20


class Recorder:
    """Writes a flight to a rosbag2 MCAP recording.

    `put` may be called from any thread. What does not fit into the bounded queue, or comes after the disk has refused,
    is dropped and counted, by topic, in `dropped`. What is put after `close` has begun is not part of the recording.

    Args:
        output: the directory to make.
        queue_bytes: the most that waits in memory.
        checkpoint_s: the most that a kill loses, s.

    Raises:
        BagError: `output` exists already or cannot be made.
    """

    def __init__(
        self,
        output: Path | str,
        *,
        vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE,
        profile: Sequence[RecordedTopic] = PROFILE,
        queue_bytes: int = DEFAULT_QUEUE_BYTES,
        checkpoint_s: float = CHECKPOINT_S,
    ) -> None:
        self.path = Path(output)
        self.written = 0
        self.dropped: dict[str, int] = {}
        self.error: BagWriteError | None = None
        """Why the recording stopped before `close`."""
        self._queue: deque[tuple[str, int, bytes]] = deque()
        self._queue_bytes = 0
        self._queue_limit = queue_bytes
        self._ready = threading.Condition()
        self._closing = False
        self._period_ns: dict[str, int] = {}
        self._next_ns: dict[str, int] = {}
        self._checkpoint_s = checkpoint_s
        self._writer = BagWriter(self.path, checkpoint_s=checkpoint_s)
        self._writer.open()
        for recorded in profile:
            name = recorded.topic.resolve(vehicle_namespace)
            self._writer.add_topic(name, recorded.topic.type, recorded.topic.qos)
            if recorded.max_rate_hz:
                self._period_ns[name] = int(1e9 / recorded.max_rate_hz)
        self._writer.checkpoint()
        self._thread = threading.Thread(target=self._write, name="recorder-writer", daemon=True)
        self._thread.start()

    @property
    def queue_bytes(self) -> int:
        """What waits in memory now."""
        return self._queue_bytes

    def put(self, topic: str, time_ns: int, data: bytes) -> None:
        """Take one serialized message with its log time."""
        if period_ns := self._period_ns.get(topic):
            if time_ns < self._next_ns.get(topic, 0):
                return
            # A tenth of a period of grace, or a topic of exactly this rate would lose messages to jitter.
            self._next_ns[topic] = time_ns + period_ns * 9 // 10
        with self._ready:
            if self._closing:
                return
            if self.error or self._queue_bytes + len(data) > self._queue_limit:
                self._count_dropped(topic)
                return
            self._queue.append((topic, time_ns, data))
            self._queue_bytes += len(data)
            self._ready.notify()

    def health(self) -> Health:
        """For /diagnostics."""
        dropped = sum(self.dropped.values())
        figures = {
            "written": self.written,
            "dropped": dropped,
            "waiting_mib": round(self.queue_bytes / 2**20, 1),
            "recording": self.path,
        }
        if self.error:
            return Health(Level.ERROR, str(self.error), figures)
        if dropped:
            return Health(Level.WARN, f"the disk is too slow: {dropped} messages dropped", figures)
        return Health(Level.OK, "recording", figures)

    def close(self) -> None:
        """Write what waits and end the recording. Afterwards `error` tells whether all of it is on disk."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def _write(self) -> None:
        try:
            while batch := self._next_batch():
                for topic, time_ns, data in batch:
                    self._writer.put(topic, time_ns, data)
                    self.written += 1
                with self._ready:
                    self._queue_bytes -= sum(len(data) for _, _, data in batch)
            self._writer.close()
        except BagWriteError as error:
            with self._ready:
                self.error = error
                for topic, _, _ in self._queue:
                    self._count_dropped(topic)
                self._queue.clear()
            self._writer.abort()

    def _next_batch(self) -> list[tuple[str, int, bytes]]:
        """What waits; empty at the end. While nothing comes, what was written is still made whole in time.

        Raises:
            BagWriteError: the disk refused a checkpoint.
        """
        while True:
            with self._ready:
                if not self._queue and not self._closing:
                    self._ready.wait(self._checkpoint_s / 2)
                if self._queue or self._closing:
                    batch = list(self._queue)
                    self._queue.clear()
                    return batch
            self._writer.checkpoint_if_due()

    def _count_dropped(self, topic: str) -> None:
        self.dropped[topic] = self.dropped.get(topic, 0) + 1
