"""The same agreements for rclpy nodes: publishers and subscriptions by topic, stamps, checked parameters, a main.

The only module of nav_common that needs ROS; only `node.py` files import it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import rclpy
import yaml
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.callback_groups import CallbackGroup
from rclpy.duration import Duration
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

from nav_common import conversions, process, stamps, topics
from nav_common.diagnostics import PERIOD_S, Health
from nav_common.process import CONFIGURATION_ERROR, SWITCH_INTERVAL_S
from nav_common.topics import Qos, Topic

T = TypeVar("T")

_LOG_PERIOD_S = 5.0
# Likeness of two names (difflib) from which one is taken for the other, mistyped; link_edge and link_server have 0.7.
_LIKE_A_TYPING_ERROR = 0.8


class ParameterError(ValueError):
    """A parameter of a node that it cannot start with; the message names it, its value and what is allowed."""


def message_type(name: str) -> Any:
    """The class of a type such as "sensor_msgs/msg/Image", or of a part of a service or an action:
    "nav_msgs_ext/action/Generate_Goal"."""
    package, kind, cls = name.split("/")
    interface, _, part = cls.partition("_")
    found = getattr(importlib.import_module(f"{package}.{kind}"), interface)
    return getattr(found, part) if part else found


def to_ros(data: Any) -> Any:
    """The rclpy message of a dataclass of `nav_common.data`.

    Raises:
        ConversionError: see `conversions.to_message`.
    """

    def make(type_name: str) -> Any:
        return message_type(type_name)()

    return conversions.to_message(data, make(conversions.type_name(type(data))), make)


def from_ros(cls: type[T], message: Any) -> T:
    """The dataclass of an rclpy message.

    Raises:
        ConversionError: see `conversions.from_message`.
    """
    return conversions.from_message(cls, message)


def qos_profile(qos: Qos, *, subscriber: bool = False) -> QoSProfile:
    """Of a publisher or a subscriber. Liveliness is the kind that DDS asserts by itself while the process lives."""
    lease = {"liveliness_lease_duration": Duration(seconds=qos.lease_s)} if qos.lease_s else {}
    keeps = qos.transient_local and not (subscriber and qos.any_publisher)
    return QoSProfile(
        depth=qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if keeps else DurabilityPolicy.VOLATILE,
        liveliness=LivelinessPolicy.AUTOMATIC,
        **lease,
    )


def publisher(node: Node, topic: Topic, vehicle_namespace: str, **kwargs: Any) -> Any:
    """A publisher of `topic`."""
    name = topic.resolve(vehicle_namespace)
    return node.create_publisher(message_type(topic.type), name, qos_profile(topic.qos), **kwargs)


def subscription(
    node: Node, topic: Topic, vehicle_namespace: str, callback: Callable[..., None], **kwargs: Any
) -> Any:
    """A subscription to `topic`; `callback` takes the message, and rclpy's information about it where it has a second
    argument."""
    name = topic.resolve(vehicle_namespace)
    profile = qos_profile(topic.qos, subscriber=True)
    return node.create_subscription(message_type(topic.type), name, callback, profile, **kwargs)


class _NotExecuted(CallbackGroup):
    """Of entities that no executor serves."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing was begun."""


class PolledSubscription(Generic[T]):
    """A subscription whose messages the thread that needs them takes, instead of waking the executor for each, which
    costs 1 to 2 ms of Python's lock a time."""

    def __init__(self, node: Node, topic: Topic, cls: type[T], vehicle_namespace: str) -> None:
        self._node = node
        self._cls = cls
        self._source = subscription(
            node, topic, vehicle_namespace, lambda message: None, callback_group=_NotExecuted()
        )

    def take(self) -> Iterator[T]:
        """What has arrived since the last time, oldest first; what cannot be converted is logged and left out."""
        source = self._source
        with source.handle:
            while (taken := source.handle.take_message(source.msg_type, False)) is not None:
                try:
                    yield from_ros(self._cls, taken[0])
                except conversions.ConversionError as error:
                    self._node.get_logger().warning(
                        f"{source.topic} ignored: {error}", throttle_duration_sec=_LOG_PERIOD_S
                    )


def to_time(seconds: float) -> Time:
    sec, nanosec = stamps.split(seconds)
    return Time(sec=sec, nanosec=nanosec)


