"""The edge flown by a server's HTTP API: pictures up, one tool call down, each command through the gate.

For whoever reaches the server by one HTTPS port only. While the server decides nothing is sent, so the gate holds; what
it decided is void when the gate has raised its epoch meanwhile.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from airsim_bridge.bridge import Bridge
from airsim_bridge.keyboard import SPEED_M_S, VERTICAL_SPEED_M_S, YAW_RATE_RAD_S
from airsim_bridge.outputs import Throttle
from nav_common import result_lines
from nav_common.clock import Clock, wait_until
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import (
    HOVER,
    CameraInfo,
    CompressedImage,
    DepthImage,
    DroneState,
    GateMode,
    Imu,
    Odometry,
    Twist,
    VelocityCommand,
)
from nav_common.frames import wrap_angle
from nav_common.result_lines import StopReason

APPEND_TIMEOUT_S = 30.0
DECIDE_TIMEOUT_S = 60.0
"""Both as the API's four-action client waits; the server gives a frame up after 25 s."""
RETRY_S = 1.0
FRAME_LIMIT_S = 5.0
FALLBACK_FPS = 2.0
_FEWEST_FPS, _MOST_FPS = 0.02, 60.0
# Speeds fall with what is left, and not below these: as fast as the vehicle follows (chosen).
_SLOWEST_M_S, _SLOWEST_RAD_S, _GAIN_1_S = 0.3, 0.1, 1.2
_NEAR_M, _NEAR_RAD = 0.15, math.radians(2.0)
_MOTION_SLACK_S = 5.0
_REST_LIMIT_S = 4.0


class ServerError(ConnectionError):
    """The server gave no usable answer; the text says why."""


class HttpServer:
    """The API's calls. From any thread.

    Raises:
        ValueError: an address that cannot be used, or one over which the token would travel in the clear.
    """

    def __init__(self, address: str, token: str = "") -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--server is {address!r}: an address such as https://gpu.example.org is wanted")
        if parts.scheme == "http" and not _is_here(parts.hostname):
            raise ValueError(
                f"--server is {address!r}: pictures and token would travel in the clear; use https://"
            )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(base_url=address, headers=headers)

    def append(self, jpeg: bytes, fps: float) -> None:
        """A frame, taken 1/fps after the one before it."""
        body = {"frame_b64": base64.b64encode(jpeg).decode(), "fps": fps}
        self._post("/append_frame", body, APPEND_TIMEOUT_S)

    def decide(self, question: str, last_result: str) -> tuple[str, Mapping[str, Any]]:
        """One tool and its arguments."""
        body = {"question": question, "last_result": last_result, "temperature": 0.0}
        answer = self._post("/decide", body, DECIDE_TIMEOUT_S)
        if not isinstance(answer.get("tool"), str) or not isinstance(answer.get("arguments"), dict):
            raise ServerError("the answer to /decide has no tool: is it a StreamPilot server?")
        return answer["tool"], answer["arguments"]

    def reset(self) -> None:
        """Begin with an empty memory."""
        self._post("/reset", {}, APPEND_TIMEOUT_S)

    def close(self) -> None:
        self._http.close()

    def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            answer = self._http.post(path, json=body, timeout=timeout_s)
            content = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise ServerError(f"{path}: {error or type(error).__name__}") from None
        if answer.status_code != 200 or not isinstance(content, dict):
            detail = content.get("detail", "") if isinstance(content, dict) else ""
            raise ServerError(f"{path}: {answer.status_code} {detail}")
        return content


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class HttpPilotSettings:
    """Intervals (chosen): of frames, as the pilot's memory takes them, and of decisions."""

    frame_interval_s: float = 0.5
    decision_interval_s: float = 5.0


class _BadArgument(ValueError):
    """A decision whose arguments cannot be flown; the text is what the server reads of it."""


