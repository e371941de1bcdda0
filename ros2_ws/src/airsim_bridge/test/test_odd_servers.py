"""The bridge against servers that are wrong: state says what, within a second; the gate holds; it recovers."""

import threading
import time

import pytest

from airsim_bridge import edge
from airsim_bridge.bridge import Bridge, CameraSettings, Settings
from airsim_bridge.client import AirSimClient
from airsim_bridge.testing.lockstep import Seen
from airsim_bridge.testing.servers import answering, babbling, server, silent
from airsim_bridge.vehicle import Vehicle
from airsim_sim.server import Server
from airsim_sim.settings import load_settings
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.clock import WallClock, wait_until
from nav_common.data import GateMode
from nav_common.testing import free_port

V = {"x_val": 0.0, "y_val": 0.0, "z_val": -3.0}
ZERO = {"x_val": 0.0, "y_val": 0.0, "z_val": 0.0}
Q = {"w_val": 1.0, "x_val": 0.0, "y_val": 0.0, "z_val": 0.0}
KINEMATICS = {
    "position": V, "orientation": Q, "linear_velocity": ZERO, "angular_velocity": ZERO,
    "linear_acceleration": ZERO, "angular_acceleration": ZERO,
}  # fmt: skip
IMAGE = {
    "image_data_uint8": b"\0" * 12, "image_data_float": [0.0], "camera_name": "front_center", "camera_position": V,
    "camera_orientation": Q, "time_stamp": 1, "message": "", "pixels_as_float": False, "compress": False, "width": 2,
    "height": 2, "image_type": 0,
}  # fmt: skip


def answers(**changes):
    """A server that answers like AirSim, but for the methods in `changes`: a value, or an Exception for an error."""
    return answering(answering_to(changes))


def answering_to(changes):
    def answer(number, method, arguments):
        good = {
            "getServerVersion": 1,
            "listVehicles": ["SimpleFlight"],
            "isApiControlEnabled": False,
            "getMultirotorState": {
                "kinematics_estimated": KINEMATICS, "landed_state": 1, "timestamp": time.time_ns(),
            },
            "simGetCollisionInfo": {"has_collided": False, "object_name": ""},
            "simGetCameraInfo": {"pose": {"position": V, "orientation": Q}, "fov": 90.0, "proj_mat": None},
            "simGetVehiclePose": {"position": V, "orientation": Q},
            "simGetImages": [{**IMAGE, "time_stamp": time.time_ns()}],
        }  # fmt: skip
        result = {**good, **changes}.get(method)
        if isinstance(result, Exception):
            return [1, number, str(result), None]
        return [1, number, None, result]

    return answer


def answers_of_size(width, height):
    """Colour and depth of this size."""
    image = {**IMAGE, "width": width, "height": height}

    def answer(number, method, arguments):
        if method != "simGetImages":
            return answers_to_all(number, method, arguments)
        as_float = arguments[0][0]["pixels_as_float"]
        data: dict[str, object] = {"image_data_float": [5.0] * (width * height)} if as_float else {}
        data |= {} if as_float else {"image_data_uint8": bytes(3 * width * height)}
        stamp = {"time_stamp": time.time_ns(), "pixels_as_float": as_float}
        return [1, number, None, [{**image, **data, **stamp}]]

    answers_to_all = answering_to({})
    return answering(answer)


