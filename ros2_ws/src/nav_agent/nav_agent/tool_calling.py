"""smolagents, all of it: a ToolCallingAgent that is taken one step at a time.

It asks the model and calls the tool that the model chose. What it would add (a loop, a memory of messages, a tool
`final_answer`) is not used: the mission keeps its own record, and no text is parsed back.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from smolagents import (
    ActionStep,
    ChatMessage,
    LogLevel,
    MessageRole,
    Model,
    Timing,
    TokenUsage,
    Tool,
    ToolCallingAgent,
)
from smolagents.agents import EMPTY_PROMPT_TEMPLATES
from smolagents.models import ChatMessageToolCall, ChatMessageToolCallFunction
from smolagents.utils import (
    AgentGenerationError,
    AgentParsingError,
    AgentToolCallError,
    AgentToolExecutionError,
)

from nav_agent import toolset
from nav_common import result_lines
from nav_common.data import GenerateResult

_SHOWN_TEXT = 40  # characters of an answer without a tool call, in the record of calls


@dataclass(frozen=True)
class ToolResult:
    """What a tool call came to: its result line, metres moved, radians turned (absolute)."""

    line: str
    moved_m: float = 0.0
    turned_rad: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step: the call as a line (or the answer's text where it is none), and its result.

    `tool` is "" when no tool could be called; the result's line then says why.
    """

    call: str
    tool: str
    result: ToolResult


Decide = Callable[[], GenerateResult]
"""The memory's answer. Waits, retries and gives up by the rules of the mission."""
CallTool = Callable[[str, Mapping[str, toolset.Value]], ToolResult]
"""(tool, valid arguments) -> what came of it."""


class ToolCaller:
    """Takes steps: ask `decide`, then `call_tool` with arguments limited to the allowed values."""

    def __init__(self, decide: Decide, call_tool: CallTool, system_prompt: str) -> None:
        self._model = StreamingVLMModel(decide)
        self._agent = PilotAgent(self._model, self._call, system_prompt)
        self._call_tool = call_tool
        self._result = ToolResult("")
        self._numbers = itertools.count(1)

    def step(self) -> Step:
        """One decision and its tool.

        Raises:
            Exception: whatever `decide` or `call_tool` raises.
        """
        now = time.time()
        step = ActionStep(step_number=next(self._numbers), timing=Timing(start_time=now))
        try:
            self._agent.step(step)
        except AgentParsingError:
            return Step(self._model.call, "", ToolResult(f"error: {result_lines.NO_TOOL_CALL}"))
        except AgentToolCallError as refused:
            return Step(self._model.call, "", ToolResult(f"error: {refused.message}"))
        except (AgentGenerationError, AgentToolExecutionError) as wrapped:
            raise wrapped.__cause__ or wrapped from None
        return Step(self._model.call, self._model.tool, self._result)

    def _call(self, name: str, arguments: dict[str, toolset.Value], notes: list[str]) -> str:
        result = self._call_tool(name, arguments)
        line = result_lines.result_line(result.line, *notes)
        self._result = ToolResult(line, result.moved_m, result.turned_rad)
        return line


class StreamingVLMModel(Model):
    """The streaming memory as a model of smolagents: each `generate` is one decision with at most one tool call.

    The messages are not sent: the system prompt is primed once, what was seen is in the memory, and `decide` adds the
    instruction and the last calls.
    """

    def __init__(self, decide: Decide) -> None:
        super().__init__(model_id="streaming-vlm")
        self._decide = decide
        self._numbers = itertools.count(1)
        self.call = ""
        """The last answer as one line."""
        self.tool = ""
        """The tool that it names, "" where it is no call."""

    def generate(
        self,
        messages: list[ChatMessage],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, str] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        **kwargs: Any,
    ) -> ChatMessage:
        """A message with exactly one tool call, or with none (and the text as content) where the answer has none."""
        self.call = self.tool = ""
        answer = self._decide()
        usage = TokenUsage(answer.tokens_in, answer.tokens_sampled + answer.tokens_forced)
        call = toolset.parse_call(answer.tool_call)
        if call is None:
            self.call = _short(answer.text)
            return ChatMessage(role=MessageRole.ASSISTANT, content=self.call, token_usage=usage)
        self.tool, arguments = call
        self.call = toolset.call_line(self.tool, arguments)
        function = ChatMessageToolCallFunction(name=self.tool, arguments=arguments)
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content=self.call,
            tool_calls=[
                ChatMessageToolCall(id=f"call_{next(self._numbers)}", type="function", function=function)
            ],
            token_usage=usage,
        )

    def parse_tool_calls(self, message: ChatMessage) -> ChatMessage:
        """Called by smolagents for a message without a tool call: there is nothing to be found in its text."""
        raise ValueError(result_lines.NO_TOOL_CALL)


class FlightTool(Tool):
    """One of the nine tools. Called with `notes` on arguments that were limited, which are no arguments of the tool."""

    output_type = "string"
    skip_forward_signature_validation = True  # one class for all nine: the signature is the spec's

    def __init__(
        self, spec: toolset.ToolSpec, perform: Callable[[str, dict[str, toolset.Value]], str]
    ) -> None:
        self.name = spec.name
        self.description = spec.description
        self.inputs = {
            argument.name: {
                "type": "integer" if argument.is_number else "string",
                "description": argument.description,
                "enum": list(argument.values),
            }
            for argument in spec.arguments
        }
        self._perform = perform
        super().__init__()

    def forward(self, **arguments: toolset.Value) -> str:
        return self._perform(self.name, arguments)


class PilotAgent(ToolCallingAgent):
    """A ToolCallingAgent with the nine tools and no other, which limits arguments before smolagents checks their types.

    smolagents adds a tool `final_answer` of its own; here `finish` ends a mission.
    """

    def __init__(
        self,
        model: Model,
        perform: Callable[[str, dict[str, toolset.Value], list[str]], str],
        system_prompt: str,
    ) -> None:
        templates = deepcopy(EMPTY_PROMPT_TEMPLATES)
        templates["system_prompt"] = "{% raw %}" + system_prompt + "{% endraw %}"
        self._notes: list[str] = []
        tools: list[Tool] = [
            FlightTool(spec, lambda name, arguments: perform(name, arguments, self._notes))
            for spec in toolset.TOOLS
        ]
        super().__init__(tools, model, prompt_templates=templates, verbosity_level=LogLevel.OFF)
        del self.tools["final_answer"]

    def execute_tool_call(self, tool_name: str, arguments: dict[str, str] | str) -> Any:
        """As smolagents', with arguments moved to allowed values.

        Raises:
            AgentToolCallError: there is no such tool, or no call can be made of the arguments.
            AgentToolExecutionError: the tool raised an Exception, which is its cause.
        """
        if not isinstance(arguments, dict):
            raise AgentToolCallError("arguments must be an object", self.logger)
        try:
            allowed, self._notes = toolset.clamp(tool_name, arguments)
        except toolset.ToolArgumentError as error:
            raise AgentToolCallError(str(error), self.logger) from None
        return super().execute_tool_call(tool_name, allowed)


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SHOWN_TEXT else words[: _SHOWN_TEXT - 3] + "..."
