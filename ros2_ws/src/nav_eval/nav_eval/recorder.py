"""The recorder: takes serialized messages without blocking whoever brings them, writes them on its own thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE
from nav_eval.bags import BagError, BagWriter
from nav_eval.profile import PROFILE, Recorded

# Chosen: 10 s of 640x480 JPEG at 20 Hz are about 12 MB; a disk that stalls for longer than that is broken.
DEFAULT_QUEUE_BYTES = 64 << 20


class Recorder:
    """Writes a flight to a rosbag2 MCAP recording.

    `put` may be called from any thread. What does not fit into the bounded queue, or comes after the disk has refused,
    is dropped and counted, by topic, in `dropped`.

    Args:
        output: the directory to make.
        queue_bytes: the most that waits in memory.

    Raises:
        BagError: `output` exists already or cannot be made.
    """

    def __init__(
        self,
        output: Path | str,
        *,
        vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE,
        profile: Sequence[Recorded] = PROFILE,
        queue_bytes: int = DEFAULT_QUEUE_BYTES,
        checkpoint_s: float = 2.0,
    ) -> None:
        self.path = Path(output)
        self.written = 0
        self.dropped: dict[str, int] = {}
        self.error: BagError | None = None
        self._queue: deque[tuple[str, int, bytes]] = deque()
        self._queue_bytes = 0
        self._queue_limit = queue_bytes
        self._ready = threading.Condition()
        self._closing = False
        self._period_ns: dict[str, int] = {}
        self._next_ns: dict[str, int] = {}
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

    def put(self, topic: str, time_ns: int, data: bytes) -> None:
        """Take one serialized message with its log time."""
        if period_ns := self._period_ns.get(topic):
            if time_ns < self._next_ns.get(topic, 0):
                return
            # A tenth of a period of grace, or a topic of exactly this rate would lose messages to jitter.
            self._next_ns[topic] = time_ns + period_ns * 9 // 10
        with self._ready:
            if self.error or self._closing or self._queue_bytes + len(data) > self._queue_limit:
                self.dropped[topic] = self.dropped.get(topic, 0) + 1
                return
            self._queue.append((topic, time_ns, data))
            self._queue_bytes += len(data)
            self._ready.notify()

    def close(self) -> None:
        """Write what waits and end the recording. Afterwards `error` tells whether all of it is on disk."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def _write(self) -> None:
        try:
            while True:
                with self._ready:
                    while not self._queue and not self._closing:
                        self._ready.wait()
                    if not self._queue:
                        break
                    batch = list(self._queue)
                    self._queue.clear()
                for topic, time_ns, data in batch:
                    self._writer.put(topic, time_ns, data)
                    self.written += 1
                with self._ready:
                    self._queue_bytes -= sum(len(data) for _, _, data in batch)
            self._writer.close()
        except BagError as error:
            with self._ready:
                self.error = error
                for topic, _, _ in self._queue:
                    self.dropped[topic] = self.dropped.get(topic, 0) + 1
                self._queue.clear()
            self._writer.abort()
