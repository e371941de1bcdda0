"""The words that the rules of `mentions` and `registry` know."""

from __future__ import annotations

from enum import Enum


class Reference(Enum):
    """How a phrase refers: to something new (A), known (THE), by its bare name, to the other or another one of its
    kind, or as a pronoun for a thing, a man, a woman, anybody or several."""

    A = "a"
    THE = "the"
    NAME = "name"
    OTHER = "other"
    ANOTHER = "another"
    BOTH = "both"
    IT = "it"
    HE = "he"
    SHE = "she"
    THEY = "they"


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = {
    **dict.fromkeys(_set("a an some any two three four several"), Reference.A),
    **dict.fromkeys(_set("the this that these those same"), Reference.THE),
    "another": Reference.ANOTHER,
    "both": Reference.BOTH,
}
PRONOUNS = {
    **dict.fromkeys(_set("it its itself"), Reference.IT),
    **dict.fromkeys(_set("he him his"), Reference.HE),
    **dict.fromkeys(_set("she her hers"), Reference.SHE),
    **dict.fromkeys(_set("they them their"), Reference.THEY),
}
PLURAL_PRONOUNS = _set("they them their")
NEGATIONS = _set("not don't never ignore avoid without")
CONTRASTS = _set("but instead")
CONJUNCTIONS = _set("and or but then if until while when instead")
WEARING = _set("with in wearing")

GENERIC = _set("one thing object item")
"""Heads that leave the kind open."""

# What a person wears or carries and what a building or a vehicle has: it describes, nobody is sent to it.
PARTS = _set(
    "hat cap helmet jacket coat dress shirt suit scarf trousers hair beard umbrella backpack bag bicycle "
    "bike roof door window wall wheel top side corner stripe sign chimney leaf branch"
)
# Directions, measures, times and the world as such.
NOT_ENTITIES = (
    _set(
        "left right front back north south east west up down way path direction street road field ground sky "
        "air area place position spot height altitude metre meter m degree second minute moment while time "
        "speed drone camera picture view start home end middle edge rest world distance landing look scene"
    )
    | PARTS
)

SYNONYMS = {
    "automobile": "car",
    "hut": "shed",
    "cabin": "shed",
    "shack": "shed",
    "column": "pillar",
    "post": "pillar",
    "pole": "pillar",
    "crate": "box",
    "carton": "box",
    "lantern": "lamp",
    "lamppost": "lamp",
    "streetlight": "lamp",
    "streetlamp": "lamp",
    "house": "building",
    "guy": "man",
    "gentleman": "man",
    "lady": "woman",
    "lorry": "truck",
    "human": "person",
    "puppy": "dog",
}
HYPERNYMS = {
    "vehicle": _set("car van truck bus motorcycle tractor"),
    "person": _set("man woman boy girl child pedestrian worker"),
    "animal": _set("dog cat horse cow bird"),
    "building": _set("church tower shed barn garage hangar"),
    "plant": _set("tree bush hedge"),
}
KINDS = (
    _set(
        "car pillar beacon tree shed box lamp building bench fence gate fountain bridge boat tent statue flag "
        "rock"
    )
    | _set("container antenna")
    | frozenset(HYPERNYMS)
    | frozenset(SYNONYMS.values())
    | frozenset(kind for kinds in HYPERNYMS.values() for kind in kinds)
)
MEN = _set("man boy")
WOMEN = _set("woman girl")
PEOPLE = HYPERNYMS["person"] | {"person"}
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
    "buses": "bus",
    "boxes": "box",
}
_IRREGULAR |= {
    "benches": "bench",
    "churches": "church",
    "bushes": "bush",
    "leaves": "leaf",
    "metres": "metre",
}

_GROUPS = {
    "colour": "red green blue yellow orange purple white black grey gray brown silver pink golden beige violet",
    "size": "small little tiny large big huge tall short high low long",
    "side": "left right",
    "order": "first second third fourth fifth last",
    "material": "wooden stone metal glass concrete brick plastic",
    "age": "young old new",
    "other": "other",
}
ATTRIBUTES = {word: (group, word) for group, text in _GROUPS.items() for word in text.split()}
ATTRIBUTES |= {"gray": ("colour", "grey"), "little": ("size", "small"), "tiny": ("size", "small")}
ATTRIBUTES |= {"big": ("size", "large"), "huge": ("size", "large"), "violet": ("colour", "purple")}
ORDER = ("first", "second", "third", "fourth", "fifth")

RELATIONS = {
    "left of": "left of",
    "to the left of": "left of",
    "right of": "right of",
    "to the right of": "right of",
    "next to": "next to",
    "close to": "next to",
    "beside": "next to",
    "near": "next to",
    "by": "next to",
    "in front of": "in front of",
    "before": "in front of",
    "behind": "behind",
    "under": "under",
    "below": "under",
    "on": "on",
    "above": "above",
    "with": "with",
    "between": "between",
}

# Words that end a noun phrase and begin none.
CLOSED = (
    _set(
        "of to in on at by for from with without into onto over under above below behind before after near "
        "next beside between past through towards toward across along against around about off out inside "
        "outside as than like until till"
    )
    | _set(
        "i you we me us who which what where when why how there here and or but if then so because while not "
        "no yes nor instead please now again also just only once twice later soon still already always never "
        "ever very too slowly quickly gently carefully directly straight ahead forward forwards backward "
        "backwards upward downward away closer nearer together else"
    )
    | _set(
        "go goes going fly flies flying move moves head come turn turns look looks find finds search seek "
        "locate see sees saw seen watch follow follows track return returns get approach stop stops wait "
        "waits hover hovers stay keep land lands take takes climb rise ascend descend sink circle orbit "
        "inspect check show shows tell pass reach leave leaves bring remember remembered do does did don't is "
        "are was were be been being has have had can could will would should may might must let make use "
        "start starts try spot visit scan explore rotate face point drop begin continue move stand stands "
        "standing there's it's that's what's"
    )
)


def is_known(word: str) -> bool:
    """Whether a word is a kind of thing, or stands for one ("one", "hut")."""
    kind, _ = kind_of(word)
    return kind == "" or kind in KINDS


def kind_of(word: str) -> tuple[str, bool]:
    """The kind that a noun names ("" for "one" and "thing"), and whether it is plural."""
    singular = _IRREGULAR.get(word)
    plural = singular is not None
    if singular is None:
        plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us"))
        singular = word[:-1] if plural else word
    if singular in GENERIC:
        return "", plural
    return SYNONYMS.get(singular, singular), plural


def kinds_match(one: str, other: str) -> bool:
    """Whether two kinds can be the same thing: equal, open, or one the other's hypernym."""
    return (
        not one
        or not other
        or one == other
        or one in HYPERNYMS.get(other, ())
        or other in HYPERNYMS.get(one, ())
    )
