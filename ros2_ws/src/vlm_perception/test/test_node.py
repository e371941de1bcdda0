"""The perception node as a process, over real DDS: pictures and odometry in, calls and answers out."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
import torch
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Odometry
from nav_msgs_ext.action import Generate
from nav_msgs_ext.msg import EngineStatus, WatchEvent
from nav_msgs_ext.srv import Ask, Prime, Recall, Watch
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.parameter import Parameter
from safetensors.torch import load_file, save_file
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import Trigger

from nav_common import stamps, topics
from nav_common.clock import WallClock
from nav_common.ros import Spinner, publisher, subscription, to_time
from nav_common.testing import INTERRUPTIBLE_SLEEP, unique_domain_id
from vlm_perception.node import VlmPerception
from vlm_perception.request_queue import MAX_QUEUED
from vlm_perception.serving_form import ServingForm
from vlm_perception.stream import Stream
from vlm_perception.testing.drone_tools import DRONE_TOOLS

PROMPT = "You fly a drone."
TOOLS = json.dumps(DRONE_TOOLS)
NAMESPACE = "/test_drone"
FORM = ServingForm(
    system_prompt=PROMPT,
    tools=DRONE_TOOLS,
    tag="",
    width=112,
    height=84,
    frame_interval_s=0.2,
    max_cache_tokens=1800,
    max_new_tokens=24,
)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """What `condition` gives once it is true. Polls, as events come from another process."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.005)
    return value


class Client(Node):
    """The other end of everything that the node offers."""

    def __init__(self, jpeg: Callable[[int], bytes], log: Path) -> None:
        super().__init__("client")
        self.log = log
        self.wall = WallClock()
        self.pictures = [jpeg(i) for i in range(16)]
        self.sent = 0
        self.statuses: list[EngineStatus] = []
        self.image = publisher(self, topics.FRONT_IMAGE, NAMESPACE)
        self.odometry = publisher(self, topics.ODOM, NAMESPACE)
        subscription(self, topics.ENGINE_STATUS, NAMESPACE, self.statuses.append)
        self.prime_client = self.create_client(Prime, topics.PRIME_SERVICE)
        self.ask_client = self.create_client(Ask, topics.ASK_SERVICE)
        self.reset_client = self.create_client(Trigger, topics.RESET_MEMORY_SERVICE)
        self.generate_client = ActionClient(self, Generate, topics.GENERATE_ACTION)
        self.parameters_client = self.create_client(SetParameters, "/vlm_perception/set_parameters")
        self.watch_client = self.create_client(Watch, topics.WATCH_SERVICE)
        self.watch_events: list[WatchEvent] = []
        subscription(self, topics.WATCH_EVENT, NAMESPACE, self.watch_events.append)
        self.health: list[DiagnosticStatus] = []
        subscription(self, topics.DIAGNOSTICS, NAMESPACE, lambda message: self.health.extend(message.status))
        self.position = 0.0
        self.hovering = threading.Event()
        self.camera_on = threading.Event()
        self.create_timer(0.1, self._camera)

    def _camera(self) -> None:
        if self.camera_on.is_set():
            now = self.wall.now()
            pose = Odometry()
            pose.header.stamp = to_time(now)
            if not self.hovering.is_set():
                self.position += 1.0  # flying: every frame is history
            pose.pose.pose.position.x = self.position
            pose.pose.pose.orientation.w = 1.0
            self.odometry.publish(pose)
            self.picture(self.pictures[self.sent % len(self.pictures)], now)

    def picture(self, data: bytes, stamp: float) -> None:
        message = CompressedImage(format="jpeg", data=data)
        message.header.stamp = to_time(stamp)
        self.image.publish(message)
        self.sent += 1

    @property
    def status(self) -> EngineStatus:
        return self.statuses[-1] if self.statuses else EngineStatus()

    def call(self, client: Any, request: Any) -> Any:
        future = client.call_async(request)
        wait_for(future.done, f"an answer of {client.srv_name}")
        return future.result()

    def prime(self, prompt: str = PROMPT, tools: str = TOOLS) -> Any:
        return self.call(self.prime_client, Prime.Request(system_prompt=prompt, tools=tools))

    def send_goal(self, feedback: Callable[[Any], None] | None = None, **fields: Any) -> Any:
        """The handle of an accepted Generate goal."""
        goal = Generate.Goal(**{"instruction": "fly to the red beacon", "deadline_s": 20.0, **fields})
        future = self.generate_client.send_goal_async(goal, feedback_callback=feedback)
        wait_for(future.done, "acceptance of a goal")
        assert future.result().accepted
        return future.result()

    def result_of(self, handle: Any) -> Any:
        future = handle.get_result_async()
        wait_for(future.done, "the result of a goal")
        return future.result()

    def generate(self, **fields: Any) -> Any:
        return self.result_of(self.send_goal(**fields))


