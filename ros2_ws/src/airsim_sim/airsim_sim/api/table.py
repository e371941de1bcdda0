"""The table of RPC methods: how a function enters it, how a call finds it, what becomes of its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from airsim_sim.drone import SimulatedDrone
from airsim_sim.flight import CallError


class Where(Enum):
    """Which thread of the server may run a method."""

    ANY = "any"
    RENDER = "render"
    PHYSICS = "physics"


@dataclass(frozen=True)
class Method:
    """One RPC method."""

    run: Callable[..., Any]
    counts: dict[str, int]  # arguments by flavor
    where: Where


METHODS: dict[str, Method] = {}


def method(
    name: str, arguments: int, cosys: int | None = None, where: Where = Where.ANY
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the table; `cosys` is Cosys-AirSim's argument count where it differs."""

    def enter(run: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = Method(
            run, {"airsim": arguments, "cosys": arguments if cosys is None else cosys}, where
        )
        return run

    return enter


def find(flavor: str, name: str, arguments: int) -> Method:
    """The method, or CallError with rpclib's own words."""
    found = METHODS.get(name)
    if found is None:
        raise CallError(f"rpclib: server could not find function '{name}' with argument count {arguments}.")
    if found.counts[flavor] != arguments:
        raise CallError(
            f"rpclib: function '{name}' was called with an invalid number of arguments. "
            f"Expected: {found.counts[flavor]}, got: {arguments}"
        )
    return found


def call(sim: SimulatedDrone, name: str, args: tuple[Any, ...]) -> Any:
    """Runs a method. Raises CallError for anything wrong with the call."""
    found = find(sim.flavor, name, len(args))
    try:
        if found.where is not Where.ANY:
            return found.run(sim, *args)
        with sim.lock:
            return found.run(sim, *args)
    except CallError as error:
        reason: Exception = error
        text = str(error)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        reason = error
        text = f"a bad argument ({type(error).__name__}: {error})"
    raise CallError(
        f"rpclib: function '{name}' (called with {len(args)} arg(s)) threw an exception. "
        f"The exception contained this information: {text}."
    ) from reason
