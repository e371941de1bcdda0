"""The expert takes the instructions in turn; the random policy makes every call there is."""

import numpy as np

from airsim_sim.instructions import land, wait
from airsim_sim.true_map import TrueMap
from airsim_sim.world import load_world
from nav_agent import toolset
from nav_eval.policies import RandomPolicy, experts


def test_an_expert_begins_its_instruction_when_it_is_asked_first():
    rng = np.random.default_rng(1)
    waiting, landing = experts(TrueMap(load_world("field", 1)), [wait(rng), land(rng)])
    assert [waiting((0.0, 0.0, 2.0), 0.0)[0] for _ in range(2)] == ["hover", "finish"]
    assert [landing((0.0, 0.0, z), 0.0)[0] for z in (2.0, 0.7)] == ["descend", "finish"]


def test_the_random_policy_repeats_by_its_seed_and_makes_every_valid_call():
    calls = [RandomPolicy(3)((0, 0, 2), 0.0) for _ in range(2)]
    assert calls[0] == calls[1]
    policy = RandomPolicy(1)
    made = [policy((0, 0, 2), 0.0) for _ in range(600)]
    assert {tool for tool, _ in made} == set(toolset.BY_NAME)
    for tool, arguments in made:
        assert toolset.clamp(tool, arguments) == (arguments, [])
