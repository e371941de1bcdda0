"""Training streams: flights of the expert, with mistakes, in the form in which the pilot is served.

A stream is what one flight leaves in the memory: frames, each the camera's 320 x 240 picture as JPEG, resized as the
engine does; and the samples, each with the frame it rests on, its words, and the call that the expert makes there.
Motion is kinematic with noise: speeds of the real tools, ends off by a few centimetres and degrees.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from airsim_sim import world
from airsim_sim.world import SCENES, World, load_world, parse_world
from nav_agent import toolset
from vlm_perception import prompting
from vlm_perception.prompting import call_text, decision_text

from . import expert, model
from .expert import Call, ExpertState, NwuPose, ObstacleMap, decide, is_collision_free, wrap
from .model import COLOURS, FRAME_INTERVAL_S, HEIGHT, INSTRUCTIONS, RECENT_CALLS, WIDTH, WINDOW_FRAMES

SPEED_M_S, YAW_RATE_DEG_S, SETTLE_S = 2.0, 30.0, 0.8  # the tools' defaults; until the measured speed is zero
MOST_DECISIONS = 14
PROFILE_DEG = tuple(range(-40, 50, 10))  # where the training's auxiliary head tells the free distance
PROFILE_REACH_M = 8.0
DECOY = "  - {name: decoy, kind: pillar, colour: $other, radius: 0.4, height: 5, ring: [6, 24], apart: 3}\n"


@dataclass
class Sample:
    """One decision: the frame it rests on, the words, and the expert's call as text."""

    frame: int
    text: str
    call: str


@dataclass
class TrainingStream:
    """One flight's frames (n, HEIGHT, WIDTH, 3) uint8 RGB, samples, and for each frame what an auxiliary head learns:
    seen (0 or 1), bearing (radians), distance (m) of the goal, free distances (m) along PROFILE_DEG."""

    frames: np.ndarray
    samples: list[Sample]
    labels: np.ndarray
    seed: int = 0
    number: int = 0


