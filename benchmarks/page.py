"""What the monitoring page costs, and how fast its emergency stop is: `make bench-page` writes results/page.json.

The whole graph stands in the field, with `http:=true`.
- processor: of perception's process, which serves the page, in percent of a core: without it (http:=false), with it and
  nobody looking, with one page open, with seven (pages without a browser, which take and fetch all that one would).
- first paint: of pages loaded one after the other in Chromium, by its own clock.
- stop: from a click in Chromium, while seven other pages are open, to the message's arrival at a subscriber and to
  the gate's EMERGENCY, by the bridge's own stamp, while the memory is asked one question after the other.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import numpy as np
import psutil
import rclpy
import socketio
from nav_msgs_ext.srv import Ask
from playwright.sync_api import Browser, Dialog, Page, sync_playwright
from rclpy.executors import SingleThreadedExecutor

from nav_common import topics
from nav_common.data import DroneState, GateMode
from nav_common.ros import from_ros, subscription
from nav_common.testing import free_port, unique_domain_id
from nav_eval import machine

ROOT = Path(__file__).resolve().parent.parent
WINDOW_S = 15.0
STOPS = 20
_PAUSE_S = 0.5  # so that the stops are spread over ten seconds of asks
PAGES = 8
LIMIT_S = 60.0


@contextlib.contextmanager
def graph(*arguments: str) -> Iterator[int]:
    """A graph in the field; the id of perception's process."""
    words = ["full_stack", f"airsim_port:={free_port()}", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "nav_bringup.runner", *words], cwd=ROOT, stdout=sys.stderr
    )
    try:
        yield _perception(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)


def _perception(parent: int) -> int:
    """Its id, once it has loaded the model."""
    node = rclpy.create_node("bench_page_ready")
    client = node.create_client(Ask, topics.ASK_SERVICE)
    if not client.wait_for_service(timeout_sec=LIMIT_S):
        raise SystemExit("bench-page: perception did not come up")
    node.destroy_node()
    for child in psutil.Process(parent).children(recursive=True):
        if any("perception" in word for word in child.cmdline()):
            return child.pid
    raise SystemExit("bench-page: perception's process was not found")


def processor_percent(pid: int) -> float:
    """Of one core, over WINDOW_S."""
    process = psutil.Process(pid)
    before, began_s = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(WINDOW_S)
    return round(100 * (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began_s), 1)


def open_page(browser: Browser, address: str) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1e3 * LIMIT_S)
    page.goto(address, wait_until="commit")
    page.wait_for_function("document.querySelector('.camera img')?.naturalWidth > 0")
    return page


def paints_ms(browser: Browser, address: str) -> list[float]:
    found = []
    for _ in range(6):
        page = open_page(browser, address)
        paint = (
            "() => new Promise(found => new PerformanceObserver(list => list.getEntriesByName("
            "'first-contentful-paint').forEach(paint => found(paint.startTime)))"
            ".observe({type: 'paint', buffered: true}))"
        )
        found.append(float(page.evaluate(paint)))
        page.close()
    return [round(value) for value in found]