class Rig:
    def __init__(
        self,
        port,
        *,
        image_rate_hz=0.0,
        depth_rate_hz=0.0,
        name="",
        flavor="airsim",
        camera="front_center",
        imu_rate_hz=0.0,
    ):
        self.clock = WallClock()
        self.client = AirSimClient("127.0.0.1", port)
        self.seen = Seen()
        settings = Settings(
            cameras=[CameraSettings(camera, "front", image_rate_hz, depth_rate_hz)],
            check_colour_order=False,
            imu_rate_hz=imu_rate_hz,
        )
        vehicle = Vehicle(self.client, self.clock, name=name, flavor=flavor)
        self.bridge = Bridge(vehicle, self.clock, self.seen, settings)

    def __enter__(self):
        self.bridge.start()
        return self

    def __exit__(self, *_):
        self.bridge.stop()
        self.client.close()

    def await_fault(self, words, timeout_s=10.0):
        def told():
            return any(words in state.fault for state in list(self.seen.states))

        assert wait_until(self.clock, told, timeout_s), [state.fault for state in self.seen.states[-3:]]
        state = next(state for state in self.seen.states if words in state.fault)
        assert state.gate_mode is GateMode.HOLD
        return state

    def await_health(self, timeout_s=10.0):
        def well():
            return self.seen.states and self.seen.state.connected and not self.seen.state.fault

        assert wait_until(self.clock, well, timeout_s), self.seen.states[-1:]


