"""The edge without ROS: `python -m airsim_bridge.edge` connects to AirSim, holds, shows state, obeys the keyboard."""

from __future__ import annotations

from nav_common.process import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the imports, which take a second

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from airsim_bridge import remote
from airsim_bridge.bridge import Bridge, CameraSettings, Settings
from airsim_bridge.client import DEFAULT_PORT, AirSimClient
from airsim_bridge.gate import FRAME_TIMEOUT_S, GateLimits
from airsim_bridge.keyboard import HELP, KeyboardPilot
from airsim_bridge.keys import Keys
from airsim_bridge.outputs import Fanout, Outputs
from airsim_bridge.reflex import DepthReflex
from airsim_bridge.vehicle import SERVER_VERSIONS, Vehicle
from airsim_bridge.wire import NoTransport, Transport, Wire
from nav_common import topics
from nav_common.clock import WallClock
from nav_common.contract import COMMAND_PERIOD_S
from nav_common.data import DroneState
from nav_common.process import CONFIGURATION_ERROR, SWITCH_INTERVAL_S, StopSignals

if TYPE_CHECKING:
    from airsim_bridge.http_pilot import HttpPilot

TOKEN_VARIABLE = "STREAMPILOT_TOKEN"
SHOWN_EVERY = 10  # ticks


class Edge:
    """Client, vehicle, gate, reflex and cameras, wired to a transport; what the command line and others start."""

    def __init__(
        self,
        client: AirSimClient,
        settings: Settings,
        limits: GateLimits,
        *,
        vehicle_name: str = "",
        flavor: str = "airsim",
        reflex: bool = True,
        transport: Transport | None = None,
        also: Outputs | None = None,
    ) -> None:
        """`also`: further outputs beside the transport."""
        self.clock = WallClock()
        self.client = client
        wire = Wire(transport or NoTransport(), settings.cameras, self.clock, say)
        self.bridge = Bridge(
            Vehicle(client, self.clock, name=vehicle_name, flavor=flavor),
            self.clock,
            wire if also is None else Fanout(self.clock, wire, also),
            settings,
            limits,
            reflex=DepthReflex() if reflex else None,
        )
        wire.connect(self.bridge)

    def fly_by_keyboard(self, until: Callable[[], bool] = lambda: False) -> None:
        """Run until Esc, Ctrl-C, SIGTERM, a closed terminal, or `until` says so; then stop the drone."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        signals = StopSignals()
        self.bridge.start()
        pilot = KeyboardPilot(self.bridge, self.clock, say)
        say(HELP)
        try:
            with Keys() as keys:
                ticks = 0
                while not pilot.ended and not signals.wait(COMMAND_PERIOD_S) and not until():
                    for key in keys.take():
                        pilot.press(key)
                    pilot.tick()
                    if ticks % SHOWN_EVERY == 0:
                        show("\r" + line(self.bridge.state()).ljust(110)[:110])
                    ticks += 1
        finally:
            self.bridge.stop()
            self.client.close()
            say("stopped")


def line(state: DroneState) -> str:
    """The state in one line."""
    if not state.connected:
        return f"not connected: {state.fault}"
    parts = [state.flying_mode.name, f"{state.gate_mode.name} ({state.gate_reason})"]
    parts += [part for part in (state.fault, state.reflex_reason) if part]
    return f"{', '.join(parts)}, collisions {state.collision_count}"


def say(text: str) -> None:
    """A line of its own, over the line of the state."""
    show("\r" + text.ljust(110) + "\n")


def show(text: str) -> None:
    """On the terminal, while there is one: a closed one must not end the flight half-way."""
    with contextlib.suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the drone is and how it may fly."""
    camera = CameraSettings()
    parser.add_argument("--host", default="127.0.0.1", help="where AirSim runs; default %(default)s")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="its ApiServerPort; default %(default)s"
    )
    parser.add_argument("--vehicle", default="", help="AirSim's name of the vehicle; default: its first")
    parser.add_argument("--api-flavor", choices=tuple(SERVER_VERSIONS), default="airsim")
    parser.add_argument("--camera", default=camera.name, help="AirSim's name; default %(default)s")
    parser.add_argument(
        "--image-rate", type=float, default=camera.image_rate_hz, metavar="HZ", help="default %(default)s"
    )
    parser.add_argument(
        "--depth-rate", type=float, default=camera.depth_rate_hz, metavar="HZ", help="default %(default)s"
    )
    parser.add_argument(
        "--max-speed", type=float, default=GateLimits().max_speed, metavar="M/S", help="default %(default)s"
    )
    parser.add_argument("--no-reflex", action="store_true", help="do not slow down before obstacles")


