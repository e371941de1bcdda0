"""What a share of successes is worth: Wilson's interval, and McNemar's test for two variants on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927); what is claimed is its lower bound.

    No trials say nothing: (0, 1).

    Raises:
        ValueError: more successes than trials, or fewer than none.
    """
    if trials == 0 == successes:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Pairs:
    """Two variants on the same seeds. `wins`: only the first succeeded; `losses`: only the second did.

    `mcnemar_p`: the exact two-sided p of McNemar's test (Q. McNemar, Psychometrika 12, 1947), 1 when they never differ.
    """

    wins: int
    losses: int
    mcnemar_p: float


def compare(first: Sequence[bool], second: Sequence[bool]) -> Pairs:
    """Compare successes of two variants, the same seeds in the same order.

    Raises:
        ValueError: sequences of different lengths: they are no pairs.
    """
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Pairs(wins, losses, p)
