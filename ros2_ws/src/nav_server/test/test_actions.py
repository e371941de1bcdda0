"""The four actions as a reading of the nine tools."""

import itertools

import pytest

from nav_agent import toolset
from nav_server.actions import Action, allowed_tools, coarse


@pytest.mark.parametrize("tool", toolset.TOOLS, ids=lambda tool: tool.name)
def test_every_call_has_an_action(tool):
    for values in itertools.product(*(argument.values for argument in tool.arguments)):
        arguments = dict(zip((argument.name for argument in tool.arguments), values, strict=True))
        assert coarse(tool.name, arguments) in Action


def test_what_is_none_of_the_four_is_to_hover():
    for tool, arguments in (
        ("finish", {"reason": "reached"}),
        ("climb", {"distance_m": 1}),
        ("hover", {"seconds": 1}),
    ):
        assert coarse(tool, arguments) is Action.HOVER


def test_pointing_to_the_side_is_a_turn_to_that_side():
    actions = [coarse("fly_towards", {"u": u, "v": 500, "distance_m": 4}) for u in toolset.POINT]
    # 15 degrees, half a turn of the client, are at 366 and 634.
    expected = [Action.TURN_LEFT] * 4 + [Action.MOVE_FORWARD] * 2 + [Action.TURN_RIGHT] * 4
    assert actions == expected


def test_a_request_allows_all_tools_or_those_it_names():
    assert allowed_tools(None) == ()
    assert [tool["function"]["name"] for tool in allowed_tools(["hover", "climb"])] == ["climb", "hover"]
