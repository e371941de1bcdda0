"""Intervals and paired tests against textbook values and their laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav_eval.significance import compare, wilson


def test_wilson_is_the_textbooks_interval():
    low, high = wilson(9, 10)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_0_and_1(case):
    successes, trials = case
    low, high = wilson(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_more_successes_than_trials_are_refused():
    with pytest.raises(ValueError, match="k"):
        wilson(3, 2)


def test_mcnemar_counts_only_the_seeds_that_differ():
    pairs = compare([True] * 8 + [False, True], [False] * 8 + [False, True])
    assert (pairs.wins, pairs.losses) == (8, 0)
    assert pairs.mcnemar_p == pytest.approx(2 * 0.5**8)
    assert compare([True, False], [True, False]).mcnemar_p == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_is_symmetric(cases):
    a, b = [x for x, _ in cases], [y for _, y in cases]
    there, back = compare(a, b), compare(b, a)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.mcnemar_p == pytest.approx(back.mcnemar_p)


def test_lists_of_different_lengths_are_no_pairs():
    with pytest.raises(ValueError, match="zip"):
        compare([True], [])
