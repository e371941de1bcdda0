"""The memory as a ROS node: pictures and odometry in; Prime, Generate, Ask and reset served; its status told."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import traceback
from typing import Any

import torch
from nav_msgs_ext.action import Generate
from nav_msgs_ext.msg import EngineStatus
from nav_msgs_ext.srv import Ask, Prime
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from safetensors import SafetensorError
from std_srvs.srv import Trigger

from nav_common import frames, stamps, topics
from nav_common.clock import WallClock
from nav_common.ros import declare, publisher, run, subscription, to_time
from vlm_perception.engine import QwenModel
from vlm_perception.frame_rule import Pose
from vlm_perception.serving_form import ServingForm
from vlm_perception.worker import (
    MAX_WAITING,
    STATUS_CANCELLED,
    STATUS_OK,
    AskRequest,
    GenerateRequest,
    PerceptionWorker,
    Ticket,
)

STATUS_PERIOD_S = 0.5
# How often a waiting callback looks whether its goal was cancelled: well within the time of a token.
_CANCEL_CHECK_S = 0.01


class VlmPerception(Node):
    """Parameters: see `_load`; topics, services and the action: nav_common.topics."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("vlm_perception", **kwargs)
        self._wall = WallClock()
        namespace: str = declare(
            self, "vehicle_namespace", topics.DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics"
        )
        self._status = publisher(self, topics.ENGINE_STATUS, namespace)
        self.worker = self._load()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

        sensors = MutuallyExclusiveCallbackGroup()
        subscription(self, topics.FRONT_IMAGE, namespace, self._on_image, callback_group=sensors)
        subscription(
            self, topics.ODOM, namespace, self._on_odometry, callback_group=MutuallyExclusiveCallbackGroup()
        )
        waiting = ReentrantCallbackGroup()
        self.create_service(Prime, topics.PRIME_SERVICE, self._on_prime, callback_group=waiting)
        self.create_service(Ask, topics.ASK_SERVICE, self._on_ask, callback_group=waiting)
        self.create_service(Trigger, topics.RESET_MEMORY_SERVICE, self._on_reset, callback_group=waiting)
        self._server = ActionServer(
            self,
            Generate,
            topics.GENERATE_ACTION,
            execute_callback=self._on_generate,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=waiting,
        )
        self.create_timer(STATUS_PERIOD_S, self._tell, callback_group=MutuallyExclusiveCallbackGroup())

    def destroy_node(self) -> None:
        """Cancels what waits, lets the model's thread end, falls silent."""
        self.worker.close()
        self._thread.join(timeout=5.0)
        self._server.destroy()
        super().destroy_node()

    # Parameters, and the model.

    def _load(self) -> PerceptionWorker:
        def integer(name: str, default: int, what: str, low: int, high: int) -> int:
            return int(declare(self, name, default, what, minimum=low, maximum=high))

        folder: str = declare(self, "model", "", "folder of a Qwen2.5-VL model in Hugging Face's layout")
        device: str = declare(self, "device", "auto", "where the model runs", choices=("auto", "cpu", "cuda"))
        threads = integer("torch_threads", 1, "threads of a computation on the CPU", 1, 256)
        budget = integer("max_cache_tokens", 0, "tokens kept; 0: as the serving form says", 0, 10_000_000)
        deadline_s = float(
            declare(self, "deadline_s", 10.0, "of a Generate that names none, s", minimum=0.1, maximum=600.0)
        )
        ask_tokens = integer("ask_tokens", 64, "longest answer to an Ask that names none, tokens", 1, 4096)
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
        torch.set_num_threads(threads)
        began = self._wall.now()
        form = ServingForm.load(folder)
        if budget:
            form = dataclasses.replace(form, max_cache_tokens=budget)
        try:
            model = QwenModel.load(
                folder, size=(form.width, form.height), device=None if device == "auto" else device
            )
        except SafetensorError as error:
            raise ValueError(
                f"{folder}: the weights cannot be read ({error}); download or train the model again"
            ) from None
        worker = PerceptionWorker(
            model,
            form,
            self._wall,
            default_deadline_s=deadline_s,
            ask_tokens=ask_tokens,
            on_change=self._tell,
            on_warning=lambda text: self.get_logger().warning(text, throttle_duration_sec=1.0),
        )
        self.get_logger().info(
            f"{folder} on {model.device} in {self._wall.now() - began:.1f} s: pictures {form.width}x{form.height} "
            f"each {form.frame_interval_s} s, {form.max_cache_tokens} tokens kept"
        )
        return worker

    def _work(self) -> None:
        try:
            self.worker.run()
        except BaseException:
            # The memory's state is unknown now, and nobody would answer: better dead and started anew than mute.
            traceback.print_exc()
            self.get_logger().fatal("the model's thread died; ending the process")
            os._exit(1)

    # Topics.

    def _on_image(self, message: Any) -> None:
        self.worker.submit_frame(message.data.tobytes(), stamps.to_seconds(message.header.stamp))

    def _on_odometry(self, message: Any) -> None:
        p, q = message.pose.pose.position, message.pose.pose.orientation
        yaw = frames.yaw(frames.Quaternion(q.w, q.x, q.y, q.z))
        self.worker.submit_pose(Pose(stamps.to_seconds(message.header.stamp), p.x, p.y, p.z, yaw))

    def _tell(self) -> None:
        if self.context.ok():
            self._status.publish(EngineStatus(stamp=to_time(self._wall.now()), **vars(self.worker.status())))

    # Services and the action. Their callbacks wait for the model's thread; `THREADS` leaves enough for the topics.

    def _on_prime(self, request: Prime.Request, response: Prime.Response) -> Prime.Response:
        ticket = self.worker.submit_prime(request.system_prompt, request.tools)
        self._wait(ticket)
        for name, value in vars(ticket.result).items():
            setattr(response, name, value)
        if response.success:
            self.get_logger().info(
                f"primed {response.prompt_id}: {response.tokens} tokens in {response.elapsed_ms:.0f} ms"
            )
        else:
            self.get_logger().error(f"prompt refused: {response.message}")
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        ticket = self.worker.submit_reset()
        self._wait(ticket)
        response.success = ticket.result.success
        response.message = ticket.result.message or f"memory emptied, epoch {ticket.result.memory_resets}"
        return response

    def _on_ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        ticket = self.worker.submit_ask(
            AskRequest(request.question, list(request.choices), request.max_new_tokens)
        )
        self._wait(ticket)
        values = dict(vars(ticket.result))
        response.frame_stamp = to_time(values.pop("frame_stamp"))
        for name, value in values.items():
            setattr(response, name, value)
        return response

    def _on_generate(self, handle: Any) -> Generate.Result:
        goal = handle.request
        ticket = self.worker.submit_generate(
            GenerateRequest(
                goal.prompt_id,
                goal.instruction,
                list(goal.recent_calls),
                goal.max_new_tokens,
                goal.temperature,
                stamps.to_seconds(goal.earliest_frame),
                goal.deadline_s,
            ),
            on_text=lambda text: handle.publish_feedback(Generate.Feedback(text=text)),
        )
        self._wait(ticket, handle)
        values = dict(vars(ticket.result))
        status = values["status"]
        if status == STATUS_OK:
            handle.succeed()
        elif status == STATUS_CANCELLED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
            self.get_logger().warning(f"Generate: {values['message']}")
        return Generate.Result(frame_stamp=to_time(values.pop("frame_stamp")), **values)

    def _wait(self, ticket: Ticket[Any], handle: Any = None) -> None:
        while not ticket.wait(_CANCEL_CHECK_S if handle else None):
            if handle.is_cancel_requested:
                ticket.cancel()


# Every waiting Generate, Ask, Prime and reset holds one; the rest is for pictures, odometry, status, goals and cancels.
THREADS = 2 * MAX_WAITING + 8


def main() -> int:
    return run(VlmPerception, threads=THREADS)


if __name__ == "__main__":
    sys.exit(main())
