"""What this machine can show, by one command: experiments, benchmark, a mission and its replay (`make accept`).

    python -m nav_bringup.accept [--model DIR] [--video FILE] [--airsim HOST] [--quick]

runs each part in a process of its own and leaves in `runs/<time>/` (also `runs/latest`): `accept.json`, `accept.html`
(a page to print), and each part's own results and log. A part that cannot run here is skipped, and the reason is kept.
Both files are written after each part, so however it ends they say what is known. The same command goes on where the
last run of the same kind ended: what passed is kept, what failed or was not reached runs again.
Exit status: 0 when nothing failed; 1 otherwise; CONFIGURATION_ERROR for a wrong argument.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nav_bringup import accept_page
from nav_bringup.runner import point_latest, run_folder
from nav_bringup.terminal import Terminal
from nav_common.atomic import write_text
from nav_common.process import CONFIGURATION_ERROR, StopSignals, popen
from nav_eval.bags import Bag, BagError
from nav_eval.machine import commit

POLL_S = 0.2
STOP_TIMEOUT_S = 40.0
"""For a part to end by itself after SIGINT: a flight takes the longest, 30 s."""
CONNECT_TIMEOUT_S = 3.0
NOT_REACHED = "not reached: the same command goes on here"
AIRSIM_PORT = 41451
BENCHMARK = Path("benchmarks/engine.py")


class CannotRun(Exception):
    """Why a part cannot run on this machine."""


@dataclass(frozen=True)
class Part:
    """One part of the acceptance: its place in accept.json, the command, how its figures are read, and which part must
    have passed before."""

    name: str
    command: Sequence[str]
    read: Callable[[], tuple[bool, dict[str, Any]]]
    """(passed, figures) of what the command wrote. Raises OSError or ValueError if it wrote nothing of use."""
    after: str = ""
    possible: Callable[[], None] = lambda: None
    """Raises CannotRun."""


def main(words: Sequence[str] | None = None) -> int:
    options = _options(words)
    try:
        _check(options)
    except (ValueError, OSError) as error:
        print(f"accept: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    stop, terminal = StopSignals(), Terminal()
    folder = _folder(options)
    terminal.say(f"accept: {folder}")
    run = Acceptance(folder, _parts(options, folder), _limits(options), stop, terminal)
    run.run()
    terminal.say(f"page        {folder / 'accept.html'}")
    terminal.say(str(folder / "accept.json"))
    return 1 if run.failed or run.unreached else 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nav_bringup.accept", description="What this machine can show, by one command."
    )
    parser.add_argument(
        "--model", default=os.environ.get("QWEN_MODEL_PATH", ""), help="folder of the 3B model"
    )
    parser.add_argument("--video", default="", help="a real video with text on screen, for experiment C")
    parser.add_argument("--airsim", default="", help="host of a running AirSim (default: embedded simulator)")
    parser.add_argument("--quick", action="store_true", help="fewer budgets, chunks and repeats")
    parser.add_argument("--runs", default=Path("runs"), type=Path, help="where the folder is made")
    return parser.parse_args(words)


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError: a file that was named is not there."""
    if options.model and not (Path(options.model) / "config.json").is_file():
        raise ValueError(
            f"model is {options.model!r}: no config.json there; give the folder of a Qwen2.5-VL model"
        )
    if options.video and not Path(options.video).is_file():
        raise ValueError(f"video is {options.video!r}: there is no such file")
    if not BENCHMARK.is_file():
        raise ValueError(f"{BENCHMARK} is not below {Path.cwd()}: run it in the root of the repository")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("model", "video", "airsim", "quick")}


def _folder(options: argparse.Namespace) -> Path:
    """That of the last run with these settings if it is unfinished, else a new one."""
    for file in sorted(options.runs.glob("*/accept_settings.json"), reverse=True):
        if file.parent.is_symlink() or json.loads(file.read_text()) != _settings(options):
            continue
        if _unfinished(read_json(file.with_name("accept.json"))):
            found: Path = file.parent
            point_latest(found)
            return found
        break
    folder = run_folder(options.runs)
    (folder / "accept_settings.json").write_text(json.dumps(_settings(options), indent=2) + "\n")
    return folder


def _unfinished(found: Mapping[str, Any]) -> bool:
    reached = all(entry["why"] != NOT_REACHED for entry in found.get("skipped", ()))
    return not found or not reached or any(not done["passed"] for done in results(found).values())


