"""Conversions between AirSim's frames and ROS's: known cases, and laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nav_common import frames
from nav_common.frames import Quaternion, Vector

unit = st.floats(-1.0, 1.0)
vectors = st.builds(Vector, *(st.floats(-1e3, 1e3) for _ in range(3)))


@st.composite
def rotations(draw):
    q = [draw(unit) for _ in range(4)]
    norm = math.sqrt(sum(c * c for c in q))
    if norm < 1e-3:
        return Quaternion(1.0, 0.0, 0.0, 0.0)
    return Quaternion(*(c / norm for c in q))


def about_z(angle):
    return Quaternion(math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))


def test_north_east_down_becomes_east_north_up():
    assert frames.enu_from_ned(Vector(1.0, 2.0, 3.0)) == Vector(2.0, 1.0, -3.0)


@pytest.mark.parametrize("yaw_ned_deg", [0, 30, 90, 179, -120])
def test_yaw_is_counted_from_east_the_other_way(yaw_ned_deg):
    q = frames.enu_flu_from_ned_frd(about_z(math.radians(yaw_ned_deg)))
    expected = frames.wrap_angle(math.radians(90 - yaw_ned_deg))
    assert frames.wrap_angle(frames.yaw(q) - expected) == pytest.approx(0.0, abs=1e-9)


def test_left_in_ros_is_a_negative_rate_in_degrees_for_airsim():
    assert frames.airsim_yaw_rate_deg(math.radians(30)) == pytest.approx(-30.0)


@given(rotations(), vectors)
def test_both_descriptions_move_a_body_vector_to_the_same_place(q, v):
    """Law: converting the rotated vector equals rotating the converted one."""
    in_ned = frames.rotate(q, v)
    in_enu = frames.rotate(frames.enu_flu_from_ned_frd(q), frames.flu_from_frd(v))
    assert in_enu == pytest.approx(frames.enu_from_ned(in_ned), abs=1e-6)


@given(rotations(), vectors)
def test_body_velocity_is_the_world_velocity_seen_from_the_body(q, v):
    body = frames.body_velocity_from_ned(q, v)
    again = frames.ned_from_enu(frames.rotate(frames.enu_flu_from_ned_frd(q), body))
    assert again == pytest.approx(v, abs=1e-6)


def test_the_optical_frame_looks_along_the_body_x():
    forward = frames.rotate(frames.OPTICAL_IN_FLU, Vector(0.0, 0.0, 1.0))
    right = frames.rotate(frames.OPTICAL_IN_FLU, Vector(1.0, 0.0, 0.0))
    assert forward == pytest.approx(Vector(1.0, 0.0, 0.0), abs=1e-12)
    assert right == pytest.approx(Vector(0.0, -1.0, 0.0), abs=1e-12)
