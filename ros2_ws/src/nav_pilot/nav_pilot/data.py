"""Training streams: flights of the expert, with mistakes, in the form in which the pilot is served.

A stream is what one flight leaves in the memory: frames, each the camera's 320 x 240 picture as JPEG, resized as the
engine does; what each shows (`sight.py`); and the samples, each with the frame it rests on, its words, and the answer.
At each decision the same pictures are asked for every object that could be named, and for one that is not there: so the
answer follows from the words, and words cost no rendering. Motion is kinematic with noise: speeds of the real tools,
ends off by a few centimetres and degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from airsim_sim import instructions
from airsim_sim.instructions import Instruction, Task, Wording
from airsim_sim.true_map import TrueMap
from airsim_sim.world import Goal, World, WorldObject, load_world
from nav_agent import toolset
from nav_common import result_lines
from nav_common.contract import LOWEST_ALTITUDE_M
from vlm_perception.prompting import (
    WAY_FREE_QUESTION,
    YES_NO,
    call_text,
    decision_text,
    question_text,
    sees_question,
)

from .expert import NOT_FOUND, SEARCH, TREE_MARGIN_M, Call, Expert, NwuPose, wrap
from .model import (
    FRAME_INTERVAL_S,
    HEIGHT,
    RECENT_CALLS,
    WIDTH,
    WINDOW_FRAMES,
)  # fmt: skip
from .sight import SightLabels, Sights

SPEED_M_S, YAW_RATE_DEG_S, SETTLE_S = 2.0, 30.0, 0.8  # the tools' defaults; until the measured speed is zero
VERTICAL_SPEED_M_S = 1.0
MOST_DECISIONS = 34
MOST_INSTRUCTIONS = 3
START_CLEARANCE_M = 0.5
# How often each scene is flown: those whose words decide most often, the two others as often as they need.
SCENE_SHARES = {
    "field": 0.08,
    "field-decoys": 0.15,
    "field-mixed": 0.25,
    "corridor": 0.15,
    "wall": 0.08,
    "memory": 0.14,
    "recall": 0.15,
}
MEMORY_SCENE = "memory"
"""Flown as its mission is: out to the beacon, and back to the one of two like cars that its first picture shows."""
RECALL_SCENE = "recall"
"""Flown from object to object, or back to the lamp from where it cannot be seen: what was seen of it long ago is
brought back (`learn.recalled`)."""
RECALL_FROM_M = (30.0, 95.0)
"""How far from the lamp the way back to it begins, where that is no other goal."""
LOOK_FROM_M = (0.8, 8.0)
"""From how far beyond an object's outline the look is taken that a flight begins with."""
OPEN_COLOURS = {
    "field": ("colour",),
    "corridor": ("colour",),
    "wall": ("colour", "landmark"),
    "memory": ("colour", "landmark"),
    "recall": ("colour", "second", "third", "fourth"),
}
FLIGHTS_A_WORLD = 2
ABSENT_SHARE = 0.18  # of the instructions that are flown name something that is not there
UNKNOWN_SHARE = 0.2  # of these, words that name nothing at all
LAND_WAIT_SHARE = 0.05  # of them, to land or to wait
PILOT_SHARE = 0.75  # of the decisions of a flight in which an earlier pilot flies and the expert corrects


GoalLabel = tuple[float, float, float, float]
Pilot = Callable[[Sequence[np.ndarray], str, Sequence[str]], Call]
"""A pilot in flight: the call for all frames so far, the instruction and the recent calls."""


@dataclass
class Sample:
    """One decision or question: the frame it rests on, the words, and the right answer as text.

    goal: seen in that frame (0 or 1), known from this flight (0 or 1), bearing (radians), distance (m).
    looks: what the words name: index in sight.KINDS and in sight.COLOUR_WORDS; (0, 0) for nothing that is there, or not
        alone there.
    flown: whether the flight followed this instruction.
    """

    frame: int
    text: str
    answer: str
    goal: GoalLabel = (0.0, 0.0, 0.0, 0.0)
    looks: tuple[int, int] = (0, 0)
    flown: bool = True

    @property
    def is_call(self) -> bool:
        """Whether the answer is a tool call; else it is yes or no."""
        return self.answer not in YES_NO


