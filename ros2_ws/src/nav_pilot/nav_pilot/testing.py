"""For tests: places in the worlds that pilots fly in."""

from __future__ import annotations

import math

from airsim_sim.world import World

from .expert import NwuPose, wrap


def before(world: World, distance: float, off_deg: float = 0.0) -> NwuPose:
    """A pose `distance` from the beacon on the start's side, with the beacon `off_deg` to the left of the heading."""
    x, y, _ = world.object("beacon").position
    angle = math.atan2(y, x)
    return NwuPose(
        x - distance * math.cos(angle),
        y - distance * math.sin(angle),
        2.0,
        wrap(angle - math.radians(off_deg)),
    )
