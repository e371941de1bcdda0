"""The graph as data: who is in which deployment, in which order, with what; bad arguments."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from nav_bringup import graph as graph_module
from nav_bringup import preflight
from nav_bringup.graph import DEPLOYMENTS, NODES, ArgumentError, Process, deployment
from nav_bringup.monitor import names_of, perspective_of, wait_for
from nav_bringup.preflight import INSTALL, check_free, check_parameters_file
from nav_bringup.runner import command, commands, main, parse, run_folder
from nav_common import topics
from nav_common.process import CONFIGURATION_ERROR
from nav_common.ros import message_type
from nav_common.testing import free_port


def names(graph: str, **arguments: str) -> list[str]:
    return [process.name for process in deployment(graph).processes(arguments)]


def process(graph: str, name: str, **arguments: str) -> Process:
    return next(p for p in deployment(graph).processes(arguments) if p.name == name)


@contextlib.contextmanager
def listener(host: str) -> Iterator[int]:
    """Somebody who listens on a port of `host`; the port."""
    with socket.create_server((host, 0)) as listening:
        yield listening.getsockname()[1]


def test_the_full_stack_starts_the_simulator_first_and_ends_the_agent_first() -> None:
    assert names("full_stack") == ["airsim_sim", "airsim_bridge", "vlm_perception", "nav_agent"]


def test_a_running_airsim_takes_the_place_of_the_simulator() -> None:
    assert "airsim_sim" not in names("full_stack", airsim_host="192.0.2.7")
    assert process("edge", "airsim_bridge", airsim_host="192.0.2.7").parameters["host"] == "192.0.2.7"


def test_server_and_edge_are_the_full_stack_together() -> None:
    assert sorted(names("server") + names("edge")) == sorted(names("full_stack"))
    assert all(p.side == "server" for p in deployment("server").processes({}))
    assert all(p.side == "edge" for p in deployment("edge").processes({}))


def test_a_recording_runs_from_before_the_bridge_until_after_it() -> None:
    order = names("full_stack", record="flight")
    assert order.index("recorder") < order.index("airsim_bridge")
    assert not process("full_stack", "recorder", record="flight").respawn


def test_an_edge_tells_the_truth_only_when_it_is_asked_to() -> None:
    assert "truth" not in names("edge", link="tcp/127.0.0.1:7447")
    assert process("edge", "truth", truth="beacon").parameters["goal"] == "beacon"
    assert process("edge", "truth", truth="unknown").parameters["goal"] == ""


def test_scene_and_seed_reach_the_simulator() -> None:
    arguments = process("full_stack", "airsim_sim", scene="city", seed="7").arguments
    assert arguments[:4] == ("--scene", "city", "--seed", "7")


def test_perception_yields_the_processor_to_the_others() -> None:
    assert process("full_stack", "vlm_perception").nice > process("full_stack", "airsim_bridge").nice


def test_the_http_api_is_served_by_perceptions_own_process() -> None:
    assert names("full_stack", http="true") == names("full_stack")
    served = process("server", "vlm_perception", http="true", http_port="7000", http_host="0.0.0.0")
    assert (served.package, served.executable) == ("nav_server", "served_perception")
    assert (served.parameters["http_port"], served.parameters["http_host"]) == (7000, "0.0.0.0")
    assert [(each.host, each.port) for each in served.listens_on] == [("0.0.0.0", 7000)]
    assert process("server", "vlm_perception", http_port="7000").package == "vlm_perception"


def test_another_backend_than_the_engine_is_perceptions_process_too() -> None:
    served = process("full_stack", "vlm_perception", vision="auto")
    assert (served.package, served.parameters["vision"], served.parameters["http"]) == (
        "nav_server",
        "auto",
        False,
    )
    assert served.listens_on == ()
    with pytest.raises(ArgumentError, match="vision is 'magic', must be one of engine, auto"):
        process("full_stack", "vlm_perception", vision="magic")


def test_every_argument_is_described() -> None:
    for graph in DEPLOYMENTS.values():
        assert all(len(argument.description) > 10 for argument in graph.arguments)


def test_a_parameter_file_reaches_every_node_and_without_one_they_have_their_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.touch()
    given = {"params_file": str(file), "record": "flight", "link": "true"}
    nodes = [p for p in deployment("full_stack").processes(given) if p.is_node]
    assert len(nodes) == 6
    assert {p.parameters_file for p in nodes} == {file}
    assert {p.parameters_file for p in deployment("full_stack").processes({})} == {None}


# They publish no diagnostics: they play a recording, tell the simulator's truth, show the others' diagnostics.
SILENT = ("player", "truth", "diagnostic_aggregator")


@pytest.mark.parametrize("node", NODES)
def test_what_each_node_says_of_itself_has_one_branch_in_the_monitors_tree(node: str) -> None:
    path = Path(get_package_share_directory("nav_bringup")) / "params" / "diagnostic_aggregator.yaml"
    parameters = yaml.safe_load(path.read_text())["diagnostic_aggregator"]["ros__parameters"]
    branches = [branch for branch in parameters.values() if isinstance(branch, dict)]
    matching = [b for b in branches if any(node.startswith(start) for start in b["startswith"])]
    assert len(matching) == (0 if node in SILENT else 1)


def test_the_packages_that_publish_diagnostics_are_those_of_the_nodes_with_a_branch() -> None:
    sources = Path(__file__).parents[2]
    publish = {
        path.parent.name
        for path in sources.glob("*/*/node.py")
        if re.search(r"\bpublish_diagnostics\(", path.read_text())
    }
    nodes = [p for p in deployment("full_stack").processes({"link": "true", "record": "flight"}) if p.is_node]
    assert publish == {p.package for p in nodes if p.name not in SILENT}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sceen": "field"}, "full_stack has no argument 'sceen'; it has namespace, "),
        ({"seed": "one"}, "seed is 'one', must be a whole number from 0 to 2147483647"),
        ({"seed": "-1"}, "seed is '-1', must be"),
        ({"airsim_port": "65536"}, "airsim_port is '65536', must be a whole number from 1 to 65535"),
        ({"namespace": "/my drone"}, "namespace is '/my drone': letters, digits and _"),
        ({"namespace": ""}, "namespace is ''"),
        ({"model": "/nowhere/Qwen"}, "model is '/nowhere/Qwen': no config.json there; give the folder"),
        ({"params_file": "/nowhere.yaml"}, "params_file is '/nowhere.yaml': there is no such file"),
    ],
)
def test_bad_arguments_name_themselves_and_the_remedy(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        deployment("full_stack").processes(arguments)


def test_an_unknown_deployment_names_those_there_are() -> None:
    with pytest.raises(
        ArgumentError, match="no deployment 'fullstack'; there are full_stack, server, edge, "
    ):
        deployment("fullstack")


@pytest.mark.parametrize("rate", ["0", "-1", "fast", "nan", "inf"])
def test_a_replay_has_a_positive_rate(rate: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"rate is '{rate}', must be a number above 0"):
        deployment("replay").processes({"bag": str(tmp_path), "rate": rate})


def test_a_replay_needs_a_recording() -> None:
    with pytest.raises(ArgumentError, match="bag is '': give the folder of a recording"):
        deployment("replay").processes({})


def test_words_of_the_command_line_are_names_and_values() -> None:
    assert parse(["scene:=field", "model:=/a:=b"]) == {"scene": "field", "model": "/a:=b"}
    with pytest.raises(ArgumentError, match="'scene=field' is not an argument"):
        parse(["scene=field"])
    with pytest.raises(ArgumentError, match="seed is given twice"):
        parse(["seed:=1", "seed:=2"])


@pytest.mark.parametrize(
    ("graph", "arguments", "host", "argument", "remedy"),
    [
        (
            "edge",
            {"airsim_port": "PORT"},
            "127.0.0.1",
            "airsim_port is PORT",
            "another simulator runs, perhaps another flight. End it, choose another port (airsim_port NEXT), or fly in "
            "that one (airsim_host 127.0.0.1)",
        ),
        (
            "server",
            {"http": "true", "http_host": "127.0.0.3", "http_port": "PORT"},
            "127.0.0.3",
            "http_host is 127.0.0.3 and http_port PORT",
            "the HTTP API of another flight or of `python -m nav_server` runs. End it, or choose another port "
            "(http_port NEXT)",
        ),
        (
            "server",
            {"link": "tls/0.0.0.0:PORT"},
            "127.0.0.1",
            "link is tls/0.0.0.0:PORT",
            "another flight's link, or a zenoh router, listens on port PORT. End it, or choose another port on both "
            "sides",
        ),
        (
            "server",
            {"link": "tcp/localhost:1,tcp/127.0.0.3:PORT"},
            "127.0.0.3",
            "link is tcp/localhost:1,tcp/127.0.0.3:PORT",
            "another flight's link, or a zenoh router, listens on port PORT. End it, or choose another port on both "
            "sides",
        ),
        (
            "full_stack",
            {"link": "true"},
            "127.0.0.1",
            "link is true",
            "another flight's link, or a zenoh router, listens on port PORT. End it",
        ),
        (
            "full_stack",
            {"link": "true", "internet": "wan"},
            "127.0.0.1",
            "internet is wan",
            "its emulator's port PORT is held, perhaps by another flight. End it, or leave internet out",
        ),
    ],
)
def test_a_port_in_use_is_refused_with_its_argument_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
    arguments: dict[str, str],
    host: str,
    argument: str,
    remedy: str,
) -> None:
    with listener(host) as port:

        def filled(text: str) -> str:
            return text.replace("PORT", str(port)).replace("NEXT", str(port + 1))

        monkeypatch.setattr(graph_module, "_LINK_PORT", port - ("internet" in arguments))
        given = {name: filled(value) for name, value in arguments.items()}
        (held,) = (
            address
            for process in deployment(graph).processes(given)
            for address in process.listens_on
            if address.port == port
        )
        with pytest.raises(ArgumentError) as refused:
            check_free(held)
    assert str(refused.value) == (
        f"{filled(argument)}, which cannot be used (Address already in use): {filled(remedy)}"
    )


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(
        ArgumentError,
        match=r"http_host is 192.0.2.1 and http_port 6006, which cannot be used \(Cannot assign requested address\): "
        "for 192.0.2.1 port 6006 give an address of this machine",
    ):
        check_free(*process("server", "vlm_perception", http="true", http_host="192.0.2.1").listens_on)


def test_a_port_in_use_on_another_address_is_free() -> None:
    with listener("127.0.0.1") as port:
        arguments = {"http": "true", "http_host": "127.0.0.3", "http_port": str(port)}
        check_free(*process("server", "vlm_perception", **arguments).listens_on)


def test_a_graph_whose_port_is_in_use_does_not_start() -> None:
    with (
        listener("127.0.0.1") as port,
        pytest.raises(ArgumentError, match=f"airsim_port is {port}, which cannot be used"),
    ):
        commands(deployment("edge"), {"airsim_port": str(port)})


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    line = command(
        Process("n", "nav_eval", "record", "edge", parameters={"output": "1'2", "rate": 2.0, "on": True})
    ).arguments
    assert [word for word in line if ":=" in word][1:] == ["output:='1''2'", "rate:=2.0", "on:=true"]


def test_a_package_that_is_not_built_is_named_with_the_remedy() -> None:
    with pytest.raises(
        ArgumentError, match="needs the ROS package nav_nowhere, which is not found: run make setup"
    ):
        command(Process("nowhere", "nav_nowhere", "nowhere", "server"))


def test_rqt_that_is_not_installed_is_named_with_the_packages_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    rqt = deployment("monitor").processes({})
    assert {package for process in rqt for package in process.needs} == set(INSTALL)
    monkeypatch.setattr(preflight, "get_package_prefix", missing)
    with pytest.raises(
        ArgumentError,
        match=r"diagnostic_aggregator, rqt_gui not found: .* Run: apt install ros-jazzy-diag\S+ ros-jazzy-rqt",
    ):
        preflight.check(rqt)


def test_the_windows_of_rqt_show_what_the_graph_says() -> None:
    """The perspective's topics and fields exist, and it lies where rqt is told. rqt itself is not among the wheels."""
    (rqt,) = (p for p in deployment("monitor").processes({"namespace": "/quad"}) if p.name == "rqt")
    file, namespace = rqt.arguments
    assert namespace == "/quad"
    text = Path(file).read_text()
    assert "/quad/camera/front/image/compressed" in names_of(perspective_of(text, namespace))
    assert names_of(text) == names_of(perspective_of(text, "/drone"))
    assert {"/nav_agent/decision", "/nav_agent", "/nav_agent/set_parameters"} <= names_of(text)
    windows = json.loads(text)["groups"]
    assert "state" in windows["mainwindow"]["keys"]  # where each lies: without it they stand in one row
    manager = windows["pluginmanager"]
    running = ast.literal_eval(manager["keys"]["running-plugins"]["repr"])
    assert sum(map(len, running.values())) == 8
    named = {
        f"plugin__{plugin.replace('/', '__')}__{number}"
        for plugin, numbers in running.items()
        for number in numbers
    }
    assert set(manager["groups"]) <= named
    known = {topic.resolve(): topic for topic in vars(topics).values() if isinstance(topic, topics.Topic)}
    for group in manager["groups"].values():
        for key, value in group["groups"]["plugin"]["keys"].items():
            if key == "topic":
                assert ast.literal_eval(value["repr"]) in known
            elif key == "topics":
                for path in ast.literal_eval(value["repr"]):
                    topic, _, field = path.rpartition("/")
                    assert hasattr(message_type(known[topic].type)(), field)


