"""What the user's own way to the server is like: `python -m zenoh_link probe` measures it and writes it as a profile.

The server's link must run. Everything goes through the link itself, so it also proves certificates and ports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from zenoh_link import profile, settings
from zenoh_link.certificates import FailureKind
from zenoh_link.errors import CertificateError, LinkError, SettingsError
from zenoh_link.link import Link
from zenoh_link.profile import Profile
from zenoh_link.settings import Side, parse_address

BLOCK = 32 * 1024
UNDER_WAY = 32
"""Blocks: 1 MiB under way is enough for 100 Mbit/s at 80 ms."""
CONNECT_S = 15.0
RATE_PART = 0.25
"""Of the time goes into the rate; the rest watches the pings of a link that carries nothing else."""
STALL_FACTOR, STALL_S = 1.8, 0.01
"""A ping that took so many times the median, and so much longer, waited for a packet to be sent again."""


@dataclass(frozen=True)
class Measured:
    """`loss` is estimated from stalls (TCP hides lost packets); `mbit_s`: from here to the server."""

    rtt_ms: float
    jitter_ms: float
    loss: float
    mbit_s: float
    clock_offset_ms: float
    clock_offset_bound_ms: float
    certificates_ok: bool

    def profile(self) -> Profile:
        return Profile(self.rtt_ms, self.jitter_ms, min(self.loss, 0.5), up_mbit_s=self.mbit_s)


def measure(link: Link, seconds: float) -> Measured:
    """Measure the way of an edge's link that is up.

    Raises:
        LinkError: the link was lost meanwhile.
    """
    mbit_s = rate(link, seconds * RATE_PART)
    time.sleep(1.0)  # what was under way has arrived
    since = link.state().stamp_s
    time.sleep(seconds * (1 - RATE_PART))
    state = link.state()
    round_trips = link.round_trips_s(since)
    if not state.up or not round_trips:
        raise LinkError(f"the link was lost while it was measured: {state.fault}")
    median = statistics.median(round_trips)
    stalls = sum(each > STALL_FACTOR * median + STALL_S for each in round_trips)
    usual = [each for each in round_trips if each <= STALL_FACTOR * median + STALL_S]
    return Measured(
        rtt_ms=1000 * median,
        jitter_ms=1000 * (usual[int(0.95 * (len(usual) - 1))] - median),
        loss=stalls / (2 * len(round_trips)),  # a ping and its answer are a packet each
        mbit_s=mbit_s,
        clock_offset_ms=1000 * state.clock_offset_s,
        clock_offset_bound_ms=1000 * state.clock_offset_bound_s,
        certificates_ok=all(address.startswith("tls/") for address in link.addresses),
    )


def rate(link: Link, seconds: float) -> float:
    """Mbit/s that arrive at the server."""
    room = threading.Semaphore(UNDER_WAY)
    arrived: list[float] = []

    def on_block(number: int) -> None:
        arrived.append(time.monotonic())
        room.release()

    link.on_block = on_block
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        if room.acquire(timeout=0.1):
            number += 1
            if not link.send_block(number, BLOCK):
                room.release()
    # The first second fills the way; what is counted is what arrives from then on.
    counted = [at for at in arrived if at > end - seconds + min(1.0, seconds / 2)]
    if len(counted) < 2:
        return 0.0
    return 8e-6 * BLOCK * (len(counted) - 1) / (counted[-1] - counted[0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", action="append", required=True, metavar="ADDRESS", help="tls/host:7447")
    parser.add_argument(
        "--certificates", type=Path, metavar="DIR", help="folder with ca.pem, edge.pem, edge.key"
    )
    parser.add_argument("--settings", default=str(settings.DEFAULT_FILE), help="default: the package's")
    parser.add_argument("--seconds", type=float, default=60.0, help="default %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the profile here")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Returns the exit status: 1 where no connection comes about. Raises LinkError."""
    if not 2.0 <= options.seconds <= 600.0:
        raise SettingsError(f"--seconds is {options.seconds:g}, must be 2 to 600")
    try:
        link = Link(
            settings.load(options.settings),
            Side.EDGE,
            [parse_address(address) for address in options.server],
            certificates_folder=options.certificates,
            log=lambda text: None,
        )
    except CertificateError as error:
        return _failed(options, str(error), certificates_ok=False)
    try:
        end = time.monotonic() + CONNECT_S
        while not link.state().up:
            if time.monotonic() > end:
                wrong = link.failure is not None and link.failure.kind is FailureKind.CERTIFICATE
                return _failed(options, link.state().fault, certificates_ok=not wrong)
            time.sleep(0.05)
        measured = measure(link, options.seconds)
    finally:
        link.close()
    if options.output is not None:
        profile.save(measured.profile(), options.output)
    if options.json:
        print(json.dumps(asdict(measured)))
    else:
        print(
            f"round trip {measured.rtt_ms:.1f} ms, jitter {measured.jitter_ms:.1f} ms, loss {measured.loss:.3f}, "
            f"{measured.mbit_s:.1f} Mbit/s to the server\nthe server's clock is {measured.clock_offset_ms:+.1f} ms "
            f"(+-{measured.clock_offset_bound_ms:.1f}) against this one"
        )
    return 0


def _failed(options: argparse.Namespace, reason: str, *, certificates_ok: bool) -> int:
    print(json.dumps({"error": reason, "certificates_ok": certificates_ok}) if options.json else reason)
    return 1