def declare(
    node: Node,
    name: str,
    default: bool | int | float | str | list[str],
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = True,
) -> Any:
    """Declare a parameter and return its value. `LiveParameters.declare` makes one that can be changed in flight.

    Ranges have `step = 0`, which rqt's sliders need.

    Raises:
        ParameterError: the value given at start has another type, lies outside the range or is none of the choices.
    """
    descriptor = ParameterDescriptor(description=description, read_only=read_only)
    allowed = ""
    if choices:
        allowed = "one of " + ", ".join(choices)
        descriptor.additional_constraints = allowed
    if minimum is not None or maximum is not None:
        low, high = minimum, maximum
        if isinstance(default, float):
            low = float("-inf") if low is None else low
            high = float("inf") if high is None else high
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
        else:
            low = -(2**31) if low is None else low
            high = 2**31 - 1 if high is None else high
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        allowed = f"{low} to {high}"
    try:
        value = node.declare_parameter(name, default, descriptor).value
    except InvalidParameterValueException as error:
        given = node._parameter_overrides.get(name)
        raise ParameterError(
            f"parameter {name} is {given.value if given else '?'}, must be {allowed} ({description})"
        ) from error
    except InvalidParameterTypeException as error:
        given = node._parameter_overrides.get(name)
        raise ParameterError(
            f"parameter {name} is {given.value if given else '?'} of type "
            f"{type(given.value).__name__ if given else '?'}, must be {type(default).__name__} ({description})"
        ) from error
    if value is None:  # what rcl makes of `name: []`
        raise ParameterError(f"parameter {name} is empty, must be {type(default).__name__} ({description})")
    _check_value(name, value, choices)
    return value


