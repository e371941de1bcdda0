"""Methods about the surroundings: wind; and what AirSim only shows, accepted here without effect and named once."""

from __future__ import annotations

from typing import Any

from airsim_sim.api.table import method
from airsim_sim.api.values import check_vehicle, geo_point, ned, note, vector, vector_in
from airsim_sim.atmosphere import air_density, pressure, temperature
from airsim_sim.drone import GRAVITY, SimulatedDrone
from airsim_sim.flight import CallError


@method("simSetWind", 1)
def _wind(sim: SimulatedDrone, wind: Any) -> None:
    """Wind's velocity, m/s."""
    velocity = vector_in(wind, "wind")
    if not all(abs(component) <= 100 for component in velocity):
        raise CallError(f"the wind must be at most 100 m/s in each direction, is {velocity}")
    note(sim, "simSetWind", *velocity)
    sim.wind = ned(velocity)


@method("simGetGroundTruthEnvironment", 1)
def _environment(sim: SimulatedDrone, vehicle: str) -> dict[str, Any]:
    check_vehicle(sim, vehicle)
    position = ned(sim.data.qpos[:3])
    place = geo_point(sim.home, position)
    altitude = place["altitude"]
    return {
        "position": vector(position), "geo_point": place, "gravity": vector((0.0, 0.0, GRAVITY)),
        "air_pressure": pressure(altitude), "temperature": temperature(altitude),
        "air_density": air_density(altitude),
    }  # fmt: skip


@method("simAddVehicle", 4)
def _add_vehicle(sim: SimulatedDrone, name: str, kind: str, pose: Any, pawn_path: str) -> bool:
    raise CallError(f"'{name}' cannot be added: this simulator flies one drone ('{sim.vehicle}')")


# AirSim's methods that change only what its window shows, with their argument counts.
SHOWN_ONLY = {
    "simEnableWeather": 1, "simSetWeatherParameter": 2, "simSetTimeOfDay": 6, "simSetTraceLine": 3,
    "simFlushPersistentMarkers": 0, "simPlotPoints": 5, "simPlotLineStrip": 5, "simPlotLineList": 5,
    "simPlotArrows": 7, "simPlotStrings": 5, "simPlotTransforms": 5, "simPlotTransformsWithNames": 7,
    "simPrintLogMessage": 3,
}  # fmt: skip


def _enter_shown_only(name: str, arguments: int) -> None:
    @method(name, arguments)
    def without_effect(sim: SimulatedDrone, *args: Any) -> None:
        sim.notice(f"{name} has no effect here: pictures show neither weather, markers nor texts")


for _name, _arguments in SHOWN_ONLY.items():
    _enter_shown_only(_name, _arguments)
