"""The node graph, declared once as data: which processes run where, with what; launch files and the runner read it.

Every deployment is a function from its arguments to a tuple of processes, in the order in which they start. They are
stopped in the reverse order: the agent (which hovers) before the bridge, the bridge before the simulator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ament_index_python.packages import get_package_share_directory

from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE
from nav_pilot import chosen_folder
from zenoh_link.errors import SettingsError
from zenoh_link.profile import find as find_profile
from zenoh_link.settings import parse_address

Side = Literal["edge", "server", "both"]
Value = bool | int | float | str


class ArgumentError(ValueError):
    """An argument of a deployment that it cannot start with; the message names it, its value and the remedy."""


@dataclass(frozen=True)
class Listening:
    """An address that a process listens on.

    Attributes:
        argument: that leads to it, and its value.
        remedy: who may listen there already, and what helps.
    """

    host: str
    port: int
    argument: str
    remedy: str


@dataclass(frozen=True)
class Process:
    """One process of the graph.

    Attributes:
        name: of the node and of the process; unique in the graph.
        package: where the executable lies.
        side: machine it belongs to.
        needs: packages that it takes from a ROS install.
        is_node: whether it takes ROS arguments (name, parameters, remappings).
        parameters: set over those of the parameters file.
        respawn: start it again when it has ended. A recorder cannot be: its file exists already.
        nice: higher yields the processor to the others.
        listens_on: TCP addresses that it opens and that must be free.
        environment: of this process alone, over ENVIRONMENT.
    """

    name: str
    package: str
    executable: str
    side: Side
    needs: tuple[str, ...] = ()
    is_node: bool = True
    parameters: Mapping[str, Value] = field(default_factory=dict)
    parameters_file: Path | None = None
    remappings: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    respawn: bool = True
    nice: int = 0
    listens_on: tuple[Listening, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Argument:
    """An argument of a deployment, as `name:=value` on both runners."""

    name: str
    default: str
    description: str


# The nodes that a parameter file may name.
NODES = (
    "airsim_bridge",
    "vlm_perception",
    "nav_agent",
    "recorder",
    "player",
    "diagnostic_aggregator",
    "link_edge",
    "link_server",
    "truth",
)

# What every process of the graph finds in its environment. One thread a pool: simulator, bridge, perception and agent
# share as little as two cores. Field checks: without them an int in a float field can abort a process at publish.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "ROS_PYTHON_CHECK_FIELDS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}

_NAMESPACE = Argument("namespace", DEFAULT_VEHICLE_NAMESPACE, "namespace of the vehicle's topics")
_AIRSIM_HOST = Argument(
    "airsim_host", "", "host of a running AirSim; empty: the embedded simulator is started"
)
_AIRSIM_PORT = Argument("airsim_port", "41451", "port of AirSim's RPC, real or embedded")
_SCENE = Argument("scene", "field", "scene of the embedded simulator")
_SEED = Argument("seed", "1", "seed of the scene: where its things stand")
_SET = Argument(
    "scene_parameters", "", "parameters of the scene, as colour=blue; several with commas between"
)
_MODEL = Argument(
    "model",
    "",
    "folder of a Qwen2.5-VL model in Hugging Face's layout; empty: QWEN_MODEL_PATH, else the pilot in nav_pilot",
)
_PARAMS = Argument("params_file", "", "YAML file of the nodes' parameters; empty: the nodes' defaults")
_RECORD = Argument("record", "", "folder to make for a recording of the flight; empty: none")
_BANK = Argument(
    "memory_bank",
    "off",
    "memory with identity: off, one (an instruction) or several; kept beside the recording",
)
_LINK = Argument(
    "link",
    "",
    "server: where the link listens, as tls/0.0.0.0:7447; edge: where the server is, as tls/host:7447 (or two with a "
    "comma, for commands and pictures); empty: no link, both sides in one ROS graph",
)
_CERTIFICATES = Argument(
    "certificates",
    "",
    "folder with this machine's certificates for the link; empty: addresses of this machine only",
)
_LINK_HERE = Argument(
    "link",
    "false",
    "true: edge and server in ROS domains of their own with the link between them, as on two machines",
)
_INTERNET = Argument(
    "internet",
    "",
    "with link:=true, what the link crosses: lan, wan, uplink, slow, cut, or a file that `python -m zenoh_link probe` "
    "wrote; empty: nothing",
)
_HTTP = Argument(
    "http",
    "false",
    "true: perception's process serves the HTTP API and the monitoring page too, with the same model; a token in "
    "STREAMPILOT_TOKEN",
)
_HTTP_HOST = Argument(
    "http_host", "127.0.0.1", "address that the HTTP API listens on; others than this machine's need a token"
)
_HTTP_PORT = Argument("http_port", "6006", "port of the HTTP API")
_HTTP_RUNS = Argument("http_runs", "runs", "folder of past flights, for the monitoring page")
_VISION = Argument(
    "vision",
    "engine",
    "what sees and decides: engine (with the model), lmstudio, ollama, cloud (with ALLOW_CLOUD), or auto: as "
    "`python -m nav_server policy --explain` says",
)
_VISIONS = ("engine", "auto", "lmstudio", "ollama", "cloud")
_BACKEND_ARGUMENTS = (_VISION, _HTTP, _HTTP_HOST, _HTTP_PORT, _HTTP_RUNS)
_TRUTH = Argument(
    "truth",
    "",
    "tell the server the simulator's truth, for evaluation: the name of the object that the mission asks for, or "
    "'unknown'; empty: tell nothing",
)
_BAG = Argument("bag", "", "recording to replay (a rosbag2 folder)")
_OUTPUT = Argument("output", "", "folder to make for the recording")
_RATE = Argument("rate", "1.0", "speed of the replay; 1 is the recording's own")


def _simulator(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    if arguments["airsim_host"]:
        return ()
    port = _integer(arguments, "airsim_port", 1, 65535)
    return (
        Process(
            name="airsim_sim",
            package="airsim_sim",
            executable="airsim_sim",
            side="edge",
            is_node=False,
            listens_on=(
                Listening(
                    "127.0.0.1",
                    port,
                    f"airsim_port is {port}",
                    "another simulator runs, perhaps another flight. End it, choose another port (airsim_port "
                    f"{port + 1}), or fly in that one (airsim_host 127.0.0.1)",
                ),
            ),
            arguments=(
                *("--scene", arguments["scene"]),
                *("--seed", str(_integer(arguments, "seed", 0, 2**31 - 1))),
                *("--port", str(port)),
                *(f"--set={item}" for item in arguments["scene_parameters"].split(",") if item),
                "--end-with-parent",
            ),
        ),
    )


def _bridge(arguments: Mapping[str, str]) -> Process:
    return Process(
        name="airsim_bridge",
        package="airsim_bridge",
        executable="airsim_bridge",
        side="edge",
        parameters_file=_parameters_file(arguments),
        parameters=_at_simulator(arguments),
    )


def _at_simulator(arguments: Mapping[str, str]) -> dict[str, Value]:
    """Parameters of a node that speaks AirSim's protocol."""
    return {
        "vehicle_namespace": arguments["namespace"],
        "host": arguments["airsim_host"] or "127.0.0.1",
        "port": _integer(arguments, "airsim_port", 1, 65535),
    }


