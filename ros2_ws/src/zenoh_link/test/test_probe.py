"""The probe finds out what the emulator was told to be."""

import json

import pytest

from nav_common.testing import free_port
from zenoh_link import probe, profile
from zenoh_link.__main__ import main
from zenoh_link.emulator import Emulator
from zenoh_link.profile import Profile
from zenoh_link.settings import Side
from zenoh_link.testing.rig import End, make_certificates


@pytest.fixture
def folder(tmp_path):
    return make_certificates(tmp_path / "certificates")


def run_probe(port: int, folder, *more: str, host: str = "127.0.0.1") -> int:
    arguments = ["--server", f"tls/{host}:{port}", "--certificates", str(folder), "--seconds", "6"]
    return main(["probe", "--json", *arguments, *more])


def test_the_probe_measures_and_writes_a_profile(folder, tmp_path, capsys):
    port, proxy_port = free_port(), free_port()
    server = End(Side.SERVER, [f"tls/127.0.0.1:{port}"], certificates_folder=folder)
    emulator = Emulator(proxy_port, port, Profile(rtt_ms=60, up_mbit_s=8)).start()
    try:
        assert run_probe(proxy_port, folder, "--output", str(tmp_path / "mine.json")) == 0
    finally:
        emulator.close()
        server.link.close()
    found = json.loads(capsys.readouterr().out)
    assert found["certificates_ok"] is True
    assert 58 < found["rtt_ms"] < 120
    assert 5 < found["mbit_s"] < 8.5
    assert abs(found["clock_offset_ms"]) <= found["clock_offset_bound_ms"] + 1
    assert 0 <= found["loss"] <= 0.25  # of few round trips; a busy machine stalls as a lossy link does
    written = profile.find(str(tmp_path / "mine.json"))
    assert written.rtt_ms == found["rtt_ms"]
    assert written.up_mbit_s == found["mbit_s"]


def test_wrong_certificates_are_said(folder, capsys):
    (folder / "edge.key").write_bytes((folder / "viewer.key").read_bytes())
    assert run_probe(free_port(), folder) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["certificates_ok"] is False
    assert "edge.key is not the key of" in found["error"]


@pytest.mark.parametrize(("host", "fit"), [("127.0.0.1", False), ("certificate.localhost", True)])
def test_certificates_are_at_fault_where_they_are_refused_whatever_the_server_is_called(
    folder, tmp_path, capsys, monkeypatch, host, fit
):
    monkeypatch.setattr(probe, "CONNECT_S", 8.0)
    port = free_port()
    others = make_certificates(tmp_path / "others")
    server = End(Side.SERVER, [f"tls/127.0.0.1:{port}"], certificates_folder=others)
    try:
        assert run_probe(free_port() if fit else port, folder, host=host) == 1
    finally:
        server.link.close()
    found = json.loads(capsys.readouterr().out)
    assert found["certificates_ok"] is fit
    assert "certificate" in found["error"]


def test_nonsense_on_the_command_line_ends_with_2(folder, capsys):
    assert main(["probe", "--server", "tls/127.0.0.1:1", "--seconds", "0"]) == 2
    assert "--seconds is 0" in capsys.readouterr().err
    assert main(["emulate", "--listen", "1", "--to", "2", "--profile", "mars"]) == 2
    assert "'mars' is none of" in capsys.readouterr().err
