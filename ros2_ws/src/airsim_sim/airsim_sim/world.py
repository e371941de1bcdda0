"""Worlds: what stands where. Read from YAML, made definite by a seed, free of physics and pictures.

World frame: north-west-up, metres, origin at the drone's start. Angles in YAML are degrees, counter-clockwise
seen from above (so north is 0 and west is 90).

    world = load_world("field", seed=1, colour="blue")
    world.goal.name, world.goal.position        # for judging only, never for the pilot
    world.objects                               # every object with its outline

A world file (see `scenes/*.yaml`) has `name`, `objects`, `goals`, and may have `parameters`, `ground`, `sky`, `sun`,
`start`, `mirror`, `instructions` (one for each goal, flown in that order; `{goal}` is what the goal is called), `names`
(what each object that an instruction could name is called) and `absent` (names of what is not there). Instead of
`instructions` it may have `wording`: then the seed draws their words (`airsim_sim.instructions`), with `guide` for a
goal that is out of sight at the start ("street", "wall"); without goals they name something that is not there.

An object has a `kind` (tree, pillar, box, shed, building, house, wall, car, lamp, globe_lamp; hill and strip are only
seen), a `name`, perhaps a `count`, and a place: `at: [north, west]` with `yaw_deg` and `z`, or
`ring: [nearest, farthest]` around the start with `apart`, the room kept to the start and to the objects before it, and
`apart_deg`, the gap kept between the outlines as seen from the start. A ring may also lie `around` an object before it,
and keep within distances of the centres of others: `within: {car: [50, 70]}`. `KINDS` lists what else each kind takes.

Wherever a number is expected, `{between: [low, high]}` draws one from the seed; wherever a word is expected,
`{one_of: [...]}` does, and `{one_of: [...], except: [...]}` without some of them. `$name` is a parameter, which
`load_world(..., name=value)` overrides; in instructions and names it is `{name}`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

# libyaml's parser where it was built in: six times faster, and training loads thousands of worlds.
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SCENES = Path(__file__).parent / "scenes"

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.08, 0.06),
    "blue": (0.08, 0.20, 0.85),
    "yellow": (0.95, 0.82, 0.05),
    "white": (0.95, 0.95, 0.95),
    "orange": (0.95, 0.45, 0.05),
    "purple": (0.50, 0.10, 0.65),
    "pink": (0.95, 0.45, 0.65),
    "cyan": (0.10, 0.75, 0.80),
    "green": (0.10, 0.60, 0.20),
    "black": (0.06, 0.06, 0.07),
    "grey": (0.50, 0.50, 0.52),
    "brown": (0.40, 0.26, 0.14),
    "beige": (0.78, 0.70, 0.56),
    "brick": (0.62, 0.30, 0.22),
}

_COLOUR_WORDS = {rgb: word for word, rgb in COLOURS.items()}

RESERVED_NAMES = ("world", "ground", "drone")  # bodies that every scene has
GROUNDS = ("grass", "asphalt", "sand")
WORDINGS = ("training", "held_out", "synonyms")  # airsim_sim.instructions says what they are
GUIDES = ("street", "wall")
BEACON_RADIUS_M = 0.4


class WorldError(ValueError):
    """A world file or a request for a world is wrong; the text names file, line, field and remedy."""


@dataclass(frozen=True)
class Part:
    """One solid of an object, in the object's own frame (origin on the ground below its centre)."""

    shape: str  # box, cylinder, ellipsoid, capsule
    centre: tuple[float, float, float]
    half_size: tuple[float, float, float]  # cylinder and capsule: radius, half length, ignored
    rgb: tuple[float, float, float]
    texture: str = ""  # "", leaves, windows, brick, bark
    solid: bool = True  # False: only seen (shadows, road markings, far hills)
    yaw_deg: float = 0.0


