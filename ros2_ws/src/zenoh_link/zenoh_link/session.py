"""zenoh sessions of either side: router on the server, clients elsewhere; certificates, access control, retries.

The edge opens two sessions, one for commands and state and one for pictures, so that neither waits behind the other in
one TCP stream. zenoh can also put two links by priority into one session, but after an outage it restores only the
first of them (1.10.2, measured), and two sessions go through two SSH tunnels without further thought.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import zenoh

from zenoh_link import certificates
from zenoh_link.certificates import Files, Usage
from zenoh_link.errors import SettingsError
from zenoh_link.settings import LARGEST_MESSAGE, Address, Direction, Priority, Settings, Side, is_loopback

LEASE_MS = 2000
"""zenoh's own sign of life; measured: with it a partition is noticed after 1.6 s, with the default 10 s after 8."""
RETRY = {"period_init_ms": 500, "period_max_ms": 1000, "period_increase_factor": 2.0}
"""Measured: connected again 0.5 to 1 s after the way is free."""
OPEN_TIMEOUT_MS = 2000
QUEUED = 16
"""Messages of each priority of the control connection that may wait for zenoh's sender (its most; its default 2). What
does not find a place within 1 ms is dropped; measured: of three at once beside six busy processes on two cores 1 in 60
with 2, none of 4,000 with 16. What a lost link makes old is refused by its age, wherever it waited."""
PLAIN_PEER_SEND_BUFFER = 32 * 1024
"""Bytes that the kernel may hold for a peer that acknowledges nothing: what waits there cannot be overtaken."""

zenoh.init_log_from_env_or("error")


def check_security(
    addresses: Sequence[Address], files: Files | None, machine: str, usage: Usage
) -> list[str]:
    """Refuse to start on an address of another machine without mutual TLS; returns warnings.

    Raises:
        SettingsError: certificates are needed and none are given.
        CertificateError: they are unusable.
    """
    if not any(address.needs_certificates for address in addresses):
        return []
    if files is None:
        raise SettingsError(
            f"{', '.join(map(str, addresses))} needs certificates: make them with "
            "`python -m zenoh_link certificates make DIR` and name the folder"
        )
    return certificates.check(files, machine, usage)


def server_config(settings: Settings, listen: Sequence[Address], files: Files | None) -> zenoh.Config:
    """A router. On TLS addresses, access is by certificate name, and what is not allowed is denied."""
    values = _common(settings, files)
    values["mode"] = "router"
    values["listen/endpoints"] = [str(address) for address in listen]
    if any(address.needs_certificates for address in listen):
        values["access_control"] = access_control(settings)
    return _config(values)


def client_config(settings: Settings, connect: Address, files: Files | None) -> zenoh.Config:
    """A client of the router; `open_session` retries until it is there."""
    values = _common(settings, files)
    values["mode"] = "client"
    values["connect/endpoints"] = [str(connect)]
    values["connect/timeout_ms"] = OPEN_TIMEOUT_MS
    values["connect/retry"] = RETRY
    return _config(values)


def _common(settings: Settings, files: Files | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        # Otherwise two processes of one machine leave the network out, and a test on loopback tests nothing.
        "transport/shared_memory/enabled": False,
        "transport/link/protocols": ["tls", "tcp"],
        "transport/link/tx/lease": LEASE_MS,
        "transport/link/rx/max_message_size": LARGEST_MESSAGE,
        "transport/unicast/max_sessions": 16,
    }
    for priority in (Priority.REAL_TIME, Priority.INTERACTIVE_HIGH, Priority.INTERACTIVE_LOW):
        values[f"transport/link/tx/queue/size/{priority.name.lower()}"] = QUEUED
    if files is not None:
        values["transport/link/tls"] = {
            "root_ca_certificate": str(files.authority),
            "listen_certificate": str(files.certificate),
            "listen_private_key": str(files.key),
            "connect_certificate": str(files.certificate),
            "connect_private_key": str(files.key),
            "enable_mtls": True,
            "verify_name_on_connect": True,
            "close_link_on_expiration": True,
        }
    if settings.plain_peer:
        values["transport/link/tcp/so_sndbuf"] = PLAIN_PEER_SEND_BUFFER
        if files is not None:
            values["transport/link/tls"]["so_sndbuf"] = PLAIN_PEER_SEND_BUFFER
    return values