class HttpPilot:
    """Outputs of a bridge that keep the newest picture and odometry, and the pilot that flies by them.

    `fly` waits and is for a thread of its own; `send_frame` is to be called each `frame_interval_s` by another.
    """

    def __init__(
        self,
        server: HttpServer,
        clock: Clock,
        mission: str,
        say: Callable[[str], None],
        settings: HttpPilotSettings | None = None,
        *,
        camera: str = "front",
    ) -> None:
        self.settings = settings or HttpPilotSettings()
        self.decisions = 0
        self._server = server
        self._clock = clock
        self._mission = mission
        self._say = say
        self._complaints = Throttle(clock)
        self._camera = camera
        self._bridge: Bridge | None = None
        self._picture: tuple[CompressedImage, CameraInfo] | None = None
        self._odometry: Odometry | None = None
        self._sending = threading.Lock()
        self._sent_s = 0.0
        self._sequence = 0
        self._ended: Callable[[], bool] = lambda: False

    def connect(self, bridge: Bridge) -> None:
        """The bridge whose gate is flown."""
        self._bridge = bridge

    # The bridge's Outputs.

    def on_odometry(self, odometry: Odometry) -> None:
        self._odometry = odometry

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        if camera == self._camera:
            self._picture = image, info

    def on_state(self, state: DroneState) -> None: ...
    def on_depth(self, camera: str, depth: DepthImage) -> None: ...
    def on_imu(self, imu: Imu) -> None: ...
    def log(self, text: str) -> None: ...

    # Frames.

    def send_frame(self) -> None:
        """The newest picture to the server, unless it has it."""
        with self._sending:
            if self._picture is None or self._picture[0].stamp_s <= self._sent_s:
                return
            image = self._picture[0]
            passed_s = image.stamp_s - self._sent_s
            fps = min(max(1 / passed_s, _FEWEST_FPS), _MOST_FPS) if self._sent_s else FALLBACK_FPS
            try:
                self._server.append(image.data, fps)
            except ServerError as error:
                self._complain(error)
                return
            self._sent_s = image.stamp_s

    def _complain(self, error: ServerError) -> None:
        if self._complaints.passes(str(error)):
            self._say(f"server: {error}")

    # Flying.

    @contextlib.contextmanager
    def flying(self) -> Iterator[None]:
        """Within this block frames are sent and decisions flown, by two threads."""
        ended = threading.Event()

        def send_frames() -> None:
            while not ended.wait(self.settings.frame_interval_s):
                self.send_frame()

        def fly() -> None:
            self._say(f"mission: {self.fly(ended.is_set)}")

        threads = [
            threading.Thread(target=send_frames, name="http-frames", daemon=True),
            threading.Thread(target=fly, name="http-pilot", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(timeout=2.0)  # one that waits for the server sends nothing any more
            self._server.close()

    def fly(self, ended: Callable[[], bool]) -> str:
        """Take off and fly until the server decides to finish, or `ended` says so; why it ended."""
        assert self._bridge is not None, "connect comes first"
        self._ended = ended
        state = self._bridge.state()
        if state.landed or not state.api_control:
            reply = self._bridge.take_off()
            if not reply.success:
                return reply.message
        result, decided_s = "", -math.inf
        while not ended():
            wait_s = decided_s + self.settings.decision_interval_s - self._clock.now()
            if wait_s > 0:
                self._clock.sleep(min(wait_s, COMMAND_PERIOD_S))
                continue
            epoch = self._hold()
            if epoch is None:
                continue
            decided_s = self._clock.now()
            try:
                tool, arguments = self._server.decide(self._mission, result)
            except ServerError as error:
                self._complain(error)
                self._clock.sleep(RETRY_S)
                continue
            self.decisions += 1
            shown = ", ".join(f"{name}={value}" for name, value in arguments.items())
            self._say(f"decision {self.decisions}: {tool}({shown})")
            if tool == "finish":
                return f"finished: {arguments.get('reason', '')}"
            result = self._carry_out(tool, arguments, epoch)
        return "ended"

    def _hold(self) -> int | None:
        """Wait until the gate holds the vehicle and the server has a picture of that; the epoch then, None: not yet."""
        assert self._bridge is not None
        gate = self._bridge.gate
        if not wait_until(self._clock, lambda: gate.mode is GateMode.HOLD and self._at_rest(), _REST_LIMIT_S):
            return None
        epoch, since_s = gate.epoch, self._odometry.stamp_s if self._odometry else math.inf
        if not wait_until(self._clock, lambda: self._pictured(since_s), FRAME_LIMIT_S):
            return None
        self.send_frame()
        return epoch if self._sent_s >= since_s else None

    def _at_rest(self) -> bool:
        return self._odometry is not None and self._odometry.stands_still

    def _pictured(self, since_s: float) -> bool:
        return self._picture is not None and self._picture[0].stamp_s >= since_s

    def _carry_out(self, tool: str, arguments: Mapping[str, Any], epoch: int) -> str:
        """What came of it, in the words that the model reads."""
        try:
            match tool:
                case "move_forward":
                    return self._go(Twist.body(forward_m_s=1.0), _number(arguments, "distance_m"), epoch)
                case "climb" | "descend":
                    up = 1.0 if tool == "climb" else -1.0
                    return self._go(Twist.body(up_m_s=up), _number(arguments, "distance_m"), epoch)
                case "turn_left" | "turn_right":
                    sign = 1.0 if tool == "turn_left" else -1.0
                    return self._turn(sign * math.radians(_number(arguments, "angle_deg")), epoch)
                case "look_around":
                    return self._look_around(epoch)
                case "fly_towards":
                    bearing_rad = self._bearing_rad(_number(arguments, "u"))
                    return self._fly_towards(bearing_rad, _number(arguments, "distance_m"), epoch)
                case "hover":
                    seconds = _number(arguments, "seconds")
                    self._clock.sleep(seconds)
                    return result_lines.hovered(seconds)
        except _BadArgument as error:
            return str(error)
        return f"error: no tool {tool[:24]}"

    def _look_around(self, epoch: int) -> str:
        turned_rad = 0.0
        for quarter in range(1, 5):
            part_rad, stop = self._rotate(quarter * math.pi / 2 - turned_rad, epoch)
            turned_rad += part_rad
            stop = stop or self._show(epoch)
            if stop is not None:
                return result_lines.result_line(result_lines.turned(wrap_angle(turned_rad)), stop)
        return result_lines.LOOKED_AROUND

    def _show(self, epoch: int) -> StopReason | None:
        """Hover until the server has a picture of this view, which the other thread sends; what cut it short."""
        since_s, end_s = self._newest().stamp_s, self._clock.now() + FRAME_LIMIT_S
        while self._sent_s < since_s and self._clock.now() < end_s:
            if not self._send(HOVER, epoch):
                return StopReason.GATE
            self._clock.sleep(COMMAND_PERIOD_S)
        return None

    def _fly_towards(self, bearing_rad: float, distance_m: float, epoch: int) -> str:
        turned = ""
        if abs(bearing_rad) > _NEAR_RAD:
            turned_rad, stop = self._rotate(bearing_rad, epoch)
            turned = result_lines.turned(turned_rad)
            if stop is not None:
                return result_lines.result_line(turned, stop)
        flew = self._go(Twist.body(forward_m_s=1.0), distance_m, epoch)
        return result_lines.result_line(turned, flew)

    def _bearing_rad(self, u: float) -> float:
        """To the left of the camera's axis; u: thousandths of the picture's width from the left."""
        assert self._picture is not None, "a decision follows a picture"
        info = self._picture[1]
        return math.atan((500.0 - u) / 1000.0 * info.width / info.fx)

    def _go(self, direction: Twist, distance_m: float, epoch: int) -> str:
        """Straight on, at a speed that falls with what is left."""
        start = self._newest()
        up = direction.linear.z
        fastest = VERTICAL_SPEED_M_S if up else SPEED_M_S

        def moved_m() -> float:
            return math.dist(self._newest().position, start.position)

        def twist() -> Twist | None:
            left_m = distance_m - moved_m()
            if left_m <= _NEAR_M:
                return None
            speed = min(fastest, max(_SLOWEST_M_S, _GAIN_1_S * left_m))
            return Twist.body(speed * direction.linear.x, 0.0, speed * up)

        stop = self._stream(twist, distance_m / fastest + _MOTION_SLACK_S, epoch)
        moved = result_lines.climbed(math.copysign(moved_m(), up)) if up else result_lines.flew(moved_m())
        return result_lines.result_line(moved, stop)

    def _turn(self, left_rad: float, epoch: int) -> str:
        """On the spot, counter-clockwise positive."""
        turned_rad, stop = self._rotate(left_rad, epoch)
        shown_rad = turned_rad if abs(turned_rad) > _NEAR_RAD else math.copysign(0.0, left_rad)
        return result_lines.result_line(result_lines.turned(shown_rad), stop)

    def _rotate(self, left_rad: float, epoch: int) -> tuple[float, StopReason | None]:
        """By how much it turned, rad, and what cut that short."""
        turned_rad, yaw = 0.0, self._newest().yaw

        def twist() -> Twist | None:
            nonlocal turned_rad, yaw
            turned_rad += math.remainder(self._newest().yaw - yaw, 2 * math.pi)
            yaw = self._newest().yaw
            left = left_rad - turned_rad
            if abs(left) <= _NEAR_RAD:
                return None
            rate = min(YAW_RATE_RAD_S, max(_SLOWEST_RAD_S, _GAIN_1_S * abs(left)))
            return Twist.body(yaw_rate_rad_s=math.copysign(rate, left))

        stop = self._stream(twist, abs(left_rad) / YAW_RATE_RAD_S + _MOTION_SLACK_S, epoch)
        twist()
        return turned_rad, stop

    def _stream(self, twist: Callable[[], Twist | None], limit_s: float, epoch: int) -> StopReason | None:
        """Commands at 20 Hz until there is none, then hover until it is at rest; what cut it short."""
        stop: StopReason | None = None
        end_s = self._clock.now() + limit_s
        while stop is None and (command := twist()) is not None:
            if self._clock.now() > end_s:
                stop = StopReason.TIMED_OUT
            elif self._send(command, epoch):
                self._clock.sleep(COMMAND_PERIOD_S)
            else:
                stop = StopReason.GATE
        end_s = self._clock.now() + _REST_LIMIT_S
        while not self._at_rest() and self._clock.now() < end_s and not self._ended():
            if stop is not StopReason.GATE and not self._send(HOVER, epoch):
                stop = StopReason.GATE
            self._clock.sleep(COMMAND_PERIOD_S)
        return stop

    def _send(self, twist: Twist, epoch: int) -> bool:
        """Whether the gate accepted it: after a fault nothing of an old decision is flown."""
        assert self._bridge is not None
        if self._ended():
            return False
        self._sequence += 1
        command = VelocityCommand(self._newest().stamp_s, epoch, self._sequence, twist)
        return self._bridge.gate.submit(command) is None

    def _newest(self) -> Odometry:
        assert self._odometry is not None, "a decision follows odometry, and the newest is kept"
        return self._odometry


def _number(arguments: Mapping[str, Any], name: str) -> float:
    """An argument of the server's, which may be anything."""
    value = arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1000:
        raise _BadArgument(f"error: {name} is no number from 0 to 1000")
    return float(value)