@dataclass(frozen=True)
class WorldObject:
    """An object that stands in the world: pose of its origin, its parts and its outline for judging."""

    name: str
    kind: str
    position: tuple[float, float, float]
    yaw_deg: float
    parts: tuple[Part, ...]
    radius: float  # of the smallest upright cylinder around all solid parts, metres
    height: float

    @property
    def colour(self) -> str:
        """The word for its colour, that of the first part which has a named one; "" where none has."""
        words = (_COLOUR_WORDS[part.rgb] for part in self.parts if part.rgb in _COLOUR_WORDS)
        return next(words, "green" if self.kind == "tree" else "")

    @property
    def rgb(self) -> tuple[float, float, float]:
        """Its colour on a map: the named one, else that of its last solid part."""
        solid = [part.rgb for part in self.parts if part.solid]
        return COLOURS.get(
            self.colour if self.kind != "tree" else "", solid[-1] if solid else (0.5, 0.5, 0.5)
        )

    def distance_m(self, point: Sequence[float]) -> float:
        """`distances_m` of one point (north, west)."""
        return float(self.distances_m(np.array([point[:2]], float))[0])

    def distances_m(self, points: np.ndarray) -> np.ndarray:
        """How far points (n, 2) are from the object, horizontally, (n,) m: from the outline of its solids, plus the
        radius of a beacon. So it is the distance from the axis of a beacon, and means the same for a house."""
        local = in_turned_frame(np.asarray(points, float) - self.position[:2], self.yaw_deg)
        outside = [_outside_m(part, local) for part in self.parts if part.solid]
        if not outside:  # only seen: from its centre
            return np.asarray(np.hypot(*local.T))
        return np.asarray(BEACON_RADIUS_M + np.min(outside, axis=0))


def in_turned_frame(points: np.ndarray, yaw_deg: float) -> np.ndarray:
    """Points (n, 2), north and west, in a frame that is turned by `yaw_deg` counter-clockwise."""
    cos, sin = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    x, y = points.T
    return np.column_stack([x * cos + y * sin, y * cos - x * sin])


def _outside_m(part: Part, points: np.ndarray) -> np.ndarray:
    """Horizontal distance (n,) of points (n, 2) in the object's frame from a part's outline, m; inside a round part
    negative, inside a box 0."""
    local = in_turned_frame(points - np.array(part.centre[:2]), part.yaw_deg)
    if part.shape == "box":
        distance: np.ndarray = np.linalg.norm(
            np.maximum(np.abs(local) - np.array(part.half_size[:2]), 0.0), axis=1
        )
        return distance
    return np.asarray(np.hypot(*local.T) - part.half_size[0])


@dataclass(frozen=True)
class Goal:
    """What a mission asks for: an object's name and its position (base centre) in the world frame."""

    name: str
    position: tuple[float, float, float]


@dataclass(frozen=True)
class World:
    """A definite world. Equal arguments of `load_world` give equal worlds."""

    name: str
    seed: int
    parameters: dict[str, str]
    ground: str
    sky: tuple[tuple[float, float, float], tuple[float, float, float]]  # colour at the zenith, at the horizon
    sun_direction: tuple[float, float, float]
    start_yaw_deg: float
    objects: tuple[WorldObject, ...]
    goals: tuple[Goal, ...]
    instructions: tuple[str, ...] = ()
    """One for each goal, with `{goal}` for its name; empty where the scene's file has none."""
    names: dict[str, str] = field(default_factory=dict)
    """What the objects that an instruction could name are called: "beacon": "the red beacon"."""
    absent: tuple[str, ...] = ()
    """What could be named and is not there: "the blue beacon"."""
    wording: str = ""
    """One of WORDINGS where the seed draws the words of the instructions, else ""."""
    guide: str = ""
    """One of GUIDES where the instruction says how to come to a first goal that is out of sight, else ""."""
    source: str = field(default="", compare=False)

    @property
    def goal(self) -> Goal:
        """The last of `goals`: where a mission of all of them ends. IndexError where there is none to reach."""
        return self.goals[-1]

    def object(self, name: str) -> WorldObject:
        """The object of that name. Raises KeyError with the names there are."""
        for item in self.objects:
            if item.name == name:
                return item
        raise KeyError(
            f"no object {name!r} in world {self.name!r}; there are {[o.name for o in self.objects]}"
        )


def scene_names() -> list[str]:
    """The scenes that come with the package."""
    return sorted(path.stem for path in SCENES.glob("*.yaml"))


def load_world(scene: str | Path, seed: int = 0, **parameters: str) -> World:
    """Reads a scene by name or by path of a YAML file and makes it definite by `seed`.

    `parameters` override the file's own (`colour="blue"`). Raises WorldError for an unknown scene or parameter,
    and for every mistake in the file, naming file, line and field.
    """
    path = Path(scene)
    if path.suffix not in (".yaml", ".yml"):
        path = SCENES / f"{scene}.yaml"
        if not path.is_file():
            raise WorldError(
                f"unknown scene {str(scene)!r}: choose one of {', '.join(scene_names())}, "
                "or give the path of a world file ending in .yaml"
            )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"{path}: cannot be read ({error})") from error
    return parse_world(text, str(path), seed, **parameters)


