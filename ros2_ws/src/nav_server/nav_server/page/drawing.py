"""Parts of the page as HTML and SVG, from what the board says. Every text that comes from outside is escaped here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from nav_common.data import Decision, GenerateStatus, LinkState
from nav_server.page.board import CacheStrip, Lamp, MemoryFrame, Series, Snapshot, frame_number
from nav_server.page.flights import RunFolder

_MAP_PX = 320
_LEAST_MAP_M = 10.0
_GRID_LINES = 6


def lamps(shown: Sequence[Lamp]) -> str:
    """Colour is never alone: each lamp has words."""
    return "".join(
        f'<li class="lamp {lamp.level}"><span class="dot" aria-hidden="true"></span>'
        f"<b>{escape(lamp.name)}</b> <span>{escape(lamp.text)}</span></li>"
        for lamp in shown
    )


def decision_words(snapshot: Snapshot) -> str:
    """The last decision, what for, and what the model said with it."""
    decision = snapshot.decision
    if decision is None:
        return '<p class="quiet">No decision yet.</p>'
    lines = [
        f"<p><b>#{decision.step} {escape(call_of(decision))}</b> "
        f'<span class="quiet">{decision.total_ms:.0f} ms</span></p>',
        f"<p>“{escape(decision.instruction)}”</p>",
    ]
    if decision.status is not GenerateStatus.OK:
        lines.append(f"<p>{escape(decision.status.name.lower())}: {escape(decision.message)}</p>")
    if decision.reason:
        lines.append(f"<p>{escape(decision.reason)}</p>")
    if decision.previous_result:
        lines.append(f'<p class="quiet">before: {escape(decision.previous_result)}</p>')
    return "".join(lines)


def call_of(decision: Decision) -> str:
    """As "fly_towards(u=500, v=480)"."""
    if not decision.tool:
        return "no call"
    arguments = _arguments(decision)
    return f"{decision.tool}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _arguments(decision: Decision) -> dict[str, Any]:
    try:
        found = json.loads(decision.arguments or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def aim(snapshot: Snapshot) -> str:
    """Where in the picture the last decision points: an SVG to lie over it, "" for a call that points nowhere."""
    if snapshot.decision is None or snapshot.decision.tool != "fly_towards":
        return ""
    arguments = _arguments(snapshot.decision)
    try:
        x, y = float(arguments["u"]) / 10, float(arguments.get("v", 500)) / 10
    except (KeyError, TypeError, ValueError):
        return ""
    if not (0 <= x <= 100 and 0 <= y <= 100):
        return ""
    rings = "".join(
        f'<circle cx="{x:.1f}%" cy="{y:.1f}%" r="9" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        for colour, width in (("#000", 5), ("#ffd400", 2.5))
    )
    return f'<svg width="100%" height="100%" aria-hidden="true">{rings}</svg>'


def mission(snapshot: Snapshot) -> str:
    """What is flown, and where the vehicle is."""
    goal, state, odometry = snapshot.goal, snapshot.state, snapshot.odometry
    facts: list[tuple[str, str]] = []
    if goal is not None:
        facts += [("Mission", f"“{goal.instruction}”"), ("Decisions", str(goal.decisions))]
        facts.append(("State", goal.state.name.lower().replace("_", " ")))
        if not snapshot.flying:
            facts.append(("Ended", f"{goal.outcome.name.lower().replace('_', ' ')}: {goal.reason}"))
    if odometry is not None:
        east, north, up = odometry.position
        facts.append(("Position", f"{east:.1f} m east, {north:.1f} m north, {up:.1f} m up"))
        facts.append(("Speed", f"{odometry.speed:.1f} m/s"))
    if snapshot.engine is not None and snapshot.engine.backend:
        facts.append(("Answers", snapshot.engine.backend))
    if state is not None:
        facts.append(("Epoch", str(state.epoch)))
        if state.commands_refused:
            facts.append(("Refused", f"{state.commands_refused} commands, last: {state.last_refusal}"))
        if state.reflex_interventions:
            facts.append(("Reflex", f"{state.reflex_interventions} times, last: {state.reflex_reason}"))
    return _facts(facts)


def link(state: LinkState | None) -> str:
    """The quality of the link, as its server's side sees it."""
    if state is None:
        return '<p class="quiet">Edge and server share a machine: there is no link.</p>'
    if not state.up:
        return _facts([("Link", f"down: {state.fault or 'no answer'}"), ("Outages", str(state.outages))])
    return _facts(
        [
            ("Round trip", f"{state.round_trip_ms:.0f} ms, jitter {state.jitter_ms:.0f} ms"),
            ("Loss", f"{state.loss:.1%}"),
            ("Pictures", _milliseconds(state.image_age_ms) + f" old, {state.image_rate_hz:.1f} a second"),
            ("Commands", _milliseconds(state.command_age_ms) + " old"),
            ("Traffic", f"{state.received_mbit_s:.2f} Mbit/s in, {state.sent_mbit_s:.2f} out"),
            ("Outages", str(state.outages)),
        ]
    )


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 0 else "unknown"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>" if rows else '<p class="quiet">No message received yet.</p>'


def strip(cache: CacheStrip) -> str:
    """The cache as a strip, and its numbers."""
    parts = [
        ("sink", cache.sink),
        ("window", cache.window),
        ("recalled", cache.recalled),
        ("free", cache.free),
    ]
    total = sum(tokens for _, tokens in parts)
    if not total:
        return '<p class="quiet">Nothing in memory.</p>'
    bars = "".join(
        f'<span class="{name}" style="width:{100 * tokens / total:.2f}%"></span>' for name, tokens in parts
    )
    legend = "".join(
        f'<li><span class="swatch {name}" aria-hidden="true"></span>{name} {tokens}</li>'
        for name, tokens in parts
    )
    return (
        f'<div class="strip" aria-hidden="true">{bars}</div>'
        f'<ul class="legend" aria-label="Tokens in the cache">{legend}</ul>'
    )


