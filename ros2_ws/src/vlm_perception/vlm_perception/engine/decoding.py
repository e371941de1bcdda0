"""Choosing tokens: greedy or sampled, free or bound to a grammar whose forced tokens are never sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .qwen import QwenModel

Finish = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class Generation:
    """What came out of one `generate`. Times in seconds; `sampled` tokens were chosen, `forced` ones had no choice;
    `tokens` is the text as it was written."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    sampled: int
    forced: int
    passes: int
    ttft_s: float
    total_s: float


class Constraint:
    """A grammar being followed. The tokens it leaves no choice about come in runs and cost no pass of their own."""

    def __init__(self, model: QwenModel, grammar: str):
        self._matcher = model.grammar(grammar).deep_copy()
        self._vocabulary = model.decoder.shape.vocabulary

    def forced(self) -> list[int]:
        """The run of tokens that must come next, taken as accepted."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        if tokens and not self._matcher.consume_tokens(tokens):
            raise RuntimeError(f"the grammar rejects its own forced tokens: {self._matcher.get_error()}")
        return tokens

    def mask(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) with everything that may not come next at -inf.

        The mask goes to the device as bits, 19 KB for Qwen's vocabulary, and is spread out there.
        """
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        places = torch.arange(8, dtype=torch.uint8, device=logits.device)
        spread = bits.to(logits.device).unsqueeze(1) >> places & 1
        return logits.masked_fill(spread.flatten()[: self._vocabulary] == 0, float("-inf"))

    def allowed(self) -> Tensor:
        """Ids (n,) on the CPU of the tokens that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.flatnonzero(np.unpackbits(bits, bitorder="little")[: self._vocabulary]))

    def walk(self, tokens: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Follow a whole text. Yields, for each token about which there was a choice, its index and the ids (n,) that
        could have come there. ValueError if the text does not follow the grammar."""
        at = 0
        while at < len(tokens):
            run = self.forced()
            if list(tokens[at : at + len(run)]) != run[: len(tokens) - at]:
                raise ValueError(f"the text leaves the grammar at token {at}: it must go on with {run}")
            at += len(run)
            if at >= len(tokens):
                return
            allowed = self.allowed()
            if tokens[at] not in allowed:
                raise ValueError(
                    f"the text leaves the grammar at token {at}: {tokens[at]} may not come there"
                )
            yield at, allowed
            self.accept(tokens[at])
            at += 1

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"the grammar rejects token {token}: {self._matcher.get_error()}")

    @property
    def complete(self) -> bool:
        """Nothing more can come."""
        return bool(self._matcher.is_stopped())


def json_grammar(schema: dict[str, Any]) -> str:
    """A grammar for JSON of this schema, written as `json.dumps` writes it.

    The separators have one form only, since a flexible space is a token to be sampled: of a 45-token call 24 are
    forced with fixed separators and 10 with flexible ones (measured).
    """
    from llguidance import LLMatcher

    fixed: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=fixed)


LOWEST_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken: so it would be anyway, and logits divided by less leave float32."""


def choose(
    logits: Tensor,
    constraint: Constraint | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> int:
    """One token from logits (vocabulary,): below LOWEST_TEMPERATURE the likeliest, else sampled from the likeliest
    tokens that together have the probability top_p. Drawn on the CPU: a generator gives the same on any device."""
    if temperature < LOWEST_TEMPERATURE:
        return int((constraint.mask(logits) if constraint else logits).argmax())
    allowed = constraint.allowed() if constraint else None
    candidates = logits if allowed is None else logits[allowed.to(logits.device)]
    probabilities = torch.softmax(candidates.cpu() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        unlikely = order[ordered.cumsum(0) - ordered >= top_p]  # what lies wholly beyond top_p
        probabilities[unlikely] = 0
    index = int(torch.multinomial(probabilities, 1, generator=generator))
    return index if allowed is None else int(allowed[index])