@dataclass
class TrainingStream:
    """One flight's frames (n, HEIGHT, WIDTH, 3) uint8 RGB, its samples, what each frame shows (n, rows of
    `sight.SightLabels`, BINS) uint8, and where it was taken (n, 3) float32: north, west (m), yaw (radians)."""

    frames: np.ndarray
    samples: list[Sample]
    sights: np.ndarray
    places: np.ndarray
    seed: int = 0
    number: int = 0
    scene: str = ""
    labels: tuple[str, ...] = ()
    """What is said before each frame: "" but of recalled ones."""

    def __post_init__(self) -> None:
        self.labels = self.labels or ("",) * len(self.frames)


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


class Place:
    """A world with its map and its renderer."""

    def __init__(self, world: World, renderer: Any):
        renderer.load(world)
        self.world, self.renderer = world, renderer
        self.map = TrueMap(world)
        self.sights = Sights(world, renderer)
        self.candidates = instructions.candidates(world)
        looks = {item.name: self.sights.looks_of(item.name) for item in world.objects}
        self.alike = {name for name in self.candidates if list(looks.values()).count(looks[name]) > 1}
        """Those that another object looks like: one picture cannot say which of them it shows."""

    def looks_of(self, name: str) -> tuple[int, int]:
        """`Sample.looks` of an object."""
        return (0, 0) if name in self.alike else self.sights.looks_of(name)

    def is_open(self, pose: NwuPose) -> bool:
        """Whether the drone can be there, with room about it."""
        point = np.array([[pose.x, pose.y, pose.z]])
        return float(self.map.clearance(point)[0]) > START_CLEARANCE_M

    def is_collision_free(self, pose: NwuPose, call: Call) -> bool:
        """Whether executing a call is collision-free, with a little room."""
        name, arguments = call
        if name != "move_forward":
            return True
        length = float(arguments["distance_m"]) + 0.2
        return self.map.segment_clearance((pose.x, pose.y, pose.z), pose.yaw, length) > 0.15

    def goal_label(self, goal: str, pose: NwuPose, seen: bool, known: bool) -> GoalLabel:
        """`Sample.goal` of an object."""
        if not goal:
            return 0.0, 0.0, 0.0, 0.0
        item = self.world.object(goal)
        dx, dy = item.position[0] - pose.x, item.position[1] - pose.y
        bearing = wrap(math.atan2(dy, dx) - pose.yaw)
        return float(seen), float(known), round(bearing, 4), round(item.distance_m((pose.x, pose.y)), 3)


def scene_of(rng: np.random.Generator) -> str:
    """A scene's name, as often as SCENE_SHARES says."""
    return str(rng.choice(list(SCENE_SHARES), p=list(SCENE_SHARES.values())))


def draw_instruction(
    place: Place, rng: np.random.Generator, number: int, before: str = "", seen: Collection[str] = ()
) -> Instruction:
    """The words of a flight's instruction `number` (0 for the first): one of the objects, or something absent.

    Args:
        before: the goal of the instruction before, which is not asked for again.
        seen: objects that "go back to" may name.
    """
    here, wording = place.world, drawn_wording(rng)
    if rng.random() < LAND_WAIT_SHARE:
        return (instructions.land if rng.random() < 0.6 else instructions.wait)(rng, wording)
    if here.guide:
        goal = here.goals[min(number, len(here.goals) - 1)].name
        guide = "" if number else here.guide
        return instructions.go_to(here, goal, rng, wording, back=bool(number), guide=guide)
    others = [name for name in place.candidates if name != before]
    if rng.random() < ABSENT_SHARE or not others:
        return _absent(here, rng, wording)
    goal = here.goals[0].name if here.name == "field" else str(rng.choice(others))
    return instructions.go_to(here, goal, rng, wording, back=goal in seen and rng.random() < 0.6)


