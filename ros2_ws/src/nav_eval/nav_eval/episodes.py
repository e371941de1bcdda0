"""One evaluated episode: a mission in a world flown in lock-step by a policy, and the record of its figures."""

from __future__ import annotations

import math
import shlex
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import nav_pilot
from airsim_sim import instructions
from airsim_sim.instructions import Instruction, Task
from airsim_sim.simulation import START_TIME_NS
from airsim_sim.true_map import TrueMap
from airsim_sim.world import World, load_world
from nav_common.contract import SUCCESS_RADIUS_M
from nav_common.data import FinishReason
from nav_common.success import is_rightly_not_found, is_success
from nav_eval import judge, variants
from nav_eval.finding_again import FindingAgain, finding_again
from nav_eval.flight_view import view_of
from nav_eval.leave_one_out import MomentRecorder
from nav_eval.lockstep import FlownMission, ForcedCall, LockStepSettings, Pilot, fly, load_model
from nav_eval.metrics import EpisodeMetrics, looked_all_around, measure
from nav_eval.policies import Policy, RandomPolicy, experts
from vlm_perception.identity.bank import MemoryBank

SUCCESS_RADII_M = (1.0, SUCCESS_RADIUS_M, 3.0)
HEADLINE_RADIUS = f"{SUCCESS_RADIUS_M:g}m"  # key of the radius that a mission is judged by
START_TIME_S = START_TIME_NS * 1e-9  # of the log's clock when the simulator's is 0
# What an episode's view keeps, so that a report of 100 episodes stays under 20 MB.
VIEW_WIDTH, VIEW_TRACK_PERIOD_S = 320, 0.5


class SceneError(ValueError):
    """A scene that cannot be flown as a mission; the message says what its file needs."""


class Control(StrEnum):
    """What shows the worth of a figure. NONE: the policy as it is."""

    NONE = ""
    BLANK = "blank"
    SHUFFLED_WORDS = "shuffled_words"
    RANDOM = "random"
    EXPERT = "expert"


@dataclass(frozen=True)
class EpisodeMission:
    """What is asked for in words, and what is scored: `asked`, in order. Each comes to a goal; or there are none, and
    the one instruction names something absent."""

    world: World
    instructions: tuple[str, ...]
    asked: tuple[Instruction, ...]
    candidates: tuple[str, ...]

    @property
    def goals(self) -> tuple[str, ...]:
        """The objects to be reached, in order."""
        return tuple(one.goal for one in self.asked if one.goal)


def mission_of(world: World, *, instruction: str = "", shuffled: bool = False) -> EpisodeMission:
    """The mission of a world.

    Args:
        instruction: instead of the scene's own, for its first goal; `{goal}` is what the goal is called.
        shuffled: the instruction names another object than the one that is scored: another candidate, or where there
            is none, something absent. Where something absent is scored, it names an object that is there.

    Raises:
        SceneError: the scene has no instruction, or nothing else to name.
    """
    if not (instruction or world.wording or world.instructions):
        raise SceneError(
            f"scene {world.name!r} has no `instructions`: add them to its file, or give MISSION='fly to ...'"
        )
    asked = instructions.mission(world)
    goals = tuple(goal.name for goal in world.goals)
    if instruction and goals:
        goals = goals[:1]
        text = instruction.replace("{goal}", instructions.called(world, goals[0]))
        asked = (Instruction(text, Task.GO, goals[0]),)
    elif instruction:
        asked = (Instruction(instruction, Task.ABSENT),)
    texts = tuple(one.text for one in asked)
    if shuffled:
        sentence = instruction or "fly to {goal}"
        texts = tuple(sentence.replace("{goal}", name) for name in _others(world, goals))
    candidates = dict.fromkeys((*goals, *instructions.candidates(world)))
    return EpisodeMission(world, texts, asked, tuple(candidates))


def _others(world: World, goals: Sequence[str]) -> list[str]:
    """What is there beside each of the goals is called, the next candidate in the file's order, or something that is
    absent; without goals what one candidate is called."""
    named = {name: instructions.called(world, name) for name in instructions.candidates(world)}
    found = []
    for goal in goals or ("",):
        own = named.get(goal, goal)
        others = [called for called in (*named.values(), *world.absent) if called != own]
        if not others:
            raise SceneError(
                f"scene {world.name!r} has only one object to name: the control shuffled_words needs another one in "
                "`names`, or a name of something absent in `absent`"
            )
        found.append(others[0])
    return found