def results(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of accept.json that ran, by name."""
    parts = {
        **found.get("experiments", {}),
        **{name: found.get(name) for name in ("bench", "mission", "replay")},
    }
    return {name: done for name, done in parts.items() if done}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file or it was cut off."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- the parts
def _parts(options: argparse.Namespace, folder: Path) -> list[Part]:
    """In the order in which they run: the experiments, then the rest."""
    python, quick = sys.executable, ["--quick"] if options.quick else []
    model = ["--model", options.model] if options.model else []
    experiments, bench, replay = folder / "experiments", folder / "bench.json", folder / "replay"
    flight = folder / "mission" / "latest" / "flight"

    def experiment(name: str, after: str = "") -> Part:
        video = ["--video", options.video] if options.video else []
        words = [python, "-m", "vlm_perception.experiments", name, *model, *video, *quick, "--out"]
        report = experiments / f"test_eviction_exp_{name}_report.json"
        return Part(name, [*words, str(experiments)], lambda: _experiment(report), after)

    airsim = ["--airsim-host", options.airsim] if options.airsim else []
    fly = [python, "-m", "nav_bringup.fly", "--runs", str(folder / "mission"), *model, *airsim]
    return [
        experiment("a"),
        experiment("b", "a"),
        experiment("c", "b"),
        Part("bench", [python, str(BENCHMARK), *quick, "--out", str(bench)], lambda: _bench(bench)),
        Part(
            "mission",
            [*fly, *(["--time-limit", "90"] if options.quick else [])],
            lambda: _mission(folder / "mission" / "latest" / "summary.json"),
            possible=lambda: _airsim_answers(options.airsim),
        ),
        Part(
            "replay",
            [python, "-m", "nav_eval", "replay", str(flight), "--output", str(replay), *model],
            lambda: _replay(replay / "replay.json"),
            possible=lambda: _recorded(flight),
        ),
    ]


def _experiment(report: Path) -> tuple[bool, dict[str, Any]]:
    facts = json.loads(report.read_text())
    kept = (
        "model",
        "budgets",
        "chunk_tokens",
        "sinks",
        "budget",
        "score_before_eviction",
        "score_after_eviction",
    )
    figures = {name: facts[name] for name in kept if name in facts}
    figures["checks_failed"] = [what for what, holds in facts.get("checks", {}).items() if not holds]
    if "runs" in facts:
        figures["runs"] = [_memory_run(run) for run in facts["runs"]]
    return facts["passed"], figures


def _memory_run(run: Mapping[str, Any]) -> dict[str, Any]:
    last = run["rows"][-1]
    return {
        "budget": run["budget"],
        "chunks": last["chunk"],
        "evictions": last["evictions"],
        "largest_cache": max(row["cache"] for row in run["rows"]),
        "allocated_bytes": max(row["allocated_bytes"] for row in run["rows"]),
        "reserved_bytes": max(row["reserved_bytes"] for row in run["rows"]),
        "first_token_ms": last["first_token_ms"],
    }


def _bench(result: Path) -> tuple[bool, dict[str, Any]]:
    figures = json.loads(result.read_text())
    figures.pop("machine", None)
    return True, figures


def _mission(summary: Path) -> tuple[bool, dict[str, Any]]:
    """Passed: the flight ended by itself and was safe. Whether it reached its goal is a figure."""
    figures = json.loads(summary.read_text())
    if figures["breaches"] is None:
        figures["checks_failed"] = ["nothing was recorded to be judged"]
    elif figures["breaches"]:
        figures["checks_failed"] = [
            f"{figures['breaches']} breaches of the safety rules: log/mission.log has them"
        ]
    return figures["breaches"] == 0, figures


def _replay(summary: Path) -> tuple[bool, dict[str, Any]]:
    figures = json.loads(summary.read_text())
    return not figures["error"], figures


def _airsim_answers(host: str) -> None:
    if not host:
        return
    try:
        socket.create_connection((host, AIRSIM_PORT), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise CannotRun(f"no AirSim answers at {host}:{AIRSIM_PORT} ({error})") from None


def _recorded(flight: Path) -> None:
    try:
        Bag(flight).close()
    except BagError as error:
        raise CannotRun(f"no flight was recorded to be replayed: {error}") from None


def _limits(options: argparse.Namespace) -> list[dict[str, str]]:
    """What the parts themselves leave out, because it was not given."""
    found = []
    if not options.model:
        why = (
            "no MODEL was given: experiments and benchmark take random weights, the mission the shipped pilot"
        )
        found.append({"what": "the 3B model's answers", "why": why})
    if not options.video:
        found.append(
            {"what": "a real video", "why": "no VIDEO was given: experiment C takes a rendered film"}
        )
    if not options.airsim:
        why = "no AIRSIM was given: the mission is flown in the embedded simulator"
        found.append({"what": "a real AirSim", "why": why})
    if options.quick:
        why = (
            "--quick: experiment B at its first budget only, C over 60 chunks, the benchmark with few repeats"
        )
        found.append({"what": "the full length", "why": why})
    return found


# ---- running them
class Acceptance:
    """The parts, run one after the other into `folder`."""

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Part],
        limits: Sequence[dict[str, str]],
        stop: StopSignals,
        terminal: Terminal,
    ) -> None:
        self._folder, self._parts, self._limits = folder, parts, limits
        self._stop, self._terminal = stop, terminal
        before = read_json(folder / "accept.json")
        self._done = {name: done for name, done in results(before).items() if done["passed"]}
        self._why = {part.name: NOT_REACHED for part in parts if part.name not in self._done}
        self._here: dict[str, Any] = {}

    @property
    def failed(self) -> list[str]:
        return [name for name, done in self._done.items() if not done["passed"]]

    @property
    def unreached(self) -> list[str]:
        return [name for name, why in self._why.items() if why == NOT_REACHED]

    def run(self) -> None:
        (self._folder / "log").mkdir(exist_ok=True)
        self._here = self._machine()
        self._write()
        for part in self._parts:
            if part.name in self._done:
                self._terminal.say(f"{part.name:8} passed before")
                continue
            if self._stop.wait(0.0):
                break
            self._run_part(part)
            self._write()

    def _run_part(self, part: Part) -> None:
        try:
            if part.after and not self._done.get(part.after, {}).get("passed"):
                raise CannotRun(f"{part.after} has not passed: mend it, and the same command goes on")
            part.possible()
            started = time.monotonic()
            status, last_line = self._execute(part)
            if self._stop.wait(0.0):
                return
            if status == CONFIGURATION_ERROR:
                raise CannotRun(last_line)
        except CannotRun as reason:
            self._why[part.name] = str(reason)
            self._terminal.say(f"{part.name:8} skipped: {reason}")
            return
        try:
            passed, figures = part.read()
        except (OSError, ValueError, KeyError) as error:
            passed, figures = False, {"error": f"it left no result ({error}); its last line: {last_line}"}
        seconds = round(time.monotonic() - started, 1)
        passed = passed and status == 0
        self._done[part.name] = {"passed": passed, "seconds": seconds, "commit": commit(), "figures": figures}
        self._why.pop(part.name, None)
        self._terminal.say(f"{part.name:8} {'passed' if passed else 'FAILED'} in {seconds} s")

    def _execute(self, part: Part) -> tuple[int, str]:
        """Exit status and last line of the part's process, in a group of its own: Ctrl-C reaches it once, by us."""
        path, started = self._folder / "log" / f"{part.name}.log", time.monotonic()
        with path.open("wb") as log:
            process = popen(part.command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
            while process.poll() is None and not self._stop.wait(POLL_S):
                line = _last_line(path)
                self._terminal.status(f"{part.name:8} {time.monotonic() - started:4.0f} s  {line}", part.name)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            return process.wait(), _last_line(path)

    def _machine(self) -> dict[str, Any]:
        """In processes of their own: torch would hold some of the GPU's memory here for as long as this runs."""

        def said(*command: str) -> Any:
            words = [sys.executable, "-m", *command]
            return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

        return {"machine": said("nav_eval", "machine"), "profile": said("nav_server", "profile", "--json")}

    def _write(self) -> None:
        skipped = [{"what": name, "why": why} for name, why in self._why.items()]
        if not self._here["machine"]["gpu"]:
            skipped.append({"what": "everything on a GPU", "why": self._here["profile"]["reason"]})
        found = {
            "machine": self._here["machine"],
            "profile": self._here["profile"],
            "experiments": {name: self._done.get(name) for name in ("a", "b", "c")},
            **{name: self._done.get(name) for name in ("bench", "replay", "mission")},
            "skipped": skipped + list(self._limits),
            "seconds": round(sum(done["seconds"] for done in self._done.values()), 1),
        }
        write_text(self._folder / "accept.html", accept_page.page(found))
        write_text(self._folder / "accept.json", json.dumps(found, indent=2) + "\n")


def _last_line(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 2000))
        lines = log.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    sys.exit(main())
