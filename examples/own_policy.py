"""A pilot of your own: any function that chooses a tool call can fly in lock-step, and is judged as the shipped one.

    source scripts/env.sh && python examples/own_policy.py

This one knows where the goal is (which no real pilot does), turns towards it, flies, and says when it is there. Give
`lockstep.fly` a `Pilot` instead (`lockstep.load_model(FOLDER)`) to fly a model.
"""

import math

from airsim_sim.world import load_world
from nav_agent.toolset import Value
from nav_eval import lockstep
from nav_eval.judge import judge

SCENE, SEED = "field", 1


class StraightThere:
    """Chooses the next call from the true pose: position north-west-up in metres, heading in radians to the left."""

    def __init__(self, goal: tuple[float, float]) -> None:
        self.goal = goal

    def __call__(self, position: tuple[float, float, float], heading: float) -> tuple[str, dict[str, Value]]:
        ahead, left = self.goal[0] - position[0], self.goal[1] - position[1]
        turn = math.degrees(math.remainder(math.atan2(left, ahead) - heading, 2 * math.pi))
        if math.hypot(ahead, left) < 2.0:
            return "finish", {"reason": "reached"}
        if abs(turn) > 15:
            return ("turn_left" if turn > 0 else "turn_right"), {"angle_deg": 30 if abs(turn) > 25 else 10}
        return "move_forward", {"distance_m": 4 if math.hypot(ahead, left) > 6 else 1}


def main() -> None:
    world = load_world(SCENE, SEED)
    north, west, _ = world.goal.position
    flown = lockstep.fly(world, ["fly to the red beacon"], [StraightThere((north, west))])
    for decision in flown.decisions:
        print(f"{decision.tool}({', '.join(f'{k}={v}' for k, v in decision.arguments.items())})")
    report = judge(flown.log)
    print(f"{flown.result.outcome.name}: {flown.result.reason}, {len(flown.contacts)} contacts, ", end="")
    print(f"{len(report.breaches)} breaches of the safety rules")


if __name__ == "__main__":
    main()
