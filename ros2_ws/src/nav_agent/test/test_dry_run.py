"""Plan B: the agent on a recorded flight. Tools note what they would do, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable

from nav_agent.agent import Agent
from nav_agent.dry_run import DryRun
from nav_agent.mission import Mission, MissionSettings
from nav_agent.motion import FlightControl
from nav_agent.prompts import load_prompt
from nav_agent.testing.rig import Log, Rig, call
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import NavigateGoal, Outcome


def test_a_dry_run_notes_each_call_and_moves_nothing() -> None:
    rig = Rig(
        [
            call("look_around"),
            call("turn_left", angle_deg=30),
            call("move_forward", distance_m=100),
            call("climb", distance_m=1),
            call("hover", seconds=2),
            call("fly_towards", u=450, v=450, distance_m=2),
            call("finish", reason="reached"),
        ]
    )
    controls: list[DryRun] = []

    def dry(check: Callable[[], None], on_outage: Callable[[str], None]) -> FlightControl:
        controls.append(DryRun(rig.clock, check, decision_interval_s=5.0))
        return controls[0]

    log = Log(rig.clock)
    goal = NavigateGoal(("to the beacon",), 10, 1e3)
    mission = Mission("g", goal, rig.memory, rig.clock, MissionSettings, load_prompt(), log, dry)
    began = rig.clock.now()
    assert mission.run().outcome is Outcome.FINISHED
    assert [line for _, line in controls[0].calls] == [
        "look_around()",
        "turn_left(angle_deg=30)",
        "move_forward(distance_m=8)",
        "climb(distance_m=1)",
        "hover(seconds=2)",
        "fly_towards(u=450, v=450, distance_m=2)",
    ]
    assert 30.0 < rig.clock.now() - began < 40.0
    assert rig.memory.asks[-1][1].recent_calls == (
        "move_forward(distance_m=100) -> flew 8 m, distance_m 100 limited to 8",
        "climb(distance_m=1) -> climbed 1 m",
        "hover(seconds=2) -> hovered 2 s",
        "fly_towards(u=450, v=450, distance_m=2) -> flew 2 m",
    )
    assert rig.drone.commands == []
    assert len(log.decisions) == 7


def test_an_agent_in_a_dry_run_needs_no_drone_and_sends_nothing() -> None:
    rig = Rig([call("move_forward", distance_m=8), call("finish", reason="reached")])
    rig.drone.connected = False
    commands = len(rig.drone.commands)
    agent = Agent(rig.drone, rig.memory, rig.clock, load_prompt(), rig.log, dry_run_interval_s=2.0)
    rig.clock.call_every(COMMAND_PERIOD_S, agent.streamer.tick)
    goal = NavigateGoal(("to the beacon",), 10, 1e3)
    assert agent.refusal(goal) == ""
    mission = agent.begin("g", goal)
    assert mission.run().outcome is Outcome.FINISHED
    agent.cancel(mission)
    rig.clock.sleep(1.0)
    assert len(rig.drone.commands) == commands
    assert rig.drone.x == 0.0
    assert [record.tool for record in rig.log.decisions] == ["move_forward", "finish"]
