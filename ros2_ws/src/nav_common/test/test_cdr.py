"""CDR without ROS is what rclpy writes, byte for byte, both ways; and nonsense is refused by name."""

import math
from types import ModuleType
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nav_common import cdr, topics

BOUNDS = {
    "octet": (0, 255),
    "uint8": (0, 2**8 - 1),
    "int8": (-(2**7), 2**7 - 1),
    "uint16": (0, 2**16 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint32": (0, 2**32 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint64": (0, 2**64 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def values(field: cdr.Field) -> st.SearchStrategy:
    """Any value of a field."""
    one: st.SearchStrategy
    if field.type in BOUNDS:
        one = st.integers(*BOUNDS[field.type])
    elif field.type == "boolean":
        one = st.booleans()
    elif field.type == "double":
        one = st.floats(allow_nan=False)
    elif field.type == "float":
        one = st.floats(-(2.0**99), 2.0**99, width=32)  # rclpy refuses the largest of float32
    elif field.type == "string":
        one = TEXT
    else:
        one = messages(field.type)
    if field.count is None:
        return one
    if field.type == "uint8":
        return st.binary(max_size=40)
    return st.lists(one, min_size=field.count, max_size=field.count or 5)


def messages(type_name: str) -> st.SearchStrategy:
    return st.fixed_dictionaries({field.name: values(field) for field in cdr.FIELDS[type_name]})


def ros_message(ros: ModuleType, type_name: str, message: dict):
    result = ros.message_type(type_name)()
    for field in cdr.FIELDS[type_name]:
        value = message[field.name]
        if "/" in field.type:
            value = (
                ros_message(ros, field.type, value)
                if field.count is None
                else [ros_message(ros, field.type, one) for one in value]
            )
        elif field.type == "octet":
            value = bytes([value])
        setattr(result, field.name, value)
    return result


def assert_same(type_name: str, message: dict, theirs: bytes) -> None:
    """Our bytes are theirs, but for padding, whose content rmw_fastrtps leaves to chance: between fields, up to three
    bytes after the end of a message of fixed size, and up to eight more for each empty sequence of doubles, whose
    alignment it counts and does not write: what follows may be counted as aligned further on for that, too."""
    made = cdr.make(type_name, **message)
    ours = cdr.pack(type_name, made)
    with mock.patch.object(cdr._Writer, "PADDING", b"\xff"):
        padded = cdr.pack(type_name, made)
    empty = [
        f for f in cdr.FIELDS[type_name] if f.type == "double" and f.count == 0 and not message.get(f.name)
    ]
    assert len(theirs) - len(ours) in range(4 + 8 * len(empty))
    different = [i for i, byte in enumerate(ours) if byte != theirs[i]]
    assert all(ours[i] != padded[i] for i in different), f"differ at {different}: {ours!r} {theirs!r}"


@pytest.mark.parametrize("type_name", cdr.FIELDS)
def test_definitions_are_those_of_the_installed_packages(ros, type_name):
    installed = ros.message_type(type_name).get_fields_and_field_types()
    ours = {}
    for field in cdr.FIELDS[type_name]:
        kind = field.type.replace("/msg/", "/")
        if field.count is not None:
            kind = f"{kind}[{field.count}]" if field.count else f"sequence<{kind}>"
        ours[field.name] = kind
    assert ours == installed
    assert list(ours) == list(installed)


@pytest.mark.parametrize("type_name", cdr.FIELDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_bytes_are_rclpys_both_ways(ros, type_name, data):
    from rclpy.serialization import serialize_message

    message = data.draw(messages(type_name))
    of_rclpy = ros_message(ros, type_name, message)
    theirs = serialize_message(of_rclpy)
    assert_same(type_name, message, theirs)
    made = cdr.make(type_name, **message)
    packed = cdr.pack(type_name, made)
    assert cdr.unpack(type_name, packed) == cdr.unpack(type_name, theirs) == made
    assert cdr.pack(type_name, of_rclpy) == packed


def test_every_topic_can_be_packed():
    named = [value for value in vars(topics).values() if isinstance(value, topics.Topic)]
    assert {topic.type for topic in named} <= set(cdr.FIELDS)


@pytest.mark.parametrize("type_name", cdr.FIELDS)
def test_fields_left_out_have_the_defaults_of_ros(ros, type_name):
    from rclpy.serialization import serialize_message

    theirs = serialize_message(ros.message_type(type_name)())
    assert_same(type_name, {}, theirs)
    assert cdr.unpack(type_name, theirs) == cdr.make(type_name)
    assert cdr.pack(type_name, cdr.Message()) == cdr.pack(type_name, cdr.make(type_name))


def test_big_endian_is_read():
    data = b"\0\0\0\0" + (7).to_bytes(4, "big") + (9).to_bytes(4, "big")
    assert cdr.unpack("builtin_interfaces/msg/Time", data) == cdr.Message(sec=7, nanosec=9)


def test_nan_survives():
    data = cdr.pack("geometry_msgs/msg/Vector3", cdr.Message(x=math.nan))
    assert math.isnan(cdr.unpack("geometry_msgs/msg/Vector3", data).x)


@pytest.mark.parametrize(
    ("type_name", "message", "words"),
    [
        ("nav_msgs/msg/Path", {}, "nav_msgs/msg/Path' is not known here"),
        ("std_msgs/msg/Bool", {"value": True}, "std_msgs/msg/Bool has no field value"),
        ("builtin_interfaces/msg/Time", {"sec": 2**31}, "Time.sec is 2147483648, must be int32"),
        ("builtin_interfaces/msg/Time", {"nanosec": -1}, "Time.nanosec is -1, must be uint32"),
        ("std_msgs/msg/Header", {"stamp": {"sec": "now"}}, "Header.stamp.sec is 'now', must be int32"),
        ("std_msgs/msg/Header", {"frame_id": 7}, "Header.frame_id is 7, must be string"),
        ("sensor_msgs/msg/CameraInfo", {"k": [1.0]}, "CameraInfo.k has 1 values, must have 9"),
    ],
)
def test_what_cannot_be_packed_is_named(type_name, message, words):
    with pytest.raises(cdr.CdrError) as raised:
        cdr.pack(type_name, cdr.make(type_name, **message))
    assert words in str(raised.value)


@pytest.mark.parametrize("type_name", cdr.FIELDS)
def test_truncated_data_is_refused_wherever_it_ends(type_name):
    packed = cdr.pack(type_name, cdr.make(type_name))
    for end in range(len(packed) - (8 if type_name in cdr.ADDED else 0)):  # an empty string with its padding
        with pytest.raises(cdr.CdrError):
            cdr.unpack(type_name, packed[:end])


@settings(deadline=None)
@given(type_name=st.sampled_from(sorted(cdr.FIELDS)), body=st.binary(max_size=200))
def test_garbage_is_a_message_or_a_clear_error(type_name, body):
    try:
        cdr.unpack(type_name, b"\x00\x01\x00\x00" + body)
    except cdr.CdrError as error:
        assert type_name in str(error)  # noqa: PT017


@pytest.mark.parametrize(("type_name", "added"), cdr.ADDED.items())
def test_a_recording_from_before_a_field_was_added_is_read_with_its_default(type_name, added):
    assert cdr.FIELDS[type_name][-1].name == added
    old = cdr.pack(type_name, cdr.make(type_name, **{added: "x" * 7})).partition(b"\x08\0\0\0xxxxxxx\0")[0]
    assert getattr(cdr.unpack(type_name, old), added) == ""


def test_an_announced_length_costs_no_memory():
    data = b"\x00\x01\x00\x00" + bytes(8) + b"\1\0\0\0\0\0\0\0" + b"\xff\xff\xff\xff"
    with pytest.raises(cdr.CdrError, match=r"DiagnosticArray\.status: 4294967295 elements announced"):
        cdr.unpack("diagnostic_msgs/msg/DiagnosticArray", data)