WRONG = {
    "nothing": (silent, "did not answer getServerVersion within"),
    "http": (babbling(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak msgpack-rpc"),
    "errors": (answering(lambda n, m, a: [1, n, "on fire", None]), "refused getServerVersion: on fire"),
    "version": (answers(getServerVersion=4), "version is 4, airsim has 1: set api_flavor to cosys"),
    "unknown version": (answers(getServerVersion=9), "this bridge supports 1 (AirSim) and 4 (Cosys)"),
    "no state": (answers(getMultirotorState={}), "answered without a usable 'kinematics_estimated'"),
    "state is text": (answers(getMultirotorState="fine"), "answered without a usable"),
    "not finite": (
        answers(getMultirotorState={
            "kinematics_estimated": {**KINEMATICS, "position": {**V, "x_val": float("nan")}},
            "landed_state": 1, "timestamp": 1,
        }),
        "not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("talk", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_server_is_told_the_gate_holds_and_a_right_one_is_taken(talk, words):
    port = free_port()
    with Rig(port) as rig:
        with server(talk, port):
            state = rig.await_fault(words)
            assert not state.connected
        with server(answers(), port):
            rig.await_health()


def test_a_server_that_falls_silent_is_told_within_a_second():
    talking = threading.Event()
    talking.set()
    good = answers()

    def talk(connection):
        class Gagged:
            def recv(self, size):
                return connection.recv(size)

            def sendall(self, data):
                if talking.is_set():
                    connection.sendall(data)

        good(Gagged())

    with server(talk) as (port, _), Rig(port) as rig:
        rig.await_health()
        talking.clear()
        silent_since = rig.clock.now()
        state = rig.await_fault("no state from the vehicle")
        assert not state.connected
        assert state.stamp_s - silent_since < 1.0
        talking.set()
        rig.await_health()


PICTURES = {
    "size zero": ([{**IMAGE, "width": 0, "height": 0}], "gave a picture of 0x0: does it exist?"),
    "too short": ([{**IMAGE, "image_data_uint8": b"\0"}], "1 values for 2x2, must be 12"),
    "none": ([], "1 pictures asked for, got []"),
    "text": ("sorry", "1 pictures asked for, got 'sorry'"),
    "error": (RuntimeError("no such camera"), "refused simGetImages: no such camera"),
    "without a size": ([{"time_stamp": 1}], "an answer without a usable 'width'"),
}


@pytest.mark.parametrize(("result", "words"), PICTURES.values(), ids=PICTURES.keys())
def test_a_wrong_picture_is_told_and_shown_to_nobody(result, words):
    with server(answers(simGetImages=result)) as (port, _), Rig(port, image_rate_hz=10.0) as rig:
        state = rig.await_fault(words)
        assert state.connected  # the vehicle is well, the camera is not
        assert rig.seen.image_stamps_s == []


def test_a_picture_that_comes_back_ends_the_fault():
    port = free_port()
    with Rig(port, image_rate_hz=10.0) as rig:
        with server(answers(simGetImages=[]), port):
            rig.await_fault("pictures asked for")
        with server(answers(), port):
            rig.await_health()
            assert wait_until(rig.clock, lambda: rig.seen.image_stamps_s, 5.0)


@pytest.fixture(scope="module", params=["airsim", "cosys"])
def simulator(request):
    simulation = Simulation(load_world("field", 1), flavor=request.param, start_time_ns=None)
    with Server(simulation, "127.0.0.1", free_port()) as running:
        yield running


def test_both_flavours_give_state_pictures_and_imu(simulator):
    flavor = simulator.simulation.flavor
    with Rig(simulator.port, image_rate_hz=10.0, flavor=flavor, imu_rate_hz=10.0) as rig:
        rig.await_health()
        assert wait_until(rig.clock, lambda: rig.seen.image_stamps_s and rig.seen.imu, 10.0)
        # At rest: up, by REP-145. (In its first steps the simulated drone settles on the ground.)
        at_rest = pytest.approx(9.8, abs=0.5)
        assert wait_until(rig.clock, lambda: rig.seen.imu.linear_acceleration.z == at_rest, 2.0)


def test_the_wrong_flavour_names_the_right_one(simulator):
    flavor = simulator.simulation.flavor
    other = {"airsim": "cosys", "cosys": "airsim"}[flavor]
    with Rig(simulator.port, flavor=other) as rig:
        rig.await_fault(f"set api_flavor to {flavor}")


def test_a_vehicle_that_does_not_exist_is_named_with_those_that_do(simulator):
    with Rig(simulator.port, flavor=simulator.simulation.flavor, name="Drone9") as rig:
        rig.await_fault("there is no vehicle 'Drone9', the server has SimpleFlight: correct vehicle_name")


def test_a_camera_that_does_not_exist_is_named(simulator):
    flavor = simulator.simulation.flavor
    with Rig(simulator.port, flavor=flavor, image_rate_hz=10.0, camera="periscope") as rig:
        rig.await_fault("there is no camera 'periscope'")


def test_raw_pictures_in_the_wrong_order_are_noticed(simulator):
    client = AirSimClient("127.0.0.1", simulator.port)
    vehicle = Vehicle(client, WallClock(), flavor=simulator.simulation.flavor, rgb=True)
    try:
        vehicle.telemetry()
        assert vehicle.check_colour_order("front_center") is False
        assert vehicle.check_colour_order("front_center") is False
    finally:
        client.close()


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (
            256,
            144,
            ["colour of camera front_center is 256x144, AirSim's default: for 640x480", "depth of camera"],
        ),
        (640, 480, ["depth of camera front_center is 640x480, large, and slow to fetch: for 160x120"]),
        (160, 120, []),
    ],
)
def test_sizes_that_settings_json_would_mend_are_named_once(width, height, said):
    with (
        server(answers_of_size(width, height)) as (port, _),
        Rig(port, image_rate_hz=20.0, depth_rate_hz=20.0) as rig,
    ):
        assert wait_until(
            rig.clock, lambda: rig.bridge.frames["front"] >= 3 and hasattr(rig.seen, "depth"), 10.0
        )
        lines = [line for line in rig.seen.logged if " of camera " in line]
    assert len(lines) == len(said), lines
    for line, start in zip(sorted(lines), said, strict=True):
        assert line.startswith(start)
        assert "python -m airsim_bridge.edge --settings" in line


def test_the_settings_json_that_is_shipped_gives_the_sizes_that_are_asked_for(tmp_path, capsys):
    assert edge.main(["--settings"]) == 0
    file = tmp_path / "settings.json"
    file.write_text(capsys.readouterr().out)
    settings = load_settings(file)
    assert not settings.ignored
    front = next(camera for camera in settings.cameras if camera.name == "front_center")
    assert (front.size("scene"), front.size("depth_planar")) == ((640, 480), (160, 120))
