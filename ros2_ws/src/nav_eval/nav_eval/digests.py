"""Short digests of what a run is of: another scene, model or setting is another run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airsim_sim.world import load_world


def digest(value: Any) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def digest_of_worlds(scene: str, wanted: Sequence[int]) -> str:
    """Of a scene's file: another text is another run."""
    world = load_world(scene, wanted[0])
    return digest(
        [Path(world.source).read_text(encoding="utf-8") if Path(world.source).is_file() else world.name]
    )


def digest_of_folder(folder: Path) -> str:
    """Of the model's files."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:10]
