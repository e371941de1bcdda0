"""What a way between two machines is like: delay, jitter, loss, rate, outages; named, or as `probe` wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zenoh_link.errors import SettingsError


@dataclass(frozen=True)
class Profile:
    """`rtt_ms`: round trip without load; `jitter_ms`: most that is added to either way at random; `loss`: part of the
    packets; rates in Mbit/s, 0: unlimited, up is from the edge; an outage of `cut_s` begins each `cut_every_s`."""

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    up_mbit_s: float = 0.0
    down_mbit_s: float = 0.0
    cut_s: float = 0.0
    cut_every_s: float = 0.0


_LIMITS = {
    "rtt_ms": (0.0, 5000.0),
    "jitter_ms": (0.0, 2000.0),
    "loss": (0.0, 0.5),
    "up_mbit_s": (0.0, 10_000.0),
    "down_mbit_s": (0.0, 10_000.0),
    "cut_s": (0.0, 600.0),
    "cut_every_s": (0.0, 3600.0),
}

PROFILES = {
    "lan": Profile(rtt_ms=1.0),
    "wan": Profile(rtt_ms=80.0, loss=0.01),
    "uplink": Profile(rtt_ms=20.0, up_mbit_s=5.0),
    "slow": Profile(rtt_ms=40.0, up_mbit_s=2.0),
    "cut": Profile(rtt_ms=80.0, cut_s=10.0, cut_every_s=30.0),
}


def find(name_or_file: str) -> Profile:
    """A named profile, or that of a JSON file.

    Raises:
        SettingsError: there is none, or a value makes no sense.
    """
    if name_or_file in PROFILES:
        return PROFILES[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise SettingsError(f"profile {name_or_file!r} is none of {', '.join(PROFILES)}, and no file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SettingsError(f"profile {path} cannot be read: {error}") from error
    try:
        return parse(values)
    except SettingsError as error:
        raise SettingsError(f"profile {path}: {error}") from error


def parse(values: Any) -> Profile:
    """Raises SettingsError: values that no way has."""
    if not isinstance(values, Mapping):
        raise SettingsError("must hold an object with rtt_ms, jitter_ms, loss, up_mbit_s, down_mbit_s")
    known = {field.name for field in fields(Profile)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingsError(f"{', '.join(unknown)} is not known; known are {', '.join(sorted(known))}")
    for name, value in values.items():
        low, high = _LIMITS[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high:
            raise SettingsError(f"{name} is {value!r:.40}, must be a number from {low:g} to {high:g}")
    profile = Profile(**{name: float(value) for name, value in values.items()})
    if profile.cut_s > 0 and profile.cut_every_s <= profile.cut_s:
        raise SettingsError(
            f"cut_every_s is {profile.cut_every_s:g}, must be more than cut_s ({profile.cut_s:g})"
        )
    return profile


def save(profile: Profile, path: Path) -> None:
    path.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")
