"""Checked parameters and the nodes' common main, with real rclpy."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from nav_common.testing import unique_domain_id

pytest.importorskip("rclpy")

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from nav_common import topics
from nav_common.diagnostics import Health, Level
from nav_common.process import SWITCH_INTERVAL_S
from nav_common.ros import Spinner, publish_diagnostics, qos_profile, subscription
from nav_common.topics import Topic

NODE = textwrap.dedent(
    """
    import sys
    from rclpy.node import Node
    from nav_common import ros

    class Probe(Node):
        def __init__(self):
            super().__init__("probe")
            rate = ros.declare(self, "rate_hz", 10.0, "pictures a second", minimum=0.5, maximum=60.0)
            count = ros.declare(self, "count", 3, "things", minimum=1, maximum=9)
            mode = ros.declare(self, "mode", "fast", "how", choices=("fast", "slow"))
            print("started", rate, count, mode, flush=True)

        def destroy_node(self):
            print("at rest", flush=True)
            return super().destroy_node()

    sys.exit(ros.run(Probe, threads=2))
    """
)


def start(*parameters, program=NODE):
    arguments = [piece for p in parameters for piece in ("-p", p)]
    return subprocess.Popen(
        [sys.executable, "-c", program, "--ros-args", *arguments],
        env=os.environ
        | {"ROS_DOMAIN_ID": str(unique_domain_id()), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("rate_hz:=200.0", ["rate_hz", "200.0", "0.5 to 60.0", "pictures a second"]),
        ("rate_hz:=fast", ["rate_hz", "fast", "float"]),
        ("count:=0", ["count", "0", "1 to 9"]),
        ("mode:=medium", ["mode", "medium", "fast, slow"]),
    ],
)
def test_a_wrong_parameter_stops_the_node_and_is_named(parameter, words):
    process = start(parameter)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2, (out, err)
    for word in words:
        assert word in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("probe: [", ["params file", "parameters.yaml", "line 1"]),
        ("probe:\n  rate_hz: 3.0", ["parameters.yaml", "ros__parameters at line 2"]),
        ("probe:\n  ros__parameters:\n    mode:", ["parameters.yaml", "No value at line 3"]),
        ("probe:\n  ros__parameters:\n    mode: []", ["parameter mode is empty, must be str"]),
        (
            "probe:\n  ros__parameters:\n    mod: fast",
            ["has no parameter mod (given: fast)", "parameters.yaml"],
        ),
        (
            "prope:\n  ros__parameters:\n    mode: slow",
            ["no node is called prope", "did you mean probe", "parameters.yaml"],
        ),
        (
            "probe:\n  ros__parameters:\n    rate_hz: 99.0",
            ["rate_hz is 99.0", "0.5 to 60.0", "parameters.yaml"],
        ),
    ],
)
def test_a_broken_parameter_file_stops_the_node_with_one_line(tmp_path, content, words):
    path = tmp_path / "parameters.yaml"
    path.write_text(content + "\n")
    process = subprocess.run(
        [sys.executable, "-c", NODE, "--ros-args", "--params-file", str(path)],
        env=os.environ | {"ROS_DOMAIN_ID": str(unique_domain_id())},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    line = process.stderr.splitlines()[-1]  # rcl may have logged one of its own before
    assert line.startswith("[FATAL] ")
    for word in words:
        assert word in line


def test_a_parameter_file_may_be_another_node_s(tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text("another:\n  ros__parameters:\n    mode: slow\n/**:\n  ros__parameters:\n    count: 4\n")
    program = f"import sys; sys.argv += ['--params-file', {str(path)!r}]\n{NODE}"
    process = start(program=program)
    assert process.stdout.readline().split() == ["started", "10.0", "4", "fast"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_threads_of_a_node_hand_the_interpreter_on_soon():
    program = NODE.replace("(Probe, ", "(lambda: print(sys.getswitchinterval(), flush=True) or Probe(), ")
    process = start(program=program)
    assert float(process.stdout.readline()) == pytest.approx(SWITCH_INTERVAL_S)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_node_through_destroy_node(number):
    process = start("rate_hz:=20.0")
    assert process.stdout.readline().split() == ["started", "20.0", "3", "fast"]
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "at rest" in out


@pytest.mark.parametrize(
    "topic", [v for v in vars(topics).values() if isinstance(v, Topic)], ids=lambda t: t.name
)
def test_a_topics_publisher_and_subscriber_match(topic):
    offered, demanded = qos_profile(topic.qos), qos_profile(topic.qos, subscriber=True)
    assert qos_check_compatible(offered, demanded)[0] == QoSCompatibility.OK


@pytest.mark.parametrize("topic", [topics.EMERGENCY_STOP, topics.LINK_UP], ids=lambda t: t.name)
def test_anybody_with_default_qos_can_send_it(topic):
    assert qos_check_compatible(QoSProfile(depth=10), qos_profile(topic.qos, subscriber=True))[0] == (
        QoSCompatibility.OK
    )


def test_an_exception_in_a_callback_ends_the_node_with_status_1():
    program = NODE.replace('print("started"', 'self.create_timer(0.01, lambda: 1 / 0); print("started"')
    process = start(program=program)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert "at rest" in out
    assert "ZeroDivisionError" in err


def test_double_signals_end_a_node():
    """As a terminal sends them under `ros2 launch`: to the process and again by launch."""
    for _ in range(5):
        process = start()
        assert process.stdout.readline().startswith("started")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert "at rest" in out


@pytest.fixture
def context() -> Iterator[rclpy.Context]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=unique_domain_id())
    yield context
    rclpy.try_shutdown(context=context)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_spinner_is_stopped_while_it_goes_to_wait(
    threads: int, context: rclpy.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, going = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda failure: failed.append(failure.exc_value))
    real = Executor.get_nodes

    def slow(executor: Executor) -> list[Node]:
        going.set()
        time.sleep(0.1)  # a busy machine: it is stopped meanwhile
        return real(executor)

    node = rclpy.create_node("busy", context=context)
    node.create_timer(0.001, lambda: None)
    spinner = Spinner(node, threads=threads, name="spinner")
    monkeypatch.setattr(Executor, "get_nodes", slow)
    assert going.wait(10.0)
    spinner.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "spinner"]
    assert failed == []
    node.destroy_node()


def test_a_spinner_that_waits_for_work_is_stopped_at_once(
    context: rclpy.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This node has none: the first wait lasts until the stop."""
    waiting, real = threading.Event(), Executor.get_nodes

    def get_nodes(executor: Executor) -> list[Node]:
        waiting.set()
        return real(executor)

    monkeypatch.setattr(Executor, "get_nodes", get_nodes)
    node = rclpy.create_node("idle", context=context, start_parameter_services=False, enable_rosout=False)
    spinner = Spinner(node, name="spinner")
    assert waiting.wait(10.0)
    spinner.stop(timeout_s=0.5)
    assert not [thread for thread in threading.enumerate() if thread.name == "spinner"]


def test_a_spinner_is_stopped_after_its_context(context: rclpy.Context) -> None:
    spinner = Spinner(rclpy.create_node("ended", context=context), name="spinner")
    rclpy.try_shutdown(context=context)
    spinner.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "spinner"]


def test_health_is_published_under_the_nodes_name_with_its_figures(context):
    node = rclpy.create_node("probe", context=context)
    received = []
    subscription(node, topics.DIAGNOSTICS, "/drone", received.append)
    publish_diagnostics(node, "camera 7", lambda: Health(Level.WARN, "no pictures", {"frames": 3}))
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    end = time.monotonic() + 20.0
    while not received and time.monotonic() < end:
        executor.spin_once(timeout_sec=1.0)
    node.destroy_node()
    (status,) = received[0].status
    assert (status.name, status.level, status.message) == ("probe", DiagnosticStatus.WARN, "no pictures")
    assert status.hardware_id == "camera 7"
    assert [(pair.key, pair.value) for pair in status.values] == [("frames", "3")]
