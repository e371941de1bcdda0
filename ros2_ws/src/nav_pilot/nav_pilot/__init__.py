"""The small embedded pilot: a model of Qwen2.5-VL's architecture that flies in the embedded simulator."""

from __future__ import annotations

import os
from pathlib import Path

STREAMING = "streaming"


def model_folder(mode: str = STREAMING) -> Path:
    """The shipped model's folder in Hugging Face's layout, with its serving form; found with and without ROS.

    mode: the memory that it was trained for; those for a comparison lie beside the shipped one.
    """
    return Path(__file__).resolve().parent / ("model" if mode == STREAMING else f"model-{mode}")


def chosen_folder(given: str | Path | None = None) -> Path:
    """The model to fly with: the folder given, else that of QWEN_MODEL_PATH, else the shipped one."""
    chosen = given or os.environ.get("QWEN_MODEL_PATH")
    return Path(chosen).expanduser() if chosen else model_folder()
