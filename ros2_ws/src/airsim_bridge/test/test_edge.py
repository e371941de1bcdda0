"""The edge in an environment that has no ROS: it imports, flies by keyboard, and needs nothing that only POSIX has."""

import ast
import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement
from rosbags.rosbag2 import Reader

import airsim_bridge
import nav_common
from airsim_bridge import edge, record_flight
from airsim_bridge.bridge import CameraSettings
from airsim_bridge.keyboard import HELD_S, KeyboardPilot
from airsim_bridge.testing.graph import Simulator
from airsim_bridge.testing.lockstep import Lockstep
from airsim_bridge.wire import Wire
from nav_common import bag_writer, cdr, conversions, topics
from nav_common.bag_writer import BagWriteError
from nav_common.clock import VirtualClock
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import GateMode, Odometry, Twist, VelocityCommand, WatchEvent


def folder_of(package):
    return Path(package.__file__).resolve().parent


def declared(package):
    """What the setup.py of a package says that it needs."""
    text = (folder_of(package).parent / "setup.py").read_text(encoding="utf-8")
    given = next(
        k for k in ast.walk(ast.parse(text)) if isinstance(k, ast.keyword) and k.arg == "install_requires"
    )
    return ast.literal_eval(given.value)


# What an edge machine installs: nothing beside what the packages declare.
REQUIREMENTS = {*declared(nav_common), *declared(airsim_bridge)} - {"nav_common"}
ROS_MODULES = {"airsim_bridge": {"node.py", "parameters.py"}, "nav_common": {"ros.py", "testing.py"}}
OF_EXTRAS = {"http_pilot.py"}
"""Modules that need one of setup.py's extras."""
POSIX_ONLY = {"fcntl", "termios", "tty", "pty", "resource", "pwd", "grp", "posix", "syslog"}
POSIX_CALLS = {
    "fork",
    "kill",
    "killpg",
    "setsid",
    "getuid",
    "sched_setaffinity",
    "nice",
    "mkfifo",
    "SIGKILL",
    "pause",
}


