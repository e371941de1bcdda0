"""One step at a time keeps to smolagents' contract, and to what the mission and the model may see of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
from smolagents import ChatMessage, MessageRole, ToolCallingAgent

from nav_agent import toolset
from nav_agent.tool_calling import PilotAgent, Step, StreamingVLMModel, ToolCaller, ToolResult
from nav_common.data import GenerateResult, GenerateStatus

CLIMB = '{"name": "climb", "arguments": {"distance_m": 1}}'


def answer(tool_call: str) -> GenerateResult:
    return GenerateResult(
        GenerateStatus.OK,
        text=tool_call,
        tool_call=tool_call,
        tokens_in=30,
        tokens_sampled=4,
        tokens_forced=20,
    )


class Caller:
    """A ToolCaller whose tools answer with "done", and what was called."""

    def __init__(self, *answers: str) -> None:
        self.called: list[tuple[str, Mapping[str, toolset.Value]]] = []
        self._answers = iter(answers)
        self.caller = ToolCaller(lambda: answer(next(self._answers)), self._call, "You fly.")

    def _call(self, name: str, arguments: Mapping[str, toolset.Value]) -> ToolResult:
        self.called.append((name, dict(arguments)))
        return ToolResult("done", moved_m=2.0)


def test_one_tool_call_with_a_unique_id_and_content_and_usage() -> None:
    model = StreamingVLMModel(lambda: answer(CLIMB))
    task = [ChatMessage(MessageRole.USER, [{"type": "text", "text": "New task:\nup"}])]
    first, second = (model.generate(task) for _ in range(2))
    for message in (first, second):
        assert message.content == "climb(distance_m=1)"
        assert message.tool_calls is not None
        assert len(message.tool_calls) == 1
        assert message.token_usage is not None
        assert (message.token_usage.input_tokens, message.token_usage.output_tokens) == (30, 24)
    assert first.tool_calls[0].id != second.tool_calls[0].id


def test_it_is_a_tool_calling_agent_with_exactly_the_nine_tools_and_our_prompt() -> None:
    agent = PilotAgent(StreamingVLMModel(lambda: answer("")), lambda *_: "", "You fly. {{ not a template }}")
    assert isinstance(agent, ToolCallingAgent)
    assert list(agent.tools) == [tool.name for tool in toolset.TOOLS]
    assert agent.system_prompt == "You fly. {{ not a template }}"


def test_a_step_is_the_call_as_a_line_and_what_came_of_it() -> None:
    flown = Caller(CLIMB, '{"name": "move_forward", "arguments": {"distance_m": 100}}', CLIMB)
    steps = [flown.caller.step() for _ in range(3)]
    assert steps == [
        Step("climb(distance_m=1)", "climb", ToolResult("done", 2.0)),
        Step(
            "move_forward(distance_m=100)",
            "move_forward",
            ToolResult("done, distance_m 100 limited to 8", 2.0),
        ),
        Step("climb(distance_m=1)", "climb", ToolResult("done", 2.0)),
    ]
    climb = ("climb", {"distance_m": 1})
    assert flown.called == [climb, ("move_forward", {"distance_m": 8}), climb]


@pytest.mark.parametrize(
    ("text", "call", "line"),
    [
        ("rubbish", "rubbish", "error: no tool call"),
        ("", "", "error: no tool call"),
        ("two\n words " * 9, "two words two words two words two wor...", "error: no tool call"),
        (
            '{"name": "warp"}',
            "warp()",
            "error: no tool warp; tools: " + ", ".join(tool.name for tool in toolset.TOOLS),
        ),
        (
            '{"name": "final_answer", "arguments": {"answer": "done"}}',
            "final_answer(answer=done)",
            "error: no tool final_answer; tools: " + ", ".join(tool.name for tool in toolset.TOOLS),
        ),
        (
            '{"name": "climb", "arguments": {"distance_m": "high"}}',
            "climb(distance_m=high)",
            "error: distance_m high is no number: 1, 2",
        ),
    ],
)
def test_what_is_no_call_of_a_tool_is_a_step_with_the_reason(text: str, call: str, line: str) -> None:
    flown = Caller(text)
    assert flown.caller.step() == Step(call, "", ToolResult(line))
    assert not flown.called


def test_an_exception_comes_out_as_it_was_raised_and_is_no_observation() -> None:
    def fails(*_: object) -> ToolResult:
        raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError):
        ToolCaller(lambda: answer(CLIMB), fails, "You fly.").step()
    with pytest.raises(StopIteration):
        Caller().caller.step()


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"name": 5}', '{"name": "x", "arguments": 5}', "{", "\x00", '{"name": null}'],
)
def test_what_is_no_call_is_none(text: str) -> None:
    assert toolset.parse_call(text) is None


def test_a_call_without_arguments_is_one() -> None:
    assert toolset.parse_call('{"name": "look_around"}') == ("look_around", {})


def test_the_core_needs_neither_torch_nor_ros() -> None:
    code = (
        "import sys, nav_agent.agent, nav_agent.odometry_filter; "
        "print([m for m in ('torch', 'transformers', 'rclpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
