"""What the flight viewer shows of one flight: pictures, decisions with their words, the path, the cache; as JSON.

The viewer itself is `templates/viewer.js`; `html_pages` puts both into self-contained pages.
"""

from __future__ import annotations

import base64
import bisect
import itertools
import json
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from airsim_sim.world import World
from nav_common import topics
from nav_common.data import ActiveFrames, CompressedImage, Decision
from nav_eval.bags import Bag, Logged
from nav_eval.flight_log import FlightLog, load
from nav_eval.outlines import outline, reached_ring, standing

View = dict[str, Any]

PICTURE_WIDTH = 320
PICTURE_QUALITY = 70
PICTURE_PERIOD_S = 0.5
"""Between two pictures that no decision rests on: what the memory gets, too."""
TRACK_PERIOD_S = 0.1
GROUND = "#c3d3b8"
"""Of a map, in light and in dark (templates/viewer.js has it too): what stands on it may be white or nearly black."""
RIM, GOAL_RING = "#555", "#111"


def view_of_recording(bag: Path, world: World | None = None, vehicle_namespace: str | None = None) -> View:
    """A recording's view. `world`: what was flown in, for the map.

    Raises:
        BagError: the recording cannot be read.
    """
    log = load(bag, vehicle_namespace)
    with Bag(bag) as recording:
        name = topics.FRONT_IMAGE.resolve(log.vehicle_namespace)
        return view_of(log, (row for _, row in recording.rows([name])), world)


def view_of(
    log: FlightLog,
    pictures: Iterable[Logged[CompressedImage]],
    world: World | None = None,
    *,
    width: int = PICTURE_WIDTH,
    period_s: float = PICTURE_PERIOD_S,
    track_period_s: float = TRACK_PERIOD_S,
) -> View:
    """A flight's view.

    Args:
        pictures: in the order of the flight; those are kept that decisions rest on or that a memory bank held
            active, and one each `period_s`.
        width: of the pictures kept, pixels.
        track_period_s: between two rows of the track.

    Returns:
        Times in s from the start of the log; `track` rows are (time, east, north, up) in m from the start of the
        odometry; `cache` rows are (time, sink, window and the rest, evictions so far), in tokens and chunks. A
        decision's `number` counts those with a call from 1, 0 for one without. `start_s`: stamp of time 0.
        `active_frames`: what a memory bank held active, from each time on; `stamp_s` is that of a picture.
    """
    start_s = log.start_s if log.messages else 0.0
    decisions = [row.data for row in log.decisions]
    numbers = itertools.accumulate(int(bool(decision.tool)) for decision in decisions)
    return {
        "start_s": start_s,
        "duration_s": round(max(log.end_s - start_s, 0.0), 2) if log.messages else 0.0,
        "decisions": [
            _decision_view(row, following, number, start_s)
            for row, following, number in itertools.zip_longest(log.decisions, decisions[1:], numbers)
        ],
        "pictures": list(_picture_views(log, pictures, start_s, width, period_s)),
        "active_frames": [_active_view(row, start_s) for row in log.active_frames],
        "track": _track(log, start_s, track_period_s),
        "cache": {
            "budget": log.statuses[-1].data.budget_tokens if log.statuses else 0,
            "rows": [
                [
                    round(row.time_s - start_s, 2),
                    row.data.sink_tokens,
                    max(row.data.cached_tokens - row.data.sink_tokens, 0),
                    row.data.evictions,
                ]
                for row in log.statuses
            ],
        },
        "objects": _objects(world) if world else [],
        "shapes": map_shapes(world) if world else [],
    }


def call_text(decision: Decision) -> str:
    """The tool call as the agent writes it; "" where there was none."""
    if not decision.tool:
        return ""
    try:
        arguments = json.loads(decision.arguments or "{}")
    except ValueError:
        return f"{decision.tool}({decision.arguments})"
    return f"{decision.tool}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _decision_view(row: Logged[Decision], following: Decision | None, number: int, start_s: float) -> View:
    decision = row.data
    return {
        "t": round(row.time_s - start_s, 2),
        "number": number if decision.tool else 0,
        "step": decision.step,
        "call": call_text(decision) or decision.status.name.lower(),
        "result": following.previous_result if following else "",
        "instruction": decision.instruction,
        "message": decision.message,
        "total_ms": round(decision.total_ms, 1),
        "parts_ms": {
            "barrier": round(decision.barrier_ms, 1),
            "first token": round(decision.ttft_ms, 1),
            "generation": round(decision.generate_ms, 1),
            "framework": round(decision.framework_ms, 1),
        },
        "tokens": [decision.tokens_in, decision.tokens_sampled, decision.tokens_forced],
        "cached_tokens": decision.cached_tokens,
    }


