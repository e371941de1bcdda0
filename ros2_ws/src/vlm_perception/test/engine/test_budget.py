"""Budgets against the memory that is there: refused with what would fit, and a default with its reason."""

from __future__ import annotations

import pytest
import torch

from vlm_perception.engine import QwenModel, VideoStreamingInference, budget
from vlm_perception.engine.budget import (
    RESERVE_BYTES,
    bytes_per_token,
    capacity_tokens,
    check_budget,
    default_budget,
    fitting_tokens,
)
from vlm_perception.engine.decoder import DecoderShape

SHAPE_3B = DecoderShape(36, 2048, 16, 2, 128, 151936, 1e-6)


class OnGPU:
    """The 3B on a GPU, as far as a budget looks at it."""

    device = torch.device("cuda")
    dtype = torch.bfloat16
    decoder = type("Decoder", (), {"shape": SHAPE_3B})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free memory, to be set under "bytes"."""
    memory = {"bytes": 0}
    monkeypatch.setattr(budget, "free_bytes", lambda device: memory["bytes"])
    return memory


def test_a_token_of_the_3b_takes_36_kib() -> None:
    assert bytes_per_token(SHAPE_3B, torch.bfloat16) == 36_864
    assert capacity_tokens(100_000, 1024) * 36_864 == pytest.approx(4.65e9, rel=0.01)


def test_the_arithmetic_is_the_buffers(model: QwenModel) -> None:
    cache = VideoStreamingInference(model, max_cache_tokens=300, tail_tokens=70).cache
    assert cache.capacity == capacity_tokens(300, 70)
    assert cache.bytes_per_token == bytes_per_token(model.decoder.shape, model.dtype)
    assert cache.keys.nbytes + cache.values.nbytes == cache.capacity * cache.bytes_per_token


def test_a_budget_that_does_not_fit_is_refused_with_one_that_does(free: dict[str, int]) -> None:
    free["bytes"] = 16 * 2**30
    check_budget(OnGPU, 100_000)  # type: ignore[arg-type]
    free["bytes"] = 4 * 2**30
    with pytest.raises(
        ValueError, match=r"max_cache_tokens 100,000 needs 4\.3 GiB.*4\.0 GiB.*at most 57,000"
    ):
        check_budget(OnGPU, 100_000)  # type: ignore[arg-type]
    check_budget(OnGPU, 57_000)  # type: ignore[arg-type]
    free["bytes"] = 2**30
    with pytest.raises(ValueError, match="free memory on it, or take a larger GPU"):
        check_budget(OnGPU, 1000)  # type: ignore[arg-type]


@pytest.mark.parametrize("gib", [2, 3, 7, 20])
def test_what_fits_leaves_the_reserve_free(free: dict[str, int], gib: int) -> None:
    free["bytes"] = gib * 2**30
    tokens = fitting_tokens(OnGPU)  # type: ignore[arg-type]
    for more, fits in ((0, True), (1300, False)):
        needed = capacity_tokens(tokens + more, 1024) * 36_864 + RESERVE_BYTES
        assert (needed <= free["bytes"]) == fits


def test_the_default_is_100000_where_they_fit_and_says_why_not_else(free: dict[str, int]) -> None:
    free["bytes"] = 13 * 2**30
    assert default_budget(OnGPU).tokens == 100_000  # type: ignore[arg-type]
    free["bytes"] = 3 * 2**30
    found = default_budget(OnGPU)  # type: ignore[arg-type]
    assert 30_000 < found.tokens < 36_000
    assert (
        found.reason == f"100,000 tokens, the default, do not fit 3.0 GiB of free memory: {found.tokens:,} do"
    )


def test_a_stream_without_a_budget_takes_the_default(model: QwenModel, free: dict[str, int]) -> None:
    free["bytes"] = 2**40
    stream = VideoStreamingInference(model)
    assert stream.cache.config.max_cache_tokens == 100_000
    assert "fit" in stream.budget_reason
    assert VideoStreamingInference(model, max_cache_tokens=90).budget_reason == "as given"
