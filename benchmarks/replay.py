"""What recording, judging and replaying cost: `python benchmarks/replay.py` writes benchmarks/results/replay.json.

- replay: 600 frames of 320x240 at 10 Hz, rendered along a circle in the field, with the embedded pilot and a decision
  at every 10th; speed against real time, and resident memory from frame 200 to 600.
- record: ten minutes' worth of 640x480 JPEG at 20 Hz through real topics into the recorder's own process, as fast as
  `--pace` times real time; frames lost, and the recorder's processor time against the ten minutes. Pictures travel
  best-effort: from about five times real time on (6 MB/s), DDS itself loses some on two cores.
- check: a recording of 10,000 messages through the judge.

On a shared machine wall time is disturbed by others; processor time, given beside it, is not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2

from nav_common import topics
from nav_common.conversions import encode
from nav_common.data import CompressedImage, Odometry
from nav_common.frames import Quaternion, Vector
from nav_common.testing import unique_domain_id
from nav_eval import judge, machine
from nav_eval.bags import Bag, BagWriter
from nav_eval.testing.synthetic import flight, write

ROOT = Path(__file__).resolve().parent.parent
START_S = 1_000_000_000.0


def circle_bag(path: Path, frames: int, rate_hz: float) -> None:
    """Pictures of a flight on a circle, with its odometry."""
    from airsim_sim.simulation import Simulation
    from airsim_sim.world import load_world

    simulation = Simulation(load_world("field", 950))
    image, odometry = topics.FRONT_IMAGE, topics.ODOM
    with BagWriter(path) as writer:
        for topic in (image, odometry):
            writer.add_topic(topic.resolve(), topic.type, topic.qos)
        for number in range(frames):
            seconds = START_S + number / rate_hz
            angle = 2 * math.pi * number / frames
            x, y = 3 * math.cos(angle), 3 * math.sin(angle)
            simulation.set_pose((x, y, 2.0), math.degrees(angle) + 90.0)
            # Where does not matter, only that it moves.
            orientation = Quaternion(math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))
            pose = Odometry(seconds, position=Vector(x, y, 2.0), orientation=orientation)
            writer.put(odometry.resolve(), round(seconds * 1e9), encode(pose))
            pixels = cv2.cvtColor(simulation.render(), cv2.COLOR_RGB2BGR)
            jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
            picture = CompressedImage(seconds, jpeg.tobytes(), "jpeg")
            writer.put(image.resolve(), round(seconds * 1e9), encode(picture))
    simulation.close()


def bench_replay(folder: Path, model_folder: Path, frames: int) -> dict[str, Any]:
    import torch

    from nav_eval.lockstep import load_model
    from nav_eval.replay import replay

    torch.set_num_threads(1)
    bag = folder / "circle"
    circle_bag(bag, frames, 10.0)
    model, form = load_model(model_folder)
    replay(bag, model, form, every=100, instruction="fly to the red beacon")  # warm
    cpu = time.process_time()
    result = replay(bag, model, form, every=10, instruction="fly to the red beacon")
    cpu = time.process_time() - cpu
    rss = result.rss_mib
    return {
        "frames": result.frames,
        "frames_appended": result.appended,
        "decisions": len(result.rows),
        "evictions": result.curve[-1].evictions,
        "recorded_s": round(result.recorded_s, 1),
        "wall_s": round(result.wall_s, 2),
        "cpu_s": round(cpu, 2),
        "realtime_factor": round(result.recorded_s / result.wall_s, 1),
        "realtime_factor_by_cpu": round(result.recorded_s / cpu, 1),
        "rss_mib": {str(frame): round(value, 1) for frame, value in rss.items()},
        "rss_growth_mib_200_to_end": round(rss[max(rss)] - rss[200], 1) if 200 in rss else None,
    }


PUBLISHER = """
import sys, time
import numpy as np
import rclpy
from nav_common import ros, topics
count, period_s, size = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
rclpy.init()
node = rclpy.create_node("camera")
image = topics.FRONT_IMAGE
deep = ros.qos_profile(topics.Qos(reliable=True, depth=200))
publisher = node.create_publisher(ros.message_type(image.type), image.resolve(), deep)
message = ros.message_type(image.type)()
message.format = "jpeg"
message.data.frombytes(np.random.default_rng(0).integers(0, 255, size, np.uint8).tobytes())
while publisher.get_subscription_count() == 0:
    time.sleep(0.02)
due = time.monotonic()
for number in range(count):
    message.header.stamp.sec = number
    publisher.publish(message)
    due = max(due + period_s, time.monotonic() - 0.1)
    time.sleep(max(0.0, due - time.monotonic()))
time.sleep(2.0)
"""


def bench_record(folder: Path, minutes: float, pace: float, size: int) -> dict[str, Any]:
    """Frames of `size` bytes, about what 640x480 at quality 85 takes."""
    frames = round(minutes * 60 * 20)
    environment = {**os.environ, "ROS_DOMAIN_ID": str(unique_domain_id())}
    bag = folder / "recording"
    recorder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from nav_eval.node import record; record()",
            "--ros-args",
            "-p",
            f"output:={bag}",
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert recorder.stderr
    try:
        while "recording to" not in recorder.stderr.readline():
            pass
        idle = processor_s(recorder.pid)
        start = time.monotonic()
        arguments = [str(frames), str(1 / 20 / pace), str(size)]
        subprocess.run([sys.executable, "-c", PUBLISHER, *arguments], env=environment, check=True)
        wall = time.monotonic() - start
        used, peak = processor_s(recorder.pid) - idle, peak_mib(recorder.pid)
        recorder.send_signal(signal.SIGINT)
        recorder.wait(timeout=60)
    finally:
        recorder.kill()
    with Bag(bag) as recording:
        written = recording.counts[topics.FRONT_IMAGE.resolve()]
    return {
        "frames_sent": frames,
        "frames_recorded": written,
        "frames_lost": frames - written,
        "bytes_a_frame": size,
        "pace": round(frames / 20 / wall, 1),
        "cpu_s": round(used, 2),
        "core_share_at_real_pace": round(used / (minutes * 60), 4),
        "peak_rss_mib": round(peak, 1),
    }


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def bench_check(folder: Path) -> dict[str, Any]:
    rows = flight(lambda script: setattr(script, "end_s", 330.0))
    bag = write(folder / "flight", rows)
    wall, cpu = time.monotonic(), time.process_time()
    report = judge.check(bag)
    return {
        "messages": report.messages,
        "breaches": len(report.breaches),
        "wall_s": round(time.monotonic() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="default: the pilot shipped in nav_pilot")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the recording's worth")
    parser.add_argument("--pace", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/replay.json")
    options = parser.parse_args()
    import nav_pilot

    folder = Path(tempfile.mkdtemp(prefix="bench_replay_"))
    try:
        results = {
            "check": bench_check(folder),
            "replay": bench_replay(folder, options.model or nav_pilot.model_folder(), options.frames),
            "record": bench_record(folder, options.minutes, options.pace, 60_000),
            "machine": machine.describe(),
        }
    finally:
        shutil.rmtree(folder)
    text = json.dumps(results, indent=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
