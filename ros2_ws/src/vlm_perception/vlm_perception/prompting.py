"""How Qwen2.5-VL wants its prompt written: system text with tools, the growing user turn, asks and tool calls.

The stream is one conversation that stays open: the system turn (primed once, kept in the sink), then a user turn that
grows by frames, and for each ask a tail that ends the user turn and opens the assistant's. The tail is cut off again
afterwards. Hence an ask is exactly what the model was trained on: pictures, then the words, in one user turn.

    prime_text    <|im_start|>system ... <|im_end|> <|im_start|>user
    frames        [tag] <|vision_start|> ... <|vision_end|>
    decision_text instruction and recent turns <|im_end|> <|im_start|>assistant <tool_call>
    call_text     {"name": "move_forward", "arguments": {"distance_m": 4}}

Qwen2.5-VL's own chat template has no tool section; the one here is Qwen2.5's (the text model it is made from), word
for word. Everything that comes from outside (prompt, instruction, results, questions) goes through `clean`: words can
never become control tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Tool = Mapping[str, Any]
"""A function schema in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}."""

TOOL_CALL_OPEN = "<tool_call>\n"
SYSTEM_OPEN = "<|im_start|>system\n"
USER_OPEN = "<|im_start|>user\n"
TURN_CLOSE = "<|im_end|>\n"
ASSISTANT_OPEN = "<|im_start|>assistant\n"

# Qwen2.5-Instruct, tokenizer_config.json, chat_template.
_TOOLS_HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_FOOT = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

# Every control token of the family reads <|name|>, <tool_call> or </tool_call>.
_CONTROL_TOKEN = re.compile(r"<(?=\||/?tool_call>)|\|(?=>)")
# Control characters except line feed, and lone surrogates (which no tokenizer can encode).
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")


def clean(text: str) -> str:
    """The text with nothing left in it that a tokenizer could take for a control token.

    "<|im_end|>" becomes "< |im_end| >"; tabs and other control characters become blanks. Clean text stays as it is.
    """
    return _CONTROL_TOKEN.sub(r"\g<0> ", _UNPRINTABLE.sub(" ", text))


def prime_text(system_prompt: str, tools: Sequence[Tool] = ()) -> str:
    """What the stream begins with: the system turn, and the user turn opened for the frames."""
    section = ""
    if tools:
        section = _TOOLS_HEAD + "".join("\n" + clean(signature(tool)) for tool in tools) + _TOOLS_FOOT
    return SYSTEM_OPEN + clean(system_prompt).strip() + section + TURN_CLOSE + USER_OPEN


def prompt_id(text: str) -> str:
    """The name of a primed prompt, by its `prime_text`: the same for whoever primes the same."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def signature(tool: Tool) -> str:
    """One tool as it stands in the prompt: the function's schema in as few tokens as say the same.

    Separators without blanks, no wrapper, no "required" where all is, no "type" beside an "enum", and a long evenly
    spaced enumeration as its range (the grammar keeps to the values). Nine tools with nineteen enumerations of the
    drone are 350 tokens of the family's tokenizer instead of 680.
    """
    function = dict(tool["function"])
    schema = dict(function.get("parameters", {}))
    properties = {name: _short(argument) for name, argument in schema.get("properties", {}).items()}
    if set(schema.get("required", ())) == set(properties):
        schema.pop("required", None)
    function["parameters"] = {**schema, "properties": properties}
    return json.dumps(function, ensure_ascii=False, separators=(",", ":"))


def _short(argument: Mapping[str, Any]) -> dict[str, Any]:
    short = dict(argument)
    values = short.get("enum")
    if not values:
        return short
    if len(values) > 6 and all(type(value) is int for value in values):
        steps = {later - earlier for earlier, later in itertools.pairwise(values)}
        if len(steps) == 1:
            del short["enum"]
            return {**short, "type": "integer", "minimum": values[0], "maximum": values[-1]}
    short.pop("type", None)
    return short