def _config(values: dict[str, Any]) -> zenoh.Config:
    config = zenoh.Config()
    for key, value in values.items():
        config.insert_json5(key, json.dumps(value))
    return config


def access_control(settings: Settings) -> dict[str, Any]:
    """zenoh's access control on the server: by name in the certificate, and what no rule allows is denied.

    The edge puts what it measures and answers the services; viewers only read; nobody puts a command.
    """
    to_server = [route.key for route in settings.of(Direction.TO_SERVER)]
    to_edge = [route.key for route in settings.of(Direction.TO_EDGE)]
    to_viewers = [route.key for route in settings.of(Direction.TO_VIEWERS)]
    services = [settings.service_key(service) for service in settings.services]
    of_edge, of_server = (settings.link_key(side, "**") for side in (Side.EDGE, Side.SERVER))
    of_the_edge = [
        _rule("edge sends", "ingress", ["put"], [*to_server, of_edge]),
        _rule("edge receives", "ingress", ["declare_subscriber"], [*to_edge, of_server]),
        _rule("to the edge", "egress", ["put"], [*to_edge, of_server]),
        _rule("edge learns who subscribes", "egress", ["declare_subscriber"], [*to_server, of_edge]),
        _rule("edge serves", "ingress", ["declare_queryable", "reply"], services),
        _rule("edge is called", "egress", ["query"], services),
    ]
    of_viewers = [
        _rule("viewers receive", "ingress", ["declare_subscriber"], [*to_server, *to_viewers]),
        _rule("to viewers", "egress", ["put"], [*to_server, *to_viewers]),
    ]
    members = {"edge": ([settings.edge], of_the_edge), "viewers": (list(settings.viewers), of_viewers)}
    allowed = {
        name: (names, [rule for rule in rules if rule["key_exprs"]])
        for name, (names, rules) in members.items()
        if names
    }
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": [rule for _, rules in allowed.values() for rule in rules],
        "subjects": [{"id": name, "cert_common_names": names} for name, (names, _) in allowed.items()],
        "policies": [
            {"rules": [rule["id"] for rule in rules], "subjects": [name]}
            for name, (_, rules) in allowed.items()
        ],
    }


def _rule(name: str, flow: str, messages: list[str], keys: list[str]) -> dict[str, Any]:
    return {"id": name, "permission": "allow", "flows": [flow], "messages": messages, "key_exprs": keys}


class Connection:
    """A client session that a thread opens, as often as it takes; zenoh itself reconnects from then on."""

    def __init__(
        self,
        name: str,
        config: zenoh.Config,
        on_open: Callable[[zenoh.Session], None],
        on_failure: Callable[[], None],
    ) -> None:
        """`on_open` declares what the session is for, `on_failure` may look for the reason; both on the thread."""
        self._config = config
        self._on_open = on_open
        self._on_failure = on_failure
        self._closing = threading.Event()
        self.session: zenoh.Session | None = None
        self._thread = threading.Thread(target=self._open, name=f"open {name}", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        while not self._closing.is_set():
            try:
                session = zenoh.open(self._config)
            except zenoh.ZError:
                self._on_failure()
                self._closing.wait(RETRY["period_init_ms"] / 1000)
                continue
            if self._closing.is_set():
                session.close()
                return
            self.session = session
            self._on_open(session)
            return

    def close(self) -> None:
        self._closing.set()
        self._thread.join(OPEN_TIMEOUT_MS / 1000 + 3.0)
        if self.session is not None:
            self.session.close()


def warn_of_plain_addresses(addresses: Sequence[Address]) -> list[str]:
    """Plain TCP has no names, so whoever is on this machine may do everything."""
    plain = [str(a) for a in addresses if not a.needs_certificates and is_loopback(a.host)]
    return [f"{', '.join(plain)} is plain TCP on this machine: no access control"] if plain else []
