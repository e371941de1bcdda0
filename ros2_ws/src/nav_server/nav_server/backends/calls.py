"""Tool calls in the answers of servers that bind them more or less: read, checked against the tools offered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm_perception import prompting


class ToolCallError(ValueError):
    """An answer that holds no call of one of the tools; says what is wrong with it."""


def checked(name: Any, arguments: Any, tools: Sequence[prompting.Tool]) -> str:
    """A call as `prompting.call_text`, if it is one of the tools within their bounds.

    arguments: as a mapping, or as the JSON that OpenAI's API has there. A number that came as text is taken as the
    number that it says: small models do that.

    Raises:
        ToolCallError: another name, other arguments, or a value that is not offered.
    """
    offered = {tool["function"]["name"]: tool["function"] for tool in tools}
    if name not in offered:
        raise ToolCallError(f"no tool {name!r}; offered are {', '.join(offered)}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise ToolCallError(f"{name}: its arguments are no JSON: {arguments!r:.80}") from None
    if not isinstance(arguments, Mapping):
        raise ToolCallError(f"{name}: its arguments are no object: {arguments!r:.80}")
    properties = offered[name].get("parameters", {}).get("properties", {})
    if set(arguments) != set(properties):
        wanted = ", ".join(properties) or "none"
        raise ToolCallError(f"{name}: arguments {sorted(map(str, arguments))}, wanted: {wanted}")
    values = {key: _value(name, key, arguments[key], schema) for key, schema in properties.items()}
    return prompting.call_text(str(name), values)


def _value(tool: str, name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    allowed = schema.get("enum")
    if allowed is None:
        raise ToolCallError(f"{tool}: argument {name} has no enumerated values, so nothing bounds it")
    for each in allowed:  # by type too: True is no 1
        if type(value) is type(each) and value == each:
            return each
        if isinstance(value, str | float) and not isinstance(each, str) and _says(value, each):
            return each
    raise ToolCallError(f"{tool}: {name} is {value!r:.40}, must be one of {', '.join(map(str, allowed))}")


def _says(value: str | float, number: float) -> bool:
    try:
        return float(value) == number
    except ValueError:
        return False


def in_text(text: str, tools: Sequence[prompting.Tool]) -> str:
    """The first call in a text, wherever it stands: bare, fenced, in tags, with words around it.

    Raises:
        ToolCallError: there is none; of the first JSON object that looks like a call it says what is wrong.
    """
    problem = ""
    for found in _objects(text):
        name, arguments = found.get("name"), found.get("arguments", found.get("parameters", {}))
        if not isinstance(name, str):
            continue
        try:
            return checked(name, arguments, tools)
        except ToolCallError as error:
            problem = problem or str(error)
    raise ToolCallError(problem or f"no tool call in the answer {text!r:.120}")


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Every JSON object that begins at a brace, outer ones first."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if isinstance(value, dict):
                yield value
        at = text.find("{", end)
