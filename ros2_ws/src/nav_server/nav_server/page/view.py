"""The monitoring page, by NiceGUI: made by roboticists on FastAPI, and its wheel holds its whole front end.

`add_page(app, ...)` puts it on an application at /monitor. What is shown is drawn once for all pages that are open, and
elements are updated only where it has changed.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse
from nicegui import Client, ui
from nicegui import app as nicegui_app
from starlette.concurrency import run_in_threadpool

from nav_server.page import PATH, drawing, flights
from nav_server.page.board import HISTORY_S, Board, Snapshot
from nav_server.page.origin import SameOrigin
from vlm_perception import prompting

T = TypeVar("T")

MOST_PAGES = 24
"""Open at a time: each costs this process some work, four times a second."""
_RECONNECT_S = 20.0
"""A page whose connection was cut goes on as it was for so long (words half typed included); then it is loaded anew."""
_PERIOD_S = 0.25
"""Between updates of words; pictures are fetched by the page, see _CAMERA."""
_PICTURE_PERIOD_MS = 100
_PICTURES_HZ = 30.0
"""For all pages together: with more than three open each fetches fewer than ten a second."""
_SLOW_PERIOD_S = 1.0
"""Between updates of what is drawn as a whole (plots, map, watches)."""
_EARLY = 0.9
"""Of a period: pages ask at moments of their own, and one that asks after so much of it gets a new drawing."""
LONGEST_INSTRUCTION = 500
"""Characters: more than a page of words says is no instruction."""
_CSS = Path(__file__).with_name("page.css")


class Controls(Protocol):
    """What a visitor may ask for. Each answer: why it cannot be, or ""."""

    def start(self, instruction: str) -> str:
        """Waits for the agent's answer."""
        ...

    def cancel(self) -> str: ...

    def emergency_stop(self, engaged: bool) -> None:
        """Must not wait."""
        ...


def add_page(
    app: FastAPI,
    board: Board,
    controls: Controls,
    *,
    now: Callable[[], float],
    runs: Path,
    tokens: bool,
) -> None:
    """For one application of a process at a time, which is NiceGUI's limit.

    Args:
        now: the clock of `board`.
        runs: folder of past flights.
        tokens: whether the application asks for one.
    """
    app.add_middleware(SameOrigin, open_to_anybody=not tokens)
    _add_pictures(app, board)
    _add_flights(app, runs)
    quick = _Drawing(_draw_quick, lambda: board.snapshot(now()), _PERIOD_S)
    slow = _Drawing(_draw_slow, lambda: board.snapshot(now()), _SLOW_PERIOD_S)

    @app.get("/", include_in_schema=False)
    async def front() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    @app.post(f"{PATH}/stop", include_in_schema=False)
    async def stop() -> JSONResponse:
        controls.emergency_stop(True)
        return JSONResponse({"engaged": True})

    @app.post(f"{PATH}/release", include_in_schema=False)
    async def release() -> JSONResponse:
        controls.emergency_stop(False)
        return JSONResponse({"engaged": False})

    @ui.page("/", title="StreamPilot")
    def page() -> Response | None:
        if len(Client.instances) > MOST_PAGES:
            return PlainTextResponse(
                f"{MOST_PAGES} pages are open, which is the most: close one, then load this one again.\n", 503
            )
        _Page(controls, runs).follow(quick, slow)
        return None

    # NiceGUI looks through all objects for the server, torch's deprecated ones among them.
    warnings.filterwarnings("ignore", message="`torch.distributed.reduce_op`", category=FutureWarning)
    # NiceGUI's own application is one for the process, and that of an earlier call must not be in the way.
    nicegui_app.user_middleware.clear()
    nicegui_app.middleware_stack = None
    ui.run_with(
        app,
        mount_path=PATH,
        dark=None,
        language="en-US",
        tailwind=False,
        storage_secret=None,
        show_welcome_message=False,
        binding_refresh_interval=None,
        reconnect_timeout=_RECONNECT_S,
        # Of its scripts, each time that a page is loaded, in the thread that answers everything: the least is enough.
        gzip_middleware_factory=lambda inner: GZipMiddleware(inner, compresslevel=1),
    )


