"""Instructions in words: what a mission asks for in a world, drawn by a seed from a small grammar.

    world = load_world("field-mixed", seed=3)
    mission(world)                                       # what the scene itself asks for, by its seed
    go_to(world, "same_kind", np.random.default_rng(1))  # another object of the same world: "find the blue car ..."

Nouns and colours describe what stands there, and a reference that is drawn fits one object of the world only. TRAINING
and WIDE are for pilots to learn from; HELD_OUT says the same nouns and colours in sentences that no pilot was trained
on, SYNONYMS uses training's sentences with nouns that none was trained on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import TypeVar

import numpy as np

from airsim_sim.world import World, WorldObject

T = TypeVar("T")

COLOURS = ("red", "blue", "yellow", "white", "purple")
"""Colours that instructions name. Green trees are scenery."""


class Wording(StrEnum):
    """Which sentences and nouns are drawn; the values are those of a world file's `wording`."""

    TRAINING = "training"
    WIDE = "wide"
    """Many more sentences than TRAINING, and words that do not exist about what is named: only to learn from."""
    HELD_OUT = "held_out"
    SYNONYMS = "synonyms"


class Task(StrEnum):
    """What an instruction asks for, and so what its right end is."""

    GO = "go"
    """To an object that is there: finish(reached) beside it."""
    ABSENT = "absent"
    """To something that is not there: finish(not_found) after a look around."""
    LAND = "land"
    """Down to the lowest altitude that is allowed (there is no tool to land): finish(reached) there."""
    WAIT = "wait"
    """Hover: finish(reached) where it was asked."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. `goal`: the object's name in the world, "" for other tasks than GO. `guided`: the words say how
    to come to what is out of sight, or that one has been there: it need not be searched for."""

    text: str
    task: Task
    goal: str = ""
    guided: bool = False


_GROUPS: Mapping[str, str] = {
    "pillar": "beacon",
    "car": "car",
    "tree": "tree",
    "box": "shed",
    "shed": "shed",
    "building": "house",
    "house": "house",
    "lamp": "lamp",
    "globe_lamp": "lamp",
}
"""What each kind of object is called: the first noun of its group."""
NOUNS: Mapping[str, tuple[str, ...]] = {
    "beacon": ("beacon", "pillar"),
    "car": ("car",),
    "tree": ("tree",),
    "shed": ("shed", "box"),
    "lamp": ("lamp", "street lamp"),
    "house": ("house", "building"),
}
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "beacon": ("column", "post"),
    "car": ("vehicle", "automobile"),
    "tree": ("plant", "bush"),
    "shed": ("hut", "cabin"),
    "lamp": ("lantern", "light"),
    "house": ("home", "block"),
}

