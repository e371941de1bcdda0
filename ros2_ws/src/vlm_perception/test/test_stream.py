"""A stream's rules, on a real engine with a random tiny model, stepped by hand on a virtual clock."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nav_common.data import (
    AskRequest,
    CompressedImage,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    Odometry,
    PrimeRequest,
)
from vlm_perception.engine import QwenModel
from vlm_perception.guard import GuardSettings
from vlm_perception.prompting import question_text
from vlm_perception.request_queue import MAX_QUEUED, SHUT_DOWN, Taken
from vlm_perception.stream import StreamSettings
from vlm_perception.testing.bench import FORM, PROMPT, START, TOOLS, Bench
from vlm_perception.testing.drone_tools import DRONE_TOOLS
from vlm_perception.tickets import Ticket


def test_the_frame_wanted_is_the_next_one_that_would_be_taken(primed: Bench) -> None:
    assert primed.stream.frame_wanted_s() == 0.0
    primed.frames(1.0)
    assert primed.stream.frame_wanted_s() == pytest.approx(START + 1.45)
    primed.generate(earliest_frame_s=START + 1.2)
    assert primed.stream.frame_wanted_s() == START + 1.2
    primed.frames(1.1, 1.3)
    assert primed.stream.frame_wanted_s() == pytest.approx(START + 1.75)


# -- priming -----------------------------------------------------------------------------------------------------------


def test_no_frame_is_appended_before_priming_and_the_ring_is_fed_after_it(bench: Bench) -> None:
    bench.frames(1.0, 1.5, 2.0)
    assert bench.status.cached_tokens == 0
    assert bench.status.chunks_appended == 0
    primed = bench.prime()
    assert primed.success
    assert primed.tokens == bench.status.sink_tokens
    assert bench.status.chunks_appended == 3


def test_priming_the_same_prompt_again_changes_nothing(primed: Bench) -> None:
    primed.frames(1.0)
    before = primed.keys()
    resets, prompt_id = primed.status.memory_resets, primed.prompt_id
    again = primed.prime()
    assert (again.prompt_id, again.memory_resets, again.elapsed_ms) == (prompt_id, resets, 0.0)
    assert torch.equal(before, primed.keys())


def test_another_prompt_is_another_stream_fed_from_the_ring(primed: Bench) -> None:
    primed.frames(1.0, 1.5, 2.0)
    first, cached = primed.prompt_id, primed.status.cached_tokens
    resets = primed.status.memory_resets
    second = primed.prime("You fly another drone.")
    assert second.memory_resets == resets + 1
    assert second.prompt_id != first
    assert second.elapsed_ms > 0
    assert primed.status.cached_tokens == cached - primed.prime_tokens(PROMPT) + second.tokens
    old = primed.generate(prompt_id=first)
    new = primed.generate()
    primed.stream.run_until_idle()
    assert old.result.status == GenerateStatus.UNKNOWN_PROMPT
    assert first in old.result.message
    assert new.result.status == GenerateStatus.OK
    assert new.result.frame_stamp_s == START + 2.0


def test_a_stream_fed_again_equals_the_stream_that_saw_the_frames(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    fresh, fed = Bench(tiny_model, jpeg), Bench(tiny_model, jpeg)
    fresh.prime()
    fresh.frames(1.0, 1.5)
    fed.prime("Another one.")
    fed.frames(1.0, 1.5)
    fed.prime()
    torch.testing.assert_close(fresh.keys(), fed.keys(), rtol=0, atol=1e-5)


def test_a_prompt_the_model_was_not_trained_for_is_refused_with_the_difference(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    form = dataclasses.replace(FORM, system_prompt=PROMPT, tools=DRONE_TOOLS)
    bench = Bench(tiny_model, jpeg, form)
    refused = bench.prime("You drive a car.", json.dumps(DRONE_TOOLS[1:]))
    assert not refused.success
    assert "-You fly a drone." in refused.message
    assert "+You drive a car." in refused.message
    assert '"move_forward"' in refused.message
    assert bench.status.cached_tokens == 0
    assert bench.prime().success


@pytest.mark.parametrize(
    ("prompt", "tools", "reason"),
    [
        (" ", TOOLS, "prompt is empty"),
        (PROMPT, "{", "not JSON"),
        (
            PROMPT,
            '[{"function": {"name": "a", "parameters": {"properties": {"b": {"type": "colour"}}}}}]',
            "grammar",
        ),
        ("word " * 3000, TOOLS, "max_cache_tokens is 2400"),
    ],
)
def test_a_prompt_that_cannot_be_primed_leaves_the_memory_as_it_was(
    primed: Bench, prompt: str, tools: str, reason: str
) -> None:
    primed.frames(1.0)
    before, resets = primed.keys(), primed.status.memory_resets
    refused = primed.prime(prompt, tools)
    assert not refused.success
    assert reason in refused.message
    assert torch.equal(before, primed.keys())
    assert primed.status.memory_resets == resets


def test_reset_empties_the_memory_and_keeps_the_prompt(primed: Bench) -> None:
    primed.frames(1.0, 1.5)
    resets = primed.status.memory_resets
    ticket = primed.stream.submit_reset()
    primed.stream.run_until_idle()
    assert ticket.result.success
    assert primed.status.memory_resets == resets + 1
    assert primed.status.cached_tokens == primed.status.sink_tokens
    answer = primed.generate(deadline_s=1.0)
    primed.frames(0.5)  # an older stamp is fine in a new memory
    assert answer.result.status == GenerateStatus.OK


# -- frames ------------------------------------------------------------------------------------------------------------


def test_frames_enter_each_interval_by_their_stamps(primed: Bench) -> None:
    primed.frames(*(0.1 * i for i in range(31)))
    assert primed.status.frames_received == 31
    assert primed.status.chunks_appended == 7
    assert primed.status.frames_replaced == 0
    assert primed.status.frame_latency_ms == pytest.approx(20.0)


def test_ages_are_true_where_the_edge_has_another_clock(primed: Bench) -> None:
    primed.frames(0.0)
    age_s = primed.status.frame_age_s
    primed.stream.edge_offset_s = 1.5  # the edge's clock is ahead: its stamps look younger than they are
    primed.frames(0.5)
    assert primed.status.frame_latency_ms == pytest.approx(1520.0)
    assert primed.status.frame_age_s == pytest.approx(age_s + 1.5)


def test_live_a_new_frame_replaces_an_unread_one(primed: Bench) -> None:
    for stamp in (1.0, 2.0, 3.0):
        primed.frame(stamp)
    primed.stream.run_until_idle()
    assert primed.status.chunks_appended == 1
    assert primed.status.frames_replaced == 2
    assert primed.stream._memory.newest_s == START + 3.0


def test_in_replay_nothing_is_dropped(tiny_model: QwenModel, jpeg: Callable[[int], bytes]) -> None:
    bench = Bench(tiny_model, jpeg, live=False)
    bench.prime()
    for stamp in (1.0, 2.0, 3.0):
        bench.frame(stamp)
    bench.stream.run_until_idle()
    assert bench.status.chunks_appended == 3
    assert bench.status.frames_replaced == 0


def test_hovering_does_not_flush_the_memory(primed: Bench) -> None:
    for i in range(4):
        primed.pose(0.5 * i, x=float(i))
        primed.frames(0.5 * i)
    cached, before = primed.status.cached_tokens, primed.keys()
    for i in range(4, 44):  # twenty seconds
        primed.pose(0.5 * i, x=3.0 + 0.05 * (i % 2))
        primed.frames(0.5 * i)
    assert primed.status.cached_tokens == cached
    assert primed.status.frames_provisional == 40
    assert primed.status.chunks_appended == 4
    assert primed.status.evictions == 0
    assert primed.stream._memory.newest_s == START + 21.5
    kept = before.shape[1] - 14  # all but the provisional picture: 12 tokens and two marks
    assert torch.equal(before[:, :kept], primed.keys()[:, :kept])
    primed.pose(22.0, x=6.0)
    primed.frames(22.0)
    assert primed.status.chunks_appended == 5
    primed.prime("You fly another drone.")  # the ring holds what the memory held: five chunks more, not 45
    assert primed.status.chunks_appended == 10


def test_without_odometry_every_frame_is_history(primed: Bench) -> None:
    primed.frames(0.5, 1.0, 1.5)
    assert primed.status.frames_provisional == 0
    assert primed.status.chunks_appended == 3


def test_a_second_sender_of_odometry_from_the_future_does_not_flush_the_memory_while_hovering(
    primed: Bench,
) -> None:
    for i in range(60):
        primed.pose(0.1 * i, x=3.0)
        for number in range(2):  # it sends twice as often
            assert not primed.stream.submit_odometry(Odometry(START + 1000.0 + 0.1 * i + 0.05 * number))
        primed.frames(0.1 * i)
    assert primed.status.chunks_appended == 1
    assert primed.status.frames_provisional > 5


@pytest.mark.parametrize("odometry", [True, False])
def test_a_frame_from_the_future_answers_no_barrier_and_does_not_make_later_ones_old(
    primed: Bench, odometry: bool
) -> None:
    if odometry:
        primed.pose(0.9, x=0.0)
    primed.frames(1.0)
    motion_ended = primed.generate(earliest_frame_s=START + 1.2)
    primed.submit_frame(START + 500.0)
    primed.stream.run_until_idle()
    assert not motion_ended.done
    assert "ahead of" in primed.warnings[0]
    primed.frames(1.3)
    assert motion_ended.result.status == GenerateStatus.OK
    assert motion_ended.result.frame_stamp_s == START + 1.3


def test_a_pose_that_is_not_finite_is_no_pose(primed: Bench) -> None:
    for i in range(3):
        primed.pose(0.5 * i, x=math.nan)
        primed.frames(0.5 * i)
    assert primed.status.frames_provisional == 0


def test_broken_pictures_are_counted_and_skipped_and_the_next_one_is_taken_at_once(primed: Bench) -> None:
    primed.frames(1.0)
    cached = primed.status.cached_tokens
    whole = primed.jpeg(1)
    for stamp, data in (
        (1.5, b""),
        (1.6, whole[:100]),
        (1.7, b"\xff\xd8 rubbish \xff\xd9"),
        (1.8, b"rubbish"),
    ):
        primed.frame(stamp, data)
        primed.stream.run_until_idle()
    assert primed.status.frames_broken == 4
    assert len(primed.warnings) == 4
    assert primed.status.cached_tokens == cached
    primed.frames(1.9)
    assert primed.status.chunks_appended == 2


def test_a_frame_without_a_stamp_or_out_of_order_is_skipped(primed: Bench) -> None:
    primed.submit_frame(0.0, primed.jpeg(0))
    primed.submit_frame(math.nan, primed.jpeg(0))
    primed.frames(2.0)
    primed.frame(1.0)
    primed.stream.run_until_idle()
    assert primed.status.frames_broken == 3
    assert primed.status.chunks_appended == 1
    assert "stamp" in primed.warnings[0]
    assert "not later than" in primed.warnings[2]


def test_pairs_of_frames_wait_for_each_other(tiny_model: QwenModel, jpeg: Callable[[int], bytes]) -> None:
    bench = Bench(tiny_model, jpeg, dataclasses.replace(FORM, as_video=True, frames_per_chunk=2))
    bench.prime()
    bench.frames(0.5, 1.0, 1.5)
    assert bench.status.chunks_appended == 1
    assert bench.status.frames_appended == 2
    answer = bench.generate(earliest_frame_s=START + 1.2)
    bench.stream.run_until_idle()
    assert answer.result.status == GenerateStatus.OK
    assert answer.result.frame_stamp_s == START + 1.5
    assert bench.status.chunks_appended == 2


def test_old_chunks_leave_when_the_budget_is_full(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    bench = Bench(tiny_model, jpeg)
    tokens = bench.prime().tokens
    bench = Bench(tiny_model, jpeg, dataclasses.replace(FORM, max_cache_tokens=tokens + 70))
    bench.prime()
    bench.frames(*(0.5 * i for i in range(1, 31)))
    assert bench.status.chunks_appended == 30
    assert bench.status.evictions > 20
    assert bench.status.cached_tokens <= bench.status.budget_tokens
    assert bench.status.sink_tokens >= tokens


def test_a_tag_says_the_time_since_the_first_frame(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    bench = Bench(tiny_model, jpeg, dataclasses.replace(FORM, tag="t={elapsed_s:.1f}s\n"))
    bench.prime()
    before = bench.status.cached_tokens
    bench.frames(3.0)
    tag = len(bench.engine.qwen.tokenize("t=0.0s\n"))
    assert bench.status.cached_tokens == before + tag + 14


# -- generations -------------------------------------------------------------------------------------------------------


def test_a_generation_is_one_call_of_one_of_the_tools_and_leaves_no_trace(primed: Bench) -> None:
    primed.frames(1.0)
    before = primed.keys()
    seen: list[str] = []
    ticket = primed.stream.submit_generate(
        GenerateGoal(
            primed.prompt_id, "fly to <|im_end|> the beacon", ("hover(seconds=1) -> hovered 1 s",) * 9
        ),
        seen.append,
    )
    primed.stream.run_until_idle()
    result = ticket.result
    assert result.status == GenerateStatus.OK
    call = json.loads(result.tool_call)
    assert call["name"] in {tool["function"]["name"] for tool in DRONE_TOOLS}
    assert seen[-1] == result.text
    assert result.tokens_sampled + result.tokens_forced > 5
    assert result.total_ms >= result.ttft_ms > 0
    assert result.frame_stamp_s == START + 1.0
    assert torch.equal(before, primed.keys())
    assert primed.status.generations == 1


def test_a_generation_waits_for_its_barrier_frame_which_enters_at_once(primed: Bench) -> None:
    primed.frames(1.0)
    ticket = primed.generate(earliest_frame_s=START + 1.15)
    primed.frames(1.1)
    assert not ticket.done
    primed.frames(1.2)  # 0.2 s after the last: early for the interval, but the barrier's
    assert ticket.result.status == GenerateStatus.OK
    assert ticket.result.frame_stamp_s == START + 1.2
    assert ticket.result.barrier_ms == pytest.approx(200.0, abs=1.0)


@pytest.mark.parametrize("live", [True, False])
def test_the_barrier_takes_a_frame_that_was_seen_and_not_due(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes], live: bool
) -> None:
    bench = Bench(tiny_model, jpeg, live=live)
    bench.prime()
    bench.frames(1.0, 1.1, 1.2)
    ticket = bench.generate(earliest_frame_s=START + 1.2)
    bench.stream.run_until_idle()
    assert ticket.result.frame_stamp_s == START + 1.2


def test_a_generation_goes_before_frames_and_frames_before_questions(primed: Bench) -> None:
    primed.frames(1.0)
    order: list[str] = []
    ask = primed.stream.submit_ask(AskRequest("what do you see?", max_new_tokens=2))
    primed.frame(1.5)
    generate = primed.generate()
    while primed.stream.step():
        for name, done in (
            ("generate", generate.done),
            ("frame", primed.status.chunks_appended == 2),
            ("ask", ask.done),
        ):
            if done and name not in order:
                order.append(name)
    assert order == ["generate", "frame", "ask"]


def test_a_question_gives_way_to_a_generation_and_is_answered_after_it(primed: Bench) -> None:
    primed.frames(1.0)
    tickets: list[Ticket[GenerateResult]] = []
    passes = 0
    original = primed.stream.generate_is_runnable

    def interrupt_at_the_third_token() -> bool:
        nonlocal passes
        passes += 1
        if passes == 3:
            tickets.append(primed.generate())
        return original()

    primed.stream.generate_is_runnable = interrupt_at_the_third_token  # type: ignore[method-assign]
    ask = primed.stream.submit_ask(AskRequest("what do you see?", max_new_tokens=12))
    assert primed.stream.step()
    assert not ask.done
    assert primed.stream.step()
    assert tickets[0].done
    assert not ask.done
    primed.stream.run_until_idle()
    assert ask.result.success
    assert ask.result.tokens_sampled >= 1


def test_a_question_does_not_give_way_to_a_generation_whose_frame_is_not_here(primed: Bench) -> None:
    primed.frames(1.0)
    waiting = primed.generate(earliest_frame_s=START + 5.0)
    ask = primed.stream.submit_ask(AskRequest("what do you see?", max_new_tokens=4))
    primed.stream.run_until_idle()
    assert ask.result.success
    assert not waiting.done


def test_deadlines_end_what_waits_with_the_reason(primed: Bench) -> None:
    no_frame_at_all = primed.generate(deadline_s=0.5)
    primed.clock.sleep(0.6)
    primed.stream.run_until_idle()
    assert no_frame_at_all.result.status == GenerateStatus.NO_FRAME
    primed.frames(1.0)
    too_old = primed.generate(earliest_frame_s=START + 2.0, deadline_s=1.0)
    primed.stream.run_until_idle()
    assert not too_old.done
    too_late = primed.generate(deadline_s=1.0)
    primed.clock.sleep(1.5)
    primed.stream.run_until_idle()
    assert too_old.result.status == GenerateStatus.NO_FRAME
    assert "1002.000" in too_old.result.message
    assert "1001.000" in too_old.result.message
    assert too_late.result.status == GenerateStatus.DEADLINE


def test_cancel_stops_within_one_token(primed: Bench) -> None:
    primed.frames(1.0)
    before = primed.keys()
    tickets: list[Ticket[GenerateResult]] = []
    seen: list[str] = []

    def cancel_at_the_first_text(text: str) -> None:
        seen.append(text)
        tickets[0].cancel()

    # fly_towards leaves choices after its name, so that a whole call takes several passes
    ticket = primed.stream.submit_generate(
        GenerateGoal(primed.prompt_id, "fly", temperature=5.0), cancel_at_the_first_text
    )
    tickets.append(ticket)
    primed.stream.run_until_idle()
    assert len(seen) == 1
    assert ticket.result.tokens_sampled == 1
    if ticket.result.status != GenerateStatus.OK:  # the one token was the whole choice
        assert ticket.result.status == GenerateStatus.CANCELLED
        assert ticket.result.tool_call == ""
    assert torch.equal(before, primed.keys())


def test_what_is_cancelled_before_its_turn_never_begins(primed: Bench) -> None:
    ticket = primed.generate(earliest_frame_s=START + 9.0)
    ask = primed.stream.submit_ask(AskRequest("what?"))
    ticket.cancel()
    ask.cancel()
    primed.stream.run_until_idle()
    assert ticket.result.status == GenerateStatus.CANCELLED
    assert not ask.result.success
    assert primed.status.generations == primed.status.asks == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"instruction": " \n"}, "instruction is empty"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"deadline_s": math.inf}, "must be finite"),
        ({"instruction": "word " * 3000}, "tail"),
        ({"max_new_tokens": 1, "temperature": 0.0}, "raise max_new_tokens"),
        ({"kind": "slow"}, "kind is 'slow', must be one of quick"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why_and_disturbs_nothing(
    primed: Bench, fields: dict[str, Any], reason: str
) -> None:
    primed.frames(1.0)
    before = primed.keys()
    if "max_new_tokens" in fields:  # a tool with several choices, so that one token cannot be enough
        primed.prime(tools=json.dumps([DRONE_TOOLS[7]]))
        before = primed.keys()
    ticket = primed.generate(**fields)
    primed.stream.run_until_idle()
    assert ticket.result.status == GenerateStatus.ERROR
    assert reason in ticket.result.message
    assert ticket.result.tool_call == ""
    assert torch.equal(before, primed.keys())
    again = primed.generate()
    primed.stream.run_until_idle()
    assert again.result.status == GenerateStatus.OK


def test_a_prompt_without_tools_answers_questions_but_generates_no_calls(bench: Bench) -> None:
    bench.prime(tools="")
    bench.frames(1.0)
    ticket = bench.generate()
    ask = bench.stream.submit_ask(AskRequest("what?", max_new_tokens=2))
    bench.stream.run_until_idle()
    assert ticket.result.status == GenerateStatus.ERROR
    assert "no tools" in ticket.result.message
    assert ask.result.success


def test_too_many_waiting_are_refused(primed: Bench) -> None:
    tickets = [primed.generate(earliest_frame_s=START + 9.0) for _ in range(MAX_QUEUED + 1)]
    asks = [primed.stream.submit_ask(AskRequest("what?")) for _ in range(MAX_QUEUED + 1)]
    assert tickets[-1].result.status == GenerateStatus.ERROR
    assert not tickets[-2].done
    assert "waiting already" in asks[-1].result.message


# -- questions ---------------------------------------------------------------------------------------------------------


def test_a_question_is_answered_and_leaves_no_trace(primed: Bench) -> None:
    primed.frames(1.0)
    before = primed.keys()
    free = primed.stream.submit_ask(AskRequest("what do you see?", max_new_tokens=5))
    choice = primed.stream.submit_ask(AskRequest("what do you see?", ("left", "right")))
    primed.stream.run_until_idle()
    assert free.result.success
    assert 1 <= free.result.tokens_sampled <= 5
    assert choice.result.answer in ("left", "right")
    assert choice.result.frame_stamp_s == START + 1.0
    for result in (free.result, choice.result):  # neither opens a second user turn
        assert result.tokens_in == len(primed.engine.qwen.tokenize(question_text("what do you see?")))
    assert torch.equal(before, primed.keys())


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (AskRequest(""), "question is empty"),
        (AskRequest("what?", ("a", "a")), "choices"),
        (AskRequest("what? " * 3000), "tail"),
        (AskRequest("what?", kind="slow"), "kind is 'slow'"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(
    primed: Bench, request_: AskRequest, reason: str
) -> None:
    primed.frames(1.0)
    ticket = primed.stream.submit_ask(request_)
    primed.stream.run_until_idle()
    assert not ticket.result.success
    assert reason in ticket.result.message


def test_a_model_without_words_is_asked_for_choices_only(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    """What it would say is no language: an agent that asks it why gets nothing."""
    wordless = Bench(tiny_model, jpeg, dataclasses.replace(FORM, system_prompt=PROMPT, tools=DRONE_TOOLS))
    assert wordless.prime().success
    wordless.frames(1.0)
    free = wordless.stream.submit_ask(AskRequest("why?"))
    choice = wordless.stream.submit_ask(AskRequest("is the way free?", ("yes", "no")))
    wordless.stream.run_until_idle()
    assert not wordless.stream.answers_in_words
    assert (free.result.success, free.result.answer) == (False, "")
    assert "has no words: give choices" in free.result.message
    assert choice.result.answer in ("yes", "no")


def test_a_question_to_an_empty_memory_says_what_is_missing(bench: Bench) -> None:
    unprimed = bench.stream.submit_ask(AskRequest("what?"))
    bench.stream.run_until_idle()
    assert "Prime" in unprimed.result.message
    bench.prime()
    blind = bench.stream.submit_ask(AskRequest("what?"))
    bench.stream.run_until_idle()
    assert "no frame" in blind.result.message


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_closed_stream_refuses_what_waits_and_what_comes_later(primed: Bench) -> None:
    stream = primed.stream
    waiting = (primed.generate(earliest_frame_s=START + 9.0), primed.ask(), stream.submit_reset())
    stream.close()
    assert not stream.step()
    late = (primed.generate(), primed.ask(), stream.submit_prime(PrimeRequest(PROMPT, TOOLS)))
    for ticket in (*waiting, *late):
        assert ticket.done
        assert ticket.result.message == SHUT_DOWN
    assert waiting[0].result.status == GenerateStatus.CANCELLED
    assert primed.status.generations == primed.status.asks == 0


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"deadline_s": 0.0}, "deadline_s is 0.0, must be positive"),
        ({"deadline_s": math.nan}, "deadline_s is nan"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        StreamSettings(**values)


def test_settings_change_between_requests(primed: Bench) -> None:
    primed.frames(1.0)
    primed.stream.settings = StreamSettings(deadline_s=0.5)
    primed.stream.guard.settings = GuardSettings(1, 2, 2, 3)
    ask = primed.ask(max_new_tokens=0)
    never = primed.generate(earliest_frame_s=START + 9.0)
    primed.stream.run_until_idle()
    assert ask.result.tokens_sampled <= 3
    primed.clock.sleep(0.6)
    primed.stream.run_until_idle()
    assert never.result.status == GenerateStatus.NO_FRAME


# -- frames handed over, and fewer tools -------------------------------------------------------------------------------


def handed(bench: Bench, *after_s: float, data: bytes | None = None) -> Ticket[Taken]:
    images = [
        CompressedImage(START + at, bench.jpeg(int(at * 10)) if data is None else data) for at in after_s
    ]
    return bench.stream.submit_frames(images)


def test_frames_handed_over_are_all_taken_though_a_live_camera_would_replace_them(primed: Bench) -> None:
    ticket = handed(primed, 1.0, 1.5, 2.0)
    primed.stream.run_until_idle()
    assert (ticket.result.admitted, ticket.result.not_due, ticket.result.problems) == (3, 0, ())
    assert ticket.result.engine_s > 0
    assert primed.status.chunks_appended == 3


def test_frames_handed_over_say_what_became_of_each(primed: Bench) -> None:
    ticket = handed(primed, 1.0, 1.1, 1.5)
    broken = handed(primed, 2.0, data=b"no picture")
    primed.stream.run_until_idle()
    assert (ticket.result.admitted, ticket.result.not_due) == (2, 1)
    assert (broken.result.admitted, len(broken.result.problems)) == (0, 1)
    assert "no picture" in broken.result.problems[0]


def test_frames_handed_over_to_a_closed_stream_are_refused(primed: Bench) -> None:
    waiting = handed(primed, 1.0)
    primed.stream.close()
    primed.stream.step()
    assert waiting.result.refusal == SHUT_DOWN
    assert handed(primed, 1.5).result.refusal == SHUT_DOWN


def test_only_so_many_requests_with_frames_wait(primed: Bench) -> None:
    tickets = [handed(primed, 1.0 + number) for number in range(MAX_QUEUED + 1)]
    assert tickets[-1].done
    assert "waiting already" in tickets[-1].result.refusal


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_a_generation_calls_one_of_the_tools_it_was_limited_to(primed: Bench, temperature: float) -> None:
    primed.frames(1.0)
    before = primed.keys()
    for tool in DRONE_TOOLS:
        ticket = primed.stream.submit_generate(
            GenerateGoal(primed.prompt_id, "go", temperature=temperature), tools=[tool]
        )
        primed.stream.run_until_idle()
        assert json.loads(ticket.result.tool_call)["name"] == tool["function"]["name"]
    assert torch.equal(before, primed.keys())
