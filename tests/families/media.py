"""Random pictures for any model type, with all that its feature call wants to know of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

Inputs = dict[str, Any]
Maker = Callable[[Any, int, Generator], Inputs]
MAKERS: dict[str, Maker] = {}
SIZES = ((8, 8), (8, 12))
"""Patches of the first picture of a call, of the second, and so on in turn."""


def pictures(model: Any, base: Any, count: int, seed: int = 1) -> Inputs:
    """So many pictures, of different sizes where the type takes such."""
    generator = torch.Generator().manual_seed(seed)
    maker = MAKERS.get(model.config.model_type)
    if maker is not None:
        return maker(model.config, count, generator)
    known = inspect.signature(base.get_image_features).parameters
    vision = vision_of(model.config)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    channels = channels if isinstance(channels, int) else 3
    if "image_grid_thw" in known:
        depth = getattr(vision, "temporal_patch_size", 1) or 1
        return packed(count, generator, channels * depth * vision.patch_size**2)
    size = getattr(vision, "image_size", None)
    size = size[0] if isinstance(size, list | tuple) else size or 8 * vision.patch_size
    made = {"pixel_values": torch.randn(count, channels, size, size, generator=generator)}
    if "image_sizes" in known:
        made["image_sizes"] = torch.tensor([[size, size]] * count)
    return made


def clip(model: Any, base: Any, frames: int, seed: int = 1) -> Inputs | None:
    """One clip, for types whose feature call takes patches and their grid; None for others."""
    if model.config.model_type == "gemma4":
        return _frames_with_places(model.config, frames, seed)
    known = inspect.signature(base.get_video_features).parameters
    if "video_grid_thw" not in known or model.config.model_type in MAKERS:
        return None
    vision = vision_of(model.config)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3
    depth = getattr(vision, "temporal_patch_size", 1) or 1
    grid = torch.tensor([[frames, *SIZES[0]]])
    generator = torch.Generator().manual_seed(seed)
    width = channels * depth * vision.patch_size**2
    rows = torch.randn(int(grid.prod()), width, generator=generator)
    return {"pixel_values_videos": rows, "video_grid_thw": grid}


def vision_of(config: Any) -> Any:
    """The configuration of the vision side."""
    names = ("vision_config", "visual_config", "vision_cfg")
    return next((c for n in names if (c := getattr(config, n, None)) is not None), config)


def grids(count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> Tensor:
    """[count, 3] int64."""
    return torch.tensor([(1, *sizes[number % 2]) for number in range(count)])


def packed(count: int, generator: Generator, *width: int, sizes: Any = SIZES) -> Inputs:
    """The patches of all pictures one after the other, and their grids."""
    grid = grids(count, sizes)
    patches = torch.randn(int(grid.prod(-1).sum()), *width, generator=generator)
    return {"pixel_values": patches, "image_grid_thw": grid}


def of(*names: str) -> Callable[[Maker], Maker]:
    """Register a maker for some types."""

    def register(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, maker))
        return maker

    return register


@of("kimi_k25", "paddleocr_vl")
def _unfolded(config: Any, count: int, generator: Generator) -> Inputs:
    side = vision_of(config).patch_size
    return packed(count, generator, 3, side, side)


@of("video_llama_3")
def _merge_sizes(config: Any, count: int, generator: Generator) -> Inputs:
    made = packed(count, generator, 3 * config.vision_config.patch_size**2)
    return made | {"image_merge_sizes": torch.tensor([2] * count)}


@of("muse_glimmer", "muse_spark")
def _temporal(config: Any, count: int, generator: Generator) -> Inputs:
    vision = config.vision_config
    return packed(count, generator, 3 * vision.patch_temporal * vision.patch_size**2)


@of("inkling2", "inkling2_loop")
def _merged_pixels(config: Any, count: int, generator: Generator) -> Inputs:
    side = config.vision_config.spatial_merge_size * config.vision_config.patch_size
    return packed(count, generator, side, side, 3, sizes=((4, 4), (4, 6)))


@of("nemotron_h_omni")
def _grid_hw(config: Any, count: int, generator: Generator) -> Inputs:
    made = packed(count, generator, 3 * vision_of(config).patch_size ** 2)
    return {"pixel_values": made["pixel_values"], "image_grid_hw": made["image_grid_thw"][:, 1:]}


@of("lfm2_vl")
def _padded_patches(config: Any, count: int, generator: Generator) -> Inputs:
    shapes = grids(count, ((8, 8), (4, 12)))[:, 1:]
    areas = shapes.prod(-1)
    most, width = int(areas.max()), 3 * config.vision_config.patch_size**2
    return {
        "pixel_values": torch.randn(count, most, width, generator=generator),
        "spatial_shapes": shapes,
        "pixel_attention_mask": (torch.arange(most) < areas[:, None]).long(),
    }


@of("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
def _one_strip(config: Any, count: int, generator: Generator) -> Inputs:
    side = config.vision_config.patch_size
    sizes = grids(count, ((16, 16), (16, 24)))[:, 1:].int()
    strip = torch.randn(1, 3, side, side * int(sizes.prod(-1).sum()), generator=generator)
    return {"pixel_values": strip, "target_sizes": sizes}


def _positioned(count: int, generator: Generator, width: int, unit: int) -> Inputs:
    """Patches with their places; -1 where a picture has fewer."""
    shapes = [((4 * unit, 4 * unit), (3 * unit, 5 * unit))[number % 2] for number in range(count)]
    pixels = torch.rand(count, 16 * unit * unit, width, generator=generator)
    places = torch.full((*pixels.shape[:2], 2), -1)
    for number, (height, wide) in enumerate(shapes):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(wide), indexing="ij")
        places[number, : height * wide] = torch.stack([x.flatten(), y.flatten()], -1)
    return {"pixel_values": pixels, "image_position_ids": places}


def _frames_with_places(config: Any, frames: int, seed: int) -> Inputs:
    made = _gemma4(config, 1, torch.Generator().manual_seed(seed))
    pixels, places = made.values()
    moving = torch.rand(frames, *pixels.shape[1:], generator=torch.Generator().manual_seed(seed))
    return {
        "pixel_values_videos": moving,
        "video_position_ids": places.expand(frames, -1, -1),
        "num_frames_per_video": torch.tensor([frames]),
    }


@of("gemma4")
def _gemma4(config: Any, count: int, generator: Generator) -> Inputs:
    vision = config.vision_config
    return _positioned(count, generator, 3 * vision.patch_size**2, vision.pooling_kernel_size)


@of("gemma4_unified")
def _gemma4_unified(config: Any, count: int, generator: Generator) -> Inputs:
    vision = config.vision_config
    return _positioned(
        count, generator, 3 * (vision.patch_size * vision.pooling_kernel_size) ** 2, 1
    )


@of("idefics2", "idefics3", "smolvlm", "granite_docling")
def _tiles(config: Any, count: int, generator: Generator) -> Inputs:
    side = config.vision_config.image_size
    made = {"pixel_values": torch.randn(count, 1, 3, side, side, generator=generator)}
    if config.model_type == "granite_docling":
        made["pixel_attention_mask"] = torch.ones(count, 1, dtype=torch.bool)
    return made


@of("deepseek_vl_hybrid")
def _two_towers(config: Any, count: int, generator: Generator) -> Inputs:
    low, high = config.vision_config.image_size, config.high_res_vision_config.image_size
    return {
        "pixel_values": torch.randn(count, 3, low, low, generator=generator),
        "high_res_pixel_values": torch.randn(count, 3, high, high, generator=generator),
    }


@of("aria")
def _masked_pixels(config: Any, count: int, generator: Generator) -> Inputs:
    side = config.vision_config.image_size
    pixels = torch.randn(count, 3, side, side, generator=generator)
    return {"pixel_values": pixels, "pixel_mask": torch.ones(count, side, side, dtype=torch.bool)}


@of("fuyu")
def _flat_patches(config: Any, count: int, generator: Generator) -> Inputs:
    return {"pixel_values": torch.randn(count, 16, 3 * config.patch_size**2, generator=generator)}


@of("molmo2")
def _two_crops(config: Any, count: int, generator: Generator) -> Inputs:
    """A global and a sharper crop of 8x8 patches each, pooled 2x2."""
    side = 8

    def pooled(crop: int) -> list[list[int]]:
        corners = [(y, x) for y in range(0, side, 2) for x in range(0, side, 2)]
        start = crop * side * side
        return [
            [start + (y + a) * side + x + b for a in (0, 1) for b in (0, 1)] for y, x in corners
        ]

    width = 3 * config.vision_config.patch_size**2
    return {
        "pixel_values": torch.randn(2 * count, side * side, width, generator=generator),
        "image_token_pooling": torch.tensor(
            [row for crop in range(2 * count) for row in pooled(crop)]
        ),
        "image_grids": torch.tensor([[4, 4, 4, 4]] * count),
        "image_num_crops": torch.tensor([2] * count),
    }


@of("inkling_mm_model")
def _single_token_tiles(config: Any, count: int, generator: Generator) -> Inputs:
    vision = config.vision_config
    side = vision.patch_size if isinstance(getattr(vision, "patch_size", None), int) else 40
    depth = getattr(vision, "temporal_patch_size", 2)
    return {"pixel_values": torch.randn(8 * count, depth, side, side, 3, generator=generator)}


@of("granite4_vision")
def _overview_and_tiles(config: Any, count: int, generator: Generator) -> Inputs:
    side = config.vision_config.image_size
    return {
        "pixel_values": torch.randn(count, 3, 3, side, side, generator=generator),
        "image_sizes": torch.tensor([[side, 2 * side]] * count),
    }


@of("unlimited_ocr", "deepseek_ocr2")
def _sam(config: Any, count: int, generator: Generator) -> Inputs:
    return {"pixel_values": torch.randn(count, 3, 512, 512, generator=generator)}


@of("llava")
def _fixed_size(config: Any, count: int, generator: Generator) -> Inputs:
    side = config.vision_config.image_size
    return {"pixel_values": torch.randn(count, 3, side, side, generator=generator)}


@of("gemma3n", "fast_vlm")
def _timm(config: Any, count: int, generator: Generator) -> Inputs:
    return {"pixel_values": torch.randn(count, 3, 64, 64, generator=generator)}


@of("perception_lm")
def _timm_tiles(config: Any, count: int, generator: Generator) -> Inputs:
    return {"pixel_values": torch.randn(count, 1, 3, 64, 64, generator=generator)}
