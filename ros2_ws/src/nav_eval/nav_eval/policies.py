"""Policies without a model: the expert with the true map shows what a scene allows, a random one what it gives away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from airsim_sim.instructions import Instruction
from airsim_sim.true_map import TrueMap
from nav_agent import toolset
from nav_pilot.expert import Expert, NwuPose

Call = tuple[str, dict[str, toolset.Value]]


class Policy(Protocol):
    """Chooses the next call from the true pose."""

    def __call__(self, position: tuple[float, float, float], heading: float) -> Call: ...


def experts(true_map: TrueMap, asked: Sequence[Instruction]) -> list[Policy]:
    """The expert that pilots learn from, with the true map: one policy for each instruction, in order."""
    expert = Expert(true_map)
    return [_AskedExpert(expert, instruction) for instruction in asked]


class _AskedExpert:
    """The expert at one instruction. It takes each of its calls as executed."""

    def __init__(self, expert: Expert, instruction: Instruction) -> None:
        self._expert, self._instruction = expert, instruction
        self._begun = False

    def __call__(self, position: tuple[float, float, float], heading: float) -> Call:
        if not self._begun:
            self._expert.begin(self._instruction)
            self._begun = True
        call = self._expert(NwuPose(*position, heading))
        self._expert.executed(call)
        return call


class RandomPolicy:
    """Any tool with any of its arguments, all equally likely."""

    def __init__(self, seed: int, tools: Sequence[toolset.ToolSpec] = toolset.TOOLS) -> None:
        self._rng = np.random.default_rng((seed, 0xD1CE))
        self._tools = tools

    def __call__(self, position: tuple[float, float, float], heading: float) -> Call:
        tool = self._tools[int(self._rng.integers(len(self._tools)))]
        return tool.name, {
            argument.name: argument.values[int(self._rng.integers(len(argument.values)))]
            for argument in tool.arguments
        }
