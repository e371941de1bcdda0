"""The identity memory without a flight: `python benchmarks/memory.py` writes benchmarks/results/memory.json.

- match_precision, match_recall: links between mentions of one entity, over the sequences of
  benchmarks/instructions/reported.txt, which nothing was tuned on.
- retrieval_accuracy: of the frames that "go back to ..." brings back in the recall scene, the share that shows what was
  named, by the renderer's segmentation at the model's resolution. The expert flies the scene's instructions on their
  way, with the shipped pilot's memory and a short window; the pilot's own yes and no choose the frames.
- recall_3_over_append_3: retrieval of three frames over the appending of three, at a full window;
  decision_with_bank_over_without: a decision of a stream with a bank over the same without. Medians, taken in turns.
- kills, inconsistent: a process that writes to a memory bank is killed at random moments; after each kill the bank is
  opened again, and counted when mapping.json and the archived frames do not agree or a frame is not whole.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from airsim_sim.instructions import mission
from airsim_sim.render import open_renderer
from airsim_sim.world import load_world
from nav_common.clock import VirtualClock
from nav_common.data import LEVEL, CompressedImage, GenerateGoal, GenerateStatus, Odometry, PrimeRequest
from nav_common.frames import Quaternion, Vector
from nav_eval import machine, variants
from nav_eval.lockstep import Pilot, load_model
from nav_eval.seeds import parse_seeds
from nav_eval.significance import wilson
from nav_pilot import model_folder
from nav_pilot.data import Camera, KinematicFlight, Place
from nav_pilot.expert import Expert, NwuPose
from vlm_perception.identity.bank import Candidate, MemoryBank
from vlm_perception.stream import Stream
from vlm_perception.testing import bank_writer, instruction_sequences

ROOT = Path(__file__).resolve().parent.parent


def matching() -> dict[str, object]:
    sequences = instruction_sequences.read(ROOT / "benchmarks/instructions/reported.txt")
    score = instruction_sequences.score(sequences)
    return {
        "sequences": len(sequences),
        "links": score.existing,
        "match_precision": round(score.precision, 3),
        "match_recall": round(score.recall, 3),
        "mistakes": score.mistakes,
    }


def kills(count: int) -> dict[str, object]:
    rng = random.Random(0)
    inconsistent = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            bank_writer.kill_while_writing(Path(folder), number, rng.uniform(0.0, 0.3))
            inconsistent += [f"kill {number}: {text}" for text in bank_writer.inconsistencies(Path(folder))]
            print(f"kill {number + 1} of {count}, {len(inconsistent)} inconsistent", end="\r", flush=True)
    print()
    return {"kills": count, "inconsistent": len(inconsistent), "inconsistencies": inconsistent}


START_S = 1000.0


def give_frame(
    stream: Stream,
    clock: VirtualClock,
    after_s: float,
    jpeg: bytes,
    place: Vector,
    orientation: Quaternion = LEVEL,
) -> float:
    """A frame, so long after the one before, with the odometry until then; all that follows from it is done. Its
    stamp."""
    steps = math.ceil(2 * after_s)
    for _ in range(steps):
        clock.sleep(after_s / steps)
        stream.submit_odometry(Odometry(clock.now(), place, orientation))
    stream.submit_frame(CompressedImage(clock.now(), jpeg))
    stream.run_until_idle()
    return clock.now()


class WatchedFlight(KinematicFlight):
    """The expert's flight, whose frames go into a stream with a bank; `shows`: what each truly shows, by its stamp."""

    def __init__(self, place: Place, camera: Camera, pilot: Pilot, bank: MemoryBank | None) -> None:
        super().__init__(
            place, camera, NwuPose(0.0, 0.0, 2.0, math.radians(place.world.start_yaw_deg)), camera.rng
        )
        self.clock = VirtualClock(START_S)
        form = variants.apply(variants.BANK, pilot.form)
        self.stream = Stream(pilot.model, form, self.clock, live=False, bank=bank)
        self._interval_s = form.frame_interval_s
        ticket = self.stream.submit_prime(PrimeRequest(form.system_prompt, json.dumps(form.tools)))
        self.stream.run_until_idle()
        self._prompt_id = ticket.result.prompt_id
        self.shows: dict[float, set[str]] = {}

    def record_frame(self, pose: NwuPose) -> None:
        super().record_frame(pose)
        rgb = self.camera.renderer.render((pose.x, pose.y, pose.z), math.degrees(pose.yaw))
        jpeg = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[
            1
        ].tobytes()
        half = (pose.yaw + math.pi / 2) / 2
        turned = Quaternion(math.cos(half), 0.0, 0.0, math.sin(half))
        here = Vector(-pose.y, pose.x, pose.z)
        stamp_s = give_frame(self.stream, self.clock, self._interval_s, jpeg, here, turned)
        self.shows[stamp_s] = {name for name in self.place.candidates if self.sights[-1].sees(name)}

    def decide(self, instruction: str) -> None:
        """As the agent asks, the answer not followed."""
        ticket = self.stream.submit_generate(GenerateGoal(self._prompt_id, instruction, deadline_s=60.0))
        self.stream.run_until_idle()
        assert ticket.result.status is GenerateStatus.OK, ticket.result.message

    def follow(self, expert: Expert) -> None:
        """The scene's instructions up to the first decision of the last."""
        *before, last = mission(self.place.world)
        for one in before:
            expert.begin(one)
            self.decide(one.text)
            while (call := expert(self.pose))[0] != "finish":
                self.execute(call)
                expert.executed(call)
        self.decide(last.text)


