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
from nav_eval.flight_view import GROUND
from nav_eval.ground_truth import Point
from nav_eval.outlines import outline, reached_ring, standing

MAP_SIZE = 720  # pixels, square
MARGIN_M = 4.0
# BGR; ground and track have the colours of the viewer's map
GROUND_BGR, INK, TRACK = tuple(bytes.fromhex(GROUND[1:]))[::-1], (60, 60, 60), (51, 102, 204)


def draw_map(world: World, track: Sequence[Point]) -> np.ndarray:
    """The world from above, north up, with `track` (NED metres): uint8 BGR, MAP_SIZE squared."""
    outlines = [
        (outline(item, part), item.rgb) for item in standing(world) for part in item.parts if part.solid
    ]
    rings = [reached_ring(world.object(goal.name)) for goal in world.goals]
    path = np.array([(y, x) for x, y, _ in track]).reshape(-1, 2)
    shown = np.concatenate([path, *rings, *(polygon for polygon, _ in outlines)])
    reach = MARGIN_M + float(np.abs(shown).max(initial=10.0))
    scale = MAP_SIZE / (2 * reach)

    def pixels(points: np.ndarray) -> np.ndarray:
        return np.rint(np.column_stack([reach + points[:, 0], reach - points[:, 1]]) * scale).astype(np.int32)

    picture = np.full((MAP_SIZE, MAP_SIZE, 3), GROUND_BGR, np.uint8)
    for polygon, rgb in outlines:
        cv2.fillPoly(picture, [pixels(polygon)], tuple(int(255 * c) for c in reversed(rgb)), cv2.LINE_AA)
        cv2.polylines(picture, [pixels(polygon)], True, INK, 1, cv2.LINE_AA)
    for ring in rings:
        cv2.polylines(picture, [pixels(ring)], True, INK, 1, cv2.LINE_AA)
    if track:
        line = pixels(path)
        cv2.polylines(picture, [line], False, TRACK, 2, cv2.LINE_AA)
        cv2.circle(picture, tuple(map(int, line[0])), 5, INK, 2, cv2.LINE_AA)
        cv2.circle(picture, tuple(map(int, line[-1])), 5, TRACK, -1, cv2.LINE_AA)
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
