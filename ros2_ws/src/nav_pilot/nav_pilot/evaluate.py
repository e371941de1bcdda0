"""Flies the pilot in closed loop without physics: the real engine, the simulator's pictures, kinematic motion.

`python -m nav_pilot.evaluate --seeds 951 1000`. For following a training run; figures come from nav_eval.missions.
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

from airsim_sim.model import DRONE_RADIUS_M
from nav_agent import toolset
from nav_common.data import Outcome
from nav_common.success import is_success
from vlm_perception.engine import VideoStreamingInference
from vlm_perception.engine.decoding import json_grammar
from vlm_perception.engine.qwen import QwenModel
from vlm_perception.prompting import call_schema, decision_text, prime_text
from vlm_perception.serving_form import ServingForm

from . import model_folder
from .data import Camera, KinematicFlight, Mission
from .expert import Call, NwuPose, ObstacleMap


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
    FINISHED_ELSEWHERE = "finished elsewhere"
    COLLISION = "collision"
    DECISION_LIMIT = "decision limit"


@dataclass(frozen=True)
class EpisodeResult:
    """How one mission ended."""

    seed: int
    end: EpisodeEnd
    decisions: int
    distance_m: float
    clearance_m: float


def fly_mission(
    pilot: EnginePilot,
    renderer: Any,
    seed: int,
    limit: int = 40,
    colour: str = "red",
    log: list[str] | None = None,
) -> EpisodeResult:
    """One mission from the start of the field of that seed, after take-off."""
    from airsim_sim.world import load_world

    rng = np.random.default_rng((seed, 7))
    world = load_world("field", seed, colour=colour)
    renderer.load(world)
    mission = Mission(world, ObstacleMap(world, "beacon"), f"fly to the {colour} beacon", colour)
    flight = KinematicFlight(
        mission, Camera(renderer, rng), NwuPose(0.0, 0.0, 2.0, math.radians(world.start_yaw_deg)), rng
    )
    flight.take_off()
    pilot.begin()
    end, decisions = EpisodeEnd.DECISION_LIMIT, 0
    while end is EpisodeEnd.DECISION_LIMIT and decisions < limit:
        recent = toolset.recent_calls(mission.instruction, flight.turns, pilot.form.recent_calls)
        call = pilot(flight.frames, mission.instruction, recent)
        decisions += 1
        bearing, distance = mission.obstacles.bearing(flight.pose)
        if log is not None:
            log.append(f"{math.degrees(bearing):6.0f} deg {distance:5.1f} m  {toolset.call_line(*call)}")
        if call[0] == "finish":
            reached = is_success(Outcome.FINISHED, str(call[1].get("reason", "")), distance, collisions=0)
            end = EpisodeEnd.REACHED if reached else EpisodeEnd.FINISHED_ELSEWHERE
        elif call[0] in ("move_forward", "turn_left", "turn_right"):
            flight.execute(call)
            if flight.smallest_clearance_m <= 0:
                end = EpisodeEnd.COLLISION
    distance = mission.obstacles.bearing(flight.pose)[1]
    return EpisodeResult(
        seed, end, decisions, distance, min(flight.smallest_clearance_m, distance - 0.4 - DRONE_RADIUS_M)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    from airsim_sim.render import open_renderer
    from airsim_sim.world import load_world

    parser = argparse.ArgumentParser(prog="python -m nav_pilot.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=model_folder())
    parser.add_argument("--seeds", type=int, nargs=2, default=(951, 1000), metavar=("FIRST", "LAST"))
    parser.add_argument("--blank", action="store_true", help="show black pictures: nothing must be reached")
    parser.add_argument("--verbose", action="store_true", help="print the decisions of missions that fail")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    renderer = open_renderer(load_world("field", 0))
    pilot = EnginePilot(options.model, options.blank)
    ends: Counter[str] = Counter()
    for seed in range(options.seeds[0], options.seeds[1] + 1):
        log: list[str] = []
        outcome = fly_mission(pilot, renderer, seed, log=log)
        ends[outcome.end] += 1
        print(
            f"seed {seed}: {outcome.end}, {outcome.decisions} decisions, {outcome.distance_m:.2f} m from the axis, "
            f"clearance {outcome.clearance_m:.2f} m; so far {dict(ends)}",
            flush=True,
        )
        if options.verbose and outcome.end is not EpisodeEnd.REACHED:
            print("  " + "\n  ".join(log), flush=True)
    renderer.close()


if __name__ == "__main__":
    main()