def _add_pictures(app: FastAPI, board: Board) -> None:
    """Plain routes: each page asks for ten pictures a second."""

    async def camera(_: Request) -> Response:
        picture = board.picture()
        return _picture(picture.data if picture else None, "no-store")

    async def frame(request: Request) -> Response:
        thumbnail = board.thumbnail_of(request.path_params["nanoseconds"])
        return _picture(thumbnail, "private, max-age=3600, immutable")

    app.add_route(f"{PATH}/camera.jpg", camera, include_in_schema=False)
    app.add_route(f"{PATH}/frames/{{nanoseconds:int}}.jpg", frame, include_in_schema=False)


def _picture(data: bytes | None, caching: str) -> Response:
    if not data:
        return PlainTextResponse("there is no such picture\n", 404)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": caching})


def _add_flights(app: FastAPI, runs: Path) -> None:
    @app.get(f"{PATH}/flights/{{run}}/{{page}}", include_in_schema=False)
    async def viewer(run: str, page: str) -> Response:
        file = await run_in_threadpool(flights.viewer_page, runs, run, page)
        if file is None:
            return PlainTextResponse("there is no such flight, or it has no such page\n", 404)
        # What stands in it came from a flight: it may run its own scripts, and reach nothing of this page.
        return FileResponse(
            file, media_type="text/html", headers={"Content-Security-Policy": "sandbox allow-scripts"}
        )


def _post(path: str, problem: str) -> str:
    """JavaScript that asks for `path`, and says aloud when that failed."""
    return (
        f"fetch('{PATH}/{path}', {{method: 'POST', keepalive: true}})"
        ".then(answer => { if (!answer.ok) throw new Error('status ' + answer.status); })"
        f".catch(error => alert('{problem} (' + error.message + ')'))"
    )


_BAR = (
    '<header class="bar"><h1>StreamPilot</h1><button type="button" class="stop" onclick="'
    + _post("stop", "NOT STOPPED: stop the drone by another way")
    + '">Emergency stop</button></header>'
)
"""Plain HTML, which is drawn first and needs nothing of the framework: the stop works while that loads, and when its
connection is cut. It is a request of its own, which waits behind nothing else that the page sends."""


_CAMERA = f"""<script>
(function follow() {{
  const image = document.querySelector('.picture img:not(.hidden)'), began = Date.now();
  const again = () => setTimeout(follow, Math.max(0, (image?.dataset.period ?? 100) - (Date.now() - began)));
  if (!image || document.hidden) return again();
  image.onload = image.onerror = again;
  image.src = '{PATH}/camera.jpg?' + began;
}})();
</script>"""
"""Fetches the newest picture each `data-period` ms, or as often as the network lets it, while somebody looks. Were
NiceGUI told of each picture, that would be a message more for each of them, and they would queue on a slow network."""


@dataclass(frozen=True)
class _Quick:
    """What every page shows, as HTML, of the last quarter of a second."""

    flying: bool
    emergency: bool
    has_picture: bool
    lamps: str
    aim: str
    words: str
    mission: str
    strip: str
    frames: str


@dataclass(frozen=True)
class _Slow:
    """The same, of the last second. The plots' as ECharts takes them."""

    map: str
    latencies: list[dict[str, Any]]
    ages: list[dict[str, Any]]
    link: str
    watches: str


class _Drawing(Generic[T]):
    """What all pages show, drawn once for all of them and not older than `period_s`. For the server's thread only."""

    def __init__(
        self, draw: Callable[[Snapshot], T], snapshot: Callable[[], Snapshot], period_s: float
    ) -> None:
        self._draw = draw
        self._snapshot = snapshot
        self._period_s = period_s
        self._drawn: tuple[float, T] | None = None

    def now(self) -> T:
        at_s = time.monotonic()
        if self._drawn is None or at_s - self._drawn[0] >= _EARLY * self._period_s:
            self._drawn = at_s, self._draw(self._snapshot())
        return self._drawn[1]


