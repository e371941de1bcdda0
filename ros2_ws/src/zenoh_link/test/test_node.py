"""Both nodes as processes, each in a ROS domain of its own, over mutual TLS."""

import os
import subprocess
import sys
import threading
import time

import pytest

from zenoh_link.testing.rig import command, make_certificates, odometry, until

rclpy = pytest.importorskip("rclpy")

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.node import Node  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

from nav_common import conversions, topics  # noqa: E402
from nav_common.data import LinkState  # noqa: E402
from nav_common.ros import Spinner, publisher, subscription  # noqa: E402
from nav_common.testing import free_port, unique_domain_id  # noqa: E402

VEHICLE = topics.DEFAULT_VEHICLE_NAMESPACE
EDGE_CALL_TIMEOUT_S = 5.0
START = f"""
import sys
from zenoh_link import node, start
if "side:=edge" in sys.argv:
    node.CALL_TIMEOUT_S = {EDGE_CALL_TIMEOUT_S}
sys.exit(start.main())
"""


class Graph:
    """A node in a domain, spun by a thread, that keeps what it hears."""

    def __init__(self, domain: int) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("test", context=self.context)
        self.heard: dict[str, list[bytes]] = {}
        self._spinner = Spinner(self.node)

    def listen(self, topic) -> list[bytes]:
        heard = self.heard.setdefault(topic.name, [])
        subscription(self.node, topic, VEHICLE, heard.append, raw=True)
        return heard

    def publisher(self, topic):
        return publisher(self.node, topic, VEHICLE)

    def close(self) -> None:
        self._spinner.stop()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


def start_node(domain: int, side: str, address: str, folder) -> subprocess.Popen:
    arguments = ["--ros-args"]
    for name, value in (("side", side), ("addresses", address), ("certificates", folder)):
        arguments += ["-p", f"{name}:={value}"]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    return subprocess.Popen([sys.executable, "-c", START, *arguments], env=environment)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = make_certificates(tmp_path_factory.mktemp("certificates"))
    address = f"tls/127.0.0.1:{free_port()}"
    domains = {"server": unique_domain_id(), "edge": unique_domain_id()}
    processes = {side: start_node(domain, side, address, folder) for side, domain in domains.items()}
    found = {side: Graph(domain) for side, domain in domains.items()}
    try:
        found["edge"].listen(topics.LINK_UP)
        states = found["edge"].listen(topics.LINK_STATE)
        assert until(lambda: bool(states) and conversions.decode(LinkState, states[-1]).up, 40)
        yield found["server"], found["edge"], processes
    finally:
        for graph in found.values():
            graph.close()
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(20)


def arrives(outlet, payload: bytes, heard: list[bytes]) -> bool:
    def sent_and_heard() -> bool:
        outlet.publish(payload)
        return payload in heard

    return until(sent_and_heard)


def test_topics_cross_between_the_graphs_byte_for_byte(graphs):
    server, edge, _ = graphs
    assert arrives(edge.publisher(topics.ODOM), odometry(1.5), server.listen(topics.ODOM))
    assert arrives(server.publisher(topics.COMMAND), command(1.5, 1), edge.listen(topics.COMMAND))


def test_the_vehicles_services_appear_on_the_server(graphs):
    server, edge, _ = graphs
    asked = []

    def control(request, response):
        asked.append(request.data)
        response.success, response.message = True, "done"
        return response

    name = topics.resolve(topics.API_CONTROL_SERVICE, VEHICLE)
    edge.node.create_service(SetBool, name, control)
    client = server.node.create_client(SetBool, name)
    assert client.wait_for_service(20)

    def answered() -> bool:
        response = client.call(SetBool.Request(data=True), timeout_sec=10)
        return response.success and response.message == "done"

    assert until(answered)
    assert set(asked) == {True}


def test_a_service_that_the_vehicle_does_not_offer_or_answer_is_said_and_is_no_refused_message(graphs):
    server, edge, _ = graphs
    name = topics.resolve(topics.LAND_SERVICE, VEHICLE)
    client = server.node.create_client(Trigger, name)
    assert client.wait_for_service(20)
    response = client.call(Trigger.Request(), timeout_sec=20)
    assert (response.success, response.message) == (
        False,
        "land is not offered on the edge: is airsim_bridge running?",
    )
    done = threading.Event()
    group = MutuallyExclusiveCallbackGroup()
    edge.node.create_service(
        Trigger, name, lambda *_: done.wait(60) and Trigger.Response(), callback_group=group
    )

    def message() -> str:
        return client.call(Trigger.Request(), timeout_sec=20).message

    try:
        assert until(lambda: message() == f"land took over {EDGE_CALL_TIMEOUT_S:g} s on the edge")
    finally:
        done.set()
    answered_s, states = time.time(), edge.heard[topics.LINK_STATE.name]
    assert until(lambda: conversions.decode(LinkState, states[-1]).stamp_s > answered_s)
    assert conversions.decode(LinkState, states[-1]).refused == 0


def test_the_gate_hears_of_the_link_and_of_its_loss(graphs):
    _, edge, processes = graphs
    ups = edge.heard[topics.LINK_UP.name]
    assert until(lambda: ups and ups[-1][4] == 1)
    processes["server"].kill()
    assert until(lambda: ups[-1][4] == 0)
