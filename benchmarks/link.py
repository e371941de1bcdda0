"""The link: what it adds on loopback with mutual TLS, and what arrives across a bad internet.

python benchmarks/link.py [--quick] writes benchmarks/results/link.json (`make bench-link`).

The server asks for pictures as perception does: the next one an interval after the one before, and now and then, as
after a motion, the newest there is. Server, edge and emulator are processes of their own on one machine, so one clock
stamps what is sent and reads when it arrived. The internet is two network namespaces
(`zenoh_link.testing.namespaces`), where they can be made; otherwise a proxy (`zenoh_link.emulator`), which imitates
loss by stalls. The result says which.

And whether an emergency stop that is sent anew arrives each time, with server and edge in one process beside three busy
processes for each processor.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nav_common import conversions, topics
from nav_common.cdr import stamp_ns
from nav_common.contract import COMMAND_MAX_AGE_S, COMMAND_PERIOD_S
from nav_common.data import CompressedImage, FrameRequest, Odometry, Twist, VelocityCommand
from nav_common.testing import busy_process, free_port
from nav_common.topics import Topic
from nav_eval import machine
from vlm_perception.frame_rule import INTERVAL_SLACK
from zenoh_link import certificates, settings
from zenoh_link import profile as profiles
from zenoh_link.emulator import Emulator
from zenoh_link.link import FIRST_REPEAT_S, Link
from zenoh_link.settings import Side, parse_address
from zenoh_link.testing import namespaces
from zenoh_link.testing.rig import stop, two_ends

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/link.json"
PICTURE_BYTES = 50_000
ODOMETRY_HZ = 30.0
MOTION_S = 3.0
"""A motion ends so often, and a decision wants a picture from after it."""
REPEAT_S = 0.5
SETTLE_S = 8.0
"""Before anything is counted: connections, window and quality have found their place."""


LOOPBACK = "loopback_mtls"
STOPS = "stops_beside_busy_processes"
# Seconds measured, the camera's rate (Hz), the interval at which pictures are wanted (s; 0.5 is the memory's default).
MEASURED = {
    LOOPBACK: (15.0, 10.0, 0.1),
    "lan": (15.0, 10.0, 0.1),
    "wan": (300.0, 10.0, 0.5),
    "uplink": (15.0, 30.0, 0.1),
    "slow": (30.0, 30.0, 0.5),
}


def percentiles(values_s: list[float]) -> dict[str, float | None]:
    if not values_s:
        return {"p50": None, "p95": None}
    return {
        "p50": 1000 * float(np.percentile(values_s, 50)),
        "p95": 1000 * float(np.percentile(values_s, 95)),
    }


def picture() -> bytes:
    """A JPEG of about PICTURE_BYTES: as much noise as it takes."""
    rng = np.random.default_rng(1)
    low, high = 0.0, 255.0
    for _ in range(12):
        middle = (low + high) / 2
        noise = rng.normal(128, middle, (480, 640, 3)).clip(0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 2), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        low, high = (middle, high) if len(data) < PICTURE_BYTES else (low, middle)
    return data.tobytes()


# --- the server, a process of its own


class Wanted:
    """The pictures that a memory wants which takes one each interval, and one after each motion."""

    def __init__(self, link: Link, interval_s: float) -> None:
        self._link, self._interval_s = link, interval_s
        self._next_s = self._sent_s = 0.0
        self._motion_ends_s = time.time() + MOTION_S

    def arrived(self, stamp_s: float) -> None:
        if stamp_s >= self._next_s:
            self._next_s = stamp_s + self._interval_s * (1 - INTERVAL_SLACK)
            self._send()

    def tick(self) -> None:
        now = time.time()
        if now > self._motion_ends_s:
            self._motion_ends_s += MOTION_S
            self._next_s = min(self._next_s, now - 0.05)  # by odometry that has come here meanwhile
            self._send()
        elif now - self._sent_s > REPEAT_S:
            self._send()

    def _send(self) -> None:
        self._sent_s = time.time()
        self._link.send(topics.FRAME_WANTED, conversions.encode(FrameRequest(self._next_s)))


def serve(address: str, folder: Path, interval_s: float) -> None:
    """Streams commands that echo the newest odometry, keeps what arrives, prints it at the end of its input."""
    inbox: queue.Queue[tuple[float, Topic, bytes]] = queue.Queue()
    link = Link(
        settings.load(),
        Side.SERVER,
        [parse_address(address)],
        certificates_folder=folder,
        deliver=lambda topic, payload: inbox.put((time.time(), topic, payload)),
        log=lambda text: None,
    )
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    newest_s, sequence, wanted = 0.0, itertools.count(1), Wanted(link, interval_s)
    images: list[tuple[float, float, int]] = []
    sent: list[tuple[float, int]] = []
    while not ended.wait(COMMAND_PERIOD_S):
        while not inbox.empty():
            at, topic, payload = inbox.get()
            stamp_s = stamp_ns(payload) / 1e9
            if topic.name == topics.FRONT_IMAGE.name:
                images.append((at, at - stamp_s, len(payload)))
                wanted.arrived(stamp_s)
            elif topic.name == topics.ODOM.name:
                newest_s = max(newest_s, stamp_s)
        wanted.tick()
        if newest_s and link.state().up:
            number = next(sequence)
            sent.append((time.time(), number))
            command = VelocityCommand(newest_s, 1, number, Twist.body(forward_m_s=1.0))
            link.send(topics.COMMAND, conversions.encode(command))
    link.close()
    print(json.dumps({"images": images, "commands": sent}))


# --- both sides


def measure(profile: str, seconds: float, image_hz: float, interval_s: float, folder: Path) -> dict[str, Any]:
    """Pictures and odometry to the server, commands back, across `profile` ("" is plain loopback).

    image_hz: of the camera. interval_s: at which the server wants pictures.
    """
    with sides(profile, folder) as (server_command, edge_command):
        server_command += ["--interval-s", str(interval_s)]
        server = subprocess.Popen(server_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        edge_command += ["--seconds", str(seconds), "--image-hz", str(image_hz)]
        edge = subprocess.Popen(edge_command, stdout=subprocess.PIPE, text=True)
        try:
            flown_text, _ = edge.communicate(timeout=seconds + SETTLE_S + 60)
            heard_text, _ = server.communicate("", timeout=20)
        finally:
            edge.kill()
            server.kill()
    if edge.returncode or server.returncode:
        raise RuntimeError(
            f"{profile or 'loopback'}: edge ended with {edge.returncode}, server {server.returncode}"
        )
    flown, heard = json.loads(flown_text), json.loads(heard_text)
    began, ended = flown["began"], flown["ended"]
    images = [row for row in heard["images"] if began <= row[0] <= ended]
    commands = [row for row in flown["commands"] if began <= row[0] <= ended]
    sent_at = {number: at for at, number in heard["commands"]}
    expected = {n for n, at in sent_at.items() if began <= at <= ended - 1.0}
    return {
        "image_age_ms": percentiles([row[1] for row in images]),
        "command_age_ms": percentiles([at - sent_at[n] for at, _, n in commands if n in sent_at]),
        "command_echo_age_ms": percentiles([at - stamp_s for at, stamp_s, _ in commands]),
        "commands_lost": len(expected - {n for _, _, n in flown["commands"]}),
        "commands_sent": len(expected),
        "commands_too_old": sum(at - stamp_s > COMMAND_MAX_AGE_S for at, stamp_s, _ in commands),
        "image_bytes": float(np.median([row[2] for row in images])) if images else None,
        "wanted_each_s": interval_s,
        "images_hz": len(images) / (ended - began),
        "uplink_mbit_s": 8e-6 * sum(row[2] for row in images) / (ended - began),
        **flown["state"],
    }


@contextlib.contextmanager
def sides(profile: str, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The command lines of server and edge, with the internet between them."""
    port, proxy_port = free_port(), free_port()

    def side(option: str, host: str, port: int) -> list[str]:
        return [sys.executable, str(Path(__file__)), option, f"tls/{host}:{port}", "--folder", str(folder)]

    if not profile:
        yield side("--serve", "127.0.0.1", port), side("--edge", "127.0.0.1", port)
    elif not namespaces.missing():
        made = namespaces.Namespaces(profiles.find(profile))
        try:
            server = made.command(made.server, side("--serve", namespaces.SERVER_ADDRESS, port))
            yield server, made.command(made.edge, side("--edge", namespaces.SERVER_ADDRESS, port))
        finally:
            made.close()
    else:
        made_proxy = Emulator(proxy_port, port, profiles.find(profile)).start()
        try:
            yield side("--serve", "127.0.0.1", port), side("--edge", "127.0.0.1", proxy_port)
        finally:
            made_proxy.close()


