"""The edge flown over HTTP, in lock-step, by a server that says what the test wants."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from airsim_bridge import edge, http_pilot
from airsim_bridge.http_pilot import HttpPilot, HttpPilotSettings, HttpServer, ServerError
from airsim_bridge.testing.lockstep import Lockstep
from nav_common.contract import COMMAND_PERIOD_S, COMMAND_TIMEOUT_S
from nav_common.data import GateMode

Call = tuple[str, Mapping[str, Any]]


class ScriptedServer:
    """Stands in for the HTTP API: gives out calls in turn, and notes what it was sent."""

    def __init__(self, *calls: Call | ServerError, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.calls = list(calls)
        self.results: list[str] = []
        self.frames: list[float] = []
        self.meanwhile = meanwhile
        self.commands_while_deciding: list[object] = []

    def append(self, jpeg: bytes, fps: float) -> None:
        assert jpeg.startswith(b"\xff\xd8")
        self.frames.append(fps)

    def decide(self, question: str, last_result: str) -> Call:
        assert question == "fly to the red beacon"
        self.results.append(last_result)
        self.meanwhile()
        call = self.calls.pop(0) if self.calls else ("finish", {"reason": "reached"})
        if isinstance(call, ServerError):
            raise call
        return call


class Flight:
    """A scripted server's pilot over the simulator, in the air."""

    def __init__(self, *calls: Call | ServerError, frame_interval_s: float = 0.5) -> None:
        self.server = ScriptedServer(*calls)
        self.said: list[str] = []
        stage = Lockstep(reflex=True, image_rate_hz=4.0, depth_rate_hz=5.0)
        self.stage = stage
        settings = HttpPilotSettings(decision_interval_s=1.0)
        self.pilot = HttpPilot(
            self.server,  # type: ignore[arg-type]
            stage.clock,
            "fly to the red beacon",
            self.said.append,
            settings,
        )
        stage.bridge._outputs._outputs += (self.pilot,)
        self.pilot.connect(stage.bridge)
        self.in_other_thread = False
        stage.clock.call_every(frame_interval_s, self._other_thread)

    def _other_thread(self) -> None:
        """Lock-step has one thread: what the one that sends frames does, at once."""
        if not self.pilot._sending.locked():
            self.in_other_thread = True
            self.pilot.send_frame()
            self.in_other_thread = False

    def fly(self) -> str:
        return self.pilot.fly(lambda: self.stage.clock.now() > 120.0)


@pytest.mark.parametrize(
    ("call", "result", "moved", "turned_deg"),
    [
        (("move_forward", {"distance_m": 2}), "flew 2 m", 2.0, 0.0),
        (("turn_left", {"angle_deg": 30}), "turned left 30 deg", 0.0, 30.0),
        (("turn_right", {"angle_deg": 90}), "turned right 90 deg", 0.0, -90.0),
        (("climb", {"distance_m": 1}), "climbed 1 m", 1.0, 0.0),
        (("hover", {"seconds": 2}), "hovered 2 s", 0.0, 0.0),
        (("look_around", {}), "looked around", 0.0, 0.0),
        (("fly_towards", {"u": 250, "v": 500, "distance_m": 1}), "turned left 25 deg, flew 1 m", 1.0, 26.6),
        (("fly_towards", {"u": 500, "v": 500, "distance_m": 1}), "flew 1 m", 1.0, 0.0),
    ],
)
def test_a_call_is_flown_as_far_as_it_says_and_its_result_is_told(call, result, moved, turned_deg):
    flight = Flight(("hover", {"seconds": 1}), call)
    before: list[Any] = []
    flight.server.meanwhile = lambda: before.append(
        (flight.stage.simulation.position, flight.stage.simulation.yaw_deg)
    )
    assert flight.fly() == "finished: reached"
    (start, yaw_0), (end, yaw_1) = before[1:3]
    assert flight.server.results[2] == result
    assert math.dist(start, end) == pytest.approx(moved, abs=0.35)
    assert math.remainder(yaw_1 - yaw_0 - turned_deg, 360.0) == pytest.approx(0.0, abs=4.0)


def test_while_the_server_decides_the_drone_stands_still():
    flight = Flight(("move_forward", {"distance_m": 2}), ("turn_left", {"angle_deg": 30}))
    speeds: list[float] = []
    flight.server.meanwhile = lambda: speeds.append(flight.stage.speed)
    flight.fly()
    assert len(speeds) == 3
    assert max(speeds) < 0.2


def test_a_decision_rests_on_a_picture_taken_at_rest_after_the_last_motion():
    flight = Flight(("move_forward", {"distance_m": 2}))
    sent: list[float] = []
    still_since: list[float] = []
    append = flight.server.append

    def noted(jpeg: bytes, fps: float) -> None:
        sent.append(flight.stage.seen.image.stamp_s)
        append(jpeg, fps)

    flight.server.append = noted  # type: ignore[method-assign]
    flight.server.meanwhile = lambda: still_since.append(sent[-1])
    flight.fly()
    motion_end_s = max(
        at for at, name, values in flight.stage.simulation.log.commands if name != "hover" and any(values[:3])
    )
    assert still_since[1] > motion_end_s


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (("move_forward", {"distance_m": 8}), "flew 0 m, stopped by the gate"),
        (("descend", {"distance_m": 1}), "descended 0 m, stopped by the gate"),
        (("turn_right", {"angle_deg": 90}), "turned right 0 deg, stopped by the gate"),
    ],
)
def test_a_decision_is_void_once_the_gate_has_seen_a_fault_since(call, result):
    flight = Flight(call)
    gate = flight.stage.bridge.gate

    def fault_while_deciding() -> None:
        if len(flight.server.results) == 1:
            gate.emergency_stop(True)
            gate.emergency_stop(False)

    flight.server.meanwhile = fault_while_deciding
    before = flight.stage.simulation.position
    flight.fly()
    assert flight.server.results[1] == result
    assert math.dist(before[:2], flight.stage.simulation.position[:2]) < 0.3


