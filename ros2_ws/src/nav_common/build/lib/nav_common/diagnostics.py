"""What a node says of its health on /diagnostics, without ROS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

PERIOD_S = 1.0
"""Of each node's report. diagnostic_aggregator calls a status stale after 5 s without one."""


class Level(IntEnum):
    """Numbered as in diagnostic_msgs/DiagnosticStatus; STALE is the aggregator's own."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Health:
    """One report: `message` is a short sentence, `values` the figures behind it."""

    level: Level
    message: str
    values: Mapping[str, object] = field(default_factory=dict)
