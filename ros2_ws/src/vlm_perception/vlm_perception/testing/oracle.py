"""transformers' own model on whole sequences: what every partition of the stream must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vlm_perception.engine import QwenModel, Text, Video
from vlm_perception.engine.preprocess import patchify
from vlm_perception.engine.stream_qwen_model import Item


class Oracle:
    """Runs items in one forward pass of the library's model, with the library's own positions."""

    def __init__(self, folder: Path):
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(
        self, qwen: QwenModel, items: Sequence[Item], positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, vocabulary) and positions (3, n) of all items at once; `positions` overrides the library's."""
        ids: list[int] = []
        kinds: list[int] = []
        pixels: dict[int, list[Tensor]] = {1: [], 2: []}
        grids: dict[int, list[list[int]]] = {1: [], 2: []}
        seconds: list[float] = []
        for item in items:
            if isinstance(item, Text):
                tokens = qwen.tokenize(item.text)
                ids += tokens
                kinds += [0] * len(tokens)
                continue
            kind = 2 if isinstance(item, Video) else 1
            patches, grid = patchify(
                list(item.frames) if isinstance(item, Video) else [item.frame], qwen.picture
            )
            if isinstance(item, Video):
                stamps = list(item.stamps)
                seconds.append(2 * (stamps[1] - stamps[0]) if len(stamps) > 1 else 1.0)
            pixels[kind].append(patches)
            grids[kind].append([grid.t, grid.h, grid.w])
            pad = qwen.image_pad if kind == 1 else qwen.video_pad
            ids += [qwen.vision_start, *[pad] * grid.tokens, qwen.vision_end]
            kinds += [0, *[kind] * grid.tokens, 0]
        row, types = torch.tensor([ids]), torch.tensor([kinds])
        image_grid = torch.tensor(grids[1]) if grids[1] else None
        video_grid = torch.tensor(grids[2]) if grids[2] else None
        if positions is None:
            at, _ = self.model.model.get_rope_index(
                row, types, image_grid, video_grid, torch.tensor(seconds) if seconds else None
            )
        else:
            at = positions.unsqueeze(1)
        logits = self.model(
            input_ids=row,
            position_ids=at,
            pixel_values=torch.cat(pixels[1]) if pixels[1] else None,
            pixel_values_videos=torch.cat(pixels[2]) if pixels[2] else None,
            image_grid_thw=image_grid,
            video_grid_thw=video_grid,
        ).logits[0]
        return logits, at[:, 0]
