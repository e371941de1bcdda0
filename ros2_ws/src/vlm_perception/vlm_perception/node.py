"""Perception as a ROS node: pictures and odometry in; Prime, Generate, Ask and reset served; its status published.

One executor thread handles every callback: none of them waits. A service or a goal is a coroutine that awaits its
ticket, which the model's thread finishes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from nav_msgs_ext.action import Generate
from nav_msgs_ext.srv import Ask, Prime, Recall, Watch
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from nav_common import process, topics
from nav_common.clock import WallClock
from nav_common.data import (
    ActiveFrames,
    AskRequest,
    CompressedImage,
    FrameRequest,
    GenerateGoal,
    GenerateResult,
    GenerateStatus,
    LinkState,
    Odometry,
    PrimeRequest,
    RecallRequest,
    ServiceReply,
    WatchEvent,
    WatchRequest,
)
from nav_common.diagnostics import Health
from nav_common.ros import (
    LiveParameters,
    declare,
    from_ros,
    publish_diagnostics,
    publisher,
    run,
    subscription,
    to_ros,
)
from vlm_perception.backend import Backend
from vlm_perception.engine import DeviceLostError, QwenModel, default_budget
from vlm_perception.guard import Guard, GuardSettings, RequestKind
from vlm_perception.health import HealthReport
from vlm_perception.identity.bank import MemoryBank
from vlm_perception.scheduler import ModelThread
from vlm_perception.serving_form import FILE_NAME, ServingForm
from vlm_perception.stream import MAX_SAMPLED_TOKENS, Stream, StreamSettings
from vlm_perception.tickets import Ticket

T = TypeVar("T")

STATUS_PERIOD_S = 0.5
"""The page's limit for a silent source is three of these (nav_server.page.board.SILENT_S)."""
GUARD_PERIOD_S = 2.0
"""Of saving the guard's record, and of looking whether a restart is due (so that the last answer is out by then)."""
ODOMETRY_WARNING_PERIOD_S = 30.0
# A decode loop stops within a token and an append within a chunk; the 3B model on a CPU needs longer than a shutdown
# should.
CLOSE_TIMEOUT_S = 2.0


@dataclasses.dataclass(frozen=True)
class ModelParameters:
    """The model as the parameters name it; "auto" and 0 are left to the model and the machine."""

    folder: str
    device: str
    torch_threads: int
    max_cache_tokens: int


