"""Prompts for models of `published_shapes`: random words and a random image of the right shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmcompress.defaults import PROFILE_WORDS
from vlmcompress.errors import VLMCompressError
from vlmcompress.profiler.published_shapes import shape_named


def prompt(
    model: Any,
    name: str,
    *,
    visual_tokens: int | None = None,
    text: int = PROFILE_WORDS,
    batch: int = 1,
) -> dict[str, Tensor]:
    """Inputs of `generate`: rows of one random image each and `text` random words around it.

    Args:
        model: of `build`.
        name: its shape.
        visual_tokens: of each image; by default as `RealShape.tokens` says.
        text: words, 5 of them before the image.
        batch: rows.

    Returns:
        `input_ids` and `attention_mask` [batch, L] int64, the pixels in the dtype of the model, and
        what else the family takes.

    Raises:
        VLMCompressError: no image of the model has as many tokens, or too few words.
    """
    shape = shape_named(name)
    if text < 6:
        raise VLMCompressError(f"a prompt has 6 words or more, got {text}")
    tokens = shape.tokens if visual_tokens is None else visual_tokens
    sizes = _SIZES[shape.family](model.config)
    if tokens not in sizes:
        near = sorted(sorted(sizes, key=lambda count: abs(count - tokens))[:4])
        raise VLMCompressError(
            f"no image of {name} has {tokens} visual tokens: give "
            f"{', '.join(map(str, near))}" + (" ..." if len(sizes) > len(near) else "")
        )
    picture = sizes[tokens]
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(100, 30_000, (text,), generator=generator)
    image = torch.full((picture.placeholders,), model.config.image_token_id)
    ids = torch.cat([words[:5], image, words[5:]]).repeat(batch, 1)
    pixels = torch.randn(picture.pixels, generator=generator)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.cat([pixels.to(model.dtype)] * batch),
        **{key: value.repeat(batch, 1) for key, value in picture.extra.items()},
    }
    if shape.family.startswith("Qwen"):
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    return {key: value.to(model.device) for key, value in inputs.items()}


@dataclass(frozen=True)
class _Picture:
    """An image as a model is given it."""

    placeholders: int
    """Visual tokens, newlines among them."""
    pixels: tuple[int, ...]
    """Shape of `pixel_values` for one image."""
    extra: Mapping[str, Tensor]
    """Further inputs, [1, ...] each."""


def _one_size(config: Any) -> dict[int, _Picture]:
    side = config.vision_config.image_size
    count = (side // config.vision_config.patch_size) ** 2
    return {count: _Picture(count, (1, 3, side, side), {})}


def _canvases(config: Any) -> dict[int, _Picture]:
    """Images that fill a canvas of tiles: an overview, then all patches row by row, each row with
    a newline. Larger canvases are shrunk by OneVision and left out here."""
    tile = config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    found: dict[int, _Picture] = {}
    for height, width in config.image_grid_pinpoints:
        rows, columns = height // tile, width // tile
        tiles = rows * columns
        if tiles <= 9:
            tokens = side * side * (1 + tiles)
            size = {"image_sizes": torch.tensor([[height, width]])}
            picture = _Picture(tokens + rows * side, (1, 1 + tiles, 3, tile, tile), size)
            found.setdefault(tokens, picture)
    return found


def _native(config: Any) -> dict[int, _Picture]:
    """Images of any size near a square, as the Qwen families take them."""
    tower = config.vision_config
    merge = tower.spatial_merge_size
    values = 3 * tower.temporal_patch_size * tower.patch_size**2
    found: dict[int, _Picture] = {}
    for height in range(2, 130):
        for width in (height + 1, height):  # squares last, as they are to win
            grid = torch.tensor([[1, height * merge, width * merge]])
            patches = height * width * merge**2
            found[height * width] = _Picture(
                height * width, (patches, values), {"image_grid_thw": grid}
            )
    return found


def _tiles(config: Any) -> dict[int, _Picture]:
    """One tile, or 2 to 12 and an overview."""
    side = config.vision_config.image_size[0]
    each = round((side // config.vision_config.patch_size[0] * config.downsample_ratio) ** 2)
    counts = (1, *range(3, 14))
    return {each * n: _Picture(each * n, (n, 3, side, side), {}) for n in counts}


_SIZES: dict[str, Callable[[Any], dict[int, _Picture]]] = {
    "Llava": _one_size,
    "LlavaNext": _canvases,
    "LlavaOnevision": _canvases,
    "Qwen2_5_VL": _native,
    "Qwen3VL": _native,
    "InternVL": _tiles,
}
"""Family -> visual tokens -> an image with so many."""