def test_a_parameter_file_may_name_every_node_of_the_graph() -> None:
    bag = {"bag": str(Path(__file__).parent)}
    started = [
        p.name
        for name, graph in DEPLOYMENTS.items()
        for p in graph.processes({"replay": bag, "record": {"output": "flight"}}.get(name, {}))
        if p.is_node
    ]
    assert set(started) <= set(NODES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nav_agent: [", "is not valid YAML: while parsing a flow node"),
        ("- nav_agent", "holds a list at its top; NODE: {ros__parameters: {NAME: VALUE}} is wanted"),
        (
            "nav_agnet: {ros__parameters: {speed: 1.0}}",
            "there is no node 'nav_agnet'; the nodes are airsim_bridge, ",
        ),
        ("/nav_agnt*: {ros__parameters: {speed: 1.0}}", "there is no node '/nav_agnt*'; the nodes are "),
        ("/nav_*: {ros__parameters: {speed: 1.0}}", "there is no node '/nav_*'; the nodes are "),
        ("/*/nav_agent: {ros__parameters: {speed: 1.0}}", "there is no node '/*/nav_agent'; the nodes are "),
        ("nav_agent: {speed: 1.0}", "section nav_agent is {'speed': 1.0}; NODE: {ros__parameters"),
        ("nav_agent:", "section nav_agent is None; "),
        ("nav_agent: {ros__parameters: [speed]}", "parameters of nav_agent are ['speed']; "),
        (
            "airsim_bridge: {ros__parameters: {cameras: []}}",
            "airsim_bridge.cameras is empty; give a value or leave",
        ),
        ("airsim_bridge: {ros__parameters: {host: }}", "airsim_bridge.host is empty; give a value or leave"),
        (
            "airsim_bridge: {ros__parameters: {cameras: [a, 1]}}",
            "airsim_bridge.cameras is ['a', 1]; the items of",
        ),
        (
            "nav_agent:\n  ros__parameters:\n    speed: 1.0\n    speed: 2.0",
            'parameters.yaml", line 4, column 5',
        ),
        (
            "nav_agent: {ros__parameters: {}}\nnav_agent: {ros__parameters: {}}",
            "is not valid YAML: nav_agent is given twice in ",
        ),
    ],
)
def test_a_broken_parameter_file_is_refused_before_anything_starts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr("nav_bringup.runner.Supervisor")  # nothing is started
    path = tmp_path / "parameters.yaml"
    path.write_text(content + "\n")
    port = free_port()
    assert main(["edge", f"params_file:={path}", f"airsim_port:={port}"]) == CONFIGURATION_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert f"parameter file {path}" in line
    assert message in line


