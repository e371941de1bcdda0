"""What the rules read in an instruction."""

from hypothesis import given
from hypothesis import strategies as st

from vlm_perception.identity.mentions import MAX_MENTIONS, find_mentions
from vlm_perception.identity.words import Reference


def texts(instruction):
    return [mention.text for mention in find_mentions(instruction)]


def test_phrases_with_kind_and_attributes():
    (mention,) = find_mentions("Fly to the big red hut, please.")
    assert (mention.text, mention.kind) == ("the big red hut", "shed")
    assert mention.attributes == {"size": "large", "colour": "red"}
    assert mention.reference is Reference.THE


def test_what_a_person_wears_describes_the_person():
    (mention,) = find_mentions("Follow the man with the yellow hat slowly.")
    assert mention.text == "the man with the yellow hat"
    assert mention.attributes == {"hat": "yellow"}


def test_a_relation_names_its_anchor():
    car, tree = find_mentions("Go to the car to the left of the tree.")
    assert car.attributes == {"place": "left of"}
    assert car.anchor == 1
    assert tree.is_anchor
    assert not car.is_anchor


def test_no_entity():
    for instruction in (
        "",
        "Turn left by 90 degrees.",
        "Climb to five metres and hover.",
        "flieg geradeaus",
        "看看周围",
        "?!",
    ):
        assert texts(instruction) == []


def test_an_unknown_thing_counts_only_after_a_determiner():
    assert texts("find the zeppelin") == ["the zeppelin"]
    assert texts("find zeppelin") == []


def test_negation_ends_with_its_clause():
    pillar, van, gate = find_mentions("Not to the pillar nor the van, but to the gate.")
    assert [pillar.negated, van.negated, gate.negated] == [True, True, False]


def test_fifty_things_and_more_are_read_up_to_a_limit():
    assert len(find_mentions("go to the car, " * 200)) == MAX_MENTIONS


@given(st.text(max_size=400))
def test_any_text_is_read_and_spans_are_its_own(text):
    for mention in find_mentions(text):
        assert text[mention.start : mention.end] == mention.text