class Visitors:
    """Pages without a browser, whose drawing would be the load: each connects as NiceGUI's script does, takes every
    update, and fetches pictures as often as it is told, as the page's own script does."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.new_event_loop()
        self._sockets: list[socketio.AsyncClient] = []
        self._sessions: list[aiohttp.ClientSession] = []
        self._fetching: list[asyncio.Task[None]] = []
        self.updates = self.pictures = 0
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def add(self, count: int) -> None:
        for _ in range(count):
            asyncio.run_coroutine_threadsafe(self._add(), self._loop).result(LIMIT_S)

    def close(self) -> None:
        for task in self._fetching:
            self._loop.call_soon_threadsafe(task.cancel)
        for ended in [each.disconnect() for each in self._sockets] + [
            each.close() for each in self._sessions
        ]:
            asyncio.run_coroutine_threadsafe(ended, self._loop).result(LIMIT_S)

    async def _add(self) -> None:
        session, socket = aiohttp.ClientSession(), socketio.AsyncClient()
        self._sessions.append(session)
        async with session.get(f"{self._address}monitor/") as answer:
            text = await answer.text()
        query = ast.literal_eval(re.findall(r"query: (\{.*?\}),", text)[0])
        period_s = 0.1

        async def fetch() -> None:
            while True:
                async with session.get(f"{self._address}monitor/camera.jpg?{time.time()}") as answer:
                    self.pictures += len(await answer.read()) > 0
                await asyncio.sleep(period_s)

        async def update(elements: dict[str, Any]) -> None:
            nonlocal period_s
            self.updates += 1
            for period_ms in re.findall(r'"data-period": "?(\d+)', json.dumps(elements)):
                period_s = int(period_ms) / 1e3

        socket.on("update", update)
        query |= {"implicit_handshake": "true", "document_id": str(uuid.uuid4()), "tab_id": str(uuid.uuid4())}
        await socket.connect(
            f"{self._address}?{urlencode({**query, 'old_tab_id': 'null'})}",
            socketio_path="/monitor/_nicegui_ws/socket.io",
            transports=["websocket"],
        )
        self._sockets.append(socket)
        self._fetching.append(asyncio.create_task(fetch()))


class Bridgeside:
    """When the stop arrived beside the bridge, by DDS's own stamp, and when the gate took it, by the bridge's: how late
    this process runs counts for neither. Unix times, 0: not since the last `begin`."""

    def __init__(self) -> None:
        self._node = rclpy.create_node("bench_page")
        self.stop_s = self.emergency_s = 0.0
        self.emergency = False
        self.changed = threading.Condition()
        subscription(self._node, topics.EMERGENCY_STOP, "/drone", self._on_stop)
        subscription(self._node, topics.STATE, "/drone", self._on_state)
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        threading.Thread(target=executor.spin, daemon=True).start()

    def begin(self) -> None:
        """Wait until the gate is released, and expect the next stop."""
        with self.changed:
            assert self.changed.wait_for(lambda: not self.emergency, LIMIT_S), "the stop was not released"
            self.stop_s = self.emergency_s = 0.0

    def stopped(self) -> bool:
        """Whether both came within LIMIT_S."""
        with self.changed:
            return self.changed.wait_for(lambda: bool(self.stop_s and self.emergency_s), LIMIT_S)

    def _on_stop(self, message: Any, info: dict[str, Any]) -> None:
        with self.changed:
            if message.data and not self.stop_s:
                self.stop_s = info["received_timestamp"] * 1e-9
            self.changed.notify_all()

    def _on_state(self, message: Any) -> None:
        state = from_ros(DroneState, message)
        with self.changed:
            self.emergency = state.gate_mode is GateMode.EMERGENCY
            if self.emergency and not self.emergency_s:
                self.emergency_s = state.stamp_s
            self.changed.notify_all()


class Asker:
    """One question after the other: the memory is never idle. All of it in one thread with an executor of its own,
    since rclpy may lose an answer, or the thread that spins, when a call comes from another thread."""

    def __init__(self) -> None:
        self.asks = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(LIMIT_S)

    def _ask(self) -> None:
        node, executor = rclpy.create_node("bench_page_asks"), SingleThreadedExecutor()
        executor.add_node(node)
        client = node.create_client(Ask, topics.ASK_SERVICE)
        while not self._ended.is_set():
            request = Ask.Request(question=f"is there a beacon, number {self.asks}?", choices=["yes", "no"])
            answer = client.call_async(request)
            executor.spin_until_future_complete(answer, 2.0)
            self.asks += answer.done()
        node.destroy_node()


def stops_ms(page: Page, side: Bridgeside) -> dict[str, Any]:
    """Of STOPS clicks, each released before the next."""
    click = "() => { const at = Date.now(); document.querySelector('.stop').click(); return at; }"
    arrived, engaged, said = [], [], []

    def dismiss(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    asker = Asker()
    for number in range(STOPS):
        side.begin()
        asks, clicked_s = asker.asks, page.evaluate(click) / 1e3
        assert side.stopped(), (
            f"click {number + 1} of {STOPS} did not stop: at the topic {side.stop_s or 'never'}, in the gate "
            f"{side.emergency_s or 'never'}, {asker.asks - asks} asks since; the page says {said or 'nothing'}"
        )
        arrived.append(1e3 * (side.stop_s - clicked_s))
        engaged.append(1e3 * (side.emergency_s - clicked_s))
        page.evaluate("() => fetch('/monitor/release', {method: 'POST'})")
        time.sleep(_PAUSE_S)
    asker.close()
    return {"asks": asker.asks, "at_the_topic_ms": spread(arrived), "at_the_gate_ms": spread(engaged)}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(float(np.median(values)), 1), "max": round(max(values), 1), "count": len(values)}


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        raise SystemExit("bench-page: no Chromium: apt-get install chromium")
    os.environ["ROS_DOMAIN_ID"] = str(unique_domain_id())
    os.environ.pop("STREAMPILOT_TOKEN", None)
    rclpy.init()
    processor: dict[str, float] = {}
    with graph() as pid:
        processor["without_page"] = processor_percent(pid)
    port = free_port()
    with graph("http:=true", f"http_port:={port}") as pid, sync_playwright() as playwright:
        processor["nobody_looking"] = processor_percent(pid)
        address = f"http://127.0.0.1:{port}/"
        visitors = Visitors(address)
        visitors.add(1)
        processor["one_page"] = processor_percent(pid)
        hz = {
            "updates": round(visitors.updates / WINDOW_S, 1),
            "pictures": round(visitors.pictures / WINDOW_S, 1),
        }
        visitors.add(PAGES - 2)
        processor[f"{PAGES - 1}_pages"] = processor_percent(pid)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        stops = stops_ms(open_page(browser, address), Bridgeside())
        visitors.close()
        paints = paints_ms(browser, address)
        browser.close()
    report = {
        "machine": machine.describe(),
        "load": os.getloadavg(),
        "processor_percent_of_a_core": processor,
        "hz_of_a_page": hz,
        "first_paint_ms": paints,
        "stop": stops,
    }
    (ROOT / "benchmarks/results/page.json").write_text(json.dumps(report, indent=2) + "\n")
    print(
        json.dumps(
            {key: report[key] for key in ("processor_percent_of_a_core", "first_paint_ms", "stop")}, indent=2
        )
    )
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
