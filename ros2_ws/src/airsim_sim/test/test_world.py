"""Worlds: the same seed gives the same world, scenes keep their promises, bad YAML says where it is bad."""

from __future__ import annotations

import itertools
import math

import mujoco
import numpy as np
import pytest

from airsim_sim.model import build_model
from airsim_sim.world import COLOURS, WorldError, WorldObject, load_world, parse_world, scene_names

GOOD = """name: test
parameters: {colour: red}
objects:
  - {name: goal, kind: pillar, colour: $colour, at: [5, 0]}
goals: [goal]
"""


def gap(a: WorldObject, b: WorldObject) -> float:
    return math.dist(a.position[:2], b.position[:2]) - a.radius - b.radius


def test_the_three_standard_scenes_are_there() -> None:
    assert {"field", "corridor", "memory"} <= set(scene_names())


@pytest.mark.parametrize("scene", ["field", "corridor", "memory", "wall"])
def test_the_same_seed_gives_the_same_world_and_another_seed_another(scene: str) -> None:
    assert load_world(scene, 7) == load_world(scene, 7)
    assert load_world(scene, 7).objects != load_world(scene, 8).objects


def test_field_has_five_trees_and_a_beacon_in_reach_with_room_around_start_and_beacon() -> None:
    bearings = []
    for seed in range(100):
        world = load_world("field", seed)
        beacon = world.object("beacon")
        trees = [item for item in world.objects if item.kind == "tree"]
        assert len(trees) == 5
        assert (beacon.radius, beacon.height) == (0.4, 5.0)
        assert 10 <= math.hypot(*beacon.position[:2]) <= 22
        assert world.goal.name == "beacon"
        assert world.goal.position == beacon.position
        for tree in trees:
            assert gap(tree, beacon) >= 3
            assert math.hypot(*tree.position[:2]) - tree.radius >= 3
            assert max(map(abs, tree.position[:2])) <= 30
        bearings.append(math.atan2(beacon.position[1], beacon.position[0]))
    assert set(np.digitize(bearings, np.linspace(-math.pi, math.pi, 9))) == set(range(1, 9)), (
        "a direction never comes"
    )


@pytest.mark.parametrize("colour", ["red", "blue", "yellow", "white"])
def test_the_beacon_has_the_colour_asked_for_and_the_rest_stays(colour: str) -> None:
    world, red = load_world("field", 3, colour=colour), load_world("field", 3)
    assert world.object("beacon").parts[0].rgb == COLOURS[colour]
    assert [o.position for o in world.objects] == [o.position for o in red.objects]


def test_corridor_can_be_flown_through() -> None:
    """At flying height a drone of 0.6 m with a metre to spare gets from the start to the beacon."""
    for seed in range(20):
        world = load_world("corridor", seed)
        step, north, west = 0.5, np.arange(-4, 52, 0.5), np.arange(-8, 8.1, 0.5)
        free = np.ones((len(north), len(west)), bool)
        for item in world.objects:
            for part in item.parts:
                if not part.solid or item.name == "beacon" or part.centre[2] + part.half_size[2] < 1.5:
                    continue
                half = np.array(part.half_size[:2]) if part.shape == "box" else np.full(2, part.half_size[0])
                turned = abs(round(item.yaw_deg / 90)) % 2 == 1
                half = (half[::-1] if turned else half) + 1.3  # drone and a metre
                dx, dy = north[:, None] - item.position[0], west[None, :] - item.position[1]
                free &= ~((abs(dx) < half[0]) & (abs(dy) < half[1]))
        reached = np.zeros_like(free)
        reached[round((0 - north[0]) / step), round((0 - west[0]) / step)] = True
        while True:
            grown = reached.copy()
            grown[1:] |= reached[:-1]
            grown[:-1] |= reached[1:]
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            grown &= free
            if (grown == reached).all():
                break
            reached = grown
        goal = world.goal.position
        assert reached[round((goal[0] - north[0]) / step), round((goal[1] - west[0]) / step)], f"seed {seed}"