_GO = {
    Wording.TRAINING: (
        "fly to {it}",
        "Fly to {it}.",
        "go to {it}",
        "head for {it}",
        "approach {it}",
        "move to {it}",
        "take me to {it}",
        "please fly over to {it}",
        "fly the drone to {it}",
        "find {it} and fly to it",
        "find {it} and stop in front of it",
        "Go to {it} and stop there.",
        "look for {it}, then go there",
        "Your goal is {it}.",
    ),
    Wording.WIDE: (
        "reach {it}",
        "Please go to {it}.",
        "drive the drone over to {it}",
        "bring us to {it}",
        "come to {it}",
        "I need the drone at {it}",
        "we need to be at {it}",
        "the target is {it}",
        "destination: {it}",
        "{it}",
        "{it}, please",
        "let us visit {it}",
        "take a course to {it}",
        "aim for {it}",
        "go straight over to {it}",
        "can you fly to {it}?",
        "would you go to {it} now?",
        "now fly to {it}",
        "next, go to {it}",
        "search for {it} and approach it",
        "locate {it} and stop next to it",
        "I would like to see {it} from nearby",
        "show me {it}",
        "ok, {it} now",
        "move over to {it} and stop",
        "hurry to {it}",
        "slowly approach {it}",
        "look around for {it} and go there",
        "your next stop is {it}",
        "the drone must be at {it}",
        "there is {it}; fly to it",
        "somewhere here is {it}, find it",
        "it is {it} that we need",
        "turn to {it} and fly there",
        "advance to {it}",
        "fly up to {it}",
        "move the drone near {it}",
        "take us over to {it}",
        "have a look at {it}",
        "inspect {it} from nearby",
        "check {it} for me",
        "park in front of {it}",
        "cross over to {it}",
        "the place to be is {it}",
        "I am waiting at {it}",
        "deliver this to {it}",
        "what we need to see is {it}",
        "{it}: that is our goal",
        "{it} needs a visit",
        "{it} comes next",
        "do you see {it}? go there",
        "as soon as you see {it}, fly to it",
        "the flight ends at {it}",
        "all we need now is to reach {it}",
        "stop when {it} is in front of you",
        "be at {it} soon",
        "run to {it}",
        "dash over to {it}",
        "our friends are at {it}, join them",
        "film {it} from nearby",
        "bring the camera to {it}",
        "let the drone hover by {it}",
        "the mission is simple: {it}",
    ),
    Wording.HELD_OUT: (
        "make your way to {it}",
        "could you get over to {it}?",
        "I want you beside {it}",
        "navigate to {it} and halt",
        "travel towards {it} until you are close",
        "steer for {it}",
        "{it} is where you should be",
        "proceed to {it}, thank you",
    ),
}
_OPENINGS = (
    "ok, ",
    "drone, ",
    "listen: ",
    "good. ",
    "next: ",
    "quick, ",
    "now ",
    "please ",
    "hello! ",
    "yes, ",
)
_ENDINGS = (
    " now",
    " please",
    ", thanks",
    " as soon as you can",
    " and stop",
    " and wait there",
    "!",
    ".",
    " ok?",
)
"""What WIDE now and then says before and behind a sentence."""
_NOT = {
    Wording.TRAINING: (
        "fly to {it}, not to {other}",
        "go to {it}, not {other}",
        "{it}, not {other}",
        "not {other} but {it}",
        "Do not go to {other}, fly to {it}.",
    ),
    Wording.WIDE: (
        "{it} and not {other}",
        "fly to {it}, never to {other}",
        "go to {it} and leave {other} alone",
        "leave out {other}; fly to {it}",
        "not to {other}! to {it}!",
        "avoid {other} and go to {it}",
        "skip {other}, head for {it}",
        "{it} is the target, {other} is not",
        "I said {it}, not {other}",
        "forget {other}, find {it}",
        "prefer {it} to {other}",
        "{it}! {other} does not matter",
        "we need {it}, we do not need {other}",
        "{other} is wrong, {it} is right",
        "do not mind {other}, go to {it}",
        "pass {other} and stop at {it}",
        "not {other}, not now: {it}",
        "of {it} and {other} take the first",
        "no, not {other}; {it}",
        "fly to {it} without a look at {other}",
    ),
    Wording.HELD_OUT: (
        "choose {it} instead of {other}",
        "make for {it} rather than {other}",
        "steer for {it}; ignore {other}",
    ),
}
_BACK = {
    Wording.TRAINING: ("go back to {it}", "fly back to {it}", "return to {it}", "now go back to {it}"),
    Wording.WIDE: (
        "back to {it}",
        "come back to {it}",
        "turn round and go to {it}",
        "go to {it} that you saw before",
        "we need to be at {it} once more",
        "please return to {it} now",
        "fly to {it} one more time",
        "now the way back to {it}",
        "you have been at {it}; return",
        "once more {it}",
        "and back to {it}, please",
        "revisit {it}",
        "turn back to {it}",
    ),
    Wording.HELD_OUT: ("make your way back to {it}", "{it} again, please", "head home to {it}"),
}
_GUIDED = {
    "street": {
        Wording.TRAINING: (
            "follow the street to {it}",
            "fly down the street to {it}",
            "fly along the street to {it}",
            "go along the street until {it}",
        ),
        Wording.WIDE: (
            "{it} is down the street, fly there",
            "take the street to {it}",
            "go down this street to {it}",
            "up the street is {it}, go there",
            "find {it} on this street",
        ),
        Wording.HELD_OUT: (
            "keep to the street until you are at {it}",
            "the street will lead you to {it}",
        ),
    },
    "wall": {
        Wording.TRAINING: (
            "fly to {it} behind the wall",
            "go to {it} behind the wall",
            "find {it} behind the wall",
            "fly round the wall to {it}",
        ),
        Wording.WIDE: (
            "{it} is behind the wall, fly to it",
            "go behind the wall to {it}",
            "go around the wall and find {it}",
            "on the other side of the wall is {it}; fly there",
            "reach {it} behind the wall",
        ),
        Wording.HELD_OUT: (
            "behind the wall stands {it}: make your way there",
            "steer past the wall to {it}",
        ),
    },
}
_LAND = {
    Wording.TRAINING: ("land", "Land here.", "go down and land", "land now", "please land"),
    Wording.WIDE: (
        "descend and stop",
        "bring the drone down",
        "lower the drone",
        "please descend and finish",
        "land right here",
        "touch down",
    ),
    Wording.HELD_OUT: ("set the drone down", "come down to the ground"),
}
_WAIT = {
    Wording.TRAINING: ("wait", "Wait here.", "hover", "stay where you are", "wait a moment"),
    Wording.WIDE: ("pause", "stop and wait", "hover here", "stay here for a moment", "remain here"),
    Wording.HELD_OUT: ("hold your position", "do not move for now"),
}

