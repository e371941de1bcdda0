"""The harness: `make bench-evaluation` writes benchmarks/results/evaluation.json, part by part (`--only kills`).

- speed: 100 episodes of one variant on the processors that are here: seconds, and the real-time factor a core.
- kills: the same run killed (SIGKILL, the whole process group) 20 times at random moments and resumed each time;
  `identical` compares all that the episodes recorded but the wall time of the engine's work.
- report: report.html of these episodes in Chromium: size, first contentful paint, console errors, requests, how far the
  page is wider than 400 px, pages when printed. Screenshots and the PDF lie beside the report.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from nav_eval import machine
from nav_eval.harness import EPISODES_FILE

ROOT = Path(__file__).resolve().parent.parent
KILLS = 20
WALL_TIMES = ("engine_ms", "wall_s")  # of the engine's work, of an episode
NARROW_PX = 400


def command(out: Path, seeds: str) -> list[str]:
    return [sys.executable, "-m", "nav_eval", "eval", "--scene=field", f"--seeds={seeds}", f"--out={out}"]


def speed(folder: Path, seeds: str) -> dict[str, Any]:
    shutil.rmtree(folder / "whole", ignore_errors=True)
    began_s = time.monotonic()
    subprocess.run(command(folder / "whole", seeds), check=True, cwd=ROOT)
    seconds = time.monotonic() - began_s
    results = json.loads((folder / "whole" / "results.json").read_text())
    return {
        "seeds": seeds,
        "seconds": round(seconds, 1),
        "realtime_factor": results["realtime_factor"],
    }


def episodes(folder: Path) -> dict[str, Any]:
    """What each episode recorded, by its job, without what is a wall time."""
    found: dict[str, Any] = {}
    for line in (folder / EPISODES_FILE).read_text().splitlines():
        record = json.loads(line)
        job = json.dumps(record.pop("job"))
        assert job not in found, f"{job} was counted twice"
        found[job] = without_wall_times(record)
    return found


def without_wall_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_wall_times(one) for key, one in value.items() if key not in WALL_TIMES}
    return [without_wall_times(one) for one in value] if isinstance(value, list) else value


def kills(folder: Path, seeds: str) -> dict[str, Any]:
    whole, killed = folder / "whole", folder / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    rng = random.Random(1)
    done = 0
    began_s = time.monotonic()
    while done < KILLS:
        process = subprocess.Popen(command(killed, seeds), start_new_session=True, cwd=ROOT)
        try:
            process.wait(rng.uniform(1.0, 15.0))
            break  # it ended before all kills: said by the count
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
    subprocess.run(command(killed, seeds), check=True, cwd=ROOT)
    return {
        "seeds": seeds,
        "kills": done,
        "seconds": round(time.monotonic() - began_s, 1),
        "identical": episodes(whole) == episodes(killed),
    }


def report(folder: Path, _seeds: str) -> dict[str, Any]:
    page_file = folder / "whole" / "report.html"
    chromium = shutil.which("chromium")
    if not chromium:
        raise SystemExit("bench-evaluation: no Chromium: apt-get install chromium")
    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("console", lambda line: said.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri(), wait_until="load", timeout=60_000)
        paint_ms = page.evaluate(
            "() => new Promise(found => new PerformanceObserver(list => found(list.getEntriesByName("
            "'first-contentful-paint')[0].startTime)).observe({type: 'paint', buffered: true}))"
        )
        page.screenshot(path=folder / "report.png")
        page.pdf(path=folder / "report.pdf", format="A4")
        narrow = browser.new_page(viewport={"width": NARROW_PX, "height": 800})
        narrow.goto(page_file.as_uri(), wait_until="load", timeout=60_000)
        wider = narrow.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        narrow.screenshot(path=folder / "report-narrow.png", full_page=True)
        browser.close()
    return {
        "mbytes": round(page_file.stat().st_size / 1e6, 2),
        "first_paint_ms": round(paint_ms),
        "console_errors": said,
        "requests_beyond_the_file": [url for url in asked if not url.startswith(("file:", "data:", "blob:"))],
        "wider_than_400_px_by": wider,
        "printed_pages": (folder / "report.pdf").read_bytes().count(b"/Type /Page\n"),
    }


PARTS: dict[str, Callable[[Path, str], dict[str, Any]]] = {"speed": speed, "kills": kills, "report": report}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", default="2001-2100")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "streampilot-evaluation")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/evaluation.json")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.only:
        results[name] = PARTS[name](options.folder, options.seeds) | {"machine": machine.describe()}
        print(name, json.dumps(results[name], indent=1), flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
