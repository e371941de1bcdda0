"""One stream's view of the model: items become tokens, and M-RoPE positions run on over the whole stream.

Positions are ours and never the library's: on a warm cache transformers computes wrong ones without an error. They
are exact integers and are never reset; the angles made of them are float64 (decoder.Rope).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .gpu import upload
from .preprocess import Grid, patchify
from .qwen import QwenModel


@dataclass(frozen=True)
class StreamState:
    """Where the stream stands. next_position: the first unused position on every axis. last_stamp: seconds."""

    next_position: int = 0
    last_stamp: float | None = None


@dataclass(frozen=True)
class Text:
    """Text, special tokens included, tokenised on its own."""

    text: str


@dataclass(frozen=True)
class Image:
    """One picture, RGB uint8 (height, width, 3)."""

    frame: np.ndarray


@dataclass(frozen=True)
class Video:
    """Consecutive frames of one video and their times in seconds, in order."""

    frames: Sequence[np.ndarray]
    stamps: Sequence[float]


Item = Text | Image | Video


@dataclass
class LaidOut:
    """Items tokenised and patched, with their positions (3, n): all that the host does for them. `pictures`: where each
    picture's tokens stand, its patches and their grid."""

    ids: list[int]
    positions: Tensor
    runs: tuple[tuple[str, int], ...]
    span: tuple[int, int]
    pictures: list[tuple[slice, Tensor, Grid]]


@dataclass
class Tokens:
    """Items made ready for the decoder: embeddings (n, hidden), positions (3, n), and what the tokens are."""

    embeddings: Tensor
    positions: Tensor
    runs: tuple[tuple[str, int], ...]
    span: tuple[int, int]
    ids: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.embeddings)


class StreamQwenModel:
    """The shared model, plus the position state of one stream."""

    def __init__(self, qwen: QwenModel):
        self.qwen = qwen
        self.reset()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> StreamQwenModel:
        """A folder's model with a stream of its own; options as `QwenModel.load`'s."""
        return cls(QwenModel.load(folder, **options))

    def reset(self) -> None:
        self.stream_state = StreamState()

    # -- positions, in three branches --------------------------------------------------------------------------
    def text_positions(self, start: int, tokens: int) -> Tensor:
        return torch.arange(start, start + tokens).expand(3, -1)

    def image_positions(self, start: int, grid: Grid) -> Tensor:
        """All of a picture is at one time; rows and columns count from the start position."""
        return self._grid_positions(start, torch.zeros(grid.t, dtype=torch.long), grid)

    def video_positions(self, start: int, grid: Grid, stamps: Sequence[float]) -> Tensor:
        """Time advances with the frames' own stamps, tokens_per_second positions for each second."""
        temporal = self.qwen.picture.temporal
        seconds = [stamps[min(i * temporal, len(stamps) - 1)] - stamps[0] for i in range(grid.t)]
        # 1e-6: stamps are sums of floats, and 0.9999999 of a position is one
        times = torch.tensor([int(s * self.qwen.tokens_per_second + 1e-6) for s in seconds])
        return self._grid_positions(start, times, grid)

    def _grid_positions(self, start: int, times: Tensor, grid: Grid) -> Tensor:
        rows, columns = torch.arange(grid.h // grid.merge), torch.arange(grid.w // grid.merge)
        axes = torch.meshgrid(times, rows, columns, indexing="ij")
        return torch.stack(axes).reshape(3, -1) + start

    # -- items -------------------------------------------------------------------------------------------------
    def prepare(self, items: Sequence[Item], start: int | None = None) -> Tokens:
        """Items made ready for the decoder, at positions from `start` (default: where the stream stands)."""
        return self.encode(self.lay_out(items, start))

    def encode(self, laid_out: LaidOut) -> Tokens:
        """Embed the words and run the vision tower."""
        # On a GPU everything else goes up before the vision tower starts: an upload takes its turn behind what runs.
        positions = upload(laid_out.positions, self.qwen.device)
        embeddings = self.qwen.embed(laid_out.ids)
        for place, patches, grid in laid_out.pictures:
            embeddings[place] = self.qwen.encode_vision(patches, grid)
        return Tokens(embeddings, positions, laid_out.runs, laid_out.span, laid_out.ids)

    def lay_out(self, items: Sequence[Item], start: int | None = None) -> LaidOut:
        """Tokenise, cut pictures into patches and lay out positions from `start` (default: where the stream stands).

        The stream's state does not change. A following item starts one past the largest position on any axis, as the
        model was trained (transformers 5.23 forgets the temporal extent of long videos there).
        """
        position = first = self.stream_state.next_position if start is None else start
        ids: list[int] = []
        positions: list[Tensor] = []
        runs: list[tuple[str, int]] = []
        pictures: list[tuple[slice, Tensor, Grid]] = []

        def add(at: Tensor, modality: str, tokens: list[int]) -> None:
            nonlocal position
            positions.append(at)
            runs.append((modality, len(tokens)))
            ids.extend(tokens)
            position = int(at.max()) + 1

        def add_text(tokens: list[int]) -> None:
            if tokens:
                add(self.text_positions(position, len(tokens)), "text", tokens)

        for item in items:
            if isinstance(item, Text):
                add_text(self.qwen.tokenize(item.text))
                continue
            patches, grid = self._patches(item)
            add_text([self.qwen.vision_start])
            pictures.append((slice(len(ids), len(ids) + grid.tokens), patches, grid))
            if isinstance(item, Image):
                add(self.image_positions(position, grid), "image", [self.qwen.image_pad] * grid.tokens)
            else:
                at = self.video_positions(position, grid, item.stamps)
                add(at, "video", [self.qwen.video_pad] * grid.tokens)
            add_text([self.qwen.vision_end])
        at = torch.cat(positions, dim=1) if positions else torch.zeros((3, 0), dtype=torch.long)
        return LaidOut(ids, at, _joined(runs), (first, position), pictures)

    def _patches(self, item: Image | Video) -> tuple[Tensor, Grid]:
        frames = [item.frame] if isinstance(item, Image) else list(item.frames)
        if isinstance(item, Video) and len(item.stamps) != len(frames):
            raise ValueError(f"{len(frames)} frames but {len(item.stamps)} time stamps in one video")
        return patchify(frames, self.qwen.picture, self.qwen.device)

    def advance(self, position: int, stamp: float | None = None) -> None:
        state = self.stream_state
        self.stream_state = replace(
            state, next_position=position, last_stamp=state.last_stamp if stamp is None else stamp
        )


def _joined(runs: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Neighbouring runs of one modality as one."""
    joined: list[tuple[str, int]] = []
    for modality, count in runs:
        if joined and joined[-1][0] == modality:
            joined[-1] = (modality, joined[-1][1] + count)
        else:
            joined.append((modality, count))
    return tuple(joined)
