"""The small embedded pilot: a model of Qwen2.5-VL's architecture that flies in the embedded simulator."""

from __future__ import annotations

from pathlib import Path


def model_folder() -> Path:
    """The shipped model's folder in Hugging Face's layout, with its serving form; found with and without ROS."""
    return Path(__file__).resolve().parent / "model"
