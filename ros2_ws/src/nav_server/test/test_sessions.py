"""Sessions on a virtual clock, their model stepped by a thread of its own."""

from __future__ import annotations

import pytest

from nav_common.clock import VirtualClock
from nav_server.backends.factory import Backends, Served
from nav_server.problems import Problem
from nav_server.sessions import Sessions
from vlm_perception.guard import Guard
from vlm_perception.stream import Stream


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000.0)


@pytest.fixture
def sessions(served: Served, clock: VirtualClock) -> Sessions:
    return Sessions(Backends([served], clock, Guard()), max_clients=2, idle_s=60.0)


def taken(sessions: Sessions, client: str, jpeg: bytes) -> int:
    ticket = sessions.of(client).submit_frames([jpeg], fps=0.5)
    assert ticket.wait(30.0)
    return ticket.result.admitted


def test_a_silent_client_loses_its_stream_and_one_that_is_heard_keeps_it(
    sessions: Sessions, clock: VirtualClock, jpeg: bytes
) -> None:
    assert taken(sessions, "silent", jpeg) == 1
    heard = sessions.of("heard")
    clock.sleep(50.0)
    assert sessions.find("heard") is heard
    clock.sleep(20.0)
    sessions.drop_idle()
    assert sessions.find("silent") is None
    assert sessions.find("heard") is heard


def test_room_is_made_by_dropping_who_is_silent_before_anybody_is_refused(
    sessions: Sessions, clock: VirtualClock
) -> None:
    sessions.of("a")
    clock.sleep(61.0)
    sessions.of("b")
    sessions.of("c")
    with pytest.raises(Problem, match="2 clients"):
        sessions.of("d")
    assert len(sessions) == 2


def test_the_last_call_is_recalled_only_with_the_result_that_the_client_tells(
    sessions: Sessions, jpeg: bytes
) -> None:
    taken(sessions, "a", jpeg)
    session = sessions.of("a")

    def decide(last_result: str) -> str:
        decided = session.decide(
            "fly to the red beacon", max_new_tokens=128, temperature=0.0, tools=(), last_result=last_result
        )
        return decided.tool

    decide("")
    assert session._goal.recent_calls == ()
    tool = decide("")
    assert session._goal.recent_calls == ()
    decide("turned left 30 deg")
    recent: tuple[str, ...] = session._goal.recent_calls
    (line,) = recent
    assert line.startswith(f"{tool}(")
    assert line.endswith(" -> turned left 30 deg")


def test_a_stream_that_an_error_emptied_is_primed_and_fed_anew(sessions: Sessions, jpeg: bytes) -> None:
    taken(sessions, "a", jpeg)
    session = sessions.of("a")
    assert isinstance(session.stream, Stream)
    session.stream.memory.begin(None)  # as the engine does when it fails half-way
    decided = session.decide("go", max_new_tokens=128, temperature=0.0, tools=(), last_result="")
    assert decided.tool
    assert session.status().memory_resets == 4  # made, primed, emptied, primed
