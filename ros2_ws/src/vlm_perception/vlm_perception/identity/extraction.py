"""Things that an instruction names, as the serving model reads them: in another language, or in words no rule knows.

What the rules of `mentions` read stands. The model only adds things whose phrases overlap none of it, so whatever it
writes costs nothing that was understood without it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import words
from .mentions import MAX_MENTIONS, Mention
from .words import Reference

MAX_TOKENS = 192
"""Of the model's list: about six things. A list that is cut off is not used."""

_TEXT = {"type": "string", "minLength": 1, "maxLength": 60}
_THING = {
    "phrase": _TEXT,
    "kind": _TEXT,
    "attributes": {"type": "array", "maxItems": 5, "items": _TEXT},
    "avoid": {"type": "boolean"},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "things": {
            "type": "array",
            "maxItems": MAX_MENTIONS,
            "items": {
                "type": "object",
                "properties": _THING,
                "required": list(_THING),
                "additionalProperties": False,
            },
        }
    },
    "required": ["things"],
    "additionalProperties": False,
}


def question(instruction: str) -> str:
    """What the model is asked."""
    return (
        "List as JSON the things, persons and animals that this instruction names. phrase: its words for one of them, "
        "as they stand there; kind: one English noun; attributes: English words for colour, size and the like; avoid: "
        f"whether it is to be left alone. Instruction: {instruction}"
    )


def further_mentions(instruction: str, answer: str, known: Sequence[Mention]) -> list[Mention]:
    """The mentions of the model's answer that overlap none of the known ones, in the order of the instruction. A phrase
    that does not stand in the instruction is left out.

    Raises:
        ValueError: the answer is not JSON of SCHEMA.
    """
    try:
        things = json.loads(answer)["things"]
        found = [_mention(instruction, thing) for thing in things]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the model's list of things cannot be read ({error!r}): {answer!r:.80}") from error
    kept = list(known)
    for mention in found:
        if mention is not None and all(m.end <= mention.start or mention.end <= m.start for m in kept):
            kept.append(mention)
    return sorted(kept[len(known) :], key=lambda mention: mention.start)


def _mention(instruction: str, thing: dict[str, Any]) -> Mention | None:
    phrase, nouns = thing["phrase"].strip(), thing["kind"].lower().split()
    start = instruction.find(phrase)
    if start < 0 or not phrase or not nouns:
        return None
    kind, plural = words.kind_of(nouns[-1])
    if kind in words.NOT_ENTITIES:
        return None
    said = [word for text in thing["attributes"] for word in text.lower().split()]
    return Mention(
        start,
        start + len(phrase),
        phrase,
        kind,
        words.DETERMINERS.get(phrase.lower().split()[0], Reference.NAME),
        plural,
        dict(words.ATTRIBUTES.get(word, (word, word)) for word in said),
        negated=bool(thing["avoid"]),
    )
