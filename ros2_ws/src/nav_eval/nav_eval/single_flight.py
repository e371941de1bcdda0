"""One flight in lock-step, named on the command line, and the folder of what was found out about it.

Lock-step repeats exactly, so the flight can be flown again by whoever wants to look into it. The folder holds its
record (`harness.Store`), what `xray` and `fork` found, and `flight.html`: the flight viewer with all of that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airsim_sim.world import load_world
from nav_eval import runs, seeds, variants
from nav_eval.digests import digest, digest_of_folder, digest_of_worlds
from nav_eval.episodes import EpisodeMission, EpisodeSettings, mission_of
from nav_eval.evaluation_report import outcome_of
from nav_eval.harness import Job, Record, Store
from nav_eval.html_pages import flight_page
from nav_pilot import STREAMING
from vlm_perception.serving_form import ServingForm

XRAY_FILE = "xray.json"
FORK_FILE = "fork.json"
FORK_PAGE = "fork.html"
PAGE_FILE = "flight.html"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that is about one flight."""
    parser.add_argument("scene", help="a scene or a YAML file")
    parser.add_argument("seed", help="its seed")
    parser.add_argument("--variant", default=STREAMING, help=", ".join(variants.names()))
    parser.add_argument(
        "--blank",
        action="store_true",
        help="the control: the memory gets grey pictures instead of the camera's",
    )
    runs.add_options(parser, "a flight", "flight")


@dataclass(frozen=True)
class SingleFlight:
    """A flight that a command names. `run`: what it depends on, as JSON: another value is another flight. `folder`: of
    what is found out about it. `model_name`: as pages show it."""

    scene: str
    seed: int
    variant: str
    mission: EpisodeMission
    model: Path
    model_name: str
    settings: EpisodeSettings
    run: Mapping[str, Any]
    folder: Path

    @classmethod
    def of(cls, options: argparse.Namespace) -> SingleFlight:
        """From a command's options.

        Raises:
            ValueError: an unknown scene, seed, variant or model, or a number out of range; the message says which.
        """
        settings = runs.episode_settings(options, blank=options.blank)
        wanted = seeds.parse_seeds(options.seed)
        if len(wanted) != 1:
            raise ValueError(f"seed is {options.seed!r}: {options.command} is of one flight, give one")
        (seed,) = wanted
        mission = mission_of(load_world(options.scene, seed), instruction=options.mission)
        model = runs.model_folder(options)
        variants.apply(options.variant, ServingForm.load(model))
        weights = variants.trained_folder(options.variant, model)
        run = {
            "scene": [options.scene, seed, digest_of_worlds(options.scene, [seed])],
            "variant": options.variant,
            "settings": json.loads(json.dumps(asdict(settings))),
            "model": digest_of_folder(weights),
        }
        name = f"{Path(options.scene).stem}_{seed}_{options.variant}_{digest(run)}"
        folder = options.out or runs.RUNS / "flights" / name
        name = runs.models_named(model, {options.variant: weights})
        return cls(options.scene, seed, options.variant, mission, model, name, settings, run, folder)

    @property
    def facts(self) -> dict[str, str]:
        """What pages say of it."""
        blank = ", blanked pictures" if self.settings.lockstep.blank else ""
        return {
            "flight": f"{self.scene}, seed {self.seed}, {self.variant}{blank}",
            "seed": seeds.kind(self.seed),
            "model": self.model_name,
        }

    def check_decision(self, record: Record, at: int) -> None:
        """Refuse a decision that the flight does not have.

        Raises:
            ValueError: says which there are.
        """
        count = len(record["decisions"])
        if not 1 <= at <= count:
            raise ValueError(
                f"--at is {at}, but the flight of {self.scene}, seed {self.seed}, has {count} decisions: "
                f"give one from 1 to {count}"
            )

    def fork_folder(self, at: int) -> Path:
        """Where the fork at a decision lies."""
        return self.folder / f"fork_at_{at}"

    @property
    def job(self) -> Job:
        """The flight as it was, among the jobs of a run."""
        return Job(self.scene, self.variant, "", self.seed)

    def store(self) -> Store:
        """The folder's record of the flight.

        Raises:
            HarnessError: the folder holds another flight, or cannot be written.
        """
        return Store(self.folder, self.run)

    def write_page(self, store: Store) -> Path:
        """Write flight.html anew, with all that is known of the flight by now; the page's path."""
        record = store.records[self.job]
        xrays = read(self.folder / XRAY_FILE) or {"decisions": {}, "pictures": {}}
        forks = {path.parent.name: read(path) for path in self.folder.glob(f"fork_at_*/{FORK_FILE}")}
        view = {**record["view"], "decisions": [dict(decision) for decision in record["view"]["decisions"]]}
        for decision in view["decisions"]:
            number = str(decision["number"])
            if number in xrays["decisions"]:
                decision["xray"] = xrays["decisions"][number]
            if f"fork_at_{number}" in forks:
                decision["fork"] = {"page": f"fork_at_{number}/{FORK_PAGE}", **forks[f"fork_at_{number}"]}
        times = {picture["t"] for picture in view["pictures"]}
        added = [
            {"t": float(t), "jpeg": jpeg} for t, jpeg in xrays["pictures"].items() if float(t) not in times
        ]
        view["pictures"] = sorted([*view["pictures"], *added], key=lambda picture: picture["t"])
        facts = {
            **self.facts,
            "instruction": " / ".join(record["instructions"]),
            "outcome": f"{outcome_of(record)} ({record['outcome'].lower()}: {record['reason']})",
        }
        title = f"Flight in {self.scene}, seed {self.seed}"
        return store.write(PAGE_FILE, flight_page(view, title, facts))


def read(path: Path) -> dict[str, Any]:
    """A file's JSON; nothing where there is no such file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