def _perception(arguments: Mapping[str, str]) -> Process:
    record = arguments.get("record", "")
    perception = Process(
        name="vlm_perception",
        package="vlm_perception",
        executable="vlm_perception",
        side="server",
        parameters_file=_parameters_file(arguments),
        parameters={
            "vehicle_namespace": arguments["namespace"],
            "model": str(_model(arguments)),
            # Beside the recording: its counters outlive a restart of the process.
            "guard_record": str(Path(record).parent / "guard.json") if record else "",
            **_memory_bank(arguments.get("memory_bank", "off"), record),
        },
        nice=5,  # a late frame costs little, a late command or odometry stops the drone
    )
    http, vision = _truth(arguments, "http", "false"), arguments.get("vision", _VISION.default)
    if vision not in _VISIONS:
        raise ArgumentError(f"vision is {vision!r}, must be one of {', '.join(_VISIONS)}")
    if not http and vision == _VISION.default:
        return perception
    served: dict[str, Value] = {"vision": vision, "http": http}
    listens_on: tuple[Listening, ...] = ()
    if http:
        host, port = arguments["http_host"], _integer(arguments, "http_port", 1, 65535)
        listens_on = (
            Listening(
                host,
                port,
                f"http_host is {host} and http_port {port}",
                "the HTTP API of another flight or of `python -m nav_server` runs. End it, or choose another port "
                f"(http_port {port + 1})",
            ),
        )
        served |= {
            "http_host": host,
            "http_port": port,
            "http_runs": str(Path(arguments["http_runs"]).expanduser().absolute()),
        }
    return replace(
        perception,
        package="nav_server",
        executable="served_perception",
        parameters={**perception.parameters, **served},
        listens_on=listens_on,
    )


