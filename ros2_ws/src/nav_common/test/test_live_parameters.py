"""Parameters that change in flight: validated in one callback, handed over whole in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from nav_common.ros import LiveParameters, declare
from nav_common.testing import unique_domain_id


@dataclass(frozen=True)
class Limits:
    low: float
    high: float
    mode: str

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, must not be above high, {self.high}")


def make(values: Mapping[str, Any]) -> Limits:
    return Limits(**values)


@pytest.fixture
def node() -> Iterator[Node]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=unique_domain_id())
    node = rclpy.create_node("probe", context=context)
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def live(node: Node) -> LiveParameters[Limits]:
    live = LiveParameters(node, make)
    live.declare("low", 1.0, "lower limit, m/s", minimum=0.0, maximum=5.0)
    live.declare("high", 2.0, "upper limit, m/s", minimum=0.0, maximum=5.0)
    live.declare("mode", "fast", "how", choices=("fast", "slow"))
    declare(node, "host", "localhost", "where")
    return live


def set_parameters(node: Node, **values: object) -> Any:
    return node.set_parameters_atomically([Parameter(name, value=value) for name, value in values.items()])


def test_a_change_is_handed_over_as_a_whole(node: Node, live: LiveParameters[Limits]) -> None:
    received: list[Limits] = []
    assert live.make() == Limits(1.0, 2.0, "fast")
    live.on_change(received.append)
    assert set_parameters(node, high=3.0).successful
    assert set_parameters(node, low=4.0, high=5.0, mode="slow").successful
    assert received == [Limits(1.0, 3.0, "fast"), Limits(4.0, 5.0, "slow")]
    assert live.make() == received[-1]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"high": 5.1}, "out of range"),
        ({"high": float("nan")}, ""),
        ({"high": 3}, "type"),
        ({"mode": "medium"}, "parameter mode is 'medium', must be one of fast, slow"),
        ({"low": 3.0}, "low is 3.0, must not be above high, 2.0"),
        ({"high": 3.0, "low": 4.0}, "low is 4.0, must not be above high, 3.0"),
        ({"host": "elsewhere"}, "read-only"),
        ({"high": 3.0, "host": "elsewhere"}, "read-only"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(
    node: Node, live: LiveParameters[Limits], values: dict[str, object], reason: str
) -> None:
    received: list[Limits] = []
    live.on_change(received.append)
    result = set_parameters(node, **values)
    assert not result.successful
    assert reason.lower() in result.reason.lower()
    assert received == []
    assert live.make() == Limits(1.0, 2.0, "fast")
    assert node.get_parameter("high").value == 2.0


def test_two_groups_of_a_node_change_apart(node: Node, live: LiveParameters[Limits]) -> None:
    other = LiveParameters(node, dict)
    other.declare("rate_hz", 10.0, "pictures", minimum=1.0, maximum=60.0)
    limits: list[Limits] = []
    rates: list[dict[str, Any]] = []
    live.on_change(limits.append)
    other.on_change(rates.append)
    assert set_parameters(node, rate_hz=20.0).successful
    assert (limits, rates) == ([], [{"rate_hz": 20.0}])
