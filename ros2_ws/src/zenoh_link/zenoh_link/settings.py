"""What crosses the link, read from one YAML file and checked; addresses and which of them need certificates."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any

import yaml

from nav_common import topics
from nav_common.topics import Topic
from zenoh_link.errors import SettingsError

DEFAULT_FILE = Path(__file__).parent / "link.yaml"
DEFAULT_PORT = 7447
CONTROL_LOWEST = 3
"""Lowest priority (largest number) on the connection for commands and state; pictures have their own."""
LARGEST_MESSAGE = 16_000_000
HIGHEST_RATE_HZ = 200.0


class Side(StrEnum):
    """Which machine this is."""

    SERVER = "server"
    EDGE = "edge"


class Direction(Enum):
    TO_SERVER = "to_server"
    TO_EDGE = "to_edge"
    TO_VIEWERS = "to_viewers"


class Priority(IntEnum):
    """Numbered as zenoh's; a smaller number goes first."""

    REAL_TIME = 1
    INTERACTIVE_HIGH = 2
    INTERACTIVE_LOW = 3
    DATA_HIGH = 4
    DATA = 5
    DATA_LOW = 6
    BACKGROUND = 7


@dataclass(frozen=True)
class Route:
    """A topic that crosses. `key`: its zenoh key, as zenoh-bridge-ros2dds makes it: the name without its first slash.

    Depth crosses as ROS's compressedDepth, so it has that topic's name.
    """

    topic: Topic
    key: str
    direction: Direction
    priority: Priority
    rate_hz: float
    max_bytes: int
    newest: bool = False
    standstill: bool = False
    requested_by: str = ""
    """Name of the topic by which the other side asks for each message; "": all are sent."""

    @property
    def is_bulk(self) -> bool:
        return self.priority > CONTROL_LOWEST


@dataclass(frozen=True)
class Settings:
    """See link.yaml."""

    vehicle: str
    server: str
    edge: str
    viewers: tuple[str, ...]
    routes: tuple[Route, ...]
    services: tuple[str, ...]
    jpeg_quality: tuple[int, int]
    picture_rate_hz: tuple[float, float]
    preview_hz: float
    plain_peer: bool = False

    def of(self, *directions: Direction) -> tuple[Route, ...]:
        return tuple(route for route in self.routes if route.direction in directions)

    def sent_by(self, side: Side) -> tuple[Route, ...]:
        if side is Side.EDGE:
            return self.of(Direction.TO_SERVER)
        return self.of(Direction.TO_EDGE, Direction.TO_VIEWERS)

    def received_by(self, side: Side) -> tuple[Route, ...]:
        return self.of(Direction.TO_EDGE if side is Side.EDGE else Direction.TO_SERVER)

    def name_of(self, side: Side) -> str:
        return self.edge if side is Side.EDGE else self.server

    def service_key(self, service: str) -> str:
        return key_of(topics.resolve(service, self.vehicle))

    def link_key(self, side: Side, what: str) -> str:
        """Key of the link's own messages, sent by `side`."""
        return key_of(topics.resolve(f"link/{side}/{what}", self.vehicle))


def check_ports(highest: int = 65535, **ports: int) -> None:
    """SettingsError if one is no port to connect to; each is named as its option: ssh_port as `--ssh-port`."""
    for name, port in ports.items():
        if not 0 < port <= highest:
            raise SettingsError(f"--{name.replace('_', '-')} is {port}, must be 1 to {highest}")


def key_of(absolute_name: str) -> str:
    return absolute_name.lstrip("/")


# --- the file


