"""Ids that hold across instructions."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_perception.identity.mentions import find_mentions
from vlm_perception.identity.registry import MAX_ENTITIES, EntityRegistry
from vlm_perception.testing import instruction_sequences

SEQUENCES = Path(__file__).parents[5] / "benchmarks/instructions"


def ids(*instructions):
    registry = EntityRegistry()
    matched = [registry.add_instruction(find_mentions(text)) for text in instructions]
    return [[match.entity_ids for match in matches] for matches in matched]


def test_the_development_sequences_are_matched_without_a_mistake():
    sequences = instruction_sequences.read(SEQUENCES / "development.txt")
    score = instruction_sequences.score(sequences)
    assert score.mistakes == ()
    assert score.existing >= 30
    assert score.recall == 1.0


def test_a_scorer_that_sees_the_wrong_link():
    """The score can fail: two cars that are marked as one."""
    marked = (
        "# one car\nGo to [the red car](car_1).\nGo to [the blue car](car_1).\n\n# none\nGo to [it](car_1)."
    )
    sequences = {}
    for block in marked.split("\n\n"):
        title, *lines = block.splitlines()
        sequences[title] = [instruction_sequences._parse(line) for line in lines]
    score = instruction_sequences.score(sequences)
    assert (score.existing, score.found) == (1, 0)
    assert score.mistakes


def test_colours_keep_two_of_a_kind_apart_and_one_is_resolved_by_colour():
    assert ids("go to the red car", "go to the blue car", "back to the red one") == [
        [("car_1",)],
        [("car_2",)],
        [("car_1",)],
    ]


def test_a_pronoun_without_anything_before_it_stands_for_nothing():
    assert ids("go to it") == [[()]]


def test_several_at_once():
    assert ids("look at the red car and the blue car", "fly between both cars")[1] == [("car_1", "car_2")]


def test_two_of_one_name_are_one_entity_until_something_tells_them_apart():
    assert ids("go to the car", "go to the car")[1] == [("car_1",)]


def test_the_guide_form():
    registry = EntityRegistry()
    registry.add_instruction(find_mentions("go to the red car"))
    registry.add_instruction(find_mentions("fly back to that parked car"))
    assert registry.as_json() == {
        "car_1": {
            "name": "the red car",
            "all_entities": ["the red car", "that parked car"],
            "all_attrs": ["red", "parked"],
            "instances": [
                {"prompt_id": 1, "entity": "the red car", "attrs": ["red"]},
                {"prompt_id": 2, "entity": "that parked car", "attrs": ["parked"]},
            ],
        }
    }


def test_entities_are_bounded():
    registry = EntityRegistry()
    for _ in range(MAX_ENTITIES + 5):
        registry.add_instruction(find_mentions("find another car"))
    assert len(registry.entities) == MAX_ENTITIES
    assert "car_1" not in registry.entities


@given(
    st.lists(st.text("acdehiklnorstuw .,", max_size=60) | st.sampled_from(["it", "the red car", "both cars"]))
)
def test_instructions_played_again_give_the_same_ids(instructions):
    assert ids(*instructions) == ids(*instructions)


def test_sequences_need_names(tmp_path):
    (tmp_path / "bad.txt").write_text("go to [it](car_1)\n")
    with pytest.raises(ValueError, match="no name"):
        instruction_sequences.read(tmp_path / "bad.txt")
