"""A dataclass and its message hold the same, through CDR and through rclpy; what neither holds is refused by name."""

import math
from dataclasses import fields, replace
from enum import Enum
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nav_common import cdr, conversions, data
from nav_common.frames import Quaternion, Vector

FLOATS = st.floats(-1e6, 1e6)
VECTORS = st.builds(Vector, FLOATS, FLOATS, FLOATS)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
STAMPS = st.integers(0, 2**31 - 1).map(float)
DEPTHS = st.integers(1, 4).flatmap(
    lambda h: st.integers(1, 4).map(lambda w: np.arange(h * w, dtype=np.float32).reshape(h, w))
)
ONE_OF = {
    float: FLOATS,
    int: st.integers(0, 255),
    bool: st.booleans(),
    str: TEXT,
    bytes: st.binary(max_size=40),
    tuple[str, ...]: st.lists(TEXT, max_size=3).map(tuple),
    tuple[int, ...]: st.lists(st.integers(0, 255), max_size=3).map(tuple),
    tuple[float, ...]: st.lists(FLOATS, max_size=3).map(tuple),
    Vector: VECTORS,
    Quaternion: st.builds(Quaternion, FLOATS, FLOATS, FLOATS, FLOATS),
    data.Twist: st.builds(data.Twist, VECTORS, VECTORS),
    data.Color: st.builds(data.Color, *[st.floats(0, 1, width=32)] * 4),
    tuple[Vector, ...]: st.lists(VECTORS, max_size=3).map(tuple),
    np.ndarray: DEPTHS,
}


def instances(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    parts: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields(cls):
        hint = hints[field.name]
        if field.name.endswith("stamp_s") or field.name == "earliest_frame_s":
            parts[field.name] = STAMPS
        elif isinstance(hint, type) and issubclass(hint, Enum):
            parts[field.name] = st.sampled_from(hint)
        else:
            parts[field.name] = ONE_OF[hint]
    return st.builds(cls, **parts)


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        assert type(left) is type(right), field.name
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right, field.name


ONE_OF[tuple[data.Marker, ...]] = st.lists(instances(data.Marker), max_size=2).map(tuple)


@pytest.mark.parametrize("cls", conversions.TYPES)
@settings(max_examples=20, deadline=None)
@given(drawn=st.data())
def test_data_survives_cdr_and_rclpy(ros, cls, drawn):
    from rclpy.serialization import serialize_message

    value = drawn.draw(instances(cls))
    encoded = conversions.encode(value)
    assert_equal(conversions.decode(cls, encoded), value)
    message = ros.to_ros(value)
    assert_equal(ros.from_ros(cls, message), value)
    assert_equal(conversions.decode(cls, serialize_message(message)), value)
    assert cdr.pack(conversions.type_name(cls), message) == encoded


@pytest.mark.parametrize("cls", conversions.TYPES)
def test_every_field_of_a_message_is_a_field_of_its_dataclass(cls):
    """Nothing of our own messages is lost on the way (of ROS's, covariances and the like are)."""
    name = conversions.type_name(cls)
    if not name.startswith("nav_msgs_ext/"):
        return
    ours = {field.name for field in fields(cls)}
    for field in cdr.FIELDS[name]:
        assert (f"{field.name}_s" if field.type == "builtin_interfaces/msg/Time" else field.name) in ours


def test_enums_are_numbered_as_the_messages_constants(ros):
    for enum, message, prefix in (
        (data.FlyingMode, "nav_msgs_ext/msg/DroneState", "FLYING_"),
        (data.GateMode, "nav_msgs_ext/msg/DroneState", "GATE_"),
        (data.GenerateStatus, "nav_msgs_ext/msg/Decision", "STATUS_"),
        (data.GenerateStatus, "nav_msgs_ext/action/Generate_Result", "STATUS_"),
        (data.NavigateState, "nav_msgs_ext/msg/GoalState", "STATE_"),
        (data.Outcome, "nav_msgs_ext/action/Navigate_Result", "OUTCOME_"),
    ):
        cls = ros.message_type(message)
        theirs = {
            name.removeprefix(prefix): getattr(cls, name) for name in dir(cls) if name.startswith(prefix)
        }
        assert theirs == {member.name: member.value for member in enum}


def test_markers_are_numbered_as_those_of_ros(ros):
    theirs = ros.message_type("visualization_msgs/msg/Marker")
    for member in (*data.MarkerType, *data.MarkerAction):
        assert getattr(theirs, member.name) == member.value


def test_an_enum_number_that_does_not_exist_is_refused():
    message = cdr.make("nav_msgs_ext/msg/DroneState", gate_mode=9)
    with pytest.raises(conversions.ConversionError, match=r"DroneState.*9 is not a valid GateMode"):
        conversions.from_message(data.DroneState, message)


def test_a_message_of_another_definition_is_refused():
    with pytest.raises(
        conversions.ConversionError, match=r"nav_msgs_ext/msg/GoalState cannot be read.*stamp"
    ):
        conversions.from_message(data.GoalState, cdr.make("std_msgs/msg/Bool"))


@pytest.mark.parametrize("stamp_s", [math.nan, math.inf, 2.0**31])
def test_a_stamp_that_fits_no_message_is_refused(stamp_s):
    with pytest.raises(
        conversions.ConversionError, match=r"DroneState\.stamp_s is .*does not fit a ROS stamp"
    ):
        conversions.encode(data.DroneState(stamp_s))


def test_a_number_outside_its_field_is_refused():
    with pytest.raises(conversions.ConversionError, match=r"DroneState\.epoch is -1, must be uint64"):
        conversions.encode(data.DroneState(1.0, epoch=-1))


def test_bytes_that_are_no_message_are_refused():
    with pytest.raises(conversions.ConversionError, match="VelocityCommand"):
        conversions.decode(data.VelocityCommand, b"\0\1\0\0short")


def test_a_class_without_a_message_is_refused():
    with pytest.raises(conversions.ConversionError, match="Twist has no message"):
        conversions.type_name(data.Twist)


def test_a_depth_picture_of_another_encoding_or_size_is_refused():
    message = conversions.to_message(
        data.DepthImage(1.0, np.zeros((2, 3), np.float32)), cdr.make("sensor_msgs/msg/Image")
    )
    message.width = 4
    with pytest.raises(conversions.ConversionError, match="4x2 pixels announced, 6 in the data"):
        conversions.from_message(data.DepthImage, message)
    message.encoding = "16UC1"
    with pytest.raises(conversions.ConversionError, match="must be 32FC1"):
        conversions.from_message(data.DepthImage, message)


def test_hover_is_the_zero_twist():
    assert data.HOVER.is_hover
    assert data.Twist.body(up_m_s=0.1).linear == Vector(0.0, 0.0, 0.1)
    assert not data.Twist.body(yaw_rate_rad_s=-0.1).is_hover
    assert not replace(data.HOVER, angular=Vector(0.0, math.nan, 0.0)).is_finite