@dataclass
class Camera:
    """Renders the drone's camera, through JPEG and the engine's resizing."""

    renderer: Any
    rng: np.random.Generator
    roll_deg: float = 0.0
    quality: int = 85

    def picture(self, pose: NwuPose) -> np.ndarray:
        rgb = self.renderer.render((pose.x, pose.y, pose.z), math.degrees(pose.yaw))
        if self.roll_deg:
            height, width = rgb.shape[:2]
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), self.roll_deg, 1.03)
            rgb = cv2.warpAffine(rgb, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
        return through_jpeg(rgb, self.quality)


def through_jpeg(rgb: np.ndarray, quality: int = 85) -> np.ndarray:
    """A picture of the camera as the model gets it: JPEG, then the engine's bicubic resizing to WIDTH x HEIGHT."""
    _, encoded = cv2.imencode(
        ".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None, "what was encoded can be decoded"
    decoded = np.ascontiguousarray(decoded[..., ::-1])
    return resized(decoded)


def resized(rgb: np.ndarray) -> np.ndarray:
    """As vlm_perception.engine.preprocess resizes on a CPU."""
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
    small = F.interpolate(pixels.contiguous(), (HEIGHT, WIDTH), mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).contiguous().numpy()


@dataclass
class Mission:
    """A world, what is asked for in it, and how."""

    world: World
    obstacles: ObstacleMap
    instruction: str
    colour: str


def sample_mission(seed: int, rng: np.random.Generator) -> Mission:
    """A field of the simulator with that seed. Mostly a red beacon alone; sometimes another colour, and sometimes a
    second beacon of another colour, so that the words matter."""
    kind = rng.random()
    colour = "red" if kind < 0.72 else str(rng.choice(COLOURS[1:]))
    other = str(rng.choice([c for c in COLOURS if c != colour]))
    world = (
        load_world("field", seed, colour=colour)
        if kind < 0.55 or kind > 0.86
        else parse_world(_scene_with_decoy(), "field with a decoy", seed, colour=colour, other=other)
    )
    form = INSTRUCTIONS[0] if rng.random() < 0.4 else str(rng.choice(INSTRUCTIONS))
    return Mission(world, ObstacleMap(world, "beacon"), form.format(colour=colour), colour)


def _scene_with_decoy() -> str:
    scene = (SCENES / "field.yaml").read_text(encoding="utf-8")
    return scene.replace("parameters:\n", "parameters:\n  other: blue\n", 1).replace(
        "goals:", DECOY + "goals:", 1
    )


def start_pose(mission: Mission, rng: np.random.Generator, kind: float) -> NwuPose:
    """Over the start after take-off, or anywhere, or near the goal: where a flight may have come to."""
    z = float(np.clip(rng.normal(2.0, 0.12), 1.4, 3.0))
    if kind < 0.5:
        yaw = math.radians(mission.world.start_yaw_deg) if kind < 0.3 else rng.uniform(-math.pi, math.pi)
        return NwuPose(rng.normal(0, 0.1), rng.normal(0, 0.1), z, wrap(yaw + rng.normal(0, 0.02)))
    z = float(np.clip(rng.normal(2.0, 0.3), 1.4, 3.0))
    goal = mission.obstacles.goal.position
    while True:
        if kind < 0.75:
            x, y = rng.uniform(-20, 20, 2)
            pose = NwuPose(float(x), float(y), z, rng.uniform(-math.pi, math.pi))
        else:
            distance, angle = rng.uniform(0.95, 6.0), rng.uniform(-math.pi, math.pi)
            x, y = goal[0] + distance * math.cos(angle), goal[1] + distance * math.sin(angle)
            pose = NwuPose(x, y, z, wrap(angle + math.pi + rng.uniform(-0.75, 0.75)))
        if mission.obstacles.clearance(pose, 0.0, 0.0) > 0.3 and mission.obstacles.bearing(pose)[1] > 0.9:
            return pose


def start_pose_behind_tree(mission: Mission, rng: np.random.Generator) -> NwuPose:
    """Before a tree that stands about in the way to the goal: what random starts meet too seldom to be learnt."""
    goal = np.array(mission.obstacles.goal.position[:2])
    for _ in range(100):
        tree = mission.obstacles.trees[int(rng.integers(len(mission.obstacles.trees)))]
        line = np.array(tree.position[:2]) - goal
        angle = math.atan2(line[1], line[0]) + rng.normal(0.0, math.radians(3.0))
        beyond = float(np.hypot(*line)) + tree.radius + rng.uniform(1.0, 9.0)
        x, y = goal + beyond * np.array([math.cos(angle), math.sin(angle)])
        z = float(np.clip(rng.normal(2.0, 0.2), 1.4, 3.0))
        pose = NwuPose(float(x), float(y), z, wrap(angle + math.pi + rng.normal(0.0, math.radians(15.0))))
        if mission.obstacles.clearance(pose, 0.0, 0.0) > 0.5 and beyond < 30:
            return pose
    return start_pose(mission, rng, 0.6)


class KinematicFlight:
    """A kinematic flight that collects its stream."""

    def __init__(self, mission: Mission, camera: Camera, pose: NwuPose, rng: np.random.Generator):
        self.mission, self.camera, self.pose, self.rng = mission, camera, pose, rng
        self.frames: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.samples: list[Sample] = []
        self.turns: list[str] = []
        self.smallest_clearance_m = math.inf

    def record_frame(self, pose: NwuPose) -> None:
        self.frames.append(self.camera.picture(pose))
        self.labels.append(_frame_labels(self.mission.obstacles, pose))

    def take_off(self) -> None:
        for z in np.linspace(0.08, 2.0, int(self.rng.integers(3, 6)))[:-1]:
            self.record_frame(NwuPose(self.pose.x, self.pose.y, float(z), self.pose.yaw))
        self.record_frame(self.pose)

    def record_decision(self, call: Call) -> None:
        recent = toolset.recent_calls(self.mission.instruction, self.turns, RECENT_CALLS)
        text = decision_text(self.mission.instruction, recent)
        self.samples.append(Sample(len(self.frames) - 1, text, call_text(*call)))

    def execute(self, call: Call) -> None:
        """Executes the call kinematically, with frames on the way and the barrier frame at the end."""
        name, arguments = call
        start, rng = self.pose, self.rng
        if name == "move_forward":
            length = float(arguments["distance_m"]) + rng.normal(0.0, 0.08)
            drift, swing = rng.normal(0.0, 0.03), rng.normal(0.0, 0.012)
            self.smallest_clearance_m = min(
                self.smallest_clearance_m, self.mission.obstacles.clearance(start, start.yaw, length)
            )
            goal = self.mission.obstacles.goal_clearance(start, start.yaw, length)
            self.smallest_clearance_m = min(
                self.smallest_clearance_m, goal - self.mission.obstacles.goal.radius - 0.3
            )
            duration, done = length / SPEED_M_S, toolset.flew(length)
            self._transit(lambda t: start.moved(length * t, drift * t, swing * t), duration)
        else:
            sign = 1.0 if name == "turn_left" else -1.0
            angle = sign * math.radians(float(arguments["angle_deg"])) + rng.normal(0.0, math.radians(1.2))
            self._transit(
                lambda t: start.moved(0.0, 0.0, angle * t), abs(math.degrees(angle)) / YAW_RATE_DEG_S
            )
            drift = rng.normal(0.0, 0.03)
            self.pose = self.pose.moved(drift, drift)
            done = toolset.turned(angle)
        self.turns.append(toolset.recall_line(toolset.call_line(name, arguments), done))

    def _transit(self, at: Callable[[float], NwuPose], duration: float) -> None:
        end = duration + SETTLE_S
        stamp = self.rng.uniform(0.2, 1.0) * FRAME_INTERVAL_S
        while stamp < end:
            self.record_frame(at(min(stamp / duration, 1.0)))
            stamp += FRAME_INTERVAL_S
        self.pose = at(1.0)
        z = self.pose.z + self.rng.normal(0.0, 0.03)
        self.pose = NwuPose(self.pose.x, self.pose.y, float(np.clip(z, 1.3, 3.2)), self.pose.yaw)
        self.record_frame(self.pose)

    def stream(self, seed: int = 0, number: int = 0) -> TrainingStream:
        frames = np.stack(self.frames)[-WINDOW_FRAMES:]
        cut = len(self.frames) - len(frames)
        samples = [Sample(a.frame - cut, a.text, a.call) for a in self.samples if a.frame >= cut]
        return TrainingStream(frames, samples, np.stack(self.labels)[cut:], seed, number)


def _frame_labels(obstacles: ObstacleMap, pose: NwuPose) -> np.ndarray:
    bearing, distance = obstacles.bearing(pose)
    seen = float(obstacles.visible_pixels(pose) >= 3.0)
    reach = obstacles.free_distances(pose, np.radians(PROFILE_DEG), PROFILE_REACH_M)
    return np.array([seen, bearing, distance, *reach], np.float32)


def mistaken_call(rng: np.random.Generator) -> Call:
    """A random wrong call."""
    if rng.random() < 0.35:
        return "move_forward", {"distance_m": int(rng.choice((1, 2, 4)))}
    side = "turn_left" if rng.random() < 0.5 else "turn_right"
    return side, {"angle_deg": int(rng.choice((10, 20, 30, 45, 90), p=(0.2, 0.2, 0.25, 0.2, 0.15)))}


def fly(seed: int, renderer: Any, number: int = 0) -> TrainingStream:
    """One flight in the field of that seed; `number` draws another start and other mistakes. Odd numbers begin behind a
    tree.

    The expert flies, and now and then does something wrong instead; each decision is labelled with the expert's call.
    """
    rng = np.random.default_rng((seed, number))
    mission = sample_mission(seed, rng)
    renderer.load(mission.world)
    roll = float(rng.normal(0, 2.0)) if rng.random() < 0.3 else 0.0
    camera = Camera(renderer, rng, roll, int(rng.integers(75, 96)))
    kind = float(rng.random())
    behind = number % 2 == 1 and bool(mission.obstacles.trees)
    start = start_pose_behind_tree(mission, rng) if behind else start_pose(mission, rng, kind)
    flight = KinematicFlight(mission, camera, start, rng)
    mistakes = 0.0 if rng.random() < 0.3 else 0.2
    if not behind and kind < 0.5 and rng.random() < 0.7:
        flight.take_off()
    else:
        flight.record_frame(flight.pose)
    state = ExpertState()
    for _ in range(MOST_DECISIONS):
        call = decide(mission.obstacles, flight.pose, state)
        flight.record_decision(call)
        if rng.random() < mistakes:
            call = mistaken_call(rng)
        if call[0] == "finish":
            break
        if not is_collision_free(mission.obstacles, flight.pose, call):
            call = ("turn_left", {"angle_deg": 30})
        flight.execute(call)
        state.record(call)
    return flight.stream(seed, number)


# -- many flights ------------------------------------------------------------------------------------------------


def write_shard(path: Path, jobs: Sequence[tuple[int, int]]) -> None:
    """Flies the (seed, number) pairs and writes their streams into one .npz."""
    from airsim_sim.render import open_renderer

    torch.set_num_threads(1)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's rasteriser: one thread for each of our processes
    renderer = open_renderer(load_world("field", seed=jobs[0][0]))
    try:
        save_streams(path, [fly(seed, renderer, number) for seed, number in jobs])
    finally:
        renderer.close()


def save_streams(path: Path, streams: Sequence[TrainingStream]) -> None:
    """Writes whole or not at all."""
    words = [
        {"samples": [vars(a) for a in s.samples], "frames": len(s.frames), "seed": s.seed, "number": s.number}
        for s in streams
    ]
    frames, labels = np.concatenate([s.frames for s in streams]), np.concatenate([s.labels for s in streams])
    part = path.with_suffix(".part.npz")
    np.savez(part, frames=frames, labels=labels, words=np.array(json.dumps(words)))
    part.rename(path)


def load_streams(path: Path) -> list[TrainingStream]:
    """What `save_streams` wrote."""
    with np.load(path) as file:
        frames, labels, words = file["frames"], file["labels"], json.loads(str(file["words"]))
    streams, at = [], 0
    for entry in words:
        span = slice(at, at + entry["frames"])
        at = span.stop
        samples = [Sample(**ask) for ask in entry["samples"]]
        streams.append(TrainingStream(frames[span], samples, labels[span], entry["seed"], entry["number"]))
    return streams


def _source_digest() -> str:
    """A name for all that the flights depend on: the code that flies, draws and words them, and the scene."""
    modules = (sys.modules[__name__], expert, model, toolset, prompting, world)
    files = (SCENES / "field.yaml", SCENES.parent / "render.py")
    sources = [inspect.getsource(module) for module in modules] + [file.read_text() for file in files]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:12]


def generate(
    folder: Path, jobs: Sequence[tuple[int, int]], shard: int = 30, processes: int = 2
) -> Iterator[Path]:
    """Shards of streams in the folder, made by processes of their own; those that the same code made are not made
    again.

    Yields each path as soon as it is there.
    """
    folder = folder / _source_digest()
    folder.mkdir(parents=True, exist_ok=True)
    parts = [jobs[i : i + shard] for i in range(0, len(jobs), shard)]
    paths = [folder / f"{part[0][0]:04d}_{part[0][1]}_{len(part)}.npz" for part in parts]
    todo = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pending = [pool.apply_async(write_shard, job) for job in todo]
        waiting = list(paths)
        while waiting:
            for path in [path for path in waiting if path.exists()]:
                waiting.remove(path)
                yield path
            for result in pending:
                if result.ready():
                    result.get()  # raises what went wrong there
            if waiting:
                time.sleep(0.2)
