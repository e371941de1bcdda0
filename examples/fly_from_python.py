"""Fly from Python: one mission by the Navigator, against a graph that runs already.

In one terminal:   source scripts/env.sh && python -m nav_bringup.runner full_stack scene:=field seed:=2
In another:        source scripts/env.sh && python examples/fly_from_python.py "fly to the red beacon"
"""

import sys
import time

from nav_agent.navigator import Navigator
from nav_common.data import Outcome


def main() -> int:
    mission = " ".join(sys.argv[1:]) or "fly to the red beacon"
    with Navigator("fly_from_python") as navigator:
        navigator.fly(mission, max_decisions=40, time_limit_s=120.0, timeout_s=60.0)
        shown = ""
        while not navigator.is_done():
            feedback = navigator.feedback()
            if feedback and feedback.last_tool_call != shown:
                shown = feedback.last_tool_call
                print(f"decision {feedback.decisions}: {shown}", flush=True)
            time.sleep(0.1)
        result = navigator.result()
    print(f"{result.outcome.name}: {result.reason}")
    return 0 if result.outcome is Outcome.FINISHED else 1


if __name__ == "__main__":
    sys.exit(main())
