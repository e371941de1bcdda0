"""What standing watches cost: `python benchmarks/watches.py` writes benchmarks/results/watches.json.

The embedded pilot is shown one picture after the other; after each, a decision is taken and every watch is answered.
Reported are processor times of an answer to a watch, of a decision and of a picture's append, and their ratios, with
1, 4 and 16 watches. Pictures are noise and the shipped pilot was not taught to answer: costs do not depend on either.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from nav_agent.toolset import tools_json
from nav_common.clock import VirtualClock
from nav_common.data import CompressedImage, GenerateGoal, GenerateStatus, PrimeRequest, WatchRequest
from nav_eval import machine
from nav_pilot import model_folder
from vlm_perception.engine import QwenModel
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream

ROOT = Path(__file__).resolve().parent.parent
START_S = 1000.0


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(pixels, (320, 240)))[1].tobytes())


def timed(stream: Stream) -> float:
    """Processor time of one step, ms."""
    began = time.process_time()
    assert stream.step()
    return 1e3 * (time.process_time() - began)


def measure(model: QwenModel, form: ServingForm, watches: int, frames: int) -> dict[str, Any]:
    clock = VirtualClock(START_S)
    stream = Stream(model, form, clock)
    primed = stream.submit_prime(PrimeRequest(form.system_prompt, tools_json()))
    stream.run_until_idle()
    assert primed.result.success, primed.result.message
    questions = tuple(f"is there a person ahead, number {number}?" for number in range(watches))
    assert stream.submit_watches(WatchRequest("benchmark", questions)).success
    appends, decisions, answers = [], [], []
    for number in range(frames):
        clock.sleep(form.frame_interval_s)
        stream.submit_frame(CompressedImage(clock.now(), picture(number)))
        appends.append(timed(stream))
        goal = stream.submit_generate(GenerateGoal(primed.result.prompt_id, "fly to the red beacon"))
        decisions.append(timed(stream))
        assert goal.result.status is GenerateStatus.OK, goal.result.message
        answers += [timed(stream) for _ in questions]
        assert not stream.step()
    medians = [statistics.median(values) for values in (appends, decisions, answers)]
    append_ms, decision_ms, watch_ms = medians
    return {
        "watches": watches,
        "frames": frames,
        "append_ms": append_ms,
        "decision_ms": decision_ms,
        "watch_ms": watch_ms,
        "watch_over_decision": watch_ms / decision_ms,
        "watch_over_append": watch_ms / append_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/watches.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = model_folder()
    form = ServingForm.load(folder)
    model = QwenModel.load(folder, size=(form.width, form.height), device="cpu")
    measure(model, form, 1, 3)  # the first pass of everything is the slowest
    results = [measure(model, form, watches, options.frames) for watches in (1, 4, 16)]
    report = {"machine": machine.describe(), "load": os.getloadavg(), "results": results}
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    for result in results:
        print({key: round(value, 2) for key, value in result.items()})


if __name__ == "__main__":
    main()
