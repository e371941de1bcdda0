"""A link through two network namespaces: real TCP across delay, loss and outages (root; otherwise skipped)."""

import json
import subprocess
import sys

import pytest

from nav_common.testing import free_port
from zenoh_link import certificates
from zenoh_link.profile import Profile
from zenoh_link.testing import namespaces
from zenoh_link.testing.namespaces import SERVER_ADDRESS, Namespaces

pytestmark = pytest.mark.skipif(bool(namespaces.missing()), reason=namespaces.missing() or "-")

SERVER = """
import sys
from pathlib import Path
from zenoh_link import settings
from zenoh_link.link import Link
link = Link(settings.load(), settings.Side.SERVER, [settings.parse_address(sys.argv[1])],
            certificates_folder=Path(sys.argv[2]))
sys.stdin.read()
link.close()
"""


def test_a_link_over_tls_through_a_lossy_way_is_probed(tmp_path):
    certificates.make(tmp_path, "server", ["edge"], [SERVER_ADDRESS])
    address = f"tls/{SERVER_ADDRESS}:{free_port()}"
    made = Namespaces(Profile(rtt_ms=40, loss=0.01, up_mbit_s=8))
    try:
        server = subprocess.Popen(
            made.command(made.server, [sys.executable, "-c", SERVER, address, str(tmp_path)]),
            stdin=subprocess.PIPE,
        )
        probe = [
            sys.executable,
            "-m",
            "zenoh_link",
            "probe",
            "--server",
            address,
            "--certificates",
            str(tmp_path),
        ]
        done = subprocess.run(
            made.command(made.edge, [*probe, "--seconds", "8", "--json"]),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        server.communicate(timeout=10)
    finally:
        made.close()
    found = json.loads(done.stdout)
    assert 38 < found["rtt_ms"] < 90
    # A retransmission lets several blocks through at once, which shows in so short a time; unlimited is hundreds.
    assert 0.2 < found["mbit_s"] < 12
    assert found["certificates_ok"]
    assert made.lost > 0


def test_nothing_is_left_behind():
    made = Namespaces(Profile())
    made.close()
    assert (
        f"sp-edge-{made.edge.rsplit('-', 1)[1]}"
        not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    )
