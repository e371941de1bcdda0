"""Ground truth of a flight, read from the simulator: track and goal position. For judging, never for the pilot."""

from __future__ import annotations

import math
import threading

from airsim_bridge.client import AirSimClient, RpcError

# At 2 m/s a sample each 0.4 m of track; a sample is one call of about a millisecond.
SAMPLE_PERIOD_S = 0.2
# Shorter steps are the jitter of a hovering drone and do not count as path.
MIN_STEP_M = 0.05

Point = tuple[float, float, float]


class Truth:
    """A flight's track and goal."""

    def __init__(self) -> None:
        self.track: list[Point] = []
        """Positions sampled, NED metres."""
        self.goal: Point | None = None

    def add(self, position: Point) -> None:
        if not self.track or math.dist(position, self.track[-1]) >= MIN_STEP_M:
            self.track.append(position)

    @property
    def path_m(self) -> float:
        """Length of the path flown, m."""
        return sum(math.dist(a, b) for a, b in zip(self.track, self.track[1:], strict=False))

    @property
    def distance_m(self) -> float | None:
        """From the last position to the goal on the map, m; None when either is unknown."""
        if not self.goal or not self.track:
            return None
        return math.dist(self.track[-1][:2], self.goal[:2])


class Simulator:
    """What the simulator says of the truth, asked for by RPC.

    Args:
        goal: name of the object that the mission asks for; "" when it is unknown (a real AirSim scene).
    """

    def __init__(self, host: str, port: int, goal: str) -> None:
        self._goal_name = goal
        self._client = AirSimClient(host, port)

    def goal(self) -> Point | None:
        """Where the goal stands, NED; None: unknown, or the simulator does not answer."""
        if not self._goal_name:
            return None
        goal = self._point("simGetObjectPose", self._goal_name)
        return goal if goal and all(map(math.isfinite, goal)) else None

    def position(self) -> Point | None:
        """Of the drone, NED; None: the simulator starts or has ended."""
        return self._point("simGetVehiclePose", "")

    def _point(self, call: str, name: str) -> Point | None:
        try:
            position = self._client.call(call, name)["position"]
        except RpcError:
            return None
        return position["x_val"], position["y_val"], position["z_val"]

    def close(self) -> None:
        self._client.close()


class GroundTruth(Truth):
    """Follows the vehicle in the simulator until `stop`. Arguments: see Simulator."""

    def __init__(self, host: str, port: int, goal: str) -> None:
        super().__init__()
        self._simulator = Simulator(host, port, goal)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ground_truth", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end."""
        self._stopping.set()
        self._thread.join()
        self._sample()
        self._simulator.close()

    def _follow(self) -> None:
        while not self._stopping.wait(SAMPLE_PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        self.goal = self.goal or self._simulator.goal()
        position = self._simulator.position()
        if position is not None:
            self.add(position)
