"""A small training runs from nothing to a folder that can be served, and is taken up again where it was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nav_pilot import train
from nav_pilot.evaluate import EnginePilot

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
    data, _ = folders
    shards = {path: path.stat().st_mtime_ns for path in data.rglob("*.npz")}
    (data / "checkpoint_streaming_0.pt").write_bytes(b"half")
    monkeypatch.setattr(train, "HELD_OUT_SEEDS", range(901, 903))
    assert train.main([*SMALL, "--minutes", "0.02", "--data", str(data), "--out", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.npz")} == shards
    assert "is damaged" in capfd.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()
