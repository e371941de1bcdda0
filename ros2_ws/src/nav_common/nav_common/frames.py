"""Conversions between AirSim's frames (NED world, FRD body) and ROS's (ENU world, FLU body; REP-103).

Positions in metres, velocities in m/s, angles in radians except where AirSim wants degrees and the name says so.
Quaternions are (w, x, y, z) and rotate body vectors into the world.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_S = math.sqrt(0.5)


class Vector(NamedTuple):
    x: float
    y: float
    z: float


class Quaternion(NamedTuple):
    w: float
    x: float
    y: float
    z: float


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Hamilton product a * b: rotate by b first, then by a."""
    return Quaternion(
        a.w * b.w - a.x * b.x - a.y * b.y - a.z * b.z,
        a.w * b.x + a.x * b.w + a.y * b.z - a.z * b.y,
        a.w * b.y - a.x * b.z + a.y * b.w + a.z * b.x,
        a.w * b.z + a.x * b.y - a.y * b.x + a.z * b.w,
    )


def conjugate(q: Quaternion) -> Quaternion:
    return Quaternion(q.w, -q.x, -q.y, -q.z)


def rotate(q: Quaternion, v: Vector) -> Vector:
    """`v` of the body, in the world."""
    r = multiply(multiply(q, Quaternion(0.0, *v)), conjugate(q))
    return Vector(r.x, r.y, r.z)


def enu_from_ned(v: Vector) -> Vector:
    """A world vector (position or velocity). Its own inverse."""
    return Vector(v.y, v.x, -v.z)


ned_from_enu = enu_from_ned


def flu_from_frd(v: Vector) -> Vector:
    """A body vector (velocity or angular velocity). Its own inverse."""
    return Vector(v.x, -v.y, -v.z)


frd_from_flu = flu_from_frd


def enu_flu_from_ned_frd(q: Quaternion) -> Quaternion:
    """Orientation of the FLU body in ENU from that of the FRD body in NED."""
    world = Quaternion(0.0, _S, _S, 0.0)  # ENU <- NED: half a turn about (x + y)
    body = Quaternion(0.0, 1.0, 0.0, 0.0)  # FRD <- FLU: half a turn about x
    return multiply(multiply(world, q), body)


def yaw(q: Quaternion) -> float:
    """Rotation about the world's third axis, rad in [-pi, pi] (ENU: counter-clockwise from east)."""
    return math.atan2(2.0 * (q.w * q.z + q.x * q.y), 1.0 - 2.0 * (q.y * q.y + q.z * q.z))


def airsim_yaw_rate_deg(yaw_rate: float) -> float:
    """AirSim's yaw rate (deg/s, clockwise seen from above) from ROS's (rad/s, counter-clockwise)."""
    return -math.degrees(yaw_rate)


def wrap_angle(angle: float) -> float:
    """The same angle in [-pi, pi]."""
    return math.remainder(angle, 2.0 * math.pi)


def body_velocity_from_ned(q_ned: Quaternion, velocity_ned: Vector) -> Vector:
    """Velocity in the FLU body, as nav_msgs/Odometry carries it, from AirSim's NED world velocity."""
    return flu_from_frd(rotate(conjugate(q_ned), velocity_ned))


# Rotation of a camera's optical frame (x right, y down, z forward; REP-103) in its FLU mount looking along x.
OPTICAL_IN_FLU = Quaternion(0.5, -0.5, 0.5, -0.5)
