"""What really happened, asked of the simulator: the way flown, the goal's place. For judging, never for the pilot."""

from __future__ import annotations

import math
import threading

from airsim_bridge.client import AirSimClient, RpcError

# Often enough for a way at 2 m/s in steps of half a metre; each is one call that takes about a millisecond.
SAMPLE_PERIOD_S = 0.2
# Shorter steps are the trembling of a hovering drone, which is no way flown.
LEAST_STEP_M = 0.05
# AirSim's usual success of a flight to something: within 2 m of it on the map, whatever the height.
SUCCESS_RADIUS_M = 2.0

Point = tuple[float, float, float]


class Truth:
    """Follows the vehicle in the simulator until `stop`.

    Args:
        goal: name of the object that the mission asks for; "" when nobody knows (a real AirSim scene).
    """

    def __init__(self, host: str, port: int, goal: str) -> None:
        self.track: list[Point] = []
        """Places passed, NED metres."""
        self.goal: Point | None = None
        self._goal_name = goal
        self._client = AirSimClient(host, port)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="truth", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last look and end."""
        self._stopping.set()
        self._thread.join()
        self._look()
        self._client.close()

    @property
    def path_m(self) -> float:
        """Length of the way flown, m."""
        return sum(math.dist(a, b) for a, b in zip(self.track, self.track[1:], strict=False))

    @property
    def distance_m(self) -> float | None:
        """From the last place to the goal on the map, m; None when either is unknown."""
        if not self.goal or not self.track:
            return None
        return math.dist(self.track[-1][:2], self.goal[:2])

    def _follow(self) -> None:
        while not self._stopping.wait(SAMPLE_PERIOD_S):
            self._look()

    def _look(self) -> None:
        try:
            if self.goal is None and self._goal_name:
                goal = _point(self._client.call("simGetObjectPose", self._goal_name))
                self.goal = goal if all(map(math.isfinite, goal)) else None
            place = _point(self._client.call("simGetVehiclePose", ""))
        except RpcError:
            return  # the simulator starts, or has gone: the bridge tells the pilot, and here a sample is missing
        if not self.track or math.dist(place, self.track[-1]) >= LEAST_STEP_M:
            self.track.append(place)


def _point(pose: dict[str, dict[str, float]]) -> Point:
    position = pose["position"]
    return position["x_val"], position["y_val"], position["z_val"]