@dataclass(frozen=True)
class EpisodeSettings:
    """What all episodes of a run have in common. `instruction`: instead of the scene's own; "" for those. `device`:
    where the model runs; None for a GPU if there is one."""

    instruction: str = ""
    lockstep: LockStepSettings = field(default_factory=LockStepSettings)
    device: str | None = None


class EpisodeFlyer:
    """Flies episodes in one process, with the models it has loaded kept."""

    def __init__(self, model_folder: Path, settings: EpisodeSettings) -> None:
        self._folder = model_folder
        self._settings = settings
        self._pilots: dict[Path, Pilot] = {}

    def pilot(self, variant: str) -> Pilot:
        """The model, loaded once, as a variant serves it; where one was trained for that memory, that one."""
        folder = variants.trained_folder(variant, self._folder)
        if folder not in self._pilots:
            self._pilots[folder] = load_model(folder, self._settings.device)
        pilot = self._pilots[folder]
        return pilot._replace(form=variants.apply(variant, pilot.form))

    def fly(
        self,
        scene: str,
        seed: int,
        variant: str,
        control: Control,
        forced: ForcedCall | None = None,
        moments: MomentRecorder | None = None,
    ) -> dict[str, Any]:
        """One episode's record, as JSON. `forced`, `moments`: see `lockstep.fly`."""
        mission = mission_of(
            load_world(scene, seed),
            instruction=self._settings.instruction,
            shuffled=control is Control.SHUFFLED_WORDS,
        )
        true_map = TrueMap(mission.world)
        started = time.perf_counter()
        flown = self._flown(mission, true_map, variant, control, seed, forced, moments)
        found = record(mission, true_map, flown, time.perf_counter() - started)
        found["view"]["again"] = "" if forced else self._again(scene, seed, variant, control)
        return found

    def _again(self, scene: str, seed: int, variant: str, control: Control) -> str:
        """The arguments with which `nav_eval fork` and `xray` look into this flight; "" where they cannot."""
        settings, usual = self._settings.lockstep, LockStepSettings()
        if control not in (Control.NONE, Control.BLANK) or settings.link or variant == variants.BANK:
            return ""
        words = [scene, str(seed)]
        if variant != nav_pilot.STREAMING:
            words += ["--variant", variant]
        if control is Control.BLANK or settings.blank:
            words += ["--blank"]
        if self._settings.instruction:
            words += ["--mission", self._settings.instruction]
        for name in ("think_s", "time_limit_s", "max_decisions"):
            if getattr(settings, name) != getattr(usual, name):
                words += [f"--{name.replace('_', '-')}", f"{getattr(settings, name):g}"]
        if settings.reflex:
            words += ["--reflex"]
        if self._settings.device:
            words += ["--device", self._settings.device]
        if self._folder != nav_pilot.model_folder():
            words += ["--model", str(self._folder)]
        return shlex.join(words)

    def _flown(
        self,
        mission: EpisodeMission,
        true_map: TrueMap,
        variant: str,
        control: Control,
        seed: int,
        forced: ForcedCall | None,
        moments: MomentRecorder | None,
    ) -> FlownMission:
        lockstep = self._settings.lockstep
        if control is Control.EXPERT:
            return fly(mission.world, mission.instructions, experts(true_map, mission.asked), lockstep)
        if control is Control.RANDOM:
            policies: list[Policy] = [RandomPolicy(seed) for _ in mission.asked]
            return fly(mission.world, mission.instructions, policies, lockstep)
        settings = replace(lockstep, blank=lockstep.blank or control is Control.BLANK)
        served = self.pilot(variant)
        if variant != variants.BANK:
            return fly(mission.world, mission.instructions, served, settings, forced=forced, moments=moments)
        if moments:
            raise ValueError(
                f"variant {variant}: what is recalled has no moment of its own in an X-ray: choose another"
            )
        with tempfile.TemporaryDirectory(prefix="streampilot-bank-") as folder:
            bank = MemoryBank(Path(folder), on_warning=warnings.warn)
            return fly(mission.world, mission.instructions, served, settings, forced=forced, bank=bank)


