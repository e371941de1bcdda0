"""`python -m zenoh_link certificates|settings|probe|emulate|tunnel`: all about the link that needs no ROS."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from zenoh_link import certificates, emulator, probe, settings, tunnel
from zenoh_link.errors import LinkError

_COMMANDS = {
    "certificates": certificates.run,
    "probe": probe.run,
    "emulate": emulator.run,
    "tunnel": tunnel.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for whatever cannot be used, with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m zenoh_link", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    certificates.add_arguments(
        commands.add_parser("certificates", help="make certificates, show their expiry")
    )
    check = commands.add_parser("settings", help="check a settings file and list what crosses")
    check.add_argument("file", nargs="?", default=str(settings.DEFAULT_FILE))
    probe.add_arguments(
        commands.add_parser("probe", help="measure the way to the server, write it as a profile")
    )
    emulator.add_arguments(commands.add_parser("emulate", help="a proxy that behaves like a bad internet"))
    tunnel.add_arguments(commands.add_parser("tunnel", help="the link through SSH, kept alive"))
    options = parser.parse_args(arguments)
    try:
        if options.command == "settings":
            return show_settings(options.file)
        return _COMMANDS[options.command](options)
    except LinkError as error:
        print(f"zenoh_link: {error}", file=sys.stderr)
        return 2


def show_settings(file: str) -> int:
    """Raises SettingsError."""
    for route in settings.load(file).routes:
        print(
            f"{route.direction.value:11} {route.key:45} {route.priority.name.lower():17} "
            f"{route.rate_hz:g} Hz, {route.max_bytes} bytes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
