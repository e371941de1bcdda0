"""The safety numbers, once: gate, agent, link, judge, lock-step and training agree on them by importing them from here.

They belong together, so they are constants and no parameters: whoever changes one changes the safety case
(docs/design.md) and runs its tests.
"""

from __future__ import annotations

# --- commands
COMMAND_PERIOD_S = 0.05
"""The agent streams commands at 20 Hz, hover included."""
COMMAND_TIMEOUT_S = 0.3
"""No acceptable command for so long while ACTIVE: the gate commands zero velocity. Six periods: a late one is no
fault."""
COMMAND_MAX_AGE_S = 0.5
"""Oldest command that the gate accepts, by its echoed odometry stamp, on the vehicle's clock. Nav2 and twist_mux time
out after the same 0.5 s."""
COMMAND_DURATION_S = 0.35
"""Duration of each velocity sent to AirSim, whose controller holds position when it has passed: the vehicle stops by
itself when the bridge dies."""
STAMP_TOLERANCE_S = 1e-6
"""Seconds as float64 hold a Unix time to 0.2 microseconds: stamps closer together than this are equal."""

# --- what is heard of whom, and how soon
STATE_PERIOD_S = 0.1
"""The gate's state is published at 10 Hz, and at each change."""
ODOMETRY_TIMEOUT_S = 1.0
"""Odometry older than this is an outage for the agent."""
LIVELINESS_LEASE_S = 0.3
"""DDS reports the death of the perception process within this time."""
OUTAGE_TIMEOUT_S = 30.0
"""The longest outage that a goal outlives; it waits in hover."""
LINK_LOSS_LAND_S = 60.0
"""The link lost for so long in the air: the gate lands."""

ZERO_VELOCITY_WITHIN_S = 0.5
"""Whatever fails, the vehicle is commanded zero velocity within this time: COMMAND_TIMEOUT_S and a few ticks of the
gate. Benchmarks and tests judge by it."""

# --- standstill and motion
STANDSTILL_M_S = 0.15
STANDSTILL_RAD_S = 0.05
"""Measured speeds below which the vehicle stands still: SimpleFlight wobbles by a few cm/s when it holds a position."""
LOWEST_ALTITUDE_M = 0.7
"""No tool flies lower above the take-off point: a vehicle that touches the ground has landed."""
OBSTACLE_STANDOFF_M = 1.5
"""Free distance that fly_towards leaves before what it points at: a little under SUCCESS_RADIUS_M."""

# --- success
SUCCESS_RADIUS_M = 2.0
"""A goal is reached within this horizontal distance of its centre (the field's usual radius for small scenes; AerialVLN
and OpenFly count 20 m)."""