def _absent(world: World, rng: np.random.Generator, wording: Wording) -> Instruction:
    """To something that is not there, or that nobody knows."""
    if rng.random() < UNKNOWN_SHARE:
        return instructions.unknown(rng)
    return instructions.name_absent(world, rng, wording)


def drawn_wording(rng: np.random.Generator) -> Wording:
    return Wording.WIDE if rng.random() < 0.6 else Wording.TRAINING


def start_pose(place: Place, rng: np.random.Generator, goal: str) -> NwuPose:
    """Over the start after take-off, or anywhere, or near the goal: where a flight may have come to. In the memory
    scene over the start, as it is flown."""
    kind = 0.0 if place.world.name == MEMORY_SCENE else rng.random()
    yaw = math.radians(place.world.start_yaw_deg)
    z = float(np.clip(rng.normal(2.0, 0.12), 1.4, 3.0))
    if kind < 0.5 or (place.world.guide and kind < 0.75):
        yaw = yaw if kind < 0.3 or place.world.guide else float(rng.uniform(-math.pi, math.pi))
        return NwuPose(rng.normal(0, 0.1), rng.normal(0, 0.1), z, wrap(yaw + rng.normal(0, 0.02)))
    z = float(np.clip(rng.normal(2.0, 0.3), 1.4, 3.0))
    low, high = place.map.bounds()
    for _ in range(200):
        if kind < 0.75 or not goal:
            x, y = rng.uniform(np.maximum(low, -20), np.minimum(high, 45))
            pose = NwuPose(float(x), float(y), z, float(rng.uniform(-math.pi, math.pi)))
        else:
            item = place.world.object(goal)
            x, y, angle = _place_around(item, item.radius + rng.uniform(0.6, 6.0), rng)
            pose = NwuPose(float(x), float(y), z, wrap(angle + math.pi + float(rng.uniform(-0.75, 0.75))))
        if place.is_open(pose):
            return pose
    return NwuPose(0.0, 0.0, 2.0, yaw)


