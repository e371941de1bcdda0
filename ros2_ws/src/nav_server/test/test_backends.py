"""Backends on model servers, and falling back from one to the next."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav_agent import toolset
from nav_common.clock import WallClock, wait_until
from nav_common.data import (
    AskRequest,
    CompressedImage,
    GenerateGoal,
    GenerateStatus,
    PrimeRequest,
    WatchEvent,
    WatchRequest,
)
from nav_server.backends import calls
from nav_server.backends.factory import Backends, Callbacks, ModelServerClient
from nav_server.backends.fallback import Health
from nav_server.backends.openai_compatible import Endpoint
from nav_server.testing.asking import JPEG, PROMPT, WAIT_S, decide, done
from nav_server.testing.chat_server import ChatServer, chat_server, recorded, saying
from vlm_perception.guard import Guard, GuardSettings
from vlm_perception.stream import Stream, StreamSettings

TOOLS = json.loads(toolset.tools_json())


def model_server(name: str, url: str, frames: int = 4, planning: Endpoint | None = None) -> ModelServerClient:
    return ModelServerClient(
        Endpoint(name, url, frames=frames), planning, on_failure=traceback.print_exception
    )


@contextmanager
def opened(
    servers: Sequence[ModelServerClient], guard: Guard | None = None, **callbacks: Any
) -> Iterator[Any]:
    """A stream on these, primed, with one frame."""
    backends = Backends(servers, WallClock(), guard or Guard())
    made = backends.stream(callbacks=Callbacks(**callbacks))
    try:
        assert done(made.submit_prime(PrimeRequest(PROMPT, toolset.tools_json()))).success
        assert done(made.submit_frames([CompressedImage(1.0, JPEG)])).admitted == 1
        yield made
    finally:
        made.close()
        backends.close()


@contextmanager
def backend(
    url: str, *, frames: int = 4, planning: Endpoint | None = None, guard: Guard | None = None
) -> Iterator[Stream]:
    with opened([model_server("LM Studio", url, frames, planning)], guard) as made:
        yield made


# -- calls


def every_call() -> Iterator[tuple[str, dict[str, Any]]]:
    for tool in TOOLS:
        function = tool["function"]
        properties = function["parameters"]["properties"]
        yield function["name"], {name: schema["enum"][0] for name, schema in properties.items()}


@pytest.mark.parametrize(("name", "arguments"), list(every_call()))
def test_every_tool_is_read_however_it_is_written(name: str, arguments: dict[str, Any]) -> None:
    expected = json.dumps({"name": name, "arguments": arguments})
    assert calls.checked(name, json.dumps(arguments), TOOLS) == expected
    for text in (
        expected,
        f"<tool_call>\n{expected}\n</tool_call>",
        f"I think so.\n```json\n{expected}\n``` Good luck!",
        f'{{"thought": "{{"}} {expected}',
        json.dumps({"name": name, "parameters": arguments}),
    ):
        assert calls.in_text(text, TOOLS) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("explode", {}, "no tool 'explode'"),
        ("move_forward", {"distance_m": 400}, "distance_m is 400, must be one of"),
        ("move_forward", {"distance_m": -1}, "distance_m is -1"),
        ("move_forward", {"distance_m": True}, "distance_m is True"),
        ("move_forward", {"distance_m": None}, "distance_m is None"),
        ("move_forward", {"distance_m": [1]}, "distance_m is"),
        ("move_forward", {}, "wanted: distance_m"),
        ("move_forward", {"distance_m": 1, "speed": 99}, "wanted: distance_m"),
        ("move_forward", "not json", "no JSON"),
        ("move_forward", "[1]", "no object"),
        ("finish", {"reason": "bored"}, "reason is 'bored'"),
        (None, {}, "no tool None"),
    ],
)
def test_what_is_no_call_within_its_bounds_is_refused(name: Any, arguments: Any, problem: str) -> None:
    with pytest.raises(calls.ToolCallError, match=problem.replace("[", r"\[")):
        calls.checked(name, arguments, TOOLS)


@given(
    st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps)
)
def test_any_text_is_a_call_or_a_reason(text: str) -> None:
    with pytest.raises(calls.ToolCallError):
        calls.in_text(text, TOOLS)


def test_a_text_of_many_braces_is_read_in_time() -> None:
    with pytest.raises(calls.ToolCallError):
        calls.in_text("{" * 5000 + '"a":' * 100, TOOLS)


# -- one server


def test_lm_studios_own_tool_call_is_taken_and_the_pictures_and_words_were_sent() -> None:
    with chat_server((200, recorded("lm_studio_tool_call"))) as server, backend(server.url, frames=2) as made:
        done(made.submit_frames([CompressedImage(2.0, JPEG), CompressedImage(3.0, JPEG)]))
        result = decide(made, recent_calls=("hover(seconds=1) -> hovered 1 s",))
    assert result.status is GenerateStatus.OK
    assert json.loads(result.tool_call) == {"name": "turn_left", "arguments": {"angle_deg": 30}}
    assert (result.frame_stamp_s, result.tokens_in, result.tokens_sampled) == (3.0, 1263, 24)
    (request,) = server.requests
    assert request["model"] == "moondream2"  # the first that it lists
    assert request["tool_choice"] == "required"
    assert len(request["tools"]) == 9
    assert request["messages"][0] == {"role": "system", "content": PROMPT}
    kinds = [part["type"] for part in request["messages"][1]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    assert "hovered 1 s" in request["messages"][1]["content"][2]["text"]
    # The budget, and what a call's JSON takes beyond it, which the engine would have forced.
    assert request["max_tokens"] > 16 + 45


def test_ollamas_numbers_as_text_are_numbers() -> None:
    with chat_server((200, recorded("ollama_tool_call"))) as server, backend(server.url) as made:
        result = decide(made)
    assert json.loads(result.tool_call)["arguments"] == {"distance_m": 4}


@pytest.mark.parametrize("refusal", ["lm_studio_refusal", "ollama_refusal"])
def test_what_takes_no_tools_is_asked_for_json_and_then_for_text(refusal: str) -> None:
    answers = ((400, recorded(refusal)), (400, recorded(refusal)), (200, recorded("ollama_text")))
    with chat_server(*answers) as server, backend(server.url) as made:
        result = decide(made)
        assert json.loads(result.tool_call) == {"name": "hover", "arguments": {"seconds": 2}}
        again = decide(made, instruction="again")
    assert again.status is GenerateStatus.OK
    assert ["tools" in request for request in server.requests] == [True, False, False, False]
    assert ["response_format" in request for request in server.requests] == [False, True, False, False]
    schema = server.requests[1]["response_format"]["json_schema"]["schema"]
    assert len(schema["anyOf"]) == 9
    assert "move_forward" in server.requests[2]["messages"][0]["content"]


def test_the_request_may_allow_some_of_the_tools_only() -> None:
    with chat_server((200, recorded("lm_studio_tool_call"))) as server, backend(server.url) as made:
        ticket = made.submit_generate(
            GenerateGoal(done(made.submit_prime(PrimeRequest(PROMPT, toolset.tools_json()))).prompt_id, "go"),
            tools=[TOOLS[0]],
        )
        assert ticket.wait(WAIT_S)
    assert ticket.result.status is GenerateStatus.ERROR
    assert "no tool 'turn_left'" in ticket.result.message
    assert len(server.requests[0]["tools"]) == 1


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (200, saying("I would rather not."), "no tool call in the answer"),
        (200, {"choices": []}, "without a choice"),
        (500, {"error": "out of memory"}, "answers 500"),
        (401, {"error": {"message": "bad key"}}, "answers 401"),
        (404, {"error": {"message": "model not found"}}, "answers 404"),
    ],
)
def test_whatever_goes_wrong_ends_with_its_reason(status: int, answer: Any, said: str) -> None:
    with chat_server((status, answer)) as server, backend(server.url) as made:
        result = decide(made)
        assert result.status is GenerateStatus.ERROR
        assert said in result.message
        assert result.tool_call == ""
        assert made.guard.record().errors == 1


def test_a_server_that_is_too_slow_is_tried_again_and_then_is_a_hover() -> None:
    guard = Guard(GuardSettings(break_ms=200.0))
    with chat_server((200, recorded("lm_studio_tool_call"))) as server:
        server.hold = threading.Event()
        with backend(server.url, guard=guard) as made:
            result = decide(made)
        assert result.status is GenerateStatus.OK
        assert json.loads(result.tool_call)["name"] == "hover"
        assert "broken off twice" in result.message
        assert [request["max_tokens"] for request in server.requests] == [16 + 96, 8 + 96]


def test_a_decision_waits_for_its_frame_and_says_so_when_none_comes() -> None:
    with chat_server((200, recorded("lm_studio_tool_call"))) as server, backend(server.url) as made:
        late = decide(made, earliest_frame_s=5.0, deadline_s=0.1)
        assert late.status is GenerateStatus.NO_FRAME
        assert not server.requests
        prompt_id = done(made.submit_prime(PrimeRequest(PROMPT, toolset.tools_json()))).prompt_id
        ticket = made.submit_generate(GenerateGoal(prompt_id, "go", earliest_frame_s=5.0, deadline_s=20.0))
        assert not ticket.done
        made.submit_frames([CompressedImage(5.0, JPEG)])
        assert ticket.wait(WAIT_S)
        assert ticket.result.frame_stamp_s == 5.0


def test_questions_are_answered_in_words_and_by_choice() -> None:
    answers = (
        (200, recorded("lm_studio_text")),
        (200, saying("To the Left.")),
        (200, saying("left or right")),
    )
    with chat_server(*answers) as server, backend(server.url) as made:
        tickets = [
            made.submit_ask(AskRequest("what do you see?")),
            made.submit_ask(AskRequest("where?", ("left", "right"))),
            made.submit_ask(AskRequest("which side?", ("left", "right"))),
        ]
        for ticket in tickets:
            assert ticket.wait(WAIT_S)
        again = done(made.submit_ask(AskRequest("where?", ("left", "right"))))
    assert "red beacon" in tickets[0].result.answer
    assert tickets[1].result.answer == "left"
    assert not tickets[2].result.success
    assert (again.answer, len(server.requests)) == (
        "left",
        3,
    )  # the same question on the same frames is not sent again
    assert server.requests[0]["max_tokens"] == 24


def test_one_model_sees_and_another_plans() -> None:
    with (
        chat_server((200, recorded("lm_studio_text"))) as eyes,
        chat_server((200, recorded("ollama_tool_call"))) as head,
        backend(eyes.url, planning=Endpoint("DeepSeek", head.url, "deepseek-chat", "secret")) as made,
    ):
        result = decide(made)
    assert result.status is GenerateStatus.OK
    assert "fly to the red beacon" in eyes.requests[0]["messages"][1]["content"][1]["text"]
    planned = head.requests[0]["messages"][1]["content"]
    assert isinstance(planned, str)  # no picture goes to the planner
    assert "A red beacon stands to the left" in planned


def test_frames_that_are_none_are_refused_with_the_reason() -> None:
    with chat_server((200, saying(""))) as server, backend(server.url) as made:
        images = [
            CompressedImage(2.0, b"no picture"),
            CompressedImage(0.5, JPEG),
            CompressedImage(float("nan"), JPEG),
        ]
        taken = done(made.submit_frames(images))
        assert (taken.admitted, len(taken.problems)) == (0, 3)
        assert made.status().frames_broken == 3


@pytest.mark.parametrize("values", [{"url": "localhost:1234"}, {"frames": 0}, {"frames": 1000}])
def test_an_endpoint_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="LM Studio"):
        Endpoint(**{"name": "LM Studio", "url": "http://x/v1", **values})


def test_a_key_does_not_show() -> None:
    assert "secret" not in repr(Endpoint("cloud", "https://x/v1", api_key="secret"))


# -- falling back


@contextmanager
def two(
    first: ChatServer, second: ChatServer, retry_after_s: float = 60.0
) -> Iterator[tuple[Any, list[str]]]:
    said: list[str] = []
    servers = [model_server("LM Studio", first.url), model_server("Ollama", second.url)]
    for server in servers:
        server.health = Health(server.health.name, server.reachable, retry_after_s=retry_after_s)
    with opened(servers, on_fallback=said.append) as chain:
        yield chain, said


def test_a_backend_that_died_is_replaced_with_the_reason_and_not_in_mid_decision() -> None:
    with (
        chat_server((200, recorded("lm_studio_tool_call"))) as first,
        chat_server((200, recorded("ollama_tool_call"))) as second,
        two(first, second) as (chain, said),
    ):
        assert json.loads(decide(chain).tool_call)["name"] == "turn_left"
        first.stop()
        ended = decide(
            chain, instruction="again"
        )  # the decision that meets the dead server ends; the drone hovers
        assert ended.status is GenerateStatus.ERROR
        assert "LM Studio" in ended.message
        assert "cannot be reached" in ended.message
        assert not second.requests
        assert json.loads(decide(chain).tool_call)["name"] == "move_forward"
        assert chain.reason.startswith("Ollama: LM Studio at")
        assert said == [chain.reason]
        assert (chain.status().backend, chain.status().generations) == (chain.reason, 1)


def test_one_that_came_back_is_tried_again_after_a_while() -> None:
    with (
        chat_server((200, recorded("lm_studio_tool_call"))) as first,
        chat_server((200, recorded("ollama_tool_call"))) as second,
        two(first, second, retry_after_s=0.0) as (chain, said),
    ):
        port = first.port
        first.stop()
        assert decide(chain).status is GenerateStatus.ERROR
        assert json.loads(decide(chain).tool_call)["name"] == "move_forward"
        first.start(port)
        assert json.loads(decide(chain).tool_call)["name"] == "turn_left"
        assert said[-1].startswith("LM Studio")


def test_where_nobody_answers_every_reason_is_given() -> None:
    with (
        chat_server((200, recorded("lm_studio_tool_call"))) as first,
        chat_server((200, recorded("ollama_tool_call"))) as second,
        two(first, second) as (chain, _),
    ):
        first.stop()
        second.stop()
        results = [decide(chain) for _ in range(3)]
        assert all(result.status is GenerateStatus.ERROR for result in results)
        assert "LM Studio" in results[2].message
        assert "Ollama" in results[2].message


def test_a_request_may_be_cancelled_before_its_backend_answers() -> None:
    with (
        chat_server((200, recorded("lm_studio_tool_call"))) as first,
        chat_server((200, recorded("ollama_tool_call"))) as second,
        two(first, second) as (chain, _),
    ):
        first.hold = threading.Event()
        prompt_id = done(chain.submit_prime(PrimeRequest(PROMPT, toolset.tools_json()))).prompt_id
        ticket = chain.submit_generate(GenerateGoal(prompt_id, "go", deadline_s=20.0))
        assert first.asked.wait(WAIT_S)
        ticket.cancel()
        first.hold.set()
        assert ticket.wait(WAIT_S)
        assert ticket.result.status is GenerateStatus.CANCELLED
        assert not second.requests


def test_one_that_has_just_failed_is_not_waited_for_once_more() -> None:
    """Where a host is gone, each try takes a second of the two that a fallback may take."""
    probes: list[str] = []
    with chat_server((200, recorded("ollama_tool_call"))) as second:
        dead = model_server("LM Studio", "http://127.0.0.1:9/v1")
        dead.health = Health("LM Studio", lambda: bool(probes.append("probed")))
        with opened([dead, model_server("Ollama", second.url)]) as chain:
            assert decide(chain).status is GenerateStatus.ERROR
            assert decide(chain).status is GenerateStatus.OK
    assert not probes


def test_one_that_is_frozen_is_given_up_and_one_that_is_only_slow_is_not() -> None:
    reachable = [True]
    with (
        chat_server((200, recorded("lm_studio_tool_call"))) as first,
        chat_server((200, recorded("ollama_tool_call"))) as second,
    ):
        first.hold = threading.Event()
        slow = model_server("LM Studio", first.url)
        slow.health = Health("LM Studio", lambda: reachable[0])
        guard = Guard(GuardSettings(break_ms=100.0))
        with opened([slow, model_server("Ollama", second.url)], guard) as chain:
            for _ in range(2):
                assert json.loads(decide(chain, instruction="look").tool_call)["name"] == "hover"
            reachable[0] = False
            assert json.loads(decide(chain).tool_call)["name"] == "move_forward"
            assert "too slow twice" in chain.reason


def test_watches_stand_with_the_one_that_answers() -> None:
    events: list[WatchEvent] = []
    with (
        chat_server((200, saying("no"))) as first,
        chat_server((200, saying("Yes, there is."))) as second,
    ):
        servers = [model_server("LM Studio", first.url), model_server("Ollama", second.url)]
        came = threading.Event()

        def on_watch(event: WatchEvent) -> None:
            events.append(event)
            came.set()

        with opened(servers, on_watch=on_watch) as chain:
            chain.settings = StreamSettings(watch_share=1.0)
            assert chain.submit_watches(WatchRequest("me", hover_watches=("a person ahead?",))).success
            assert wait_until(WallClock(), lambda: len(first.requests) > 0, WAIT_S)
            assert not second.requests
            first.stop()
            assert decide(chain).status is GenerateStatus.ERROR
            decide(chain)  # the next one answers, and takes the watches over
            assert came.wait(WAIT_S)
    assert [(event.watch, event.holds, event.hover) for event in events] == [("a person ahead?", True, True)]


def test_a_watch_that_a_server_does_not_answer_stays() -> None:
    warnings: list[str] = []
    answers = ((500, {"error": "busy"}), (200, saying("perhaps")), (200, saying("yes")))
    events: list[WatchEvent] = []
    with (
        chat_server(*answers) as server,
        opened(
            [model_server("LM Studio", server.url)], on_watch=events.append, on_warning=warnings.append
        ) as made,
    ):
        made.settings = StreamSettings(watch_share=1.0)
        made.submit_watches(WatchRequest("me", ("a person ahead?",)))
        for number in range(2, 5):
            done(made.submit_frames([CompressedImage(float(number), JPEG)]))
            wait_until(WallClock(), lambda n=number: len(server.requests) >= n - 1, WAIT_S)  # type: ignore[misc]
        assert wait_until(WallClock(), lambda: bool(events), WAIT_S)
    assert len(warnings) == 2


def test_a_chain_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Backends([], WallClock(), Guard())
