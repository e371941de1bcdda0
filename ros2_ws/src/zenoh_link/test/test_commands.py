"""Commands that run until they are asked to end, as processes of their own."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from nav_common.process import STOP_SIGNALS
from nav_common.testing import free_port
from zenoh_link.__main__ import main
from zenoh_link.testing.rig import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def _default_signals() -> None:
    """Whoever runs the tests may ignore some, as nohup does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def emulate(folder) -> tuple[list[str], list[int]]:
    """Arguments, and the ports at which it can be seen that it runs."""
    port = free_port()
    return ["emulate", "--listen", str(port), "--to", str(free_port())], [port]


def tunnel(folder) -> tuple[list[str], list[int]]:
    """Each stand-in for ssh listens at its local port."""
    stand_in, port = folder / "ssh", free_port()
    listen = "socket.create_server(('127.0.0.1', int(sys.argv[sys.argv.index('-L') + 1].split(':')[1])))"
    stand_in.write_text(f"#!{sys.executable}\nimport socket, sys, time\nopen = {listen}\ntime.sleep(60)\n")
    stand_in.chmod(0o755)
    arguments = ["tunnel", "me@gpu.example.org", "--ssh", str(stand_in), "--local-port", str(port)]
    return arguments, [port, port + 1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("command", [emulate, tunnel])
@pytest.mark.parametrize("signals", ["SIGINT SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_signal_ends_it_and_what_it_started(command, signals, tmp_path):
    arguments, ports = command(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "zenoh_link", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_default_signals,
    )
    try:
        assert until(lambda: all(map(listens, ports)))
        for name in signals.split():
            process.send_signal(getattr(signal, name))
        # A child has the same output: it closes when the last of them has ended.
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")


def test_the_emulator_names_a_port_that_another_program_listens_on():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "zenoh_link", "emulate", "--listen", port, "--to", str(free_port())],
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 2
    assert f"port {port} cannot be listened on" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["--listen", "--to"])
@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_the_emulator_refuses_what_is_no_port(name, port, capsys):
    assert main(["emulate", "--listen", "7447", "--to", "7447", f"{name}={port}"]) == 2
    assert f"{name} is {port}, must be 1 to 65535" in capsys.readouterr().err