class KinematicFlight:
    """A kinematic flight that collects the frames of its stream. pilot: an earlier one that flies, with mistakes of its
    own."""

    def __init__(
        self,
        place: Place,
        camera: Camera,
        pose: NwuPose,
        rng: np.random.Generator,
        pilot: Pilot | None = None,
    ):
        self.place, self.camera, self.pose, self.rng, self.pilot = place, camera, pose, rng, pilot
        self.poses: list[NwuPose] = []
        self.frames: list[np.ndarray] = []
        self.sights: list[SightLabels] = []
        self.samples: list[Sample] = []
        self.calls: list[str] = []  # recall lines of those of the present instruction
        self.seen: set[str] = set()  # objects that some picture of this flight showed
        self.kept = 0  # first frames that stand in each of its streams, however long ago they were taken
        self.smallest_clearance_m = math.inf

    def record_frame(self, pose: NwuPose) -> None:
        self.frames.append(self.camera.picture(pose))
        self.poses.append(pose)
        self.sights.append(self.place.sights.labels(pose))
        self.seen.update(name for name in self.place.candidates if self.sights[-1].sees(name))

    def take_off(self) -> None:
        for z in np.linspace(0.08, 2.0, int(self.rng.integers(3, 6)))[:-1]:
            self.record_frame(NwuPose(self.pose.x, self.pose.y, float(z), self.pose.yaw))
        self.record_frame(self.pose)

    def record_decision(self, instruction: Instruction, call: Call, flown: bool = True) -> None:
        recent = toolset.recent_calls(instruction.text, self.calls, RECENT_CALLS)
        self._record(decision_text(instruction.text, recent), call_text(*call), instruction.goal, flown)

    def record_question(self, question: str, yes: bool, goal: str = "") -> None:
        self._record(question_text(question), YES_NO[0] if yes else YES_NO[1], goal, flown=False)

    def _record(self, text: str, answer: str, goal: str, flown: bool) -> None:
        in_memory = self.sights[: self.kept] + self.sights[-WINDOW_FRAMES:]
        known = any(labels.sees(goal) for labels in in_memory)
        label = self.place.goal_label(goal, self.pose, self.sights[-1].sees(goal), known)
        looks = self.place.looks_of(goal)
        self.samples.append(Sample(len(self.frames) - 1, text, answer, label, looks, flown))

    def execute(self, call: Call) -> None:
        """Executes the call kinematically, with frames on the way and the barrier frame at the end."""
        name, arguments = call
        start, rng = self.pose, self.rng
        if name == "move_forward":
            length = float(arguments["distance_m"]) + rng.normal(0.0, 0.08)
            drift, swing = rng.normal(0.0, 0.03), rng.normal(0.0, 0.012)
            clearance = self.place.map.segment_clearance((start.x, start.y, start.z), start.yaw, length)
            self.smallest_clearance_m = min(self.smallest_clearance_m, clearance)
            duration, done = length / SPEED_M_S, result_lines.flew(length)
            self._transit(lambda t: start.moved(length * t, drift * t, swing * t), duration)
        elif name in ("climb", "descend"):
            up = float(arguments["distance_m"]) * (1 if name == "climb" else -1)
            up = max(start.z + up, min(start.z, LOWEST_ALTITUDE_M)) - start.z + rng.normal(0.0, 0.03)
            self._transit(lambda t: replace(start, z=start.z + up * t), abs(up) / VERTICAL_SPEED_M_S)
            self.pose = replace(self.pose, z=start.z + up)
            lowest = (
                result_lines.LOWEST
                if name == "descend" and -up < float(arguments["distance_m"]) - 0.3
                else ""
            )
            done = result_lines.result_line(result_lines.climbed(up), lowest)
        elif name == "hover":
            self._transit(lambda t: start, float(arguments["seconds"]))
            done = result_lines.hovered(float(arguments["seconds"]))
        else:
            sign = 1.0 if name == "turn_left" else -1.0
            angle = sign * math.radians(float(arguments["angle_deg"])) + rng.normal(0.0, math.radians(1.2))
            self._transit(
                lambda t: start.moved(0.0, 0.0, angle * t), abs(math.degrees(angle)) / YAW_RATE_DEG_S
            )
            drift = rng.normal(0.0, 0.03)
            self.pose = self.pose.moved(drift, drift)
            done = result_lines.turned(angle)
        self.calls.append(toolset.recall_line(toolset.call_line(name, arguments), done))

    def _transit(self, at: Callable[[float], NwuPose], duration: float) -> None:
        end = duration + SETTLE_S
        stamp = self.rng.uniform(0.2, 1.0) * FRAME_INTERVAL_S
        while stamp < end:
            self.record_frame(at(min(stamp / max(duration, 1e-6), 1.0)))
            stamp += FRAME_INTERVAL_S
        self.pose = at(1.0)
        z = float(np.clip(self.pose.z + self.rng.normal(0.0, 0.03), LOWEST_ALTITUDE_M, 3.2))
        self.pose = replace(self.pose, z=z)
        self.record_frame(self.pose)

    def streams(self, seed: int = 0, number: int = 0) -> list[TrainingStream]:
        """The flight by windows of frames, the last one up to its end; each behind the frames that are kept, with the
        samples that follow those of the one before."""
        frames, sights = np.stack(self.frames), np.stack([labels.bins for labels in self.sights])
        places = np.array([(pose.x, pose.y, pose.yaw) for pose in self.poses], np.float32)
        found, done = [], 0
        for end in (*range(WINDOW_FRAMES, len(frames), WINDOW_FRAMES), len(frames)):
            first = max(0, end - WINDOW_FRAMES)
            at = [*range(min(self.kept, first)), *range(first, end)]
            samples = [replace(a, frame=at.index(a.frame)) for a in self.samples if done <= a.frame < end]
            parts = frames[at], samples, sights[at], places[at]
            found.append(TrainingStream(*parts, seed, number, self.place.world.name))
            done = end
        return found


