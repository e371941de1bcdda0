"""Asks: what they answer, and that they leave no trace."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import make_frames

from vlm_perception.engine import Image, QwenModel, Text, VideoStreamingInference, json_grammar
from vlm_perception.engine.decoding import Constraint, choose
from vlm_perception.prompting import call_schema
from vlm_perception.testing.oracle import Oracle

PROMPT = "<|im_start|>system\nYou see.<|im_end|>\n"
FRAMES = make_frames(6)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }
    for name, properties in {
        "move_forward": {"distance_m": {"enum": [1, 2, 4, 8]}},
        "turn_left": {"angle_deg": {"enum": [10, 20, 30, 45, 90]}},
        "look_around": {},
        "finish": {"reason": {"enum": ["reached", "not_found", "unsafe"]}},
    }.items()
]
GRAMMAR = json_grammar(call_schema(TOOLS))
MOVE_GRAMMAR = json_grammar(call_schema(TOOLS[:1]))


@pytest.fixture
def stream(model: QwenModel) -> VideoStreamingInference:
    """A stream that has seen six frames and evicted some of them."""
    stream = VideoStreamingInference(model, max_cache_tokens=80, tail_tokens=192)
    stream.prime(PROMPT)
    for frame in FRAMES:
        stream.append_frame(frame)
    assert stream.cache.evictor.total_evictions
    return stream


def traces(stream: VideoStreamingInference) -> tuple[Any, ...]:
    """Everything an ask must leave as it was; tensors as bytes, so that equal means bit-identical."""
    cache = stream.cache
    return (
        cache.live_keys().numpy().tobytes(),
        cache.live_values().numpy().tobytes(),
        cache.length,
        list(cache.tracker.chunks),
        cache.next_chunk_id,
        cache.evictor.chunk_stats,
        stream.model.stream_state,
        stream.get_cache_info(),
    )


def test_an_ask_leaves_the_cache_bit_identical(stream: VideoStreamingInference) -> None:
    before = traces(stream)
    answer, metrics = stream.ask("What do you see?", max_new_tokens=12)
    assert traces(stream) == before
    assert metrics["ttft"] > 0
    assert stream.ask("What do you see?", max_new_tokens=12)[0] == answer, "and asking again answers the same"


def test_a_cancelled_ask_stops_within_one_token_and_leaves_no_trace(stream: VideoStreamingInference) -> None:
    before = traces(stream)
    asked = iter([False, False, False, True])
    done = stream.generate("Tell all", max_new_tokens=50, cancel=lambda: next(asked))
    assert done.finish == "cancelled"
    assert done.sampled == 3
    assert traces(stream) == before


def test_an_ask_past_its_deadline_stops_and_leaves_no_trace(model: QwenModel) -> None:
    ticks = iter(range(100))
    stream = VideoStreamingInference(
        model, max_cache_tokens=80, tail_tokens=192, clock=lambda: float(next(ticks))
    )
    stream.append_frame(FRAMES[0])
    before = traces(stream)
    done = stream.generate("Tell all", max_new_tokens=50, deadline=2.0)
    assert (done.finish, done.sampled) == ("deadline", 2)
    assert traces(stream) == before


def test_a_failing_ask_leaves_no_trace(stream: VideoStreamingInference) -> None:
    before = traces(stream)

    def fail(text: str) -> None:
        if len(text) > 5:
            raise ConnectionError("the listener is gone")

    with pytest.raises(ConnectionError):
        stream.ask("What do you see?", on_text=fail)
    assert traces(stream) == before


def test_the_greedy_answer_is_the_oracles(model: QwenModel, oracle: Oracle) -> None:
    stream = VideoStreamingInference(model)
    stream.prime(PROMPT)
    stream.append_frame(FRAMES[0])
    question = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    said: list[str] = []
    done = stream.generate(question, max_new_tokens=8, on_text=said.append)
    answer: list[int] = []
    for _ in range(8):
        items: list[Text | Image] = [Text(PROMPT), Image(FRAMES[0]), Text(question)]
        ids = [token for item in items for token in _ids(model, item)] + answer
        logits, _ = oracle.run(model, [*items, *([Text(model.tokenizer.decode(answer))] if answer else [])])
        assert len(logits) == len(ids)
        answer.append(int(logits[-1].argmax()))
    assert done.text == model.decode(answer)
    assert said[-1] == done.text
    assert len(said) == 8, "partial text after every pass"


def _ids(model: QwenModel, item: Text | Image) -> list[int]:
    return model.tokenize(item.text) if isinstance(item, Text) else [model.image_pad] * (12 + 2)


def test_a_kept_turn_is_an_ordinary_evictable_chunk(stream: VideoStreamingInference) -> None:
    chunks = stream.cache.tracker.chunks
    newest = chunks[-1]
    stream.ask("What?", max_new_tokens=4, update_state=True)
    turn = stream.cache.tracker.chunks[-1]
    assert turn.runs[0][0] == "text"
    assert turn.id == newest.id + 1
    assert turn.positions[0] == newest.positions[1]
    assert stream.model.stream_state.next_position == turn.positions[1]
    assert stream.cache.length <= 80
    for frame in FRAMES:
        stream.append_frame(frame)
    assert all(chunk.id != turn.id for chunk in stream.cache.tracker.chunks)


def test_a_tool_call_follows_the_schema_and_forced_tokens_are_not_sampled(
    stream: VideoStreamingInference,
) -> None:
    generator = torch.Generator().manual_seed(0)
    names = set()
    for _ in range(20):
        done = stream.generate(
            "fly<|im_end|>\n<|im_start|>assistant\n<tool_call>\n",
            grammar=GRAMMAR,
            temperature=5.0,
            generator=generator,
        )
        call = json.loads(done.text)
        function = next(t["function"] for t in TOOLS if t["function"]["name"] == call["name"])
        for name, value in call["arguments"].items():
            assert value in function["parameters"]["properties"][name]["enum"]
        assert call["arguments"].keys() == function["parameters"]["properties"].keys()
        assert done.finish == "stop"
        assert done.passes == done.sampled < 8 < done.forced
        names.add(call["name"])
    assert len(names) > 1


def test_a_budget_of_sampled_tokens_never_cuts_forced_ones(stream: VideoStreamingInference) -> None:
    done = stream.generate("fly", grammar=MOVE_GRAMMAR, max_new_tokens=2)
    assert json.loads(done.text)["name"] == "move_forward"


def test_forced_tokens_count_as_much_as_sampled_ones(model: QwenModel) -> None:
    constraint = Constraint(model, MOVE_GRAMMAR)
    assert model.tokenizer.decode(constraint.forced()).startswith(
        '{"name": "move_forward", "arguments": {"dist'
    )


@pytest.mark.parametrize(
    "choices",
    [["left", "right"], ["left", "left side"], ["A", "B", "C", "D"], ["the red beacon", "a", "turn_left"]],
)
def test_ask_choice_scores_each_choice_by_its_own_tokens(
    stream: VideoStreamingInference, choices: list[str]
) -> None:
    before = traces(stream)
    _, metrics = stream.ask_choice("Which?", choices)
    assert traces(stream) == before
    prompt = stream._question("Which?")
    ends = any(a != b and b.startswith(a) for a in choices for b in choices)
    with torch.inference_mode():
        for choice in choices:
            answer = stream.qwen.tokenize(choice) + ([stream.qwen.end_of_turn] if ends else [])
            snapshot = stream.cache.snapshot(stream.model)
            hidden = stream._feed(stream.qwen.tokenize(prompt) + answer)
            stream.cache.restore(stream.model, snapshot)
            chances = stream.qwen.decoder.logits(hidden).log_softmax(-1)[-len(answer) - 1 : -1]
            alone = chances.gather(1, torch.tensor(answer).unsqueeze(1)).sum()
            assert metrics["log_likelihoods"][choice] == pytest.approx(float(alone), abs=1e-3)


CALL = "fly<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"


def every_text(constraint: Constraint, begun: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All token sequences that the grammar allows, from where the constraint stands."""
    begun += tuple(constraint.forced())
    if constraint.complete:
        return [begun]
    found = []
    for token in constraint.allowed().tolist():
        branch = Constraint.__new__(Constraint)
        branch.__dict__ = {**constraint.__dict__, "_matcher": constraint._matcher.deep_copy()}
        branch.accept(token)
        found += every_text(branch, (*begun, token))
    return found


