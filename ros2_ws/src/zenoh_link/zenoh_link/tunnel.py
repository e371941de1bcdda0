"""The link through SSH, where a server offers nothing else: one connection for commands, one for pictures, kept alive.

One SSH connection would put both into one TCP stream, and a picture would delay commands again. TLS with certificates
stays inside the tunnel: who may log in is not who may fly.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from nav_common.process import StopSignals, popen
from zenoh_link.errors import SettingsError
from zenoh_link.settings import DEFAULT_PORT, check_ports

POLL_S = 0.1
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
END_S = 5.0
"""For a connection to end when it is asked to; then it is killed."""
STEADY_S = 30.0
"""A connection that lasted so long was good: the next wait is the first again."""
OPTIONS = (
    ("BatchMode", "yes"),  # nobody is there to type a password
    ("ExitOnForwardFailure", "yes"),
    (
        "ControlMaster",
        "no",
    ),  # each connection a TCP stream of its own, whatever the user's configuration says
    ("ControlPath", "none"),
    ("ServerAliveInterval", "2"),
    ("ServerAliveCountMax", "2"),
    ("ConnectTimeout", "5"),
)


def command(ssh: str, destination: str, ssh_port: int, local_port: int, remote_port: int) -> list[str]:
    """The command line of one connection."""
    words = [ssh, "-N", "-T", "-p", str(ssh_port)]
    for name, value in OPTIONS:
        words += ["-o", f"{name}={value}"]
    return [*words, "-L", f"127.0.0.1:{local_port}:127.0.0.1:{remote_port}", destination]


class Tunnel:
    """One connection, started again whenever it ends, with a growing wait. For the main thread: the connection ends
    with the thread that starts it, so that none is left when this process is killed."""

    def __init__(self, name: str, words: Sequence[str], log: Callable[[str], None]) -> None:
        self._name, self._words, self._log = name, list(words), log
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = self._due_s = 0.0
        self._wait_s = FIRST_WAIT_S

    def keep(self, now_s: float) -> None:
        """Start the connection where it is due; to be called every POLL_S."""
        if self._process is not None:
            status = self._process.poll()
            if status is not None:
                self._process = None
                self._start_later(f"the SSH connection ended (status {status})", now_s)
        elif now_s >= self._due_s:
            self._began_s = now_s
            try:
                self._process = popen(self._words, stdin=subprocess.DEVNULL)
            except OSError as error:
                self._start_later(f"{self._words[0]} cannot be started: {error}", now_s)

    def _start_later(self, why: str, now_s: float) -> None:
        if now_s - self._began_s > STEADY_S:
            self._wait_s = FIRST_WAIT_S
        self._log(f"{self._name}: {why}, again in {self._wait_s:g} s")
        self._due_s = now_s + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def close(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", help="user@host of the server's SSH")
    parser.add_argument("--ssh-port", type=int, default=22, help="default %(default)s")
    parser.add_argument(
        "--remote-port", type=int, default=DEFAULT_PORT, help="of the server's link; default %(default)s"
    )
    parser.add_argument(
        "--local-port",
        type=int,
        default=17447,
        help="of commands, pictures take the next; default %(default)s",
    )
    parser.add_argument("--ssh", default="ssh", help="the SSH client; default %(default)s")


def run(options: argparse.Namespace) -> int:
    """Until a signal. Raises LinkError."""
    if options.destination.startswith("-"):
        raise SettingsError(f"destination is {options.destination!r}, must be like user@host")
    # The pictures' tunnel takes the port after the local one.
    check_ports(
        65534, ssh_port=options.ssh_port, remote_port=options.remote_port, local_port=options.local_port
    )
    ports = {"commands": options.local_port, "pictures": options.local_port + 1}
    tunnels = [
        Tunnel(
            name,
            command(options.ssh, options.destination, options.ssh_port, port, options.remote_port),
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        for name, port in ports.items()
    ]
    stop = StopSignals()
    addresses = ",".join(f"tls/127.0.0.1:{port}" for port in ports.values())
    print(f"the edge's link:={addresses}  (python -m airsim_bridge.edge: --server each)", flush=True)
    while not stop.wait(POLL_S):
        for tunnel in tunnels:
            tunnel.keep(time.monotonic())
    for tunnel in tunnels:
        tunnel.close()
    return 0
