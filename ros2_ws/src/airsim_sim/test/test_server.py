"""The TCP server: msgpack-rpc as clients see it, real time, lock-step, garbage, the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from airsim_sim.command import run
from airsim_sim.server import Server, ServerError
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world

STEADY = {"is_rate": True, "yaw_or_rate": 0.0}
SCENE = {"camera_name": "0", "image_type": 0, "pixels_as_float": False, "compress": False}
DEPTH = {"camera_name": "0", "image_type": 1, "pixels_as_float": True, "compress": False}


class Client:
    """A bare msgpack-rpc client that may have several requests under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.unpacker = msgpack.Unpacker(raw=False, max_buffer_size=2**26)
        self.number = 0
        self.answers: dict[int, tuple[Any, Any]] = {}

    def send(self, method: str, *args: Any) -> int:
        self.number += 1
        self.socket.sendall(msgpack.packb([0, self.number, method, list(args)]))
        return self.number

    def wait(self, number: int) -> Any:
        while number not in self.answers:
            data = self.socket.recv(2**16)
            if not data:
                raise ConnectionError("closed by the server")
            self.unpacker.feed(data)
            for kind, answered, error, result in self.unpacker:
                assert kind == 1
                self.answers[answered] = (error, result)
        error, result = self.answers.pop(number)
        if error is not None:
            raise RuntimeError(error)
        return result

    def call(self, method: str, *args: Any) -> Any:
        return self.wait(self.send(method, *args))

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(Simulation(load_world("field", 1)), port=0, clock_speed=4.0) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    made = Client(server.port)
    made.call("simPause", False)
    made.call("reset")
    made.call("enableApiControl", True, "")
    made.call("armDisarm", True, "")
    yield made
    made.close()


def test_a_flight_over_the_wire(client: Client, server: Server) -> None:
    assert client.call("takeoff", 20.0, "") is True
    assert client.call("moveByVelocity", 0.0, 0.0, -1.0, 1.0, 0, STEADY, "") is True
    assert client.call("simGetVehiclePose", "")["position"]["z_val"] < -2.5
    raw, depth = client.call("simGetImages", [SCENE, DEPTH], "", False)
    assert len(raw["image_data_uint8"]) == 320 * 240 * 3
    assert len(depth["image_data_float"]) == 160 * 120
    assert raw["time_stamp"] == depth["time_stamp"]


def test_other_calls_are_answered_while_a_motion_runs_and_a_new_one_cancels_it(client: Client) -> None:
    assert client.call("takeoff", 20.0, "") is True
    first = client.send("moveByVelocity", 1.0, 0.0, 0.0, 30.0, 0, STEADY, "")
    assert client.call("ping") is True
    assert first not in client.answers
    second = client.send("hover", "")
    assert client.wait(first) is False
    assert client.wait(second) is True


def test_a_task_lives_on_when_its_client_is_gone(client: Client, server: Server) -> None:
    assert client.call("takeoff", 20.0, "") is True
    other = Client(server.port)
    other.send("moveByVelocity", 1.0, 0.0, 0.0, 2.0, 0, STEADY, "")
    other.call("ping")
    other.close()
    deadline = time.monotonic() + 60
    while server.simulation.position[0] < 1.0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.simulation.position[0] >= 1.0


def test_lockstep_advances_exactly_and_faster_than_real_time(client: Client, server: Server) -> None:
    client.call("simPause", True)
    assert client.call("simIsPaused") is True
    time.sleep(0.1)
    steps = server.simulation.steps
    begun = time.process_time()  # not the wall's: others may have the machine
    client.call("simContinueForTime", 10.0)
    assert server.simulation.steps - steps == 2000
    assert time.process_time() - begun < 10 / 3
    assert server.simulation.paused
    client.call("simPause", False)
    deadline = time.monotonic() + 10
    while server.simulation.steps - steps == 2000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.simulation.steps - steps > 2000


def test_lockstep_over_the_wire_is_repeatable() -> None:
    def path() -> np.ndarray:
        with Server(Simulation(load_world("field", 2)), port=0) as server:
            client = Client(server.port)
            client.call("simPause", True)
            client.call("reset")
            client.call("enableApiControl", True, "")
            client.call("armDisarm", True, "")
            begin = server.simulation.steps
            task = client.send("takeoff", 20.0, "")
            client.call("simContinueForTime", 6.0)
            assert client.wait(task) is True
            for _ in range(5):
                client.send("moveByVelocityBodyFrame", 2.0, 0.5, 0.0, 0.35, 0, STEADY, "")
                client.call("simContinueForTime", 0.2)
            rows = server.simulation.log.rows()[begin:]
            client.close()
            return rows[:, 1:]

    first, second = path(), path()
    assert first.shape == second.shape == (1400, 11)
    assert np.abs(first - second).max() <= 1e-9


