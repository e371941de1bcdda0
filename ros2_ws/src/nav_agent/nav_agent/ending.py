"""How a goal is ended from wherever it is."""

from __future__ import annotations

from nav_common.data import Outcome


class GoalEnded(BaseException):
    """Ends a goal from wherever it is. Not an Exception, so that no framework in between turns it into an observation
    and goes on."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(f"{outcome.name}: {reason}")
        self.outcome = outcome
        self.reason = reason