def parse_world(text: str, source: str, seed: int = 0, **parameters: str) -> World:
    """As `load_world`, from YAML text; `source` is the name used in errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise WorldError(f"{source}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if node is None:
        raise WorldError(f"{source}, line 1: the file is empty; it needs at least `name` and `objects`")
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 0x5EED])
    return _world(_YamlNode(node, source, "", rng, {}), seed, parameters)


class _YamlNode:
    """One YAML node with its path, so that every error can say where it is."""

    def __init__(
        self, node: yaml.Node, source: str, path: str, rng: np.random.Generator, parameters: dict[str, str]
    ) -> None:
        self.node, self.source, self.path, self.rng, self.parameters = node, source, path, rng, parameters

    def error(self, message: str) -> WorldError:
        line = self.node.start_mark.line + 1
        return WorldError(f"{self.source}, line {line}, field {self.path or '(top)'}: {message}")

    def child(self, node: yaml.Node, path: str) -> _YamlNode:
        return _YamlNode(node, self.source, path, self.rng, self.parameters)

    def mapping(self, allowed: Set[str], required: Set[str] = frozenset()) -> dict[str, _YamlNode]:
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("must be a mapping (key: value)")
        result: dict[str, _YamlNode] = {}
        for key_node, value_node in self.node.value:
            key = str(key_node.value)
            item = self.child(value_node, f"{self.path}.{key}" if self.path else key)
            item.node.start_mark = key_node.start_mark
            if key not in allowed:
                raise item.error(f"unknown; allowed here: {', '.join(sorted(allowed))}")
            if key in result:
                raise item.error("given twice")
            result[key] = item
        for key in sorted(required):
            if key not in result:
                raise self.error(f"{key!r} is missing")
        return result

    def items(self, length: int | None = None) -> list[_YamlNode]:
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("must be a list")
        if length is not None and len(self.node.value) != length:
            raise self.error(f"must have {length} values, has {len(self.node.value)}")
        return [self.child(node, f"{self.path}[{i}]") for i, node in enumerate(self.node.value)]

    def word(self, choices: Any = None) -> str:
        if isinstance(self.node, yaml.MappingNode):
            fields = self.mapping({"one_of", "except"}, {"one_of"})
            taken = {item.word() for item in fields["except"].items()} if "except" in fields else set()
            words = [
                item for item in fields["one_of"].items() if not taken or item.word(choices) not in taken
            ]
            if not words:
                raise self.error("one_of needs at least one word" + (", all are excepted" if taken else ""))
            return words[int(self.rng.integers(len(words)))].word(choices)
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value:
            raise self.error("must be a word")
        value = str(self.node.value)
        if value.startswith("$"):
            if value[1:] not in self.parameters:
                raise self.error(f"{value} is not a parameter; there are {sorted(self.parameters)}")
            value = self.parameters[value[1:]]
        if choices is not None and value not in choices:
            raise self.error(f"{value!r} is not one of {', '.join(choices)}")
        return value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        if isinstance(self.node, yaml.MappingNode):
            drawn = self.mapping({"between"}, {"between"})["between"].items(2)
            a, b = drawn[0].number(low, high), drawn[1].number(low, high)
            if a > b:
                raise self.error(f"between: {a} is greater than {b}")
            return float(self.rng.uniform(a, b))
        try:
            value = float(self.node.value)
        except (TypeError, ValueError):
            raise self.error(f"must be a number, is {self.node.value!r}") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise self.error(f"must be a number from {low:g} to {high:g}, is {value:g}")
        return value

    def pair(self, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
        a, b = self.items(2)
        return a.number(low, high), b.number(low, high)

    def colour(self) -> tuple[float, float, float]:
        if isinstance(self.node, yaml.SequenceNode):
            r, g, b = (item.number(0.0, 1.0) for item in self.items(3))
            return r, g, b
        return COLOURS[self.word(COLOURS)]


def _world(top: _YamlNode, seed: int, overrides: dict[str, str]) -> World:
    fields = top.mapping(
        {"name", "parameters", "mirror", "ground", "sky", "sun", "start", "objects", "goals", "instructions"}
        | {"names", "absent", "wording", "guide"},
        {"name", "objects", "goals"},
    )
    if "parameters" in fields:
        _read_parameters(fields["parameters"], overrides)
    elif overrides:
        raise fields["name"].error(f"this world has no parameters, but {sorted(overrides)} was given")
    ground = "grass"
    if "ground" in fields:
        ground = fields["ground"].mapping({"texture"}, {"texture"})["texture"].word(GROUNDS)
    sky = ((0.26, 0.48, 0.82), (0.80, 0.88, 0.95))
    if "sky" in fields:
        part = fields["sky"].mapping({"zenith", "horizon"}, {"zenith", "horizon"})
        sky = (part["zenith"].colour(), part["horizon"].colour())
    azimuth, elevation = 215.0, 50.0
    if "sun" in fields:
        part = fields["sun"].mapping({"azimuth_deg", "elevation_deg"}, {"azimuth_deg", "elevation_deg"})
        azimuth, elevation = part["azimuth_deg"].number(), part["elevation_deg"].number(5.0, 90.0)
    start_yaw = 0.0
    if "start" in fields:
        start_yaw = fields["start"].mapping({"yaw_deg"}, {"yaw_deg"})["yaw_deg"].number()
    objects = _objects(fields["objects"])
    if (
        "mirror" in fields
        and fields["mirror"].word(("never", "by_seed")) == "by_seed"
        and top.rng.random() < 0.5
    ):
        objects, start_yaw = [_mirrored(item) for item in objects], -start_yaw
    goals = [Goal(item.name, item.position) for item in _named(fields["goals"], objects)]
    wording = fields["wording"].word(WORDINGS) if "wording" in fields else ""
    guide = fields["guide"].word(GUIDES) if "guide" in fields else ""
    if not goals and not wording:
        raise fields["goals"].error("needs at least one object's name, or `wording` to name what is absent")
    if wording and "instructions" in fields:
        raise fields["wording"].error("the words are drawn or given: leave out `wording` or `instructions`")
    names = _names(fields["names"], objects) if "names" in fields else {}
    absent = tuple(_text(item) for item in fields["absent"].items()) if "absent" in fields else ()
    instructions: tuple[str, ...] = ()
    if "instructions" in fields:
        instructions = tuple(_text(item, goal="{goal}") for item in fields["instructions"].items(len(goals)))
        for goal in goals:
            if goal.name not in names:
                raise fields["instructions"].error(
                    f"`names` does not say what the goal {goal.name!r} is called"
                )
    cos_e = math.cos(math.radians(elevation))
    sun = (
        -cos_e * math.cos(math.radians(azimuth)),
        -cos_e * math.sin(math.radians(azimuth)),
        -math.sin(math.radians(elevation)),
    )
    return World(
        fields["name"].word(), seed, dict(top.parameters), ground, sky, sun, start_yaw, tuple(objects),
        tuple(goals), instructions, names, absent, wording, guide, top.source,
    )  # fmt: skip


def _named(item: _YamlNode, objects: list[WorldObject]) -> list[WorldObject]:
    """The objects that a list names."""
    return [_named_one(entry, objects) for entry in item.items()]


def _named_one(item: _YamlNode, objects: list[WorldObject]) -> WorldObject:
    wanted = item.word()
    for one in objects:
        if one.name == wanted:
            return one
    raise item.error(f"no object is named {wanted!r}; there are {[o.name for o in objects]}")


def _names(item: _YamlNode, objects: list[WorldObject]) -> dict[str, str]:
    """What each named object is called."""
    return {name: _text(field) for name, field in item.mapping({o.name for o in objects}).items()}


def _text(item: _YamlNode, **fixed: str) -> str:
    """A text with its `{parameter}`s filled in."""
    if not isinstance(item.node, yaml.ScalarNode) or not str(item.node.value).strip():
        raise item.error("must be a text")
    try:
        return str(item.node.value).format(**item.parameters, **fixed)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in (*item.parameters, *fixed))
        raise item.error(f"{item.node.value!r}: {error} is not known; there are {known}") from error


def _mirrored(item: WorldObject) -> WorldObject:
    """West becomes east. Objects' own shapes stay as they are: all but a lamp's arm are symmetric enough."""
    x, y, z = item.position
    return replace(item, position=(x, -y, z), yaw_deg=-item.yaw_deg)


def _read_parameters(item: _YamlNode, overrides: dict[str, str]) -> None:
    if not isinstance(item.node, yaml.MappingNode):
        raise item.error("must be a mapping of names to default words")
    names = {str(key.value) for key, _ in item.node.value}
    for name in sorted(set(overrides) - names):
        raise item.error(f"{name!r} was given, but this world's parameters are {sorted(names)}")
    for name, value in item.mapping(names).items():
        item.parameters[name] = overrides[name] if name in overrides else value.word()


def _objects(top: _YamlNode) -> list[WorldObject]:
    """Objects in the file's order; each keeps its distance from the start and from those before it."""
    placed: list[WorldObject] = []
    for item in top.items():
        kind_field = item.mapping(_ANY_KEY, {"kind", "name"})["kind"]
        kind = kind_field.word(KINDS)
        expand, keys = KINDS[kind]
        fields = item.mapping(_PLACE | {"kind", "name", "count"} | keys)
        count = int(fields["count"].number(1, 1000)) if "count" in fields else 1
        name = fields["name"].word()
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise fields["name"].error(f"{name!r}: letters, digits and underscores only")
        if name in RESERVED_NAMES:
            raise fields["name"].error(f"{name!r} is taken, as are all of {', '.join(RESERVED_NAMES)}")
        for number in range(1, count + 1):
            full_name = f"{name}_{number}" if count > 1 else name
            if any(other.name == full_name for other in placed):
                raise fields["name"].error(f"two objects are named {full_name!r}")
            parts = expand(fields)
            placed.append(_placed(item, fields, full_name, kind, parts, placed))
    return placed