def _check_value(name: str, value: object, choices: tuple[str, ...]) -> None:
    """What rclpy does not check. Raises ParameterError."""
    if choices and value not in choices:
        raise ParameterError(f"parameter {name} is {value!r}, must be one of {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"parameter {name} is {value}, must be finite")


class LiveParameters(Generic[T]):
    """Parameters that may change while the node runs, by `ros2 param set` or rqt's sliders.

    They come in groups, each of which makes one settings object. A change is validated in one callback, by making the
    object anew, and takes effect in another, which hands the object over whole:

        limits = LiveParameters(self, lambda values: GateLimits(**values))
        limits.declare("max_speed", 5.0, "horizontal, m/s", minimum=0.1, maximum=20.0)
        gate = Gate(limits.make())
        limits.on_change(gate.set_limits)

    The receiver is called in a thread of the executor: it stores the object, and whoever decides with it reads it once
    a decision (a tick), never twice.

    Args:
        make: the settings object of all the group's values by name; raises ValueError for values that do not fit
            together, which refuses the change with its message.
    """

    def __init__(self, node: Node, make: Callable[[Mapping[str, Any]], T]) -> None:
        self._node = node
        self._make = make
        self._values: dict[str, Any] = {}
        self._choices: dict[str, tuple[str, ...]] = {}
        self._receive: Callable[[T], None] | None = None
        node.add_on_set_parameters_callback(self._validate)
        node.add_post_set_parameters_callback(self._install)

    def declare(
        self,
        name: str,
        default: bool | int | float | str,
        description: str,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
        choices: tuple[str, ...] = (),
    ) -> Any:
        """As the function `declare`, into this group."""
        value = declare(
            self._node,
            name,
            default,
            description,
            minimum=minimum,
            maximum=maximum,
            choices=choices,
            read_only=False,
        )
        self._values[name], self._choices[name] = value, choices
        return value

    def make(self) -> T:
        """The settings object of the values as they are. Raises what `make` of the constructor raises."""
        return self._make(dict(self._values))

    def on_change(self, receive: Callable[[T], None]) -> None:
        """From now on `receive` gets the new settings object after each change."""
        self._receive = receive

    def _changes(self, parameters: Iterable[Parameter]) -> dict[str, Any]:
        return {p.name: p.value for p in parameters if p.name in self._values}

    def _validate(self, parameters: Iterable[Parameter]) -> SetParametersResult:
        changes = self._changes(parameters)
        try:
            for name, value in changes.items():
                _check_value(name, value, self._choices[name])
            if changes:
                self._make({**self._values, **changes})
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _install(self, parameters: Iterable[Parameter]) -> None:
        changes = self._changes(parameters)
        if not changes:
            return
        self._values.update(changes)
        if self._receive is not None:
            self._receive(self.make())
        said = ", ".join(f"{name} = {value}" for name, value in changes.items())
        self._node.get_logger().info(f"parameters changed: {said}")


def _check_overrides(node: Node) -> None:
    """Refuse parameters that were given but that the node does not have, and a parameter file's section that is called
    almost like it: a typing error would go unnoticed.

    Raises:
        ParameterError: there are some.
    """
    declared = set(node._parameters)
    for name, given in node._parameter_overrides.items():
        if name not in declared and not name.startswith("qos_overrides."):
            similar = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"it has {', '.join(sorted(declared))}"
            raise ParameterError(f"{node.get_name()} has no parameter {name} (given: {given.value}); {hint}")
    names = {node.get_name(), node.get_fully_qualified_name().strip("/")}
    for path in _parameter_files():
        sections = {key.strip("/") for key in yaml.safe_load(Path(path).read_bytes()) or {}}
        if not sections & names and (
            similar := difflib.get_close_matches(node.get_name(), sections, n=1, cutoff=_LIKE_A_TYPING_ERROR)
        ):
            raise ParameterError(
                f"no node is called {similar[0]}, as a section is; did you mean {node.get_name()}?"
            )


def _parameter_files() -> list[str]:
    return [given for flag, given in pairwise(sys.argv) if flag == "--params-file"]


def publish_diagnostics(node: Node, hardware_id: str, report: Callable[[], Health]) -> None:
    """Publish what `report` returns on /diagnostics each PERIOD_S, under the node's name.

    Args:
        hardware_id: what the node works on: a model, a folder, an address.
        report: called in a thread of the executor; must not block.
    """
    outlet = publisher(node, topics.DIAGNOSTICS, topics.DEFAULT_VEHICLE_NAMESPACE)

    def publish() -> None:
        health = report()
        status = DiagnosticStatus(
            level=bytes([health.level]),
            name=node.get_name(),
            message=health.message,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in health.values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = node.get_clock().now().to_msg()
        outlet.publish(array)

    node.create_timer(PERIOD_S, publish)


def _refuse(error: Exception) -> int:
    line = " ".join(str(error).split())
    if isinstance(error, ParameterError) and (files := _parameter_files()):
        line += f" [parameter file {', '.join(files)}]"
    print(f"[FATAL] {line}", file=sys.stderr, flush=True)
    rclpy.try_shutdown()
    return CONFIGURATION_ERROR


class Spinner:
    """A thread that runs the callbacks of nodes of one context, until `stop`.

    rclpy's `Executor.shutdown` takes from a thread that spins what it waits with ("'NoneType' object has no attribute
    'handle'"), so here the thread has ended before.
    """

    def __init__(self, *nodes: Node, threads: int = 1, name: str = "executor") -> None:
        self._context = nodes[0].context
        self._executor = (
            MultiThreadedExecutor(num_threads=threads, context=self._context)
            if threads > 1
            else SingleThreadedExecutor(context=self._context)
        )
        for node in nodes:
            self._executor.add_node(node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the thread; a callback under way is waited for, as long as that. The nodes are not destroyed."""
        self._stopping.set()
        # spin_once returns when there was work, not when it is woken.
        self._executor.create_task(lambda: None)
        self._thread.join(timeout_s)
        self._executor.shutdown(timeout_sec=timeout_s)

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            while self._context.ok() and not self._stopping.is_set():
                self._executor.spin_once()


def run(make_node: Callable[[], Node], *, threads: int = 4) -> int:
    """Main of a node: make it, spin it until SIGINT, SIGTERM or SIGHUP, destroy it. Returns the exit status.

    `destroy_node` of the node is where it brings its own threads and the drone to rest. A signal while the node
    is being made waits for that. A `ValueError` or `OSError` from `make_node` (a wrong parameter, a missing model) ends
    with one line and status CONFIGURATION_ERROR; an exception of a callback ends the node with status 1.

    One thread is a SingleThreadedExecutor, which wakes fewer others; then no callback may block.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = process.StopSignals()
    try:
        rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    except RuntimeError as error:  # rcl's own: a parameter file or an argument that it cannot parse
        return _refuse(error)
    try:
        node = make_node()
    except (ValueError, OSError) as error:
        return _refuse(error)
    try:
        _check_overrides(node)
    except ParameterError as error:
        node.destroy_node()
        return _refuse(error)
    executor = MultiThreadedExecutor(num_threads=threads) if threads > 1 else SingleThreadedExecutor()
    executor.add_node(node)
    stopping, failed = threading.Event(), threading.Event()

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass
        except Exception:
            if not stopping.is_set():  # otherwise: the wait set met what `destroy_node` has just destroyed
                failed.set()
                raise
        finally:
            stop.request()

    spinner = threading.Thread(target=spin, name="executor", daemon=True)
    spinner.start()
    stop.wait()
    stopping.set()
    process.limit_shutdown()
    try:
        node.destroy_node()
    finally:
        executor.shutdown(timeout_sec=1.0)
        rclpy.try_shutdown()
        spinner.join(timeout=2.0)
    return 1 if failed.is_set() else 0
