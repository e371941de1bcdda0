"""Settings of the HTTP service: where it listens, who may call, and how much of it."""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

TOKENS_VARIABLE = "STREAMPILOT_TOKEN"
"""Environment variable with the token, or several with commas between: not on the command line, where every user of
the machine can read it."""
DEFAULT_PORT = 6006
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class HttpSettings:
    """Limits are chosen for pictures of a drone's camera, unless a source is named.

    Attributes:
        host, port: where it listens.
        tokens: who may call; none: everybody who reaches the address, which then must be of this machine.
        max_clients: streams at a time, one a client. idle_s: a client that is silent for so long loses its stream.
        max_body_bytes: of a request; 8 MiB are eight 4K JPEGs in base64. max_pixels: of a picture; 8K is 33 million.
        requests_per_s: of one client, on the average; the four-action client makes 2.2.
        max_connections: open at a time; beyond, the one that has been idle longest is closed.
        connection_idle_s: within which a connection must have sent a request's head; body_s: within which its body.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tokens: tuple[str, ...] = ()
    max_clients: int = 8
    idle_s: float = 600.0
    max_body_bytes: int = 8 * 2**20
    max_pixels: int = 34_000_000
    requests_per_s: float = 50.0
    max_connections: int = 128
    connection_idle_s: float = 10.0
    body_s: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, must be 0 (any free one) to 65535")
        for name in ("max_clients", "max_body_bytes", "max_pixels", "max_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        for name in ("idle_s", "requests_per_s", "connection_idle_s", "body_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, must be positive")
        for token in self.tokens:
            if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
                raise ValueError(
                    f"a token of {len(token)} characters: at least {_SHORTEST_TOKEN} printable ASCII ones without "
                    f"blanks are wanted, such as `openssl rand -hex 16` prints, in {TOKENS_VARIABLE}"
                )
        if not self.tokens and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}, which others reach, and there is no token: set {TOKENS_VARIABLE} "
                "(`openssl rand -hex 16` makes one), or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings as options; tokens come from the environment."""
    defaults = HttpSettings()
    helps = {
        "host": "address to listen on; one that others reach needs a token in " + TOKENS_VARIABLE,
        "port": "",
        "max_clients": "streams at a time, one a client",
        "idle_s": "a client that is silent for so long loses its stream",
        "max_body_bytes": "largest request",
        "max_pixels": "largest picture",
        "requests_per_s": "of one client",
        "max_connections": "open at a time",
        "connection_idle_s": "within which a connection must have sent a request's head",
        "body_s": "within which a request's body must have come",
    }
    for name, text in helps.items():
        value = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            metavar=type(value).__name__.upper(),
            help=f"{text + '; ' if text else ''}default %(default)s",
        )


def from_options(options: argparse.Namespace) -> HttpSettings:
    """The settings of parsed `add_arguments`, with the tokens of the environment.

    Raises:
        ValueError: a value that cannot be; the message names it.
    """
    names = {field.name for field in fields(HttpSettings)} - {"tokens"}
    return HttpSettings(**{name: getattr(options, name) for name in names}, tokens=tokens_of_environment())


def tokens_of_environment() -> tuple[str, ...]:
    """The tokens in TOKENS_VARIABLE."""
    return tuple(token.strip() for token in os.environ.get(TOKENS_VARIABLE, "").split(",") if token.strip())


def check_model(folder: Path, origin: str) -> None:
    """Raises ValueError where there is no model in the folder."""
    if not (folder.expanduser() / "config.json").is_file():
        raise ValueError(
            f"{origin} is {str(folder)!r}: no config.json there; give the folder of a Qwen2.5-VL model in Hugging "
            "Face's layout, or leave it out for the shipped pilot"
        )