def _placed(
    item: _YamlNode,
    fields: dict[str, _YamlNode],
    name: str,
    kind: str,
    parts: tuple[Part, ...],
    others: list[WorldObject],
) -> WorldObject:
    radius, height = _outline(parts)
    z = fields["z"].number(-100, 1000) if "z" in fields else 0.0
    if "at" in fields:
        x, y = fields["at"].pair(-1000, 1000)
        yaw = fields["yaw_deg"].number() if "yaw_deg" in fields else 0.0
        return WorldObject(name, kind, (x, y, z), yaw, parts, radius, height)
    if "ring" not in fields:
        raise item.error("needs `at: [x, y]` or `ring: [nearest, farthest]` (metres from the start)")
    near, far = fields["ring"].pair(0, 1000)
    if near > far:
        raise fields["ring"].error(f"nearest {near} is greater than farthest {far}")
    centre = (0.0, 0.0, 0.0)
    if "around" in fields:
        centre = _named_one(fields["around"], others).position
    within: list[tuple[WorldObject, tuple[float, float]]] = []
    if "within" in fields:
        names = fields["within"].mapping({o.name for o in others})
        within = [(o, names[o.name].pair(0, 1000)) for o in others if o.name in names]
    apart = fields["apart"].number(0, 100) if "apart" in fields else 0.0
    apart_rad = math.radians(fields["apart_deg"].number(0, 90)) if "apart_deg" in fields else None
    for _ in range(1000):
        distance, bearing = item.rng.uniform(near, far), item.rng.uniform(-math.pi, math.pi)
        x = centre[0] + float(distance * math.cos(bearing))
        y = centre[1] + float(distance * math.sin(bearing))
        clear = (
            math.hypot(x, y) - radius >= apart
            and all(
                math.hypot(x - o.position[0], y - o.position[1]) - radius - o.radius >= apart
                for o in others
                if o.radius > 0
            )
            and all(low <= math.dist((x, y), o.position[:2]) <= high for o, (low, high) in within)
        )
        if clear and apart_rad is not None:
            clear = all(
                _gap_rad((x, y), radius, o.position, o.radius) >= apart_rad for o in others if o.radius > 0
            )
        if clear:
            yaw = fields["yaw_deg"].number() if "yaw_deg" in fields else float(item.rng.uniform(-180, 180))
            return WorldObject(name, kind, (x, y, z), yaw, parts, radius, height)
    raise item.error(f"no free place for {name!r} within the ring {near:g} to {far:g} m, {apart:g} m apart")


