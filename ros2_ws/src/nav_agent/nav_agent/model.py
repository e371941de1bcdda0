"""StreamingVLMModel: the streaming memory as a model of smolagents, one tool call at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from smolagents import ChatMessage, MessageRole, Model, TokenUsage, Tool
from smolagents.models import ChatMessageToolCall, ChatMessageToolCallFunction

from nav_agent import toolset
from nav_agent.ports import Answer

Decide = Callable[[str, list[str]], Answer]
"""(instruction, earlier turns) -> the memory's answer. Waits, retries and gives up by the rules of the mission."""

# What smolagents' memory writes around the texts that are wanted here (memory.py, 1.26).
_TASK = "New task:\n"
_OBSERVATION = "Observation:\n"
_ERROR, _ERROR_END = "Error:\n", "\nNow let's retry"
_PARSING = "Error while parsing tool call from model output: "


class StreamingVLMModel(Model):
    """Each `generate` is one decision. The system prompt is primed once and what was seen is in the memory, so of the
    messages only the instruction and the last calls with their results are sent."""

    def __init__(self, decide: Decide) -> None:
        super().__init__(model_id="streaming-vlm")
        self._decide = decide
        self._numbers = itertools.count(1)

    def generate(
        self,
        messages: list[ChatMessage],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, str] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        **kwargs: Any,
    ) -> ChatMessage:
        """A message with exactly one tool call, or with none (and the text as content) where the answer has none.

        Without tools nothing is asked: that is the summary smolagents wants at its step limit.
        """
        if not tools_to_call_from:
            return ChatMessage(
                role=MessageRole.ASSISTANT, content="step limit reached", token_usage=TokenUsage(0, 0)
            )
        answer = self._decide(*words_of(messages))
        usage = TokenUsage(answer.tokens_in, answer.tokens_sampled + answer.tokens_forced)
        call = parse_call(answer.tool_call)
        if call is None:
            return ChatMessage(role=MessageRole.ASSISTANT, content=_short(answer.text), token_usage=usage)
        name, arguments = call
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content=toolset.call_line(name, arguments),
            tool_calls=[
                ChatMessageToolCall(
                    id=f"call_{next(self._numbers)}",
                    type="function",
                    function=ChatMessageToolCallFunction(name=name, arguments=arguments),
                )
            ],
            token_usage=usage,
        )

    def parse_tool_calls(self, message: ChatMessage) -> ChatMessage:
        """Called by smolagents for a message without a tool call: there is nothing to be found in its text."""
        raise ValueError("no tool call")


def parse_call(tool_call: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of `{"name": ..., "arguments": {...}}`, None if it is anything else."""
    try:
        call = json.loads(tool_call)
    except ValueError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return (call["name"], arguments) if isinstance(arguments, dict) else None


def words_of(messages: Sequence[ChatMessage]) -> tuple[str, list[str]]:
    """The instruction, and the calls with their results, one line each, from smolagents' messages."""
    instruction, call = "", ""
    turns: list[str] = []
    for message in messages:
        text = _text(message)
        if message.role == MessageRole.USER and text.startswith(_TASK):
            instruction = text.removeprefix(_TASK)
        elif message.role == MessageRole.ASSISTANT:
            call = text
        elif message.role == MessageRole.TOOL_RESPONSE:
            if text.startswith(_OBSERVATION):
                result = text.removeprefix(_OBSERVATION)
            else:
                error = text.partition(_ERROR)[2].partition(_ERROR_END)[0]
                result = f"error: {error.removeprefix(_PARSING)}"
            turns.append(toolset.turn_line(call, " ".join(result.split())))
    return instruction, turns


def _text(message: ChatMessage) -> str:
    content = message.content
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 40 else words[:37] + "..."
