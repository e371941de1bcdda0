"""What a model adds to what the rules read."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_perception.engine import json_grammar
from vlm_perception.engine.decoding import Constraint
from vlm_perception.identity import extraction
from vlm_perception.identity.extraction import further_mentions
from vlm_perception.identity.mentions import find_mentions


def thing(phrase, kind, *attributes, avoid=False):
    return {"phrase": phrase, "kind": kind, "attributes": list(attributes), "avoid": avoid}


def read(instruction, *things):
    return further_mentions(instruction, json.dumps({"things": things}), find_mentions(instruction))


def test_a_thing_in_another_language_has_an_english_kind_and_attributes():
    (car,) = read("飞到红色的大车", thing("红色的大车", "cars", "red", "large"))
    assert (car.text, car.start, car.kind) == ("红色的大车", 2, "car")
    assert car.attributes == {"colour": "red", "size": "large"}


def test_what_the_rules_have_read_stands():
    instruction = "go to the red car, then to Rosinante"
    things = [
        thing("the red car", "truck", "green"),
        thing("red", "colour"),
        thing("Rosinante", "horse", avoid=True),
    ]
    (horse,) = read(instruction, *things)
    assert (horse.text, horse.kind, horse.negated) == ("Rosinante", "horse", True)


def test_what_does_not_stand_in_the_instruction_or_is_no_entity_is_left_out():
    assert read("flieg nach links zum Haus", thing("the house", "house"), thing("links", "left")) == []


def test_two_things_are_in_the_order_of_the_instruction_and_none_counts_twice():
    instruction = "vole vers la maison puis vers le chien"
    things = [thing("le chien", "dog"), thing("la maison", "house"), thing("chien", "dog")]
    assert [mention.text for mention in read(instruction, *things)] == ["la maison", "le chien"]


@pytest.mark.parametrize(
    "answer", ["", "null", "[]", "{}", '{"things": 3}', '{"things": [{}]}', '{"things": [{"phrase": 1}]}']
)
def test_an_answer_of_another_form_is_refused(answer):
    with pytest.raises(ValueError, match="cannot be read"):
        further_mentions("go", answer, [])


@given(
    st.text(max_size=40),
    st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9))),
)
def test_no_mention_overlaps_another(instruction, pairs):
    known = find_mentions(instruction)
    things = {"things": [thing(phrase, kind) for phrase, kind in pairs]}
    spans = sorted(
        (m.start, m.end) for m in [*known, *further_mentions(instruction, json.dumps(things), known)]
    )
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_the_engine_takes_the_schema(tiny_model):
    Constraint(tiny_model, json_grammar(extraction.SCHEMA))
