"""The graph's messages as CDR, byte for byte as rclpy writes them, without ROS: what bags hold and the link carries.

A message is an object with an attribute for each field: what `make` and `unpack` return (`Message`), and rclpy's own.
Nested messages are such objects too, sequences are lists, except `uint8[]`, which is bytes. Attributes that are missing
have ROS's defaults (zero, empty).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


class Message(SimpleNamespace):
    """A message without ROS: one attribute a field."""


# The definitions, in the words of the .msg, .srv and .action files (a service's and an action's parts are named as ROS
# names them: Prime_Request, Generate_Goal); a test compares each with the installed ROS package.
DEFINITIONS = {
    "builtin_interfaces/msg/Time": "int32 sec, uint32 nanosec",
    "builtin_interfaces/msg/Duration": "int32 sec, uint32 nanosec",
    "std_msgs/msg/Header": "builtin_interfaces/Time stamp, string frame_id",
    "std_msgs/msg/Bool": "boolean data",
    "std_msgs/msg/ColorRGBA": "float r, float g, float b, float a",
    "geometry_msgs/msg/Vector3": "double x, double y, double z",
    "geometry_msgs/msg/Point": "double x, double y, double z",
    "geometry_msgs/msg/Quaternion": "double x, double y, double z, double w = 1.0",
    "geometry_msgs/msg/Pose": "geometry_msgs/Point position, geometry_msgs/Quaternion orientation",
    "geometry_msgs/msg/PoseWithCovariance": "geometry_msgs/Pose pose, double[36] covariance",
    "geometry_msgs/msg/Twist": "geometry_msgs/Vector3 linear, geometry_msgs/Vector3 angular",
    "geometry_msgs/msg/TwistStamped": "std_msgs/Header header, geometry_msgs/Twist twist",
    "geometry_msgs/msg/TwistWithCovariance": "geometry_msgs/Twist twist, double[36] covariance",
    "nav_msgs/msg/Odometry": "std_msgs/Header header, string child_frame_id, "
    "geometry_msgs/PoseWithCovariance pose, geometry_msgs/TwistWithCovariance twist",
    "sensor_msgs/msg/CompressedImage": "std_msgs/Header header, string format, uint8[] data",
    "sensor_msgs/msg/Image": "std_msgs/Header header, uint32 height, uint32 width, string encoding, "
    "uint8 is_bigendian, uint32 step, uint8[] data",
    "sensor_msgs/msg/RegionOfInterest": "uint32 x_offset, uint32 y_offset, uint32 height, uint32 width, "
    "boolean do_rectify",
    "sensor_msgs/msg/CameraInfo": "std_msgs/Header header, uint32 height, uint32 width, string distortion_model, "
    "double[] d, double[9] k, double[9] r, double[12] p, uint32 binning_x, uint32 binning_y, "
    "sensor_msgs/RegionOfInterest roi",
    "sensor_msgs/msg/Imu": "std_msgs/Header header, geometry_msgs/Quaternion orientation, "
    "double[9] orientation_covariance, geometry_msgs/Vector3 angular_velocity, "
    "double[9] angular_velocity_covariance, geometry_msgs/Vector3 linear_acceleration, "
    "double[9] linear_acceleration_covariance",
    "diagnostic_msgs/msg/KeyValue": "string key, string value",
    "diagnostic_msgs/msg/DiagnosticStatus": "octet level, string name, string message, string hardware_id, "
    "diagnostic_msgs/KeyValue[] values",
    "diagnostic_msgs/msg/DiagnosticArray": "std_msgs/Header header, diagnostic_msgs/DiagnosticStatus[] status",
    "visualization_msgs/msg/UVCoordinate": "float u, float v",
    "visualization_msgs/msg/MeshFile": "string filename, uint8[] data",
    "visualization_msgs/msg/Marker": "std_msgs/Header header, string ns, int32 id, int32 type, int32 action, "
    "geometry_msgs/Pose pose, geometry_msgs/Vector3 scale, std_msgs/ColorRGBA color, "
    "builtin_interfaces/Duration lifetime, boolean frame_locked, geometry_msgs/Point[] points, "
    "std_msgs/ColorRGBA[] colors, string texture_resource, sensor_msgs/CompressedImage texture, "
    "visualization_msgs/UVCoordinate[] uv_coordinates, string text, string mesh_resource, "
    "visualization_msgs/MeshFile mesh_file, boolean mesh_use_embedded_materials",
    "visualization_msgs/msg/MarkerArray": "visualization_msgs/Marker[] markers",
    "std_srvs/srv/Trigger_Response": "boolean success, string message",
    "std_srvs/srv/SetBool_Request": "boolean data",
    "std_srvs/srv/SetBool_Response": "boolean success, string message",
    "nav_msgs_ext/msg/VelocityCommand": "builtin_interfaces/Time stamp, uint64 epoch, uint64 sequence, "
    "geometry_msgs/Twist twist",
    "nav_msgs_ext/msg/DroneState": "builtin_interfaces/Time stamp, uint8 flying_mode, uint8 gate_mode, "
    "string gate_reason, uint64 epoch, boolean connected, string fault, boolean api_control, boolean armed, "
    "boolean landed, uint32 collision_count, string last_collision_object, uint32 reflex_interventions, "
    "string reflex_reason, uint32 commands_refused, string last_refusal, double clock_offset_s",
    "nav_msgs_ext/msg/Decision": "builtin_interfaces/Time stamp, builtin_interfaces/Time ask_stamp, "
    "builtin_interfaces/Time frame_stamp, builtin_interfaces/Time barrier_stamp, string goal_id, "
    "string instruction, uint32 step, string tool, string arguments, string previous_result, uint8 status, "
    "string message, double barrier_ms, double ttft_ms, double generate_ms, double framework_ms, "
    "double total_ms, uint32 tokens_in, uint32 tokens_sampled, uint32 tokens_forced, uint32 cached_tokens, "
    "boolean hovering, string reason",
    "nav_msgs_ext/msg/EngineStatus": "builtin_interfaces/Time stamp, uint64 memory_resets, uint32 cached_tokens, "
    "uint32 sink_tokens, uint32 window_tokens, uint32 budget_tokens, uint32 chunks, uint64 chunks_appended, "
    "uint64 frames_received, uint64 frames_broken, uint64 frames_replaced, uint64 frames_appended, "
    "uint64 frames_provisional, uint64 evictions, uint64 asks, uint64 generations, double append_ms, "
    "double ask_ms, double ttft_ms, double frame_latency_ms, double frame_age_s, double rss_mib, double gpu_mib, "
    "string backend",
    "nav_msgs_ext/msg/GoalState": "builtin_interfaces/Time stamp, string goal_id, string instruction, "
    "uint8 state, uint32 decisions, uint8 outcome, string reason",
    "nav_msgs_ext/msg/LinkState": "builtin_interfaces/Time stamp, boolean up, string peer, string fault, "
    "uint32 outages, double answer_age_s, double round_trip_ms, double jitter_ms, double loss, "
    "double clock_offset_s, double clock_offset_bound_s, double image_age_ms, double command_age_ms, "
    "uint32 window, uint32 jpeg_quality, double image_rate_hz, double sent_mbit_s, double received_mbit_s, "
    "uint64 sent, uint64 received, uint64 dropped, uint64 refused",
    "nav_msgs_ext/srv/Prime_Request": "string system_prompt, string tools",
    "nav_msgs_ext/srv/Prime_Response": "boolean success, string message, string prompt_id, uint64 memory_resets, "
    "uint32 tokens, double elapsed_ms",
    "nav_msgs_ext/srv/Ask_Request": "string question, string[] choices, uint32 max_new_tokens, string kind",
    "nav_msgs_ext/srv/Ask_Response": "boolean success, string message, string answer, "
    "builtin_interfaces/Time frame_stamp, double ttft_ms, double total_ms, uint32 tokens_in, uint32 tokens_sampled, "
    "uint32 cached_tokens",
    "nav_msgs_ext/msg/WatchEvent": "builtin_interfaces/Time stamp, string owner, string watch, boolean holds, "
    "boolean hover, double probability, builtin_interfaces/Time frame_stamp, double cost_ms",
    "nav_msgs_ext/msg/ActiveFrames": "builtin_interfaces/Time stamp, string[] frames, double[] frame_stamps_s, "
    "string[] entities, string[] recalled, uint32 archived, uint64 retrievals, uint64 extra_tokens, "
    "double extra_latency_ms",
    "nav_msgs_ext/srv/Recall_Request": "string entity",
    "nav_msgs_ext/srv/Recall_Response": "boolean success, string message, string entity_id, string name, "
    "double[] frame_stamps_s, string[] frames",
    "nav_msgs_ext/srv/Watch_Request": "string owner, string[] watches, string[] hover_watches",
    "nav_msgs_ext/srv/Watch_Response": "boolean success, string message",
    "nav_msgs_ext/action/Generate_Goal": "string prompt_id, string instruction, string[] recent_calls, "
    "uint32 max_new_tokens, double temperature, builtin_interfaces/Time earliest_frame, double deadline_s, "
    "string kind",
    "nav_msgs_ext/action/Generate_Result": "uint8 status, string message, string text, string tool_call, "
    "builtin_interfaces/Time frame_stamp, uint64 memory_resets, double barrier_ms, double ttft_ms, double total_ms, "
    "uint32 tokens_in, uint32 tokens_sampled, uint32 tokens_forced, uint32 cached_tokens",
    "nav_msgs_ext/action/Navigate_Goal": "string[] instructions, uint32[] switch_frame_indices, "
    "uint32 max_decisions, double time_limit_s, string[] watches, string[] hover_watches",
    "nav_msgs_ext/action/Navigate_Result": "uint8 outcome, string reason, uint32 decisions, double distance_m, "
    "uint32 collisions, uint32 instruction_index",
    "nav_msgs_ext/action/Navigate_Feedback": "uint8 state, uint32 decisions, uint32 instruction_index, "
    "string last_tool_call, string last_result, double odometry_age_s, double frame_age_s, double cache_use",
}

ADDED = {"nav_msgs_ext/msg/Decision": "reason", "nav_msgs_ext/msg/EngineStatus": "backend"}
"""The last field of a message, which recordings of before lack: there it reads as its default."""

_HEADERS = {"<": b"\x00\x01\x00\x00", ">": b"\x00\x00\x00\x00"}
_LEAST_STRING = 5  # its length and its NUL; what is left of a message without one is padding
# Format characters of struct; each is aligned to its own size.
_PRIMITIVES = {
    "boolean": "?",
    "octet": "B",
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float": "f",
    "double": "d",
}


class CdrError(ValueError):
    """A message that cannot be packed, or bytes that are no such message; says which type and field, and why."""


@dataclass(frozen=True)
class Field:
    """`type`: a primitive, "string", or a message's full name. `count`: None for one value, 0 for a sequence of any
    length, otherwise the length of an array."""

    name: str
    type: str
    count: int | None = None
    default: float | None = None


def _parse(definition: str) -> tuple[Field, ...]:
    fields = []
    for entry in definition.split(", "):
        declaration, _, default = entry.partition(" = ")
        kind, name = declaration.split(" ")
        kind, bracket, count = kind.partition("[")
        if "/" in kind:
            kind = kind.replace("/", "/msg/")
        length = None if not bracket else int(count[:-1] or 0)
        fields.append(Field(name, kind, length, float(default) if default else None))
    return tuple(fields)


FIELDS = {name: _parse(definition) for name, definition in DEFINITIONS.items()}


def make(type_name: str, /, **values: Any) -> Message:
    """A message of that type: `values` by field name (a nested message may be a dictionary), the rest ROS's defaults.

    Raises:
        CdrError: unknown type or field.
    """
    fields = _fields(type_name)
    unknown = set(values) - {field.name for field in fields}
    if unknown:
        raise CdrError(f"{type_name} has no field {', '.join(sorted(unknown))}")
    return Message(**{field.name: _value_of(field, values.get(field.name)) for field in fields})


def _value_of(field: Field, value: Any) -> Any:
    if isinstance(value, dict):
        return make(field.type, **value)
    if isinstance(value, list) and "/" in field.type:
        return [make(field.type, **one) if isinstance(one, dict) else one for one in value]
    if value is not None:
        return value
    if field.count is not None:
        return b"" if field.type == "uint8" else [0] * field.count
    if "/" in field.type:
        return make(field.type)
    if field.type == "string":
        return ""
    if field.type == "boolean":
        return False
    return field.default if field.default is not None else (0.0 if field.type in ("float", "double") else 0)


def pack(type_name: str, message: object) -> bytes:
    """`message` as CDR with its header of four bytes, little-endian.

    Raises:
        CdrError: unknown type, a value of the wrong type or outside its range, an array of another length.
    """
    writer = _Writer()
    writer.message(_fields(type_name), message, type_name)
    return bytes(writer.data)


def unpack(type_name: str, data: bytes) -> Message:
    """The message in `data`, of either byte order.

    Raises:
        CdrError: unknown type, no CDR header, data that ends too early or holds what the type cannot.
    """
    fields = _fields(type_name)
    for order, header in _HEADERS.items():
        if data[:4] == header:
            return _Reader(data, order).message(fields, type_name, ADDED.get(type_name))
    raise CdrError(f"{type_name}: data begins with {bytes(data[:4])!r}, which is no header of plain CDR")


def stamp_ns(data: bytes) -> int:
    """The stamp with which a serialised message begins, ns, without reading on; 0 for what is too short to have one."""
    if len(data) < 12:
        return 0
    sec, nanosec = struct.unpack_from("<iI" if data[1] == 1 else ">iI", data, 4)
    return int(max(sec * 10**9 + nanosec, 0))


def _fields(type_name: str) -> tuple[Field, ...]:
    fields = FIELDS.get(type_name)
    if fields is None:
        raise CdrError(f"message type {type_name!r} is not known here; known are {', '.join(FIELDS)}")
    return fields


class _Writer:
    PADDING = b"\0"  # rmw_fastrtps leaves what its buffer held before

    def __init__(self) -> None:
        self.data = bytearray(_HEADERS["<"])

    def message(self, fields: tuple[Field, ...], message: object, where: str) -> None:
        for field in fields:
            value = getattr(message, field.name, None)
            try:
                self._field(field, value, f"{where}.{field.name}")
            except CdrError:
                raise
            except (struct.error, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise CdrError(
                    f"{where}.{field.name} is {value!r:.80}, must be {field.type}: {error}"
                ) from error

    def _field(self, field: Field, value: Any, where: str) -> None:
        if field.count is None:
            self._value(field, value, where)
            return
        values = value if value is not None else ([0] * field.count if field.count else [])
        if field.count and len(values) != field.count:
            raise CdrError(f"{where} has {len(values)} values, must have {field.count}")
        if not field.count:
            self._primitive("I", len(values))
        if not len(values):
            return
        if field.type == "uint8":
            self.data += bytes(values)
        elif field.type in _PRIMITIVES:
            self._primitive(_PRIMITIVES[field.type], *values)
        else:
            for one in values:
                self._value(field, one, where)

    def _value(self, field: Field, value: Any, where: str) -> None:
        if field.type == "string":
            text = ("" if value is None else value).encode() + b"\0"
            self._primitive("I", len(text))
            self.data += text
        elif field.type == "octet" and isinstance(value, bytes):
            self._primitive("B", *value)  # rclpy's form
        elif field.type in _PRIMITIVES:
            default = field.default if field.default is not None else 0
            self._primitive(_PRIMITIVES[field.type], default if value is None else value)
        else:
            self.message(FIELDS[field.type], value, where)

    def _primitive(self, code: str, *values: Any) -> None:
        size = struct.calcsize(code)
        self.data += self.PADDING * (-(len(self.data) - 4) % size)  # alignment counts from after the header
        self.data += struct.pack(f"<{len(values)}{code}" if len(values) > 1 else "<" + code, *values)


class _Reader:
    def __init__(self, data: bytes, order: str) -> None:
        self._data = memoryview(data)[4:]
        self._order = order
        self._at = 0

    def message(self, fields: tuple[Field, ...], where: str, added: str | None = None) -> Message:
        """added: the last field, if it may be missing."""
        values = {}
        for field in fields:
            missing = field.name == added and len(self._data) - self._at < _LEAST_STRING
            values[field.name] = (
                _value_of(field, None) if missing else self._field(field, f"{where}.{field.name}")
            )
        return Message(**values)

    def _field(self, field: Field, where: str) -> Any:
        if field.count is None:
            return self._value(field, where)
        count = field.count or self._primitive("I", 1, where)[0]
        if field.type == "uint8":
            return bytes(self._take(count, where))
        if field.type in _PRIMITIVES:
            return list(self._primitive(_PRIMITIVES[field.type], count, where)) if count else []
        if count > len(self._data) - self._at:  # a lie about the length must not cost memory
            raise CdrError(f"{where}: {count} elements announced, {len(self._data) - self._at} bytes left")
        return [self._value(field, where) for _ in range(count)]

    def _value(self, field: Field, where: str) -> Any:
        if field.type == "string":
            text = bytes(self._take(self._primitive("I", 1, where)[0], where))
            if not text.endswith(b"\0"):
                raise CdrError(f"{where}: the string does not end in NUL")
            try:
                return text[:-1].decode()
            except UnicodeDecodeError as error:
                raise CdrError(f"{where}: {error}") from error
        if field.type in _PRIMITIVES:
            return self._primitive(_PRIMITIVES[field.type], 1, where)[0]
        return self.message(FIELDS[field.type], where)

    def _primitive(self, code: str, count: int, where: str) -> tuple[Any, ...]:
        size = struct.calcsize(code)
        self._at += -self._at % size
        return struct.unpack(f"{self._order}{count}{code}", self._take(count * size, where))

    def _take(self, count: int, where: str) -> memoryview:
        end = self._at + count
        if end > len(self._data):
            raise CdrError(f"{where}: {count} bytes expected, {max(len(self._data) - self._at, 0)} left")
        taken = self._data[self._at : end]
        self._at = end
        return taken