def installed_with(names):
    """What a distribution and all that it needs put into site-packages."""
    found, waiting = set(), list(names)
    seen = set()
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        found |= {path.parts[0] for path in distribution.files or () if path.parts[0] != ".."}
        requirements = [Requirement(text) for text in distribution.requires or ()]
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def without_ros(tmp_path_factory):
    """An environment for a Python that sees its own library, the edge's few dependencies, and our two packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    site = Path(np.__file__).parents[1]
    for name in installed_with(REQUIREMENTS):
        (folder / name).symlink_to(site / name)
    ours = [folder_of(package).parent for package in (airsim_bridge, nav_common)]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, [folder, *ours])), "PYTHONUNBUFFERED": "1"}
    environment["HOME"] = str(folder)
    return environment


def python(environment, *arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-S", *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def test_all_but_the_node_imports_without_ros(without_ros):
    names = [
        f"{package}.{path.stem}"
        for package, folder in (("nav_common", nav_common), ("airsim_bridge", airsim_bridge))
        for path in folder_of(folder).glob("*.py")
        if path.name not in ROS_MODULES[package] | {"__init__.py"} | OF_EXTRAS
    ]
    script = f"import importlib; [importlib.import_module(n) for n in {names}]; import rclpy"
    output, _ = python(without_ros, "-c", script).communicate(timeout=60.0)
    assert output.strip().endswith("No module named 'rclpy'"), output


@pytest.mark.parametrize("package", [airsim_bridge, nav_common], ids=lambda p: p.__name__)
def test_nothing_in_them_is_posix_only(package):
    for path in folder_of(package).glob("*.py"):
        if path.name in ROS_MODULES[package.__name__]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & POSIX_ONLY, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in POSIX_ONLY, path
            elif isinstance(node, ast.Attribute):
                assert node.attr not in POSIX_CALLS, f"{path}: {node.attr}"


def test_without_ros_it_connects_holds_and_obeys_the_keyboard(without_ros):
    simulator = Simulator()
    process = python(without_ros, "-m", "airsim_bridge.edge", "--port", str(simulator.port))
    shown: list[str] = []
    threading.Thread(
        target=lambda: shown.extend(iter(lambda: process.stdout.read(1), "")), daemon=True
    ).start()

    def press(keys):
        process.stdin.write(keys)
        process.stdin.flush()

    def await_words(words, key=""):
        """Until it shows them; `key` is pressed again now and then: a starved machine interrupts a take-off."""
        end = time.monotonic() + 120.0
        while words not in "".join(shown):
            assert time.monotonic() < end, f"{words!r} not in {''.join(shown)[-1000:]!r}"
            press(key)
            time.sleep(2.0 if key else 0.05)

    try:
        await_words("LANDED, HOLD")
        await_words("took off to 2 m", "t")
        assert simulator.simulation.position[2] > 1.5
        press("m")
        await_words("manual control is on")
        end = time.monotonic() + 30.0
        while simulator.simulation.position[0] < 1.5 and time.monotonic() < end:
            press("w")
            time.sleep(0.1)
        assert simulator.simulation.position[0] >= 1.5
        last = simulator.time_s
        time.sleep(HELD_S + 0.5)
        assert any(not any(velocity) for _, velocity in simulator.velocities_since(last))
        press("\x1b")
        assert process.wait(20.0) == 0
        await_words("stopped")
    finally:
        process.kill()
        process.wait()
        simulator.stop()


def test_it_says_what_is_wrong_while_nobody_answers(without_ros):
    process = python(without_ros, "-m", "airsim_bridge.edge", "--port", "1")
    time.sleep(3.0)
    process.stdin.write("\x1b")
    output, _ = process.communicate(timeout=20.0)
    assert process.returncode == 0, output
    assert "not connected: no AirSim at 127.0.0.1:1" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-rate", "-1"], "--image-rate is -1.0, must be 0 to 60"),
        (["--depth-rate", "0"], "the reflex needs depth: give --no-reflex too"),
        (["--port", "0"], "port is 0, must be 1 to 65535"),
        (["--max-speed", "nan"], "max_speed is nan, must be positive and finite"),
    ],
)
def test_a_wrong_option_is_named(arguments, words, capsys):
    assert edge.main(arguments) == 2
    assert words in capsys.readouterr().err


class TestKeyboard:
    def fly(self, flight, pilot, key, seconds):
        for k in range(round(seconds / COMMAND_PERIOD_S)):
            if k % 2 == 0:
                pilot.press(key)
            pilot.tick()
            flight.clock.sleep(COMMAND_PERIOD_S)

    def test_keys_move_it_while_held_and_only_with_manual_on(self):
        flight = Lockstep()
        flight.place(0.0, 0.0, 5.0)
        said: list[str] = []
        pilot = KeyboardPilot(flight.bridge, flight.clock, said.append)
        self.fly(flight, pilot, "w", 1.0)
        assert "manual control is off" in said[0]
        assert flight.speed < 0.05
        pilot.press("m")
        self.fly(flight, pilot, "w", 2.0)
        assert flight.simulation.velocity[0] > 1.5
        for _ in range(60):  # let go
            pilot.tick()
            flight.clock.sleep(COMMAND_PERIOD_S)
        assert flight.speed < 0.05
        self.fly(flight, pilot, "q", 1.0)
        assert flight.simulation.yaw_deg > 10.0

    def test_x_is_the_emergency_stop_and_its_reset(self):
        flight = Lockstep()
        pilot = KeyboardPilot(flight.bridge, flight.clock, print)
        pilot.press("x")
        assert flight.bridge.gate.mode is GateMode.EMERGENCY
        pilot.press("x")
        assert flight.bridge.gate.mode is GateMode.HOLD

    @pytest.mark.parametrize("key", ["\x1b", "\x03"])
    def test_escape_ends(self, key):
        flight = Lockstep()
        pilot = KeyboardPilot(flight.bridge, flight.clock, print)
        pilot.press("z")
        assert not pilot.ended
        pilot.press(key)
        assert pilot.ended


class Loopback:
    """A transport that keeps what is published and hands in what a test sends."""

    def __init__(self):
        self.sent, self.callbacks = {}, {}

    def publish(self, topic, data):
        self.sent[topic.resolve()] = (topic.type, data)

    def subscribe(self, topic, callback):
        self.callbacks[topic.name] = callback


class WiredFlight(Lockstep):
    transport: Loopback
    log: list[str]
    wire: Wire


class TestWire:
    @pytest.fixture
    def flight(self):
        transport = Loopback()
        log: list[str] = []
        wire = Wire(transport, [CameraSettings()], VirtualClock(), log.append)
        flight = WiredFlight(image_rate_hz=10.0, depth_rate_hz=5.0, outputs=wire, frame_prefix="d1/")
        flight.transport, flight.log, flight.wire = transport, log, wire
        wire.connect(flight.bridge)
        flight.clock.sleep(0.5)
        return flight

    def message(self, flight, topic):
        type_name, data = flight.transport.sent[topic.resolve()]
        return cdr.unpack(type_name, data)

    def test_what_the_bridge_sees_goes_out_as_messages(self, flight):
        image, info = (self.message(flight, t) for t in (topics.FRONT_IMAGE, topics.FRONT_INFO))
        assert image.header == info.header
        assert image.header.frame_id == "d1/front_optical"
        assert (info.width, info.height, round(info.k[0])) == (320, 240, 160)
        odometry = self.message(flight, topics.ODOM)
        assert (odometry.header.frame_id, odometry.child_frame_id) == ("d1/odom", "d1/base_link")
        assert self.message(flight, topics.STATE).epoch == flight.bridge.gate.epoch
        depth = self.message(flight, topics.FRONT_DEPTH)
        assert len(depth.data) == depth.height * depth.step

    def test_messages_come_in_to_the_gate(self, flight):
        flight.place(0.0, 0.0, 5.0)
        odometry = conversions.decode(Odometry, flight.transport.sent[topics.ODOM.resolve()][1])
        command = VelocityCommand(odometry.stamp_s, flight.bridge.gate.epoch, 1, Twist.body(1.0))
        self.send(flight, topics.COMMAND, conversions.encode(command))
        assert flight.bridge.gate.mode is GateMode.ACTIVE
        self.send_bool(flight, topics.EMERGENCY_STOP, True)
        assert flight.bridge.gate.mode is GateMode.EMERGENCY
        self.send_bool(flight, topics.EMERGENCY_STOP, False)
        self.send_bool(flight, topics.LINK_UP, False)
        assert "link lost" in flight.bridge.gate.fault

    def test_a_watch_that_comes_true_stops_the_motion_if_it_is_marked_so(self, flight):
        gate = flight.bridge.gate

        def move():
            flight.place(0.0, 0.0, 5.0)
            odometry = conversions.decode(Odometry, flight.transport.sent[topics.ODOM.resolve()][1])
            moving = VelocityCommand(odometry.stamp_s, gate.epoch, 1, Twist.body(1.0))
            self.send(flight, topics.COMMAND, conversions.encode(moving))
            assert gate.mode is GateMode.ACTIVE

        move()
        event = WatchEvent(1.0, "me", "a person ahead?", holds=True)
        self.send(flight, topics.WATCH_EVENT, conversions.encode(event))
        over = replace(event, holds=False, hover=True)
        self.send(flight, topics.WATCH_EVENT, conversions.encode(over))
        assert gate.mode is GateMode.ACTIVE
        epoch = gate.epoch
        self.send(flight, topics.WATCH_EVENT, conversions.encode(replace(event, hover=True)))
        assert gate.mode is not GateMode.ACTIVE
        assert gate.epoch == epoch + 1
        assert gate.reason == "watch: a person ahead?"
        move()  # a decision that has seen the new epoch may move again

    def test_cmd_vel_comes_in_to_the_gate(self, flight):
        flight.place(0.0, 0.0, 5.0)
        flight.bridge.arm_cmd_vel(True)
        stamp = self.message(flight, topics.ODOM).header.stamp
        message = cdr.make(topics.CMD_VEL.type)
        message.header.stamp = stamp
        self.send(flight, topics.CMD_VEL, cdr.pack(topics.CMD_VEL.type, message))
        assert flight.bridge.gate.mode is GateMode.ACTIVE

    def send(self, flight, topic, payload):
        flight.transport.callbacks[topic.name](payload)

    def send_bool(self, flight, topic, value):
        self.send(flight, topic, cdr.pack(topic.type, cdr.make(topic.type, data=value)))

    @pytest.mark.parametrize("data", [b"", b"\0\1\0\0", b"garbage", b"\0\1\0\0" + b"\xff" * 10])
    def test_a_broken_message_is_counted_and_changes_nothing(self, flight, data):
        mode, epoch = flight.bridge.gate.mode, flight.bridge.gate.epoch
        flight.transport.callbacks["command"](data)
        flight.transport.callbacks["command"](data)
        assert flight.wire.broken_messages == 2
        assert sum("broken message" in text for text in flight.log) == 1  # once in a while is enough
        assert "broken message on command" in flight.log[-1]
        assert (flight.bridge.gate.mode, flight.bridge.gate.epoch) == (mode, epoch)


class TestRecordFlight:
    def test_a_frame_each_half_second_as_file_table_and_bag(self, tmp_path):
        folder = tmp_path / "flight1"
        with record_flight.recording(folder, 0.5, 5.0) as recorder:
            flight = Lockstep(image_rate_hz=10.0, outputs=recorder)
            flight.clock.sleep(1.0)
            assert recorder.kept == 0  # on the ground there is no flight yet
            flight.place(0.0, 0.0, 3.0)
            flight.clock.sleep(8.0)
            assert recorder.kept == recorder.frames == 10
        pictures = sorted(folder.glob("*.jpg"))
        assert [p.name for p in pictures] == [f"frame_{k:06d}.jpg" for k in range(10)]
        first_picture = cv2.imread(str(pictures[0]))
        assert first_picture is not None
        assert first_picture.shape == (240, 320, 3)
        rows = (folder / "frames.csv").read_text().split()
        assert len(rows) == 11
        times = [float(row.split(",")[1]) for row in rows[1:]]
        assert times[-1] - times[0] == pytest.approx(4.5, abs=0.2)
        with Reader(folder / "flight") as bag:
            counts = {c.topic: c.msgcount for c in bag.connections}
            first = next(iter(bag.messages()))
            moves = [stamp / 1e9 for c, stamp, _ in bag.messages() if c.topic == "/drone/odom"]
        odometry = counts.pop("/drone/odom")
        assert counts == {
            "/drone/camera/front/image/compressed": 10,
            "/drone/camera/front/camera_info": 10,
        }
        assert odometry == len(moves) > 4.0 * 10  # as it comes, so that the recording can be judged
        assert moves[0] == pytest.approx(times[0], abs=0.1)
        assert moves[-1] == pytest.approx(times[-1], abs=0.1)
        assert first[1] == pytest.approx(times[0] * 1e9, abs=1e4)

    def test_a_full_disk_ends_the_recording_and_not_the_flight(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bag_writer, "CHECKPOINT_BYTES", 1)  # in lock-step no second passes
        with record_flight.recording(tmp_path / "flight", 0.5, 50.0) as recorder:
            flight = Lockstep(image_rate_hz=10.0, outputs=recorder)
            flight.place(0.0, 0.0, 3.0)
            flight.clock.sleep(3.0)
            before, epoch = recorder.kept, flight.bridge.gate.epoch

            def refuse(self):
                raise BagWriteError("disk full")

            monkeypatch.setattr(bag_writer.BagWriter, "checkpoint", refuse)
            flight.stream(2.0, Twist.body(1.0))
            assert flight.bridge.gate.mode is GateMode.ACTIVE
            assert flight.bridge.gate.epoch == epoch
            assert isinstance(recorder.error, BagWriteError)
            assert [text for text in flight.seen.logged if "disk full" in text]
            monkeypatch.undo()
        with Reader(tmp_path / "flight/flight") as bag:
            assert {c.topic: c.msgcount for c in bag.connections}["/drone/odom"] > 30 * before / 3

    def test_a_folder_with_a_recording_is_left_alone(self, tmp_path, capsys):
        with record_flight.recording(tmp_path, 0.5, 5.0):
            pass
        assert record_flight.main([str(tmp_path)]) == 2
        assert "holds a recording already" in capsys.readouterr().err

    @pytest.mark.parametrize(("interval", "duration"), [(0.0, 5.0), (-1.0, 5.0), (1.0, 0.5)])
    def test_times_that_make_no_sense(self, tmp_path, interval, duration, capsys):
        arguments = [str(tmp_path), "--interval", str(interval), "--duration", str(duration)]
        assert record_flight.main(arguments) == 2
        assert "must be 0 < interval <= duration" in capsys.readouterr().err

    def test_one_that_never_connected_says_so(self, tmp_path):
        process = recorder_process(tmp_path / "flight", port=1)
        time.sleep(2.0)
        output, _ = process.communicate("\x1b", timeout=30.0)
        assert process.returncode == 1, output
        assert "never connected: no AirSim at 127.0.0.1:1" in output

    def test_one_that_never_flew_says_so(self, tmp_path):
        simulator = Simulator()
        process = recorder_process(tmp_path / "flight", simulator.port)
        try:
            wait_for(process, "LANDED, HOLD")
            output, _ = process.communicate("\x1b", timeout=30.0)
        finally:
            process.kill()
            simulator.stop()
        assert process.returncode == 1, output
        assert "never in the air" in output

    @pytest.mark.parametrize("ending", ["SIGHUP", "SIGKILL"])
    def test_a_closed_console_ends_it_properly_and_a_kill_loses_a_second(self, tmp_path, ending):
        folder, simulator = tmp_path / "flight", Simulator()
        simulator.simulation.call("enableApiControl", True, "")
        simulator.simulation.call("armDisarm", True, "")
        simulator.simulation.set_pose((0.0, 0.0, 3.0))
        process = recorder_process(folder, simulator.port)
        try:
            end = time.monotonic() + 60.0
            while len(list(folder.glob("*.jpg"))) < 8:
                assert time.monotonic() < end
                time.sleep(0.05)
            process.send_signal(getattr(signal, ending))
            process.communicate(timeout=30.0)
        finally:
            process.kill()
            simulator.stop()
        assert process.returncode == (0 if ending == "SIGHUP" else -signal.SIGKILL)
        kept = len(list(folder.glob("*.jpg")))
        with Reader(folder / "flight") as bag:
            pictures = {c.topic: c.msgcount for c in bag.connections}["/drone/camera/front/image/compressed"]
            assert len(list(bag.messages())) > pictures
        assert pictures >= kept - (0 if ending == "SIGHUP" else 4)  # of 2 a second

    def test_a_terminal_that_is_gone_is_no_error(self, tmp_path):
        """Its window closed: SIGHUP, and every later write to it fails."""
        folder, simulator = tmp_path / "flight", Simulator()
        simulator.simulation.call("enableApiControl", True, "")
        simulator.simulation.call("armDisarm", True, "")
        simulator.simulation.set_pose((0.0, 0.0, 3.0))
        command = [sys.executable, "-m", "airsim_bridge.record_flight", str(folder)]
        process, terminal = pty.fork()
        if process == 0:
            os.execv(command[0], [*command, "--port", str(simulator.port)])
        reader = threading.Thread(target=read_all, args=(terminal,), daemon=True)
        reader.start()
        try:
            end = time.monotonic() + 60.0
            while len(list(folder.glob("*.jpg"))) < 3:
                assert time.monotonic() < end
                time.sleep(0.05)
            os.kill(process, signal.SIGHUP)
            os.close(terminal)
            _, status = os.waitpid(process, 0)
        finally:
            simulator.stop()
        assert os.waitstatus_to_exitcode(status) == 0


def read_all(terminal):
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


def recorder_process(folder, port):
    return subprocess.Popen(
        [sys.executable, "-m", "airsim_bridge.record_flight", str(folder), "--port", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, words):
    shown = ""
    while words not in shown:
        shown += (character := process.stdout.read(1))
        assert character, shown


def test_two_signals_at_once_end_it_each_time():
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-m", "airsim_bridge.edge", "--port", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for(process, "not connected")
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=20.0)
        finally:
            process.kill()
        assert process.returncode == 0
        assert "stopped" in output
