"""Pictures of a flight for people: the frames that decisions rested on, and the track on a map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from airsim_sim.world import World
from nav_common import topics
from nav_common.data import Decision
from nav_eval.bags import Bag
from nav_eval.flight_log import FlightLog
from nav_eval.flight_view import GROUND, reached_m
from nav_eval.ground_truth import Point

MAP_SIZE = 720  # pixels, square
MARGIN_M = 4.0
GROUND_BGR, INK, TRACK = tuple(bytes.fromhex(GROUND[1:]))[::-1], (60, 60, 60), (200, 60, 30)  # BGR


def draw_map(world: World, track: Sequence[Point]) -> np.ndarray:
    """The world from above, north up, with `track` (NED metres): uint8 BGR, MAP_SIZE squared."""
    positions = [item.position[:2] for item in world.objects if item.height > 0] + [
        (x, -y) for x, y, _ in track
    ]
    reach = MARGIN_M + max((max(abs(north), abs(west)) for north, west in positions), default=10.0)
    scale = MAP_SIZE / (2 * reach)

    def pixel(north: float, west: float) -> tuple[int, int]:
        return round((reach - west) * scale), round((reach - north) * scale)

    picture = np.full((MAP_SIZE, MAP_SIZE, 3), GROUND_BGR, np.uint8)
    for item in world.objects:
        if item.height <= 0:
            continue
        colour = tuple(int(255 * c) for c in reversed(item.rgb))
        centre, radius = pixel(*item.position[:2]), max(2, round(item.radius * scale))
        cv2.circle(picture, centre, radius, colour, -1, cv2.LINE_AA)
        cv2.circle(picture, centre, radius, INK, 1, cv2.LINE_AA)
    for goal in world.goals:
        ring = round(reached_m(world.object(goal.name)) * scale)
        cv2.circle(picture, pixel(*goal.position[:2]), ring, INK, 1, cv2.LINE_AA)
    if track:
        path = np.array([pixel(x, -y) for x, y, _ in track], np.int32)
        cv2.polylines(picture, [path], False, TRACK, 2, cv2.LINE_AA)
        cv2.circle(picture, tuple(map(int, path[0])), 5, INK, 2, cv2.LINE_AA)
        cv2.circle(picture, tuple(map(int, path[-1])), 5, TRACK, -1, cv2.LINE_AA)
    cv2.line(picture, (20, MAP_SIZE - 20), (20 + round(10 * scale), MAP_SIZE - 20), INK, 2)
    cv2.putText(picture, "10 m", (20, MAP_SIZE - 28), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
    return picture


def write_frames(bag: Path, flight: FlightLog, folder: Path, most: int = 8) -> list[Path]:
    """Write the frames that decisions rested on, at most `most` of them spread over the flight, as they were recorded.

    Named by decision and tool: `03_fly_towards.jpg`.
    """
    decisions = [row.data for row in flight.decisions if row.data.tool and row.data.frame_stamp_s > 0]
    if len(decisions) > most:
        decisions = [decisions[i] for i in np.linspace(0, len(decisions) - 1, most).round().astype(int)]
    wanted: dict[float, list[Decision]] = {}
    for decision in decisions:
        wanted.setdefault(decision.frame_stamp_s, []).append(decision)
    written = []
    with Bag(bag) as recording:
        for _, row in recording.rows([topics.FRONT_IMAGE.resolve(flight.vehicle_namespace)]):
            for decision in wanted.pop(row.data.stamp_s, []):
                path = folder / f"{decision.step:02d}_{decision.tool}.jpg"
                path.write_bytes(row.data.data)
                written.append(path)
    return sorted(written)
