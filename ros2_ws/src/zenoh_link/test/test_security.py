"""Who may connect, and who may do what: real zenoh sessions over mutual TLS on loopback."""

import datetime
import json
import os
import shutil
import socket
import threading
from dataclasses import replace

import pytest
import zenoh

from nav_common import topics
from nav_common.testing import free_port
from zenoh_link import certificates, session, settings
from zenoh_link.calls import CallResult, CallStatus
from zenoh_link.certificates import FailureKind, Usage, files_of
from zenoh_link.errors import CertificateError, SettingsError
from zenoh_link.link import Link
from zenoh_link.settings import Address, Side, parse_address
from zenoh_link.testing.rig import End, command, image, make_certificates, odometry, two_ends, until

REFUSED_S = 3.0
"""A connection that is accepted takes some 20 ms here; each test of a refusal first sees one that is accepted."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def ends(folder):
    with two_ends(folder) as (server, edge):
        server.wait_up()
        edge.wait_up()
        yield server, edge


def connect(address: str, files, **overrides):
    """A client session, or None if it does not come about."""
    config = session.client_config(settings.load(), parse_address(address), files)
    config.insert_json5("connect/timeout_ms", json.dumps(int(1000 * REFUSED_S)))
    for key, value in overrides.items():
        config.insert_json5(key.replace("__", "/"), json.dumps(value))
    try:
        return zenoh.open(config)
    except zenoh.ZError:
        return None


def accepted(address: str, files, **overrides) -> bool:
    opened = connect(address, files, **overrides)
    if opened is None:
        return False
    links = bool(opened.info.links())
    opened.close()
    return links


# --- who may connect


def test_a_machine_with_its_certificate_is_accepted(ends, folder):
    server, _ = ends
    assert accepted(server.link.addresses[0], files_of(folder, "viewer"))


def test_no_certificate_is_refused(ends, folder):
    server, _ = ends
    address = server.link.addresses[0]
    only_authority = {"root_ca_certificate": str(folder / "ca.pem"), "verify_name_on_connect": True}
    assert not accepted(address, None, transport__link__tls=only_authority)


def test_a_certificate_of_a_foreign_authority_is_refused(ends, folder, other_authority, tmp_path):
    """It knows the right authority's certificate, which is public, but its own was signed by another one."""
    server, _ = ends
    assert not accepted(server.link.addresses[0], _foreign(folder, other_authority, tmp_path))


def test_a_server_of_a_foreign_authority_is_not_trusted(ends, other_authority):
    server, _ = ends
    assert not accepted(server.link.addresses[0], files_of(other_authority, "edge"))


def test_a_server_under_another_name_is_not_trusted(tmp_path):
    """Its certificate is for another host than the one that was asked for."""
    folder = make_certificates(tmp_path)
    for name in ("server.pem", "server.key"):
        (folder / name).unlink()
    _make_for_host(folder, "elsewhere.example.org")
    port = free_port()
    config = session.server_config(
        settings.load(), [Address("tls", "127.0.0.1", port)], files_of(folder, "server")
    )
    with zenoh.open(config):
        assert not accepted(f"tls/127.0.0.1:{port}", files_of(folder, "edge"))
        fault = certificates.explain_failure(Address("tls", "127.0.0.1", port), files_of(folder, "edge"))
        assert fault is not None
        assert fault.kind is FailureKind.CERTIFICATE
        assert "IP address mismatch" in fault.text


def test_a_server_certificate_cannot_be_used_to_connect(ends, folder):
    server, _ = ends
    assert not accepted(server.link.addresses[0], files_of(folder, "server"))


def test_a_client_certificate_cannot_be_used_to_serve(folder):
    """Another machine with a certificate for connecting cannot pose as the server."""
    port = free_port()
    config = session.server_config(
        settings.load(), [Address("tls", "127.0.0.1", port)], files_of(folder, "viewer")
    )
    with zenoh.open(config):
        assert not accepted(f"tls/127.0.0.1:{port}", files_of(folder, "edge"))


