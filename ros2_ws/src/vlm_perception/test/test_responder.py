"""Answers of a stream by way of the guard: broken off, tried again, counted, and not computed twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from nav_common.data import (
    AskRequest,
    GenerateStatus,
)
from vlm_perception.guard import GuardSettings, RequestKind
from vlm_perception.testing.bench import START, Bench
from vlm_perception.testing.drone_tools import DRONE_TOOLS


def slow(bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Each pass of the model takes so long from now on. Returns a list that has an entry for each pass."""
    passes: list[int] = []
    original = bench.engine._next_logits

    def next_logits(ids: list[int]) -> torch.Tensor:
        passes.append(len(ids))
        bench.clock.sleep(seconds)
        return original(ids)

    monkeypatch.setattr(bench.engine, "_next_logits", next_logits)
    return passes


def test_a_generation_that_is_too_slow_is_tried_again_and_then_is_a_hover(
    primed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    primed.prime(tools=json.dumps([DRONE_TOOLS[7], DRONE_TOOLS[5]]))  # neither is decided by one token
    primed.frames(1.0)
    before, passes = primed.keys(), slow(primed, monkeypatch, 3.1)
    ticket = primed.generate(instruction="fly", deadline_s=60.0)
    primed.stream.run_until_idle()
    result = ticket.result
    assert result.status is GenerateStatus.OK
    assert json.loads(result.tool_call) == {"name": "hover", "arguments": {"seconds": 1}}
    assert "broken off twice after 3000 ms" in result.message
    assert result.frame_stamp_s == START + 1.0
    assert len(passes) == 2
    assert primed.stream.guard.record().hovers == 1
    assert torch.equal(before, primed.keys())


def test_where_there_is_no_hover_a_slow_generation_ends_with_its_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.prime(tools=json.dumps([DRONE_TOOLS[7]]))
    bench.frames(1.0)
    slow(bench, monkeypatch, 3.1)
    ticket = bench.generate(deadline_s=60.0)
    bench.stream.run_until_idle()
    assert ticket.result.status is GenerateStatus.DEADLINE
    assert ticket.result.tool_call == ""
    assert "no tool to hover with" in ticket.result.message


def test_an_answer_that_is_too_slow_says_so(primed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    primed.frames(1.0)
    slow(primed, monkeypatch, 3.1)
    ask = primed.ask(max_new_tokens=12)
    primed.stream.run_until_idle()
    assert not ask.result.success
    assert "broken off twice" in ask.result.message


def test_the_kind_decides_how_many_tokens_an_answer_may_have(primed: Bench) -> None:
    primed.frames(1.0)
    primed.stream.guard.settings = GuardSettings(1, 2, 3, 4)
    for number, kind in enumerate(RequestKind, start=1):
        ask = primed.stream.submit_ask(AskRequest(f"{kind}?", max_new_tokens=100_000, kind=kind))
        primed.stream.run_until_idle()
        assert ask.result.tokens_sampled <= number
    assert set(primed.stream.guard.record().by_tokens) == {1, 2, 3, 4}


def test_the_same_question_to_an_unchanged_memory_costs_no_pass(
    primed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    primed.frames(1.0)
    passes = slow(primed, monkeypatch, 0.0)
    first, again = [], []
    for results in (first, again):
        tickets = (primed.generate(), primed.ask(max_new_tokens=3), primed.ask(choices=("left", "right")))
        primed.stream.run_until_idle()
        results += [ticket.result for ticket in tickets]
        if results is first:
            spent = len(passes)
    assert len(passes) == spent > 0
    assert again[0].tool_call == first[0].tool_call
    assert again[0].status is GenerateStatus.OK
    assert [one.answer for one in again[1:]] == [one.answer for one in first[1:]]
    assert again[0].tokens_sampled == again[1].tokens_sampled == 0
    assert primed.stream.guard.record().cache_hits == 3


@pytest.mark.parametrize("change", ["frame", "replaced", "reset", "other", "chance"])
def test_nothing_is_answered_from_before_a_change(
    primed: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    primed.pose(0.9, 0.0)
    primed.pose(1.1, 0.0)
    primed.frames(1.0)
    passes = slow(primed, monkeypatch, 0.0)
    fields: dict[str, Any] = {"temperature": 0.5} if change == "chance" else {}
    primed.generate(**fields)
    primed.stream.run_until_idle()
    spent = len(passes)
    if change == "frame":
        primed.frames(1.5)
    elif change == "replaced":
        primed.pose(1.6, 0.0)
        primed.frames(1.5)
        assert primed.status.frames_provisional == 1
    elif change == "reset":
        primed.stream.submit_reset()
        primed.stream.run_until_idle()
        primed.frames(1.5)
    elif change == "other":
        fields = {"recent_calls": ("hover(seconds=1) -> hovered",)}
    primed.generate(**fields)
    primed.stream.run_until_idle()
    assert len(passes) > spent
    assert primed.stream.guard.record().cache_hits == 0
