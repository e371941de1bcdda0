"""The edge at work: vehicle, gate and cameras in threads of their own. Knows no ROS; `Outputs` takes what it sees."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import cv2

from airsim_bridge.client import RpcError
from airsim_bridge.gate import Cause, CommandGate, CommandRefusal, GateLimits, Transition
from airsim_bridge.outputs import Fanout, Outputs, Throttle
from airsim_bridge.reflex import DepthReflex
from airsim_bridge.vehicle import DEPTH_PLANAR, SCENE, CameraModel, Picture, Telemetry, Vehicle, VehicleError
from nav_common import topics
from nav_common.clock import Clock, wait_until
from nav_common.contract import COMMAND_PERIOD_S, STATE_PERIOD_S
from nav_common.data import (
    CameraInfo,
    CompressedImage,
    DepthImage,
    DroneState,
    FlyingMode,
    GateMode,
    Odometry,
    ServiceReply,
)

# The state is published without the vehicle's answer when that keeps it waiting for so long.
STATE_OVERDUE_S = 0.25
# Position hold is asked for again this often, in case a request was lost with a connection.
HOLD_AGAIN_S = 1.0
API_CONTROL_POLL_S = 0.5
RETRY_S = 0.1
LAND_LIMIT_S = 120.0
# CaptureSettings that a settings.json does not name (AirSim's documentation of it).
AIRSIM_DEFAULT_SIZE = (256, 144)
# Pixels of depth that cost a fifth of the time between two at 10 Hz (measured: 10 ms at 320x240 on the loopback).
LARGEST_DEPTH = 320 * 240
# Rendering its first picture takes a simulator some seconds on a busy machine.
READY_S = 10.0


@dataclass(frozen=True)
class CameraSettings:
    """`name`: AirSim's. `topic`: what it is called on this side. Rates in Hz; 0 switches off."""

    name: str = "front_center"
    topic: str = "front"
    image_rate_hz: float = 10.0
    depth_rate_hz: float = 5.0
    jpeg_quality: int = 85

    @property
    def rate_hz(self) -> float:
        return max(self.image_rate_hz, self.depth_rate_hz)


@dataclass(frozen=True)
class Settings:
    """Of a Bridge. The first camera is the one that gate and reflex depend on.

    Raises:
        ValueError: no camera, or two with the same topic's name.
    """

    cameras: Sequence[CameraSettings] = field(default_factory=lambda: (CameraSettings(),))
    odom_rate_hz: float = 30.0
    imu_rate_hz: float = 0.0
    take_off_altitude_m: float = 2.0
    check_colour_order: bool = True
    frame_prefix: str = ""
    """Before the names of all frames, such as "drone1/"."""

    def __post_init__(self) -> None:
        names = [camera.topic for camera in self.cameras]
        if not names:
            raise ValueError(
                "cameras is empty, must name at least one camera (the gate watches its pictures)"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"cameras is {names}: a topic's name occurs twice")


def check_change(before: Settings, after: Settings) -> None:
    """Whether a bridge that began with `before` can go on with `after`.

    Raises:
        ValueError: it cannot; the message says why.
    """
    cameras = list(zip(before.cameras, after.cameras, strict=False))
    if len(before.cameras) != len(after.cameras) or any(
        (b.name, b.topic) != (a.name, a.topic) for b, a in cameras
    ):
        raise ValueError("cameras cannot change in flight: start the bridge again")
    for b, a in cameras:
        if b.rate_hz > 0 and a.rate_hz == 0:
            raise ValueError(
                f"image_rate_hz and depth_rate_hz of camera {a.topic} are both 0: the gate would miss its pictures"
            )
        if b.rate_hz == 0 and a.rate_hz > 0:
            raise ValueError(f"camera {a.topic} was started without pictures: start the bridge again")


