"""The pilot's architecture, tokenizer and serving form, and its folder in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from airsim_sim.instructions import COLOURS, NOUNS, Wording, sentences
from nav_agent import toolset
from nav_agent.prompts import load_prompt
from vlm_perception.engine.preprocess import CLIP_MEAN, CLIP_STD
from vlm_perception.prompting import (
    SYSTEM_OPEN,
    TURN_CLOSE,
    WAY_FREE_QUESTION,
    YES_NO,
    call_text,
    decision_text,
    prime_text,
    question_text,
    sees_question,
)
from vlm_perception.serving_form import ServingForm

from . import STREAMING

# A picture is 4 x 3 tokens: at 112 x 84 a pillar of 0.8 m is two pixels wide at 22 m and 22 pixels at 2 m.
WIDTH, HEIGHT = 112, 84
TOKENS_PER_FRAME = (WIDTH // 28) * (HEIGHT // 28)
CHUNK_TOKENS = TOKENS_PER_FRAME + 2  # with <|vision_start|> and <|vision_end|>
FRAME_INTERVAL_S = (
    2.0  # chosen: the frames before, halfway through and after a quarter turn; a mission has about 30
)
WINDOW_FRAMES = 48  # served; training streams are as long

# A step and three quarter turns: a second look around, from another place.
RECENT_CALLS = toolset.RECENT_CALLS

VOCABULARY = 1280
PIECES = 1024  # of the byte pair encoding, bytes included; the rest are control tokens and phrases
# Qwen2's tokenizer: its control tokens in its order, and its rule for where words end.
CONTROL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
MARKUP_TOKENS = ("<tool_call>", "</tool_call>")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MODE_FRAMES = {STREAMING: 0, "last-4": 4, "last-1": 1}
"""Memories to train for, and the frames that each decision sees anew; 0: the stream's window. Named as nav_eval's
variants."""


def serving_form(prime_tokens: int, mode: str = STREAMING) -> ServingForm:
    """What the pilot sees in service, with the present prompt and tools. prime_tokens: length of the primed prompt."""
    return ServingForm(
        system_prompt=load_prompt("pilot"),
        tools=toolset.tool_schemas(),
        tag="",
        frames_per_chunk=1,
        as_video=False,
        width=WIDTH,
        height=HEIGHT,
        frame_interval_s=FRAME_INTERVAL_S,
        max_cache_tokens=prime_tokens + (1 + WINDOW_FRAMES) * CHUNK_TOKENS,
        sink_size=0,
        recent_calls=RECENT_CALLS,
        max_new_tokens=16,
        recompute_frames=MODE_FRAMES[mode],
    )


def pilot_prime_text() -> str:
    """The primed text for the present prompt and tools."""
    return prime_text(load_prompt("pilot"), toolset.tool_schemas())


def calls() -> list[str]:
    """Every call there is but `fly_towards`' thousand, as the model writes them."""
    found = []
    for tool in toolset.TOOLS:
        if len(tool.arguments) > 1:
            found += [
                call_text(tool.name, {a.name: value for a in tool.arguments})
                for value in range(50, 1000, 100)
            ]
        elif tool.arguments:
            argument = tool.arguments[0]
            found += [call_text(tool.name, {argument.name: value}) for value in argument.values]
        else:
            found.append(call_text(tool.name, {}))
    return found


def _texts() -> Iterable[str]:
    general = resources.files("nav_pilot").joinpath("words.txt").read_text(encoding="utf-8")
    ours = [pilot_prime_text(), *calls(), *_asked(), TURN_CLOSE, *YES_NO]
    return [*ours * 4, *general.splitlines()]


def _asked() -> Iterator[str]:
    """Instructions of the training's wording, and questions, as they are asked."""
    named = [f"the {colour} {noun}" for colour in COLOURS for nouns in NOUNS.values() for noun in nouns]
    named += [
        f"the {noun} {side} of the {colour} one"
        for noun in NOUNS
        for side in ("left", "right")
        for colour in COLOURS
    ]
    for number, line in enumerate(sorted(sentences(Wording.TRAINING))):
        for it, other in zip(named[number % 7 :: 7], named[number % 5 :: 5], strict=False):
            yield decision_text(line.format(it=it, other=other), ["hover(seconds=2)" + " -> hovered 2 s"])
    yield from (question_text(sees_question(it)) for it in named)
    yield from [question_text(WAY_FREE_QUESTION)] * 8


