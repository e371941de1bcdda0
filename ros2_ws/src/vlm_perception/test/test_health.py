"""What is said of perception's health."""

from dataclasses import replace

from nav_common.data import EngineStatus
from nav_common.diagnostics import Level
from vlm_perception.guard import Guard, GuardSettings, RequestKind
from vlm_perception.health import NO_FRAMES_S, HealthReport

SERVING = EngineStatus(
    frames_received=10, cached_tokens=900, budget_tokens=1800, append_ms=7.25, frame_age_s=0.4
)

GUARD = Guard()


def test_serving_is_ok_and_says_the_figures() -> None:
    health = HealthReport(100.0)(SERVING, Guard(), 101.0)
    assert (health.level, health.message) == (Level.OK, "serving")
    assert health.values["cached_tokens"] == "900 of 1800 (50 %)"
    assert health.values["append_ms"] == "7.2"
    assert health.values["frame_age_s"] == "0.40"


def test_no_prompt_is_said_and_no_fault() -> None:
    health = HealthReport(100.0)(replace(SERVING, cached_tokens=0), Guard(), 101.0)
    assert (health.level, health.message) == (Level.OK, "no prompt is primed yet")


def test_frames_that_stay_away_are_a_warning_until_they_come_again() -> None:
    report = HealthReport(100.0)
    assert report(SERVING, GUARD, 101.0).level == Level.OK
    assert report(SERVING, GUARD, 101.0 + NO_FRAMES_S).level == Level.OK
    late = report(SERVING, GUARD, 101.5 + NO_FRAMES_S)
    assert late.level == Level.WARN
    assert "no frame for 5 s" in late.message
    assert report(replace(SERVING, frames_received=11), GUARD, 108.0).level == Level.OK


def test_broken_frames_are_a_warning_and_nothing_but_broken_frames_an_error() -> None:
    report = HealthReport(100.0)
    report(SERVING, GUARD, 101.0)
    some = report(replace(SERVING, frames_received=20, frames_broken=2), GUARD, 102.0)
    assert some.level == Level.WARN
    assert "2 frames" in some.message
    every = report(replace(SERVING, frames_received=23, frames_broken=5), GUARD, 103.0)
    assert every.level == Level.ERROR
    assert "all of the last 3" in every.message
    assert report(replace(SERVING, frames_received=24, frames_broken=5), GUARD, 104.0).level == Level.OK


def test_errors_and_a_slow_model_are_said_once() -> None:
    guard, report = Guard(GuardSettings(errors_to_recovery=2)), HealthReport(100.0)
    guard.count(RequestKind.NORMAL, 16, 1.2)
    slow = report(SERVING, guard, 101.0)
    assert slow.level == Level.WARN
    assert "at most 1200 ms" in slow.message
    assert slow.values["guard alerts"] == 1
    assert report(SERVING, guard, 101.5).level == Level.OK
    guard.count_error("no memory")
    failed = report(SERVING, guard, 102.0)
    assert (failed.level, failed.message) == (Level.ERROR, "a request failed: no memory")
    guard.count_error("no memory")
    assert "2 errors in a row" in report(SERVING, guard, 103.0).message
