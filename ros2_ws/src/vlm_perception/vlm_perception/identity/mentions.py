"""Noun phrases of an instruction, by rule: what a model too small to extract entities is served with.

English instructions to a drone are short and use few words besides the names of things, so the rules list those few
(prepositions, verbs of flight, adverbs, places relative to the drone) and take the rest of a phrase after a determiner
for a thing. Without a determiner ("find red car") only a known kind counts. What is not understood is not a mention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from . import words
from .words import Reference

_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]")
MAX_MENTIONS = 50
"""Mentions of one instruction that are read; who names more things than this has no drone in mind."""


@dataclass(frozen=True)
class Mention:
    """One phrase that stands for an entity.

    start, end: characters of the instruction. kind: singular and lower case, a synonym replaced by its kind; "" where
    the phrase leaves it open ("it", "the red one"). attributes: value by group, such as {"colour": "red", "hat":
    "yellow"}. anchor: index of the mention which a relation in `attributes` refers to ("the car next to the tree").
    is_anchor: it only says where something else is. negated: named to be left alone.
    """

    start: int
    end: int
    text: str
    kind: str
    reference: Reference
    plural: bool = False
    attributes: dict[str, str] = field(default_factory=dict)
    anchor: int | None = None
    is_anchor: bool = False
    negated: bool = False

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "reference": self.reference.value}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Mention:
        """The inverse of `as_json`. Raises TypeError, KeyError or ValueError for anything else."""
        return cls(**{**fields, "reference": Reference(fields["reference"])})


@dataclass(frozen=True)
class _Token:
    start: int
    end: int
    text: str

    @property
    def word(self) -> str:
        return self.text.lower().replace("’", "'")


def find_mentions(instruction: str) -> list[Mention]:
    """The mentions of an instruction in its order, at most MAX_MENTIONS."""
    tokens = [_Token(m.start(), m.end(), m.group()) for m in _TOKEN.finditer(instruction)]
    return _Reader(instruction, tokens).read()


class _Reader:
    """One pass over the tokens of one instruction."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text, self._tokens = text, tokens
        self._mentions: list[Mention] = []
        self._relation: tuple[str, int] | None = None
        """Preposition and index of the mention that it follows, while the phrase after it is awaited."""
        self._negated = False

    def read(self) -> list[Mention]:
        at = 0
        while at < len(self._tokens) and len(self._mentions) < MAX_MENTIONS:
            at = self._step(at)
        return self._mentions

    def _step(self, at: int) -> int:
        """Read one token or phrase; where the next begins."""
        word = self._tokens[at].word
        if word in words.NEGATIONS:
            self._negated = True
        elif not word[0].isalnum() or word in words.CONJUNCTIONS:
            self._relation = None
            self._negated = self._negated and word not in ".;!?" and word not in words.CONTRASTS
        elif word in words.PRONOUNS:
            self._add(at, at + 1, "", words.PRONOUNS[word], plural=word in words.PLURAL_PRONOUNS)
        elif word in words.DETERMINERS or word not in words.CLOSED:
            return self._phrase(at)
        return at + 1

    def _phrase(self, start: int) -> int:
        """A noun phrase, and what is said of it right behind."""
        reference, begin = Reference.NAME, start
        while begin < len(self._tokens) and self._tokens[begin].word in words.DETERMINERS:
            reference = words.DETERMINERS[self._tokens[begin].word]
            begin += 1
        end = self._run_end(begin)
        run = [token.word for token in self._tokens[begin:end]]
        head = _head(run, known_only=reference is Reference.NAME)
        if head is None:
            return max(end, begin, start + 1)
        end = begin + head + 1
        kind, plural = words.kind_of(run[head])
        attributes = dict(_attributes(run[:head]))
        if attributes.pop("other", None):
            reference = Reference.OTHER
        if kind in words.NOT_ENTITIES:
            self._relation = None
            return end
        end = self._parts(end, attributes)
        index = self._add(start, end, kind, reference, plural, attributes)
        return self._open_relation(end, index)

    def _run_end(self, begin: int) -> int:
        """Where a run of words ends that can be adjectives and a noun."""
        end = begin
        while end < len(self._tokens) and self._is_open(self._tokens[end].word):
            end += 1
        return end

    def _is_open(self, word: str) -> bool:
        return word[0].isalnum() and word not in words.CLOSED and word not in words.DETERMINERS

    def _parts(self, end: int, attributes: dict[str, str]) -> int:
        """ "with the red hat", "in a grey coat": an attribute of what stands before; where it ends."""
        if end >= len(self._tokens) or self._tokens[end].word not in words.WEARING:
            return end
        begin = end + 1
        while begin < len(self._tokens) and self._tokens[begin].word in words.DETERMINERS:
            begin += 1
        last = self._run_end(begin)
        run = [token.word for token in self._tokens[begin:last]]
        if not run or words.kind_of(run[-1])[0] not in words.PARTS:
            return end
        attributes[words.kind_of(run[-1])[0]] = " ".join(run[:-1]) or "with"
        return last

    def _open_relation(self, at: int, index: int) -> int:
        """Remember a preposition of place that follows a phrase; where the next phrase may begin."""
        for length in (4, 3, 2, 1):
            said = " ".join(token.word for token in self._tokens[at : at + length])
            if said in words.RELATIONS:
                self._relation = (words.RELATIONS[said], index)
                return at + length
        self._relation = None
        return at

    def _add(
        self,
        start: int,
        end: int,
        kind: str,
        reference: Reference,
        plural: bool = False,
        attributes: dict[str, str] | None = None,
    ) -> int:
        first, last = self._tokens[start].start, self._tokens[end - 1].end
        index = len(self._mentions)
        is_anchor = self._relation is not None
        if self._relation:
            relation, owner = self._relation
            related = self._mentions[owner]
            attributes_there = {**related.attributes, "place": relation}
            self._mentions[owner] = replace(related, attributes=attributes_there, anchor=index)
            self._relation = None
        self._mentions.append(
            Mention(
                first,
                last,
                self._text[first:last],
                kind,
                reference,
                plural,
                attributes or {},
                is_anchor=is_anchor,
                negated=self._negated,
            )
        )
        return index


def _head(run: list[str], *, known_only: bool) -> int | None:
    """Index of the noun in a run: the last known kind, else (after a determiner) the last word."""
    known = [i for i, word in enumerate(run) if words.is_known(word)]
    if known:
        return known[-1]
    return None if known_only or not run else len(run) - 1


def _attributes(run: list[str]) -> Iterator[tuple[str, str]]:
    for word in run:
        for part in word.split("-"):
            yield words.ATTRIBUTES.get(part, (part, part))