def test_plain_tcp_is_refused(ends):
    server, _ = ends
    assert not accepted(server.link.addresses[0].replace("tls/", "tcp/"), None)


def test_an_expired_certificate_is_refused_by_the_other_side_too(ends, folder, tmp_path):
    server, _ = ends
    files = _expired(folder, tmp_path)
    assert not accepted(server.link.addresses[0], files)


@pytest.mark.parametrize(
    "address", ["tcp/0.0.0.0:7447", "tcp/gpu.example.org:7447", "tcp/[::]:7447", "udp/127.0.0.1:1"]
)
def test_without_tls_only_this_machine_can_be_meant(address):
    with pytest.raises(SettingsError, match="tls"):
        parse_address(address)


def test_tls_without_certificates_does_not_start():
    with pytest.raises(SettingsError, match="needs certificates"):
        Link(settings.load(), Side.SERVER, [parse_address("tls/0.0.0.0:7447")])


# --- who may do what


def listen(opened, key):
    heard = []
    subscriber = opened.declare_subscriber(
        key, lambda sample: heard.append(str(sample.key_expr)), allowed_origin=zenoh.Locality.REMOTE
    )
    return heard, subscriber


def test_a_viewer_reads(ends, folder):
    server, edge = ends
    with connect(server.link.addresses[0], files_of(folder, "viewer")) as viewer:
        heard, subscriber = listen(viewer, "drone/odom")

        def arrived():
            edge.link.send(topics.ODOM, odometry(1.0))
            return heard

        assert until(arrived)
        decisions, another = listen(viewer, "nav_agent/decision")

        def decided():
            server.link.send(topics.DECISION, b"\x00\x01\x00\x00")
            return decisions

        assert until(decided)
        subscriber.undeclare()
        another.undeclare()


def test_a_viewer_that_sends_commands_or_calls_services_is_refused(ends, folder):
    server, edge = ends
    flown = threading.Event()
    edge.link.serve("takeoff", lambda request: flown.set() or CallResult(CallStatus.OK))
    with connect(server.link.addresses[0], files_of(folder, "viewer")) as viewer:
        for sequence in range(20):
            viewer.put("drone/command", command(1.0, sequence))
            viewer.put("drone/emergency_stop", b"\x00\x01\x00\x00\x01")
            viewer.put("drone/link/server/pong", b"x")
        assert not list(viewer.get("drone/takeoff", payload=b"\x00\x01\x00\x00\x00", timeout=1.0))
        # The way itself works: the server's command, sent afterwards, arrives, and it is the only one.
        sent = command(2.0, 99)
        server.link.send(topics.COMMAND, sent)
        assert edge.receive(topics.COMMAND) == sent
    assert edge.inbox.empty()
    assert not flown.is_set()
    assert not edge.link.refusals


def test_a_viewer_cannot_pose_as_the_edge(ends, folder):
    server, edge = ends
    with connect(server.link.addresses[0], files_of(folder, "viewer")) as viewer:
        for _ in range(20):
            viewer.put("drone/odom", odometry(666.0))
        sent, received = odometry(3.0), []
        edge.link.send(topics.ODOM, sent)
        while sent not in received:
            received.append(server.receive(topics.ODOM))
        assert odometry(666.0) not in received


def test_a_drone_that_publishes_on_anothers_keys_is_refused(ends, folder):
    server, edge = ends
    others = {"drone2/odom", "drone/command", "nav_agent/decision", "drone/link/server/ping"}
    heard = []
    watch = server.link._server.declare_subscriber("**", lambda sample: heard.append(str(sample.key_expr)))
    with connect(server.link.addresses[0], files_of(folder, "edge")) as drone:
        for key in others:
            for _ in range(20):
                drone.put(key, odometry(1.0))

        def own_arrives():
            drone.put("drone/odom", odometry(1.0))
            return "drone/odom" in heard

        assert until(own_arrives)
    watch.undeclare()
    assert not others & set(heard) - {"drone/link/server/ping"}
    assert edge.link.state().up