def _active_view(row: Logged[ActiveFrames], start_s: float) -> View:
    active = row.data
    frames = zip(active.frames, active.frame_stamps_s, active.entities, strict=True)
    return {
        "t": round(row.time_s - start_s, 2),
        "archived": active.archived,
        "retrievals": active.retrievals,
        "frames": [
            {"name": name, "stamp_s": stamp_s, "entities": entities, "recalled": name in active.recalled}
            for name, stamp_s, entities in frames
        ],
    }


def _picture_views(
    log: FlightLog, pictures: Iterable[Logged[CompressedImage]], start_s: float, width: int, period_s: float
) -> Iterable[View]:
    """For each decision the newest picture by its frame's stamp, each that was active, and one each `period_s`."""
    stamps = {row.data.frame_stamp_s for row in log.decisions}
    stamps |= {stamp_s for row in log.active_frames for stamp_s in row.data.frame_stamps_s}
    wanted = deque(sorted(stamps))
    due_s = -np.inf
    # Whether a picture is the newest by a stamp is known from the one after it.
    for row, after in itertools.pairwise(itertools.chain(pictures, [None])):
        assert row is not None
        end_s = after.data.stamp_s if after else np.inf
        rests = bool(wanted) and wanted[0] < end_s
        while wanted and wanted[0] < end_s:
            wanted.popleft()
        if not rests and row.time_s < due_s:
            continue
        jpeg = shrunk(row.data.data, width)
        if jpeg:
            due_s = row.time_s + period_s
            yield {"t": round(row.time_s - start_s, 2), "stamp_s": row.data.stamp_s, "jpeg": jpeg}


def shrunk(data: bytes, width: int = PICTURE_WIDTH) -> str:
    """As JPEG of at most that width, in base64; "" of what is no picture."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        return ""
    scale = min(1.0, width / pixels.shape[1])
    if scale < 1.0:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    jpeg = bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])[1])
    return base64.b64encode(jpeg).decode()


def _track(log: FlightLog, start_s: float, period_s: float) -> list[list[float]]:
    track: list[list[float]] = []
    due_s = -np.inf
    for row in log.odometry:
        if row.time_s >= due_s:
            due_s = row.time_s + period_s
            track.append([round(row.time_s - start_s, 2), *(round(v, 2) for v in row.data.position)])
    return track


def _objects(world: World) -> list[View]:
    """Standing objects in the frame of the track: east, north from where the vehicle starts (the world's origin)."""
    goals = {goal.name for goal in world.goals}
    return [
        {
            "name": item.name,
            "x": round(-item.position[1], 2),
            "y": round(item.position[0], 2),
            "goal": item.name in goals,
        }
        for item in standing(world)
    ]


def map_shapes(world: World) -> list[View]:
    """The outlines of all that stands in the way, as shapes of a plot in the frame of the track; around a goal the
    ring within which it is reached."""
    goals = {goal.name for goal in world.goals}
    shapes = []
    for item in standing(world):
        red, green, blue = (round(255 * c) for c in item.rgb)
        drawn = {"fillcolor": f"rgb({red},{green},{blue})", "line": {"color": RIM, "width": 1}}
        shapes += [{**_closed(outline(item, part)), **drawn} for part in item.parts if part.solid]
        if item.name in goals:
            shapes.append({**_closed(reached_ring(item)), "line": {"color": GOAL_RING, "width": 1.5}})
    return shapes


def _closed(polygon: np.ndarray) -> View:
    points = "L".join(f"{x:.2f},{y:.2f}" for x, y in polygon)
    return {"type": "path", "path": f"M{points}Z"}


def at_time(rows: Sequence[Any], times: Sequence[float], time_s: float) -> Any | None:
    """The last of `rows` whose time is not after `time_s`; None before the first."""
    index = bisect.bisect_right(times, time_s) - 1
    return rows[index] if index >= 0 else None
