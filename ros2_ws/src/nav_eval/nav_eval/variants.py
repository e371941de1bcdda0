"""Variants of the memory: how a form that is served differs from the one that the model was trained for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from nav_pilot import STREAMING
from vlm_perception.serving_form import FILE_NAME, ServingForm

BANK, WINDOW, UNLIMITED = "bank", "window", "unlimited"
SHORT_SHARE = 0.4
"""Of the form's budget, in the variants that compare a memory bank: a flight of some minutes outlasts such a window
three times, the form's own once."""


ANOTHER_SEED = r"seed-(\d+)"


class VariantError(ValueError):
    """An unknown variant, or one that this model's form does not allow."""


def _frames(count: int) -> Callable[[ServingForm], ServingForm]:
    return lambda form: replace(form, recompute_frames=count)


def _level_2(form: ServingForm) -> ServingForm:
    """A quarter of the budget keeps chunks sampled uniformly in time from those that fell out of the window."""
    return replace(form, sampled_tokens=form.max_cache_tokens // 4)


def _short(form: ServingForm) -> ServingForm:
    return replace(form, max_cache_tokens=round(SHORT_SHARE * form.max_cache_tokens))


def _unlimited(form: ServingForm) -> ServingForm:
    return replace(form, max_cache_tokens=20 * form.max_cache_tokens)


NAMED: dict[str, tuple[str, Callable[[ServingForm], ServingForm]]] = {
    STREAMING: ("the memory as the model was trained for it: sink and sliding window", lambda form: form),
    "last-4": ("no memory: each decision on the last four frames, encoded anew", _frames(4)),
    "last-1": ("no memory: each decision on the last frame, encoded anew", _frames(1)),
    "level-2": ("sliding window, and a quarter of the budget sampled uniformly from what fell out", _level_2),
    "gap-open": (
        "the gap of positions after an eviction is left open",
        lambda form: replace(form, close_gap=False),
    ),
    "no-eviction": ("a budget that no flight fills: nothing is evicted", _unlimited),
    BANK: ("a short window, and a memory bank that brings archived frames back into it", _short),
    WINDOW: ("a short window alone", _short),
    UNLIMITED: ("no-eviction, as the comparison with a memory bank calls it", _unlimited),
}
PATTERNS: dict[str, tuple[str, Callable[[ServingForm, float], ServingForm]]] = {
    r"budget-(\d+(?:\.\d+)?)": (
        "budget-N: N times the form's budget of tokens",
        lambda form, factor: replace(form, max_cache_tokens=round(factor * form.max_cache_tokens)),
    ),
    r"chunk-([24])": (
        "chunk-2, chunk-4: frames in a chunk, as one video in which pairs share tokens",
        lambda form, frames: replace(form, frames_per_chunk=int(frames), as_video=True),
    ),
    r"fps-([124])": (
        "fps-1, fps-2, fps-4: frames a second",
        lambda form, fps: replace(form, frame_interval_s=1.0 / fps),
    ),
    ANOTHER_SEED: (
        "seed-N: the weights of a training with `--seed N`, beside the model's",
        lambda form, _: form,
    ),
}


def apply(name: str, form: ServingForm) -> ServingForm:
    """The form that a variant serves.

    Raises:
        VariantError: unknown, or not possible with this form.
    """
    change = NAMED[name][1] if name in NAMED else None
    for pattern, (_, by_number) in PATTERNS.items():
        match = re.fullmatch(pattern, name)
        if match:
            number = float(match[1])
            change = lambda form, by_number=by_number, number=number: by_number(form, number)  # noqa: E731
    if change is None:
        raise VariantError(f"unknown variant {name!r}; there are {', '.join(names())}")
    try:
        return change(form)
    except ValueError as error:
        raise VariantError(f"variant {name}: this model's form does not allow it: {error}") from error


def trained_folder(name: str, folder: Path) -> Path:
    """Where the weights for a variant lie: in the folder beside the model's own that is named after the variant
    (`model-last-4`) where one was trained, else in the model's own.

    Raises:
        VariantError: of another training, for which the model's own weights would be compared with themselves.
    """
    beside = folder.with_name(f"{folder.name}-{name}")
    if (beside / FILE_NAME).is_file():
        return beside
    if re.fullmatch(ANOTHER_SEED, name):
        raise VariantError(f"variant {name}: there is no model in {beside}: train it with --seed and --out")
    return folder


def unlike_training(name: str, form: ServingForm) -> str:
    """In what a variant differs from the form that the model was trained for, "" where in nothing; a model that was
    trained for no form differs in nothing.

    Raises:
        VariantError: see `apply`.
    """
    served, trained = asdict(apply(name, form)), asdict(form)
    if not form.system_prompt:
        return ""
    changed = [key for key in served if served[key] != trained[key]]
    return ", ".join(f"{key} {served[key]}, trained with {trained[key]}" for key in changed)


def names() -> list[str]:
    """What can be given."""
    return [*NAMED, *(text.split(":")[0] for text, _ in PATTERNS.values())]
