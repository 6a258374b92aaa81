"""Video processors of the Qwen family that need numpy and Pillow only; see `video_processors`."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.processing_utils import VideosKwargs
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from vlmcompress.models.video_processors import Pixels, PortableVideoProcessor


class QwenSettings(VideosKwargs, total=False):
    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_frames: int
    max_frames: int
    cap_pixels_per_frame: bool
    max_video_tokens: int


class Qwen2VLVideoProcessor(PortableVideoProcessor):
    """Native resolution, in patches of `temporal_patch_size` frames; Qwen2-VL and Qwen2.5-VL.

    `cap_pixels_per_frame` is False unless it is given, as in the transformers versions supported.
    """

    size: ClassVar = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
    patch_size = 14
    temporal_patch_size = 2
    merge_size = 2
    min_frames = 4
    max_frames = 768
    cap_pixels_per_frame = False
    max_video_tokens = 128_000
    valid_kwargs = QwenSettings
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, **kwargs: Any) -> None:
        size = dict(kwargs.pop("size", None) or self.size)
        for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            given = kwargs.pop(old, None) or size.pop(old, None)
            if given is not None:
                size[new] = given
        super().__init__(size=size, **kwargs)

    def _clips(self, clips: list[list[Pixels]], settings: dict[str, Any]) -> dict[str, Any]:
        found = [self._rows(clip, settings) for clip in clips]
        patches, grids = [rows for rows, _ in found], [grid for _, grid in found]
        rows = patches[0] if len(patches) == 1 else torch.cat(patches)
        return {"pixel_values_videos": rows, "video_grid_thw": torch.tensor(grids)}

    def _rows(self, clip: list[Pixels], settings: dict[str, Any]) -> tuple[Tensor, list[int]]:
        """The patches of a clip, and its grid. A long one is never held twice."""
        height, width = self._target(len(clip), clip[0].shape[1:], settings)
        size, steps = SizeDict(height=height, width=width), settings["temporal_patch_size"]
        whole, place, grid = torch.empty(0), 0, [0, 0, 0]
        for start in range(0, len(clip), steps):
            frames = self._stack(clip[start : start + steps], settings, size)
            rows, (t, h, w) = _patchify(
                frames, settings["patch_size"], settings["merge_size"], steps
            )
            if start == 0:
                whole = rows.new_empty(-(-len(clip) // steps) * len(rows), rows.shape[1])
            whole[place : place + len(rows)] = rows
            place, grid = place + len(rows), [grid[0] + t, h, w]
        return whole, grid

    def _target(
        self, frames: int, shape: tuple[int, ...], settings: dict[str, Any]
    ) -> tuple[int, int]:
        """Height and width of the resized frames, from those of the frames as they are."""
        size, steps = settings["size"], settings["temporal_patch_size"]
        factor = settings["patch_size"] * settings["merge_size"]
        largest = size.longest_edge
        if settings["cap_pixels_per_frame"]:
            share = int(settings["max_video_tokens"] * factor**2 * 0.9) * steps // frames
            largest = max(min(largest, share), int(size.shortest_edge * 1.05))
        height, width = shape
        target: tuple[int, int] = smart_resize(height, width, factor, size.shortest_edge, largest)
        return target


class Qwen3VLVideoProcessor(Qwen2VLVideoProcessor):
    """Limits hold for the pixels of all frames together."""

    size: ClassVar = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    patch_size = 16
    max_video_tokens = 768
    fps = 2

    def _target(
        self, frames: int, shape: tuple[int, ...], settings: dict[str, Any]
    ) -> tuple[int, int]:
        height, width = shape
        size, steps = settings["size"], settings["temporal_patch_size"]
        factor = settings["patch_size"] * settings["merge_size"]
        least, most = size.shortest_edge, size.longest_edge
        if settings["cap_pixels_per_frame"]:
            frame = min(settings["max_video_tokens"] * factor**2, most // frames)
            most = max(frame, int(least * 1.05)) * frames
        if min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) > 200 * min(height, width):
            raise ValueError(f"frames of {width}x{height} are more than 200 times as long as wide")
        rows, columns = round(height / factor) * factor, round(width / factor) * factor
        volume = round(frames / steps) * steps * rows * columns
        if volume > most:
            beta = math.sqrt(frames * height * width / most)
            rows = max(factor, math.floor(height / beta / factor) * factor)
            columns = max(factor, math.floor(width / beta / factor) * factor)
        elif volume < least:
            beta = math.sqrt(least / (frames * height * width))
            rows = math.ceil(height * beta / factor) * factor
            columns = math.ceil(width * beta / factor) * factor
        return rows, columns


class Glm46VVideoProcessor(Qwen2VLVideoProcessor):
    """GLM-4.6V: limits hold for the pixels of all frames together, by a rule of its own."""

    size: ClassVar = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 2 * 30000}

    def _target(
        self, frames: int, shape: tuple[int, ...], settings: dict[str, Any]
    ) -> tuple[int, int]:
        from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize as fitted

        size, steps = settings["size"], settings["temporal_patch_size"]
        target: tuple[int, int] = fitted(
            num_frames=max(frames, steps),
            height=shape[0],
            width=shape[1],
            temporal_factor=steps,
            factor=settings["patch_size"] * settings["merge_size"],
            min_pixels=size.shortest_edge,
            max_pixels=size.longest_edge,
        )
        return target


def _patchify(frames: Tensor, patch: int, merge: int, steps: int) -> tuple[Tensor, list[int]]:
    """Cut [T, C, H, W] into patches of `steps` frames, those of a merged token side by side.

    Returns:
        [t*h*w, C*steps*patch*patch], and t, h, w. The last frame is repeated to fill up a step.
    """
    missing = -len(frames) % steps
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    t, h, w = len(frames) // steps, frames.shape[2] // patch, frames.shape[3] // patch
    cut = frames.reshape(t, steps, -1, h // merge, merge, patch, w // merge, merge, patch)
    # -> time, rows and columns of merged tokens, rows and columns inside one, then the patch.
    ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(t * h * w, -1), [t, h, w]
