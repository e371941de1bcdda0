"""Flies the pilot in closed loop without physics: the real engine, the simulator's pictures, kinematic motion.

`python -m nav_pilot.evaluate --scene field,memory --seeds 951 1000`. For following a training run; figures come from
`make eval`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from airsim_sim.instructions import Instruction, mission
from nav_agent import toolset
from nav_common.data import FinishReason, Outcome
from nav_common.success import is_success
from vlm_perception.engine import VideoStreamingInference
from vlm_perception.engine.decoding import json_grammar
from vlm_perception.engine.qwen import QwenModel
from vlm_perception.prompting import call_schema, decision_text, prime_text
from vlm_perception.serving_form import ServingForm

from . import model_folder
from .data import Camera, KinematicFlight, Place
from .expert import Call, NwuPose


class EnginePilot:
    """The served model, flying one mission at a time."""

    def __init__(self, folder: Path, blank: bool = False):
        self.form, self.blank = ServingForm.load(folder), blank
        model = QwenModel.load(folder, size=(self.form.width, self.form.height))
        self.stream = VideoStreamingInference(
            model, max_cache_tokens=self.form.max_cache_tokens, sink_size=self.form.sink_size
        )
        self.grammar = json_grammar(call_schema(self.form.tools))
        self.begin()

    def begin(self) -> None:
        """Empty the memory and prime the prompt."""
        self.stream.reset()
        self.stream.prime(prime_text(self.form.system_prompt, self.form.tools))
        self.frames = 0

    def __call__(self, frames: Sequence[np.ndarray], instruction: str, recent: Sequence[str]) -> Call:
        """The call for this flight so far; only frames that are new are appended."""
        for frame in frames[self.frames :]:
            self.frames += 1
            self.stream.append_frame(np.zeros_like(frame) if self.blank else frame, stamp=2.0 * self.frames)
        text = decision_text(instruction, recent)
        done = self.stream.generate(text, max_new_tokens=self.form.max_new_tokens, grammar=self.grammar)
        call: dict[str, Any] = json.loads(done.text)
        return call["name"], call["arguments"]


class EpisodeEnd(StrEnum):
    REACHED = "reached"
    NOT_FOUND = "rightly not found"
    FINISHED_ELSEWHERE = "finished elsewhere"
    WRONG_REASON = "finished with another reason"
    COLLISION = "collision"
    DECISION_LIMIT = "decision limit"


@dataclass(frozen=True)
class EpisodeResult:
    """How one mission ended. distance_m: from the goal of the last instruction that was flown, inf where it is
    absent."""

    seed: int
    end: EpisodeEnd
    decisions: int
    distance_m: float
    clearance_m: float

    @property
    def success(self) -> bool:
        return self.end in (EpisodeEnd.REACHED, EpisodeEnd.NOT_FOUND)


def fly_mission(
    pilot: EnginePilot,
    renderer: Any,
    seed: int,
    limit: int = 40,
    scene: str = "field",
    log: list[str] | None = None,
) -> EpisodeResult:
    """The mission of that scene and seed, from the start after take-off: each instruction to its end, until one
    fails."""
    from airsim_sim.world import load_world

    rng = np.random.default_rng((seed, 7))
    world = load_world(scene, seed)
    place = Place(world, renderer)
    start = NwuPose(0.0, 0.0, 2.0, math.radians(world.start_yaw_deg))
    flight = KinematicFlight(place, Camera(renderer, rng), start, rng)
    flight.take_off()
    pilot.begin()
    decisions, end, distance = 0, EpisodeEnd.DECISION_LIMIT, math.inf
    for instruction in mission(world):
        end, taken = _fly_instruction(pilot, flight, instruction, limit, log)
        decisions += taken
        goal = instruction.goal
        distance = place.world.object(goal).distance_m((flight.pose.x, flight.pose.y)) if goal else math.inf
        if end is not EpisodeEnd.REACHED:
            break
    return EpisodeResult(seed, end, decisions, distance, flight.smallest_clearance_m)


def _fly_instruction(
    pilot: EnginePilot, flight: KinematicFlight, instruction: Instruction, limit: int, log: list[str] | None
) -> tuple[EpisodeEnd, int]:
    """How one instruction ended, and after how many decisions."""
    flight.calls = []
    for decisions in range(1, limit + 1):
        recent = toolset.recent_calls(instruction.text, flight.calls, pilot.form.recent_calls)
        call = pilot(flight.frames, instruction.text, recent)
        here = (flight.pose.x, flight.pose.y)
        goal = flight.place.world.object(instruction.goal) if instruction.goal else None
        distance = goal.distance_m(here) if goal else math.inf
        if log is not None:
            log.append(f"{instruction.text}: {distance:5.1f} m  {toolset.call_line(*call)}")
        if call[0] == "finish":
            return _end_of(call, distance, goal is None), decisions
        if call[0] in ("move_forward", "turn_left", "turn_right", "climb", "descend", "hover"):
            flight.execute(call)
            if flight.smallest_clearance_m <= 0:
                return EpisodeEnd.COLLISION, decisions
    return EpisodeEnd.DECISION_LIMIT, limit


def _end_of(call: Call, distance_m: float, absent: bool) -> EpisodeEnd:
    reason = str(call[1].get("reason", ""))
    if absent and reason == FinishReason.NOT_FOUND:
        return EpisodeEnd.NOT_FOUND
    if reason != FinishReason.REACHED:
        return EpisodeEnd.WRONG_REASON
    reached = is_success(Outcome.FINISHED, reason, distance_m, collisions=0)
    return EpisodeEnd.REACHED if reached else EpisodeEnd.FINISHED_ELSEWHERE


def main(arguments: Sequence[str] | None = None) -> None:
    from airsim_sim.render import open_renderer
    from airsim_sim.world import load_world

    parser = argparse.ArgumentParser(prog="python -m nav_pilot.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=model_folder())
    parser.add_argument("--scene", default="field", help="one, or several with commas")
    parser.add_argument("--seeds", type=int, nargs=2, default=(951, 1000), metavar=("FIRST", "LAST"))
    parser.add_argument("--blank", action="store_true", help="show black pictures: nothing must be reached")
    parser.add_argument("--verbose", action="store_true", help="print the decisions of missions that fail")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    renderer = open_renderer(load_world("field", 0))
    pilot = EnginePilot(options.model, options.blank)
    for scene in options.scene.split(","):
        ends: Counter[str] = Counter()
        for seed in range(options.seeds[0], options.seeds[1] + 1):
            log: list[str] = []
            outcome = fly_mission(pilot, renderer, seed, scene=scene, log=log)
            ends[outcome.end] += 1
            if options.verbose and not outcome.success:
                print(f"{scene} {seed}: {outcome.end}\n  " + "\n  ".join(log), flush=True)
        print(f"{scene}: {dict(ends)}", flush=True)
    renderer.close()


if __name__ == "__main__":
    main()
