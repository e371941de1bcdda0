"""The agent in the real graph: simulator, bridge and agent as processes, a scripted model behind Generate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest

pytest.importorskip("nav_msgs_ext.msg", reason="the workspace is not built")

import rclpy

from nav_agent import toolset
from nav_agent.navigator import GoalRejected, Navigator
from nav_agent.testing.graph import Graph, fly, running_graph, wait_for
from nav_agent.testing.rig import NO_ANSWER, call
from nav_common import contract, topics
from nav_common.data import (
    GateMode,
    GenerateGoal,
    GenerateStatus,
    GoalState,
    NavigateState,
    Odometry,
    Outcome,
    VelocityCommand,
)
from nav_common.result_lines import StopReason
from nav_common.ros import publisher, to_ros

FINISH = call("finish", reason="reached")
CLOCKS_S = 0.05
"""Two processes of this machine set their clocks to Unix time this closely."""


class Script:
    """What the model says next; FINISH when nothing is left. A motion that was broken off is asked for again, as a
    model would: a process that was starved for 0.3 s is the gate's business, not a failure of what is tested here."""

    def __init__(self) -> None:
        self.items: Iterator[str] = iter(())
        self.last = ""
        self.repeated = 0

    def set(self, items: Iterable[str]) -> None:
        self.items, self.repeated = iter(items), 0

    def __call__(self, goal: GenerateGoal) -> str:
        if goal.recent_calls and was_broken_off(goal.recent_calls[-1]):
            self.repeated += 1
        else:
            self.last = next(self.items, FINISH)
        return self.last


script = Script()


def was_broken_off(line: str) -> bool:
    """Whether the motion ended as it must when a process is starved of the processor: no command for 0.3 s, nothing
    heard of perception for as long, no progress of the simulator."""
    return any(reason in line for reason in (StopReason.GATE, StopReason.MEMORY_LOST, StopReason.TIMED_OUT))


def ended(graph: Graph) -> GoalState:
    """The last goal's end, once it is published."""

    def found() -> GoalState | None:
        newest = graph.watcher.goal_states[-1]
        return newest if newest.state is NavigateState.ENDED else None

    state: GoalState = wait_for(found, 5, "the end on the topic")
    return state


def motion_after(commands: list[VelocityCommand], stamp_s: float) -> list[VelocityCommand]:
    """Commands to move that rest on odometry later than this: they were sent later."""
    return [c for c in commands if c.stamp_s > stamp_s + CLOCKS_S and not c.twist.is_hover]


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
    decisions = 4 + script.repeated
    assert (result.outcome, result.reason, result.decisions) == (Outcome.FINISHED, "reached", decisions)
    assert result.collisions == 0
    assert 8.0 < result.distance_m < 12.0 + 8.0 * script.repeated
    ended(graph)
    # Those without an id tell of goals rejected while the agent had not yet heard from the drone.
    states = [state.state for state in graph.watcher.goal_states if state.goal_id]
    assert states[:2] == [NavigateState.ACCEPTED, NavigateState.TAKING_OFF]
    for expected in ("LOOKING", "THINKING", "MOVING", "HOVERING"):
        assert NavigateState[expected] in states
    calls = [line for line in graph.perception.asks[-1].recent_calls if not was_broken_off(line)]
    expected_calls = [
        "LAND NOW -> error: no tool call",
        "move_forward(distance_m=100) -> flew 8 m, distance_m 100 limited to 8",
        "turn_left(angle_deg=30) -> turned left 30 deg",
    ]
    assert calls == expected_calls[-len(calls) :]
    assert len(calls) == 3 or script.repeated
    found = graph.watcher.decisions
    wait_for(lambda: len(found) >= decisions, 5, "the decisions on the topic")
    assert [d.step for d in found] == list(range(1, decisions + 1))
    assert all(d.hovering and d.status is GenerateStatus.OK for d in found)
    assert all(d.frame_stamp_s >= d.barrier_stamp_s - contract.STAMP_TOLERANCE_S for d in found)
    assert all(a.sequence < b.sequence for a, b in itertools.pairwise(graph.watcher.commands))
    # What the gate refused was hover of the epoch before, on its way when the epoch rose.
    assert graph.watcher.state is not None
    raised = len({state.epoch for state in graph.watcher.states})
    assert graph.watcher.state.commands_refused <= 6 * raised, graph.watcher.state.last_refusal