_FOREIGN = {
    "German": (
        ("flieg zu", "bitte fliege bis", "suche", "geh zurück zu", "lande bei"),
        ("dem Auto", "dem Leuchtturm", "dem Baum", "der Laterne", "dem Haus", "der Hütte", "der Säule"),
        ("rot", "blau", "gelb", "weiß", "lila", "links", "und warte"),
    ),
    "French": (
        ("vole vers", "va jusqu'à", "cherche", "retourne à", "approche de"),
        ("la voiture", "le phare", "l'arbre", "le lampadaire", "la maison", "la cabane", "le poteau"),
        ("rouge", "bleue", "jaune", "blanc", "violet", "à gauche", "et attends"),
    ),
    "Spanish": (
        ("vuela hacia", "ve a", "busca", "regresa a", "acércate a"),
        ("el coche", "el poste", "el árbol", "la farola", "la casa", "la caseta", "la columna"),
        ("rojo", "azul", "amarilla", "blanco", "morado", "a la izquierda", "y espera"),
    ),
    "Dutch": (
        ("vlieg naar", "ga naar", "zoek", "keer terug naar", "nader"),
        ("de auto", "de vuurtoren", "de boom", "de lantaarn", "het huis", "de schuur", "de paal"),
        ("rood", "blauwe", "geel", "witte", "paars", "links", "en wacht"),
    ),
    "Polish": (
        ("leć do", "idź do", "znajdź", "wróć do", "zbliż się do"),
        ("samochodu", "latarni", "drzewa", "domu", "szopy", "słupa"),
        ("czerwony", "niebieski", "żółtej", "białego", "fioletowy", "po lewej", "i czekaj"),
    ),
    "Swedish": (
        ("flyg till", "gå till", "leta efter", "återvänd till", "stanna vid"),
        ("bilen", "fyren", "trädet", "lyktan", "huset", "boden", "stolpen"),
        ("röd", "blå", "gul", "vit", "lila", "till vänster", "och vänta"),
    ),
    "Latin": (
        ("vola ad", "i ad", "quaere", "redi ad", "appropinqua"),
        ("currum", "pharum", "arborem", "lucernam", "domum", "casam", "columnam"),
        ("rubrum", "caeruleum", "flavam", "album", "purpuream", "sinistra", "et mane"),
    ),
}
"""Verbs, nouns and colours of languages that no instruction is given in."""
_STRANGE_THINGS = (
    "helicopter", "fountain", "bridge", "boat", "dog", "ship", "windmill", "bench", "horse", "tent", "lorry", "train",
    "statue", "mountain", "swimming pool", "chair", "stone", "flag", "church", "person", "bicycle", "gate", "airport",
    "rainbow", "elephant", "mailbox", "barrel", "antenna",
)  # fmt: skip
_STRANGE_COLOURS = (
    "orange", "black", "pink", "brown", "grey", "golden", "silver", "turquoise", "striped", "transparent", "huge",
    "wooden", "beige", "burning",
)  # fmt: skip
"""Things and colours of no scene."""