@pytest.mark.parametrize(
    "content",
    [
        "",
        *(
            f"{section!r}: {{ros__parameters: {{use_sim_time: true}}}}"
            for section in ("/**", "**", "/*", "*", "/nav_agent", "/**/nav_agent")
        ),
    ],
)
def test_other_forms_that_ros_reads_are_accepted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(content)
    check_parameters_file(path)


def test_run_folders_are_new_and_latest_points_to_the_last(tmp_path: Path) -> None:
    first, second = run_folder(tmp_path), run_folder(tmp_path)
    assert first != second
    assert (tmp_path / "latest").resolve() == second.resolve()


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "scene:=field" in capsys.readouterr().out
    assert main(["full_stack", "seed:=x"]) == 2
    assert "seed is 'x'" in capsys.readouterr().err


def test_with_the_link_the_edge_has_a_ros_domain_of_its_own() -> None:
    graph = deployment("full_stack").processes({"link": "true"})
    apart = {p.name for p in graph if "ROS_DOMAIN_ID" in p.environment}
    assert apart == {"link_edge", "airsim_bridge"}
    assert {p.name for p in graph} >= {"link_server", "vlm_perception", "nav_agent"}
    by_name = {p.name: p for p in graph}
    assert by_name["link_edge"].parameters["addresses"] == by_name["link_server"].parameters["addresses"]


