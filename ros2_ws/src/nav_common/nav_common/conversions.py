"""Between `nav_common.data` and messages, once: rclpy's, those of a bag, and CDR bytes (`nav_common.cdr`).

A field of a dataclass is the field of the message with its name; a Time `stamp` is `stamp_s`. What deviates stands in
`_LAYOUTS`; depth pictures, cameras and markers, which are no plain renaming, have a function each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar, get_type_hints

import numpy as np

from nav_common import cdr, data, stamps
from nav_common.frames import Quaternion, Vector

T = TypeVar("T")


class ConversionError(ValueError):
    """A message that is no data of that type, or data that no message holds; says which type and field, and why."""


@dataclass(frozen=True)
class _Layout:
    """A dataclass's message. `paths`: attribute path in the message of a field that is not simply called the same."""

    type: str
    paths: Mapping[str, str] = field(default_factory=dict)


_HEADER = {"stamp_s": "header.stamp", "frame_id": "header.frame_id"}

_LAYOUTS: dict[type[Any], _Layout] = {
    data.Odometry: _Layout(
        "nav_msgs/msg/Odometry",
        {
            **_HEADER,
            "position": "pose.pose.position",
            "orientation": "pose.pose.orientation",
            "velocity": "twist.twist.linear",
            "angular_velocity": "twist.twist.angular",
        },
    ),
    data.Imu: _Layout("sensor_msgs/msg/Imu", _HEADER),
    data.CompressedImage: _Layout("sensor_msgs/msg/CompressedImage", _HEADER),
    data.DepthImage: _Layout("sensor_msgs/msg/Image", _HEADER),
    data.CameraInfo: _Layout("sensor_msgs/msg/CameraInfo", _HEADER),
    data.FrameRequest: _Layout("std_msgs/msg/Header"),
    data.VelocityCommand: _Layout("nav_msgs_ext/msg/VelocityCommand"),
    data.DroneState: _Layout("nav_msgs_ext/msg/DroneState"),
    data.Decision: _Layout("nav_msgs_ext/msg/Decision"),
    data.GoalState: _Layout("nav_msgs_ext/msg/GoalState"),
    data.EngineStatus: _Layout("nav_msgs_ext/msg/EngineStatus"),
    data.LinkState: _Layout("nav_msgs_ext/msg/LinkState"),
    data.NavigateGoal: _Layout("nav_msgs_ext/action/Navigate_Goal"),
    data.NavigateResult: _Layout("nav_msgs_ext/action/Navigate_Result"),
    data.NavigateFeedback: _Layout("nav_msgs_ext/action/Navigate_Feedback"),
    data.GenerateGoal: _Layout("nav_msgs_ext/action/Generate_Goal"),
    data.GenerateResult: _Layout("nav_msgs_ext/action/Generate_Result"),
    data.PrimeRequest: _Layout("nav_msgs_ext/srv/Prime_Request"),
    data.PrimeResponse: _Layout("nav_msgs_ext/srv/Prime_Response"),
    data.AskRequest: _Layout("nav_msgs_ext/srv/Ask_Request"),
    data.AskResponse: _Layout("nav_msgs_ext/srv/Ask_Response"),
    data.WatchRequest: _Layout("nav_msgs_ext/srv/Watch_Request"),
    data.WatchResponse: _Layout("nav_msgs_ext/srv/Watch_Response"),
    data.WatchEvent: _Layout("nav_msgs_ext/msg/WatchEvent"),
    data.ActiveFrames: _Layout("nav_msgs_ext/msg/ActiveFrames"),
    data.RecallRequest: _Layout("nav_msgs_ext/srv/Recall_Request"),
    data.RecallResponse: _Layout("nav_msgs_ext/srv/Recall_Response"),
    data.Marker: _Layout(
        "visualization_msgs/msg/Marker",
        {**_HEADER, "position": "pose.position", "orientation": "pose.orientation"},
    ),
    data.MarkerArray: _Layout("visualization_msgs/msg/MarkerArray"),
    data.ServiceReply: _Layout("std_srvs/srv/Trigger_Response"),
}

TYPES = tuple(_LAYOUTS)
"""Every dataclass that has a message."""


def type_name(cls: type[Any]) -> str:
    """The ROS type of a dataclass's message, such as "nav_msgs_ext/msg/Decision".

    Raises:
        ConversionError: the class has no message.
    """
    layout = _LAYOUTS.get(cls)
    if layout is None:
        raise ConversionError(
            f"{cls.__name__} has no message; those that have: {', '.join(t.__name__ for t in TYPES)}"
        )
    return layout.type


Make = Callable[[str], Any]