def _gap_rad(a: Sequence[float], a_radius: float, b: Sequence[float], b_radius: float) -> float:
    """Between the outlines of two objects as seen from the start; negative where one is before the other."""
    between = abs((math.atan2(a[1], a[0]) - math.atan2(b[1], b[0]) + math.pi) % (2 * math.pi) - math.pi)
    for (x, y, *_), radius in ((a, a_radius), (b, b_radius)):
        between -= math.asin(min(1.0, radius / max(math.hypot(x, y), 1e-9)))
    return between


def _outline(parts: tuple[Part, ...]) -> tuple[float, float]:
    radius = height = 0.0
    for part in parts:
        if not part.solid:
            continue
        x, y, z = part.centre
        a, b, c = part.half_size
        reach = math.hypot(a, b) if part.shape == "box" else max(a, b) if part.shape == "ellipsoid" else a
        radius = max(radius, math.hypot(x, y) + reach)
        height = max(height, z + (c if part.shape in ("box", "ellipsoid") else b))
    return radius, height


# ---- kinds of objects: each turns its fields into parts


def _get(fields: dict[str, _YamlNode], key: str, default: float, low: float, high: float) -> float:
    return fields[key].number(low, high) if key in fields else default


def _colour(fields: dict[str, _YamlNode], default: str) -> tuple[float, float, float]:
    return fields["colour"].colour() if "colour" in fields else COLOURS[default]