def frames(shown: Sequence[MemoryFrame], pictures: str) -> str:
    """The frames in memory, newest first. pictures: path below which they are."""
    if not shown:
        return '<p class="quiet">No frames in memory.</p>'
    newest_s = shown[-1].stamp_s
    return "".join(_frame(frame, newest_s, pictures) for frame in reversed(shown))


def _frame(frame: MemoryFrame, newest_s: float, pictures: str) -> str:
    age = f"{newest_s - frame.stamp_s:.1f} s ago" if frame.stamp_s != newest_s else "newest"
    words = f"{age}: {frame.entities}" if frame.entities else age
    picture = (
        f'<img src="{pictures}/{frame_number(frame.stamp_s)}.jpg" alt="" width="96" height="72">'
        if frame.seen
        else '<div class="unseen">not seen here</div>'
    )
    kind, mark = (' class="back"', "recalled, ") if frame.recalled else ("", "")
    return f"<figure{kind}>{picture}<figcaption>{mark}{escape(words)}</figcaption></figure>"


def watches(snapshot: Snapshot) -> str:
    """The standing questions that have turned, newest first."""
    if not snapshot.watches:
        return '<p class="quiet">No watch has turned yet.</p>'
    rows = "".join(
        f'<li class="{"holds" if event.holds else ""}"><b>{"true" if event.holds else "no longer"}</b> '
        f"{escape(event.watch)} <span class=quiet>{event.probability:.0%}"
        f"{', stops the motion' if event.hover else ''}</span></li>"
        for event in snapshot.watches
    )
    return f"<ul>{rows}</ul>"


def flights(found: Sequence[RunFolder], folder: str, address: str) -> str:
    """A table; address: path below which a flight's pages are."""
    if not found:
        return f'<p class="quiet">No flights in {escape(folder)}.</p>'
    rows = "".join(_flight_row(flight, address) for flight in found)
    return (
        "<table><thead><tr><th>Flight</th><th>Mission</th><th>Outcome</th><th>Recording</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _flight_row(flight: RunFolder, address: str) -> str:
    links = " ".join(
        f'<a href="{address}/{quote(flight.name)}/{page}" target="_blank" rel="noopener">'
        f"{page.removesuffix('.html')} of {escape(flight.name)}</a>"
        for page in flight.pages
    )
    mark = {True: "success, ", False: "no success, ", None: ""}[flight.success]
    cells = (
        links or escape(flight.name),
        *map(escape, (flight.mission, mark + flight.outcome, flight.recording)),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def path_map(path: Sequence[tuple[float, ...]], yaw: float) -> str:
    """The way flown, north up; yaw in rad from east, counter-clockwise."""
    if not path:
        return '<p class="quiet">No position received yet.</p>'
    east, north = zip(*path, strict=True)
    half_m = max(_LEAST_MAP_M, *(max(axis) - min(axis) for axis in (east, north))) * 0.55
    middle = ((min(east) + max(east)) / 2, (min(north) + max(north)) / 2)
    scale = _MAP_PX / (2 * half_m)

    def pixels(x: float, y: float) -> tuple[float, float]:
        return (x - middle[0] + half_m) * scale, (middle[1] + half_m - y) * scale

    step_m = _round_step(2 * half_m / _GRID_LINES)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (pixels(*point) for point in path))
    here, start = pixels(*path[-1]), pixels(*path[0])
    return (
        f'<svg viewBox="0 0 {_MAP_PX} {_MAP_PX}" role="img" aria-label="Path, north up: {len(path)} points, now '
        f'{path[-1][0]:.1f} m east and {path[-1][1]:.1f} m north">'
        f"{_grid(middle, half_m, step_m, scale)}"
        f'<polyline class="path" points="{line}"/>'
        f'<circle class="start" cx="{start[0]:.1f}" cy="{start[1]:.1f}" r="4"/>'
        f'<path class="drone" d="M10 0 L-7 6 L-4 0 L-7 -6 Z" '
        f'transform="translate({here[0]:.1f} {here[1]:.1f}) rotate({-math.degrees(yaw):.0f})"/>'
        f'<text x="6" y="{_MAP_PX - 7}">grid {step_m:g} m, north up</text></svg>'
    )


def _grid(middle: tuple[float, float], half_m: float, step_m: float, scale: float) -> str:
    lines = []
    for axis in (0, 1):
        first = math.ceil((middle[axis] - half_m) / step_m)
        last = math.floor((middle[axis] + half_m) / step_m)
        for number in range(first, last + 1):
            at = (number * step_m - middle[axis] + half_m) * scale
            at = at if axis == 0 else _MAP_PX - at
            ends = f"M{at:.1f} 0V{_MAP_PX}" if axis == 0 else f"M0 {at:.1f}H{_MAP_PX}"
            lines.append(ends)
    return f'<path class="grid" d="{"".join(lines)}"/>'


def _round_step(metres: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... m."""
    power = 10.0 ** math.floor(math.log10(metres))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= metres)


def chart_data(series: Sequence[Series], now_s: float) -> list[dict[str, Any]]:
    """For ECharts: seconds before now, and values."""
    return [
        {
            "name": curve.name,
            "data": [[round(at_s - now_s, 1), round(value, 3)] for at_s, value in curve.points],
        }
        for curve in series
    ]
