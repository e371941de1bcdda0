"""`--record DIR`: what a flight looked like, in pictures and numbers that a person can open.

Leaves `map.jpg` (the world from above), `start_scene.jpg`, `start_depth.jpg`, `start_segmentation.jpg`,
`front_NNNN.jpg` and `chase_NNNN.jpg` twice a second while the drone is off the ground, `flight.csv` (one row a step)
and `world.json` (every object, goals, collisions).
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from airsim_sim.segmentation import colours_by_body
from airsim_sim.server import Server
from airsim_sim.simulation import Log


class Recorder:
    """Draws in the server's render thread; `tick` is called twice a second by whoever waits."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._simulation, self._folder = server, server.simulation, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._count = 0
        server.render_pool.submit(self._draw_start).result()
        self._write_world()

    def tick(self) -> None:
        """Two pictures, if the drone is flying."""
        if not self._simulation.flight.landed:
            self._count += 1
            self._server.render_pool.submit(self._draw_flight, self._count)

    def close(self) -> None:
        """Writes the path and what was hit."""
        with (self._folder / "flight.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Log.COLUMNS)
            writer.writerows(
                [f"{value:.4f}" for value in row] for row in self._simulation.log.rows().tolist()
            )
        self._write_world()

    def _save(self, name: str, picture: np.ndarray) -> None:
        cv2.imwrite(str(self._folder / name), np.ascontiguousarray(picture[..., ::-1]))

    def _draw_start(self) -> None:
        simulation, world = self._simulation, self._simulation.world
        reach = [abs(c) for item in world.objects if item.height > 0 for c in item.position[:2]]
        height = max(15.0, *reach, 0.0) * 1.15
        self._save("map.jpg", simulation.renderer().render((0.0, 0.0, height), 0.0, "map", "scene"))
        for kind in ("scene", "depth_vis", "segmentation"):
            picture = simulation.render("front_center", kind, (640, 480))
            if kind == "depth_vis":
                grey = (255 * (1 - picture)).astype(np.uint8)
                picture = cv2.applyColorMap(grey, cv2.COLORMAP_TURBO)[..., ::-1]
            elif kind == "segmentation":
                picture = colours_by_body(simulation)[picture]
            self._save(f"start_{kind.removesuffix('_vis')}.jpg", picture)

    def _draw_flight(self, number: int) -> None:
        for camera in ("front_center", "chase"):
            name = camera.partition("_")[0]
            self._save(f"{name}_{number:04d}.jpg", self._simulation.render(camera, "scene", (480, 360)))

    def _write_world(self) -> None:
        world = self._simulation.world
        described: dict[str, Any] = {
            "name": world.name,
            "seed": world.seed,
            "frame": "north-west-up, metres",
            "objects": [
                {
                    "name": o.name,
                    "kind": o.kind,
                    "position": o.position,
                    "radius": o.radius,
                    "height": o.height,
                }
                for o in world.objects
            ],
            "goals": [{"name": g.name, "position": g.position} for g in world.goals],
            "collisions": [
                {"time_s": c.time_s, "object": c.object_name, "position": c.position, "speed": c.speed}
                for c in self._simulation.collisions
            ],
            "path_m": _path_length(self._simulation.log.rows()),
        }
        (self._folder / "world.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def _path_length(rows: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(rows[:, 1:4], axis=0), axis=1).sum()) if len(rows) > 1 else math.nan