FLOWN_TOOLS = ("move_forward", "climb", "descend", "hover", "turn_left", "turn_right")
"""What `KinematicFlight.execute` can do."""


def mistaken_call(rng: np.random.Generator) -> Call:
    """A random wrong call."""
    if rng.random() < 0.35:
        return "move_forward", {"distance_m": int(rng.choice((1, 2, 4)))}
    side = "turn_left" if rng.random() < 0.5 else "turn_right"
    return side, {"angle_deg": int(rng.choice((10, 20, 30, 45, 90), p=(0.2, 0.2, 0.25, 0.2, 0.15)))}


class SightedExpert(Expert):
    """An expert that has seen what the pictures of its flight truly showed; several share it."""

    def __init__(self, true_map: TrueMap, seen: set[str], instruction: Instruction):
        super().__init__(true_map)
        self._seen, self.instruction = seen, instruction
        self._last: list[Call] = []
        self.begin(instruction)

    def looks(self, pose: NwuPose) -> None:
        """What was seen is known from the pictures."""

    def executed(self, call: Call) -> None:
        super().executed(call)
        self._last = [*self._last, call][-4:]

    def _search(self, pose: NwuPose, may_be_hidden: bool) -> Call:
        """Four views, and from another place four views again: what a policy can tell from its last four calls.
        Whether the object is there it cannot know, so the expert does not either."""
        if self._searched < 3:
            return SEARCH
        if len(self._last) == 4 and self._last[0][0] == "move_forward":
            return NOT_FOUND
        for metres in (4, 2):
            if self._map.segment_clearance((pose.x, pose.y, pose.z), pose.yaw, metres + 0.5) > TREE_MARGIN_M:
                return "move_forward", {"distance_m": metres}
        return "turn_right", {"angle_deg": 45}


def drawn_scene(seed: int, number: int = 0) -> str:
    """The scene of the worlds of that seed and draw."""
    return scene_of(_world_rng(seed, number))


def _world_rng(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, number, 0xF1E1D))


def open_place(seed: int, renderer: Any, number: int = 0) -> Place:
    """A world of that seed; `number` draws another scene, and other colours of those that its file leaves open."""
    rng = _world_rng(seed, number)
    scene = scene_of(rng)
    drawn = [str(colour) for colour in rng.permutation(instructions.COLOURS)]
    usual = rng.random() < 0.6 or scene not in OPEN_COLOURS
    colours = {} if usual else dict(zip(OPEN_COLOURS[scene], drawn, strict=False))
    return Place(load_world(scene, seed, **colours), renderer)


def fly(seed: int, place: Place, number: int = 0, pilot: Pilot | None = None) -> list[TrainingStream]:
    """One flight in a place of that seed, as one or two streams; `number` draws another start, words and mistakes.

    The expert flies one to three instructions, and now and then does something wrong instead; or a pilot flies most of
    the decisions. Each decision is labelled with the expert's call for the instruction that is flown, and for the
    others that the same pictures could be asked.
    """
    rng, renderer = np.random.default_rng((seed, number)), place.renderer
    first = draw_instruction(place, rng, 0)
    roll = float(rng.normal(0, 2.0)) if rng.random() < 0.3 else 0.0
    camera = Camera(renderer, rng, roll, int(rng.integers(75, 96)))
    start = start_pose(place, rng, first.goal)
    flight = KinematicFlight(place, camera, start, rng, pilot)
    if place.world.name == RECALL_SCENE:
        (_fly_back if rng.random() < 0.5 else _fly_on)(flight)
        return flight.streams(seed, number)
    mistakes = 0.0 if rng.random() < 0.3 or pilot else 0.2
    if math.hypot(start.x, start.y) < 0.5 and rng.random() < 0.7:
        flight.take_off()
    else:
        flight.record_frame(flight.pose)
    if place.world.name == MEMORY_SCENE:
        _fly_out_and_back(flight)
        return flight.streams(seed, number)
    left, instruction = MOST_DECISIONS, first
    for turn in range(MOST_INSTRUCTIONS):
        left = _fly_instruction(flight, instruction, mistakes, left)
        if instruction.task is Task.LAND:
            break
        again = 0.9 if place.world.guide and turn + 1 < len(place.world.goals) else 0.45
        if left <= 0 or rng.random() > again or (place.world.guide and turn + 1 >= len(place.world.goals)):
            break
        instruction = draw_instruction(place, rng, turn + 1, instruction.goal, flight.seen)
    return flight.streams(seed, number)


