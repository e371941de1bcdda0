"""The guard's rules, on attempts that are told how they end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_perception.engine import Generation
from vlm_perception.engine.decoding import Finish
from vlm_perception.guard import (
    CACHED_ANSWERS,
    Guard,
    GuardSettings,
    Record,
    RequestKind,
    ResponseCache,
    alert_ms,
    kind_of,
)


class Model:
    """Attempts end as they are told; `seconds` is what each takes. Notes what each was allowed."""

    def __init__(self, *finishes: Finish | Exception, seconds: float = 0.1) -> None:
        self.finishes = list(finishes)
        self.seconds = seconds
        self.now_s = 100.0
        self.allowed: list[tuple[int, float]] = []

    def __call__(self, tokens: int, deadline_s: float) -> Generation:
        self.allowed.append((tokens, deadline_s - self.now_s))
        finish = self.finishes.pop(0)
        if isinstance(finish, Exception):
            raise finish
        self.now_s += self.seconds
        return Generation("text", (), finish, 10, tokens, 0, 1, self.seconds, self.seconds)


def run(
    guard: Guard, model: Model, kind: RequestKind = RequestKind.NORMAL, **options: float
) -> Generation | None:
    return guard.run(kind, model, now=lambda: model.now_s, **options)  # type: ignore[arg-type]


# -- budgets


def test_the_default_budgets() -> None:
    settings = GuardSettings()
    assert [settings.budget(kind) for kind in RequestKind] == [8, 16, 20, 24]
    assert settings.break_ms == 3000.0
    assert [alert_ms(n) for n in (8, 16, 24, 20, 3)] == [800.0, 1000.0, 2500.0, 3000.0, 3000.0]


@given(st.sampled_from(list(RequestKind)), st.integers(0, 200))
def test_the_requests_own_number_is_a_ceiling_and_the_kind_decides_below_it(
    kind: RequestKind, ceiling: int
) -> None:
    model = Model("stop")
    run(Guard(), model, kind, ceiling=ceiling)
    budget = GuardSettings().budget(kind)
    assert model.allowed[0][0] == (min(budget, ceiling) if ceiling else budget)


@pytest.mark.parametrize(
    "values",
    [
        {"quick_tokens": 0},
        {"normal_tokens": 7},
        {"detailed_tokens": 19},
        {"break_ms": 0.0},
        {"break_ms": math.nan},
        {"break_ms": math.inf},
        {"errors_to_recovery": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        GuardSettings(**values)  # type: ignore[arg-type]


def test_a_kind_that_does_not_exist_is_refused_by_name() -> None:
    assert kind_of("", RequestKind.DETAILED) is RequestKind.DETAILED
    assert kind_of("quick", RequestKind.DETAILED) is RequestKind.QUICK
    with pytest.raises(ValueError, match="'slow', must be one of quick, normal, analysis, detailed"):
        kind_of("slow", RequestKind.NORMAL)


# -- the breaker


def test_what_is_in_time_is_tried_once() -> None:
    model = Model("stop")
    assert run(Guard(), model) is not None
    assert model.allowed == [(16, 3.0)]


def test_a_break_is_tried_once_more_with_the_smallest_budget() -> None:
    guard, model = Guard(), Model("deadline", "stop", seconds=3.0)
    done = run(guard, model, RequestKind.DETAILED)
    assert done is not None
    assert model.allowed == [(24, 3.0), (8, 3.0)]
    record = guard.record()
    assert (record.breaks, record.hovers, record.errors) == (1, 0, 0)
    assert record.latencies.max_ms == pytest.approx(6000.0)


def test_two_breaks_are_a_hover() -> None:
    guard = Guard()
    assert run(guard, Model("deadline", "deadline", seconds=3.0)) is None
    record = guard.record()
    assert (record.breaks, record.hovers, record.errors) == (2, 1, 1)


def test_the_requests_own_deadline_is_no_break_and_leaves_no_time_for_a_second_attempt() -> None:
    guard, model = Guard(), Model("deadline", seconds=1.0)
    done = run(guard, model, deadline_s=101.0)
    assert done is not None
    assert done.finish == "deadline"
    assert model.allowed == [(16, 1.0)]
    assert (guard.record().breaks, guard.record().errors) == (0, 1)


def test_the_second_attempt_keeps_to_the_requests_deadline() -> None:
    model = Model("deadline", "deadline", seconds=3.0)
    done = run(Guard(), model, deadline_s=104.0)
    assert done is not None
    assert model.allowed == [(16, 3.0), (8, pytest.approx(1.0))]


def test_a_retry_never_gets_more_tokens_than_the_first_attempt() -> None:
    model = Model("deadline", "stop")
    run(Guard(), model, ceiling=3)
    assert [tokens for tokens, _ in model.allowed] == [3, 3]


def test_what_the_caller_cancels_is_neither_counted_nor_tried_again() -> None:
    guard, model = Guard(), Model("cancelled")
    run(guard, model)
    assert len(model.allowed) == 1
    assert guard.record().latencies.count == 0


# -- counters and alerts


def test_counters_by_kind_and_by_tokens() -> None:
    guard = Guard()
    for seconds, kind in ((0.2, RequestKind.QUICK), (0.4, RequestKind.NORMAL), (0.6, RequestKind.NORMAL)):
        run(guard, Model("stop", seconds=seconds), kind)
    counters = guard.record().counters()
    assert counters["total_requests"] == 3
    assert counters["avg_latency"] == pytest.approx(400.0)
    assert (counters["min_latency"], counters["max_latency"]) == (pytest.approx(200.0), pytest.approx(600.0))
    assert counters["by_tokens"]["16"] == {"count": 2, "avg": pytest.approx(500.0)}
    assert counters["by_kind"]["quick"]["count"] == 1
    assert counters["errors"] == 0


@pytest.mark.parametrize(
    ("ceiling", "seconds", "alerts"), [(8, 0.79, 0), (8, 0.81, 1), (16, 0.81, 0), (16, 1.1, 1)]
)
def test_a_latency_above_its_threshold_is_an_alert(ceiling: int, seconds: float, alerts: int) -> None:
    said: list[str] = []
    guard = Guard(on_alert=said.append)
    run(guard, Model("stop", seconds=seconds), RequestKind.NORMAL, ceiling=ceiling)
    assert (guard.record().alerts, len(said)) == (alerts, alerts)
    if said:
        assert f"{1000 * seconds:.0f} ms" in said[0]


def test_what_others_read_does_not_change_under_them() -> None:
    guard = Guard()
    run(guard, Model("stop"))
    before = guard.record()
    run(guard, Model("stop"))
    assert before.latencies.count == before.by_tokens[16].count == 1


# -- recovery


def test_ten_errors_in_a_row_make_a_restart_due_and_a_success_between_them_does_not() -> None:
    guard = Guard()
    for _ in range(9):
        with pytest.raises(RuntimeError):
            run(guard, Model(RuntimeError("no memory")))
    assert not guard.restart_due
    run(guard, Model("stop"))
    for _ in range(9):
        run(guard, Model("deadline", "deadline"))
    assert not guard.restart_due
    run(guard, Model("deadline", "deadline"))
    assert "10 errors in a row" in guard.restart_due
    assert guard.record().restarts == 1
    assert guard.record().errors == 19


def test_a_request_that_is_itself_wrong_is_no_error_of_the_service() -> None:
    guard = Guard()
    for _ in range(20):
        with pytest.raises(ValueError, match="too long"):
            run(guard, Model(ValueError("question too long")))
    assert (guard.restart_due, guard.record().errors) == ("", 0)


def test_the_record_outlives_the_process_and_its_errors_in_a_row_do_not(tmp_path: Path) -> None:
    file = tmp_path / "guard.json"
    guard = Guard(GuardSettings(errors_to_recovery=2), record_file=file)
    run(guard, Model("stop"), RequestKind.QUICK)
    for _ in range(2):
        run(guard, Model("deadline", "deadline"))
    guard.save()
    again = Guard(GuardSettings(errors_to_recovery=2), record_file=file)
    assert again.record() == guard.record()
    assert again.record().restarts == 1
    assert not again.restart_due
    run(again, Model("stop"))
    assert again.record().latencies.count == guard.record().latencies.count + 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "\x00" * 100,
        json.dumps({"latencies": {}, "by_kind": 3}),
        json.dumps({**json.loads(json.dumps(Record().__dict__, default=vars)), "errors": "many"}),
        json.dumps({**json.loads(json.dumps(Record().__dict__, default=vars)), "by_tokens": {"x": {}}}),
    ],
)
def test_a_record_that_cannot_be_read_is_put_aside(tmp_path: Path, content: str) -> None:
    file, said = tmp_path / "guard.json", []
    file.write_text(content)
    guard = Guard(record_file=file, on_alert=said.append)
    assert guard.record() == Record()
    assert "cannot be read" in said[0]
    assert (tmp_path / "guard.json.broken").read_text() == content
    guard.save()
    assert Guard(record_file=file).record() == Record()


def test_the_records_folder_is_made_and_one_that_cannot_be_is_refused(tmp_path: Path) -> None:
    Guard(record_file=tmp_path / "run" / "guard.json").save()
    assert (tmp_path / "run" / "guard.json").is_file()
    with pytest.raises(ValueError, match="another folder"):
        Guard(record_file=tmp_path / "run" / "guard.json" / "guard.json")


# -- the response cache


def test_an_answer_is_known_until_the_memory_changes() -> None:
    cache: ResponseCache[str] = ResponseCache()
    assert cache.get(1, "what?") is None
    cache.put("what?", "a beacon")
    assert cache.get(1, "what?") == "a beacon"
    assert cache.get(1, "where?") is None
    assert cache.get(2, "what?") is None
    assert cache.get(1, "what?") is None  # a memory that changed and changed back is asked again


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache: ResponseCache[int] = ResponseCache()
    cache.get(0, None)
    for number in range(CACHED_ANSWERS + 5):
        cache.put(number, number)
    assert cache.get(0, 4) is None
    assert cache.get(0, 5) == 5