class VlmPerception(Node):
    """Parameters: see `_settings`, `_guard_settings` and `_declare_model`; topics, services and the action:
    nav_common.topics."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("vlm_perception", **kwargs)
        self._wall = WallClock()
        self._closing = False
        self._odometry_warning_due_s = 0.0
        self._namespace: str = declare(
            self, "vehicle_namespace", topics.DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        settings = self._settings()
        guard_settings = self._guard_settings()
        record_file: str = declare(
            self, "guard_record", "", "file that keeps the guard's counters across restarts; empty: none"
        )
        self._guard = Guard(
            guard_settings.make(),
            record_file=record_file or None,
            on_alert=lambda text: self.get_logger().warning(text, throttle_duration_sec=1.0),
        )
        self._status = publisher(self, topics.ENGINE_STATUS, self._namespace)
        self._watch_events = publisher(self, topics.WATCH_EVENT, self._namespace)
        self._active_frames = publisher(self, topics.ACTIVE_FRAMES, self._namespace)
        self._frame_wanted = publisher(self, topics.FRAME_WANTED, self._namespace)
        self._model = ModelThread(self._on_model_failure)
        self.stream = self._make_stream(settings.make())
        settings.on_change(self._on_settings)
        guard_settings.on_change(self._on_guard_settings)
        self._tickets: dict[bytes, Ticket[GenerateResult]] = {}
        """Of goals that are being executed, by goal id."""
        self._health = HealthReport(self._wall.now())
        self._model.start()

        subscription(self, topics.FRONT_IMAGE, self._namespace, self._on_image)
        subscription(self, topics.ODOM, self._namespace, self._on_odometry)
        subscription(self, topics.LINK_STATE, self._namespace, self._on_link)
        # Reentrant: while one callback awaits its ticket the others are served.
        group = ReentrantCallbackGroup()
        self.create_service(Prime, topics.PRIME_SERVICE, self._on_prime, callback_group=group)
        self.create_service(Ask, topics.ASK_SERVICE, self._on_ask, callback_group=group)
        self.create_service(Watch, topics.WATCH_SERVICE, self._on_watches, callback_group=group)
        self.create_service(Recall, topics.RECALL_SERVICE, self._on_recall, callback_group=group)
        self.create_service(Trigger, topics.RESET_MEMORY_SERVICE, self._on_reset, callback_group=group)
        self._server = ActionServer(
            self,
            Generate,
            topics.GENERATE_ACTION,
            execute_callback=self._execute,
            handle_accepted_callback=self._on_goal,
            cancel_callback=self._on_cancel,
            callback_group=group,
        )
        self.create_timer(STATUS_PERIOD_S, self._publish_status)
        self.create_timer(GUARD_PERIOD_S, self._keep_guard)
        publish_diagnostics(self, str(self.get_parameter("model").value), self._report_health)

    def destroy_node(self) -> None:
        """Cancels what waits and ends the model's thread; if it is too busy, the process's end will."""
        self._closing = True
        if not self._model.close(CLOSE_TIMEOUT_S):
            self.get_logger().warning(
                f"the model is still busy after {CLOSE_TIMEOUT_S:g} s: not waiting for it"
            )
        self._server.destroy()
        super().destroy_node()

    # Parameters, and the model.

    def _settings(self) -> LiveParameters[StreamSettings]:
        settings = LiveParameters(self, lambda values: StreamSettings(**values))
        settings.declare("deadline_s", 10.0, "of a Generate that names none, s", minimum=0.1, maximum=600.0)
        settings.declare(
            "watch_share",
            StreamSettings().watch_share,
            "of the time, that watches may take",
            minimum=0.01,
            maximum=1.0,
        )
        return settings

    def _guard_settings(self) -> LiveParameters[GuardSettings]:
        settings = LiveParameters(self, lambda values: GuardSettings(**values))
        default = self._guard_defaults()
        for kind in RequestKind:
            settings.declare(
                f"{kind}_tokens",
                default.budget(kind),
                f"tokens that one request of kind {kind} may sample",
                minimum=1,
                maximum=MAX_SAMPLED_TOKENS,
            )
        settings.declare(
            "break_ms",
            default.break_ms,
            "a request that takes longer is broken off, ms",
            minimum=1.0,
            maximum=600_000.0,
        )
        settings.declare(
            "errors_to_recovery",
            default.errors_to_recovery,
            "errors in a row after which this process ends, to be started anew",
            minimum=1,
            maximum=1_000_000,
        )
        return settings

    def _guard_defaults(self) -> GuardSettings:
        return GuardSettings.from_environment()

    def _on_settings(self, settings: StreamSettings) -> None:
        self.stream.settings = settings

    def _on_guard_settings(self, settings: GuardSettings) -> None:
        self._guard.settings = settings

    def _make_stream(self, settings: StreamSettings) -> Backend:
        """What sees and decides."""
        chosen = self._declare_model()
        model, form = self._load(chosen)
        stream = Stream(
            model,
            form,
            self._wall,
            settings=settings,
            guard=self._guard,
            bank=self._bank(),
            on_change=self._publish_status,
            on_watch=self._publish_watch,
            on_active_frames=self._publish_active_frames,
            on_warning=self._on_warning,
        )
        self._model.add(stream)
        return stream

    def _declare_model(self) -> ModelParameters:
        folder: str = declare(self, "model", "", "folder of a Qwen2.5-VL model in Hugging Face's layout")
        device: str = declare(self, "device", "auto", "where the model runs", choices=("auto", "cpu", "cuda"))
        threads: int = declare(
            self, "torch_threads", 1, "threads of a computation on the CPU", minimum=1, maximum=256
        )
        budget: int = declare(
            self,
            "max_cache_tokens",
            0,
            "tokens kept; 0: as the serving form says",
            minimum=0,
            maximum=10_000_000,
        )
        if not folder:
            raise ValueError(
                "parameter model is empty: give the folder of a Qwen2.5-VL model, such as "
                "-p model:=/path/to/Qwen2.5-VL-3B-Instruct"
            )
        if not os.path.isdir(folder):
            raise ValueError(
                f"parameter model is {folder}: there is no such folder; download or train the model first"
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("parameter device is cuda, but torch finds no GPU: use auto or cpu")
        return ModelParameters(folder, device, threads, budget)

    def _load(self, chosen: ModelParameters) -> tuple[QwenModel, ServingForm]:
        """The model, and how it is served."""
        torch.set_num_threads(chosen.torch_threads)
        began_s = self._wall.now()
        folder, budget, form = chosen.folder, chosen.max_cache_tokens, ServingForm.load(chosen.folder)
        if budget:
            form = dataclasses.replace(form, max_cache_tokens=budget)
        with process.exiting_on_signals():  # nothing is served yet, and a large model takes a minute
            model = QwenModel.load(
                folder,
                size=(form.width, form.height),
                device=None if chosen.device == "auto" else chosen.device,
            )
            if not budget and not os.path.isfile(os.path.join(folder, FILE_NAME)):
                default = default_budget(model)
                form = dataclasses.replace(form, max_cache_tokens=default.tokens)
                self.get_logger().info(f"max_cache_tokens: {default.reason}")
        self.get_logger().info(
            f"{folder} on {model.device} in {self._wall.now() - began_s:.1f} s: pictures "
            f"{form.width}x{form.height} each {form.frame_interval_s} s, {form.max_cache_tokens} tokens kept"
        )
        return model, form

    def _on_warning(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=1.0)

    def _bank(self) -> MemoryBank | None:
        mode: str = declare(
            self,
            "memory_bank",
            "off",
            "memory with identity: off, for one instruction, or for several with what an earlier one named",
            choices=("off", "one", "several"),
        )
        frames: int = declare(
            self, "max_memory_frames", 3, "frames that the bank holds active", minimum=1, maximum=64
        )
        archive_mib: int = declare(
            self,
            "archive_mib",
            64,
            "of archived frames; the oldest go first, MiB",
            minimum=1,
            maximum=1_000_000,
        )
        folder: str = declare(
            self,
            "session_folder",
            "",
            "folder of the bank, taken up again after a restart; empty: a temporary one",
        )
        if mode == "off":
            return None
        if not folder:
            self._temporary = tempfile.TemporaryDirectory(prefix="streampilot-bank-")
            folder = self._temporary.name
        return MemoryBank(
            Path(folder).expanduser(),
            several=mode == "several",
            max_memory_frames=frames,
            max_bytes=archive_mib << 20,
            on_warning=self._on_warning,
        )

    def _on_model_failure(self, error: BaseException) -> None:
        """What the memory holds is unknown now: the process ends, to be started anew."""
        if not isinstance(error, DeviceLostError):
            traceback.print_exception(error)
        self._end(f"the model's thread has ended, and so does the process: {error}")

    def _keep_guard(self) -> None:
        """The record outlives this process; one that only fails ends, for its supervisor to start it anew."""
        try:
            self._guard.save()
        except OSError as error:
            self.get_logger().error(f"guard_record cannot be written: {error}", throttle_duration_sec=60.0)
        if self._guard.restart_due:
            self._end(f"ending, to be started anew: {self._guard.restart_due}")

    def _end(self, reason: str) -> NoReturn:
        self.get_logger().fatal(reason)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    # Topics.

    def _on_image(self, message: Any) -> None:
        self.stream.submit_frame(from_ros(CompressedImage, message))

    def _on_odometry(self, message: Any) -> None:
        if self.stream.submit_odometry(from_ros(Odometry, message)):
            return
        now_s = self._wall.now()
        if now_s < self._odometry_warning_due_s:
            return
        self._odometry_warning_due_s = now_s + ODOMETRY_WARNING_PERIOD_S
        topic = topics.ODOM.resolve(self._namespace)
        senders = sorted({info.node_name for info in self.get_publishers_info_by_topic(topic)})
        self.get_logger().warning(
            f"odometry of {message.header.stamp.sec} s refused: it is not finite, or its stamp jumps (as the first few "
            f"do after an outage). {topic} is published by {', '.join(senders) or 'nobody'}; only one node should"
        )

    def _on_link(self, message: Any) -> None:
        state = from_ros(LinkState, message)
        if state.up:
            self.stream.edge_offset_s = state.clock_offset_s

    def _publish_status(self) -> None:
        if self.context.ok() and not self._closing:
            self._status.publish(to_ros(self.stream.status()))
            self._request_frame()

    def _request_frame(self) -> None:
        """Sent with every status: at each change, and twice a second in case that one was lost."""
        self._frame_wanted.publish(to_ros(FrameRequest(self.stream.frame_wanted_s())))

    def _publish_watch(self, event: WatchEvent) -> None:
        if self.context.ok() and not self._closing:
            self._watch_events.publish(to_ros(event))

    def _publish_active_frames(self, frames: ActiveFrames) -> None:
        if self.context.ok() and not self._closing:
            self._active_frames.publish(to_ros(frames))

    def _report_health(self) -> Health:
        return self._health(self.stream.status(), self._guard, self._wall.now())

    # Services and the action.

    def _running_executor(self) -> Executor:
        assert self.executor is not None, "a callback runs without an executor"
        return self.executor

    async def _result(self, ticket: Ticket[T]) -> T:
        """The ticket's result. No thread waits: the model's thread wakes the executor once it is there."""
        executor = self._running_executor()
        future = Future(executor=executor)

        def wake() -> None:
            future.set_result(None)
            with contextlib.suppress(InvalidHandle):  # the executor may have ended meanwhile
                executor.wake()

        ticket.add_done_callback(wake)
        await future
        return ticket.result

    async def _on_prime(self, request: Prime.Request, _: Prime.Response) -> Prime.Response:
        answer = await self._result(self.stream.submit_prime(from_ros(PrimeRequest, request)))
        if answer.success:
            self.get_logger().info(
                f"primed {answer.prompt_id}: {answer.tokens} tokens in {answer.elapsed_ms:.0f} ms"
            )
        else:
            self.get_logger().error(f"prompt refused: {answer.message}")
        return to_ros(answer)

    async def _on_reset(self, _: Trigger.Request, __: Trigger.Response) -> Trigger.Response:
        answer = await self._result(self.stream.submit_reset())
        message = answer.message or f"memory emptied, for the {answer.memory_resets}th time"
        return to_ros(ServiceReply(answer.success, message))

    async def _on_ask(self, request: Ask.Request, _: Ask.Response) -> Ask.Response:
        return to_ros(await self._result(self.stream.submit_ask(from_ros(AskRequest, request))))

    def _on_watches(self, request: Watch.Request, _: Watch.Response) -> Watch.Response:
        return to_ros(self.stream.submit_watches(from_ros(WatchRequest, request)))

    async def _on_recall(self, request: Recall.Request, _: Recall.Response) -> Recall.Response:
        return to_ros(await self._result(self.stream.submit_recall(from_ros(RecallRequest, request))))

    def _on_goal(self, handle: Any) -> None:
        """A goal enters the queue in the order of acceptance, before a cancel of it can come."""
        self._tickets[bytes(handle.goal_id.uuid)] = self.stream.submit_generate(
            from_ros(GenerateGoal, handle.request),
            lambda text: handle.publish_feedback(Generate.Feedback(text=text)),
        )
        self._request_frame()  # it may need another frame than the next one in turn
        handle.execute()

    def _on_cancel(self, handle: Any) -> CancelResponse:
        ticket = self._tickets.get(bytes(handle.goal_id.uuid))
        if ticket:
            # After this callback: only then does the goal count as being cancelled.
            self._running_executor().create_task(ticket.cancel)
        return CancelResponse.ACCEPT

    async def _execute(self, handle: Any) -> Generate.Result:
        goal_id = bytes(handle.goal_id.uuid)
        result = await self._result(self._tickets[goal_id])
        del self._tickets[goal_id]
        if result.status == GenerateStatus.OK:
            handle.succeed()
        elif result.status == GenerateStatus.CANCELLED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
            self.get_logger().warning(f"Generate: {result.message}")
        return to_ros(result)


def main() -> NoReturn:
    status = run(VlmPerception, threads=1)
    sys.stdout.flush()
    sys.stderr.flush()
    # All outputs are closed. What is left is taking torch down, which takes seconds and serves nobody.
    os._exit(status)


if __name__ == "__main__":
    main()