def to_message(value: Any, message: Any, make: Make = cdr.make) -> Any:
    """`message`, an empty one of `type_name(type(value))`, filled with `value`.

    Args:
        make: gives an empty message of a type's name, of `message`'s own kind: for messages in sequences.

    Raises:
        ConversionError: a stamp that is not finite or does not fit, a number outside the field's range.
    """
    cls = type(value)
    type_name(cls)
    special = _TO_MESSAGE.get(cls)
    if special is not None:
        special(value, message, make)
    for each in _PLAIN_FIELDS[cls]:
        owner = message
        for part in each.owner:
            owner = getattr(owner, part)
        try:
            each.write(owner, each.last, getattr(value, each.name))
        except (ValueError, TypeError, AssertionError, OverflowError) as error:
            raise ConversionError(
                f"{cls.__name__}.{each.name} is {getattr(value, each.name)!r:.80}: {error}"
            ) from error
    return message


def from_message(cls: type[T], message: Any) -> T:
    """The data of a message.

    Raises:
        ConversionError: a field is missing (a message of another definition), or holds what the data cannot.
    """
    type_name(cls)
    values: dict[str, Any] = {}
    special = _FROM_MESSAGE.get(cls)
    try:
        if special is not None:
            values = special(message)
        for each in _PLAIN_FIELDS[cls]:
            found = message
            for part in each.owner:
                found = getattr(found, part)
            values[each.name] = each.read(getattr(found, each.last))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"{type_name(cls)} cannot be read as {cls.__name__}: {error}") from error
    return cls(**values)


def encode(value: Any) -> bytes:
    """`value` as the CDR bytes of its message, header included.

    Raises:
        ConversionError: as `to_message`.
    """
    name = type_name(type(value))
    try:
        return cdr.pack(name, to_message(value, cdr.make(name)))
    except cdr.CdrError as error:
        raise ConversionError(str(error)) from error


def decode(cls: type[T], payload: bytes) -> T:
    """The data in the CDR bytes of its message.

    Raises:
        ConversionError: the bytes are no such message, or as `from_message`.
    """
    try:
        message = cdr.unpack(type_name(cls), payload)
    except cdr.CdrError as error:
        raise ConversionError(str(error)) from error
    return from_message(cls, message)


# --- fields that keep their names


@dataclass(frozen=True)
class _Field:
    """Where a dataclass's field stands in the message (attributes `owner`, then `last`), and how it gets there."""

    name: str
    owner: tuple[str, ...]
    last: str
    write: Callable[[Any, str, Any], None]
    read: Callable[[Any], Any]


def _field(layout: _Layout, name: str, hint: Any) -> _Field:
    known = {each.name: each.type for each in cdr.FIELDS[layout.type]}
    path = layout.paths.get(name)
    if path is None:
        path = name if name in known else name.removesuffix("_s")
    *owner, last = path.split(".")
    is_time = last == "stamp" or known.get(last) == "builtin_interfaces/msg/Time"
    write, read = (_write_time, stamps.to_seconds) if is_time else _CODECS.get(hint, (None, None))
    if write is None and isinstance(hint, type) and issubclass(hint, Enum):
        write, read = _write_int, hint
    if write is None or read is None:
        raise AssertionError(f"no conversion of {name}: {hint}")
    return _Field(name, tuple(owner), last, write, read)


def _write_time(owner: Any, name: str, seconds: float) -> None:
    stamp = getattr(owner, name)
    stamp.sec, stamp.nanosec = stamps.split(seconds)


def _write_vector(owner: Any, name: str, value: Vector) -> None:
    vector = getattr(owner, name)
    vector.x, vector.y, vector.z = map(float, value)


def _read_vector(vector: Any) -> Vector:
    return Vector(float(vector.x), float(vector.y), float(vector.z))


def _write_quaternion(owner: Any, name: str, value: Quaternion) -> None:
    quaternion = getattr(owner, name)
    quaternion.w, quaternion.x, quaternion.y, quaternion.z = map(float, value)


def _read_quaternion(q: Any) -> Quaternion:
    return Quaternion(float(q.w), float(q.x), float(q.y), float(q.z))


def _write_color(owner: Any, name: str, value: data.Color) -> None:
    color = getattr(owner, name)
    color.r, color.g, color.b, color.a = map(float, value)


def _read_color(color: Any) -> data.Color:
    return data.Color(float(color.r), float(color.g), float(color.b), float(color.a))


def _write_twist(owner: Any, name: str, value: data.Twist) -> None:
    twist = getattr(owner, name)
    _write_vector(twist, "linear", value.linear)
    _write_vector(twist, "angular", value.angular)


def _read_twist(twist: Any) -> data.Twist:
    return data.Twist(_read_vector(twist.linear), _read_vector(twist.angular))