def phrases() -> list[str]:
    """What never varies in prompt, recalled calls and answers: each is one token, so that a prompt is thirty tokens and
    not five hundred, in training and in service. Instructions are not among them: words reach the model as words."""
    sentences = [sentence + "." for sentence in load_prompt("pilot").split(".") if sentence]
    section = pilot_prime_text().removeprefix(SYSTEM_OPEN + load_prompt("pilot"))
    lines = [line for line in section.split("\n") if len(line) > 8 and "|>" not in line]
    names = [tool.name for tool in toolset.TOOLS if "_" in tool.name]
    arguments = dict.fromkeys(argument.name for tool in toolset.TOOLS for argument in tool.arguments)
    calls = ['{"name": "', *(f'", "arguments": {{"{argument}": ' for argument in arguments)]
    return list(dict.fromkeys([*sentences, *lines, *names, *calls, *_recalled(), *_whereabouts()]))


_DONE = {
    "move_forward": "flew ",
    "turn_left": "turned left ",
    "turn_right": "turned right ",
    "climb": "climbed ",
    "descend": "descended ",
    "hover": "hovered ",
}


def _recalled() -> Iterator[str]:
    """The parts of recalled calls: a call with the kind of its result, and the figures of results."""
    for name, done in _DONE.items():
        argument = toolset.BY_NAME[name].arguments[0]
        for value in argument.values:
            yield toolset.recall_line(toolset.call_line(name, {argument.name: value}), done)
    yield from (f"{angle} deg" for angle in range(0, 185, 5))
    yield from (f"{half / 2:g} m" for half in range(18))


def _whereabouts() -> Iterator[str]:
    """What never varies in `prompting.whereabouts`, and its metres; its degrees are those of results."""
    yield from (" was seen ", " to the left, ", " to the right, ", "straight ahead, ", " from here")
    yield from (f"{metres} m" for metres in (9, *range(10, 100, 5)))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE like Qwen2's with a small vocabulary, learnt from our own prompts and some general English.

    Any text can be encoded: what has no piece of its own is spelt in bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*MARKUP_TOKENS, *phrases())])
    if tokenizer.get_vocab_size() > VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens: raise VOCABULARY, {VOCABULARY}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's architecture with about two million parameters."""

    def token(text: str) -> int:
        return int(tokenizer.get_vocab()[text])

    hidden = 128
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 320,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        # A head has 32 dimensions, so 16 frequencies from 1 down, given out in the order time, height, width. Width
        # gets most: with Qwen's proportions (4, 6, 6) its fastest would turn by 0.003 a column, and a picture of four
        # columns would have no left and right. Between pictures all three axes advance alike, so time needs none.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [1, 2, 13]},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 3,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,  # a whole picture of 112 x 84 is one window
        "fullatt_block_indexes": [0, 1, 2],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def start_from(
    folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Takes over the weights of an earlier model, embeddings by their token's text: after a change of the prompt most
    of what was learnt still holds."""
    earlier: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    known = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    weights, fresh = earlier.state_dict(), model.state_dict()
    embedding = next(value for name, value in fresh.items() if "embed_tokens" in name).clone()
    for token, index in tokenizer.get_vocab().items():
        if token in known:
            embedding[index] = earlier.get_input_embeddings().weight.data[known[token]]
    weights |= {name: embedding for name in weights if "embed_tokens" in name or "lm_head" in name}
    model.load_state_dict(weights)


def make_model(config: Qwen2_5_VLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """The model with fresh weights, float32."""
    model: Qwen2_5_VLForConditionalGeneration = Qwen2_5_VLForConditionalGeneration._from_config(
        config, attn_implementation="sdpa", dtype=torch.float32
    )
    return model


def save(
    folder: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    mode: str = STREAMING,
) -> None:
    """Writes the model folder in float16, with everything that serving needs but the record of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    half: Any = make_model(model.config)
    half.to(torch.float16)
    half.load_state_dict(model.state_dict())
    half.config.dtype = torch.float16
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    picture = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": WIDTH * HEIGHT,
        "max_pixels": WIDTH * HEIGHT,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(picture, indent=2) + "\n")
    prime = tokenizer.encode(pilot_prime_text(), add_special_tokens=False)
    serving_form(len(prime), mode).save(folder)
