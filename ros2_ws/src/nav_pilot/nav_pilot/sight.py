"""What a picture truly shows, for training: which object each column of it shows, and how far the way is free.

From the renderer's segmentation and depth at the model's resolution, so that what is hidden or too small counts as
unseen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from airsim_sim.instructions import COLOURS, NOUNS, group
from airsim_sim.world import World

from .expert import NwuPose
from .model import HEIGHT, WIDTH

BINS = 16  # columns of the picture, 7 pixels each: 5.6 degrees
KINDS = ("", *NOUNS, "obstacle")  # "" for ground and sky
COLOUR_WORDS = ("", *COLOURS)  # "" for any other colour
SEEN_PIXELS = 4  # fewer are lost in JPEG
FOCAL_PIXELS = WIDTH / 2  # a field of view of 90 degrees
FARTHEST_M = 60.0
LEVEL_M = 0.6  # what is less far above or below the camera is in the way

KIND, COLOUR, DISTANCE, FREE = range(4)  # rows of SightLabels.bins


def distance_code(distance_m: np.ndarray | float) -> np.ndarray:
    """Distances as uint8, evenly in their logarithm: 0 for 0.5 m or less, 255 for FARTHEST_M or more."""
    share = np.log(np.clip(distance_m, 0.5, FARTHEST_M) / 0.5) / math.log(FARTHEST_M / 0.5)
    return np.asarray(np.round(255 * share), np.uint8)


@dataclass
class SightLabels:
    """One picture's truth. bins (4, BINS) uint8: kind (index in KINDS), colour (in COLOUR_WORDS), distance of what is
    seen there, and free distance (both as `distance_code`). pixels: of each object that is seen. ahead_m: how far the
    way straight ahead is free."""

    bins: np.ndarray
    pixels: dict[str, int]
    ahead_m: float

    def sees(self, name: str) -> bool:
        return self.pixels.get(name, 0) >= SEEN_PIXELS


def showing(sights: np.ndarray, looks: tuple[int, int]) -> np.ndarray:
    """Which columns of pictures (n, rows, BINS) show an object of that kind and colour: (n, BINS) bool."""
    found: np.ndarray = (sights[:, KIND] == looks[0]) & (sights[:, COLOUR] == looks[1])
    return found


class Sights:
    """Labels of pictures of one world."""

    def __init__(self, world: World, renderer: Any):
        self._renderer = renderer
        self._names = [renderer.model.body(i).name for i in range(renderer.model.nbody)]
        by_name = {item.name: item for item in world.objects}
        kinds, colours, scenery = [], [], []
        for name in self._names:
            item = by_name.get(name)
            noun = group(item) if item else ""
            solid = bool(item and item.radius > 0 and item.kind not in ("hill", "strip"))
            kinds.append(KINDS.index(noun) if noun else KINDS.index("obstacle") if solid else 0)
            colours.append(COLOUR_WORDS.index(item.colour) if item and item.colour in COLOURS else 0)
            scenery.append(not solid)
        self._kinds, self._colours, self._scenery = np.array(kinds), np.array(colours), np.array(scenery)

    def looks_of(self, name: str) -> tuple[int, int]:
        """What an object is in the bins: its kind and its colour; (0, 0) for "" and what is not there."""
        if name not in self._names:
            return 0, 0
        index = self._names.index(name)
        return int(self._kinds[index]), int(self._colours[index])

    def labels(self, pose: NwuPose) -> SightLabels:
        """The truth at a pose."""
        at, yaw = (pose.x, pose.y, pose.z), math.degrees(pose.yaw)
        body = self._renderer.render(at, yaw, image_type="segmentation", size=(WIDTH, HEIGHT))
        depth = self._renderer.render(at, yaw, image_type="depth_planar", size=(WIDTH, HEIGHT))
        body = np.where(self._scenery[np.maximum(body, 0)] | (body < 0), -1, body)
        counts = np.bincount(body[body >= 0].ravel(), minlength=len(self._names))
        bins = np.zeros((4, BINS), np.uint8)
        columns = body.reshape(HEIGHT, BINS, -1).transpose(1, 0, 2).reshape(BINS, -1)
        depths = depth.reshape(HEIGHT, BINS, -1).transpose(1, 0, 2).reshape(BINS, -1)
        for index, (column, far) in enumerate(zip(columns, depths, strict=True)):
            best = self._shown(column)
            if best >= 0:
                bins[KIND, index], bins[COLOUR, index] = self._kinds[best], self._colours[best]
                bins[DISTANCE, index] = distance_code(np.median(far[column == best]))
        free = self._free(body, depth)
        bins[FREE] = distance_code(free.reshape(BINS, -1).min(axis=1))
        pixels = {self._names[i]: int(counts[i]) for i in np.flatnonzero(counts)}
        return SightLabels(bins, pixels, self._ahead(free))

    def _shown(self, column: np.ndarray) -> int:
        """The body that a column shows: the largest that has a colour to be named, else the largest; -1 for none."""
        found, counts = np.unique(column[column >= 0], return_counts=True)
        found, counts = found[counts >= 3], counts[counts >= 3]
        if not len(found):
            return -1
        return int(found[np.argmax(counts + 10_000 * (self._colours[found] > 0))])

    def _free(self, body: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """For each column of pixels (WIDTH,) the distance of the nearest thing at the drone's height, m."""
        row = np.abs(np.arange(HEIGHT) - (HEIGHT - 1) / 2)[:, None]
        level = (row <= FOCAL_PIXELS * LEVEL_M / np.maximum(depth, 0.05) + 0.5) & (body >= 0)
        nearest: np.ndarray = np.where(level, depth, FARTHEST_M).min(axis=0)
        return nearest

    def _ahead(self, free: np.ndarray) -> float:
        """How far a drone of some width can fly straight ahead, m."""
        aside = np.abs(np.arange(WIDTH) - (WIDTH - 1) / 2) / FOCAL_PIXELS * free
        return float(np.where(aside < 0.7, free, FARTHEST_M).min())
