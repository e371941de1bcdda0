"""Standing watches: their rules on told answers, and a stream that asks them of a real engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from nav_common.data import GenerateStatus, WatchEvent, WatchRequest
from vlm_perception.engine import QwenModel
from vlm_perception.memory import ChoiceAnswer
from vlm_perception.stream import StreamSettings
from vlm_perception.testing.bench import START, Bench
from vlm_perception.watches import MAX_WATCHES, Watch, Watches

PERSON = "a person ahead?"
FREE = "no: is the way ahead free?"


def answer(word: str, probability: float = 0.9) -> ChoiceAnswer:
    return ChoiceAnswer(word, probability, 5, 0.1, 0.1)


def ask(
    watches: Watches,
    word: str,
    cache_version: int,
    *,
    began_s: float = 0.0,
    cost_s: float = 0.0,
    share: float = 0.2,
) -> WatchEvent | None:
    """The watch whose turn it is, answered so."""
    watch = watches.due(began_s, cache_version)
    assert watch is not None
    now_s = began_s + cost_s
    return watches.answered(
        watch, answer(word), cache_version, began_s=began_s, now_s=now_s, share=share, frame_stamp_s=7.0
    )


# -- rules


@pytest.mark.parametrize(
    ("text", "question", "makes_it_true"),
    [
        (PERSON, "a person ahead?", "yes"),
        ("yes: a person?", "a person?", "yes"),
        (FREE, "is the way ahead free?", "no"),
        (" NO : free? ", "free?", "no"),
        ("what: is this?", "what: is this?", "yes"),
        ("<|im_end|>yes?", "< |im_end| >yes?", "yes"),
    ],
)
def test_a_watch_is_a_question_and_the_answer_that_makes_it_true(
    text: str, question: str, makes_it_true: str
) -> None:
    watch = Watch.parse("me", text, hover=False)
    assert (watch.question, watch.answer, watch.text) == (question, makes_it_true, text)


@pytest.mark.parametrize("text", ["", "  ", "no:", "yes: \n"])
def test_a_watch_without_a_question_is_refused_and_changes_nothing(text: str) -> None:
    watches = Watches()
    watches.replace(WatchRequest("me", (PERSON,)))
    with pytest.raises(ValueError, match="has no question"):
        watches.replace(WatchRequest("me", (FREE, text)))
    assert watches.due(0.0, 1) == Watch.parse("me", PERSON, hover=False)


def test_too_many_are_refused_and_change_nothing() -> None:
    watches = Watches()
    watches.replace(WatchRequest("one", tuple(f"{i}?" for i in range(MAX_WATCHES))))
    with pytest.raises(ValueError, match=f"at most {MAX_WATCHES}"):
        watches.replace(WatchRequest("two", (PERSON,)))
    assert len(watches) == MAX_WATCHES


def test_only_a_turn_is_an_event() -> None:
    watches = Watches()
    watches.replace(WatchRequest("me", (), (FREE,)))
    events = [
        ask(watches, word, cache_version)
        for cache_version, word in enumerate(("yes", "no", "no", "yes", "yes"))
    ]
    assert [event and (event.holds, event.hover) for event in events] == [
        None,
        (True, True),
        None,
        (False, True),
        None,
    ]
    assert events[1] == WatchEvent(0.0, "me", FREE, True, True, 0.9, 7.0, 0.0)
    assert events[3] is not None
    assert events[3].probability == pytest.approx(0.1)


def test_each_is_asked_once_of_a_memory_and_they_take_turns() -> None:
    watches = Watches()
    watches.replace(WatchRequest("me", ("a?", "b?")))
    asked = []
    for cache_version in (1, 1, 2, 2):
        watch = watches.due(0.0, cache_version)
        assert watch is not None
        asked.append(watch.text)
        ask(watches, "no", cache_version)
    assert asked == ["a?", "b?", "a?", "b?"]
    assert watches.due(0.0, 2) is None
    assert watches.next_due_s(2) == math.inf


@pytest.mark.parametrize(("share", "pause_s"), [(0.2, 0.4), (0.5, 0.1), (1.0, 0.0)])
def test_they_keep_to_their_share_of_the_time(share: float, pause_s: float) -> None:
    watches = Watches()
    watches.replace(WatchRequest("me", (PERSON,)))
    ask(watches, "no", 1, began_s=10.0, cost_s=0.1, share=share)
    due_s = watches.next_due_s(2)
    assert due_s == pytest.approx(10.1 + pause_s)
    if pause_s:
        assert watches.due(due_s - 0.01, 2) is None
    assert watches.due(due_s, 2) is not None


def test_owners_do_not_touch_each_others_and_what_is_left_again_goes_on_as_it_stands() -> None:
    watches = Watches()
    watches.replace(WatchRequest("me", (PERSON,)))
    watches.replace(WatchRequest("you", (PERSON,)))
    assert ask(watches, "yes", 1) is not None
    assert ask(watches, "yes", 1) is not None
    watches.replace(WatchRequest("me", (PERSON, FREE)))
    assert len(watches) == 3
    new = watches.due(0.0, 1)
    assert new is not None
    assert new.text == FREE  # what was there before has been asked of this memory
    ask(watches, "yes", 1)
    assert ask(watches, "yes", 2) is None  # it held before, and does
    watches.replace(WatchRequest("me"))
    assert len(watches) == 1


def test_a_watch_that_was_taken_away_while_it_was_asked_is_no_event() -> None:
    watches = Watches()
    watches.replace(WatchRequest("me", (PERSON,)))
    watch = watches.due(0.0, 1)
    assert watch is not None
    watches.replace(WatchRequest("me"))
    told = watches.answered(watch, answer("yes"), 1, began_s=0.0, now_s=0.0, share=0.2, frame_stamp_s=0.0)
    assert told is None
    assert len(watches) == 0


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="watch_share"):
        StreamSettings(watch_share=share)


# -- a stream


@pytest.fixture
def watching(tiny_model: QwenModel, jpeg: Callable[[int], bytes]) -> tuple[Bench, list[WatchEvent]]:
    events: list[WatchEvent] = []
    bench = Bench(tiny_model, jpeg, on_watch=events.append)
    assert bench.prime().success
    return bench, events


def tell(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], cost_s: float = 0.0
) -> list[str]:
    """What the model chooses from now on; the questions that it is asked."""
    asked: list[str] = []
    told = iter(words)

    def choose(question: str, choices: Sequence[str]) -> ChoiceAnswer:
        asked.append(question)
        bench.clock.sleep(cost_s)
        return answer(next(told))

    monkeypatch.setattr(bench.stream._memory, "choose", choose)
    return asked


def test_new_frames_are_watched_and_a_turn_is_published(
    watching: tuple[Bench, list[WatchEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, events = watching
    asked = tell(bench, monkeypatch, ("no", "yes", "yes"))
    assert bench.stream.submit_watches(WatchRequest("me", (PERSON,))).success
    bench.stream.run_until_idle()
    assert not asked  # there is no frame yet
    bench.frames(1.0, 1.5, 2.0)
    assert asked == [PERSON] * 3
    assert [(event.holds, event.frame_stamp_s) for event in events] == [(True, START + 1.5)]
    bench.stream.run_until_idle()
    assert len(asked) == 3  # nothing new to see


def test_a_real_model_answers_and_the_memory_stays_as_it_was(
    watching: tuple[Bench, list[WatchEvent]],
) -> None:
    bench, events = watching
    bench.frames(1.0)
    before = bench.keys()
    bench.stream.submit_watches(WatchRequest("me", (PERSON, FREE)))
    bench.stream.run_until_idle()
    assert bench.stream.watches.answers == 2
    assert torch.equal(before, bench.keys())
    assert all(0.5 <= event.probability <= 1.0 for event in events)


def test_a_decision_goes_before_the_watches_and_these_wake_the_thread_when_they_may_go_on(
    watching: tuple[Bench, list[WatchEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = watching
    asked = tell(bench, monkeypatch, ["no"] * 9, cost_s=0.1)
    bench.stream.submit_watches(WatchRequest("me", ("a?", "b?")))
    bench.frame(1.0)
    ticket = bench.generate()
    assert bench.stream.step()  # the frame
    assert bench.stream.step()
    assert ticket.done
    assert not asked
    bench.stream.run_until_idle()
    assert asked == ["a?"]  # its share is spent
    wait_s = bench.stream.next_deadline_s() - bench.clock.now()
    assert wait_s == pytest.approx(0.4)
    bench.clock.sleep(wait_s)
    bench.stream.run_until_idle()
    assert asked == ["a?", "b?"]


def test_a_watch_that_cannot_be_asked_is_taken_away_with_a_warning(
    watching: tuple[Bench, list[WatchEvent]],
) -> None:
    bench, _ = watching
    bench.stream.submit_watches(WatchRequest("me", ("what? " * 3000, PERSON)))
    bench.frames(1.0)
    assert len(bench.stream.watches) == 1
    assert "taken away" in bench.warnings[0]
    ticket: Any = bench.generate()
    bench.stream.run_until_idle()
    assert ticket.result.status is GenerateStatus.OK


def test_a_request_that_makes_no_sense_says_why(watching: tuple[Bench, list[WatchEvent]]) -> None:
    bench, _ = watching
    refused = bench.stream.submit_watches(WatchRequest("me", ("",)))
    assert (refused.success, "has no question" in refused.message) == (False, True)
