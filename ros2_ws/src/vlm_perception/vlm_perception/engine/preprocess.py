"""Pictures to vision-tower patches, with tensors only: resize, normalise, patchify."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .gpu import upload

if TYPE_CHECKING:
    import PIL.Image

# The normalisation of OpenAI's CLIP, which Qwen2.5-VL was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PictureFormat:
    """How pictures are cut up. `size` (width, height) fixes the model's picture; None lets `smart_resize` choose."""

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (
            min(self.size) <= 0 or any(side % (self.patch * self.merge) for side in self.size)
        ):
            raise ValueError(
                f"picture size {self.size[0]}x{self.size[1]}: width and height must be multiples of "
                f"{self.patch * self.merge} (patch {self.patch} x merge {self.merge})"
            )


def smart_resize(width: int, height: int, form: PictureFormat) -> tuple[int, int]:
    """Qwen's rule: (width, height) as multiples of patch * merge, aspect kept, pixels within the bounds."""
    factor = form.patch * form.merge
    if max(width, height) > 200 * min(width, height):
        raise ValueError(f"picture of {width}x{height}: the aspect ratio must be below 200")
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > form.max_pixels:
        shrink = math.sqrt(height * width / form.max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < form.min_pixels:
        grow = math.sqrt(form.min_pixels / (height * width))
        h, w = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return w, h


Picture: TypeAlias = "np.ndarray | PIL.Image.Image"


def as_frame(image: Picture) -> np.ndarray:
    """A picture as RGB uint8 (height, width, 3); what is neither an array nor a PIL image is left for `check_frame`."""
    convert = getattr(image, "convert", None)
    frame: Any = np.asarray(convert("RGB")) if convert else image
    return cast(np.ndarray, frame)


def check_frame(image: np.ndarray) -> np.ndarray:
    """The frame itself, or a ValueError that says what is wrong with it."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"a frame is {kind}; frames are RGB uint8 arrays of height x width x 3")
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape) == 0:
        raise ValueError(
            f"a frame has shape {image.shape}; frames are RGB uint8 arrays of height x width x 3, none of them zero"
        )
    return image


def patchify(
    frames: list[np.ndarray], form: PictureFormat, device: torch.device | str = "cpu"
) -> tuple[Tensor, Grid]:
    """Frames of one item (one image, or the frames of one video) to patches (patches, 3 * temporal * patch * patch).

    A number of frames that is no multiple of the temporal patch is filled by repeating the last one, as transformers
    does. All frames of one item must have one size. Patch order: (t, gh/merge, gw/merge, merge, merge).
    """
    if not frames:
        raise ValueError("a chunk without frames: give at least one")
    shapes = {check_frame(frame).shape for frame in frames}
    if len(shapes) > 1:
        raise ValueError(
            f"frames of one chunk differ in size: {sorted(shapes)}; append them as separate chunks"
        )
    height, width, _ = frames[0].shape
    width_to, height_to = form.size or smart_resize(width, height, form)
    pixels = upload(torch.from_numpy(np.stack(frames)), device).permute(0, 3, 1, 2)
    if (width, height) != (width_to, height_to):
        pixels = _resize(pixels, height_to, width_to)
    mean, std = _channels(form.mean, device), _channels(form.std, device)
    pixels = (pixels.float() - 255 * mean) / (255 * std)
    if missing := -len(frames) % form.temporal:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    t, gh, gw = len(pixels) // form.temporal, height_to // form.patch, width_to // form.patch
    m, p = form.merge, form.patch
    pixels = pixels.reshape(t, form.temporal, 3, gh // m, m, p, gw // m, m, p)
    pixels = pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return pixels.reshape(t * gh * gw, -1), Grid(t, gh, gw, m)


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device | str) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing as PIL does it: one axis after the other, rounded to bytes in between.

    PIL takes the rows first where only they shrink (640x480 to 644x476 is such a case); at sharp edges the order
    shows. A GPU has no kernel for bytes; there the same is done in float32.
    """
    old_height, old_width = pixels.shape[2:]
    rows_first = height < old_height and width >= old_width
    first = (height, old_width) if rows_first else (old_height, width)
    pixels = pixels.contiguous() if pixels.device.type == "cpu" else pixels.float()
    for size in (first, (height, width)):
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        if pixels.is_floating_point():
            pixels = pixels.round().clamp(0, 255)
    return pixels


@dataclass(frozen=True)
class Grid:
    """Patches of one item along time, height and width, before merging."""

    t: int
    h: int
    w: int
    merge: int

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w // self.merge**2