def _draw_quick(snapshot: Snapshot) -> _Quick:
    return _Quick(
        flying=snapshot.flying,
        emergency=snapshot.emergency,
        has_picture=snapshot.picture is not None,
        lamps=drawing.lamps(snapshot.lamps),
        aim=drawing.aim(snapshot),
        words=drawing.decision_words(snapshot),
        mission=drawing.mission(snapshot),
        strip=drawing.strip(snapshot.cache),
        frames=drawing.frames(snapshot.frames, f"{PATH}/frames"),
    )


def _draw_slow(snapshot: Snapshot) -> _Slow:
    return _Slow(
        map=drawing.path_map(snapshot.path, snapshot.odometry.yaw if snapshot.odometry else 0.0),
        latencies=drawing.chart_data(snapshot.latencies, snapshot.at_s),
        ages=drawing.chart_data(snapshot.ages, snapshot.at_s),
        link=drawing.link(snapshot.link),
        watches=drawing.watches(snapshot),
    )


class _Page:
    """The elements of one visitor's page."""

    def __init__(self, controls: Controls, runs: Path) -> None:
        self._controls = controls
        self._runs = runs
        ui.add_css(_CSS.read_text(encoding="utf-8"))
        ui.add_body_html(_BAR + _CAMERA)
        with ui.element("section").classes("top").props('aria-label="States"'):
            self._lamps = ui.html(tag="ul").classes("lamps").props('aria-label="States"')
        with ui.element("main").classes("cards"):
            self._camera_card()
            self._mission_card()
            with _card("Path", "map"):
                self._map = ui.html()
            self._memory_card()
            with _card("Latency", "plot"):
                self._latencies = _chart("ms", "Latencies of the last two minutes, in milliseconds")
            with _card("Age", "plot"):
                self._ages = _chart("s", "Ages of the last two minutes, in seconds")
            with _card("Watches", "watches"):
                self._watches = ui.html()
            self._flights_card()
            with _card("Link", "link"):
                self._link = ui.html()

    def follow(self, quick: _Drawing[_Quick], slow: _Drawing[_Slow]) -> None:
        """Show what is, now and from now on."""
        self._show(quick.now())
        self._show_slowly(slow.now())
        ui.timer(_PERIOD_S, lambda: self._show(quick.now()))
        ui.timer(_SLOW_PERIOD_S, lambda: self._show_slowly(slow.now()))

    # What it is made of.

    def _camera_card(self) -> None:
        with _card("Camera and last decision", "camera"), ui.element("div").classes("picture"):
            self._image = ui.element("img").props('alt="What the drone sees"')
            self._aim = ui.html().classes("aim")
            self._words = ui.html().classes("words")

    def _mission_card(self) -> None:
        with _card("Mission", "mission"):
            self._mission = ui.html()
            self._instruction = ui.input("Where to fly, in words").props(
                f"outlined dense maxlength={LONGEST_INSTRUCTION}"
            )
            self._instruction.on("keydown.enter", self._start)
            with ui.element("div").classes("buttons"):
                self._start_button = _button("Start", "go", self._start)
                self._cancel_button = _button("Cancel", "plain", self._cancel)
                self._release_button = _button("Release emergency stop", "plain")
                self._release_button.on("click", js_handler="() => " + _post("release", "Not released"))
            self._said = ui.label().classes("said").props('role="status"')

    def _memory_card(self) -> None:
        with _card("Memory", "memory"):
            self._strip = ui.html()
            self._frames = ui.html().classes("frames")
            self._frames.props('tabindex="0" role="region" aria-label="Frames in memory"')

    def _flights_card(self) -> None:
        with _card("Past flights", "flights"):
            # Not cleaned a second time in the browser, which would take the links' targets away.
            self._flights = ui.html(sanitize=False).classes("scroll")
            self._flights.props('tabindex="0" role="region" aria-label="List of past flights"')
            _button("Refresh", "plain", self._list_flights)
            ui.timer(0.5, self._list_flights, once=True)

    # What visitors do.

    async def _start(self) -> None:
        instruction = str(self._instruction.value or "").strip()
        problem = instruction_problem(instruction)
        if not problem:
            self._said.set_text(f"Sending “{instruction}” ...")
            problem = await run_in_threadpool(self._controls.start, instruction)
        self._said.set_text(f"Not started: {problem}" if problem else f"Accepted: “{instruction}”")

    def _cancel(self) -> None:
        problem = self._controls.cancel()
        self._said.set_text(f"Not cancelled: {problem}" if problem else "Cancelling: the drone hovers.")

    async def _list_flights(self) -> None:
        found = await asyncio.to_thread(flights.past_flights, self._runs)
        self._flights.set_content(drawing.flights(found, str(self._runs), f"{PATH}/flights"))

    # What changes.

    def _show(self, now: _Quick) -> None:
        self._lamps.set_content(now.lamps)
        self._image.set_visibility(now.has_picture)
        self._aim.set_content(now.aim)
        self._words.set_content(now.words)
        self._mission.set_content(now.mission)
        self._start_button.set_enabled(not now.flying)
        self._cancel_button.set_enabled(now.flying)
        self._release_button.set_visibility(now.emergency)
        self._strip.set_content(now.strip)
        self._frames.set_content(now.frames)

    def _show_slowly(self, now: _Slow) -> None:
        period_ms = max(_PICTURE_PERIOD_MS, round(1e3 * len(Client.instances) / _PICTURES_HZ))
        self._image.props(f"data-period={period_ms}")
        self._map.set_content(now.map)
        self._latencies.run_chart_method("setOption", {"series": now.latencies})
        self._ages.run_chart_method("setOption", {"series": now.ages})
        self._link.set_content(now.link)
        self._watches.set_content(now.watches)