def load(path: Path | str = DEFAULT_FILE, vehicle: str | None = None) -> Settings:
    """The settings of a file; `vehicle` replaces the file's namespace.

    Raises:
        SettingsError: with the file's name in front.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"link settings {path} cannot be read: {error}") from error
    try:
        return parse(text, vehicle)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def parse(text: str, vehicle: str | None = None) -> Settings:
    """Settings of a YAML text; `vehicle` replaces its namespace.

    Raises:
        SettingsError: it is no YAML, or an entry is unknown, missing, of the wrong type or out of range.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"no YAML: {error}") from error
    root = _Section(values, "the file")
    of_the_file = root.take("vehicle", str)
    vehicle = of_the_file if vehicle is None else vehicle
    if not re.fullmatch(r"(/[A-Za-z_]\w*)+", vehicle):
        raise SettingsError(f"vehicle is {vehicle!r}, must be a namespace such as /drone")
    machines = _Section(root.take("machines", dict), "machines")
    names = _Machines(
        machines.take("server", str), machines.take("edge", str), tuple(machines.take("viewers", list, []))
    )
    names.check()
    machines.end()
    routes = tuple(
        _route(entry, direction, vehicle)
        for direction in Direction
        for entry in root.take(direction.value, list, [])
    )
    _each_once(routes)
    _requests_cross(routes)
    services = tuple(root.take("services", list, []))
    for service in services:
        if service not in SERVICES:
            raise SettingsError(f"services has {service!r}, known are {', '.join(SERVICES)}")
    pictures = _Section(root.take("pictures", dict), "pictures")
    quality, rate_hz = pictures.limits("jpeg_quality", 10, 100), pictures.limits("rate_hz", 0.1, 60)
    preview_hz = pictures.number("preview_hz", 0.01, 60)
    pictures.end()
    plain_peer = root.take("plain_peer", bool, False)
    root.end()
    return Settings(
        vehicle,
        names.server,
        names.edge,
        names.viewers,
        routes,
        services,
        (int(quality[0]), int(quality[1])),
        rate_hz,
        preview_hz,
        plain_peer,
    )


# With the types of their requests and responses.
TRIGGER, SET_BOOL = "std_srvs/srv/Trigger", "std_srvs/srv/SetBool"
SERVICES = {
    topics.TAKEOFF_SERVICE: TRIGGER,
    topics.LAND_SERVICE: TRIGGER,
    topics.RESET_VEHICLE_SERVICE: TRIGGER,
    topics.API_CONTROL_SERVICE: SET_BOOL,
}

_TOPICS = [value for value in vars(topics).values() if isinstance(value, Topic)]


def find_topic(name: str) -> Topic:
    """The topic of nav_common.topics with that name; a camera's topic with the camera's name in place.

    Raises:
        SettingsError: there is none.
    """
    for topic in _TOPICS:
        pattern = re.escape(topic.name).replace(r"\{camera\}", "[A-Za-z_][A-Za-z0-9_]*")
        if re.fullmatch(pattern, name):
            return replace(topic, name=name)
    known = ", ".join(sorted({topic.name for topic in _TOPICS}))
    raise SettingsError(f"topic {name!r} is not known; known are {known}")


def _route(entry: Any, direction: Direction, vehicle: str) -> Route:
    section = _Section(entry, f"{direction.value}: {entry!r:.60}")
    topic = find_topic(section.take("topic", str))
    if topic.name == topics.LINK_UP.name or topic.name == topics.LINK_STATE.name:
        raise SettingsError(f"{topic.name} is said by each side's link and cannot cross it")
    section.where = f"{direction.value}: {topic.name}"
    priority = section.take("priority", str)
    if priority.upper() not in Priority.__members__:
        known = ", ".join(name.lower() for name in Priority.__members__)
        raise SettingsError(f"{section.where}: priority is {priority!r}, must be one of {known}")
    route = Route(
        topic,
        key_of(topic.resolve(vehicle))
        + ("/compressedDepth" if topic.type == topics.CAMERA_DEPTH.type else ""),
        direction,
        Priority[priority.upper()],
        section.number("rate_hz", 0.01, HIGHEST_RATE_HZ),
        int(section.number("max_bytes", 8, LARGEST_MESSAGE)),
        section.take("newest", bool, False),
        section.take("standstill", bool, False),
        section.take("requested_by", str, ""),
    )
    section.end()
    if route.newest and not topic.type.startswith("sensor_msgs/"):
        raise SettingsError(
            f"{section.where}: newest is for sensors' messages, whose stamps are acknowledged"
        )
    if route.newest and not route.is_bulk:
        raise SettingsError(
            f"{section.where}: priority is {priority}, but pictures may not delay commands: take data"
        )
    if route.requested_by and not route.newest:
        raise SettingsError(f"{section.where}: requested_by is for topics of which only the newest counts")
    return route


def _requests_cross(routes: tuple[Route, ...]) -> None:
    """Whoever answers a request must hear it."""
    for route in routes:
        asked = [r for r in routes if r.topic.name == route.requested_by]
        back = {Direction.TO_SERVER: Direction.TO_EDGE, Direction.TO_EDGE: Direction.TO_SERVER}
        if route.requested_by and (
            not asked
            or asked[0].direction is not back.get(route.direction)
            or asked[0].topic.type != topics.FRAME_WANTED.type
        ):
            raise SettingsError(
                f"{route.direction.value}: {route.topic.name}: requested_by is {route.requested_by!r}, must be a topic "
                f"of {topics.FRAME_WANTED.type} that crosses the other way"
            )


