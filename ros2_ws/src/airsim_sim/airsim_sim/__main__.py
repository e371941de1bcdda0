"""`python -m airsim_sim --scene field --seed 1`: the simulator as a server, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from airsim_sim.model import CHASE_CAMERA, MAP_CAMERA
from airsim_sim.record import Recorder
from airsim_sim.server import Server, ServerError
from airsim_sim.settings import Settings, SettingsError, load_settings
from airsim_sim.simulation import Simulation
from airsim_sim.world import WorldError, load_world, scene_names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m airsim_sim", description="A headless simulator that speaks AirSim's RPC protocol."
    )
    result.add_argument(
        "--scene",
        default="field",
        help=f"{', '.join(scene_names())}, or a world file (.yaml); default %(default)s",
    )
    result.add_argument(
        "--seed", type=int, default=1, help="places what the scene leaves open; default %(default)s"
    )
    result.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the scene, as colour=blue",
    )
    result.add_argument("--host", default="127.0.0.1", help="address to listen on; default %(default)s")
    result.add_argument(
        "--port", type=int, help="port to listen on; default AirSim's 41451, 0 takes a free one"
    )
    result.add_argument(
        "--settings", metavar="FILE", help="AirSim's settings.json (see airsim_sim/settings.py)"
    )
    result.add_argument("--api", choices=("airsim", "cosys"), default="airsim", help="whose server to be")
    result.add_argument("--clock-speed", type=float, help="simulated seconds a second; default 1")
    result.add_argument(
        "--renderer", choices=("auto", "egl", "rays"), default="auto", help="default: EGL if it works"
    )
    result.add_argument("--record", metavar="DIR", help="leave pictures and the path of the flight there")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM. Returns the exit status: 2 for wrong arguments, 1 when it cannot start."""
    options = parser().parse_args(arguments)
    parameters = dict(item.partition("=")[::2] for item in options.set)
    try:
        world = load_world(options.scene, options.seed, **parameters)
        settings = load_settings(options.settings) if options.settings else Settings()
    except (WorldError, SettingsError) as error:
        print(f"airsim_sim: {error}", file=sys.stderr)
        return 2
    recording = [CHASE_CAMERA, MAP_CAMERA] if options.record else []
    simulation = Simulation(
        world,
        [*settings.cameras, *recording],
        flavor=options.api,
        vehicle=settings.vehicle,
        start_yaw_deg=settings.start_yaw_deg,
        renderer=options.renderer,
        settings_text=settings.text,
        start_time_ns=None,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = Server(
            simulation,
            options.host,
            settings.port if options.port is None else options.port,
            settings.clock_speed if options.clock_speed is None else options.clock_speed,
        )
        server.start()
    except (ServerError, RuntimeError) as error:
        print(f"airsim_sim: {error}", file=sys.stderr)
        return 1
    recorder = Recorder(server, Path(options.record)) if options.record else None
    backend = simulation.renderer_name
    print(
        f"airsim_sim: {world.name} seed {options.seed} on {options.host}:{server.port} "
        f"({options.api} protocol, pictures by {backend})",
        flush=True,
    )
    try:
        while not stop.wait(0.5):
            if recorder is not None:
                recorder.tick()
    finally:
        if recorder is not None:
            recorder.close()
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
