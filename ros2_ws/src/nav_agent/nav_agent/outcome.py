"""How a goal can end, and the states on its way there; numbered as in Navigate and GoalState."""

from __future__ import annotations

from enum import IntEnum


class Outcome(IntEnum):
    FINISHED = 0
    STEP_LIMIT = 1
    TIME_LIMIT = 2
    CANCELLED = 3
    PREEMPTED = 4
    PERCEPTION_LOST = 5
    DRONE_LOST = 6
    STUCK = 7
    LINK_LOST = 8
    ERROR = 9


class State(IntEnum):
    TAKING_OFF = 0
    HOVERING = 1
    LOOKING = 2
    THINKING = 3
    MOVING = 4
    WAITING = 5
    ACCEPTED = 6
    ENDED = 7


class MissionOver(BaseException):
    """Ends a goal from wherever it is. Not an Exception, so that no framework in between turns it into an observation
    and goes on."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(f"{outcome.name}: {reason}")
        self.outcome = outcome
        self.reason = reason