def test_the_clock_keeps_to_the_wall(client: Client, server: Server) -> None:
    begun, simulated = time.monotonic(), server.simulation.time_s
    time.sleep(0.5)
    speed = (server.simulation.time_s - simulated) / (time.monotonic() - begun)
    assert 0.0 < speed < 4.4, "four times real time was asked for; a loaded machine may give less, never more"


@pytest.mark.parametrize(
    "garbage",
    [b"\xc1\xc1\xc1", b"GET / HTTP/1.1\r\n\r\n", msgpack.packb([0, 1]), msgpack.packb({"a": 1}),
     b"\xc0", msgpack.packb([7, 1, "ping", []]), msgpack.packb([0, 1, 5, []]), msgpack.packb([0, 1, "ping", "x"])],
)  # fmt: skip
def test_garbage_costs_only_its_own_connection(client: Client, server: Server, garbage: bytes) -> None:
    bad = socket.create_connection(("127.0.0.1", server.port), timeout=120)
    bad.sendall(garbage)
    assert bad.recv(100) == b""
    bad.close()
    assert client.call("ping") is True


def resident_mib() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc to know the memory used"
)
def test_a_client_that_does_not_read_costs_little_and_is_served_when_it_does(
    client: Client, server: Server
) -> None:
    """300 answers of 0.9 MB each."""
    idle = Client(server.port)
    before = resident_mib()
    numbers = [idle.send("simGetImages", [SCENE] * 4, "", False) for _ in range(300)]
    for _ in range(20):
        time.sleep(0.05)
        server.render_pool.submit(int).result()  # whatever was asked for before is drawn
    assert resident_mib() - before < 60
    assert client.call("ping") is True, "others are served"
    for number in numbers[:40]:
        assert len(idle.wait(number)) == 4
    idle.close()


def test_simpause_interrupts_simcontinuefortime(client: Client, server: Server) -> None:
    client.call("simPause", True)
    steps = server.simulation.steps
    number = client.send("simContinueForTime", 1e6)
    other = Client(server.port)
    while server.simulation.steps == steps:
        time.sleep(0.001)
    other.call("simPause", True)
    assert client.wait(number) is None
    steps = server.simulation.steps
    time.sleep(0.05)
    assert server.simulation.steps == steps
    other.close()


def test_a_request_in_pieces_and_a_client_that_leaves_in_the_middle(client: Client, server: Server) -> None:
    message = msgpack.packb([0, 9, "getMultirotorState", [""]])
    broken = socket.create_connection(("127.0.0.1", server.port), timeout=120)
    broken.sendall(message[:7])
    broken.close()
    for part in (message[:3], message[3:8], message[8:]):
        client.socket.sendall(part)
        time.sleep(0.01)
    assert client.wait(9)["landed_state"] == 0


def test_errors_come_back_as_errors_and_the_connection_lives(client: Client) -> None:
    with pytest.raises(RuntimeError, match="could not find function 'fly' with argument count 2"):
        client.call("fly", 1, 2)
    with pytest.raises(RuntimeError, match="camera 'nose' does not exist"):
        client.call("simGetImages", [{**SCENE, "camera_name": "nose"}], "", False)
    with pytest.raises(RuntimeError, match="seconds must be finite"):
        client.call("simContinueForTime", float("nan"))
    with pytest.raises(RuntimeError, match="vx must be finite"):
        client.call("moveByVelocity", float("nan"), 0.0, 0.0, 1.0, 0, STEADY, "")
    client.socket.sendall(msgpack.packb([2, "ping", []]))  # a notification is not answered
    assert client.call("ping") is True


def test_stop_ends_tasks_connections_and_threads() -> None:
    before = set(threading.enumerate())
    server = Server(Simulation(load_world("field", 1)), port=0)
    server.start()
    client = Client(server.port)
    number = client.send("moveByVelocity", 1.0, 0.0, 0.0, 60.0, 0, STEADY, "")
    client.call("ping")
    server.stop()
    with contextlib.suppress(ConnectionError):  # the answer may lose the race against the close
        assert client.wait(number) is False
    assert set(threading.enumerate()) <= before


