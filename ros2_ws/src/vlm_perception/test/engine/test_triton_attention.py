"""The Triton kernel, in Triton's interpreter: equal to the eager path, within the bound in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_perception.testing import triton_interpreter
from vlm_perception.testing.operators import BOUND


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    found = triton_interpreter.run_interpreted()
    if found is None:
        pytest.skip(triton_interpreter.MISSING)
    return found


def test_the_kernel_is_the_eager_path(measured: dict[str, Any]) -> None:
    differences = measured["float32_differences"]
    assert len(differences) == len(triton_interpreter.SIZES) + len(triton_interpreter.GROUPINGS)
    assert max(differences.values()) < 2e-6, differences


def test_the_kernel_stays_within_the_bound_in_bfloat16(measured: dict[str, Any]) -> None:
    errors = measured["bf16_errors"]
    assert len(errors) == 12
    assert max(errors.values()) < BOUND, errors