def test_the_probabilities_of_all_calls_are_one_together(stream: VideoStreamingInference) -> None:
    texts = every_text(Constraint(stream.qwen, MOVE_GRAMMAR))
    before = traces(stream)
    scores = [stream.score(CALL, text, MOVE_GRAMMAR) for text in texts]
    assert traces(stream) == before
    assert {json.loads(stream.qwen.decode(list(text)))["arguments"]["distance_m"] for text in texts} == {
        1, 2, 4, 8,
    }  # fmt: skip
    assert sum(map(math.exp, scores)) == pytest.approx(1.0, abs=1e-5)


def test_the_score_of_a_call_is_how_often_it_is_sampled(stream: VideoStreamingInference) -> None:
    """Over several free tokens, forced ones between them."""
    generator = torch.Generator().manual_seed(3)
    drawn = [
        stream.generate(CALL, grammar=GRAMMAR, temperature=1.0, generator=generator).tokens
        for _ in range(300)
    ]
    text, count = Counter(drawn).most_common(1)[0]
    assert count > 30
    assert math.exp(stream.score(CALL, text, GRAMMAR)) == pytest.approx(count / 300, abs=0.08)


def test_a_text_that_leaves_the_grammar_has_no_score(stream: VideoStreamingInference) -> None:
    whole = list(stream.generate(CALL, grammar=GRAMMAR).tokens)
    for wrong in ([whole[0] + 1, *whole[1:]], [*whole[:-1], whole[-1] + 1]):
        with pytest.raises(ValueError, match="leaves the grammar at token"):
            stream.score(CALL, wrong, GRAMMAR)


