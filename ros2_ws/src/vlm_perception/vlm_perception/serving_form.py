"""The serving form: the one file beside a model's weights that fixes what the model sees in service.

A model trained from nothing is only good at the prompt, the tools, the pictures and the window it was trained with.
Its trainer writes them into `serving_form.json`; perception reads that file, serves exactly this form, and refuses
another prompt or tool set with the difference shown. A model folder without the file (a large general model) takes
the defaults and any prompt.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

FILE_NAME = "serving_form.json"
VERSION = 2


class ServingFormError(ValueError):
    """A serving form that cannot be served: says which field, its value and what is allowed."""


@dataclass(frozen=True)
class ServingForm:
    """What a model sees in service. Empty prompt and tools: any are accepted.

    The defaults are those of Qwen2.5-VL-3B on one GPU: 448x336 pictures are 192 tokens each, and 100,000 tokens
    are what a 24 GB GPU holds beside the weights (3.7 GB). A pair of 640x480 frames then takes 96 ms on the
    roofline of a 4090, and 48 ms at 32,000 tokens (calculated, not measured): lower max_cache_tokens where frames
    come faster.
    """

    version: int = VERSION
    system_prompt: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    tag: str = "t={elapsed_s:.1f}s\n"
    """Text before each chunk, "" for none; it may have the field elapsed_s, seconds from the stream's first frame."""
    frames_per_chunk: int = 1
    as_video: bool = False
    """Frames of a chunk as one video item, in which pairs share tokens, instead of single images."""
    width: int = 448
    height: int = 336
    """Pixels to which every frame is resized; multiples of 28, the model's patch pairs."""
    frame_interval_s: float = 0.5
    """Seconds between appended frames, by stamp."""
    max_cache_tokens: int = 100_000
    sink_size: int = 0
    """Tokens never evicted, counted from the first; 0: the primed prompt and the first chunk."""
    recent_calls: int = 4
    """Recent calls with results shown in an ask, at most."""
    max_new_tokens: int = 24
    """Tokens sampled for a tool call, at most; forced ones do not count."""
    recompute_frames: int = 0
    """0: the streaming memory. N: no memory, each decision is made on the last N frames, encoded anew. For comparison,
    and for a model that was trained so."""
    sampled_tokens: int = 0
    """Of the budget, for chunks sampled uniformly from those that fell out of the window. For comparison only."""
    close_gap: bool = True
    """Whether the gap of positions that an eviction leaves is closed. False for comparison only."""

    def __post_init__(self) -> None:
        _validate(self)

    @classmethod
    def load(cls, model_path: str | Path) -> Self:
        """The form beside the weights in the folder, or the defaults where there is no such file."""
        path = Path(model_path) / FILE_NAME
        if not path.is_file():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ServingFormError(
                f"{path} is not JSON ({error}); write it anew with the model's trainer"
            ) from None
        try:
            return cls.from_dict(values)
        except ServingFormError as error:
            raise ServingFormError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """The form from the file's content. Every field must be there, and no other."""
        if not isinstance(values, dict):
            raise ServingFormError(f"a serving form is a JSON object, not a {type(values).__name__}")
        if values.get("version") == 1:
            values = _from_version_1(values)
        if values.get("version") != VERSION:
            raise ServingFormError(
                f"version is {values.get('version')!r}, this program reads version {VERSION}; train the model anew"
            )
        known = {item.name for item in dataclasses.fields(cls)}
        for problem, names in (("unknown", set(values) - known), ("missing", known - set(values))):
            if names:
                raise ServingFormError(
                    f"{problem} field {', '.join(sorted(map(str, names)))}; train the model anew"
                )
        return cls(**values)

    def save(self, model_path: str | Path) -> Path:
        """Writes the form beside the weights; returns the file's path."""
        path = Path(model_path) / FILE_NAME
        path.write_text(
            json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return path

    @property
    def answers_in_words(self) -> bool:
        """Whether the model was not trained on tool calls alone."""
        return not self.tools

    def difference(self, system_prompt: str, tools: Sequence[Mapping[str, Any]]) -> str:
        """What in this prompt and these tools differs from what the model was trained with, line by line; "" when
        nothing does.

        Lines with "-" are the model's, lines with "+" were asked for. White space at the ends of the prompt does not
        count.
        """
        if not self.system_prompt and not self.tools:
            return ""
        trained = _lines(self.system_prompt, self.tools)
        wanted = _lines(system_prompt, tools)
        return "\n".join(difflib.unified_diff(trained, wanted, "model", "request", n=0, lineterm=""))


def _from_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same form in version 2, which says how much of the memory is used; until then all of it was."""
    added = {"recompute_frames": 0, "sampled_tokens": 0, "close_gap": True}
    migrated = {"recent_calls" if key == "recent_turns" else key: value for key, value in values.items()}
    return {**migrated, **added, "version": VERSION}


def _lines(system_prompt: str, tools: Sequence[Mapping[str, Any]]) -> list[str]:
    return system_prompt.strip().split("\n") + [json.dumps(tool, ensure_ascii=False) for tool in tools]


def _validate(form: ServingForm) -> None:
    def require(name: str, good: bool, allowed: str) -> None:
        if not good:
            raise ServingFormError(f"{name} is {getattr(form, name)!r}; allowed: {allowed}")

    def require_int(name: str, low: int, high: int) -> None:
        value = getattr(form, name)
        require(name, type(value) is int and low <= value <= high, f"an integer from {low} to {high}")

    require("version", form.version == VERSION, str(VERSION))
    require("system_prompt", isinstance(form.system_prompt, str), "text")
    require(
        "tools",
        isinstance(form.tools, list) and all(isinstance(t, dict) for t in form.tools),
        "a list of schemas",
    )
    require(
        "tag",
        isinstance(form.tag, str) and _is_tag(form.tag),
        'text with at most the field {elapsed_s}, such as "t={elapsed_s:.1f}s"',
    )
    require("as_video", type(form.as_video) is bool, "true or false")
    require_int("frames_per_chunk", 1, 64)
    if form.as_video:
        require("frames_per_chunk", form.frames_per_chunk % 2 == 0, "an even number, as as_video is true")
    else:
        require("frames_per_chunk", form.frames_per_chunk == 1, "1, as as_video is false")
    for name in ("width", "height"):
        require_int(name, 28, 4480)
        require(name, getattr(form, name) % 28 == 0, "a multiple of 28")
    interval = form.frame_interval_s
    good = (
        isinstance(interval, int | float)
        and not isinstance(interval, bool)
        and math.isfinite(interval)
        and 0 <= interval <= 60
    )
    require("frame_interval_s", good, "seconds from 0 to 60")
    require_int("max_cache_tokens", 1, 10_000_000)
    require_int("sink_size", 0, 10_000_000)
    require(
        "sink_size",
        form.sink_size < form.max_cache_tokens,
        f"less than max_cache_tokens, {form.max_cache_tokens}",
    )
    require_int("recent_calls", 0, 64)
    require_int("max_new_tokens", 1, 4096)
    require_int("recompute_frames", 0, 64)
    require_int("sampled_tokens", 0, 10_000_000)
    require(
        "sampled_tokens",
        form.sampled_tokens < form.max_cache_tokens - form.sink_size,
        f"less than max_cache_tokens - sink_size, {form.max_cache_tokens - form.sink_size}",
    )
    require("close_gap", type(form.close_gap) is bool, "true or false")


def _is_tag(tag: str) -> bool:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(tag) if name is not None]
        tag.format(elapsed_s=0.0)
    except (ValueError, KeyError, IndexError, AttributeError):
        return False
    return set(fields) <= {"elapsed_s"}
