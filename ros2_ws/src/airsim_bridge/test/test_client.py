"""The RPC client against servers that answer, refuse, babble, fall silent, hang up and come back."""

import threading
import time

import msgpack
import pytest

from airsim_bridge.client import AirSimClient, NoAnswer, NotConnected, Refused
from airsim_bridge.testing.servers import answering, babbling, server, silent
from nav_common.testing import free_port


@pytest.fixture
def make_client():
    clients = []

    def make(port):
        clients.append(AirSimClient("127.0.0.1", port))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def echo(number, method, arguments):
    return [1, number, None, [method, *arguments]]


def test_a_call_returns_what_the_server_answers(make_client):
    with server(answering(echo)) as (port, _):
        assert make_client(port).call("armDisarm", True, "drone") == ["armDisarm", True, "drone"]


def test_answers_find_their_callers_in_any_order_and_from_any_thread(make_client):
    held = []

    def answer(number, method, arguments):
        held.append([1, number, None, arguments[0]])
        if len(held) < 8:
            return None
        return b"".join(msgpack.packb(reply) for reply in reversed(held))

    with server(answering(answer)) as (port, _):
        client, results = make_client(port), {}

        def ask(k):
            results[k] = client.call("f", k)

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {k: k for k in range(8)}


def test_pictures_have_a_connection_of_their_own(make_client):
    release = threading.Event()

    def answer(number, method, arguments):
        if method == "simGetImages":
            release.wait(5.0)
        return [1, number, None, method]

    with server(answering(answer)) as (port, connections):
        client = make_client(port)
        thread = threading.Thread(target=client.call, args=("simGetImages",))
        thread.start()
        assert client.call("ping") == "ping"
        release.set()
        thread.join()
        assert len(connections) == 2


def test_the_servers_error_is_told_in_its_own_words(make_client):
    def answer(number, method, arguments):
        return [1, number, "Vehicle API for 'X' is not available", None]

    words = "refused getMultirotorState: Vehicle API for 'X'"
    with server(answering(answer)) as (port, _), pytest.raises(Refused, match=words):
        make_client(port).call("getMultirotorState", "X")


def test_a_refused_motion_is_told_at_the_next(make_client):
    refused = threading.Event()

    def answer(number, method, arguments):
        if method == "ping":
            return [1, number, None, True]
        refused.set()
        return [1, number, "no such thing", None]

    with server(answering(answer)) as (port, _):
        client = make_client(port)
        client.call("ping")
        client.begin("moveByVelocityBodyFrame")
        refused.wait(2.0)
        client.call("ping")  # answered after it, so the refusal has been read
        with pytest.raises(Refused, match="no such thing"):
            client.begin("moveByVelocityBodyFrame")


def test_nobody_there(make_client):
    port = free_port()
    client = make_client(port)
    with pytest.raises(NotConnected, match=f"no AirSim at 127.0.0.1:{port} .*start the simulator"):
        client.call("ping")
    with pytest.raises(NotConnected):
        client.begin("hover", "")


def test_a_host_that_does_not_exist():
    with pytest.raises(NotConnected, match=r"no AirSim at drone\.invalid:41451 .*correct host"):
        AirSimClient("drone.invalid").call("ping")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be(port):
    with pytest.raises(ValueError, match=f"port is {port}, must be 1 to 65535"):
        AirSimClient("127.0.0.1", port)


def test_a_silent_server_is_noticed_and_left(make_client):
    with server(silent) as (port, connections):
        client = make_client(port)
        for _ in range(3):
            with pytest.raises(NoAnswer, match=r"did not answer ping within 0.1 s: is it paused"):
                client.call("ping", timeout_s=0.1)
        assert connections[0].recv(1) == b""  # closed by the client


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xc1",
        b"\xff" * 1000,
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"a": 1}),
        msgpack.packb([7, 1, None, None]),
        b"\xdd\xff\xff\xff\xff",
        msgpack.packb("\ud800", unicode_errors="surrogatepass"),
    ],
    ids=["http", "reserved", "negative", "short", "map", "type", "huge", "text"],
)
def test_garbage_is_said_to_be_garbage(make_client, data):
    with server(babbling(data)) as (port, _):
        client = make_client(port)
        if data[0] == 0xDD:  # the promise of a huge array: nothing to see yet but silence
            with pytest.raises(NotConnected):
                client.call("ping", timeout_s=0.3)
            return
        with pytest.raises(NotConnected, match=r"does not speak msgpack-rpc .*is it AirSim's port"):
            client.call("ping")


@pytest.mark.parametrize("sent", [0, 1, 7], ids=["before", "in the head", "in the middle"])
def test_a_hang_up_in_the_middle_of_an_answer(make_client, sent):
    whole = msgpack.packb([1, 1, None, "a long enough answer"])

    def talk(connection):
        connection.recv(4096)
        connection.sendall(whole[:sent])
        connection.shutdown(2)

    with server(talk) as (port, _), pytest.raises(NotConnected, match="ended"):
        make_client(port).call("ping")


def test_it_connects_again_when_the_server_is_back(make_client):
    port = free_port()
    client = make_client(port)
    with pytest.raises(NotConnected):
        client.call("ping")
    for _ in range(2):  # it comes, goes, and comes
        with server(answering(echo), port):
            end = time.monotonic() + 3.0
            while True:
                try:
                    assert client.call("ping") == ["ping"]
                    break
                except NotConnected:
                    assert time.monotonic() < end
                    time.sleep(0.02)
        with pytest.raises(NotConnected):
            client.call("ping")


def test_while_the_server_is_away_calls_fail_at_once_and_few_connections_are_tried(make_client, monkeypatch):
    attempts: list[object] = []
    monkeypatch.setattr("socket.create_connection", _refusing(attempts))
    client = make_client(free_port())
    start = time.monotonic()
    while time.monotonic() - start < 1.0:
        with pytest.raises(NotConnected):
            client.call("ping")
        time.sleep(0.005)
    assert 2 <= len(attempts) <= 4


def _refusing(attempts):
    def connect(*args, **kwargs):
        attempts.append(args)
        raise ConnectionRefusedError("refused")

    return connect


def test_a_closed_client_says_so(make_client):
    client = make_client(free_port())
    client.close()
    with pytest.raises(NotConnected, match="is closed"):
        client.call("ping")
