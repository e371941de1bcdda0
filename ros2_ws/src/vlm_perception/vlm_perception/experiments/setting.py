"""What all experiments share: the model under experiment, its budgets, and the report."""

from __future__ import annotations

import json
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlm_perception.engine import QwenModel
from vlm_perception.testing.tiny_model import PICTURE_3B, SHAPE_3B, make_tiny_model, random_model

# Specified with the experiments: budgets in tokens, and the tokens of a chunk of four 1920x1080 frames that they
# were chosen for.
BUDGETS, SAFE_BUDGET, CHUNK_1080P = (100_000, 130_000, 150_000), 100_000, 5_389


@dataclass
class Report:
    """Lines for people and facts for programs, written side by side."""

    name: str
    title: str
    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def begin(self, given: Setting, budgets: str) -> None:
        """The first line: what ran on which machine and model, with which budgets."""
        machine = f"{platform.machine()}, torch {torch.__version__} on {given.model.device}"
        self.facts |= {
            "experiment": self.title,
            "machine": machine,
            "model": given.described,
            "budgets": budgets,
        }
        self.say(f"{self.title} | {given.described} | {machine} | {budgets}")

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def check(self, what: str, holds: bool) -> None:
        self.facts.setdefault("checks", {})[what] = holds
        self.say(f"{'ok    ' if holds else 'FAILED'} {what}")

    @property
    def passed(self) -> bool:
        return all(self.facts.get("checks", {}).values())

    def write(self, folder: Path, stem: str | None = None) -> None:
        """As STEM.txt and STEM.json; default test_eviction_exp_NAME_report."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / (stem or f"test_eviction_exp_{self.name}_report")
        file.with_suffix(".txt").write_text("\n".join(self.lines) + "\n")
        file.with_suffix(".json").write_text(
            json.dumps({**self.facts, "passed": self.passed}, indent=2) + "\n"
        )


@dataclass(frozen=True)
class Setting:
    """The model under experiment. scaled: too small for the true budgets, other ones stand for them (the same number of
    chunks). quick: experiment B at its first budget only, C over a shorter film."""

    model: QwenModel
    described: str
    scaled: bool
    quick: bool = False

    def budget(self, true_tokens: int, chunk_tokens: int) -> int:
        return round(true_tokens / CHUNK_1080P * chunk_tokens) if self.scaled else true_tokens


def setting(folder: str | None, device: str | None = None, quick: bool = False) -> Setting:
    """The model of a folder, or a random one. device: "cpu", "cuda" or None for a GPU if there is one."""
    if folder:
        model = QwenModel.load(folder, device=device)
        layers, hidden = model.decoder.shape.layers, model.decoder.shape.hidden
        scaled = hidden < SHAPE_3B["hidden"]
        return Setting(model, f"model {Path(folder).name} ({layers} layers of {hidden})", scaled, quick)
    if torch.cuda.is_available() and device != "cpu":
        model = random_model(SHAPE_3B, "cuda", torch.bfloat16, PICTURE_3B)
        return Setting(model, "random weights in the 3B's shape, so answers carry no sense", False, quick)
    with tempfile.TemporaryDirectory() as scratch:
        model = QwenModel.load(make_tiny_model(Path(scratch), scale=5.0), device="cpu")
    tiny = "a random tiny model: no 3B model on this machine, so answers carry no sense"
    return Setting(model, tiny, True, quick)
