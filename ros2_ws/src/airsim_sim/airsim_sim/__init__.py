"""A headless simulator that speaks AirSim's RPC protocol: worlds, drone physics, cameras. Knows nothing of ROS.

In process, deterministic: `Simulation(load_world("field", seed=1))` (`simulation.py`).
Pictures alone, fast: `open_renderer(load_world("field", seed=1))` (`render.py`).
As a server: `python -m airsim_sim --scene field --seed 1`.
"""

import os
import sys

if "mujoco" not in sys.modules:
    # With MUJOCO_GL=egl and no EGL the import of mujoco itself fails; `render.py` looks for EGL when it is needed.
    os.environ["MUJOCO_GL"] = "disable"
