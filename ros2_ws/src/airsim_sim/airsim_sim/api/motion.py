"""Motion methods: each answers when its task ends."""

from __future__ import annotations

from typing import Any

from airsim_sim.api.table import method
from airsim_sim.api.values import (
    check_vehicle,
    from_geo_point,
    ned,
    note,
    number,
    seconds,
    vector_in,
    yaw_mode_in,
)
from airsim_sim.drone import SimulatedDrone
from airsim_sim.flight import CallError, RemoteControl, Task, Vector, YawMode


@method("takeoff", 2)
def _takeoff(sim: SimulatedDrone, timeout_s: float, vehicle: str) -> Task:
    check_vehicle(sim, vehicle)
    note(sim, "takeoff")
    return sim.flight.takeoff(sim.state(), seconds(timeout_s, "timeout_sec"))


@method("land", 2)
def _land(sim: SimulatedDrone, timeout_s: float, vehicle: str) -> Task:
    check_vehicle(sim, vehicle)
    note(sim, "land")
    return sim.flight.land(sim.state(), seconds(timeout_s, "timeout_sec"))


@method("goHome", 2)
def _go_home(sim: SimulatedDrone, timeout_s: float, vehicle: str) -> Task:
    check_vehicle(sim, vehicle)
    note(sim, "goHome")
    return sim.flight.move_on_path(
        sim.state(),
        "goHome",
        [ned(sim.start)],
        0.5,
        seconds(timeout_s, "timeout_sec"),
        0,
        YawMode(True, 0.0),
    )


@method("hover", 1)
def _hover(sim: SimulatedDrone, vehicle: str) -> Task:
    check_vehicle(sim, vehicle)
    note(sim, "hover")
    return sim.flight.hover(sim.state())


@method("cancelLastTask", 1)
def _cancel(sim: SimulatedDrone, vehicle: str) -> None:
    check_vehicle(sim, vehicle)
    note(sim, "cancelLastTask")
    sim.flight.cancel()


def _move(sim: SimulatedDrone, name: str, body: bool, args: tuple[Any, ...]) -> Task:
    vx, vy, vz, duration, drivetrain, yaw_mode, vehicle = args
    check_vehicle(sim, vehicle)
    velocity = (number(vx, "vx"), number(vy, "vy"), number(vz, "vz"))
    yaw = yaw_mode_in(yaw_mode)
    duration = seconds(duration, "duration")
    note(sim, name, *velocity, duration, yaw.is_rate, yaw.yaw_or_rate)
    return sim.flight.move_by_velocity(sim.state(), velocity, duration, int(drivetrain), yaw, body)


@method("moveByVelocity", 7)
def _move_by_velocity(sim: SimulatedDrone, *args: Any) -> Task:
    return _move(sim, "moveByVelocity", False, args)


@method("moveByVelocityBodyFrame", 7)
def _move_by_velocity_body(sim: SimulatedDrone, *args: Any) -> Task:
    return _move(sim, "moveByVelocityBodyFrame", True, args)


def _move_z(sim: SimulatedDrone, name: str, body: bool, args: tuple[Any, ...]) -> Task:
    vx, vy, z, duration, drivetrain, yaw_mode, vehicle = args
    check_vehicle(sim, vehicle)
    vx, vy, z = number(vx, "vx"), number(vy, "vy"), number(z, "z")
    yaw = yaw_mode_in(yaw_mode)
    duration = seconds(duration, "duration")
    note(sim, name, vx, vy, z, duration, yaw.is_rate, yaw.yaw_or_rate)
    return sim.flight.move_by_velocity_z(sim.state(), vx, vy, z, duration, int(drivetrain), yaw, body)


@method("moveByVelocityZ", 7)
def _move_by_velocity_z(sim: SimulatedDrone, *args: Any) -> Task:
    return _move_z(sim, "moveByVelocityZ", False, args)


@method("moveByVelocityZBodyFrame", 7)
def _move_by_velocity_z_body(sim: SimulatedDrone, *args: Any) -> Task:
    return _move_z(sim, "moveByVelocityZBodyFrame", True, args)


def _path(
    sim: SimulatedDrone, name: str, path: list[Vector], velocity: Any, timeout_s: Any, drivetrain: Any, yaw_mode: Any,
    lookahead: Any,
) -> Task:  # fmt: skip
    speed = number(velocity, "velocity")
    note(sim, name, path, speed)
    return sim.flight.move_on_path(
        sim.state(), name, path, speed, seconds(timeout_s, "timeout_sec"), int(drivetrain), yaw_mode_in(yaw_mode),
        number(lookahead, "lookahead"),
    )  # fmt: skip