def reached(mission: EpisodeMission, flown: FlownMission, within_m: float) -> bool:
    """Success where the pilot finished each instruction, or with what is absent: by nav_common.success."""
    finishes = [d for d in flown.decisions if d.tool == "finish"]
    if not mission.goals:
        return is_rightly_not_found(
            flown.result.outcome,
            flown.result.reason,
            looked_all_around(flown.decisions),
            len(flown.contacts),
        )
    return len(finishes) == len(mission.goals) and all(
        is_success(
            flown.result.outcome,
            str(decision.arguments["reason"]),
            mission.world.object(goal).distance_m(decision.position),
            len(flown.contacts),
            within_m,
        )
        for decision, goal in zip(finishes, mission.goals, strict=True)
    )


def record(mission: EpisodeMission, true_map: TrueMap, flown: FlownMission, wall_s: float) -> dict[str, Any]:
    """The figures of a flown mission, rounded to what is meant, as JSON."""
    report = judge.judge(flown.log)
    finishes = [d for d in flown.decisions if d.tool == "finish"]
    says_reached = bool(finishes) and finishes[-1].arguments["reason"] == FinishReason.REACHED
    goal = mission.goals[min(max(len(finishes), 1), len(mission.goals)) - 1] if mission.goals else ""
    again = finding_again(
        true_map, mission.goals, flown.log, [START_TIME_S + c.time_s for c in flown.contacts]
    )
    figures = measure(
        true_map,
        mission.goals,
        goal,
        mission.candidates,
        flown.track,
        flown.decisions,
        flown.contacts,
        SUCCESS_RADIUS_M,
    )
    return {
        "instructions": list(mission.instructions),
        "goals": list(mission.goals),
        "outcome": flown.result.outcome.name,
        "reason": flown.result.reason,
        "success": {f"{radius:g}m": reached(mission, flown, radius) for radius in SUCCESS_RADII_M},
        "wrong_goal": says_reached and figures.nearest_object != goal,
        "false_reached": says_reached and not reached(mission, flown, SUCCESS_RADIUS_M),
        "finding_again": None if again is None else _finding_again(again),
        "recalls": None if flown.recalls is None else asdict(flown.recalls),
        "not_found": bool(finishes) and finishes[-1].arguments["reason"] == FinishReason.NOT_FOUND,
        "metrics": _rounded(figures),
        "decisions": [
            {
                "tool": d.tool,
                "arguments": dict(d.arguments),
                "position": [round(v, 2) for v in d.position],
                "heading_deg": round(math.degrees(d.heading), 1),
                "time_s": round(d.time_s, 2),
            }
            for d in flown.decisions
        ],
        "barrier_ms": [round(row.data.barrier_ms, 1) for row in flown.log.decisions],
        "engine_ms": [round(value, 2) for value in flown.engine_ms],
        "hover_violations": report.hover_violations,
        "breaches": [f"{b.time_s:.2f} s {b.rule}: {b.message}" for b in report.breaches],
        "evictions": flown.log.statuses[-1].data.evictions if flown.log.statuses else 0,
        "track": [[round(p.time_s, 2), *(round(v, 2) for v in p.position)] for p in flown.track],
        "contacts": [[round(c.time_s, 2), c.object_name] for c in flown.contacts],
        "virtual_s": round(flown.virtual_s, 2),
        "wall_s": round(wall_s, 3),
        "view": view_of(
            flown.log,
            flown.pictures,
            mission.world,
            width=VIEW_WIDTH,
            period_s=math.inf,  # those that decisions rest on
            track_period_s=VIEW_TRACK_PERIOD_S,
        ),
    }


def _finding_again(again: FindingAgain) -> dict[str, Any]:
    return {**asdict(again), "windows_out_of_sight": round(again.windows_out_of_sight, 2)}


def _rounded(figures: EpisodeMetrics) -> dict[str, Any]:
    values = asdict(figures)
    values["coherence"]["score"] = figures.coherence.score
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}


def scenes_of(text: str) -> Sequence[str]:
    """ "field,corridor" or the path of a YAML file, each checked by reading it once.

    Raises:
        WorldError: an unknown scene, or a mistake in its file.
        SceneError: it cannot be flown as a mission.
    """
    scenes = [part.strip() for part in text.split(",") if part.strip()]
    for scene in scenes:
        load_world(scene, 1)
    return scenes
