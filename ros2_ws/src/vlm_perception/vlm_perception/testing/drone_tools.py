"""The drone's nine tools as an agent would send them, for tests that do not know the agent."""

from __future__ import annotations

from typing import Any


def _tool(name: str, description: str, **arguments: list[Any]) -> dict[str, Any]:
    properties = {
        key: {"type": "string" if isinstance(values[0], str) else "integer", "enum": values}
        for key, values in arguments.items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


_ANGLES = [10, 20, 30, 45, 90]
_THOUSANDTHS = list(range(50, 1000, 100))

DRONE_TOOLS = [
    _tool("move_forward", "Fly forward.", distance_m=[1, 2, 4, 8]),
    _tool("turn_left", "Turn left on the spot.", angle_deg=_ANGLES),
    _tool("turn_right", "Turn right on the spot.", angle_deg=_ANGLES),
    _tool("climb", "Fly up.", distance_m=[1, 2]),
    _tool("descend", "Fly down.", distance_m=[1, 2]),
    _tool("hover", "Stay in place.", seconds=[1, 2, 5]),
    _tool("look_around", "Turn once around."),
    _tool(
        "fly_towards",
        "Fly towards a point in the picture.",
        u=_THOUSANDTHS,
        v=_THOUSANDTHS,
        distance_m=[1, 2, 4, 8],
    ),
    _tool("finish", "End the mission.", reason=["reached", "not_found", "unsafe"]),
]
