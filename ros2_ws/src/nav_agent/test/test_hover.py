"""Hover while thinking, whatever the model does: chaos on the virtual clock, cancels at random moments, mutants."""

from __future__ import annotations

import random

import pytest

from nav_agent import motion, streamer
from nav_agent.mission import Mission, MissionSettings
from nav_agent.motion import MotionExecutor
from nav_agent.streamer import CommandStreamer
from nav_agent.testing.rig import Rig, call, chaotic
from nav_common.data import Outcome


@pytest.mark.parametrize("seed", range(3))
def test_a_chaotic_model_breaks_no_rule(seed: int) -> None:
    rig = Rig(chaotic(seed), mission=MissionSettings(decision_deadline_s=3.0))
    result = rig.fly(max_decisions=60, time_limit_s=3600.0)
    assert result.outcome in (Outcome.STEP_LIMIT, Outcome.STUCK, Outcome.TIME_LIMIT), result
    assert result.decisions > 10, result
    assert not rig.violations()


def test_cancel_at_random_moments_leaves_nothing_of_the_goal_behind() -> None:
    dice = random.Random(7)
    for seed in range(40):
        rig = Rig(chaotic(seed), airborne=dice.random() < 0.8)
        moment = rig.clock.now() + dice.uniform(0.0, 12.0)
        rig.clock.call_at(moment, rig.cancel)
        result = rig.fly()
        assert result.outcome in (Outcome.CANCELLED, Outcome.STUCK)
        if result.outcome is Outcome.CANCELLED:
            assert rig.clock.now() - moment < 0.1
            rig.clock.sleep(2.0)
            assert not [c for when, c in rig.drone.commands if when >= moment and not c.twist.is_hover]


# Mutants: each leaves out one thing, and the checks above catch it.


def test_a_mutant_that_does_not_hover_after_a_tool_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandStreamer, "hover", lambda self, permit: None)
    monkeypatch.setattr(streamer, "MOTION_VALID_S", 60.0)
    monkeypatch.setattr(motion, "_ARRIVED_M", 1.5)  # or the last velocity is too small to see
    rig = Rig([call("move_forward", distance_m=8)] * 3)
    rig.fly(max_decisions=3)
    assert any("while thinking" in violation for violation in rig.violations())
    assert any("not hovering by its own account" in violation for violation in rig.violations())


def test_a_mutant_that_does_not_wait_for_standstill_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: MotionExecutor) -> None:
        odometry = self._drone.odometry()
        self._still_since_s = odometry.stamp_s if odometry else None

    monkeypatch.setattr(MotionExecutor, "_stand_still", at_once)
    monkeypatch.setattr(motion, "_is_still", lambda odometry: True)
    monkeypatch.setattr(motion, "_ARRIVED_M", 1.5)
    rig = Rig([call("move_forward", distance_m=8)] * 3)
    rig.fly(max_decisions=3)
    assert max(rig.memory.speeds) > 0.5, "the drone flies while a picture is taken for a decision"


def test_a_mission_that_does_not_notice_its_end_sends_nothing_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Mission, "stop", lambda self, outcome, reason: None)
    rig = Rig([call("turn_left", angle_deg=90)] * 9)
    moment = rig.clock.now() + 1.5
    rig.clock.call_at(moment, rig.cancel)
    assert rig.fly(time_limit_s=20.0).outcome is not Outcome.CANCELLED
    assert any(not c.twist.is_hover for when, c in rig.drone.commands if when < moment)
    assert all(c.twist.is_hover for when, c in rig.drone.commands if when >= moment)
