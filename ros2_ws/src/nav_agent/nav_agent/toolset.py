"""The nine tools as data: names, bounds, schemas, and the fixed form of a call and of an ask's text.

Whatever is trained to fly is trained on exactly these lines, so a change here means training again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nav_common.data import FinishReason

Value = int | str


@dataclass(frozen=True)
class Argument:
    """One argument: the values it may have, in ascending order where they are numbers."""

    name: str
    values: tuple[Value, ...]
    description: str = ""

    @property
    def is_number(self) -> bool:
        return isinstance(self.values[0], int)


@dataclass(frozen=True)
class ToolSpec:
    """One tool as it is described to the model."""

    name: str
    description: str
    arguments: tuple[Argument, ...] = ()


class ToolArgumentError(ValueError):
    """Arguments that no tool call can be made of; the text is the model's observation."""


DISTANCE_M = (1, 2, 4, 8)
ANGLE_DEG = (10, 20, 30, 45, 90)
VERTICAL_M = (1, 2)
HOVER_S = (1, 2, 5)
# Cells of a 10 x 10 grid over the picture, in thousandths of its width and height: as fine as a small model points.
POINT = tuple(range(50, 1000, 100))
REASONS = tuple(reason.value for reason in FinishReason)

_DISTANCE = Argument("distance_m", DISTANCE_M)
_ANGLE = Argument("angle_deg", ANGLE_DEG)
_VERTICAL = Argument("distance_m", VERTICAL_M)

TOOLS: tuple[ToolSpec, ...] = (
    ToolSpec("move_forward", "Fly straight ahead.", (_DISTANCE,)),
    ToolSpec("turn_left", "Turn left on the spot.", (_ANGLE,)),
    ToolSpec("turn_right", "Turn right on the spot.", (_ANGLE,)),
    ToolSpec("climb", "Go up.", (_VERTICAL,)),
    ToolSpec("descend", "Go down.", (_VERTICAL,)),
    ToolSpec("hover", "Wait in place.", (Argument("seconds", HOVER_S),)),
    ToolSpec("look_around", "Turn once all around, looking in four directions."),
    ToolSpec(
        "fly_towards",
        "Fly towards a point of the newest picture.",
        (
            Argument("u", POINT, "from left, thousandths of the width"),
            Argument("v", POINT, "from top, thousandths of the height"),
            _DISTANCE,
        ),
    ),
    ToolSpec("finish", "End the mission.", (Argument("reason", REASONS),)),
)
BY_NAME: Mapping[str, ToolSpec] = {tool.name: tool for tool in TOOLS}


def tool_schemas() -> list[dict[str, Any]]:
    """The tools in OpenAI's function form, arguments enumerated and all required."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": {
                    "type": "object",
                    "properties": {argument.name: _schema(argument) for argument in tool.arguments},
                    "required": [argument.name for argument in tool.arguments],
                },
            },
        }
        for tool in TOOLS
    ]


def tools_json() -> str:
    """`tool_schemas` as the JSON text that Prime carries."""
    return json.dumps(tool_schemas())


def _schema(argument: Argument) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "integer" if argument.is_number else "string",
        "enum": list(argument.values),
    }
    if argument.description:
        schema["description"] = argument.description
    return schema


def clamp(name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Value], list[str]]:
    """The arguments moved to the nearest allowed values, and a note for each one that had to be moved.

    A tie goes to the smaller value. Numbers may come as floats or as text that reads as a number.

    Raises:
        ToolArgumentError: unknown tool, missing or unknown argument, or a value that is nowhere near an allowed one
            (text for a number, a number that is not finite, a reason that does not exist).
    """
    tool = BY_NAME.get(name)
    if tool is None:
        raise ToolArgumentError(f"no tool {_shown(name)}; tools: {', '.join(BY_NAME)}")
    known = {argument.name for argument in tool.arguments}
    for given in arguments:
        if given not in known:
            raise ToolArgumentError(
                f"{name} takes no {_shown(given)}; arguments: {', '.join(known) or 'none'}"
            )
    clamped: dict[str, Value] = {}
    notes: list[str] = []
    for argument in tool.arguments:
        if argument.name not in arguments:
            raise ToolArgumentError(f"{name} needs {argument.name}: {_allowed(argument)}")
        value = arguments[argument.name]
        if not argument.is_number:
            if value not in argument.values:
                raise ToolArgumentError(f"{argument.name} {_shown(value)} unknown: {_allowed(argument)}")
            clamped[argument.name] = str(value)
            continue
        number = _number(value)
        if number is None:
            raise ToolArgumentError(f"{argument.name} {_shown(value)} is no number: {_allowed(argument)}")
        nearest = min(argument.values, key=lambda allowed: abs(int(allowed) - number))
        clamped[argument.name] = nearest
        if number != nearest:
            notes.append(f"{argument.name} {_shown(value)} limited to {nearest}")
    return clamped, notes


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any, most: int = 24) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _allowed(argument: Argument) -> str:
    return ", ".join(map(str, argument.values))


def call_line(name: str, arguments: Mapping[str, Any]) -> str:
    """A call in one line, arguments in the schema's order: `turn_left(angle_deg=30)`, `look_around()`."""
    tool = BY_NAME.get(name)
    order = [argument.name for argument in tool.arguments] if tool else []
    names = [*(key for key in order if key in arguments), *(key for key in arguments if key not in order)]
    return f"{_shown(name)}({', '.join(f'{_shown(key)}={_shown(arguments[key])}' for key in names)})"


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


# An ask's text.

RECENT_CALLS = 4
MAX_ASK_TOKENS = 150
MAX_INSTRUCTION_TOKENS = 100


def recall_line(call: str, result: str) -> str:
    """A call with its result, as an ask recalls it."""
    return f"{call} -> {result}"


def recent_calls(instruction: str, lines: Iterable[str], limit: int = RECENT_CALLS) -> tuple[str, ...]:
    """The last `limit` recall lines, oldest first, fewer where instruction and lines would exceed MAX_ASK_TOKENS."""
    kept: list[str] = []
    left = MAX_ASK_TOKENS - estimate_tokens(instruction)
    for line in reversed(list(lines)[-limit:] if limit > 0 else []):
        left -= estimate_tokens(line) + 1  # the line feed
        if left < 0:
            break
        kept.insert(0, line)
    return tuple(kept)


def estimate_tokens(text: str) -> int:
    """About how many tokens Qwen's tokenizer makes of the text, rather more than fewer: words of up to seven letters,
    digits and signs count one each. The agent has no tokenizer of its own: the model may be anybody's."""
    return len(re.findall(r"[A-Za-z]{1,7}|\d|[^\sA-Za-z\d]", text))
