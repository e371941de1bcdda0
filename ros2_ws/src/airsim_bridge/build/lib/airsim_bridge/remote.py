"""The edge without ROS under a server's command: the link as its transport, and the vehicle's services over it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from airsim_bridge.bridge import Bridge
from airsim_bridge.wire import Transport
from nav_common import cdr, conversions, topics
from nav_common.data import ServiceReply


class RemoteTransport(Transport, Protocol):
    """A transport that also carries service calls."""

    def serve(self, service: str, handler: Callable[[bytes], bytes]) -> None:
        """Answer calls: the service's request and response as CDR; ValueError refuses a request."""
        ...

    def close(self) -> None: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        action="append",
        metavar="ADDRESS",
        help="fly under this server's command: tls/gpu.example.org:7447 by the link (twice where commands and pictures "
        "have a tunnel each), https://gpu.example.org by its HTTP API, with the token in STREAMPILOT_TOKEN",
    )
    parser.add_argument("--mission", default="", metavar="TEXT", help="where to fly, with an https address")
    parser.add_argument(
        "--decision-interval",
        type=float,
        default=5.0,
        metavar="S",
        help="from one decision to the next at least, with an https address; default %(default)s",
    )
    parser.add_argument(
        "--certificates", type=Path, metavar="DIR", help="folder with ca.pem, edge.pem and edge.key"
    )


def connect(options: argparse.Namespace, log: Callable[[str], None]) -> RemoteTransport | None:
    """The link to the server of the options; None without --server.

    Raises:
        ValueError: an address, or certificates, that cannot be used; or the link's packages are not installed.
    """
    if not options.server:
        return None
    try:
        from zenoh_link.transport import LinkTransport
    except ImportError as error:
        raise ValueError(
            f"--server needs the link: pip install eclipse-zenoh cryptography ({error})"
        ) from error
    transport: RemoteTransport = LinkTransport(
        options.server, certificates_folder=options.certificates, log=log
    )
    return transport


def offer_services(transport: RemoteTransport, bridge: Bridge) -> None:
    """Take-off, landing, reset and API control, as the ROS node offers them."""

    def trigger(act: Callable[[], ServiceReply]) -> Callable[[bytes], bytes]:
        return lambda request: conversions.encode(act())

    def control(request: bytes) -> bytes:
        wanted = cdr.unpack("std_srvs/srv/SetBool_Request", request)
        return conversions.encode(bridge.enable_api_control(wanted.data))

    transport.serve(topics.TAKEOFF_SERVICE, trigger(bridge.take_off))
    transport.serve(topics.LAND_SERVICE, trigger(bridge.land))
    transport.serve(topics.RESET_VEHICLE_SERVICE, trigger(bridge.reset))
    transport.serve(topics.API_CONTROL_SERVICE, control)