def test_an_internet_stands_between_the_two_sides() -> None:
    graph = {p.name: p for p in deployment("full_stack").processes({"link": "true", "internet": "wan"})}
    (internet,), (link,) = graph["internet"].listens_on, graph["link_server"].listens_on
    assert graph["link_edge"].parameters["addresses"] == f"tcp/127.0.0.1:{internet.port}"
    assert link.port != internet.port


def test_server_and_edge_are_linked_by_address() -> None:
    assert process("edge", "link_edge", link="tls/gpu.example.org:7447").parameters["side"] == "edge"
    listens_on = process("server", "link_server", link="tls/0.0.0.0:7447,tls/[::]:7448").listens_on
    assert [(each.host, each.port) for each in listens_on] == [("0.0.0.0", 7447), ("::", 7448)]
    assert "link_edge" not in names("edge")


@pytest.mark.parametrize(
    ("graph", "arguments", "message"),
    [
        ("full_stack", {"link": "yes"}, "link is 'yes', must be true or false"),
        ("full_stack", {"internet": "wan"}, "internet needs link:=true"),
        ("full_stack", {"link": "true", "internet": "mars"}, "'mars' is none of lan, wan"),
        ("edge", {"link": "tcp/gpu.example.org:7447"}, "link: address is 'tcp/gpu.example.org:7447'"),
        ("edge", {"link": "tls/a:1", "certificates": "/nowhere"}, "certificates is '/nowhere'"),
    ],
)
def test_a_link_that_cannot_be_is_refused(graph: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        deployment(graph).processes(arguments)


def test_the_monitor_waits_for_what_its_windows_show(monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        asked = 0

        def get_topic_names_and_types(self) -> list[tuple[str, list[str]]]:
            self.asked += 1
            return [("/a", ["T"])]

        def get_service_names_and_types(self) -> list[tuple[str, list[str]]]:
            return [("/b", ["T"])] * (self.asked > 2)

        def get_node_names_and_namespaces(self) -> list[tuple[str, str]]:
            return [("node", "/"), ("node", "/space")]

    node = Node()
    monkeypatch.setattr("rclpy.create_node", lambda name: node)
    assert wait_for({"/a", "/b", "/node", "/space/node"}, 60.0) == set()
    assert node.asked == 3
    assert wait_for({"/a", "/a/b"}, 0.0) == {"/a/b"}
