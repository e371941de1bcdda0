"""System prompts as files."""

from __future__ import annotations

from importlib import resources


def load_prompt(name: str = "pilot") -> str:
    """The text of prompts/`name`.txt, without white space at its ends.

    Raises:
        ValueError: no such prompt; the message names those there are.
    """
    folder = resources.files(__name__)
    known = sorted(
        entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")
    )
    if name not in known:
        raise ValueError(f"no prompt {name!r}; there are: {', '.join(known)}")
    return folder.joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()