def retrieval(seeds: Sequence[int], pilot: Pilot) -> dict[str, object]:
    """The frames that came back at the last instruction, which names what the first did."""
    right = total = nothing = 0
    renderer = open_renderer(load_world("recall", seeds[0]))
    try:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                bank = MemoryBank(Path(folder), on_warning=print)
                place = Place(load_world("recall", seed), renderer)
                camera = Camera(renderer, np.random.default_rng(seed))
                flight = WatchedFlight(place, camera, pilot, bank)
                flight.take_off()
                flight.follow(Expert(place.map))
                goal = place.world.goal.name
                brought = [bank.archive.frames[name].stamp_s for name in bank.recalled_names]
                shown = [goal in flight.shows[stamp_s] for stamp_s in brought]
                right, total, nothing = right + sum(shown), total + len(shown), nothing + (not shown)
            print(f"seed {seed}: {sum(shown)} of {len(shown)} recalled frames show the {goal}", flush=True)
    finally:
        renderer.close()
    return {
        "retrieval_flights": len(seeds),
        "retrieval_seeds": f"{seeds[0]}-{seeds[-1]}",
        "retrieved": total,
        "flights_without_retrieval": nothing,
        "retrieval_accuracy": round(right / total, 4) if total else None,
        "retrieval_interval": [round(bound, 4) for bound in wilson(right, total)] if total else None,
    }


SOUGHT = "go to the red car, then to the blue beacon and then to the white shed"


class Hovering:
    """A stream with a full window, of pictures of nothing. With a bank: three entities whose frames have left it."""

    def __init__(self, pilot: Pilot, folder: Path | None) -> None:
        form = variants.apply(variants.WINDOW, pilot.form)
        self._bank = MemoryBank(folder, on_warning=print) if folder else None
        self.clock = VirtualClock(START_S)
        self.stream = Stream(pilot.model, form, self.clock, live=False, bank=self._bank)
        self._interval_s, self._metres = form.frame_interval_s, 0.0
        self._hover = [tool for tool in form.tools if tool["function"]["name"] == "hover"]
        ticket = self.stream.submit_prime(PrimeRequest(form.system_prompt, json.dumps(form.tools)))
        self.stream.run_until_idle()
        self._prompt_id = ticket.result.prompt_id
        rng = np.random.default_rng(0)
        noise = [rng.integers(0, 255, (240, 320, 3), np.uint8) for _ in range(8)]
        self._jpegs = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in noise]
        self.append(30)
        if self._bank:
            self._bank.add_instruction(SOUGHT)
            for number, entity_id in enumerate(list(self._bank.registry.entities)):
                seen = Candidate(
                    3 + number, 0, START_S + number, self._jpegs[number], (float(number), 3.0, 2.0)
                )
                self._bank.add_frame(seen, [entity_id])

    def append(self, count: int) -> float:
        """So many frames, each from another place; s."""
        began = time.perf_counter()
        for number in range(count):
            self._metres += 1.0
            place = Vector(self._metres, 0.0, 2.0)
            jpeg = self._jpegs[number % len(self._jpegs)]
            give_frame(self.stream, self.clock, self._interval_s, jpeg, place)
        return time.perf_counter() - began

    def retrieve_three(self) -> float:
        """All three entities' frames, once more; s."""
        assert self._bank
        assert self.stream.recollection
        self._bank.keep_cached(())
        before, began = self.stream.recollection.counts.retrievals, time.perf_counter()
        self.stream.recollection.before_decision(SOUGHT)
        seconds = time.perf_counter() - began
        assert self.stream.recollection.counts.retrievals == before + 3
        return seconds

    def decide(self) -> float:
        """One decision on a new frame, for an entity that a recalled frame shows; s. It can only hover: so the same
        tokens are written with a bank and without."""
        self.append(1)
        goal = GenerateGoal(self._prompt_id, "go to the red car", deadline_s=60.0)
        began = time.perf_counter()
        ticket = self.stream.submit_generate(goal, tools=self._hover)
        while not ticket.done:
            self.stream.step()
        seconds = time.perf_counter() - began
        assert ticket.result.status is GenerateStatus.OK, ticket.result.message
        return seconds


def in_turns(*timed: Callable[[], float], rounds: int = 60) -> list[float]:
    """The median of each, s, taken in turns so that a busy machine slows all of them alike."""
    taken = [[one() for one in timed] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def costs(pilot: Pilot) -> dict[str, object]:
    """Retrieval against appending, and a decision with a bank against one without, on the shipped pilot."""
    with tempfile.TemporaryDirectory() as folder:
        with_bank, without = Hovering(pilot, Path(folder)), Hovering(pilot, None)
        retrieve, append = in_turns(with_bank.retrieve_three, lambda: without.append(3))
        decide, plain = in_turns(with_bank.decide, without.decide)
    return {
        "recall_3_ms": round(1e3 * retrieve, 2),
        "append_3_ms": round(1e3 * append, 2),
        "recall_3_over_append_3": round(retrieve / append, 3),
        "decision_with_bank_ms": round(1e3 * decide, 2),
        "decision_without_ms": round(1e3 * plain, 2),
        "decision_with_bank_over_without": round(decide / plain, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seeds", default="2001-2100", help="of the flights that retrieve")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pilot = load_model(model_folder(), "cpu")
    result = {
        "machine": machine.describe(),
        **matching(),
        **costs(pilot),
        **retrieval(parse_seeds(options.seeds), pilot),
        **kills(options.kills),
    }
    path = ROOT / "benchmarks/results/memory.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
