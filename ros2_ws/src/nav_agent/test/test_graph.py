"""The agent in the real graph: simulator, bridge and agent as processes, a scripted model behind Generate."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

pytest.importorskip("nav_msgs_ext.msg", reason="the workspace is not built")

from graph import SILENCE, Graph, fly, is_hover, running_graph, wait_for

from nav_agent import toolset
from nav_agent.navigator import GoalRejected, Navigator
from nav_agent.outcome import Outcome, State
from nav_common.stamps import to_seconds


def call(name: str, **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


FINISH = call("finish", reason="reached")


class Script:
    """What the model says next; FINISH when nothing is left."""

    def __init__(self) -> None:
        self.items: Iterator[str] = iter(())

    def set(self, items: Iterable[str]) -> None:
        self.items = iter(items)

    def __call__(self, goal: Any) -> str:
        return next(self.items, FINISH)


script = Script()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    with running_graph(tmp_path_factory.mktemp("graph") / "logs", script) as running:
        yield running


@pytest.fixture(scope="module")
def navigator(graph: Graph) -> Iterator[Navigator]:
    with Navigator() as one:
        yield one


def test_a_mission_from_the_ground(graph: Graph, navigator: Navigator) -> None:
    script.set(["LAND NOW", call("move_forward", distance_m=100), call("turn_left", angle_deg=30)])
    fly(navigator, "fly to the red beacon", time_limit_s=120.0)
    result = navigator.result(timeout_s=120.0)
    assert (result.outcome, result.reason, result.decisions) == (Outcome.FINISHED, "reached", 4)
    assert result.collisions == 0
    assert 8.0 < result.distance_m < 12.0
    wait_for(lambda: graph.watcher.goal_states[-1].state == State.ENDED, 5, "the end on the topic")
    # Those without an id tell of goals rejected while the agent had not yet heard from the drone.
    states = [State(m.state) for m in graph.watcher.goal_states if m.goal_id]
    assert states[:2] == [State.ACCEPTED, State.TAKING_OFF]
    for expected in (State.LOOKING, State.THINKING, State.MOVING, State.HOVERING):
        assert expected in states
    turns = list(graph.perception.asks[-1].recent_calls)
    assert turns == [
        "LAND NOW -> error: no tool call",
        "move_forward(distance_m=100) -> flew 8 m, distance_m 100 limited to 8",
        "turn_left(angle_deg=30) -> turned left 30 deg",
    ]
    decisions = graph.watcher.decisions
    wait_for(lambda: len(decisions) >= 4, 5, "the decisions on the topic")
    assert [d.step for d in decisions] == [1, 2, 3, 4]
    assert all(d.hovering for d in decisions)
    assert all(to_seconds(d.frame_stamp) >= to_seconds(d.barrier_stamp) - 1e-6 for d in decisions)
    assert graph.watcher.state is not None
    # Only hover that was on its way when take-off raised the epoch.
    assert graph.watcher.state.commands_refused <= 5, graph.watcher.state.last_refusal
    assert all(a.sequence < b.sequence for (_, a), (_, b) in itertools.pairwise(graph.watcher.commands))


def test_cancel_in_the_middle_of_a_generation(graph: Graph, navigator: Navigator) -> None:
    script.set([SILENCE])
    asks, cancelled = len(graph.perception.asks), graph.perception.cancelled
    navigator.fly("wait for nothing")
    wait_for(lambda: len(graph.perception.asks) > asks, 20, "the ask")
    began = time.monotonic()
    navigator.cancel()
    result = navigator.result(timeout_s=5.0)
    assert time.monotonic() - began < 1.0
    assert result.outcome is Outcome.CANCELLED
    wait_for(lambda: graph.perception.cancelled > cancelled, 2, "the end of decoding")


def test_cancel_in_the_middle_of_a_motion(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90)] * 9)
    navigator.fly("turn")
    wait_for(lambda: graph.watcher.commands and not is_hover(graph.watcher.commands[-1][1]), 20, "motion")
    navigator.cancel()
    assert navigator.result(timeout_s=5.0).outcome is Outcome.CANCELLED
    ended = time.monotonic()
    wait_for(lambda: time.monotonic() > ended + 0.5, 2, "late commands")
    assert all(is_hover(c) for when, c in graph.watcher.commands if when > ended)


def test_a_new_goal_preempts_the_old_one(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90), *[call("climb", distance_m=1)] * 2])
    with Navigator("second") as second:
        navigator.fly("turn")
        wait_for(lambda: graph.watcher.commands and not is_hover(graph.watcher.commands[-1][1]), 20, "motion")
        second.fly("climb", max_decisions=1)
        assert navigator.result(timeout_s=5.0).outcome is Outcome.PREEMPTED
        assert second.result(timeout_s=20.0).outcome is Outcome.STEP_LIMIT


def test_an_empty_instruction_is_rejected_with_a_reason(graph: Graph, navigator: Navigator) -> None:
    with pytest.raises(GoalRejected, match="an instruction is empty"):
        navigator.fly(" ")
    with pytest.raises(GoalRejected, match="no instruction"):
        navigator.fly()
    with pytest.raises(GoalRejected, match="too long"):
        navigator.fly("very " * 500)
    with pytest.raises(GoalRejected, match="time_limit_s is -1"):
        navigator.fly("fly", time_limit_s=-1.0)


def test_the_prompt_and_the_tools_are_primed_as_they_are_written(graph: Graph) -> None:
    assert graph.perception.prompts == {"p1"}
    assert len(toolset.tool_schemas()) == 9


def test_a_killed_bridge_is_waited_out(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90), call("turn_right", angle_deg=90)])
    navigator.fly("turn")
    wait_for(lambda: graph.watcher.commands and not is_hover(graph.watcher.commands[-1][1]), 20, "motion")
    graph.kill("bridge")
    wait_for(lambda: graph.watcher.goal_states[-1].state == State.WAITING, 10, "WAITING")
    graph.start_bridge()
    result = navigator.result(timeout_s=60.0)
    assert (result.outcome, result.reason) == (Outcome.FINISHED, "reached")
    assert "stopped by the gate" in graph.perception.asks[-1].recent_calls[0]


def test_a_killed_agent_can_be_started_again(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90)] * 9)
    navigator.fly("turn")
    wait_for(lambda: graph.watcher.commands and not is_hover(graph.watcher.commands[-1][1]), 20, "motion")
    graph.kill("agent")
    wait_for(lambda: graph.watcher.state and graph.watcher.state.gate_mode == 0, 5, "HOLD")
    graph.perception.prompts.clear()
    graph.start_agent()
    wait_for(lambda: graph.perception.prompts, 30, "the agent")
    script.set([])
    with Navigator("third") as third:
        fly(third, "finish", timeout_s=20.0)
        assert third.result(timeout_s=20.0).outcome is Outcome.FINISHED