@pytest.mark.parametrize(
    ("call", "flown"),
    [
        (("move_forward", {"distance_m": 8}), lambda moved_m, left_deg: f"flew {round(2 * moved_m) / 2:g} m"),
        (("climb", {"distance_m": 8}), lambda moved_m, left_deg: f"climbed {round(2 * moved_m) / 2:g} m"),
        (
            ("turn_right", {"angle_deg": 170}),
            lambda moved_m, left_deg: f"turned right {5 * round(-left_deg / 5)} deg",
        ),
        (("look_around", {}), lambda moved_m, left_deg: f"turned left {5 * round(left_deg / 5)} deg"),
        (
            ("fly_towards", {"u": 0, "v": 500, "distance_m": 8}),
            lambda moved_m, left_deg: f"turned left {5 * round(left_deg / 5)} deg",
        ),
    ],
)
def test_a_motion_that_the_gate_stops_tells_how_far_it_came(call, flown):
    flight = Flight(call)
    gate, simulation = flight.stage.bridge.gate, flight.stage.simulation
    places: list[tuple[tuple[float, float, float], float]] = []
    flight.server.meanwhile = lambda: places.append((simulation.position, simulation.yaw_deg))

    def stop_half_way() -> None:
        if len(places) == 1 and gate.mode is GateMode.ACTIVE:
            start, yaw_deg = places[0]
            left_deg = math.remainder(simulation.yaw_deg - yaw_deg, 360.0)
            if math.dist(start, simulation.position) > 2.2 or abs(left_deg) > 22.0:
                gate.stop("somebody stops it")

    flight.stage.clock.call_every(COMMAND_PERIOD_S, stop_half_way)
    assert flight.fly() == "finished: reached"
    (start, yaw_0), (end, yaw_1) = places
    told = flown(math.dist(start, end), math.remainder(yaw_1 - yaw_0, 360.0))
    assert flight.server.results[1] == f"{told}, stopped by the gate"


def test_a_slow_uplink_does_not_end_a_look_around_and_each_view_is_sent(monkeypatch):
    flight = Flight(("look_around", {}), frame_interval_s=3.1)
    append, simulation = flight.server.append, flight.stage.simulation
    views_deg: list[float] = []

    def slow(jpeg: bytes, fps: float) -> None:
        if not flight.in_other_thread:
            flight.stage.clock.sleep(3 * COMMAND_TIMEOUT_S)  # who sends the commands waits
        append(jpeg, fps)
        views_deg.append(simulation.yaw_deg)

    monkeypatch.setattr(flight.server, "append", slow)
    assert flight.fly() == "finished: reached"
    assert flight.server.results[1] == "looked around"
    for quarter_deg in (90.0, 180.0, 270.0):
        away_deg = [abs(math.remainder(view - views_deg[0] - quarter_deg, 360.0)) for view in views_deg]
        assert min(away_deg) < 6.0


def test_a_motion_that_takes_too_long_tells_how_far_it_came(monkeypatch):
    monkeypatch.setattr(http_pilot, "_MOTION_SLACK_S", -2.0)
    flight = Flight(("move_forward", {"distance_m": 8}))
    flight.fly()
    assert re.fullmatch(r"flew [3-5](\.5)? m, timed out", flight.server.results[1])


def test_a_server_that_fails_is_asked_again_and_the_drone_hovers_meanwhile():
    flight = Flight(ServerError("/decide: 503 the model is being loaded"), ServerError("/decide: timed out"))
    assert flight.fly() == "finished: reached"
    assert len(flight.server.results) == 3
    assert any("being loaded" in line for line in flight.said)


@pytest.mark.parametrize(
    "arguments", [{}, {"distance_m": "far"}, {"distance_m": math.nan}, {"distance_m": 1e9}]
)
def test_arguments_that_cannot_be_move_nothing(arguments):
    flight = Flight(("move_forward", arguments), ("self_destruct", {}))
    flight.fly()
    assert all(result.startswith("error: ") for result in flight.server.results[1:])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--server", "https://x.example", "--server", "https://y.example", "--mission", "go"], "twice"),
        (["--server", "https://x.example"], "--mission is empty"),
        (["--server", "http://x.example", "--mission", "go"], "https://"),
        (["--server", "https://", "--mission", "go"], "an address such as"),
        (["--mission", "go"], "--mission is for"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, reason, capsys):
    assert edge.main(arguments) == 2
    assert reason in capsys.readouterr().err


def test_what_is_no_answer_is_an_error_that_names_the_path():
    server = HttpServer("http://127.0.0.1:9")
    with pytest.raises(ServerError, match="/decide"):
        server.decide("go", "")
