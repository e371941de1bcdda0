"""Which seeds are for what: training and tuning use those up to LAST_DEVELOPMENT_SEED, evaluation only later ones."""

from __future__ import annotations

from collections.abc import Sequence

LAST_DEVELOPMENT_SEED = 1000


class SeedError(ValueError):
    """Seeds that cannot be used; the message says which and why."""


def parse_seeds(text: str) -> list[int]:
    """ "2001-2030,2050" as a list, in ascending order.

    Raises:
        SeedError: not that form, nothing in it, out of order or given twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isascii() or not first.isdigit() or (dash and not (last.isascii() and last.isdigit())):
            raise SeedError(f"seeds are {text!r}: wanted is a form like 2001-2030 or 2001,2005")
        if dash and int(last) < int(first):
            raise SeedError(f"seeds {part.strip()} are out of order: write {last}-{first}")
        span = range(int(first), int(last if dash else first) + 1)
        if seeds and span.start <= seeds[-1]:
            raise SeedError(
                f"seeds {part.strip()} come after {seeds[-1]}: give them in ascending order, each once"
            )
        seeds += span
    return seeds


def require_evaluation_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that pilots are trained and tuned on.

    Raises:
        SeedError: one of them is a development seed.
    """
    wrong = [seed for seed in seeds if seed <= LAST_DEVELOPMENT_SEED]
    if wrong:
        raise SeedError(
            f"seed {wrong[0]} is for training and tuning (1 to {LAST_DEVELOPMENT_SEED}), and no figure may rest on it: "
            f"evaluate on seeds above {LAST_DEVELOPMENT_SEED}, or say --development"
        )


def require_development_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are kept for evaluation.

    Raises:
        SeedError: one of them is an evaluation seed.
    """
    wrong = [seed for seed in seeds if seed > LAST_DEVELOPMENT_SEED]
    if wrong:
        raise SeedError(
            f"seed {wrong[0]} is kept for evaluation (above {LAST_DEVELOPMENT_SEED}): training, tuning and "
            f"--development take seeds from 1 to {LAST_DEVELOPMENT_SEED}"
        )


def kind(seed: int) -> str:
    """What a seed is for, as pages say it."""
    if seed > LAST_DEVELOPMENT_SEED:
        return "evaluation seed: to look at; nothing seen here may tune a pilot"
    return "development seed: for training and tuning; no claim may rest on it"
