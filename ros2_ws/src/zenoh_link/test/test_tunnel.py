"""The SSH tunnels, with a stand-in for ssh: a forwarding program that notes how it was called."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rig import until

from zenoh_link import tunnel
from zenoh_link.__main__ import main

STAND_IN = f"""#!{sys.executable}
import os, sys, time
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
time.sleep(float(os.environ.get("LASTS_S", "60")))
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a POSIX script")


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    stand_in = tmp_path / "ssh"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return stand_in


def calls(tmp_path: Path) -> list[str]:
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_commands_and_pictures_have_an_ssh_connection_each(ssh, tmp_path):
    words = [
        sys.executable,
        "-m",
        "zenoh_link",
        "tunnel",
        "me@gpu.example.org",
        "--ssh",
        str(ssh),
        "--ssh-port",
        "2222",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert until(lambda: len(calls(tmp_path)) == 2)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "link:=tls/127.0.0.1:17447,tls/127.0.0.1:17448" in output
    forwards = sorted(line.split("-L ")[1] for line in calls(tmp_path))
    assert forwards == [f"127.0.0.1:{port}:127.0.0.1:7447 me@gpu.example.org" for port in (17447, 17448)]
    assert all("ControlMaster=no" in line and "-p 2222" in line for line in calls(tmp_path))


def test_a_connection_that_ends_is_made_again(ssh, tmp_path, monkeypatch):
    monkeypatch.setenv("LASTS_S", "0")
    said: list[str] = []
    kept = tunnel.Tunnel("commands", tunnel.command(str(ssh), "me@host", 22, 1, 2), said.append)
    try:
        assert until(lambda: kept.starts >= 3)
    finally:
        kept.close()
    assert "the SSH connection ended (status 0), again in 0.5 s" in said[0]
    assert "again in 1 s" in said[1]


def test_nonsense_is_refused(capsys):
    assert main(["tunnel", "me@host", "--local-port", "70000"]) == 2
    assert "--local-port is 70000" in capsys.readouterr().err
