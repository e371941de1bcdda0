"""The SSH tunnels, with a stand-in for ssh: a program that notes how it was called, and stays."""

import os
import signal
import subprocess
import sys

import pytest

from zenoh_link import tunnel
from zenoh_link.__main__ import main
from zenoh_link.testing.rig import until

STAND_IN = f"""#!{sys.executable}
import os, sys, time
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
time.sleep(60)
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a POSIX script")


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What `ssh` was called with so far, a line each."""
    stand_in, noted = tmp_path / "ssh", tmp_path / "calls"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    noted.touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CALLS", str(noted))
    return lambda: noted.read_text().splitlines()


def start(*more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "zenoh_link", "tunnel", "me@gpu.example.org", *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_commands_and_pictures_have_an_ssh_connection_each(calls):
    process = start("--ssh-port", "2222")
    try:
        assert until(lambda: len(calls()) == 2)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "link:=tls/127.0.0.1:17447,tls/127.0.0.1:17448" in output
    forwards = sorted(line.split("-L ")[1] for line in calls())
    assert forwards == [f"127.0.0.1:{port}:127.0.0.1:7447 me@gpu.example.org" for port in (17447, 17448)]
    assert all("ControlMaster=no" in line and "-p 2222" in line for line in calls())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_ssh_ends_when_the_tunnel_is_killed(calls):
    process = start()
    assert until(lambda: len(calls()) == 2)
    process.kill()
    process.communicate(timeout=20)  # ssh has the same output: it closes when the last of them has ended


def test_a_connection_that_ends_is_made_again_after_a_wait_that_grows(capfd):
    said: list[str] = []
    kept = tunnel.Tunnel(
        "commands", [sys.executable, "-S", "-c", "print('started', flush=True)"], said.append
    )

    def starts_and_ends(start_s: float, end_s: float) -> str:
        """What is said then."""
        said.clear()
        kept.keep(start_s - 0.01)
        assert capfd.readouterr().out == ""
        kept.keep(start_s)

        def ended() -> bool:
            kept.keep(end_s)
            return bool(said)

        assert until(ended)
        assert capfd.readouterr().out == "started\n"
        return said[0]

    assert until(lambda: kept.keep(0.0) or bool(said))
    capfd.readouterr()
    assert said[0] == "commands: the SSH connection ended (status 0), again in 0.5 s"
    assert starts_and_ends(0.5, 1.0).endswith("again in 1 s")
    assert starts_and_ends(2.0, 2.0).endswith("again in 2 s")
    assert starts_and_ends(4.0, 5.0 + tunnel.STEADY_S).endswith("again in 0.5 s")  # it lasted


def test_an_ssh_that_cannot_be_started_is_said_and_tried_again(tmp_path):
    said: list[str] = []
    kept = tunnel.Tunnel("commands", [str(tmp_path / "missing")], said.append)
    for now_s in (100.0, 100.4, 100.5):
        kept.keep(now_s)
    assert [line.rsplit(", ", 1)[1] for line in said] == ["again in 0.5 s", "again in 1 s"]
    assert "missing cannot be started" in said[0]


def test_nonsense_is_refused(capsys):
    assert main(["tunnel", "me@host", "--local-port", "70000"]) == 2
    assert "--local-port is 70000" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--ssh-port", "--remote-port", "--local-port"])
@pytest.mark.parametrize("port", ["0", "-1", "65535"])
def test_what_is_no_port_is_refused(name, port, capsys):
    assert main(["tunnel", "me@gpu.example.org", f"{name}={port}"]) == 2
    assert f"{name} is {port}, must be 1 to 65534" in capsys.readouterr().err