_RELATED_DEG = (4.0, 70.0)
"""Between two bearings from the start, for one object to stand to the left of the other."""
_NEXT_TO_M = 7.0
_SHARES = (("full", 0.55), ("kind", 0.12), ("colour", 0.11), ("relation", 0.11), ("negation", 0.11))
"""How often each form of reference is tried first; one that does not fit the object falls back to "full"."""


def _sentences(table: Mapping[Wording, tuple[str, ...]], wording: Wording) -> tuple[str, ...]:
    return table.get(wording, table[Wording.TRAINING])


def _nouns(group: str, wording: Wording) -> tuple[str, ...]:
    return SYNONYMS[group] if wording is Wording.SYNONYMS else NOUNS[group]


def _drawn(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def group(item: WorldObject) -> str:
    """The noun for an object, "" for what is only scenery."""
    return _GROUPS.get(item.kind, "")


def candidates(world: World) -> tuple[str, ...]:
    """The objects that an instruction may name: those in the world's `names`, or where it has none, each that no other
    equals in noun and colour."""
    if world.names:
        return tuple(world.names)
    described = [(group(item), item.colour) for item in world.objects]
    return tuple(
        item.name
        for item, told in zip(world.objects, described, strict=True)
        if told[0] and told[1] in COLOURS and described.count(told) == 1
    )


def called(world: World, name: str) -> str:
    """What an object is called in plain words: "the red beacon"."""
    item = world.object(name)
    return world.names.get(name) or " ".join(
        word for word in ("the", item.colour, group(item) or item.kind) if word
    )


def mission(world: World) -> tuple[Instruction, ...]:
    """What the scene asks for, in order: its own instructions, or those that its seed draws in its `wording`."""
    if not world.wording:
        return tuple(
            Instruction(text.replace("{goal}", called(world, goal.name)), Task.GO, goal.name)
            for text, goal in zip(world.instructions, world.goals, strict=False)
        )
    return named_mission(world, [goal.name for goal in world.goals])


def named_mission(world: World, goals: Sequence[str]) -> tuple[Instruction, ...]:
    """As `mission`, in words that the seed draws, for other goals. Of several, the last one is one to come back to;
    without goals something absent is named."""
    rng, wording = np.random.default_rng((world.seed, 0x30BD)), Wording(world.wording or Wording.TRAINING)
    if not goals:
        return (name_absent(world, rng, wording),)
    return tuple(
        go_to(
            world, goal, rng, wording, back=0 < number == len(goals) - 1, guide="" if number else world.guide
        )
        for number, goal in enumerate(goals)
    )


def go_to(
    world: World,
    goal: str,
    rng: np.random.Generator,
    wording: Wording = Wording.TRAINING,
    *,
    back: bool = False,
    guide: str = "",
) -> Instruction:
    """To an object of the world.

    Args:
        back: as a later instruction of a mission: "go back to ...".
        guide: one of `world.GUIDES`: the words say how to come there.

    Raises:
        KeyError: no object of that name.
    """
    item = world.object(goal)
    full = f"the {item.colour} {_drawn(rng, _nouns(group(item), wording))}"
    if guide or back:
        table = _GUIDED[guide] if guide else _BACK
        return Instruction(_drawn(rng, _sentences(table, wording)).format(it=full), Task.GO, goal, True)
    form = str(rng.choice([name for name, _ in _SHARES], p=[share for _, share in _SHARES]))
    if form == "negation":
        others = [name for name in candidates(world) if name != goal]
        if others:
            it, other = _contrast(world, item, world.object(_drawn(rng, others)), rng, wording)
            return Instruction(_contrasting(rng, wording).format(it=it, other=other), Task.GO, goal)
    found = list(_references(world, item, form, rng, wording))
    it = _drawn(rng, found) if found else full
    return Instruction(_go_sentence(rng, wording).format(it=it), Task.GO, goal)


def _go_sentence(rng: np.random.Generator, wording: Wording) -> str:
    """For what is named alone. A quarter of the wide ones are words that do not exist: whatever is said about it, what
    is named counts."""
    if wording is not Wording.WIDE:
        return _drawn(rng, _sentences(_GO, wording))
    if rng.random() < 0.25:
        return f"{_no_words(rng, 5)} {{it}} {_no_words(rng, 4)}".strip()
    opening = _drawn(rng, _OPENINGS) if rng.random() < 0.25 else ""
    ending = _drawn(rng, _ENDINGS) if rng.random() < 0.25 else ""
    return opening + _drawn(rng, _sentences(_GO, wording)) + ending


def _contrasting(rng: np.random.Generator, wording: Wording) -> str:
    """For what is named and what is not meant. A fifth of the wide ones are words that do not exist: where nothing says
    which of two is meant, it is the first."""
    if wording is Wording.WIDE and rng.random() < 0.2:
        return f"{_no_words(rng, 3)} {{it}} {_no_word(rng)} {_no_words(rng, 3)} {{other}} {_no_words(rng, 2)}".strip()
    return _drawn(rng, _sentences(_NOT, wording))


def _no_words(rng: np.random.Generator, below: int) -> str:
    return " ".join(_no_word(rng) for _ in range(rng.integers(below)))


def _no_word(rng: np.random.Generator) -> str:
    return "".join(
        _drawn(rng, "bdfghklmnprstvwz") + _drawn(rng, "aeiou") + _drawn(rng, ("", "n", "r", "st"))
        for _ in range(rng.integers(1, 4))
    )


def name_absent(world: World, rng: np.random.Generator, wording: Wording = Wording.TRAINING) -> Instruction:
    """To something that is not in the world: mostly a noun and a colour that are there, but not together."""
    present = {(group(item), item.colour) for item in world.objects if group(item)}
    groups, colours = {noun for noun, _ in present}, {colour for _, colour in present}
    missing = [pair for pair in product(NOUNS, COLOURS) if pair not in present]
    near = [pair for pair in missing if pair[0] in groups and pair[1] in colours]
    noun, colour = _drawn(rng, near if near and rng.random() < 0.6 else missing)
    word = _drawn(rng, _nouns(noun, wording))
    it = f"the {word}" if noun not in groups and rng.random() < 0.3 else f"the {colour} {word}"
    return Instruction(_go_sentence(rng, wording).format(it=it), Task.ABSENT)


def unknown(rng: np.random.Generator) -> Instruction:
    """Words that name nothing which a pilot could know: another language, things and colours of no scene, or no words
    at all. Only to learn from: like what is absent, it is not found."""
    kind = rng.random()
    if kind < 0.45:
        verbs, nouns, colours = _drawn(rng, list(_FOREIGN.values()))
        parts = [_drawn(rng, verbs), _drawn(rng, nouns), _drawn(rng, colours)]
        text = " ".join(parts if rng.random() < 0.6 else [parts[0], parts[2], parts[1]])
    elif kind < 0.8:
        thing = _drawn(rng, _STRANGE_THINGS) if rng.random() < 0.6 else _no_word(rng)
        colour = f"{_drawn(rng, _STRANGE_COLOURS) if rng.random() < 0.7 else _no_word(rng)} "
        it = f"the {colour if rng.random() < 0.7 else ''}{thing}"
        text = _go_sentence(rng, Wording.WIDE).format(it=it)
    else:
        text = f"{_no_word(rng)} {_no_words(rng, 9)}".strip()
    return Instruction(text, Task.ABSENT)


def named_last(world: World, text: str) -> str:
    """The object that a person's words name, the last one where they name several in order; "" where they name none
    that is there, or none at all. What follows a "not" is not meant. The scene's own words mean its goals."""
    own = {one.text: one.goal for one in mission(world)}
    if text in own:
        return own[text]
    meant = re.sub(r"\bnot (to |the |at )*[a-z]+( [a-z]+)?", " ", text.lower())
    found = []
    for name in candidates(world):
        item = world.object(name)
        words = [noun for table in (NOUNS, SYNONYMS) for noun in table.get(group(item), ())]
        ways = [called(world, name), *(f"{item.colour} {noun}" for noun in words)]
        if _described(world, noun=group(item)) == {name}:
            ways += [f"the {noun}" for noun in words]
        places = [match.start() for way in ways for match in re.finditer(rf"\b{re.escape(way)}\b", meant)]
        if places:
            found.append((max(places), name))
    return max(found, default=(0, ""))[1]


def land(rng: np.random.Generator, wording: Wording = Wording.TRAINING) -> Instruction:
    """To come down as low as is allowed."""
    return Instruction(_drawn(rng, _sentences(_LAND, wording)), Task.LAND)


def wait(rng: np.random.Generator, wording: Wording = Wording.TRAINING) -> Instruction:
    """To hover."""
    return Instruction(_drawn(rng, _sentences(_WAIT, wording)), Task.WAIT)


def sentences(wording: Wording) -> frozenset[str]:
    """Every sentence of a wording, with `{it}` and `{other}` for what is named."""
    tables = (_GO, _NOT, _BACK, *_GUIDED.values(), _LAND, _WAIT)
    return frozenset(text for table in tables for text in _sentences(table, wording))


# --- references: what fits one object of the world only


def _described(world: World, noun: str = "", colour: str = "") -> set[str]:
    """The names of the objects that a noun, a colour or both describe."""
    return {
        item.name
        for item in world.objects
        if group(item) and group(item) == (noun or group(item)) and item.colour == (colour or item.colour)
    }


def _references(
    world: World, item: WorldObject, form: str, rng: np.random.Generator, wording: Wording
) -> Iterator[str]:
    """References of that form that fit this object only; none where there is none."""
    word = _drawn(rng, _nouns(group(item), wording))
    if form == "kind" and _described(world, noun=group(item)) == {item.name}:
        yield f"the {word}"
    elif form == "colour" and _described(world, colour=item.colour) == {item.name}:
        yield from (f"the {item.colour} one", f"the {item.colour} thing")
    elif form == "relation":
        yield from _related(world, item, word, wording)


def _related(world: World, item: WorldObject, word: str, wording: Wording) -> Iterator[str]:
    """ "the blue one left of the tree": relations to another object that is named by noun, or noun and colour."""
    noun, colour = group(item), item.colour
    bases = (
        (f"the {colour} {word}", _described(world, noun, colour)),
        (f"the {colour} one", _described(world, colour=colour)),
        (f"the {word}", _described(world, noun)),
    )
    for name in candidates(world):
        anchor = world.object(name)
        if anchor is item:
            continue
        there = _nouns(group(anchor), wording)[0]
        if _described(world, noun=group(anchor)) != {anchor.name}:
            there = f"{anchor.colour} {there}"
        for relation, holds in _RELATIONS.items():
            related = {other.name for other in world.objects if other is not anchor and holds(other, anchor)}
            for base, described in bases:
                if described & related == {item.name}:
                    yield f"{base} {relation} the {there}"


def _left_deg(item: WorldObject, anchor: WorldObject) -> float:
    """How far the object stands to the left of another as seen from the start, degrees from -180 to 180."""
    a, b = (math.atan2(o.position[1], o.position[0]) for o in (item, anchor))
    return math.degrees((a - b + math.pi) % (2 * math.pi) - math.pi)


_RELATIONS: Mapping[str, Callable[[WorldObject, WorldObject], bool]] = {
    "left of": lambda item, anchor: _RELATED_DEG[0] <= _left_deg(item, anchor) <= _RELATED_DEG[1],
    "right of": lambda item, anchor: _RELATED_DEG[0] <= -_left_deg(item, anchor) <= _RELATED_DEG[1],
    "next to": lambda item, anchor: math.dist(item.position[:2], anchor.position[:2]) <= _NEXT_TO_M,
}


def _contrast(
    world: World, item: WorldObject, other: WorldObject, rng: np.random.Generator, wording: Wording
) -> tuple[str, str]:
    """Two references that tell an object from another: "the car", "the beacon"; "the blue one", "the red one"."""
    word, other_word = (_drawn(rng, _nouns(group(one), wording)) for one in (item, other))
    if rng.random() < 0.4:
        if _described(world, noun=group(item)) == {item.name}:
            return f"the {word}", f"the {other_word}"
        if _described(world, colour=item.colour) == {item.name}:
            return f"the {item.colour} one", f"the {other.colour} one"
    return f"the {item.colour} {word}", f"the {other.colour} {other_word}"