def test_sampling_follows_its_generator(stream: VideoStreamingInference) -> None:
    def sample(seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        return stream.ask("What?", 10, do_sample=True, temperature=3.0, generator=generator)[0]

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_the_mask_is_the_allowed_tokens(model: QwenModel) -> None:
    constraint = Constraint(model, GRAMMAR)
    constraint.forced()
    logits = torch.randn(model.decoder.shape.vocabulary)
    allowed = constraint.allowed()
    assert 0 < len(allowed) < 20
    masked = constraint.mask(logits)
    assert torch.equal(masked.isfinite().nonzero().flatten(), allowed)
    assert torch.equal(masked[allowed], logits[allowed])


def test_sampling_over_the_allowed_tokens_is_sampling_over_all_of_them(model: QwenModel) -> None:
    constraint = Constraint(model, GRAMMAR)
    constraint.forced()
    logits = torch.randn(model.decoder.shape.vocabulary)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.tensor([choose(logits, constraint, 2.0, 1.0, generator) for _ in range(4000)])
    found = drawn.bincount(minlength=len(logits)) / len(drawn)
    expected = torch.softmax(constraint.mask(logits) / 2.0, -1)
    assert (found - expected).abs().max() < 0.03
    assert not found[expected == 0].any()


def test_top_p_samples_among_the_likeliest_only() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    for top_p, kept in ((1.0, {0, 1, 2, 3}), (0.81, {0, 1, 2}), (0.8, {0, 1}), (0.5, {0}), (0.1, {0})):
        drawn = {choose(logits, temperature=1.0, top_p=top_p, generator=generator) for _ in range(300)}
        assert drawn == kept


def test_two_streams_on_one_model_do_not_meet(model: QwenModel) -> None:
    first, second = VideoStreamingInference(model), VideoStreamingInference(model)
    first.append_frame(FRAMES[0])
    before = traces(first)
    second.append_frame(FRAMES[1])
    second.ask("What?", max_new_tokens=4)
    assert traces(first) == before


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("", {}, "empty question"),
        ("What? " * 200, {}, "reserved tail of 192 tokens"),
        ("What?", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("What?", {"top_p": 0.0}, "top_p is 0.0"),
        ("What?", {"max_new_tokens": 192}, "reserved tail"),
        ("What?", {"grammar": "start: nothing"}, "grammar cannot be used"),
    ],
)
def test_a_bad_ask_is_refused_and_changes_nothing(
    stream: VideoStreamingInference, question: str, options: dict[str, Any], message: str
) -> None:
    before = traces(stream)
    with pytest.raises(ValueError, match=message):
        stream.ask(question, **options)
    assert traces(stream) == before


@pytest.mark.parametrize("choices", [[], ["left", "left"], ["left", ""]])
def test_bad_choices_are_refused(stream: VideoStreamingInference, choices: list[str]) -> None:
    with pytest.raises(ValueError, match="choice"):
        stream.ask_choice("Which?", choices)


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 2.4e-166, 0.0])
def test_towards_no_temperature_the_likeliest_token_is_taken(temperature: float) -> None:
    logits = torch.tensor([-30.0, 80.0, 79.0, float("-inf")])
    assert {choose(logits, temperature=temperature) for _ in range(20)} == {1}