def _fly_out_and_back(flight: KinematicFlight) -> None:
    """From the start, where one of two like things was seen, to the first goal of the scene, then back to that one."""
    place, rng = flight.place, flight.rng
    for item in place.world.goals:
        back = item is place.world.goals[-1]
        onwards = instructions.go_to(place.world, item.name, rng, drawn_wording(rng), back=back)
        _fly_instruction(flight, onwards, 0.15, MOST_DECISIONS)


def _fly_on(flight: KinematicFlight) -> None:
    """From one goal of the scene to the next, three times: each is far from the one before, and most do not stand ahead
    of where that one was reached."""
    place, rng = flight.place, flight.rng
    goals, left = place.world.goals[:-1], MOST_DECISIONS
    first = int(rng.integers(len(goals) - 2))
    _look_at(flight, goals[first])
    for item in goals[first : first + 3]:
        onwards = instructions.go_to(place.world, item.name, rng, drawn_wording(rng))
        left = _fly_instruction(flight, onwards, 0.15, left)
        if left <= 0:
            break


def _look_at(flight: KinematicFlight, item: Goal) -> None:
    """The first frame of a flight, taken with an object in sight: as one leaves it, or from a few metres."""
    place, rng = flight.place, flight.rng
    size = place.world.object(item.name).radius
    for _ in range(50):
        x, y, angle = _place_around(item, size + rng.uniform(*LOOK_FROM_M), rng)
        flight.pose = NwuPose(x, y, 2.0, wrap(angle + math.pi + float(rng.uniform(-0.75, 0.75))))
        if place.is_open(flight.pose) and place.sights.labels(flight.pose).sees(item.name):
            break
    flight.record_frame(flight.pose)