def test_the_server_calls_services_over_tls(ends):
    server, edge = ends
    edge.link.serve("land", lambda request: CallResult(CallStatus.OK, b"\x00\x01\x00\x00\x01"))
    result = server.link.call("land", b"\x00\x01\x00\x00\x00", timeout_s=10)
    assert result.status is CallStatus.OK, result


def test_pictures_cross_and_are_acknowledged_over_tls(ends):
    server, edge = ends
    edge.link.send(topics.FRONT_IMAGE, image(7.0))
    server.receive(topics.FRONT_IMAGE)
    lane = edge.link.lanes["drone/camera/front/image/compressed"]
    assert until(lambda: lane.window.under_way == 0)


def test_an_unknown_machine_of_the_same_authority_may_do_nothing(ends, folder, tmp_path):
    server, edge = ends
    for name in ("ca.pem", "ca.key"):
        shutil.copy(folder / name, tmp_path / name)
    certificates.make(tmp_path, "nobody", ["stranger"], [])
    with connect(server.link.addresses[0], files_of(tmp_path, "stranger")) as stranger:
        heard, subscriber = listen(stranger, "drone/odom")
        for _ in range(10):
            stranger.put("drone/odom", odometry(777.0))
        sent, received = odometry(4.0), []
        edge.link.send(topics.ODOM, sent)
        while sent not in received:
            received.append(server.receive(topics.ODOM))
        assert odometry(777.0) not in received
        assert not heard
        subscriber.undeclare()


# --- certificates named before connecting


def check(folder, machine="edge", usage=Usage.CONNECT, **kwargs):
    return certificates.check(files_of(folder, machine), machine, usage, **kwargs)


def test_good_certificates_pass(folder):
    assert check(folder) == []
    assert check(folder, "server", Usage.SERVE) == []


def test_what_is_about_to_expire_is_said(folder):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=360)
    (warning,) = check(folder, now=soon)
    assert "edge.pem expires in 4 days" in warning


