"""Flights of the four-action client in the embedded simulator, in lock-step: the simulator's time stands while the
server works."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import httpx2

from airsim_sim.model import TIMESTEP_S
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.clock import VirtualClock
from nav_common.data import FinishReason, Outcome
from nav_common.success import is_success
from nav_server.testing.airsim_nav_client import ClientSettings, Flight, NavClient

SMALL_STEPS = ClientSettings(turn_deg_s=10.0, forward_s=0.5, duration_s=600.0)
"""For the embedded field, where a goal is reached within 2 m: 10 degrees and 1 m at a time, in a goal's usual time."""


@dataclass(frozen=True)
class Flown:
    """A flight. said_reached: the last decision was to finish, the goal being reached."""

    seed: int
    distance_m: float
    contacts: int
    said_reached: bool
    success: bool
    flight: Flight


class LockStepRpc:
    """The embedded simulator in this process."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def call(self, method: str, *args: Any) -> Any:
        return self._simulation.call(method, *args)

    begin = call


def fly(
    http: httpx2.Client,
    seed: int,
    question: str,
    settings: ClientSettings = SMALL_STEPS,
    scene: str = "field",
) -> Flown:
    """One flight on one seed, up to the server's word that the goal is reached."""
    world = load_world(scene, seed)
    simulation = Simulation(world)
    try:
        simulation.call("enableApiControl", True, "")
        simulation.call("armDisarm", True, "")
        simulation.run_until(simulation.call("takeoff", 20.0, ""))
        clock = VirtualClock(1000.0)
        clock.call_every(TIMESTEP_S, simulation.step)
        client = NavClient(http, LockStepRpc(simulation), clock, question, settings)
        http.post("/reset")
        flight = client.run(lambda: finished(client.flight) is not None)
        clock.sleep(1.5)  # it comes to rest
        goal = world.goals[-1].position
        distance_m = math.dist(simulation.position[:2], goal[:2])
        contacts, reason = len(simulation.collisions), finished(flight)
        outcome = Outcome.FINISHED if reason else None
        success = is_success(outcome, reason or "", distance_m, contacts)
        return Flown(seed, distance_m, contacts, reason == FinishReason.REACHED, success, flight)
    finally:
        simulation.close()


def finished(flight: Flight) -> str | None:
    """The reason for which the last decision was to finish; the client hovers then, and asks again."""
    last = flight.decisions[-1] if flight.decisions else {}
    return str(last["arguments"]["reason"]) if last.get("tool") == "finish" else None