def _each_once(routes: tuple[Route, ...]) -> None:
    directions: dict[str, Direction] = {}
    for route in routes:
        before = directions.setdefault(route.key, route.direction)
        if before is not route.direction:
            raise SettingsError(
                f"{route.topic.name} stands in {before.value} and in {route.direction.value}: take one"
            )
    if len(directions) < len(routes):
        twice = next(r for i, r in enumerate(routes) if r.key in {other.key for other in routes[:i]})
        raise SettingsError(f"{twice.direction.value}: {twice.topic.name} stands there twice")


@dataclass(frozen=True)
class _Machines:
    server: str
    edge: str
    viewers: tuple[Any, ...]

    def check(self) -> None:
        names = (self.server, self.edge, *self.viewers)
        for name in names:
            check_machine(name)
        if len(set(names)) < len(names):
            raise SettingsError(f"machines are {', '.join(names)}: a name occurs twice")


def check_machine(name: Any) -> None:
    """A name that can be a file's and a certificate's.

    Raises:
        SettingsError: it cannot.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name) or name == "ca":
        raise SettingsError(f"machine's name is {name!r}, must be letters, digits, - and _ (and not 'ca')")


_MISSING = object()


class _Section:
    """A mapping whose entries are taken one by one; what is left at the end is unknown."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise SettingsError(f"{where} must hold 'name: value' entries")
        self._values = dict(values)
        self.where = where

    def take(self, name: str, kind: type, default: Any = _MISSING) -> Any:
        value = self._values.pop(name, default)
        if value is _MISSING:
            raise SettingsError(f"{self.where}: {name} is missing")
        if not isinstance(value, kind):
            raise SettingsError(f"{self.where}: {name} is {value!r:.60}, must be a {_KINDS[kind]}")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        return self._checked(name, self._values.pop(name, _MISSING), low, high)

    def limits(self, name: str, low: float, high: float) -> tuple[float, float]:
        values = self.take(name, list)
        if len(values) != 2:
            raise SettingsError(f"{self.where}: {name} is {values}, must be [lowest, highest]")
        lowest, highest = (self._checked(name, value, low, high) for value in values)
        if lowest > highest:
            raise SettingsError(f"{self.where}: {name} is {values}, must be [lowest, highest]")
        return lowest, highest

    def _checked(self, name: str, value: Any, low: float, high: float) -> float:
        if value is _MISSING:
            raise SettingsError(f"{self.where}: {name} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise SettingsError(
                f"{self.where}: {name} is {value!r:.60}, must be a number from {low:g} to {high:g}"
            )
        return float(value)

    def end(self) -> None:
        if self._values:
            unknown = ", ".join(map(str, self._values))
            raise SettingsError(f"{self.where}: {unknown} is not known")


_KINDS = {str: "text", list: "list", dict: "mapping", bool: "true or false"}


# --- addresses


@dataclass(frozen=True)
class Address:
    """Where zenoh listens or connects: `protocol`/`host`:`port`."""

    protocol: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}/{host}:{self.port}"

    @property
    def needs_certificates(self) -> bool:
        return self.protocol == "tls"


def parse_address(text: str) -> Address:
    """An address such as "tls/gpu.example.org:7447" or, on this machine only, "tcp/127.0.0.1:7447".

    Raises:
        SettingsError: it is none, or plain TCP to or for another machine.
    """
    match = re.fullmatch(r"(\w+)/(\[[0-9A-Fa-f:.]+\]|[^/:\[\]?#\s]+)(?::(\d+))?", text)
    if match is None:
        raise SettingsError(f"address is {text!r}, must be like tls/host:{DEFAULT_PORT}")
    protocol, host, port = match[1], match[2].strip("[]"), int(match[3] or DEFAULT_PORT)
    if protocol not in ("tls", "tcp"):
        raise SettingsError(
            f"address is {text!r}: {protocol} is not used here, only tls (and tcp on this machine)"
        )
    if not 0 < port < 65536:
        raise SettingsError(f"address is {text!r}: the port must be 1 to 65535")
    if protocol == "tcp" and not is_loopback(host):
        raise SettingsError(
            f"address is {text!r}: without encryption and certificates only this machine's own addresses are allowed; "
            f"take tls/{match[2]}:{port}"
        )
    return Address(protocol, host, port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
