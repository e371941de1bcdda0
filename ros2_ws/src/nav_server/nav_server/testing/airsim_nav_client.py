"""The four-action client of the HTTP API: a frame each 0.5 s to the server, a decision each 5 s to the drone.

It knows four actions and moves by fixed amounts, which are parameters. AirSim, real or embedded, over RPC or in the
same process; time is an argument, so that it flies in lock-step too.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import httpx2
import numpy as np

from nav_common.clock import Clock

APPEND_TIMEOUT_S = 30.0
DECIDE_TIMEOUT_S = 60.0
_SCENE, _RATE = 0, True  # AirSim's ImageType.Scene; a yaw mode by rate
_FREE_YAW = 0  # DrivetrainType.MaxDegreeOfFreedom


@dataclass(frozen=True)
class ClientSettings:
    """`turn_deg_s` for `turn_s`, `speed_m_s` for `forward_s`: what one action does."""

    frame_interval_s: float = 0.5
    decision_interval_s: float = 5.0
    duration_s: float = 300.0
    speed_m_s: float = 2.0
    forward_s: float = 2.0
    turn_deg_s: float = 30.0
    turn_s: float = 1.0
    width: int = 640
    height: int = 480
    jpeg_quality: int = 85
    camera: str = "front_center"


class Rpc(Protocol):
    """AirSim's methods by name. `begin` does not wait for what a motion method comes to."""

    def call(self, method: str, *args: Any) -> Any: ...
    def begin(self, method: str, *args: Any) -> None: ...


@dataclass
class Flight:
    """What was answered: the decisions, and how many requests failed."""

    decisions: list[dict[str, Any]] = field(default_factory=list)
    errors: int = 0


class NavClient:
    """Flies by what the server decides. A request that fails leaves the drone hovering."""

    def __init__(
        self,
        http: httpx2.Client,
        rpc: Rpc,
        clock: Clock,
        question: str,
        settings: ClientSettings | None = None,
    ) -> None:
        self.flight = Flight()
        self._http = http
        self._rpc = rpc
        self._clock = clock
        self._question = question
        self._settings = settings or ClientSettings()

    def run(self, stop: Callable[[], bool] = lambda: False) -> Flight:
        """Fly for the settings' duration, or until `stop` says so."""
        settings, clock = self._settings, self._clock
        began_s = clock.now()
        decided_s = began_s
        while clock.now() - began_s < settings.duration_s and not stop():
            frame_s = clock.now()
            self._append(self._picture())
            if clock.now() - decided_s >= settings.decision_interval_s:
                self._rpc.begin("hover", "")
                decided_s = clock.now()
                self._act(self._decide())
            clock.sleep(max(0.0, settings.frame_interval_s - (clock.now() - frame_s)))
        self._rpc.begin("hover", "")
        return self.flight

    def _picture(self) -> bytes:
        request = {
            "camera_name": self._settings.camera,
            "image_type": _SCENE,
            "pixels_as_float": False,
            "compress": False,
        }
        (answer,) = self._rpc.call("simGetImages", [request], "", False)
        pixels = np.frombuffer(answer["image_data_uint8"], np.uint8)
        pixels = pixels.reshape(answer["height"], answer["width"], -1)[..., :3]
        resized = cv2.resize(pixels, (self._settings.width, self._settings.height))
        return cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, self._settings.jpeg_quality])[
            1
        ].tobytes()

    def _append(self, jpeg: bytes) -> None:
        body = {"frame_b64": base64.b64encode(jpeg).decode(), "fps": 1 / self._settings.frame_interval_s}
        self._post("/append_frame", {**body, "chunk_frames": 1}, APPEND_TIMEOUT_S)

    def _decide(self) -> str:
        body = {"question": self._question, "max_new_tokens": 128, "temperature": 0.3}
        answer = self._post("/decide", body, DECIDE_TIMEOUT_S)
        if answer is None:
            return "hover"
        self.flight.decisions.append(answer)
        return str(answer["action"])

    def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        """The answer, None where there is none."""
        try:
            answer = self._http.post(path, json=body, timeout=timeout_s)
        except httpx2.TransportError:
            answer = None
        if answer is None or answer.status_code != 200:
            self.flight.errors += 1
            return None
        return answer.json()

    def _act(self, action: str) -> None:
        settings = self._settings
        if action == "move_forward":
            yaw = {"is_rate": _RATE, "yaw_or_rate": 0.0}
            self._rpc.begin(
                "moveByVelocityBodyFrame",
                settings.speed_m_s,
                0.0,
                0.0,
                settings.forward_s,
                _FREE_YAW,
                yaw,
                "",
            )
        elif action in ("turn_left", "turn_right"):
            rate = settings.turn_deg_s if action == "turn_right" else -settings.turn_deg_s
            self._rpc.begin("rotateByYawRate", rate, settings.turn_s, "")
