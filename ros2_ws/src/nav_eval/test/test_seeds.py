"""Evaluation and development seeds cannot be mixed."""

import pytest

from nav_eval.seeds import SeedError, parse_seeds, require_development_seeds, require_evaluation_seeds
from nav_pilot import train


def test_ranges_and_single_seeds():
    assert parse_seeds("2001-2003,2007") == [2001, 2002, 2003, 2007]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2003-2001", "2003-2001 are out of order: write 2001-2003"),
        ("2001-2005,2003", "2003 come after 2005"),
        ("2001,2001", "2001 come after 2001"),
        ("", "wanted is a form like"),
        ("2001-", "wanted is a form like"),
        ("-5", "wanted is a form like"),
        ("two", "wanted is a form like"),
    ],
)
def test_what_is_no_list_of_seeds_is_refused(text, words):
    with pytest.raises(SeedError, match=words):
        parse_seeds(text)


def test_evaluation_takes_no_seed_of_the_training():
    require_evaluation_seeds([1001, 2001])
    for seeds in (train.TRAINING_SEEDS, train.HELD_OUT_SEEDS):
        for seed in (seeds[0], seeds[-1]):
            require_development_seeds([seed])
            with pytest.raises(SeedError, match=f"seed {seed} is for training"):
                require_evaluation_seeds([2001, seed])


def test_development_takes_no_seed_of_the_evaluation():
    with pytest.raises(SeedError, match="seed 1001 is kept for evaluation"):
        require_development_seeds([7, 1001])
