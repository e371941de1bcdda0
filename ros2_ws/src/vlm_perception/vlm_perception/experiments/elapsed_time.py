"""How the model learns of time between pictures: text tags, jumps of the temporal position, or neither."""

from __future__ import annotations

from pathlib import Path

import torch

from vlm_perception.engine import VideoStreamingInference

from .films import pictures
from .setting import SAFE_BUDGET, Report, Setting


def experiment_time(given: Setting, video: Path | None, report: Report) -> None:
    """Text tags against jumps of the temporal position against nothing: how far the answer moves when the same
    pictures come 5 s apart instead of 1 s, and what that costs."""
    report.begin(given, f"budget {SAFE_BUDGET:,} tokens, never filled")
    question = "How many seconds lie between the pictures?"
    report.say("way     | tokens a chunk | answer's distribution moves by (total variation, 1 s against 5 s)")
    for way in ("nothing", "jumps", "tags"):
        chances, tokens = [], 0
        for seconds in (1.0, 5.0):
            stream = VideoStreamingInference(
                given.model, max_cache_tokens=SAFE_BUDGET, time_jumps=way == "jumps"
            )
            film = pictures(224, 168)
            for i in range(6):
                tag = f"t={i * seconds:.0f} s" if way == "tags" else None
                tokens = stream.append_frame(next(film), text_content=tag, stamp=i * seconds).tokens
            with torch.inference_mode():
                ids = stream.qwen.tokenize(stream._question(question))
                chances.append(stream._next_logits(ids).softmax(-1).double())
        moved = float((chances[0] - chances[1]).abs().sum() / 2)
        report.facts[way] = {"tokens_per_chunk": tokens, "total_variation": moved}
        report.say(f"{way:7} | {tokens:14} | {moved:.4f}")
    report.check(
        "without either, single pictures carry no time at all",
        report.facts["nothing"]["total_variation"] == 0,
    )
    report.check(
        "tags and jumps both say it", all(report.facts[w]["total_variation"] > 0 for w in ("jumps", "tags"))
    )
    report.say(
        "Which of the two a model understands needs a trained one: tags are text and any model reads them."
    )