def _shade(rgb: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    r, g, b = (min(1.0, c * factor) for c in rgb)
    return r, g, b


def _shadow(radius: float) -> Part:
    # A dark disc on the ground: far cheaper than a shadow map in software, and it shows where a thing stands.
    return Part("cylinder", (0.0, 0.0, 0.012), (radius, 0.012, 0.0), (0.13, 0.17, 0.09), solid=False)


def _tree(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    height = _get(fields, "height", 5.0, 1.0, 40.0)
    crown = _get(fields, "crown_radius", 1.3, 0.3, 15.0)
    trunk = _get(fields, "trunk_radius", 0.22, 0.05, 3.0)
    rgb = _colour(fields, "green") if "colour" in fields else (0.15, 0.38, 0.12)
    half = crown * 1.15
    if 2 * half > height:
        raise fields["kind"].error(f"a crown of radius {crown:g} m does not fit on a tree of {height:g} m")
    trunk_height = height - half
    return (
        Part("cylinder", (0, 0, trunk_height / 2), (trunk, trunk_height / 2, 0), (0.44, 0.31, 0.19), "bark"),
        Part("ellipsoid", (0, 0, height - half), (crown, crown, half), rgb, "leaves"),
        Part("ellipsoid", (0.28 * crown, 0.2 * crown, height - 0.72 * half), (0.7 * crown, 0.7 * crown, 0.7 * half),
             _shade(rgb, 1.3), "leaves"),
        _shadow(crown * 1.05),
    )  # fmt: skip


def _pillar(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    radius = _get(fields, "radius", 0.4, 0.05, 20.0)
    height = _get(fields, "height", 5.0, 0.1, 100.0)
    rgb = _colour(fields, "red")
    return (
        Part("cylinder", (0, 0, height / 2), (radius, height / 2, 0), rgb),
        _shadow(radius * 1.6),
    )


def _box(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    length, width, height = (_get(fields, key, 1.0, 0.02, 500.0) for key in ("length", "width", "height"))
    return (Part("box", (0, 0, height / 2), (length / 2, width / 2, height / 2), _colour(fields, "grey")),)


def _shed(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    rgb, dark = _colour(fields, "brown"), (0.16, 0.13, 0.11)
    return (
        Part("box", (0, 0, 1.15), (1.3, 1.0, 1.15), rgb),
        Part("box", (0, 0, 2.4), (1.5, 1.2, 0.1), dark),
        *(Part("box", (side * 1.3, 0, 0.85), (0.02, 0.4, 0.85), dark, solid=False) for side in (-1, 1)),
        *(Part("box", (0, side * 1.0, 0.85), (0.4, 0.02, 0.85), dark, solid=False) for side in (-1, 1)),
    )


def _house(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    rgb = _colour(fields, "beige")
    return (
        Part("box", (0, 0, 2.75), (2.2, 1.9, 2.75), rgb, "windows"),
        Part("box", (0, 0, 5.65), (2.4, 2.1, 0.15), _shade(rgb, 0.6)),
    )


def _globe_lamp(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    rgb, dark = _colour(fields, "white"), (0.2, 0.22, 0.24)
    return (
        Part("cylinder", (0, 0, 1.6), (0.1, 1.6, 0), dark),
        Part("cylinder", (0, 0, 0.15), (0.35, 0.15, 0), dark),
        Part("ellipsoid", (0, 0, 3.7), (0.6, 0.6, 0.6), rgb),
        _shadow(0.6),
    )


def _building(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    length, width, height = (_get(fields, key, 10.0, 1.0, 500.0) for key in ("length", "width", "height"))
    rgb = _colour(fields, "beige")
    return (
        Part("box", (0, 0, height / 2), (length / 2, width / 2, height / 2), rgb, "windows"),
        Part("box", (0, 0, height + 0.15), (length / 2 + 0.2, width / 2 + 0.2, 0.15), _shade(rgb, 0.6)),
    )


def _wall(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    length, width, height = (
        _get(fields, "length", 10.0, 0.1, 500.0),
        _get(fields, "width", 0.4, 0.05, 20.0),
        _get(fields, "height", 4.0, 0.1, 100.0),
    )
    half = (length / 2, width / 2, height / 2)
    return (Part("box", (0, 0, height / 2), half, _colour(fields, "brick"), "brick"),)


def _car(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    rgb = _colour(fields, "red")
    glass = (0.12, 0.15, 0.19)
    wheels = tuple(
        Part("box", (x, y, 0.3), (0.32, 0.12, 0.3), (0.05, 0.05, 0.05))
        for x in (-1.3, 1.3)
        for y in (-0.82, 0.82)
    )
    return (
        Part("box", (0, 0, 0.65), (2.1, 0.88, 0.38), rgb),
        Part("box", (-0.2, 0, 1.22), (1.1, 0.8, 0.24), glass),
        Part("box", (-0.2, 0, 1.48), (1.0, 0.78, 0.05), rgb),
        *wheels,
        Part("box", (0, 0, 0.012), (2.3, 1.05, 0.012), (0.1, 0.1, 0.1), solid=False),
    )


def _lamp(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    height = _get(fields, "height", 5.0, 1.0, 30.0)
    return (
        Part("cylinder", (0, 0, height / 2), (0.08, height / 2, 0), (0.2, 0.22, 0.24)),
        Part("box", (0.5, 0, height), (0.6, 0.06, 0.05), (0.2, 0.22, 0.24)),
        Part("ellipsoid", (1.0, 0, height - 0.1), (0.25, 0.15, 0.1), (1.0, 0.95, 0.75)),
    )


def _hill(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    width, height = _get(fields, "width", 60.0, 1.0, 1000.0), _get(fields, "height", 10.0, 0.5, 300.0)
    rgb = fields["colour"].colour() if "colour" in fields else (0.42, 0.52, 0.55)
    return (Part("ellipsoid", (0, 0, 0), (width / 4, width / 2, height), rgb, solid=False),)


def _strip(fields: dict[str, _YamlNode]) -> tuple[Part, ...]:
    length, width = _get(fields, "length", 10.0, 0.05, 2000.0), _get(fields, "width", 2.0, 0.05, 500.0)
    level = _get(fields, "level", 1.0, 1.0, 9.0)  # strips that cross must differ, or they flicker
    half = 0.004 * level
    return (Part("box", (0, 0, half), (length / 2, width / 2, half), _colour(fields, "brown"), solid=False),)


_SIZE = {"length", "width", "height", "colour"}
KINDS: dict[str, tuple[Callable[[dict[str, _YamlNode]], tuple[Part, ...]], set[str]]] = {
    "tree": (_tree, {"height", "crown_radius", "trunk_radius", "colour"}),
    "pillar": (_pillar, {"radius", "height", "colour"}),
    "box": (_box, _SIZE),
    "building": (_building, _SIZE),
    "wall": (_wall, _SIZE),
    "car": (_car, {"colour"}),
    "lamp": (_lamp, {"height"}),
    "shed": (_shed, {"colour"}),
    "house": (_house, {"colour"}),
    "globe_lamp": (_globe_lamp, {"colour"}),
    "hill": (_hill, {"width", "height", "colour"}),
    "strip": (_strip, {"length", "width", "level", "colour"}),
}
_PLACE = {"at", "ring", "around", "within", "apart", "apart_deg", "yaw_deg", "z"}
_ANY_KEY = {"kind", "name", "count"}.union(_PLACE, *(keys for _, keys in KINDS.values()))