# --- emergency stops


def send_stops(number: int) -> dict[str, Any]:
    waits_s: list[float] = []
    with contextlib.ExitStack() as stack:
        for _ in range(3 * (os.cpu_count() or 1)):
            stack.enter_context(busy_process())
        server, edge = stack.enter_context(two_ends())
        server.wait_up()
        edge.wait_up()
        for _ in range(number):
            began = time.monotonic()
            server.link.send(topics.EMERGENCY_STOP, stop(True))
            with contextlib.suppress(queue.Empty):
                edge.receive(topics.EMERGENCY_STOP, 3.0)
                waits_s.append(time.monotonic() - began)
            time.sleep(0.05)
    return {
        "sent": number,
        "lost": number - len(waits_s),
        "by_repeat": sum(wait_s >= FIRST_REPEAT_S for wait_s in waits_s),
        "slowest_ms": 1000 * max(waits_s),
    }


# --- the edge, a process of its own


def fly(address: str, seconds: float, image_hz: float, folder: Path) -> None:
    """Prints (arrival, echoed stamp, number) of each command, and the link's state at the end."""
    received: list[tuple[float, float, int]] = []

    def deliver(topic: Topic, payload: bytes) -> None:
        if topic.name == topics.COMMAND.name:
            command = conversions.decode(VelocityCommand, payload)
            received.append((time.time(), command.stamp_s, command.sequence))

    link = Link(
        settings.load(),
        Side.EDGE,
        [parse_address(address)],
        certificates_folder=folder,
        deliver=deliver,
        log=lambda text: None,
    )
    jpeg, closing = picture(), threading.Event()

    def odometry() -> None:
        while not closing.wait(1 / ODOMETRY_HZ):
            link.send(topics.ODOM, conversions.encode(Odometry(time.time())))

    sender = threading.Thread(target=odometry, daemon=True)
    sender.start()
    try:
        while not link.state().up:
            time.sleep(0.05)
        began = time.time() + SETTLE_S
        next_picture = time.monotonic()
        while time.time() < began + seconds:
            link.send(topics.FRONT_IMAGE, conversions.encode(CompressedImage(time.time(), jpeg)))
            next_picture += 1 / image_hz
            time.sleep(max(next_picture - time.monotonic(), 0.0))
        ended, state = time.time(), link.state()
    finally:
        closing.set()
        sender.join()
        link.close()
    figures = {
        "commands": received,
        "began": began,
        "ended": ended,
        "state": {
            "round_trip_ms": state.round_trip_ms,
            "window": state.window,
            "jpeg_quality": state.jpeg_quality,
            "image_rate_hz": state.image_rate_hz,
        },
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short, for a look; not for the record")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--edge", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--image-hz", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--interval-s", type=float, help=argparse.SUPPRESS)
    parser.add_argument(
        "--profiles", nargs="+", help=f"only these (or {STOPS}); what was measured of the others is kept"
    )
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder, options.interval_s)
        return
    if options.edge:
        fly(options.edge, options.seconds, options.image_hz, options.folder)
        return
    factor = 0.2 if options.quick else 1.0
    chosen = options.profiles or [*MEASURED, STOPS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates.make(folder, "server", ["edge"], [namespaces.SERVER_ADDRESS])
        figures: dict[str, Any] = json.loads(RESULT.read_text()) if options.profiles else {"profiles": {}}
        figures |= {"machine": machine.describe(), "internet": namespaces.missing() or "network namespaces"}
        for profile in chosen:
            if profile == STOPS:
                figures[STOPS] = send_stops(round(2000 * factor))
                figures[STOPS]["commit"] = figures["machine"]["commit"]
                continue
            seconds, image_hz, interval_s = MEASURED[profile]
            found = measure(
                "" if profile == LOOPBACK else profile, factor * seconds, image_hz, interval_s, folder
            )
            found["commit"] = figures["machine"]["commit"]
            (figures if profile == LOOPBACK else figures["profiles"])[profile] = found
    print(json.dumps(figures, indent=2))
    if not options.quick:
        RESULT.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
