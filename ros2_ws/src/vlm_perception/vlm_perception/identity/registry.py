"""Entities with ids that hold across instructions: "the red car", "it" and "that vehicle" are `car_1`.

A mention is matched by kind, by attributes that agree, and by how recently an entity was spoken of; attributes that
contradict (another colour, the other side) keep two entities of one kind apart. Whatever was matched is kept as
evidence in the entity's instances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import words
from .mentions import Mention, find_mentions
from .words import Reference

MAX_ENTITIES = 1000
"""More than a flight names; the entity not spoken of for longest goes first."""


@dataclass(frozen=True)
class Instance:
    """One mention of an entity: the instruction's number (from 1), the phrase, and the attributes said there."""

    prompt_id: int
    entity: str
    attrs: tuple[str, ...]


@dataclass
class Entity:
    """Something that instructions name. `attributes`: value by group, as in `Mention`; a relation of place ends with
    the other entity's id."""

    id: str
    kind: str
    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    plural: bool = False
    last: tuple[int, bool, int] = (0, False, 0)
    """Instruction, whether it was spoken of for itself (not only to say where another is, or to be left alone), and
    position of the last mention."""


@dataclass(frozen=True)
class Match:
    """The entities that a mention stands for; none: nothing fits. `new`: it is the entity's first mention."""

    mention: Mention
    entity_ids: tuple[str, ...]
    new: bool