def test_the_wall_hides_at_the_beacon_what_is_seen_from_the_start() -> None:
    mirrored = set()
    for seed in range(16):
        world = load_world("wall", seed)
        beacon, car = world.goals[0].position, world.goals[1].position
        model = build_model(world)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        assert sight(model, data, (0, 0, 2), (*car[:2], 1.0)) == "car", f"seed {seed}"
        assert abs(math.degrees(math.atan2(car[1], car[0]))) < 50, (
            "not in the first picture of a drone that looks north"
        )
        for around in ((2, 0), (-2, 0), (0, 2), (0, -2)):
            place = (beacon[0] + around[0], beacon[1] + around[1], 2.0)
            assert sight(model, data, place, (*car[:2], 1.4)) != "car", f"seed {seed}"
        mirrored.add(car[1] > 0)
    assert mirrored == {True, False}


def test_two_like_cars_stand_on_the_two_sides_and_the_start_looks_at_one_of_them() -> None:
    sides = set()
    for seed in range(40):
        world = load_world("memory", seed)
        car, like = world.object("car"), world.object("like_car")
        assert (car.kind, car.colour) == (like.kind, like.colour)
        assert world.names["car"] == "the red car"
        assert "like_car" not in world.names
        seen, other, beacon = (
            (math.degrees(math.atan2(y, x)) - world.start_yaw_deg + 180) % 360 - 180
            for x, y, _ in (car.position, like.position, world.object("beacon").position)
        )
        assert abs(seen) < 45 > abs(beacon), "in the first picture, which is 90 degrees wide"
        assert abs(other) > 45 + math.degrees(2.3 / 9), "whatever way it is turned"
        sides.add(car.position[1] > 0)
        assert (car.position[1] > 0) == (like.position[1] < 0) == (world.start_yaw_deg > 0)
    assert sides == {True, False}


def sight(
    model: mujoco.MjModel, data: mujoco.MjData, start: tuple[float, ...], goal: tuple[float, ...]
) -> str:
    """What a ray from start towards goal meets first."""
    ray = np.array(goal) - np.array(start)
    geom = np.zeros(1, np.int32)
    drone = model.body("drone").id
    assert mujoco.mj_ray(model, data, np.array(start, float), ray, None, 1, drone, geom, None) >= 0
    return str(model.body(model.geom_bodyid[geom[0]]).name)


def test_unknown_scene_is_named_with_the_scenes_there_are() -> None:
    with pytest.raises(WorldError, match=r"unknown scene 'moon'.*corridor.*field.*memory"):
        load_world("moon")


def test_missing_world_file_is_named() -> None:
    with pytest.raises(WorldError, match=r"/nowhere/x\.yaml: cannot be read"):
        load_world("/nowhere/x.yaml")


def test_unknown_parameter_is_named_with_those_there_are() -> None:
    with pytest.raises(WorldError, match=r"'color' was given.*\['colour'\]"):
        load_world("field", 1, color="red")


def test_good_world_parses() -> None:
    assert parse_world(GOOD, "good.yaml", colour="blue").object("goal").parts[0].rgb == COLOURS["blue"]


TWO = GOOD.replace(
    "goals:",
    "  - {name: second, kind: car, ring: [18, 22], around: goal, within: {goal: [20, 30]}}\ngoals:",
)
SAME_NAME = GOOD.replace("goals:", "  - {name: goal, kind: car, at: [9, 9]}\ngoals:")
BAD = {
    "not yaml": ("name: a: b", 1, "not valid YAML"),
    "empty": ("", 1, "empty"),
    "a list": ("- 1", 1, "must be a mapping"),
    "no name": (GOOD.replace("name: test\n", ""), 1, "'name' is missing"),
    "unknown key": (GOOD + "weather: rain\n", 6, "field weather: unknown"),
    "unknown kind": (GOOD.replace("pillar", "pilar"), 4, r"field objects\[0\].kind: 'pilar' is not one of"),
    "unknown key in object": (GOOD.replace("at:", "size: 3, at:"), 4, r"field objects\[0\].size: unknown"),
    "not a number": (GOOD.replace("[5, 0]", "[five, 0]"), 4, r"field objects\[0\].at\[0\]: must be a number"),
    "not finite": (GOOD.replace("[5, 0]", "[.nan, 0]"), 4, r"objects\[0\].at\[0\]: must be a number"),
    "too few": (GOOD.replace("[5, 0]", "[5]"), 4, r"objects\[0\].at: must have 2 values, has 1"),
    "no place": (GOOD.replace(", at: [5, 0]", ""), 4, "needs `at: "),
    "no room": (GOOD.replace("at: [5, 0]", "ring: [1, 2], apart: 5"), 4, "no free place for 'goal'"),
    "around nothing": (GOOD.replace("at: [5, 0]", "ring: [1, 2], around: moon"), 4, "no object is named 'moon'"),
    "within of nothing": (GOOD.replace("at: [5, 0]", "ring: [1, 2], within: {moon: [1, 2]}"), 4, "moon: unknown"),
    "within nowhere": (TWO.replace("[20, 30]", "[90, 99]"), 5, "no free place for 'second'"),
    "ring reversed": (GOOD.replace("at: [5, 0]", "ring: [9, 2]"), 4, r"ring: nearest 9.0 is greater"),
    "out of range": (GOOD.replace("at:", "radius: -1, at:"), 4, r"radius: must be a number from 0.05 to 20, is -1"),
    "between reversed": (GOOD.replace("[5, 0]", "[{between: [3, 1]}, 0]"), 4, "between: 3.0 is greater than 1.0"),
    "unknown colour": (GOOD.replace("colour: red", "colour: mauve"), 4, r"colour: 'mauve' is not one of red"),
    "unknown parameter": (GOOD.replace("$colour", "$shade"), 4, r"\$shade is not a parameter"),
    "bad name": (GOOD.replace("name: goal", "name: my goal"), 4, "letters, digits and underscores only"),
    "reserved name": (GOOD.replace("name: goal", "name: drone"), 4, "'drone' is taken"),
    "same name twice": (SAME_NAME, 5, "two objects are named 'goal'"),
    "goal not there": (GOOD.replace("goals: [goal]", "goals: [gaol]"), 5, r"goals\[0\]: no object is named 'gaol'"),
    "no goals": (GOOD.replace("goals: [goal]", "goals: []"), 5, "at least one"),
    "a size of the ground": (GOOD + "ground: {texture: sand, size: [9, 9]}\n", 6, r"field ground.size: unknown"),
    "given twice": (GOOD + "goals: [goal]\n", 6, "given twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_world_names_file_line_and_field(case: str) -> None:
    text, line, message = BAD[case]
    with pytest.raises(WorldError, match=message) as caught:
        parse_world(text, "mine.yaml")
    assert str(caught.value).startswith(f"mine.yaml, line {line}"), caught.value


def test_a_ring_lies_around_an_object_and_keeps_within_distances_of_others() -> None:
    for seed in range(50):
        world = parse_world(TWO, "two.yaml", seed)
        away = math.dist(world.object("second").position, world.object("goal").position)
        assert 20 <= away <= 22


def test_every_kind_of_object_compiles() -> None:
    from airsim_sim.world import KINDS

    lines = [f"  - {{name: {kind}_x, kind: {kind}, at: [{10 * n}, 5]}}" for n, kind in enumerate(KINDS, 1)]
    world = parse_world("name: all\nobjects:\n" + "\n".join(lines) + "\ngoals: [tree_x]\n", "all.yaml")
    model = build_model(world)
    assert model.nbody == len(KINDS) + 3  # world, ground, drone
    for a, b in itertools.combinations(world.objects, 2):
        assert a.name != b.name


def test_the_decoys_scene_names_one_of_three_beacons_of_different_colours() -> None:
    seen = set()
    for seed in range(60):
        world = load_world("field-decoys", seed)
        beacons = [item for item in world.objects if item.kind == "pillar"]
        assert len({item.parts[0].rgb for item in beacons}) == len(beacons) == 3
        assert list(world.names) == ["beacon", "decoy_1", "decoy_2"]
        assert len(set(world.names.values())) == 3
        assert world.instructions == ("fly to {goal}",)
        assert COLOURS[world.parameters["colour"]] == world.object("beacon").parts[0].rgb
        seen.add(world.parameters["colour"])
    assert len(seen) == 5


def test_the_wall_scene_has_two_goals_in_order_and_says_that_the_first_is_behind_the_wall() -> None:
    world = load_world("wall", 2, colour="blue")
    assert [goal.name for goal in world.goals] == ["beacon", "car"]
    assert (world.wording, world.guide) == ("training", "wall")
    assert world.names["beacon"] == "the blue beacon"


def test_new_keys_leave_the_worlds_of_earlier_seeds_as_they_were() -> None:
    world = load_world("field", 7)
    assert [round(v, 3) for v in world.object("beacon").position[:2]] == [-11.313, 15.131]
    assert world.absent == ("the blue beacon", "the red beacon")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "instructions: [fly to it]",
            "field instructions: `names` does not say what the goal 'goal' is called",
        ),
        (
            'instructions: ["to {goal}", "back"]\nnames: {goal: it}',
            "field instructions: must have 1 values, has 2",
        ),
        ('names: {goal: "the {size} thing"}', "field names.goal: 'the {size} thing': 'size' is not known"),
        ("names: {moon: it}", "field names.moon: unknown; allowed here: goal"),
        ("absent: [[1]]", "field absent[0]: must be a text"),
    ],
)
def test_wrong_instructions_and_names_are_refused_with_line_and_field(line: str, words: str) -> None:
    with pytest.raises(WorldError) as raised:
        parse_world(GOOD + line + "\n", "test.yaml")
    assert words in str(raised.value)
    assert "line 6" in str(raised.value)


def test_a_draw_that_excepts_every_word_is_refused() -> None:
    text = GOOD.replace("{colour: red}", "{colour: red, other: {one_of: [red], except: [$colour]}}")
    with pytest.raises(WorldError, match="all are excepted"):
        parse_world(text, "test.yaml")


ROOMY = """name: roomy
objects:
  - {name: beacon, kind: pillar, at: [5, 0]}
  - {name: house, kind: house, colour: red, at: [20, 0], yaw_deg: 90}
  - {name: lamp, kind: globe_lamp, at: [0, 9]}
  - {name: line, kind: strip, at: [0, -9]}
goals: [house]
"""


def test_the_distance_is_from_the_outline_and_from_the_axis_of_a_beacon() -> None:
    world = parse_world(ROOMY, "roomy")
    assert world.object("beacon").distance_m((2.0, 4.0)) == pytest.approx(5.0)
    # Turned by 90 degrees the house reaches from 17.9 to 22.1 m north, its roof included; a beacon's radius is added.
    assert world.object("house").distance_m((15.0, 0.0)) == pytest.approx(2.9 + 0.4)
    assert world.object("house").distance_m((20.0, 0.0)) == pytest.approx(0.4)
    assert world.object("lamp").distance_m((0.0, 6.0)) == pytest.approx(3.0 - 0.6 + 0.4)
    assert world.object("line").distance_m((3.0, -9.0)) == pytest.approx(3.0)


def test_colours_are_known_as_words() -> None:
    world = parse_world(ROOMY, "roomy")
    assert [item.colour for item in world.objects] == ["red", "red", "white", "brown"]
    assert {item.colour for item in load_world("field", 1).objects if item.kind == "tree"} == {"green"}


def test_in_a_mixed_field_words_are_needed_and_nothing_hides_another_from_the_start() -> None:
    goals = set()
    for seed in range(200):
        world = load_world("field-mixed", seed)
        first, kin, colour, neither = world.objects[:4]
        assert first.kind == kin.kind
        assert first.colour == colour.colour
        assert len({(item.kind, item.colour) for item in world.objects[:4]}) == 4
        assert neither.kind not in (first.kind, colour.kind)
        goals.add(world.goal.name)
        named = [item for item in world.objects if item.radius > 0]
        for a, b in itertools.combinations(named, 2):
            bearings = [math.atan2(o.position[1], o.position[0]) for o in (a, b)]
            apart = abs((bearings[0] - bearings[1] + math.pi) % (2 * math.pi) - math.pi)
            widths = [math.asin(o.radius / math.hypot(*o.position[:2])) for o in (a, b)]
            assert math.degrees(apart - sum(widths)) >= 3 - 1e-6
    assert goals == {"first", "same_kind", "same_colour", "neither"}


def test_words_are_drawn_or_given_and_without_goals_they_must_be_drawn() -> None:
    with pytest.raises(WorldError, match="the words are drawn or given"):
        parse_world(GOOD + "wording: training\ninstructions: [fly]\nnames: {goal: it}\n", "test.yaml")
    with pytest.raises(WorldError, match="or `wording` to name what is absent"):
        parse_world(GOOD.replace("goals: [goal]", "goals: []"), "test.yaml")
    with pytest.raises(WorldError, match="'loud' is not one of training, held_out, synonyms"):
        parse_world(GOOD + "wording: loud\n", "test.yaml")
