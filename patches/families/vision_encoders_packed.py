"""Vision encoders that take the patches of all images as one sequence: those of Qwen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmcompress.patches.families.vision_encoder import Encoder, signals_of
from vlmcompress.patches.hooks.arguments import on_host
from vlmcompress.tokens import Grid

_PAIR = 2
"""Frames that become one, where they do."""


class PackedEncoder(Encoder):
    """All patches in one sequence, merged in groups of neighbours in it (Qwen2-VL, Qwen3-VL).

    A token has the mean of its patches. Attention stays within a frame.
    """

    signals = signals_of("encoder_attention", "keys", "projection")
    blocks = True
    towers = ("visual",)
    projector = "visual.merger"
    sizes = "{}_grid_thw"

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return values.view(-1, self.patches(base), values.shape[-1]).mean(1)

    def tile(self, base: Any) -> int | None:
        return None  # whatever image size its configuration names

    def pieces(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        return torch.split(values, [t * h * w for t, h, w in self.grids(base, modality, call)])

    def grids(
        self, base: Any, modality: str, call: Mapping[str, Any]
    ) -> list[tuple[int, int, int]]:
        """Of the tokens of each image or clip."""
        merge = self.merge_side(base)
        rows = on_host(call[f"{modality}_grid_thw"])
        return [(t, h // merge, w // merge) for t, h, w in rows]


class DeepEncoder(PackedEncoder):
    """Qwen3-VL: layers between have projectors of their own, whose features the decoder adds."""

    deep = "visual.deepstack_merger_list"


class PairedEncoder(PackedEncoder):
    """ERNIE 4.5 VL: the tokens at a place in each two frames of a clip become one."""

    def grids(
        self, base: Any, modality: str, call: Mapping[str, Any]
    ) -> list[tuple[int, int, int]]:
        frames = super().grids(base, modality, call)
        return [(max(1, t // _PAIR), h, w) for t, h, w in frames]

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        tokens = super().projected(base, modality, values, call)
        frames = super().grids(base, modality, call)
        clips = torch.split(tokens, [t * h * w for t, h, w in frames])
        return torch.cat([_paired(*each) for each in zip(clips, frames, strict=True)])


def _paired(clip: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[t * h * w, C] -> the means of each two frames; an image stays as it is."""
    t, h, w = shape
    return clip if t == 1 else clip.view(t // _PAIR, _PAIR, h * w, -1).mean(1).flatten(0, 1)


class RasterEncoder(PackedEncoder):
    """The same with the patches of a picture row by row, blocks of which are merged at the end."""

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        side, blocks = self.merge_side(base), []
        grids = self.grids(base, modality, call)
        for rows, (t, h, w) in zip(self._own(values, grids, side), grids, strict=True):
            blocks.append(rows.view(t, h, side, w, side, -1).mean((2, 4)).flatten(0, 2))
        return torch.cat(blocks)

    def _own(
        self, values: Tensor, grids: Sequence[tuple[int, int, int]], side: int
    ) -> Sequence[Tensor]:
        """The patches of each picture."""
        flat = values.reshape(-1, values.shape[-1])
        return torch.split(flat, [t * h * w * side**2 for t, h, w in grids])


class NativeEncoder(RasterEncoder):
    """Pixtral: pictures of any size in pixels, the patches of all of them in one sequence."""

    sizes = "image_sizes"

    def grids(
        self, base: Any, modality: str, call: Mapping[str, Any]
    ) -> list[tuple[int, int, int]]:
        unit = int(base.config.vision_config.patch_size) * self.merge_side(base)
        return [(1, int(h) // unit, int(w) // unit) for h, w in on_host(call["image_sizes"])]


class PaddedEncoder(RasterEncoder):
    """SigLIP 2: pictures of any size as rows of a batch, padded to the longest."""

    sizes = "spatial_shapes"

    def grids(
        self, base: Any, modality: str, call: Mapping[str, Any]
    ) -> list[tuple[int, int, int]]:
        side = self.merge_side(base)
        return [(1, h // side, w // side) for h, w in on_host(call["spatial_shapes"])]

    def _own(
        self, values: Tensor, grids: Sequence[tuple[int, int, int]], side: int
    ) -> Sequence[Tensor]:
        counts = (t * h * w * side**2 for t, h, w in grids)
        return [row[:count] for row, count in zip(values, counts, strict=True)]


class WindowEncoder(PackedEncoder):
    """Qwen2.5-VL: the tower sees tokens window by window; most layers attend within a window.

    The attention received in such a layer compares tokens of one window (its mean over a window of
    n tokens is 1/n patches); `full_attention_layers` names the others.
    """

    def full_attention_layers(self, base: Any, depth: int) -> Sequence[int]:
        full = base.config.vision_config.fullatt_block_indexes
        return sorted(layer for layer in full if layer < depth)

    def packed(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any], number: int
    ) -> Tensor:
        grid = self.grids(base, modality, call)[number]
        config = base.config.vision_config
        size = config.window_size // config.spatial_merge_size // config.patch_size
        t, h, w = (torch.arange(n) for n in grid)
        across = -(-grid[2] // size)
        window = (h // size)[:, None] * across + (w // size)[None]
        window = (t[:, None, None] * (window.max() + 1) + window).flatten()
        raster = torch.empty_like(values)
        raster[window.argsort(stable=True).to(values.device)] = values
        return raster

    def compared(self, base: Any, grid: Grid, layer: int, layers: int) -> int:
        if layer in self.full_attention_layers(base, layers):
            return super().compared(base, grid, layer, layers)
        vision = base.config.vision_config
        size: int = vision.window_size // vision.spatial_merge_size // vision.patch_size

        def squares(length: int) -> int:
            return length // size * size**2 + (length % size) ** 2

        return grid.t * squares(grid.h) * squares(grid.w)


class QwenEncoder(WindowEncoder):
    """Whichever of the two a retriever was built around."""

    def full_attention_layers(self, base: Any, depth: int) -> Sequence[int]:
        return super().full_attention_layers(base, depth) if _windowed(base) else range(depth)

    def packed(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any], number: int
    ) -> Tensor:
        return super().packed(base, modality, values, call, number) if _windowed(base) else values

    def compared(self, base: Any, grid: Grid, layer: int, layers: int) -> int:
        if _windowed(base):
            return super().compared(base, grid, layer, layers)
        return PackedEncoder.compared(self, base, grid, layer, layers)


def _windowed(base: Any) -> bool:
    return hasattr(base.config.vision_config, "window_size")
