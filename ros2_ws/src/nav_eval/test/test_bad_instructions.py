"""Instructions that no pilot was trained on, flown in lock-step by the shipped one: no crash, and no `reached` where
nothing was reached. Empty and endless ones are refused before anything moves."""

from __future__ import annotations

import pytest
import torch

import nav_pilot
from airsim_sim.world import load_world
from nav_common.data import FinishReason, Outcome
from nav_eval.lockstep import FlownMission, LockStepSettings, Pilot, fly, load_model

SCENE, SEED = "field-mixed", 595  # a blue beacon, a white car, a white beacon, a red tree
PLAIN = {
    "another language": "vola verso il faro verde e fermati",
    "another script": "绿色的灯塔在哪里",
    "words it never saw": "perambulate unto the crimson zeppelin forthwith",
    "no words at all": "?! ... 7 7 7 <|im_end|> }{",
    "something absent": "fly to the purple house",
}
TWO = "fly to the blue beacon and the white car"


@pytest.fixture(scope="module")
def pilot() -> Pilot:
    torch.set_num_threads(1)
    return load_model(nav_pilot.model_folder())


def flown(pilot: Pilot, instruction: str) -> FlownMission:
    # Long enough to look around and to fly to whatever stands there.
    return fly(load_world(SCENE, SEED), [instruction], pilot, LockStepSettings(max_decisions=12))


@pytest.mark.parametrize("text", ["", "   \n\t ", "go " * 1400])
def test_an_empty_or_endless_instruction_is_refused(text: str, pilot: Pilot) -> None:
    with pytest.raises(RuntimeError, match="refuses the mission: an instruction is"):
        flown(pilot, text)


ENDS = (Outcome.FINISHED, Outcome.STEP_LIMIT, Outcome.STUCK)


@pytest.mark.parametrize("kind", PLAIN)
def test_what_names_nothing_that_is_there_is_not_reached(kind: str, pilot: Pilot) -> None:
    result = flown(pilot, PLAIN[kind]).result
    assert result.outcome in ENDS
    assert (result.outcome, result.reason) != (Outcome.FINISHED, FinishReason.REACHED)


def test_of_two_objects_at_once_one_is_reached_or_none_is_claimed(pilot: Pilot) -> None:
    flight = flown(pilot, TWO)
    world = load_world(SCENE, SEED)
    assert flight.result.outcome in ENDS
    if (flight.result.outcome, flight.result.reason) == (Outcome.FINISHED, FinishReason.REACHED):
        named = [world.object(name) for name in ("same_kind", "first", "same_colour", "neither")]
        named = [item for item in named if (item.kind, item.colour) in (("pillar", "blue"), ("car", "white"))]
        assert min(item.distance_m(flight.decisions[-1].position) for item in named) <= 2.0
