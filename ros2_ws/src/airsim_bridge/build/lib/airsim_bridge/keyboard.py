"""Flying by keyboard: what each key does."""

from __future__ import annotations

import threading
from collections.abc import Callable

from airsim_bridge.bridge import Bridge
from airsim_bridge.keys import ESCAPE
from nav_common.clock import Clock
from nav_common.data import HOVER, GateMode, ServiceReply, Twist

HELP = (
    "m manual on/off, w/s forward/back, a/d left/right, r/f up/down, q/e turn, space hover, "
    "t take off, l land, x emergency stop on/off, h help, Esc end"
)
# A key counts as held for this long after each press: terminals begin to repeat after half a second.
HELD_S = 0.6
SPEED_M_S = 2.0
VERTICAL_SPEED_M_S = 1.0
YAW_RATE_RAD_S = 0.52
MOTIONS = {
    "w": Twist.body(forward_m_s=SPEED_M_S),
    "s": Twist.body(forward_m_s=-SPEED_M_S),
    "a": Twist.body(left_m_s=SPEED_M_S),
    "d": Twist.body(left_m_s=-SPEED_M_S),
    "r": Twist.body(up_m_s=VERTICAL_SPEED_M_S),
    "f": Twist.body(up_m_s=-VERTICAL_SPEED_M_S),
    "q": Twist.body(yaw_rate_rad_s=YAW_RATE_RAD_S),
    "e": Twist.body(yaw_rate_rad_s=-YAW_RATE_RAD_S),
    " ": HOVER,
}


class KeyboardPilot:
    """Turns keys into what the bridge is asked for. Motion goes through the gate's manual input, armed by a key."""

    def __init__(self, bridge: Bridge, clock: Clock, say: Callable[[str], None]) -> None:
        self.ended = False
        self._bridge = bridge
        self._clock = clock
        self._say = say
        self._motion = HOVER
        self._pressed_at = -1e9
        self._flying = False

    def press(self, key: str) -> None:
        """One key."""
        gate = self._bridge.gate
        key = key.lower()
        if key in MOTIONS:
            self._motion = MOTIONS[key]
            self._pressed_at = self._clock.now()
            if not gate.manual:
                self._say("manual control is off: m switches it on")
        elif key == "m":
            gate.arm_manual(not gate.manual)
            self._say("manual control is " + ("on" if gate.manual else "off"))
        elif key == "x":
            gate.emergency_stop(gate.mode is not GateMode.EMERGENCY)
        elif key == "t":
            self._meanwhile(self._bridge.take_off)
        elif key == "l":
            self._meanwhile(self._bridge.land)
        elif key in (ESCAPE, "\x03"):
            self.ended = True
        elif key == "h":
            self._say(HELP)

    def tick(self) -> None:
        """Call at 10 to 20 Hz: hands the motion of the key that is held to the gate, and zero once it is let go.

        At rest it submits nothing, so that a joystick on cmd_vel can fly instead.
        """
        gate = self._bridge.gate
        now = self._clock.now()
        held = now - self._pressed_at <= HELD_S
        if not gate.manual or not (held or self._flying):
            return
        # The gate accepts only zero first when it was at rest.
        gate.submit_manual(now, self._motion if held and gate.mode is GateMode.ACTIVE else HOVER)
        self._flying = held

    def _meanwhile(self, action: Callable[[], ServiceReply]) -> None:
        """Taking off and landing last; the keys must go on working, the emergency stop above all."""
        threading.Thread(
            target=lambda: self._say(action().message), name="keyboard-action", daemon=True
        ).start()