@method("moveOnPath", 8)
def _move_on_path(
    sim: SimulatedDrone, path: Any, velocity: Any, timeout_s: Any, drivetrain: Any, yaw_mode: Any, lookahead: Any,
    adaptive: Any, vehicle: str,
) -> Task:  # fmt: skip
    check_vehicle(sim, vehicle)
    points = [vector_in(point, "path") for point in path]
    return _path(sim, "moveOnPath", points, velocity, timeout_s, drivetrain, yaw_mode, lookahead)


@method("moveToPosition", 10)
def _move_to_position(
    sim: SimulatedDrone, x: Any, y: Any, z: Any, velocity: Any, timeout_s: Any, drivetrain: Any, yaw_mode: Any,
    lookahead: Any, adaptive: Any, vehicle: str,
) -> Task:  # fmt: skip
    check_vehicle(sim, vehicle)
    goal = (number(x, "x"), number(y, "y"), number(z, "z"))
    return _path(sim, "moveToPosition", [goal], velocity, timeout_s, drivetrain, yaw_mode, lookahead)


@method("moveToGPS", 10)
def _move_to_gps(
    sim: SimulatedDrone, latitude: Any, longitude: Any, altitude: Any, velocity: Any, timeout_s: Any, drivetrain: Any,
    yaw: Any, lookahead: Any, adaptive: Any, vehicle: str,
) -> Task:  # fmt: skip
    check_vehicle(sim, vehicle)
    place = {"latitude": latitude, "longitude": longitude, "altitude": altitude}
    goal = from_geo_point(sim.home, place)
    return _path(sim, "moveToGPS", [goal], velocity, timeout_s, drivetrain, yaw, lookahead)


@method("moveToZ", 7)
def _move_to_z(
    sim: SimulatedDrone,
    z: Any,
    velocity: Any,
    timeout_s: Any,
    yaw_mode: Any,
    lookahead: Any,
    adaptive: Any,
    vehicle: str,
) -> Task:
    check_vehicle(sim, vehicle)
    x, y, _ = sim.state().position
    return _path(sim, "moveToZ", [(x, y, number(z, "z"))], velocity, timeout_s, 0, yaw_mode, lookahead)


@method("rotateByYawRate", 3)
def _rotate(sim: SimulatedDrone, rate: Any, duration: Any, vehicle: str) -> Task:
    check_vehicle(sim, vehicle)
    rate, duration = number(rate, "yaw_rate"), seconds(duration, "duration")
    note(sim, "rotateByYawRate", rate, duration)
    return sim.flight.rotate_by_yaw_rate(sim.state(), rate, duration)


@method("rotateToYaw", 4)
def _rotate_to(sim: SimulatedDrone, yaw: Any, timeout_s: Any, margin: Any, vehicle: str) -> Task:
    check_vehicle(sim, vehicle)
    yaw = number(yaw, "yaw")
    note(sim, "rotateToYaw", yaw)
    return sim.flight.rotate_to_yaw(
        sim.state(), yaw, seconds(timeout_s, "timeout_sec"), number(margin, "margin")
    )


@method("moveByManual", 7)
def _manual(
    sim: SimulatedDrone, vx_max: Any, vy_max: Any, z_min: Any, duration: Any, drivetrain: Any, yaw: Any, vehicle: str
) -> Task:  # fmt: skip
    """Flies as the sticks of `moveByRC` say."""
    check_vehicle(sim, vehicle)
    limits = (number(vx_max, "vx_max"), number(vy_max, "vy_max"), number(z_min, "z_min"))
    note(sim, "moveByManual", *limits)
    return sim.flight.move_by_manual(
        sim.state(), limits, seconds(duration, "duration"), int(drivetrain), yaw_mode_in(yaw)
    )


@method("moveByRC", 2)
def _remote_control(sim: SimulatedDrone, data: Any, vehicle: str) -> None:
    """Sets the sticks, from -1 to 1, that `moveByManual` follows."""
    check_vehicle(sim, vehicle)
    pitch, roll, throttle, yaw = (number(data[key], key) for key in ("pitch", "roll", "throttle", "yaw"))
    sticks = RemoteControl(pitch, roll, throttle, yaw, bool(data["is_initialized"]), bool(data["is_valid"]))
    for name in ("pitch", "roll", "throttle", "yaw"):
        if not -1 <= getattr(sticks, name) <= 1:
            raise CallError(f"{name} must be from -1 to 1, is {getattr(sticks, name):g}")
    note(sim, "moveByRC", sticks)
    sim.flight.remote_control = sticks