def _memory_bank(mode: str, record: str) -> dict[str, Value]:
    """Perception's parameters; none where it is off, so that a parameters file may say otherwise."""
    if mode not in ("off", "one", "several"):
        raise ArgumentError(f"memory_bank is {mode!r}, must be off, one or several")
    if mode == "off":
        return {}
    return {"memory_bank": mode, "session_folder": str(Path(record).parent) if record else ""}


def _agent(arguments: Mapping[str, str], *, dry_run: bool = False) -> Process:
    return Process(
        name="nav_agent",
        package="nav_agent",
        executable="nav_agent",
        side="server",
        parameters_file=_parameters_file(arguments),
        parameters={"vehicle_namespace": arguments["namespace"], "dry_run": dry_run},
    )


def _recorder(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    if not arguments["record"]:
        return ()
    return (
        Process(
            name="recorder",
            package="nav_eval",
            executable="record",
            side="both",
            parameters_file=_parameters_file(arguments),
            parameters={"vehicle_namespace": arguments["namespace"], "output": arguments["record"]},
            respawn=False,
        ),
    )


def _link(
    arguments: Mapping[str, str], side: Literal["edge", "server"], addresses: str
) -> tuple[Process, ...]:
    if not addresses:
        return ()
    try:
        parsed = [parse_address(address) for address in addresses.split(",")]
    except SettingsError as error:
        raise ArgumentError(f"link: {error}") from error
    folder = arguments["certificates"]
    if folder and not Path(folder).is_dir():
        raise ArgumentError(f"certificates is {folder!r}: there is no such folder")
    return (
        Process(
            name=f"link_{side}",
            package="zenoh_link",
            executable="zenoh_link",
            side=side,
            parameters_file=_parameters_file(arguments),
            parameters={
                "side": side,
                "addresses": addresses,
                "certificates": str(Path(folder).absolute()) if folder else "",
                "vehicle_namespace": arguments["namespace"],
            },
            listens_on=tuple(
                Listening(
                    each.host,
                    each.port,
                    f"link is {arguments['link']}",
                    f"another flight's link, or a zenoh router, listens on port {each.port}. End it"
                    + (", or choose another port on both sides" if arguments["link"] == addresses else ""),
                )
                for each in (parsed if side == "server" else ())
            ),
        ),
    )


def _full_stack(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    simulator, bridge = _simulator(arguments), _bridge(arguments)
    server = (_perception(arguments), _agent(arguments))
    if not _truth(arguments, "link"):
        if arguments["internet"]:
            raise ArgumentError("internet needs link:=true: without the link nothing crosses it")
        return (*simulator, *_recorder(arguments), bridge, *server)
    # The recorder is on the server's side: what it records is what crossed.
    protocol = "tls" if arguments["certificates"] else "tcp"
    ports = _LINK_PORT, _LINK_PORT + bool(arguments["internet"])
    listen, connect = (f"{protocol}/127.0.0.1:{port}" for port in ports)
    own_domain = {"ROS_DOMAIN_ID": str(edge_domain())}
    return (
        *simulator,
        *_recorder(arguments),
        *_link(arguments, "server", listen),
        *_internet(arguments, ports),
        *(replace(each, environment=own_domain) for each in (*_link(arguments, "edge", connect), bridge)),
        *server,
    )


_LINK_PORT = 7447


def edge_domain() -> int:
    """A ROS domain for the edge where both sides share a machine: far from the server's, which is the shell's."""
    return (int(os.environ.get("ROS_DOMAIN_ID") or 0) + 51) % 102


def _internet(arguments: Mapping[str, str], ports: tuple[int, int]) -> tuple[Process, ...]:
    if not arguments["internet"]:
        return ()
    try:
        find_profile(arguments["internet"])
    except SettingsError as error:
        raise ArgumentError(f"internet: {error}") from error
    listen = ("--listen", str(ports[1]), "--to", str(ports[0]))
    return (
        Process(
            name="internet",
            package="zenoh_link",
            executable="link_tool",
            side="both",
            is_node=False,
            arguments=("emulate", *listen, "--profile", arguments["internet"]),
            listens_on=(
                Listening(
                    "127.0.0.1",
                    ports[1],
                    f"internet is {arguments['internet']}",
                    f"its emulator's port {ports[1]} is held, perhaps by another flight. End it, or leave internet out",
                ),
            ),
        ),
    )


def _server(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    return (
        *_recorder(arguments),
        *_link(arguments, "server", arguments["link"]),
        _perception(arguments),
        _agent(arguments),
    )


def _edge(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    return (
        *_simulator(arguments),
        *_recorder(arguments),
        *_link(arguments, "edge", arguments["link"]),
        *_true_state(arguments),
        _bridge(arguments),
    )


def _true_state(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    if not arguments["truth"]:
        return ()
    goal = "" if arguments["truth"] == "unknown" else arguments["truth"]
    return (
        Process(
            name="truth",
            package="nav_eval",
            executable="truth",
            side="edge",
            parameters_file=_parameters_file(arguments),
            parameters={**_at_simulator(arguments), "goal": goal},
        ),
    )


def _replay(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    bag = Path(arguments["bag"])
    if not arguments["bag"] or not bag.is_dir():
        raise ArgumentError(
            f"bag is {arguments['bag']!r}: give the folder of a recording, as bag:=runs/latest/flight"
        )
    return (
        _perception(arguments),
        _agent(arguments, dry_run=True),
        Process(
            name="player",
            package="nav_eval",
            executable="play",
            side="server",
            parameters={
                "vehicle_namespace": arguments["namespace"],
                "bag": str(bag),
                "rate": _positive(arguments, "rate"),
            },
            respawn=False,
        ),
    )


def _record(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    if not arguments["output"]:
        raise ArgumentError("output is '': give the folder to make for the recording, as output:=flight")
    return (
        Process(
            name="recorder",
            package="nav_eval",
            executable="nav_eval",
            side="both",
            is_node=False,
            arguments=("record", arguments["output"], "--vehicle", arguments["namespace"]),
            respawn=False,
        ),
    )


def _monitor(arguments: Mapping[str, str]) -> tuple[Process, ...]:
    return (
        Process(
            name="rqt",
            package="nav_bringup",
            executable="monitor",
            side="server",
            is_node=False,
            needs=("rqt_gui",),
            arguments=(str(_share() / "params" / "streampilot.perspective"), arguments["namespace"]),
            respawn=False,
        ),
        # What rqt_robot_monitor shows is the aggregator's tree, not /diagnostics itself.
        Process(
            name="diagnostic_aggregator",
            package="diagnostic_aggregator",
            executable="aggregator_node",
            side="server",
            needs=("diagnostic_aggregator",),
            parameters_file=_share() / "params" / "diagnostic_aggregator.yaml",
        ),
    )


@dataclass(frozen=True)
class Deployment:
    """A named graph: what it is for, its arguments, its processes."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    make: Callable[[Mapping[str, str]], tuple[Process, ...]]

    def processes(self, arguments: Mapping[str, str]) -> tuple[Process, ...]:
        """The processes for `arguments` (those not named take their defaults).

        Raises:
            ArgumentError: an argument is unknown or its value cannot be.
        """
        known = {argument.name: argument.default for argument in self.arguments}
        for name in arguments:
            if name not in known:
                raise ArgumentError(f"{self.name} has no argument {name!r}; it has {', '.join(known)}")
        values = {**known, **arguments}
        if "namespace" in values:
            _check_namespace(values["namespace"])
        return self.make(values)


DEPLOYMENTS = {
    deployment.name: deployment
    for deployment in (
        Deployment(
            "full_stack",
            "everything on one machine: simulator (or a running AirSim), bridge, perception, agent",
            (
                *(_NAMESPACE, _AIRSIM_HOST, _AIRSIM_PORT, _SCENE, _SEED, _SET, _MODEL, _PARAMS, _RECORD),
                *(_BANK, _LINK_HERE, _INTERNET, _CERTIFICATES, *_BACKEND_ARGUMENTS),
            ),
            _full_stack,
        ),
        Deployment(
            "server",
            "the machine with the model: perception and agent, and the link to the edge",
            (_NAMESPACE, _MODEL, _PARAMS, _RECORD, _BANK, _LINK, _CERTIFICATES, *_BACKEND_ARGUMENTS),
            _server,
        ),
        Deployment(
            "edge",
            "the machine with the drone: bridge, the link to the server, and the embedded simulator unless AirSim runs",
            (
                *(_NAMESPACE, _AIRSIM_HOST, _AIRSIM_PORT, _SCENE, _SEED, _SET, _PARAMS, _RECORD),
                *(_LINK, _CERTIFICATES, _TRUTH),
            ),
            _edge,
        ),
        Deployment(
            "replay",
            "a recording played into perception and an agent that flies nothing",
            (_NAMESPACE, _MODEL, _PARAMS, _BAG, _RATE),
            _replay,
        ),
        Deployment(
            "record",
            "a recording of a graph that runs: ROS's own recorder where it is installed, otherwise nav_eval's",
            (_NAMESPACE, _OUTPUT),
            _record,
        ),
        Deployment(
            "monitor",
            "rqt on a running graph: camera, plots, diagnostics, sliders, graph, console",
            (_NAMESPACE,),
            _monitor,
        ),
    )
}


def deployment(name: str) -> Deployment:
    """The deployment called `name`.

    Raises:
        ArgumentError: there is none.
    """
    try:
        return DEPLOYMENTS[name]
    except KeyError:
        raise ArgumentError(f"there is no deployment {name!r}; there are {', '.join(DEPLOYMENTS)}") from None


def _model(arguments: Mapping[str, str]) -> Path:
    folder = chosen_folder(arguments["model"]).absolute()
    if not (folder / "config.json").is_file():
        raise ArgumentError(
            f"model is {str(folder)!r}: no config.json there; give the folder of a Qwen2.5-VL model in Hugging Face's "
            "layout (its own cache has it below snapshots/; ModelScope writes Qwen2___5-VL-3B-Instruct), or leave it "
            "and QWEN_MODEL_PATH out for the shipped pilot"
        )
    return folder


def _parameters_file(arguments: Mapping[str, str]) -> Path | None:
    if not arguments["params_file"]:
        return None
    path = Path(arguments["params_file"]).expanduser().absolute()
    if not path.is_file():
        raise ArgumentError(f"params_file is {arguments['params_file']!r}: there is no such file")
    return path


def _share() -> Path:
    return Path(get_package_share_directory("nav_bringup"))


def _check_namespace(namespace: str) -> None:
    parts = namespace.strip("/").split("/")
    if not all(part.isidentifier() and part.isascii() for part in parts):
        raise ArgumentError(
            f"namespace is {namespace!r}: letters, digits and _ between slashes are wanted, as /drone"
        )


def _integer(arguments: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = arguments[name]
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise ArgumentError(f"{name} is {text!r}, must be a whole number from {low} to {high}")
    return value


def _truth(arguments: Mapping[str, str], name: str, default: str = "") -> bool:
    text = arguments.get(name, default)
    if text not in ("true", "false"):
        raise ArgumentError(f"{name} is {text!r}, must be true or false")
    return text == "true"


def _positive(arguments: Mapping[str, str], name: str) -> float:
    text = arguments[name]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ArgumentError(f"{name} is {text!r}, must be a number above 0")
    return value
