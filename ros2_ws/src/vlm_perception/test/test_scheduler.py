"""Turns of several streams on one model: on a virtual clock by hand, and on the model's own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nav_common.clock import VirtualClock, WallClock
from nav_common.data import AskRequest, CompressedImage, GenerateGoal, GenerateStatus, PrimeRequest
from vlm_perception.engine import QwenModel
from vlm_perception.scheduler import ModelThread, Scheduler
from vlm_perception.stream import Stream
from vlm_perception.testing.bench import FORM, PROMPT, START, TOOLS, Bench
from vlm_perception.tickets import Ticket

FLYING, WAITING = 1, 0  # priorities


class Fleet:
    """Primed streams with a frame in memory, on one model and one clock, and the pieces of work done: which stream, and
    what was done of "generate", "frame", "ask" ("" for an answer that gave way)."""

    def __init__(self, model: QwenModel, jpeg: Callable[[int], bytes], priorities: list[int]) -> None:
        clock = VirtualClock(START)
        self.drones = [Bench(model, jpeg, clock=clock, priority=priority) for priority in priorities]
        self.pieces: list[tuple[int, str]] = []
        self.scheduler = Scheduler(drone.stream for drone in self.drones)
        for number, drone in enumerate(self.drones):
            drone.prime()
            drone.frames(1.0 + 0.1 * number)
            self._watch(number, drone)

    def _watch(self, number: int, drone: Bench) -> None:
        step = drone.stream.step

        def recorded(interrupt: Callable[[], bool]) -> bool:
            before = drone.status
            worked = step(interrupt)
            after = drone.status
            if worked:
                kinds = {
                    "generate": after.generations - before.generations,
                    "frame": after.chunks_appended - before.chunks_appended,
                    "ask": after.asks - before.asks,
                }
                assert sum(kinds.values()) <= 1, "more than one piece of work in a step"
                self.pieces.append((number, next((kind for kind, count in kinds.items() if count), "")))
            return worked

        drone.stream.step = recorded  # type: ignore[method-assign, assignment]

    def submit(self, number: int, kind: str) -> None:
        drone = self.drones[number]
        if kind == "generate":
            drone.generate(deadline_s=1e9)
        elif kind == "ask":
            drone.ask()
        else:
            drone.frame(drone.clock.now() - START + 1.0)


@pytest.fixture
def fleet(tiny_model: QwenModel, jpeg: Callable[[int], bytes]) -> Callable[..., Fleet]:
    return lambda *priorities: Fleet(tiny_model, jpeg, list(priorities))


KIND = st.sampled_from(["generate", "frame", "ask"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    work=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), KIND), min_size=1, max_size=12),
    goals=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
)
def test_a_generation_of_the_first_stream_waits_for_one_piece_of_the_others_at_most(
    fleet: Callable[..., Fleet], work: list[tuple[int, int, str]], goals: list[int]
) -> None:
    """Requests come between the pieces: (after how many pieces, of which stream, what)."""
    flying = fleet(WAITING, WAITING, WAITING, FLYING)
    drone = flying.drones[3]
    for done in range(40):
        for after, number, kind in work:
            if after == done:
                flying.submit(number, kind)
        ticket = drone.generate(deadline_s=1e9) if done in goals else None
        worked = flying.scheduler.step()
        if ticket:
            assert ticket.done, f"behind {flying.pieces[-1]}"
        if not worked and done > 9:
            break
    assert {"generate"} <= {kind for number, kind in flying.pieces if number == 3}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(KIND, min_size=1, max_size=4), min_size=2, max_size=4))
def test_equal_streams_take_turns_whatever_they_have_to_do(
    fleet: Callable[..., Fleet], work: list[list[str]]
) -> None:
    streams = fleet(*[WAITING] * len(work))
    for number, kinds in enumerate(work):
        for kind in kinds:
            streams.submit(number, kind)
    streams.scheduler.run_until_idle()
    turns = [number for number, _ in streams.pieces]
    for position, number in enumerate(turns):
        later = [at for at in range(position + 1, len(turns)) if turns[at] == number]
        if later:  # between two turns of one stream, each other that still has work had one
            between = set(turns[position + 1 : later[0]])
            assert between >= set(turns[later[0] :]) - {number}


def test_within_a_stream_the_order_is_generation_frame_question(fleet: Callable[..., Fleet]) -> None:
    streams = fleet(WAITING, WAITING)
    for number in (0, 1):
        for kind in ("ask", "frame", "generate"):
            streams.submit(number, kind)
    streams.scheduler.run_until_idle()
    for number in (0, 1):
        assert [kind for of, kind in streams.pieces if of == number] == ["generate", "frame", "ask"]


def test_an_answer_gives_way_to_a_generation_of_a_stream_of_higher_priority(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = fleet(FLYING, WAITING)
    flying, waiting = streams.drones
    generation: list[Any] = []
    asked = waiting.stream.generate_is_runnable

    def goal_at_the_second_token() -> bool:
        goal_at_the_second_token.tokens += 1  # type: ignore[attr-defined]
        if goal_at_the_second_token.tokens == 2:  # type: ignore[attr-defined]
            generation.append(flying.generate())
        return asked()

    goal_at_the_second_token.tokens = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(waiting.stream, "generate_is_runnable", goal_at_the_second_token)
    ask = waiting.ask(max_new_tokens=12)
    streams.scheduler.run_until_idle()
    assert [piece for piece in streams.pieces if piece[0] == 0] == [(0, "generate")]
    assert streams.pieces.index((1, "")) < streams.pieces.index((0, "generate")), "it did not give way"
    assert generation[0].result.status == GenerateStatus.OK
    assert ask.result.success


def test_an_answer_does_not_give_way_to_an_equal_stream(fleet: Callable[..., Fleet]) -> None:
    streams = fleet(WAITING, WAITING)
    streams.submit(0, "ask")
    assert streams.scheduler.step()
    streams.submit(0, "ask")
    streams.submit(1, "generate")
    streams.scheduler.run_until_idle()
    assert [piece for piece in streams.pieces if piece[1] == ""] == []


def test_streams_of_one_model_do_not_disturb_each_other(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    alone = Bench(tiny_model, jpeg)
    alone.prime()
    alone.frames(1.0, 1.5)
    clock = VirtualClock(START)
    one, other = (Bench(tiny_model, jpeg, clock=clock) for _ in range(2))
    scheduler = Scheduler([one.stream, other.stream])
    one.prime()
    other.prime("You fly another drone.")
    for after_s in (1.0, 1.5):
        one.frame(after_s)
        other.frame(after_s, jpeg(7))
        scheduler.run_until_idle()
    torch.testing.assert_close(one.keys(), alone.keys(), rtol=0, atol=0)
    assert other.keys().shape != one.keys().shape or not torch.equal(other.keys(), one.keys())


def test_a_closed_stream_is_dropped(fleet: Callable[..., Fleet]) -> None:
    streams = fleet(WAITING, WAITING)
    waiting = streams.drones[0].generate(earliest_frame_s=START + 99.0)
    streams.drones[0].stream.close()
    streams.scheduler.run_until_idle()
    assert waiting.result.status == GenerateStatus.CANCELLED
    assert streams.scheduler.streams == (streams.drones[1].stream,)


# -- the model's own thread --------------------------------------------------------------------------------------------


def test_two_streams_are_served_while_frames_come_from_other_threads(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    clock = WallClock()
    failures: list[BaseException] = []
    model_thread = ModelThread(failures.append)
    streams = [Stream(tiny_model, FORM, clock, priority=priority) for priority in (FLYING, WAITING)]
    for stream in streams:
        model_thread.add(stream)
    model_thread.start()
    primed = [stream.submit_prime(PrimeRequest(PROMPT, TOOLS)) for stream in streams]
    assert all(ticket.wait(30.0) for ticket in primed)
    prompt_id = primed[0].result.prompt_id
    pictures = [jpeg(i) for i in range(8)]

    def camera() -> None:
        for i in range(60):
            for stream in streams:
                stream.submit_frame(CompressedImage(clock.now(), pictures[i % 8]))
            clock.sleep(0.01)

    feeding = threading.Thread(target=camera)
    feeding.start()
    soon = clock.now() + 0.1
    answers = [
        stream.submit_generate(GenerateGoal(prompt_id, "fly", earliest_frame_s=soon, deadline_s=30.0))
        for stream in streams
        for _ in range(2)
    ]
    asks = [stream.submit_ask(AskRequest("what?", max_new_tokens=3)) for stream in streams]
    never = streams[0].submit_generate(
        GenerateGoal(prompt_id, "fly", earliest_frame_s=clock.now() + 1e6, deadline_s=0.2)
    )
    tickets: list[Ticket[Any]] = [*answers, *asks, never]
    for ticket in tickets:
        assert ticket.wait(30.0)
    feeding.join()
    assert model_thread.close(10.0)
    assert failures == []
    assert all(answer.result.status == GenerateStatus.OK for answer in answers)
    assert all(ask.result.success or "no frame" in ask.result.message for ask in asks)
    assert never.result.status == GenerateStatus.NO_FRAME
    for stream in streams:
        assert stream.status().frames_received == 60
        assert stream.status().frames_broken == 0


def test_the_thread_ends_within_a_token_of_a_long_answer(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes]
) -> None:
    clock = WallClock()
    stream = Stream(tiny_model, FORM, clock)
    model_thread = ModelThread(lambda error: None)
    model_thread.add(stream)
    model_thread.start()
    primed = stream.submit_prime(PrimeRequest(PROMPT, TOOLS))
    assert primed.wait(30.0)
    stream.submit_frame(CompressedImage(clock.now(), jpeg(0)))
    writing = threading.Event()
    goal = GenerateGoal(primed.result.prompt_id, "fly", temperature=5.0, deadline_s=600.0)
    generation = stream.submit_generate(goal, lambda text: (writing.set(), time.sleep(0.02))[0])  # type: ignore[func-returns-value]
    assert writing.wait(30.0)
    assert model_thread.close(5.0)
    assert generation.done
    assert stream.submit_ask(AskRequest("what?")).done


def test_an_error_that_no_request_is_to_blame_for_ends_the_thread_and_everything_that_waits(
    tiny_model: QwenModel, jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = WallClock()
    streams = [Stream(tiny_model, FORM, clock) for _ in range(2)]
    failures: list[BaseException] = []
    failed = threading.Event()

    def on_failure(error: BaseException) -> None:
        failures.append(error)
        failed.set()

    model_thread = ModelThread(on_failure)
    for stream in streams:
        model_thread.add(stream)
    model_thread.start()
    primed = [stream.submit_prime(PrimeRequest(PROMPT, TOOLS)) for stream in streams]
    assert all(ticket.wait(30.0) for ticket in primed)
    waiting = streams[1].submit_generate(
        GenerateGoal("unknown", "fly", earliest_frame_s=clock.now() + 1e6, deadline_s=600.0)
    )
    assert waiting.wait(30.0)

    def lost(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(streams[0].memory._engine, "_forward", lost)
    waiting = streams[1].submit_generate(
        GenerateGoal(primed[1].result.prompt_id, "fly", earliest_frame_s=clock.now() + 1e6, deadline_s=600.0)
    )
    streams[0].submit_frame(CompressedImage(clock.now(), jpeg(0)))
    assert failed.wait(30.0)
    assert "illegal memory access" in str(failures[0])
    assert waiting.wait(5.0)
    assert "illegal memory access" in waiting.result.message
    assert streams[0].submit_reset().done