def make_edge(
    options: argparse.Namespace, transport: Transport | None = None, also: Outputs | None = None
) -> Edge:
    """An Edge from `add_arguments`' options.

    Raises:
        ValueError: an option that makes no sense; the message names it.
    """
    for name, low, high in (("image_rate", 0.0, 60.0), ("depth_rate", 0.0, 30.0)):
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, must be {low:g} to {high:g}")
    if options.depth_rate == 0 and not options.no_reflex:
        raise ValueError("--depth-rate is 0, but the reflex needs depth: give --no-reflex too")
    camera = CameraSettings(
        options.camera, image_rate_hz=options.image_rate, depth_rate_hz=options.depth_rate
    )
    return Edge(
        AirSimClient(options.host, options.port),
        Settings(cameras=[camera]),
        GateLimits(
            max_speed=options.max_speed, frame_timeout_s=FRAME_TIMEOUT_S if camera.rate_hz > 0 else None
        ),
        vehicle_name=options.vehicle,
        flavor=options.api_flavor,
        reflex=not options.no_reflex,
        transport=transport,
        also=also,
    )


def _http_pilot(options: argparse.Namespace) -> HttpPilot | None:
    """The pilot that asks a server's HTTP API; None where --server is no such address.

    Raises:
        ValueError: an address that cannot be used, or no mission.
    """
    servers: list[str] = options.server or []
    if not any(server.startswith(("http://", "https://")) for server in servers):
        if options.mission:
            raise ValueError(
                "--mission is for a server with an https address: over the link the agent has it"
            )
        return None
    if len(servers) > 1:
        raise ValueError("--server is given twice: an https address is one connection for everything")
    if not options.mission.strip():
        raise ValueError("--mission is empty: say where to fly, as --mission 'fly to the red beacon'")
    try:
        from airsim_bridge.http_pilot import HttpPilot, HttpPilotSettings, HttpServer
    except ImportError as error:
        raise ValueError(
            f"--server {servers[0]} needs an HTTP client: pip install httpx2 ({error})"
        ) from error
    server = HttpServer(servers[0], os.environ.get(TOKEN_VARIABLE, ""))
    settings = HttpPilotSettings(decision_interval_s=options.decision_interval)
    return HttpPilot(server, WallClock(), options.mission, say, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m airsim_bridge.edge",
        description=f"Hold the drone, show its state, fly it by keyboard or for a server. Keys: {HELP}. "
        f"Topics are those of {topics.__name__}.",
    )
    add_arguments(parser)
    remote.add_arguments(parser)
    parser.add_argument("--settings", action="store_true", help="print the settings.json that AirSim needs")
    options = parser.parse_args(arguments)
    if options.settings:
        print((files("airsim_bridge") / "settings.json").read_text(encoding="utf-8"), end="")
        return 0
    try:
        pilot = _http_pilot(options)
        transport = remote.connect(options, say) if pilot is None else None
        edge = make_edge(options, transport, also=pilot)
    except ValueError as error:
        print(f"edge: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    if transport is not None:
        remote.offer_services(transport, edge.bridge)
    if pilot is not None:
        pilot.connect(edge.bridge)
    try:
        with pilot.flying() if pilot is not None else contextlib.nullcontext():
            edge.fly_by_keyboard()
    finally:
        if transport is not None:
            transport.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