@pytest.fixture(scope="module")
def ros() -> Iterator[int]:
    domain = unique_domain_id()
    before = {name: os.environ.get(name) for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")}
    os.environ.update(ROS_DOMAIN_ID=str(domain), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    rclpy.init(domain_id=domain)
    yield domain
    rclpy.try_shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def model_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a serving form beside it."""
    folder = tmp_path_factory.mktemp("pilot")
    for file in tiny_folder.iterdir():
        (folder / file.name).symlink_to(file)
    FORM.save(folder)
    return folder


def node_command(model: Path | str, *parameters: str) -> list[str]:
    given = [f"model:={model}", f"vehicle_namespace:={NAMESPACE}", *parameters]
    arguments = [part for parameter in given for part in ("-p", parameter)]
    return [sys.executable, "-m", "vlm_perception.node", "--ros-args", *arguments]


@pytest.fixture(scope="module")
def client(
    ros: int, model_folder: Path, jpeg: Callable[[int], bytes], tmp_path_factory: Any
) -> Iterator[Client]:
    log = tmp_path_factory.mktemp("logs") / "node.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(node_command(model_folder), stdout=output, stderr=subprocess.STDOUT)
    client = Client(jpeg, log)
    spinner = Spinner(client, threads=4, name="test-executor")
    try:
        wait_for(lambda: client.statuses or process.poll() is not None, "the node's first status", 180.0)
        wait_for(client.generate_client.server_is_ready, "the action server")
        wait_for(lambda: client.image.get_subscription_count(), "the subscription to the pictures")
        yield client
        assert process.poll() is None, "the node died"
        # It must end in good order also while somebody waits.
        client.send_goal(prompt_id=client.prime().prompt_id, earliest_frame=to_time(client.wall.now() + 1e5))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 0  # what launch gives a process before SIGTERM
        assert "Traceback" not in log.read_text()
    except BaseException:
        print(log.read_text()[-5000:])
        raise
    finally:
        process.kill()
        process.wait()
        spinner.stop()
        client.destroy_node()


@pytest.fixture
def flying(client: Client) -> Iterator[Client]:
    """Primed, an empty memory, the camera running."""
    assert client.prime().success
    assert client.call(client.reset_client, Trigger.Request()).success
    client.camera_on.set()
    yield client
    client.camera_on.clear()


def test_before_priming_no_frame_enters_and_questions_and_goals_say_so(client: Client) -> None:
    client.camera_on.set()
    wait_for(lambda: client.status.frames_received >= 5, "frames")
    client.camera_on.clear()
    assert client.status.cached_tokens == 0
    answer = client.call(client.ask_client, Ask.Request(question="which?", choices=["left", "right"]))
    assert not answer.success
    assert "Prime" in answer.message
    result = client.generate(prompt_id="none")
    assert result.status == GoalStatus.STATUS_ABORTED
    assert result.result.status == Generate.Result.STATUS_UNKNOWN_PROMPT
    primed = client.prime()
    assert primed.success
    wait_for(lambda: client.status.chunks_appended > 0, "the ring fed to the stream")


def test_a_decision_rests_on_a_frame_past_the_barrier_and_is_one_of_the_tools(flying: Client) -> None:
    prompt_id = flying.prime().prompt_id
    texts: list[str] = []
    for step in range(5):
        barrier = flying.wall.now()
        handle = flying.send_goal(
            lambda feedback: texts.append(feedback.feedback.text),
            prompt_id=prompt_id,
            recent_calls=[f"hover(seconds={step}) -> hovered"],
            earliest_frame=to_time(barrier),
        )
        done = flying.result_of(handle)
        result = done.result
        assert done.status == GoalStatus.STATUS_SUCCEEDED, result.message
        assert result.frame_stamp.sec + 1e-9 * result.frame_stamp.nanosec >= barrier
        assert json.loads(result.tool_call)["name"] in {tool["function"]["name"] for tool in DRONE_TOOLS}
        assert result.memory_resets == flying.status.memory_resets
        assert result.tokens_sampled <= FORM.max_new_tokens
    assert texts
    wait_for(lambda: flying.status.generations >= 5, "the count of generations in the status")


def test_a_goal_asks_at_once_for_the_frame_that_it_waits_for(flying: Client) -> None:
    wanted: list[float] = []
    subscription(
        flying,
        topics.FRAME_WANTED,
        NAMESPACE,
        lambda request: wanted.append(stamps.to_seconds(request.stamp)),
    )
    wait_for(lambda: wanted and wanted[-1] > flying.wall.now() - 5.0, "the request of the next frame in turn")
    flying.camera_on.clear()
    wait_for(lambda: len(wanted) > 2 and len(set(wanted[-3:])) == 1, "the same request three times")
    earliest_s = wanted[-1] - 1e-4  # after all that has come, before what is asked for anyway
    handle = flying.send_goal(prompt_id=flying.prime().prompt_id, earliest_frame=to_time(earliest_s))
    wait_for(lambda: any(abs(stamp_s - earliest_s) < 1e-5 for stamp_s in wanted), "the goal's own request")
    repeats = len(wanted)
    wait_for(lambda: len(wanted) > repeats + 1, "the request's repeats")
    flying.camera_on.set()
    assert flying.result_of(handle).result.frame_stamp.sec >= int(earliest_s)
    wait_for(lambda: wanted[-1] > earliest_s + 0.1, "the request of the next frame in turn")


def test_frames_stream_in_and_old_ones_leave(flying: Client) -> None:
    before = flying.status.chunks_appended
    wait_for(lambda: flying.status.chunks_appended >= before + 10, "ten chunks")
    status = flying.status
    assert status.frames_received > status.chunks_appended
    assert status.cached_tokens <= status.budget_tokens
    assert status.sink_tokens > 0
    assert status.frame_latency_ms < 1000.0
    assert status.frame_age_s < 5.0
    assert status.rss_mib > 50.0


def test_questions_are_answered_by_choice_and_in_words_by_a_model_that_has_some(flying: Client) -> None:
    wait_for(lambda: flying.status.chunks >= 2, "a frame")
    free = flying.call(flying.ask_client, Ask.Request(question="what do you see?", max_new_tokens=4))
    choice = flying.call(flying.ask_client, Ask.Request(question="which?", choices=["left", "right"]))
    assert (free.success, free.answer) == (False, "")
    assert "has no words" in free.message
    assert choice.answer in ("left", "right")
    empty = flying.call(flying.ask_client, Ask.Request())
    assert not empty.success
    assert "empty" in empty.message


def test_another_prompt_than_the_model_s_is_refused_with_the_difference(flying: Client) -> None:
    prompt_id = flying.prime().prompt_id
    refused = flying.prime("You drive a car.")
    assert not refused.success
    assert "-You fly a drone." in refused.message
    assert "+You drive a car." in refused.message
    assert flying.generate(prompt_id=prompt_id).result.status == Generate.Result.STATUS_OK


def test_a_goal_that_waits_for_its_frame_can_be_cancelled(flying: Client) -> None:
    handle = flying.send_goal(
        prompt_id=flying.prime().prompt_id, earliest_frame=to_time(flying.wall.now() + 1e5)
    )
    future = handle.get_result_async()
    began = time.monotonic()
    handle.cancel_goal_async()
    wait_for(future.done, "the end of the cancelled goal")
    assert time.monotonic() - began < 2.0
    assert future.result().status == GoalStatus.STATUS_CANCELED
    assert future.result().result.status == Generate.Result.STATUS_CANCELLED


def test_a_goal_whose_frame_never_comes_ends_at_its_deadline(flying: Client) -> None:
    flying.camera_on.clear()
    result = flying.generate(
        prompt_id=flying.prime().prompt_id, earliest_frame=to_time(flying.wall.now() + 1.0), deadline_s=0.3
    )
    assert result.status == GoalStatus.STATUS_ABORTED
    assert result.result.status == Generate.Result.STATUS_NO_FRAME
    assert "camera" in result.result.message


def test_an_empty_instruction_is_an_error_in_words(flying: Client) -> None:
    result = flying.generate(prompt_id=flying.prime().prompt_id, instruction="")
    assert result.result.status == Generate.Result.STATUS_ERROR
    assert "instruction is empty" in result.result.message


def test_broken_pictures_are_counted_and_nothing_else_is_disturbed(flying: Client) -> None:
    whole = flying.pictures[0]
    for data in (b"", whole[:200], b"rubbish", b"\xff\xd8 rubbish \xff\xd9"):
        broken = flying.status.frames_broken

        def counted(data: bytes = data, broken: int = broken) -> bool:
            flying.picture(data, flying.wall.now())  # again and again: pictures may be lost on their way
            time.sleep(0.05)
            return bool(flying.status.frames_broken > broken)

        wait_for(counted, f"a count of the broken picture {data[:10]!r}")
    result = flying.generate(prompt_id=flying.prime().prompt_id, earliest_frame=to_time(flying.wall.now()))
    assert result.result.status == Generate.Result.STATUS_OK


def test_resets_are_counted(flying: Client) -> None:
    resets = flying.status.memory_resets
    answer = flying.call(flying.reset_client, Trigger.Request())
    assert answer.success
    wait_for(lambda: flying.status.memory_resets == resets + 1, "the count")


def test_nothing_is_blocked_while_as_many_goals_as_may_wait_for_their_frames(flying: Client) -> None:
    prompt_id, never = flying.prime().prompt_id, to_time(flying.wall.now() + 1e5)
    wait_for(lambda: flying.status.chunks >= 2, "a frame")
    handles = [flying.send_goal(prompt_id=prompt_id, earliest_frame=never) for _ in range(MAX_QUEUED)]
    one_more = flying.generate(prompt_id=prompt_id)
    assert one_more.result.status == Generate.Result.STATUS_ERROR
    assert "waiting already" in one_more.result.message
    appended = flying.status.chunks_appended
    wait_for(lambda: flying.status.chunks_appended > appended + 3, "frames")
    assert flying.call(flying.ask_client, Ask.Request(question="which?", choices=["left", "right"])).success
    results = [handle.get_result_async() for handle in handles]
    for handle in handles:
        handle.cancel_goal_async()
    for result in results:
        wait_for(result.done, "the end of a cancelled goal")
        assert result.result().status == GoalStatus.STATUS_CANCELED
    assert flying.generate(prompt_id=prompt_id).result.status == Generate.Result.STATUS_OK


def test_a_goal_cancelled_while_it_is_being_answered_ends_as_cancelled_or_answered(flying: Client) -> None:
    prompt_id = flying.prime().prompt_id
    for _ in range(10):
        handle = flying.send_goal(prompt_id=prompt_id, earliest_frame=to_time(flying.wall.now()))
        handle.cancel_goal_async()
        done = flying.result_of(handle)
        assert (done.status, done.result.status) in (
            (GoalStatus.STATUS_CANCELED, Generate.Result.STATUS_CANCELLED),
            (GoalStatus.STATUS_SUCCEEDED, Generate.Result.STATUS_OK),
        )


def test_deadline_and_length_of_answers_change_in_flight_and_only_within_their_range(flying: Client) -> None:
    def set_parameter(name: str, value: Any) -> Any:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return flying.call(flying.parameters_client, request).results[0]

    assert set_parameter("deadline_s", 0.3).successful
    result = flying.generate(
        prompt_id=flying.prime().prompt_id,
        earliest_frame=to_time(flying.wall.now() + 1e5),
        deadline_s=0.0,
    )
    assert result.result.status == Generate.Result.STATUS_NO_FRAME
    assert set_parameter("deadline_s", 10.0).successful
    assert set_parameter("break_ms", 2500.0).successful
    assert not set_parameter("quick_tokens", 17).successful  # more than normal_tokens
    assert not set_parameter("detailed_tokens", 1024).successful
    assert not set_parameter("model", "another").successful


def test_watches_are_left_by_a_service_and_their_turns_are_published(flying: Client) -> None:
    """Of two questions that exclude each other one comes true, whatever the model thinks of it."""
    question = "is the way ahead free?"
    request = Watch.Request(owner="test", watches=[question], hover_watches=[f"no: {question}"])
    assert flying.call(flying.watch_client, request).success
    wait_for(lambda: any(event.holds for event in flying.watch_events), "a watch that comes true")
    event = next(event for event in flying.watch_events if event.holds)
    assert event.owner == "test"
    assert event.hover == event.watch.startswith("no:")
    assert event.probability >= 0.5
    refused = flying.call(flying.watch_client, Watch.Request(owner="test", watches=[" "]))
    assert not refused.success
    assert "has no question" in refused.message
    assert flying.call(flying.watch_client, Watch.Request(owner="test")).success


def test_a_recall_without_a_bank_says_how_to_get_one(flying: Client) -> None:
    client = flying.create_client(Recall, topics.RECALL_SERVICE)
    wait_for(client.service_is_ready, "the service")
    answer = flying.call(client, Recall.Request(entity="the red car"))
    assert not answer.success
    assert "no memory bank: start perception with memory_bank" in answer.message


def test_health_is_on_diagnostics(flying: Client) -> None:
    def report() -> Any:
        return next((status for status in reversed(flying.health) if status.name == "vlm_perception"), None)

    wait_for(lambda: report() and report().message == "serving", "a report of health")
    values = {value.key: value.value for value in report().values}
    assert report().level == DiagnosticStatus.OK
    assert float(values["append_ms"]) > 0
    flying.picture(b"", flying.wall.now())
    wait_for(lambda: report().level != DiagnosticStatus.OK, "the report of a broken frame")


# -- starting ----------------------------------------------------------------------------------------------------------


def spoil_weights(file: Path, *, cut: bool) -> None:
    """Another shape (cut) or NaN in one of the matrices."""
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.endswith("mlp.up_proj.weight"))
    weights[name] = weights[name][:-1].clone() if cut else torch.full_like(weights[name], math.nan)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({}, "parameter model is empty"),
        ({"model": "/no/such/folder"}, "parameter model is /no/such/folder: there is no such folder"),
        ({"model": "EMPTY"}, "no config.json"),
        ({"model": "OTHER"}, "llama"),
        ({"model": "FORM"}, "serving_form.json: version is 0"),
        ({"model": "WEIGHTS"}, "cannot be loaded"),
        ({"model": "SHAPES"}, "shape"),
        ({"model": "NAN"}, "NaN|not finite|finite"),
        ({"model": "LIST"}, "config.json"),
        ({"model": "GOOD", "torch_threads": 0}, "parameter torch_threads is 0, must be 1 to 256"),
        ({"model": "GOOD", "device": "tpu"}, "parameter device is 'tpu', must be one of auto, cpu, cuda"),
        ({"model": "GOOD", "max_cache_tokens": -5}, "parameter max_cache_tokens is -5"),
        ({"model": "GOOD", "deadline_s": "soon"}, "parameter deadline_s is soon"),
        (
            {"model": "GOOD", "detailed_tokens": 1024},
            "parameter detailed_tokens is 1024, must be 1 to 768",
        ),
        ({"model": "GOOD", "quick_tokens": 17}, r"\[17, 16, 20, 24\]: they must be at least 1"),
        (
            {"model": "GOOD", "guard_record": "/dev/null/guard.json"},
            "guard record /dev/null/guard.json",
        ),
    ],
)
def test_a_wrong_parameter_or_model_stops_the_node_at_start_with_the_remedy(
    ros: int, tiny_folder: Path, tmp_path: Path, parameters: dict[str, Any], problem: str
) -> None:
    kind = parameters.get("model", "")
    if kind.isupper():
        for file in tiny_folder.iterdir():
            if kind not in ("EMPTY", "OTHER"):
                (tmp_path / file.name).write_bytes(file.read_bytes())
        if kind == "OTHER":
            (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        if kind == "FORM":
            (tmp_path / "serving_form.json").write_text('{"version": 0}')
        if kind == "WEIGHTS":
            (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
        if kind in ("SHAPES", "NAN"):
            spoil_weights(tmp_path / "model.safetensors", cut=kind == "SHAPES")
        if kind == "LIST":
            (tmp_path / "config.json").write_text("[]")
        parameters = {**parameters, "model": str(tmp_path)}
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    with pytest.raises(ValueError, match=problem):
        VlmPerception(parameter_overrides=overrides)


def test_what_was_named_is_known_after_a_restart_with_the_same_session_folder(
    ros: int, model_folder: Path, tmp_path: Path
) -> None:
    given = {
        "model": str(model_folder),
        "memory_bank": "several",
        "session_folder": str(tmp_path / "session"),
    }
    known = []
    for _ in range(2):
        node = VlmPerception(
            parameter_overrides=[Parameter(name, value=value) for name, value in given.items()]
        )
        assert isinstance(node.stream, Stream)
        recollection = node.stream.recollection
        assert recollection is not None
        known.append(list(recollection.bank.registry.entities))
        recollection.bank.add_instruction("go to the red car")
        node.destroy_node()
    assert known == [[], ["car_1"]]
    assert "car_1" in (tmp_path / "session" / "mapping.json").read_text()


def test_the_process_ends_with_one_line_and_status_2(ros: int) -> None:
    done = subprocess.run(node_command("/no/such/folder"), capture_output=True, text=True, timeout=90)
    assert done.returncode == 2
    assert "[FATAL] parameter model is /no/such/folder" in done.stderr
    assert "Traceback" not in done.stderr


LOST = """
import sys
import torch
from nav_common.data import PrimeRequest
from nav_common.ros import run
from vlm_perception.node import VlmPerception

def lost(*_):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

class Lost(VlmPerception):
    def __init__(self):
        super().__init__()
        self.stream._memory._engine._forward = lost
        self.stream.submit_prime(PrimeRequest(sys.argv[1], sys.argv[2]))

run(Lost, threads=1)
"""

FAILING = """
import sys
from nav_common.clock import WallClock
from nav_common.data import AskRequest, CompressedImage, PrimeRequest
from nav_common.ros import run
from vlm_perception.node import VlmPerception
import cv2, numpy

def failing(*_, **__):
    raise RuntimeError("no memory left")

class Failing(VlmPerception):
    def __init__(self):
        super().__init__()
        picture = cv2.imencode(".jpg", numpy.zeros((84, 112, 3), numpy.uint8))[1].tobytes()
        self.stream.submit_prime(PrimeRequest(sys.argv[1], sys.argv[2])).wait()
        self.stream._memory._engine.ask_choice = failing
        self.stream.submit_frame(CompressedImage(WallClock().now(), picture))
        for number in range(10):
            self.stream.submit_ask(AskRequest(f"is it {number}?", ("yes", "no"))).wait()

run(Failing, threads=1)
"""

SLOW = f"""
import sys, time
from vlm_perception import node

def load(*_, **__):
    print("loading", flush=True)
    {INTERRUPTIBLE_SLEEP}

node.QwenModel.load = load
node.main()
"""


def test_ten_errors_in_a_row_end_the_process_and_keep_its_record(
    ros: int, model_folder: Path, tmp_path: Path
) -> None:
    """The next process counts on; what fails here is memory, for each question anew."""
    record = tmp_path / "guard.json"
    parameters = node_command(model_folder, f"guard_record:={record}")[3:]
    for restarts in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", FAILING, PROMPT, TOOLS, *parameters],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1
        assert "10 errors in a row, the last: no memory left" in done.stderr
        assert "Traceback" not in done.stderr
        kept = json.loads(record.read_text())
        assert (kept["restarts"], kept["errors"]) == (restarts, 10 * restarts)


def test_a_lost_accelerator_ends_the_process_with_a_line_that_says_so(ros: int, model_folder: Path) -> None:
    parameters = node_command(model_folder)[3:]
    done = subprocess.run(
        [sys.executable, "-c", LOST, PROMPT, TOOLS, *parameters], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert "illegal memory access" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_while_the_model_is_loaded_ends_the_process_at_once(ros: int, model_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *node_command(model_folder)[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors
