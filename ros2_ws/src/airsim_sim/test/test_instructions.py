"""Instructions: words that fit one object only, the same for the same seed, and apart for training and evaluation."""

from __future__ import annotations

import math
import re
from cmath import phase
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airsim_sim.instructions import (
    COLOURS,
    NOUNS,
    SYNONYMS,
    Task,
    Wording,
    called,
    candidates,
    go_to,
    group,
    land,
    mission,
    name_absent,
    named_last,
    sentences,
    unknown,
    wait,
)
from airsim_sim.world import World, load_world, parse_world

ROW = """name: row
objects:
  - {name: car, kind: car, colour: red, at: [10, 6]}
  - {name: first, kind: pillar, colour: blue, at: [10, 3]}
  - {name: tree, kind: tree, colour: yellow, at: [10, 0]}
  - {name: second, kind: pillar, colour: white, at: [10, -3]}
  - {name: twin, kind: tree, at: [30, -20]}
  - {name: other_twin, kind: tree, at: [30, 20]}
goals: [car]
wording: training
"""


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def texts(world: World, goal: str, wording: Wording = Wording.TRAINING, draws: int = 300) -> Counter[str]:
    rng = np.random.default_rng(5)
    return Counter(go_to(world, goal, rng, wording).text for _ in range(draws))


def test_each_scene_asks_by_its_seed_and_the_same_seed_asks_the_same() -> None:
    for scene in ("field-mixed", "field-mixed-heldout", "field-mixed-synonyms", "field-absent", "corridor"):
        asked = [mission(load_world(scene, seed))[0].text for seed in range(40)]
        assert asked == [mission(load_world(scene, seed))[0].text for seed in range(40)]
        assert len(set(asked)) >= 6


def test_the_same_mixed_world_is_asked_in_each_wording() -> None:
    worlds = [load_world(f"field-mixed{end}", 11) for end in ("", "-heldout", "-synonyms")]
    assert worlds[0].objects == worlds[1].objects == worlds[2].objects
    assert len({mission(world)[0].text for world in worlds}) == 3
    assert len({mission(world)[0].goal for world in worlds}) == 1


def test_no_sentence_and_no_noun_of_an_evaluation_is_trained_on() -> None:
    learnt_from = sentences(Wording.TRAINING) | sentences(Wording.WIDE)
    assert not learnt_from & sentences(Wording.HELD_OUT)
    trained = set().union(*(words(text) for text in learnt_from), *map(words, sum(NOUNS.values(), ())))
    assert not trained & set().union(*map(words, sum(SYNONYMS.values(), ())))
    new = set().union(*(words(text) for text in sentences(Wording.HELD_OUT))) - trained
    assert len(new) >= 20, "held-out sentences are to have words of their own"


def test_wide_sentences_name_what_is_meant_and_some_have_no_other_known_word() -> None:
    world = parse_world(ROW, "row")
    drawn = [text for text in texts(world, "first", Wording.WIDE) if "blue" in text]
    assert len(drawn) > 150
    known = set().union(*(words(text) for w in Wording for text in sentences(w)))
    alone = [text for text in drawn if not (words(text) - words("the blue beacon pillar one thing")) & known]
    assert alone
    assert len({text for text in alone if len(text.split()) > 4}) > 10


def test_words_that_nobody_knows_name_no_noun_and_no_colour_of_any_scene() -> None:
    rng = np.random.default_rng(7)
    drawn = [unknown(rng) for _ in range(500)]
    assert len({asked.text for asked in drawn}) > 450
    assert {(asked.task, asked.goal) for asked in drawn} == {(Task.ABSENT, "")}
    ours = set().union(*map(words, (*COLOURS, *sum(NOUNS.values(), ()), *sum(SYNONYMS.values(), ()))))
    assert not ours & set().union(*(words(asked.text) for asked in drawn))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(1, 1000), draw=st.integers(0, 1000))
def test_what_is_named_absent_is_not_there(seed: int, draw: int) -> None:
    world = load_world("field-absent", seed)
    asked = name_absent(world, np.random.default_rng(draw))
    told = words(asked.text)
    assert (asked.task, asked.goal) == (Task.ABSENT, "")
    nouns = [noun for noun, forms in NOUNS.items() if any(words(form) <= told for form in forms)]
    colours = [colour for colour in COLOURS if colour in told]
    assert nouns
    assert len(colours) <= 1
    for item in world.objects:
        fits = group(item) in nouns and (not colours or item.colour == colours[0])
        assert not fits, (asked.text, called(world, item.name))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(1, 1000), draw=st.integers(0, 1000))
def test_the_words_for_one_object_never_fit_another_in_the_same_world(seed: int, draw: int) -> None:
    """Colour, noun and relation of whatever is drawn for one candidate are never drawn for another one."""
    world = load_world("field-mixed", seed)
    named = candidates(world)
    assert len(named) == 4
    asked = {
        goal: {go_to(world, goal, np.random.default_rng((draw, n))).text for n in range(12)} for goal in named
    }
    for a in named:
        for b in named:
            assert a == b or not asked[a] & asked[b]


def test_every_form_of_reference_is_drawn() -> None:
    world = parse_world(ROW, "row")
    assert candidates(world) == ("car", "first", "tree", "second")
    drawn = " | ".join(texts(world, "car"))
    for form in ("the red car", "to the car", "the red one", "red one left of", "not the", "not to the"):
        assert form in drawn, form
    # Two beacons: the noun alone would not say which, and trees stand elsewhere too.
    assert not re.search(r"the (beacon|pillar)(\.|,|$)", " | ".join(texts(world, "first")).split("not")[0])
    assert "right of" in " | ".join(texts(world, "second"))
    assert "the tree" not in {text.replace("Your goal is ", "").strip(".") for text in texts(world, "tree")}


def test_left_and_right_are_as_seen_from_the_start() -> None:
    world = parse_world(ROW, "row")
    drawn = texts(world, "first", draws=2000)
    assert any("left of the yellow tree" in text for text in drawn)
    assert any("right of the car" in text or "right of the red car" in text for text in drawn)
    assert not any("right of the yellow tree" in text or "left of the car" in text for text in drawn)


@pytest.mark.parametrize("wording", list(Wording))
def test_land_and_wait_and_the_way_back_have_their_own_words(wording: Wording) -> None:
    rng, world = np.random.default_rng(1), load_world("wall", 3)
    assert land(rng, wording).task is Task.LAND
    assert wait(rng, wording).task is Task.WAIT
    asked = mission(world)
    assert [one.goal for one in asked] == ["beacon", "car"]
    assert [one.guided for one in asked] == [True, True]
    assert "wall" in asked[0].text
    assert re.search("back|return", asked[1].text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fly to the white beacon", "second"),
        ("Please find the BLUE pillar and stop.", "first"),
        ("the car, not the white beacon", "car"),
        ("not the red car but the yellow tree", "tree"),
        ("fly to the blue beacon, then back to the red vehicle", "car"),
        ("fly to the purple beacon", ""),
        ("fly to the beacon", ""),
        ("", ""),
        ("vola verso il faro", ""),
    ],
)
def test_what_a_person_names_is_found_in_the_world(text: str, name: str) -> None:
    assert named_last(parse_world(ROW, "row"), text) == name


def test_what_is_drawn_in_plain_words_is_found_again() -> None:
    for seed in range(1, 40):
        world = load_world("field-mixed", seed)
        for goal in candidates(world):
            assert named_last(world, f"fly to {called(world, goal)}") == goal


def test_recall_leads_away_from_the_lamp_and_then_names_it_again() -> None:
    asked = mission(load_world("recall", 5))
    assert [one.goal for one in asked] == ["lamp", "beacon", "beacon_2", "beacon_3", "beacon_4", "lamp"]
    assert (asked[0].text, asked[-1].text) == ("fly to the red lamp", "go back to the red lamp")


def test_neither_the_last_leg_nor_the_hills_tell_where_recall_began() -> None:
    from_leg, from_hill = [], []
    for seed in range(60):
        world = load_world("recall", seed)
        lamp, third, fourth, hill = (
            complex(*world.object(name).position[:2]) for name in ("lamp", "beacon_3", "beacon_4", "hill_a")
        )
        assert abs(lamp - fourth) > 72
        from_leg.append(math.degrees(phase((lamp - fourth) / (fourth - third))))
        from_hill.append(math.degrees(phase((lamp - fourth) / hill)))
    behind = [abs(angle) > 150 for angle in from_leg]
    assert sum(behind) < 6, "who turns round looks at it"
    assert 20 < sum(angle > 0 for angle in from_leg) < 40
    assert set(np.digitize(from_hill, [-90, 0, 90])) == {0, 1, 2, 3}


def test_an_unknown_object_is_refused() -> None:
    with pytest.raises(KeyError, match="no object 'moon'"):
        go_to(load_world("field", 1), "moon", np.random.default_rng(1))


@pytest.mark.parametrize(
    "scene", ["field-mixed", "field-mixed-heldout", "field-absent", "wall", "memory", "recall"]
)
def test_what_a_scene_asks_for_is_its_goal_in_whatever_words(scene: str) -> None:
    for seed in range(1, 31):
        world = load_world(scene, seed)
        asked = mission(world)
        assert [named_last(world, one.text) for one in asked] == [one.goal for one in asked]