def test_cancel_in_the_middle_of_a_generation(graph: Graph, navigator: Navigator) -> None:
    script.set([NO_ANSWER])
    asks, cancelled = len(graph.perception.asks), graph.perception.cancelled
    navigator.fly("wait for nothing")
    wait_for(lambda: len(graph.perception.asks) > asks, 20, "the ask")
    navigator.cancel()
    assert navigator.result(timeout_s=5.0).outcome is Outcome.CANCELLED
    wait_for(lambda: graph.perception.cancelled > cancelled, 2, "the end of decoding")


def test_cancel_in_the_middle_of_a_motion(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90)] * 9)
    navigator.fly("turn")
    wait_for(lambda: graph.watcher.is_moving, 20, "motion")
    navigator.cancel()
    assert navigator.result(timeout_s=5.0).outcome is Outcome.CANCELLED
    end_s = ended(graph).stamp_s
    commands = graph.watcher.commands
    wait_for(lambda: commands[-1].stamp_s > end_s + 0.5, 5, "hover after the end")
    assert not motion_after(commands, end_s)


def test_a_new_goal_preempts_the_old_one(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90), *[call("climb", distance_m=1)] * 2])
    with Navigator("second") as second:
        navigator.fly("turn")
        wait_for(lambda: graph.watcher.is_moving, 20, "motion")
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


def test_a_second_publisher_of_odometry_changes_nothing_and_is_named(
    graph: Graph, navigator: Navigator
) -> None:
    script.set([call("turn_left", angle_deg=90), call("turn_right", angle_deg=90)])
    agent = graph.processes["agent"]
    intruder = rclpy.create_node("somebody_else")
    outlet = publisher(intruder, topics.ODOM, topics.DEFAULT_VEHICLE_NAMESPACE)
    newest = graph.watcher.commands[-1].stamp_s

    def intrude() -> None:
        # From the future, and beyond what a stamp can hold.
        message = to_ros(Odometry(newest + 1e6))
        outlet.publish(message)
        message.header.stamp.sec = 2**31 - 1
        message.header.stamp.nanosec = 2**32 - 1
        outlet.publish(message)

    def done() -> bool:
        intrude()
        return navigator.is_done()

    navigator.fly("turn", time_limit_s=60.0)
    wait_for(done, 70, "the end of the flight")
    result = navigator.result(timeout_s=1.0)
    assert (result.outcome, result.reason) == (Outcome.FINISHED, "reached")
    assert agent.poll() is None
    assert all(command.stamp_s < newest + 1e3 for command in graph.watcher.commands)
    log = (graph.folder / "agent.log").read_text()
    assert "/drone/odom is published by /airsim_bridge, /somebody_else" in log
    intruder.destroy_node()


def test_a_killed_bridge_is_waited_out(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90), call("turn_right", angle_deg=90)])
    navigator.fly("turn")
    wait_for(lambda: graph.watcher.is_moving, 20, "motion")
    graph.kill("bridge")
    wait_for(lambda: graph.watcher.goal_states[-1].state is NavigateState.WAITING, 10, "WAITING")
    graph.start_bridge()
    result = navigator.result(timeout_s=60.0)
    assert (result.outcome, result.reason) == (Outcome.FINISHED, "reached")
    # On a starved machine the memory's lease runs out before the bridge's silence is noticed.
    stopped = (StopReason.GATE, StopReason.MEMORY_LOST)
    assert any(reason in line for line in graph.perception.asks[-1].recent_calls for reason in stopped)


def test_a_killed_agent_can_be_started_again(graph: Graph, navigator: Navigator) -> None:
    script.set([call("turn_left", angle_deg=90)] * 9)
    fly(navigator, "turn")
    wait_for(lambda: graph.watcher.is_moving, 20, "motion")
    graph.kill("agent")
    wait_for(lambda: graph.watcher.gate_mode is GateMode.HOLD, 5, "HOLD")
    graph.perception.prompts.clear()
    graph.start_agent()
    wait_for(lambda: graph.perception.prompts, 30, "the agent")
    script.set([])
    with Navigator("third") as third:
        fly(third, "finish", timeout_s=20.0)
        assert third.result(timeout_s=20.0).outcome is Outcome.FINISHED
