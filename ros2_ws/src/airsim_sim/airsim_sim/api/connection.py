"""Methods about the connection, API control, arming and simulated time."""

from __future__ import annotations

from dataclasses import asdict

from airsim_sim.api.table import Where, method
from airsim_sim.api.values import check_vehicle, note, number
from airsim_sim.drone import SimulatedDrone

FRAME_S = 1 / 60  # one "frame" of simContinueForFrames: Unreal's usual rate


@method("ping", 0)
def _ping(sim: SimulatedDrone) -> bool:
    return True


@method("getServerVersion", 0)
def _server_version(sim: SimulatedDrone) -> int:
    return 4 if sim.flavor == "cosys" else 1


@method("getMinRequiredClientVersion", 0)
def _client_version(sim: SimulatedDrone) -> int:
    return 4 if sim.flavor == "cosys" else 1


@method("reset", 0)
def _reset(sim: SimulatedDrone) -> None:
    note(sim, "reset")
    sim.reset()


@method("getSettingsString", 0)
def _settings(sim: SimulatedDrone) -> str:
    return sim.settings_text


@method("listVehicles", 0)
def _vehicles(sim: SimulatedDrone) -> list[str]:
    return [sim.vehicle]


@method("getHomeGeoPoint", 1)
def _home(sim: SimulatedDrone, vehicle: str) -> dict[str, float]:
    check_vehicle(sim, vehicle)
    return asdict(sim.home)


@method("enableApiControl", 2)
def _enable_api(sim: SimulatedDrone, enabled: bool, vehicle: str) -> None:
    check_vehicle(sim, vehicle)
    note(sim, "enableApiControl", bool(enabled))
    sim.flight.enable_api_control(bool(enabled))


@method("isApiControlEnabled", 1)
def _is_api(sim: SimulatedDrone, vehicle: str) -> bool:
    check_vehicle(sim, vehicle)
    return sim.flight.api_control


@method("armDisarm", 2)
def _arm(sim: SimulatedDrone, arm: bool, vehicle: str) -> bool:
    check_vehicle(sim, vehicle)
    note(sim, "armDisarm", bool(arm))
    return sim.flight.arm(bool(arm))


@method("simPause", 1)
def _pause(sim: SimulatedDrone, paused: bool) -> None:
    sim.paused = bool(paused)


@method("simIsPaused", 0)
def _is_paused(sim: SimulatedDrone) -> bool:
    return sim.paused


@method("simContinueForTime", 1, where=Where.PHYSICS)
def _continue_time(sim: SimulatedDrone, seconds: float) -> None:
    """Ends early when simPause(True) comes meanwhile."""
    seconds = number(seconds, "seconds")
    if seconds > 0:
        sim.advance(seconds)
    sim.paused = True


@method("simContinueForFrames", 1, where=Where.PHYSICS)
def _continue_frames(sim: SimulatedDrone, frames: int) -> None:
    _continue_time(sim, int(frames) * FRAME_S)
