"""Pictures of what there is to see, into docs/images (`make screenshots`): one flight with its page, its terminal, its
viewer, and a small evaluation's report. Needs Chromium.
"""

from __future__ import annotations

import html
import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Error, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PAGE = "http://127.0.0.1:6006/"
FLIGHT = ("--scene=field-mixed", "--seed=595", "--mission=fly to the blue beacon", "--monitor")
COLUMNS = 80
LIMIT_MS = 120_000.0
_KEPT_COLOURS = 256
_WORTH_SEEING = 4
"""Decisions after which the page is worth a picture."""


class Flight:
    """`make fly` in a terminal of its own, of COLUMNS columns; what it writes is kept."""

    def __init__(self) -> None:
        self.text = ""
        ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "24", "TERM": "xterm-256color"}
        environment.pop("STREAMPILOT_TOKEN", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nav_bringup.fly", *FLIGHT],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, terminal: int) -> None:
        try:
            while piece := os.read(terminal, 65536):
                self.text += piece.decode(errors="replace")
        except OSError:  # how a terminal says that nobody writes to it any more
            os.close(terminal)

    def wait(self) -> None:
        """Until it has ended.

        Raises:
            SystemExit: the flight did not succeed as a program.
        """
        status = self._process.wait(timeout=LIMIT_MS / 1e3)
        self._reader.join(5.0)
        if status:
            raise SystemExit(f"screenshots: the flight ended with status {status}:\n{self.text}")


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        raise SystemExit("screenshots: no Chromium: apt-get install chromium, or set CHROMIUM")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        flight = Flight()
        try:
            _page_in_flight(browser)
        except BaseException:
            print(flight.text, file=sys.stderr)
            raise
        flight.wait()
        _terminal(browser, flight.text)
        _file(browser, ROOT / "runs" / "latest" / "flight.html", "viewer", at=0.75)
        _file(browser, _evaluation(Path(folder)), "report")
        browser.close()
    for picture in sorted(IMAGES.glob("*.png")):
        print(f"{picture.relative_to(ROOT)}  {picture.stat().st_size // 1024} KB")


def _page_in_flight(browser: Browser) -> None:
    """While it flies: wide, on a phone, in the dark. One load each, all before the flight ends."""
    looks = {"page": (1280, "light"), "page-dark": (1280, "dark"), "page-phone": (400, "light")}
    pages: dict[str, Page] = {}
    for name, (width, scheme) in looks.items():
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        _open(page)
        pages[name] = page
    pages["page"].wait_for_function(
        f"parseInt(document.querySelector('.words b')?.innerText.slice(1)) >= {_WORTH_SEEING}",
        timeout=LIMIT_MS,
    )
    for name, page in pages.items():
        page.wait_for_selector(".plot canvas", timeout=LIMIT_MS)
        _keep(page, name, full_page=True)
        page.close()


def _open(page: Page) -> None:
    """Until the server is there: the model is loaded first."""
    problem = ""
    for _ in range(int(LIMIT_MS / 500)):
        try:
            page.goto(PAGE, wait_until="commit")
            return
        except Error as error:
            problem = error.message
            page.wait_for_timeout(500)
    raise SystemExit(f"screenshots: no page at {PAGE}: {problem}")


def _terminal(browser: Browser, text: str) -> None:
    """What stands in the terminal in the end; of a line that changed, its last state."""
    lines = [line.split("\r\x1b[2K")[-1].rstrip("\r") for line in text.split("\n")]
    plain = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line) for line in lines]
    shown = html.escape("\n".join(line for line in plain if line.strip())).replace(str(ROOT) + "/", "")
    page = browser.new_page(viewport={"width": 760, "height": 300})
    page.set_content(
        "<style>body{margin:0;background:#0d1117;color:#e6edf3;font:14px/1.45 'DejaVu Sans Mono',monospace}"
        "pre{margin:16px;font:inherit;white-space:pre-wrap}b{color:#7ee787}</style>"
        "<pre><b>$ make fly MONITOR=1 SCENE=field-mixed SEED=595 MISSION=&quot;fly to the blue beacon&quot;</b>\n"
        f"{shown}</pre>"
    )
    _keep(page, "terminal", full_page=True)
    page.close()


def _evaluation(folder: Path) -> Path:
    """The report of a small evaluation, with controls that can fail."""
    words = [
        "--scene=field-mixed",
        "--seeds=2001-2008",
        "--controls=blank,random",
        f"--out={folder / 'eval'}",
    ]
    subprocess.run(
        [sys.executable, "-m", "nav_eval", "eval", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return folder / "eval" / "report.html"


def _file(browser: Browser, file: Path, name: str, *, at: float = 0.0) -> None:
    """at: where in the flight a viewer stands, 0 to 1."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(file.resolve().as_uri())
    if at:
        scrub = "(range, at) => { range.value = at * range.max; range.dispatchEvent(new Event('input')); }"
        page.locator("input[type=range]").evaluate(scrub, at)
    page.wait_for_timeout(1500)  # its plots draw themselves
    _keep(page, name, full_page=False)
    page.close()


def _keep(page: Page, name: str, *, full_page: bool) -> None:
    """As a small PNG: with few colours, which pages of text and plots do not need more of."""
    shot = Image.open(io.BytesIO(page.screenshot(full_page=full_page))).convert("RGB")
    # By octree: of the median cut the few pixels of lamps and curves would come out grey.
    picture = shot.quantize(_KEPT_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
