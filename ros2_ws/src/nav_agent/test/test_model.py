"""StreamingVLMModel and the agent keep to smolagents' contract."""

from __future__ import annotations

import subprocess
import sys

import pytest
from smolagents import ActionStep, ChatMessage, MessageRole, ToolCallingAgent

from nav_agent import toolset
from nav_agent.model import StreamingVLMModel, parse_call, words_of
from nav_agent.ports import Answer, AnswerStatus
from nav_agent.tools import PilotAgent


def answer(tool_call: str) -> Answer:
    return Answer(
        AnswerStatus.OK,
        text=tool_call,
        tool_call=tool_call,
        tokens_in=30,
        tokens_sampled=4,
        tokens_forced=20,
    )


class Flown:
    """An agent whose tools answer with "done", and what it was asked and told."""

    def __init__(self, *answers: str) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.performed: list[tuple[str, dict[str, toolset.Value]]] = []
        self._answers = iter(answers)
        self.model = StreamingVLMModel(self._decide)
        self.agent = PilotAgent(self.model, self._perform, "You fly. {{ not a template }}")

    def _decide(self, instruction: str, turns: list[str]) -> Answer:
        self.asked.append((instruction, turns))
        return answer(next(self._answers))

    def _perform(self, name: str, arguments: dict[str, toolset.Value]) -> str:
        self.performed.append((name, arguments))
        return "done"


def test_one_tool_call_with_a_unique_id_and_content_and_usage() -> None:
    flown = Flown(*['{"name": "climb", "arguments": {"distance_m": 1}}'] * 2)
    task = [ChatMessage(MessageRole.USER, [{"type": "text", "text": "New task:\nup"}])]
    first, second = (flown.model.generate(task, tools_to_call_from=[object()]) for _ in range(2))  # type: ignore[list-item]
    for message in (first, second):
        assert isinstance(message.content, str)
        assert message.tool_calls is not None
        assert len(message.tool_calls) == 1
        assert message.token_usage is not None
        assert (message.token_usage.input_tokens, message.token_usage.output_tokens) == (30, 24)
    assert first.tool_calls[0].id != second.tool_calls[0].id  # type: ignore[index]


def test_the_question_at_the_step_limit_is_not_asked() -> None:
    flown = Flown()
    message = flown.model.generate([ChatMessage(MessageRole.USER, "summarise")])
    assert flown.asked == []
    assert message.token_usage is not None
    assert message.token_usage.total_tokens == 0


def test_it_is_a_tool_calling_agent_with_exactly_the_nine_tools_and_our_prompt() -> None:
    agent = Flown().agent
    assert isinstance(agent, ToolCallingAgent)
    assert list(agent.tools) == [tool.name for tool in toolset.TOOLS]
    assert agent.system_prompt == "You fly. {{ not a template }}"


def test_what_was_called_and_came_of_it_is_asked_along() -> None:
    flown = Flown(
        '{"name": "move_forward", "arguments": {"distance_m": 100}}',
        "rubbish",
        '{"name": "warp", "arguments": {}}',
        '{"name": "finish", "arguments": {"reason": "reached"}}',
    )
    steps = [s for s in flown.agent.run("to the tree", stream=True, max_steps=4) if isinstance(s, ActionStep)]
    assert flown.asked[0] == ("to the tree", [])
    assert flown.asked[3] == (
        "to the tree",
        [
            "move_forward(distance_m=100) -> done, distance_m 100 limited to 8",
            "rubbish -> error: no tool call",
            "warp() -> error: no tool warp; tools: " + ", ".join(tool.name for tool in toolset.TOOLS),
        ],
    )
    assert flown.performed == [("move_forward", {"distance_m": 8}), ("finish", {"reason": "reached"})]
    assert steps[0].token_usage is not None


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"name": 5}', '{"name": "x", "arguments": 5}', "{", "\x00", '{"name": null}'],
)
def test_what_is_no_call_is_none(text: str) -> None:
    assert parse_call(text) is None


def test_a_call_without_arguments_is_one() -> None:
    assert parse_call('{"name": "look_around"}') == ("look_around", {})


def test_words_of_no_messages_are_none() -> None:
    assert words_of([]) == ("", [])


def test_the_core_needs_neither_torch_nor_ros() -> None:
    code = (
        "import sys, nav_agent.agent, nav_agent.tools; "
        "print([m for m in ('torch', 'transformers', 'rclpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