def _place_around(
    item: Goal | WorldObject, away_m: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """A place so far from an object, in any direction: north, west, and that direction, rad from north to west."""
    angle = rng.uniform(-math.pi, math.pi)
    return item.position[0] + away_m * math.cos(angle), item.position[1] + away_m * math.sin(angle), angle


def _fly_back(flight: KinematicFlight) -> None:
    """One look at the first goal of the scene, then from far away the way back to it: mostly from where another goal
    was just reached, which then fills picture and memory."""
    place, rng = flight.place, flight.rng
    lamp = place.world.goals[0]
    _look_at(flight, lamp)
    flight.kept = 1
    if rng.random() < 0.7:
        other = place.world.goals[int(rng.integers(2, len(place.world.goals) - 1))]
        _put_near(flight, other, (4.0, 16.0))
        onwards = instructions.go_to(place.world, other.name, rng, drawn_wording(rng))
        _fly_instruction(flight, onwards, 0.1, MOST_DECISIONS)
    else:
        _put_near(flight, lamp, RECALL_FROM_M)
    back = instructions.go_to(place.world, lamp.name, rng, drawn_wording(rng), back=True)
    _fly_instruction(flight, back, 0.1, MOST_DECISIONS)


def _put_near(flight: KinematicFlight, item: Goal, within_m: tuple[float, float]) -> None:
    """The next frame of a flight, taken somewhere within a ring around an object, looking anywhere."""
    rng = flight.rng
    while True:
        x, y, _ = _place_around(item, rng.uniform(*within_m), rng)
        pose = NwuPose(x, y, 2.0, float(rng.uniform(-math.pi, math.pi)))
        if flight.place.is_open(pose):
            break
    flight.pose = pose
    flight.record_frame(pose)


def _fly_instruction(flight: KinematicFlight, instruction: Instruction, mistakes: float, left: int) -> int:
    """Flies one instruction to its end; the decisions that are left then."""
    place, rng = flight.place, flight.rng
    flight.calls = []
    asked = [instruction, *_alternatives(place, instruction, rng)]
    experts = [SightedExpert(place.map, flight.seen, one) for one in asked]
    while left > 0:
        left -= 1
        calls = [one(flight.pose) for one in experts]
        for one, call in zip(experts, calls, strict=True):
            flight.record_decision(one.instruction, call, one is experts[0])
        if rng.random() < 0.5:
            _ask_question(flight)
        call = calls[0]
        if rng.random() < mistakes:
            call = mistaken_call(rng)
        if call[0] == "finish":
            break
        if flight.pilot and rng.random() < PILOT_SHARE:
            call = _piloted(flight, instruction, call)
        if not place.is_collision_free(flight.pose, call):
            call = ("turn_left", {"angle_deg": 30})
        flight.execute(call)
        for one in experts:
            one.executed(call)
    return left


def _piloted(flight: KinematicFlight, instruction: Instruction, expert_call: Call) -> Call:
    """The pilot's call. Where it would collide it flies as far as it can; what it ends too soon, the expert goes on
    with."""
    assert flight.pilot
    recent = toolset.recent_calls(instruction.text, flight.calls, RECENT_CALLS)
    name, arguments = flight.pilot(flight.frames, instruction.text, recent)
    if name == "move_forward":
        shorter = [m for m in toolset.DISTANCE_M if m <= int(arguments["distance_m"])]
        free = [m for m in shorter if flight.place.is_collision_free(flight.pose, (name, {"distance_m": m}))]
        return (name, {"distance_m": max(free)}) if free else expert_call
    return (name, arguments) if name in FLOWN_TOOLS else expert_call


def _alternatives(place: Place, instruction: Instruction, rng: np.random.Generator) -> list[Instruction]:
    """What else is asked at the same decisions: up to three other objects, and something absent."""
    if place.world.guide:
        return []
    others = [name for name in place.candidates if name != instruction.goal]
    found = [
        instructions.go_to(place.world, str(name), rng, drawn_wording(rng))
        for name in rng.permutation(others)[:3]
    ]
    if instruction.task is not Task.ABSENT:
        found.append(_absent(place.world, rng, drawn_wording(rng)))
    return found


def _ask_question(flight: KinematicFlight) -> None:
    """A yes/no question about the newest frame: the way ahead, or an object that is there or not."""
    place, rng, sight_now = flight.place, flight.rng, flight.sights[-1]
    if rng.random() < 0.3:
        flight.record_question(WAY_FREE_QUESTION, sight_now.ahead_m > 4.0)
        return
    named = [name for name in place.candidates if name not in place.alike]
    seen = [name for name in named if sight_now.sees(name)]
    name = str(rng.choice(seen if seen and rng.random() < 0.6 else named))
    question = sees_question(instructions.called(place.world, name))
    flight.record_question(question, sight_now.sees(name), name)


def fly_world(
    seed: int, renderer: Any, number: int = 0, new_pilot: Callable[[], Pilot] | None = None
) -> list[TrainingStream]:
    """The flights of one world. new_pilot: makes a pilot with an empty memory, where an earlier one is to fly."""
    place = open_place(seed, renderer, number)
    numbers = range(FLIGHTS_A_WORLD * number, FLIGHTS_A_WORLD * (number + 1))
    flown = [fly(seed, place, n, new_pilot() if new_pilot else None) for n in numbers]
    return [stream for streams in flown for stream in streams]