def test_expired_and_not_yet_valid_certificates_are_named(folder):
    now = datetime.datetime.now(datetime.UTC)
    with pytest.raises(CertificateError, match=r"edge\.pem expired on"):
        check(folder, now=now + datetime.timedelta(days=400))
    with pytest.raises(CertificateError, match="valid only from"):
        check(folder, now=now - datetime.timedelta(days=1))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d, o: (d / "edge.key").unlink(), r"key .*edge\.key cannot be read"),
        (lambda d, o: (d / "edge.pem").write_text("x"), r"edge\.pem holds no certificate"),
        (lambda d, o: (d / "edge.key").write_text("x"), r"edge\.key holds no private key"),
        (lambda d, o: shutil.copy(o / "ca.pem", d / "ca.pem"), r"edge\.pem was not signed by .*ca\.pem"),
        (
            lambda d, o: shutil.copy(d / "viewer.key", d / "edge.key"),
            r"edge\.key is not the key of .*edge\.pem",
        ),
        (lambda d, o: shutil.copy(d / "viewer.pem", d / "ca.pem"), "is no authority's certificate"),
        (
            lambda d, o: [shutil.copy(d / f"viewer.{e}", d / f"edge.{e}") for e in ("pem", "key")],
            "of 'viewer'",
        ),
    ],
    ids=[
        "no key",
        "no certificate",
        "broken key",
        "foreign authority",
        "swapped keys",
        "swapped authority",
        "swapped machines",
    ],
)
def test_wrong_files_are_named(folder, other_authority, tmp_path, break_it, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    break_it(tmp_path, other_authority)
    with pytest.raises(CertificateError, match=message):
        check(tmp_path)


def test_wrong_usage_is_named(folder):
    with pytest.raises(CertificateError, match=r"server\.pem is not for connecting"):
        check(folder, "server", Usage.CONNECT)
    with pytest.raises(CertificateError, match=r"edge\.pem is not for serving"):
        check(folder, "edge", Usage.SERVE)


def test_a_link_with_wrong_certificates_does_not_start(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "viewer.key", tmp_path / "edge.key")
    with pytest.raises(CertificateError, match="is not the key"):
        End(Side.EDGE, ["tls/127.0.0.1:7447"], certificates_folder=tmp_path)


def test_the_reason_of_a_refusal_is_asked_for(ends, folder, other_authority, tmp_path):
    """zenoh itself only ever says that the connection timed out."""
    server, _ = ends
    address = parse_address(server.link.addresses[0])
    assert certificates.explain_failure(address, files_of(folder, "edge")) is None

    def explained(address: Address, files) -> tuple[FailureKind, str]:
        failure = certificates.explain_failure(address, files)
        assert failure is not None
        return failure.kind, failure.text

    kind, text = explained(address, files_of(other_authority, "edge"))
    assert kind is FailureKind.CERTIFICATE
    assert "certificate that is not accepted" in text
    (tmp_path / "expired").mkdir()
    for files in (_foreign(folder, other_authority, tmp_path), _expired(folder, tmp_path / "expired")):
        kind, text = explained(address, files)
        assert kind is FailureKind.CERTIFICATE
        assert "refuses this machine's certificate" in text
    kind, text = explained(replace(address, port=free_port()), files_of(folder, "edge"))
    assert kind is FailureKind.UNREACHABLE
    assert "cannot be reached" in text


def test_a_server_that_speaks_no_tls_refuses_no_certificate(folder):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = Address("tls", "127.0.0.1", listener.getsockname()[1])
        failure = certificates.explain_failure(address, files_of(folder, "edge"))
        thread.join()
    assert failure is not None
    assert failure.kind is FailureKind.NO_TLS
    assert "speaks no TLS" in failure.text


# --- the console command


def test_nothing_is_overwritten(tmp_path):
    certificates.make(tmp_path, "server", ["edge"], [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CertificateError, match=r"server\.pem exists already"):
        certificates.make(tmp_path, "server", [], [])
    with pytest.raises(CertificateError, match=r"edge\.pem exists already"):
        certificates.make(tmp_path, "server2", ["edge"], [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_machine_is_added_later_by_the_same_authority(tmp_path):
    certificates.make(tmp_path, "server", ["edge"], [])
    certificates.make(tmp_path, "server2", ["edge2"], [])
    assert certificates.check(files_of(tmp_path, "edge2"), "edge2", Usage.CONNECT) == []
    (tmp_path / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"ca\.key is missing"):
        certificates.make(tmp_path, "server3", [], [])


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_keys_are_readable_by_their_owner_alone(folder):
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*.key"))


def test_expiry_is_shown(folder):
    lines = certificates.show(folder)
    assert any("edge.pem" in line and "client" in line and "days left" in line for line in lines)
    assert any("ca.pem" in line and "authority" in line for line in lines)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=400)
    assert any("EXPIRED" in line for line in certificates.show(folder, later))


def _make_for_host(folder, host):
    """A server's certificate for another host only."""
    authority = certificates._authority(folder, datetime.datetime.now(datetime.UTC), [])
    names = certificates._names([host])
    start = datetime.datetime.now(datetime.UTC)
    certificates._write_machine(folder, "server", Usage.SERVE, names, authority, start, 30, [])


def _foreign(folder, other_authority, tmp_path):
    shutil.copy(folder / "ca.pem", tmp_path / "ca.pem")
    for name in ("edge.pem", "edge.key"):
        shutil.copy(other_authority / name, tmp_path / name)
    return files_of(tmp_path, "edge")


def _expired(folder, tmp_path):
    shutil.copy(folder / "ca.pem", tmp_path / "ca.pem")
    shutil.copy(folder / "ca.key", tmp_path / "ca.key")
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=10)
    authority = certificates._authority(tmp_path, start, [])
    certificates._write_machine(
        tmp_path, "edge", Usage.CONNECT, certificates._names(["edge"]), authority, start, 5, []
    )
    return files_of(tmp_path, "edge")