def _write_int(owner: Any, name: str, value: int) -> None:
    setattr(owner, name, int(value))


def _write_sequence(owner: Any, name: str, value: tuple[Any, ...]) -> None:
    setattr(owner, name, list(value))


def _as(cls: Callable[[Any], Any]) -> tuple[Callable[[Any, str, Any], None], Callable[[Any], Any]]:
    def write(owner: Any, name: str, value: Any) -> None:
        setattr(owner, name, cls(value))

    return write, cls


# rclpy asserts the exact types of what is assigned: an int in a float field is an error there.
_CODECS: dict[Any, tuple[Callable[[Any, str, Any], None], Callable[[Any], Any]]] = {
    float: _as(float),
    int: _as(int),
    bool: _as(bool),
    str: _as(str),
    bytes: _as(bytes),
    tuple[str, ...]: (_write_sequence, lambda value: tuple(map(str, value))),
    tuple[int, ...]: (_write_sequence, lambda value: tuple(map(int, value))),
    tuple[float, ...]: (_write_sequence, lambda value: tuple(map(float, value))),
    Vector: (_write_vector, _read_vector),
    Quaternion: (_write_quaternion, _read_quaternion),
    data.Color: (_write_color, _read_color),
    data.Twist: (_write_twist, _read_twist),
}


# --- pictures


def _write_depth(value: data.DepthImage, message: Any, make: Make) -> None:
    height, width = value.depth_m.shape
    message.height, message.width = int(height), int(width)
    message.encoding = "32FC1"
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = 4 * int(width)
    message.data = np.ascontiguousarray(value.depth_m, np.float32).tobytes()


def _read_depth(message: Any) -> dict[str, Any]:
    if message.encoding != "32FC1":
        raise ValueError(f"encoding is {message.encoding!r}, must be 32FC1")
    order = ">f4" if message.is_bigendian else "<f4"
    values = np.frombuffer(message.data, order)
    if values.size != message.height * message.width:
        raise ValueError(f"{message.width}x{message.height} pixels announced, {values.size} in the data")
    return {"depth_m": values.reshape(message.height, message.width).astype(np.float32, copy=False)}


def _write_camera(value: data.CameraInfo, message: Any, make: Make) -> None:
    fx, fy, cx, cy = (float(v) for v in (value.fx, value.fy, value.cx, value.cy))
    message.distortion_model = "plumb_bob"
    message.d = [0.0] * 5
    message.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]


def _read_camera(message: Any) -> dict[str, Any]:
    k = [float(value) for value in message.k]
    return {"fx": k[0], "fy": k[4], "cx": k[2], "cy": k[5]}


# --- markers


def _write_points(value: data.Marker, message: Any, make: Make) -> None:
    points = [make("geometry_msgs/msg/Point") for _ in value.points]
    for point, (x, y, z) in zip(points, value.points, strict=True):
        point.x, point.y, point.z = float(x), float(y), float(z)
    message.points = points


def _read_points(message: Any) -> dict[str, Any]:
    return {"points": tuple(map(_read_vector, message.points))}


def _write_markers(value: data.MarkerArray, message: Any, make: Make) -> None:
    name = type_name(data.Marker)
    message.markers = [to_message(marker, make(name), make) for marker in value.markers]


def _read_markers(message: Any) -> dict[str, Any]:
    return {"markers": tuple(from_message(data.Marker, marker) for marker in message.markers)}


_TO_MESSAGE: dict[type[Any], Callable[[Any, Any, Make], None]] = {
    data.DepthImage: _write_depth,
    data.CameraInfo: _write_camera,
    data.Marker: _write_points,
    data.MarkerArray: _write_markers,
}
_FROM_MESSAGE: dict[type[Any], Callable[[Any], dict[str, Any]]] = {
    data.DepthImage: _read_depth,
    data.CameraInfo: _read_camera,
    data.Marker: _read_points,
    data.MarkerArray: _read_markers,
}
_SPECIAL_FIELDS: dict[type[Any], frozenset[str]] = {
    data.DepthImage: frozenset({"depth_m"}),
    data.CameraInfo: frozenset({"fx", "fy", "cx", "cy"}),
    data.Marker: frozenset({"points"}),
    data.MarkerArray: frozenset({"markers"}),
}


def _plain_fields(cls: type[Any], layout: _Layout) -> tuple[_Field, ...]:
    hints, special = get_type_hints(cls), _SPECIAL_FIELDS.get(cls, frozenset())
    return tuple(_field(layout, one.name, hints[one.name]) for one in fields(cls) if one.name not in special)


_PLAIN_FIELDS = {cls: _plain_fields(cls, layout) for cls, layout in _LAYOUTS.items()}
