"""What bfloat16 costs: every path of attention against float64, with one bound for all."""

from __future__ import annotations

import pytest
import torch

from vlm_perception.engine.attention import attend
from vlm_perception.testing.operators import BOUND, OFFSETS, PATHS, make_case, relative_error

SIZES = [(1, 50), (1, 3000), (8, 0), (8, 1000), (64, 300)]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(("new", "cached"), SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_a_path_stays_within_the_bound_of_float64(path: str, new: int, cached: int, offset: float) -> None:
    assert PATHS[path](make_case(new, cached, offset)) < BOUND


def test_merging_with_a_share_near_one_half_keeps_the_bound() -> None:
    """Where past and new tokens weigh alike a rounded share costs most."""
    for seed in range(20):
        case = make_case(32, 32, seed=seed)
        assert relative_error(attend(case.query, case.key, case.value), case.exact()) < BOUND


def test_the_bound_notices_scores_rounded_before_the_softmax() -> None:
    """What the bound is for: the same attention with bfloat16 scores breaks it many times over."""
    case = make_case(1, 1000, offset=2000)
    query, key, value = case.query.view(2, 8, 128), case.key.transpose(0, 1), case.value.transpose(0, 1)
    rounded = torch.softmax(query @ key.transpose(1, 2) * 128**-0.5, -1) @ value
    assert relative_error(rounded.reshape(1, 16, 128), case.exact()) > 4 * BOUND
