"""The tools as smolagents sees them, made from the toolset, and the agent that calls them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from smolagents import LogLevel, Model, Tool, ToolCallingAgent
from smolagents.agents import EMPTY_PROMPT_TEMPLATES
from smolagents.utils import AgentToolCallError

from nav_agent import toolset

Perform = Callable[[str, dict[str, toolset.Value]], str]
"""(tool, valid arguments) -> the result line."""


class FlightTool(Tool):
    """One of the nine tools."""

    output_type = "string"
    skip_forward_signature_validation = True  # one class for all nine: the signature is the spec's

    def __init__(self, spec: toolset.ToolSpec, perform: Perform) -> None:
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

    def __init__(self, model: Model, perform: Perform, system_prompt: str) -> None:
        templates = deepcopy(EMPTY_PROMPT_TEMPLATES)
        templates["system_prompt"] = "{% raw %}" + system_prompt + "{% endraw %}"
        tools: list[Tool] = [FlightTool(spec, perform) for spec in toolset.TOOLS]
        super().__init__(tools, model, prompt_templates=templates, verbosity_level=LogLevel.OFF)
        del self.tools["final_answer"]

    def execute_tool_call(self, tool_name: str, arguments: dict[str, str] | str) -> Any:
        if not isinstance(arguments, dict):
            raise AgentToolCallError("arguments must be an object", self.logger)
        try:
            allowed, notes = toolset.clamp(tool_name, arguments)
        except toolset.ToolArgumentError as error:
            raise AgentToolCallError(str(error), self.logger) from None
        result = super().execute_tool_call(tool_name, allowed)
        return toolset.result_line(str(result), *notes)