def decision_text(instruction: str, recent_calls: Sequence[str] = ()) -> str:
    """The tail that asks for one tool call: instruction, recent turns one a line (oldest first), and the call begun."""
    lines = [" ".join(clean(line).split()) for line in (instruction, *recent_calls)]
    return "\n".join(line for line in lines if line) + TURN_CLOSE + ASSISTANT_OPEN + TOOL_CALL_OPEN


def question_text(question: str) -> str:
    """The tail that asks a plain question, to be answered in words."""
    return clean(question).strip() + TURN_CLOSE + ASSISTANT_OPEN


WAY_FREE_QUESTION = "is the way ahead free?"
"""Whether the drone could fly a few metres straight on; yes or no, of the newest frame."""
YES_NO = ("yes", "no")


def sees_question(reference: str) -> str:
    """Whether the newest frame shows something ("the red car"); yes or no."""
    return f"do you see {clean(reference).strip()}?"


RECALLED_LABEL = "recalled:\n"
"""The text before a frame of long ago that is in the memory once more. Where it was taken changes with the drone's own
place, so that stands in each ask: see `whereabouts`."""


def whereabouts(reference: str, distance_m: float, bearing_deg: float) -> str:
    """The line of an ask that says where the frame was taken that shows something ("the red car").

    distance_m, bearing_deg: of that place from where the drone is now; the bearing from straight ahead,
    counter-clockwise. In steps that a turn can follow and a small model can learn: 15 degrees, and 5 m from 10 m on.
    """
    if distance_m < NEAR_M:
        return f"{clean(reference).strip()} was seen from here"
    angle = 15 * round(math.remainder(bearing_deg, 360) / 15)
    side = "right" if -180 < angle < 0 else "left"
    direction = f"{abs(angle)} deg to the {side}" if angle % 360 else "straight ahead"
    metres = round(distance_m) if distance_m < 10 else 5 * round(distance_m / 5)
    return f"{clean(reference).strip()} was seen {direction}, {metres} m from here"


NEAR_M = 1.5
"""Closer to the place than this, its bearing says nothing."""


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A tool call as the model writes it after `decision_text`, without the closing tag: what a trainer teaches."""
    return json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)


def hover_call(tools: Sequence[Tool]) -> str:
    """The call of the tool `hover` with the first value of each argument, as `call_text`; "" where there is no such
    tool, or one with arguments that are not enumerated."""
    for tool in tools:
        function = tool["function"]
        if function["name"] == "hover":
            properties = function.get("parameters", {}).get("properties", {})
            values = {name: argument.get("enum", []) for name, argument in properties.items()}
            if all(values.values()):
                return call_text("hover", {name: allowed[0] for name, allowed in values.items()})
    return ""


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """JSON schema of exactly one call of one of the tools, as `call_text` writes it; for the engine's `json_grammar`.

    Optional arguments do not exist: all are required, in the order in which the tool lists them.
    """
    return {"anyOf": [_one_call(tool["function"]) for tool in tools]}


def _one_call(function: Mapping[str, Any]) -> dict[str, Any]:
    properties = function.get("parameters", {}).get("properties", {})
    arguments = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def parse_tools(tools_json: str) -> list[dict[str, Any]]:
    """The tools from their JSON list. ValueError names what is wrong with which entry."""
    try:
        tools = json.loads(tools_json) if tools_json.strip() else []
    except json.JSONDecodeError as error:
        raise ValueError(f"tools are not JSON: {error}; send a list of function schemas") from None
    if not isinstance(tools, list):
        raise ValueError(f"tools are a {type(tools).__name__}; send a JSON list of function schemas")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(
                f'tool {index} has no function name; expected {{"type": "function", "function": {{"name": ...}}}}'
            )
        if name in names:
            raise ValueError(f"tool {index} is named {name!r} like an earlier one; names must differ")
        names.add(name)
        parameters = function.get("parameters", {}) if function else {}
        if not isinstance(parameters, dict) or not isinstance(parameters.get("properties", {}), dict):
            raise ValueError(
                f"tool {name!r} has no usable parameters; expected an object schema with properties"
            )
    return tools