class Bridge:
    """Composes vehicle and gate, reconnects, and reports honestly meanwhile.

    `start` begins its threads; without it, `poll_state`, `tick_gate` and `grab` can be called in turn by one thread.
    """

    def __init__(
        self,
        vehicle: Vehicle,
        clock: Clock,
        outputs: Outputs,
        settings: Settings | None = None,
        limits: GateLimits | None = None,
        *,
        reflex: DepthReflex | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.vehicle = vehicle
        self.reflex = reflex
        self.gate = CommandGate(clock, limits, reflex=reflex, on_transition=self._on_transition)
        self.connected = False
        self.frames = {camera.topic: 0 for camera in self.settings.cameras}
        self._gate_tick_late_s = 0.0
        self._clock = clock
        self._outputs = Fanout(clock, outputs)
        self._vehicle_fault = "not connected yet"
        self._camera_faults: dict[str, str] = {}
        self._telemetry: Telemetry | None = None
        self._api_control = False
        self._api_control_at = -1e9
        self._collision_at = -1e9
        self._state_published_at = -1e9
        self._imu_at = -1e9
        self._hold_at = -1e9
        self._retry_at = -1e9
        self._disarm = False
        self._errors = Throttle(clock)
        self._cameras = {camera.topic: _CameraLoop(camera) for camera in self.settings.cameras}
        self._state_lock = threading.Lock()
        self._state_wanted = threading.Event()
        self._sending_state = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    # Life.

    def start(self) -> None:
        loops: list[tuple[str, Callable[[], float], Callable[[], None]]] = [
            ("gate", lambda: COMMAND_PERIOD_S, self.tick_gate),
            ("state", lambda: 1.0 / self.settings.odom_rate_hz, self.poll_state),
        ]
        for topic, camera in self._cameras.items():
            if camera.settings.rate_hz > 0:
                loops.append((f"camera-{topic}", camera.period_s, functools.partial(self.grab, topic)))
        for name, period_s, step in loops:
            thread = threading.Thread(target=self._every, args=(period_s, step), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Bring the drone to rest and end the threads."""
        self.gate.stop("the bridge shuts down")
        self.tick_gate()
        self._stopping.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=2.0)
        self.tick_gate()
        if self.connected:
            with contextlib.suppress(RpcError):
                self.vehicle.api_control()  # its answer proves that the stop before it has arrived

    def change_settings(self, settings: Settings) -> None:
        """Other rates, picture quality and take-off altitude, from the next step of each thread on.

        Raises:
            ValueError: other cameras than those that the bridge began with, or one that began with pictures has none.
        """
        check_change(self.settings, settings)
        for camera in settings.cameras:
            self._cameras[camera.topic].settings = camera
        self.settings = settings

    def _every(self, period_s: Callable[[], float], step: Callable[[], None]) -> None:
        due = self._clock.now()
        while not self._stopping.is_set():
            try:
                step()
            except Exception as error:
                # An error of the bridge itself (what its outputs raise does not come here): the vehicle stands until
                # a new decision, and the thread goes on, since without it nothing at all would be commanded.
                self.gate.stop(f"internal error: {error!r}")
                if self._errors.passes(repr(error)):
                    self._outputs.log(f"internal error: {error!r}")
                self._clock.sleep(RETRY_S)
            next_due = due + period_s()
            due = max(next_due, self._clock.now() - period_s())  # what was missed is not made up for
            self._stopping.wait(max(due - self._clock.now(), 0.0))
            if step == self.tick_gate:
                self._gate_tick_late_s = max(self._gate_tick_late_s, self._clock.now() - next_due)

    def gate_tick_late_s(self) -> float:
        """By how much the gate's latest tick came late since this was last called: how starved the machine is."""
        late_s, self._gate_tick_late_s = self._gate_tick_late_s, 0.0
        return late_s

    # Steps of the threads.

    def tick_gate(self) -> None:
        """Send the gate's setpoint to the vehicle."""
        setpoint = self.gate.tick()
        now = self._clock.now()
        if now - self._state_published_at > STATE_OVERDUE_S:
            self._publish_state()  # the thread that polls waits for an answer that does not come
        if setpoint is None or not self._api_control:
            return
        if setpoint.hold and now - self._hold_at < HOLD_AGAIN_S:
            return
        self._hold_at = now if setpoint.hold else -1e9
        try:
            self.vehicle.send(setpoint)
        except RpcError as error:
            self._lost(str(error))

    def poll_state(self) -> None:
        """Read the vehicle's state, connecting where necessary, and pass it to gate and outputs."""
        now = self._clock.now()
        if now >= self._retry_at:
            with self._state_lock:
                try:
                    self._poll_vehicle()
                except (RpcError, VehicleError) as error:
                    self._lost(str(error))
                    self._retry_at = self._clock.now() + RETRY_S
        if now - self._state_published_at >= STATE_PERIOD_S - 0.5 / self.settings.odom_rate_hz:
            self._publish_state()

    def _poll_vehicle(self) -> None:
        if not self.connected:
            self.vehicle.check()
        now = self._clock.now()
        if not self.connected or now - self._api_control_at >= API_CONTROL_POLL_S:
            self._api_control = self.vehicle.api_control()
            self._api_control_at = now
        telemetry = self.vehicle.telemetry()
        if not self.connected:
            self.connected = True
            self._vehicle_fault = ""
            # A bridge that was restarted finds the drone as it is.
            self.vehicle.armed = self.vehicle.armed or (self._api_control and not telemetry.landed)
            self._outputs.log("connected to AirSim")
        self._telemetry = telemetry
        self.gate.observe(telemetry.for_gate(self._api_control))
        self._outputs.on_odometry(self._named(telemetry.odometry))
        if now - self._collision_at >= STATE_PERIOD_S:
            self._collision_at = now
            if self.vehicle.look_for_collision():
                self._outputs.log(f"collision with {self.vehicle.last_collision_object}")
                self._publish_state()
        if self.settings.imu_rate_hz > 0 and now - self._imu_at >= 1.0 / self.settings.imu_rate_hz:
            self._imu_at = now
            imu = self.vehicle.imu()
            self._outputs.on_imu(replace(imu, frame_id=self.settings.frame_prefix + topics.BASE_FRAME))
        if self._disarm:
            self._disarm = False
            self.vehicle.arm(False)

    def _named(self, odometry: Odometry) -> Odometry:
        prefix = self.settings.frame_prefix
        return replace(
            odometry, frame_id=prefix + topics.ODOM_FRAME, child_frame_id=prefix + topics.BASE_FRAME
        )

    def grab(self, topic: str) -> None:
        """Take a picture with one camera and pass it on."""
        camera = self._cameras[topic]
        if not self.connected or self._clock.now() < camera.retry_at:
            return
        try:
            if camera.model is None:
                self._introduce(camera)
            assert camera.model is not None
            settings, now = camera.settings, self._clock.now()
            slack = 0.5 / settings.rate_hz
            colour = (
                settings.image_rate_hz > 0 and now - camera.image_at >= 1.0 / settings.image_rate_hz - slack
            )
            depth = (
                settings.depth_rate_hz > 0 and now - camera.depth_at >= 1.0 / settings.depth_rate_hz - slack
            )
            if not (colour or depth):
                return
            # Colour on its own and first: depth takes as long again to render, and the pilot waits for colour.
            if colour:
                camera.image_at = now
                picture = self.vehicle.picture(settings.name)
                self._check_size(camera, picture)
                self._show(camera, picture)
            if depth:
                camera.depth_at = now
                picture = self.vehicle.depth(settings.name)
                self._check_size(camera, picture)
                self._measure(camera, picture)
        except (RpcError, VehicleError) as error:
            self._camera_lost(topic, str(error))
            camera.retry_at = self._clock.now() + RETRY_S
            return
        self._camera_faults.pop(topic, None)

    def _show(self, camera: _CameraLoop, picture: Picture) -> None:
        if not self._is_new(camera, picture):
            return
        assert camera.model is not None
        quality = [cv2.IMWRITE_JPEG_QUALITY, camera.settings.jpeg_quality]
        jpeg = cv2.imencode(".jpg", picture.pixels, quality)[1].tobytes()
        height, width = picture.pixels.shape[:2]
        topic, frame_id = camera.settings.topic, self._optical_frame(camera)
        focal = camera.model.focal_length(width)
        info = CameraInfo(
            picture.stamp_s, width, height, focal, focal, 0.5 * width, 0.5 * height, frame_id=frame_id
        )
        self.frames[topic] += 1
        self._outputs.on_image(topic, CompressedImage(picture.stamp_s, jpeg, frame_id=frame_id), info)

    def _measure(self, camera: _CameraLoop, picture: Picture) -> None:
        if not self._is_new(camera, picture):
            return
        assert camera.model is not None
        topic = camera.settings.topic
        if self.reflex is not None and topic == self._first_camera():
            self.reflex.update(picture.pixels, picture.stamp_s, camera.model.fov, picture.tilt)
        frame_id = self._optical_frame(camera)
        self._outputs.on_depth(topic, DepthImage(picture.stamp_s, picture.pixels, frame_id))

    def _optical_frame(self, camera: _CameraLoop) -> str:
        return self.settings.frame_prefix + topics.optical_frame(camera.settings.topic)

    def camera_model(self, topic: str) -> CameraModel | None:
        """Field of view and mount of a camera; None before its first picture."""
        return self._cameras[topic].model

    def _is_new(self, camera: _CameraLoop, picture: Picture) -> bool:
        """Whether the camera's clock has advanced. If not, the picture is frozen: the simulator is paused, or its
        renderer hangs; identical pixels alone mean nothing. A clock that was set back starts anew."""
        newest, stamp = camera.newest_s.get(picture.kind, -math.inf), picture.vehicle_stamp_s
        if newest - 1.0 < stamp <= newest:
            return False
        camera.newest_s[picture.kind] = stamp
        if camera.settings.topic == self._first_camera():
            self.gate.frame_arrived()
        return True

    def _introduce(self, camera: _CameraLoop) -> None:
        """What must be known of a camera before its first picture."""
        model = self.vehicle.camera_model(camera.settings.name)
        if self.settings.check_colour_order and camera.settings.image_rate_hz > 0:
            before = self.vehicle.rgb
            if self.vehicle.check_colour_order(camera.settings.name) != before:
                order = "R, G, B" if self.vehicle.rgb else "B, G, R"
                self._outputs.log(f"raw pictures are {order}: corrected (parameter rgb)")
        camera.unseen = {SCENE, DEPTH_PLANAR}
        camera.model = model

    def _check_size(self, camera: _CameraLoop, picture: Picture) -> None:
        """Of a camera's first picture of a kind: say what AirSim's settings.json would mend. Its default pictures are
        small and wide, so the model's would be stretched from them; large depth takes the protocol long."""
        if picture.kind not in camera.unseen:
            return
        camera.unseen.discard(picture.kind)
        height, width = picture.pixels.shape[:2]
        kind, wanted = ("colour", "640x480") if picture.kind == SCENE else ("depth", "160x120")
        trouble = ""
        if (width, height) == AIRSIM_DEFAULT_SIZE:
            trouble = "AirSim's default"
        elif picture.kind == DEPTH_PLANAR and width * height > LARGEST_DEPTH:
            trouble = "large, and slow to fetch"
        if trouble:
            self._outputs.log(
                f"{kind} of camera {camera.settings.name} is {width}x{height}, {trouble}: for {wanted} put "
                "settings.json (python -m airsim_bridge.edge --settings) into AirSim's folder and start it again"
            )

    # What can be asked of the drone.

    def take_off(self) -> ServiceReply:
        """Take API control, arm, climb, and wait until it hovers."""
        altitude_m = self.settings.take_off_altitude_m
        try:
            with self._state_lock:
                self.vehicle.enable_api_control(True)
                self.vehicle.arm(True)
                self._api_control_at = -1e9
                self._poll_vehicle()
        except (RpcError, VehicleError) as error:
            return ServiceReply(False, f"cannot take off: {error}")
        # Right after the start the first picture may still be on its way.
        wait_until(self._clock, lambda: not self.gate.fault, READY_S, period_s=0.05)
        refusal = self.gate.take_off(altitude_m)
        if refusal:
            return _refused(refusal)
        wait_until(self._clock, lambda: not self.gate.taking_off, timeout_s=30.0, period_s=0.05)
        if not self.gate.took_off:
            return ServiceReply(False, f"take-off was interrupted: {self.gate.reason}")
        return ServiceReply(True, f"took off to {altitude_m:g} m")

    def land(self) -> ServiceReply:
        """Descend, wait for the ground, disarm."""
        refusal = self.gate.land()
        if refusal:
            return _refused(refusal)
        wait_until(
            self._clock, lambda: self.gate.mode is not GateMode.LAND, timeout_s=LAND_LIMIT_S, period_s=0.05
        )
        landed = self._telemetry is not None and self._telemetry.landed
        return ServiceReply(landed, "landed" if landed else f"not landed: {self.gate.reason}")

    def reset(self) -> ServiceReply:
        """Put the simulator back to its start. API control and arming are gone afterwards."""
        self.gate.stop("the simulator is reset")
        try:
            with self._state_lock:
                self.vehicle.reset()
                self._api_control_at = -1e9
        except RpcError as error:
            return ServiceReply(False, str(error))
        return ServiceReply(True, "reset")

    def enable_api_control(self, enabled: bool) -> ServiceReply:
        """Take the vehicle, or give it back to its remote control."""
        self.gate.stop("API control " + ("taken" if enabled else "given back"))
        try:
            with self._state_lock:
                self.vehicle.enable_api_control(enabled)
                self._api_control = enabled
        except RpcError as error:
            return ServiceReply(False, str(error))
        return ServiceReply(True, "API control is " + ("on" if enabled else "off"))

    def arm_cmd_vel(self, armed: bool) -> ServiceReply:
        """Let cmd_vel fly and refuse command, or the other way round."""
        self.gate.arm_manual(armed)
        return ServiceReply(
            True, "cmd_vel is " + ("armed: it flies, command does not" if armed else "disarmed")
        )

    # State.

    def state(self) -> DroneState:
        """Everything at once."""
        gate, vehicle, reflex = self.gate, self.vehicle, self.reflex
        landed = self._telemetry is not None and self._telemetry.landed
        flying = FlyingMode.UNKNOWN
        connected = self.connected and gate.sees_vehicle
        if connected:
            if gate.taking_off:
                flying = FlyingMode.TAKING_OFF
            elif landed:
                flying = FlyingMode.LANDED
            else:
                flying = FlyingMode.LANDING if gate.mode is GateMode.LAND else FlyingMode.AIRBORNE
        faults = [self._vehicle_fault, *self._camera_faults.values()]
        gate_fault = gate.fault
        return DroneState(
            stamp_s=self._clock.now(),
            flying_mode=flying,
            gate_mode=gate.mode,
            gate_reason=gate.reason,
            epoch=gate.epoch,
            connected=connected,
            fault="; ".join(f for f in faults if f) or gate_fault,
            api_control=self._api_control and connected,
            armed=vehicle.armed,
            landed=landed,
            collision_count=vehicle.collisions,
            last_collision_object=vehicle.last_collision_object,
            reflex_interventions=reflex.interventions if reflex is not None else 0,
            reflex_reason=reflex.reason if reflex is not None else "",
            commands_refused=gate.refused,
            last_refusal=gate.last_refusal,
            clock_offset_s=vehicle.clock_offset_s,
        )

    def _publish_state(self) -> None:
        """Send the state now, or let the thread that is sending one send it next: so they go out in the order of their
        stamps. No thread waits for another here, since some come with the gate's lock."""
        self._state_wanted.set()
        while self._state_wanted.is_set() and self._sending_state.acquire(blocking=False):
            try:
                self._state_wanted.clear()
                self._state_published_at = self._clock.now()
                self._outputs.on_state(self.state())
            finally:
                self._sending_state.release()

    def _on_transition(self, transition: Transition) -> None:
        if transition.cause is Cause.LANDED:
            self._disarm = True
        if transition.before is not transition.after:
            before, after = transition.before.name, transition.after.name
            self._outputs.log(f"gate: {before} -> {after}: {transition.reason} (epoch {transition.epoch})")
        self._publish_state()

    def _lost(self, reason: str) -> None:
        news = reason != self._vehicle_fault
        if self.connected:
            self._outputs.log(f"lost AirSim: {reason}")
        self.connected = False
        self._vehicle_fault = reason
        self.gate.vehicle_lost(reason)
        if news:
            self._publish_state()

    def _camera_lost(self, topic: str, reason: str) -> None:
        news = reason != self._camera_faults.get(topic)
        self._camera_faults[topic] = reason
        if topic == self._first_camera():
            self.gate.camera_lost(reason)
        if news:
            self._outputs.log(f"camera {topic}: {reason}")
            self._publish_state()

    def _first_camera(self) -> str:
        return self.settings.cameras[0].topic


class _CameraLoop:
    """What a camera's thread remembers."""

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings  # replaced whole when rates change: read once a step
        self.model: CameraModel | None = None
        self.image_at = -1e9
        self.depth_at = -1e9
        self.retry_at = -1e9
        self.newest_s: dict[int, float] = {}
        self.unseen: set[int] = set()
        """Kinds of which the first picture since the connection is yet to come."""

    def period_s(self) -> float:
        return 1.0 / self.settings.rate_hz


def _refused(refusal: CommandRefusal) -> ServiceReply:
    return ServiceReply(False, refusal.text)