class EntityRegistry:
    """All entities of a flight. Not thread-safe."""

    def __init__(self) -> None:
        self.entities: dict[str, Entity] = {}
        self._counts: dict[str, int] = {}
        self._prompts = 0

    def add_instruction(self, mentions: Sequence[Mention]) -> list[Match]:
        """Match the mentions of the next instruction, in their order; entities that are new are registered."""
        self._prompts += 1
        return self.add_mentions(mentions)

    def add_mentions(self, mentions: Sequence[Mention]) -> list[Match]:
        """Match further mentions of the newest instruction."""
        found: dict[int, Match] = {}
        for index in range(len(mentions)):
            self._match(mentions, index, found)
        return [found[index] for index in range(len(mentions))]

    def _match(self, mentions: Sequence[Mention], index: int, found: dict[int, Match]) -> None:
        """An anchor is matched before what stands beside it, as its id is part of that one's attributes."""
        if index in found:
            return
        mention, attributes = mentions[index], dict(mentions[index].attributes)
        if mention.anchor is not None:
            self._match(mentions, mention.anchor, found)
            anchors = found[mention.anchor].entity_ids
            relation = attributes.pop("place")
            if anchors:
                attributes["place"] = f"{relation} {anchors[0]}"
        matched = self._find(mention, attributes)
        new = not matched and mention.reference not in _PRONOUNS
        if new:
            matched = [self._register(mention)]
        for entity in matched:
            self._note(entity, mention, attributes, index)
        found[index] = Match(mention, tuple(entity.id for entity in matched), new)

    def _find(self, mention: Mention, attributes: dict[str, str]) -> list[Entity]:
        """The known entities that a mention stands for; empty: none."""
        reference = mention.reference
        if reference in _PRONOUNS:
            return self._of_pronoun(mention)
        if reference is Reference.ANOTHER:
            return []
        if reference is Reference.A:
            same = [e for e in self.entities.values() if any(i.entity == mention.text for i in e.instances)]
            return same[:1]
        fitting = self._recent(
            lambda e: words.kinds_match(e.kind, mention.kind) and not _conflict(e.attributes, attributes)
        )
        if reference is Reference.BOTH:
            return sorted(fitting[:2], key=lambda e: e.last)
        if reference is Reference.OTHER:
            kind = mention.kind or self._newest_kind()
            fitting = [e for e in fitting if words.kinds_match(e.kind, kind)]
            newest = self._recent(lambda e: words.kinds_match(e.kind, kind))[:1]
            fitting = [e for e in fitting if e not in newest]
        if attributes.get("order") in words.ORDER:
            return self._by_order(mention.kind, attributes["order"])
        shared = [len(e.attributes.items() & attributes.items()) for e in fitting]
        if not mention.kind and attributes and not any(shared):
            return []
        best = max(shared, default=0)
        return [e for e, count in zip(fitting, shared, strict=True) if count == best][:1]

    def _by_order(self, kind: str, order: str) -> list[Entity]:
        """ "The first pillar": the one that was called so, else the first of the kind that was spoken of."""
        same_kind = [e for e in self.entities.values() if words.kinds_match(e.kind, kind)]
        called = [e for e in same_kind if "order" in e.attributes]
        if called:
            return [e for e in called if e.attributes["order"] == order][-1:]
        number = words.ORDER.index(order)
        return same_kind[number : number + 1]

    def _of_pronoun(self, mention: Mention) -> list[Entity]:
        if mention.reference is Reference.HE:
            return self._recent(lambda e: e.kind in words.PEOPLE - words.WOMEN)[:1]
        if mention.reference is Reference.SHE:
            return self._recent(lambda e: e.kind in words.PEOPLE - words.MEN)[:1]
        if mention.reference is Reference.IT:
            return self._recent(lambda e: e.kind not in words.PEOPLE and not e.plural)[:1]
        recent = self._recent(lambda e: e.last[1])
        if not recent or recent[0].plural or recent[0].kind in words.PEOPLE:
            return recent[:1]
        together = [e for e in recent if e.last[0] == recent[0].last[0]]
        return together[::-1]

    def _recent(self, fits: Callable[[Entity], bool]) -> list[Entity]:
        return sorted(filter(fits, self.entities.values()), key=_recency, reverse=True)

    def _newest_kind(self) -> str:
        newest = self._recent(lambda e: True)
        return newest[0].kind if newest else ""

    def _register(self, mention: Mention) -> Entity:
        kind = mention.kind or self._newest_kind()
        word = kind or "object"
        self._counts[word] = self._counts.get(word, 0) + 1
        entity = Entity(f"{word}_{self._counts[word]}", kind, mention.text, plural=mention.plural)
        if len(self.entities) >= MAX_ENTITIES:
            del self.entities[min(self.entities.values(), key=_recency).id]
        self.entities[entity.id] = entity
        return entity

    def _note(self, entity: Entity, mention: Mention, attributes: dict[str, str], position: int) -> None:
        entity.kind = entity.kind or mention.kind
        entity.attributes = {**attributes, **entity.attributes}
        said = tuple(value if value != "with" else group for group, value in attributes.items())
        entity.instances.append(Instance(self._prompts, mention.text, said))
        entity.last = (self._prompts, not (mention.is_anchor or mention.negated), position)

    def known(self, text: str) -> str | None:
        """The id of the one entity that an id, or words as in an instruction, stand for; None: of none. Nothing is
        registered."""
        if text.strip() in self.entities:
            return text.strip()
        for mention in find_mentions(text):
            attributes = {group: value for group, value in mention.attributes.items() if group != "place"}
            found = self._find(mention, attributes)
            if found:
                return found[0].id
        return None

    def reference(self, entity_id: str) -> str:
        """The entity in few plain words: "the red car"."""
        entity = self.entities[entity_id]
        said = [entity.attributes[group] for group in ("size", "colour") if group in entity.attributes]
        return " ".join(["the", *said, entity.kind or "thing"])

    # -- the guide's form

    def as_json(self) -> dict[str, Any]:
        """`global_registry` of mapping.json."""
        return {
            e.id: {
                "name": e.name,
                "all_entities": list(dict.fromkeys(i.entity for i in e.instances)),
                "all_attrs": list(dict.fromkeys(attr for i in e.instances for attr in i.attrs)),
                "instances": [
                    {"prompt_id": i.prompt_id, "entity": i.entity, "attrs": list(i.attrs)}
                    for i in e.instances
                ],
            }
            for e in self.entities.values()
        }


_PRONOUNS = (Reference.IT, Reference.HE, Reference.SHE, Reference.THEY)


def _recency(entity: Entity) -> tuple[int, bool, int]:
    return entity.last


def _conflict(known: dict[str, str], said: dict[str, str]) -> bool:
    """Whether one thing cannot have both: two colours, two sizes, two relations to one anchor."""
    for group, value in said.items():
        other = known.get(group, value)
        if other == value or group == "order":
            continue
        if group != "place" or other.rsplit(" ", 1)[1] == value.rsplit(" ", 1)[1]:
            return True
    return False
