"""A small training runs from nothing to a folder that can be served, and is taken up again where it was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from nav_pilot import train
from nav_pilot.data import open_place
from nav_pilot.evaluate import EnginePilot
from vlm_perception.serving_form import ServingForm

SMALL = ["--worlds", "2", "--minutes", "0.2", "--processes", "1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of flights and the model that a small training wrote."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "HELD_OUT_SEEDS", range(901, 903))
        assert train.main([*SMALL, "--data", str(folder / "data"), "--out", str(folder / "out")]) == 0
    return folder / "data", folder / "out"


def test_a_training_writes_a_folder_that_can_be_served(folders: tuple[Path, Path]) -> None:
    pilot = EnginePilot(folders[1])
    name, _ = pilot([np.zeros((84, 112, 3), np.uint8)], "fly to the blue car", [])
    assert name
    record = json.loads((folders[1] / "training.json").read_text())
    assert record["mode"] == "streaming"
    assert set(record["steps"]) == set(train.PHASES)
    assert record["curves"]


def test_what_is_there_is_not_flown_again_and_a_damaged_checkpoint_is_said(
    folders: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the pilot for comparison, without a stream, is trained on the same flights."""
    data, _ = folders
    shards = {path: path.stat().st_mtime_ns for path in data.rglob("*.npz")}
    (data / "checkpoint_last-4_0.pt").write_bytes(b"half")
    monkeypatch.setattr(train, "HELD_OUT_SEEDS", range(901, 903))
    last_4 = ["--mode", "last-4", "--minutes", "0.02", "--data", str(data), "--out", str(tmp_path)]
    assert train.main([*SMALL, *last_4]) == 0
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.npz")} == shards
    assert "is damaged" in capfd.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()
    assert ServingForm.load(tmp_path).recompute_frames == 4


def test_worlds_of_chosen_scenes_are_those_that_are_flown(renderer: Any) -> None:
    jobs = train.worlds_of({"memory": 3, "recall": 2})
    assert len(set(jobs)) == 5
    scenes = [open_place(seed, renderer, number).world.name for seed, number in jobs]
    assert sorted(scenes) == ["memory", "memory", "memory", "recall", "recall"]
    assert train.worlds_of({"memory": 3, "recall": 2}) == jobs


@pytest.mark.parametrize("given", ["moon=3", "memory", "memory=0", "memory=-1", "memory=3,"])
def test_a_scene_that_is_not_flown_is_named(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--scene-worlds", given])
    assert "give SCENE=COUNT; the scenes are field, field-decoys" in capsys.readouterr().err


def test_a_full_folder_is_said_and_what_was_kept_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint and model: the training goes on, and the earlier ones stay whole."""

    def full(state: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    def no_room() -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    options = SimpleNamespace(mode="streaming", seed=0, data=tmp_path, out=tmp_path / "out", minutes=1.0)
    no_weights = SimpleNamespace(state_dict=dict, state=dict, model=SimpleNamespace(num_parameters=lambda: 1))
    run = train.Run(options, 0, no_weights, [], [], keep=no_room)  # type: ignore[arg-type]
    run.checkpoint.write_bytes(b"earlier")
    monkeypatch.setattr(torch, "save", full)
    run._save_checkpoint("streams", no_weights)  # type: ignore[arg-type]
    assert run.checkpoint.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == [run.checkpoint.name]
    assert not run.write_model()
    said = capsys.readouterr().out
    assert f"{run.checkpoint} cannot be written" in said
    assert f"{options.out} cannot be written (I/O error: No space left" in said