def instruction_problem(instruction: str) -> str:
    """Why a mission cannot be sent, or ""."""
    if not instruction:
        return "say where to fly, as “fly to the red beacon”"
    if len(instruction) > LONGEST_INSTRUCTION:
        return f"it has {len(instruction)} characters, the most is {LONGEST_INSTRUCTION}"
    if prompting.clean(instruction) != instruction:
        return "it holds control tokens of the model or control characters: use plain words"
    return ""


def _card(title: str, kind: str) -> ui.element:
    card = ui.element("section").classes(f"card {kind}").props(f'aria-label="{title}"')
    with card:
        ui.html(title, tag="h2")
    return card


def _button(text: str, kind: str, on_click: Callable[[], Any] | None = None) -> ui.button:
    return ui.button(text, on_click=on_click, color=None).classes(kind).props("no-caps unelevated")


def _chart(unit: str, words: str) -> ui.echart:
    grey = "#7d8590"  # readable on white and on black
    lines = {"type": "line", "symbol": "circle", "symbolSize": 3, "lineStyle": {"width": 1.5}}
    x_axis = {"type": "value", "min": -HISTORY_S, "max": 0, "splitLine": {"show": False}}
    y_axis = {
        "type": "value",
        "min": 0,
        "splitLine": {"lineStyle": {"color": grey, "opacity": 0.3}},
        "axisLine": {"onZero": False},  # at the left, not at the present moment
    }
    return (
        ui.echart(
            {
                "animation": False,
                "textStyle": {"color": grey},
                "color": ["#2f81f7", "#d29922", "#3fb950"],
                "grid": {"left": 44, "right": 12, "top": 30, "bottom": 24},
                "legend": {"textStyle": {"color": grey}, "top": 0, "itemHeight": 8},
                "tooltip": {"trigger": "axis"},
                "xAxis": {**x_axis, "axisLabel": {"formatter": "{value} s", "color": grey}},
                "yAxis": {**y_axis, "axisLabel": {"formatter": "{value} " + unit, "color": grey}},
                "series": [lines, lines, lines],
            }
        )
        .classes("chart")
        .props(f'role="img" aria-label="{words}"')
    )