def test_a_port_in_use_is_named_with_the_remedy(server: Server) -> None:
    with pytest.raises(ServerError, match=rf"port {server.port}.*another simulator.*--port"):
        Server(Simulation(load_world("field", 1)), port=server.port).start()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_the_physics_thread_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(simulation: Simulation) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Simulation, "_step", fault)
    assert (
        run(["--port", "0", "--renderer", "rays"], lambda timeout_s: time.sleep(timeout_s) is not None) == 1
    )
    assert "a thread of the simulator ended" in capsys.readouterr().err


def test_an_impossible_clock_speed_is_refused() -> None:
    with pytest.raises(ServerError, match=r"clock speed must be from 0\.01 to 100, is 0"):
        Server(Simulation(load_world("field", 1)), port=0, clock_speed=0)


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--scene", "moon"), 2, "unknown scene 'moon'"),
        (("--scene", "/nowhere/w.yaml"), 2, "cannot be read"),
        (("--set", "color=red"), 2, "'color' was given"),
        (("--settings", "/nowhere/settings.json"), 2, "cannot be read"),
        (("--clock-speed", "0"), 2, "--clock-speed must be from 0.01 to 100, is 0"),
        (("--port", "99999"), 2, "--port must be from 0 to 65535, is 99999"),
        (("--set", "colour"), 2, "--set colour: must be NAME=VALUE"),
        (("--seed", "one"), 2, "invalid int value: 'one'"),
    ],
)
def test_wrong_arguments_end_with_one_clear_line(
    arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: str | int | None
    try:
        ended = run(["--port", "0", *arguments], lambda timeout_s: True)
    except SystemExit as exit_:  # argparse's way
        ended = exit_.code
    assert ended == status
    assert message in capsys.readouterr().err


def test_port_in_use_on_the_command_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "airsim_sim", "--port", port, "--renderer", "rays"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_serves_records_and_ends_on_a_signal(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "airsim_sim", "--scene", "corridor", "--seed", "7", "--port", "0"]
    process = subprocess.Popen([*command, "--record", str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("airsim_sim: corridor seed 7 on 127.0.0.1:")
        client = Client(int(line.split("127.0.0.1:")[1].split()[0]))
        client.call("enableApiControl", True, "")
        client.call("armDisarm", True, "")
        takeoff = client.send("takeoff", 20.0, "")
        deadline = time.monotonic() + 200
        while not (folder / "chase_0001.jpg").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        assert takeoff
    finally:
        process.kill()
        process.wait()
    names = set(os.listdir(folder))
    assert {"map.jpg", "start_scene.jpg", "start_depth.jpg", "start_segmentation.jpg", "world.json"} <= names
    assert {"front_0001.jpg", "chase_0001.jpg", "flight.csv"} <= names


def test_the_simulator_does_not_import_ros() -> None:
    code = (
        "import sys, airsim_sim.__main__, airsim_sim.server\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('rclpy', 'nav_msgs_ext', 'torch')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout.strip() == "[]"


def started(*arguments: str, **options: Any) -> tuple[subprocess.Popen[str], int]:
    """A simulator of its own and the port it serves."""
    command = [sys.executable, "-m", "airsim_sim", "--port", "0", "--renderer", "rays", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    return process, int(process.stdout.readline().split("127.0.0.1:")[1].split()[0])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_many_signals_at_once_end_it_cleanly(name: str) -> None:
    process, _ = started()
    try:
        for _ in range(20):
            process.send_signal(getattr(signal, name))
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


def test_a_signal_during_the_imports_ends_it_without_a_traceback() -> None:
    code = (
        "import os, signal, sys\n"
        "from airsim_sim.__main__ import main\n"
        "import airsim_sim\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mujoco': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv[1:] = ['--port', '0', '--renderer', 'rays']\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'airsim_sim', '--port', '0', '--renderer', 'rays',"
        " '--end-with-parent'])\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().split("127.0.0.1:")[1].split()[0])
        orphan = Client(port)
        assert orphan.call("ping") is True
        parent.kill()
        orphan.socket.settimeout(20)
        assert orphan.socket.recv(1) == b"", "the connection is closed by the simulator's end"
    finally:
        parent.kill()
        parent.wait()


def test_broken_settings_and_what_is_ignored_are_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"ClockSpeed": "fast"}')
    command = [sys.executable, "-m", "airsim_sim", "--settings", str(path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr == f"airsim_sim: {path}, field ClockSpeed: must be a number, is 'fast'\n"
    path.write_text('{"ViewMode": "Fpv", "Vehicles": {"A": {}, "B": {}}}')
    process, port = started("--settings", str(path))
    try:
        assert Client(port).call("listVehicles") == ["A"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert errors == f"airsim_sim: {path}: ignored: ViewMode, Vehicles.B (one drone is simulated)\n"
    finally:
        process.kill()
        process.wait()
