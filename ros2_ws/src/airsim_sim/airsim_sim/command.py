"""The command line of the simulator as a server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from airsim_sim.model import CHASE_CAMERA, MAP_CAMERA
from airsim_sim.record import Recorder
from airsim_sim.render import RenderError
from airsim_sim.server import Server, ServerError
from airsim_sim.settings import Settings, SettingsError, load_settings
from airsim_sim.simulation import Simulation
from airsim_sim.world import WorldError, load_world, scene_names
from nav_common.process import CONFIGURATION_ERROR


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
    result.add_argument(
        "--end-with-parent",
        action="store_true",
        help="end when the process that started this one has ended, whatever ended it (not on Windows)",
    )
    return result


def run(arguments: list[str], wait_for_stop: Callable[[float], bool]) -> int:
    """Serves until `wait_for_stop(timeout_s)` is true. Exit status: 2 for wrong arguments, 1 when it cannot start."""
    options = parser().parse_args(arguments)
    parent = os.getppid() if options.end_with_parent else 0
    try:
        server = _server(options)
    except (WorldError, SettingsError) as error:
        return _refused(str(error), CONFIGURATION_ERROR)
    except (ServerError, RenderError) as error:
        return _refused(str(error), 1)
    simulation = server.simulation
    print(
        f"airsim_sim: {simulation.world.name} seed {options.seed} on {options.host}:{server.port} "
        f"({options.api} protocol, pictures by {simulation.renderer_name})",
        flush=True,
    )
    recorder = None
    try:
        recorder = Recorder(server, Path(options.record)) if options.record else None
        # Half a second: the recorder's interval, and how long an orphan lives.
        while not wait_for_stop(0.5) and parent in (0, os.getppid()):
            if not server.running:
                return _refused("a thread of the simulator ended, see above", 1)
            if recorder is not None:
                recorder.tick()
    except OSError as error:
        return _refused(f"--record {options.record}: {error}", 1)
    finally:
        if recorder is not None:
            recorder.close()
        server.stop()
    return 0


def _server(options: argparse.Namespace) -> Server:
    """A started server as the command line wants it."""
    if options.clock_speed is not None and not 0.01 <= options.clock_speed <= 100:
        raise SettingsError(f"--clock-speed must be from 0.01 to 100, is {options.clock_speed:g}")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise SettingsError(f"--port must be from 0 to 65535, is {options.port}")
    if options.record and Path(options.record).exists() and not Path(options.record).is_dir():
        raise SettingsError(f"--record {options.record}: is there already and not a folder")
    world = load_world(options.scene, options.seed, **_parameters(options.set))
    settings = load_settings(options.settings) if options.settings else Settings()
    if settings.ignored:
        print(f"airsim_sim: {options.settings}: ignored: {', '.join(settings.ignored)}", file=sys.stderr)
    simulation = Simulation(
        world,
        [*settings.cameras, *([CHASE_CAMERA, MAP_CAMERA] if options.record else [])],
        flavor=options.api,
        vehicle=settings.vehicle,
        start_yaw_deg=settings.start_yaw_deg,
        renderer=options.renderer,
        settings_text=settings.text,
        start_time_ns=None,
        armed_by_default=settings.armed_by_default,
        home=settings.home,
        wind=settings.wind,
    )
    port = settings.port if options.port is None else options.port
    clock_speed = settings.clock_speed if options.clock_speed is None else options.clock_speed
    server = Server(simulation, options.host, port, clock_speed)
    server.start()
    return server


def _parameters(items: list[str]) -> dict[str, str]:
    """NAME=VALUE items as a mapping."""
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise WorldError(f"--set {item}: must be NAME=VALUE, as colour=blue")
    return dict(item.partition("=")[::2] for item in items)


def _refused(reason: str, status: int) -> int:
    print(f"airsim_sim: {reason}", file=sys.stderr)
    return status
