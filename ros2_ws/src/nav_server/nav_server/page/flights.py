"""Past flights: the folders that `make fly` and `make eval` leave below one folder, and the pages in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

VIEWER_PAGES = ("flight.html", "report.html", "replay.html", "accept.html")
"""Pages that runs leave, each complete in itself. Nothing else of a run's folder is ever served."""
_MOST = 50
_LARGEST_SUMMARY_BYTES = 1 << 20
_MCAP_MAGIC = b"\x89MCAP0\r\n"


@dataclass(frozen=True)
class RunFolder:
    """One run. `pages`: those of VIEWER_PAGES that it has; `recording`: what state its recording is in."""

    name: str
    mission: str
    outcome: str
    success: bool | None
    recording: str
    pages: tuple[str, ...]


def past_flights(folder: Path) -> list[RunFolder]:
    """The newest runs in `folder`, newest first; none where there is no such folder. What is damaged is said as what
    it is."""
    try:
        runs = [run for run in folder.iterdir() if run.is_dir() and not run.is_symlink()]
    except OSError:
        return []
    newest = sorted(runs, key=lambda run: run.name, reverse=True)[:_MOST]
    return [_flight(run) for run in newest]


def viewer_page(folder: Path, run: str, page: str) -> Path | None:
    """The file of a run's page; None where there is none. `run` and `page` come from anybody: only names count that a
    listing has."""
    if page not in VIEWER_PAGES:
        return None
    for flight in past_flights(folder):
        if flight.name == run and page in flight.pages:
            return folder / run / page
    return None


def _flight(run: Path) -> RunFolder:
    summary, problem = _summary(run / "summary.json")
    success = summary.get("success")
    outcome = problem or " ".join(
        str(summary.get(name, "")) + end for name, end in (("outcome", ":"), ("reason", ""))
    )
    return RunFolder(
        name=run.name,
        mission=str(summary.get("mission", "")),
        outcome=outcome.strip(" :"),
        success=success if isinstance(success, bool) else None,
        recording=_recording(run / "flight"),
        pages=tuple(page for page in VIEWER_PAGES if _is_own_file(run / page)),
    )


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _summary(path: Path) -> tuple[dict[str, object], str]:
    """What it holds, and why it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST_SUMMARY_BYTES:
            return {}, "summary.json is too large"
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, "no summary (yet)"
    except (OSError, ValueError, RecursionError):
        return {}, "summary.json cannot be read"
    return (found, "") if isinstance(found, dict) else ({}, "summary.json is no summary")


def _recording(folder: Path) -> str:
    """By the first and the last bytes of its files: a whole one is not read for a list."""
    try:
        files = sorted(folder.glob("*.mcap"))
        if not files:
            return "none"
        for file in files:
            with file.open("rb") as stream:
                first = stream.read(len(_MCAP_MAGIC))
                stream.seek(-min(len(_MCAP_MAGIC), file.stat().st_size), 2)
                last = stream.read()
            if first != _MCAP_MAGIC:
                return "damaged"
            if last != _MCAP_MAGIC:
                return "cut off"
    except OSError:
        return "cannot be read"
    return "complete"
