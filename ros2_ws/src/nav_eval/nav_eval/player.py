"""Which messages of a recording are played into a graph, and when: the inputs only, never commands or decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nav_common import topics
from nav_common.topics import Topic
from nav_eval.bags import Bag, BagError

# What the vehicle sent. What the agent decided and commanded is what the replay is to find out anew.
INPUTS: tuple[Topic, ...] = (
    topics.FRONT_IMAGE,
    topics.FRONT_INFO,
    topics.FRONT_DEPTH,
    topics.ODOM,
    topics.STATE,
)


@dataclass(frozen=True)
class TimedMessage:
    """A message to publish: `offset_s` since the recording's first input, its topic, its CDR."""

    offset_s: float
    topic: Topic
    payload: bytes


def inputs(bag: Path, vehicle_namespace: str | None = None) -> Iterator[TimedMessage]:
    """The recording's inputs in order.

    Raises:
        BagError: it cannot be read, holds no pictures, or a topic of another type.
    """
    with Bag(bag) as recording:
        namespace = vehicle_namespace or recording.vehicle_namespace()
        by_name = {topic.resolve(namespace): topic for topic in INPUTS}
        recording.require(topics.FRONT_IMAGE.resolve(namespace), topics.FRONT_IMAGE.type)
        for name, topic in by_name.items():
            if name in recording.types:
                recording.require(name, topic.type)
        first_ns: int | None = None
        for name, time_ns, payload in recording.payloads(by_name):
            first_ns = time_ns if first_ns is None else first_ns
            yield TimedMessage((time_ns - first_ns) * 1e-9, by_name[name], payload)
        if first_ns is None:
            raise BagError(f"{bag} holds none of the messages that can be played: {', '.join(by_name)}")
