"""Pictures as pixels cut up by the processors of Qwen, and a tower that does not see some of them.

A subject has a `model`, a `modality`, and the `frames` of its clips in steps of the tower.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.vision_utils import get_vision_window_index

from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers


def cut(frames: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of patches of frames [F, C, H, W], one after the other."""
    p, m, deep = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    rows = [
        frames[t : t + deep, :, y : y + p, x : x + p].transpose(0, 1).flatten()
        for t in range(0, len(frames), deep)
        for top in range(0, frames.shape[2], p * m)
        for left in range(0, frames.shape[3], p * m)
        for y in range(top, top + p * m, p)
        for x in range(left, left + p * m, p)
    ]
    return torch.stack(rows)


def pictures(subject: Any, sizes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], Any]:
    """Frames of random pictures of so many tokens, and the inputs of the feature call."""
    config, g = subject.model.config.vision_config, torch.Generator().manual_seed(0)
    side, deep = config.patch_size * config.spatial_merge_size, config.temporal_patch_size
    frames = [
        torch.randn(subject.frames * deep, 3, h * side, w * side, generator=g) for h, w in sizes
    ]
    return frames, given(subject, frames)


def given(subject: Any, frames: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    config = subject.model.config.vision_config
    name = "pixel_values" if subject.modality == "image" else "pixel_values_videos"
    p, deep = config.patch_size, config.temporal_patch_size
    grids = [[len(f) // deep, f.shape[2] // p, f.shape[3] // p] for f in frames]
    rows = torch.cat([cut(f, config) for f in frames])
    return {name: rows, f"{subject.modality}_grid_thw": torch.tensor(grids)}


def encode(subject: Any, inputs: dict[str, torch.Tensor]) -> Any:
    base: Any = ModelParts.of(subject.model).base
    call = base.get_video_features if subject.modality == "video" else base.get_image_features
    with torch.no_grad():
        return call(**inputs)


def every_feature(output: Any) -> list[list[torch.Tensor]]:
    """Of each picture: what the projector made, and what DeepStack adds."""
    stacked = getattr(output, "deepstack_features", None) or []
    return [list(output.pooler_output), *map(list, stacked)]


def all_but(kept: Sequence[torch.Tensor], totals: Sequence[int]) -> torch.Tensor:
    """[sum of totals] bool: what is dropped where of each picture the places `kept` stay."""
    dropped = [torch.ones(total, dtype=torch.bool) for total in totals]
    for mine, places in zip(dropped, kept, strict=True):
        mine[places] = False
    return torch.cat(dropped)


def check_kept(
    found: Sequence[Sequence[torch.Tensor]],
    expected: Sequence[Sequence[torch.Tensor]],
    kept: Sequence[torch.Tensor],
    zeros: Callable[[int], bool] = lambda stack: True,
) -> None:
    """Features of `every_feature` are as expected at the places `kept`, and zeros at the others.

    Args:
        found: of a compressed model.
        expected: of a masked tower.
        kept: places of each picture.
        zeros: whether that is so of the projector's features (0), and of each of DeepStack (1 ...).
    """
    for stack, (mine, other) in enumerate(zip(found, expected, strict=True)):
        for number, places in enumerate(kept):
            assert (mine[number][places] - other[number][places]).abs().max() < 1e-4
            if zeros(stack):
                assert not mine[number][all_but([places], [len(mine[number])])].any()


def masked(
    subject: Any, inputs: Any, dropped: torch.Tensor, monkeypatch: Any, first: int = 0
) -> Any:
    """The bare tower under eager attention, keys of dropped blocks closed from layer `first` on."""
    (visual,) = ModelParts.of(subject.model).towers
    config = subject.model.config.vision_config
    unit = config.spatial_merge_size**2
    grids = inputs[f"{subject.modality}_grid_thw"]
    if hasattr(config, "fullatt_block_indexes"):
        window = get_vision_window_index(
            grids, config.spatial_merge_size, config.window_size, config.patch_size
        )[0]
        dropped = dropped[window]
    closed = dropped.repeat_interleave(unit)
    attentions = [attention for _, attention in attention_layers(visual)]
    module = sys.modules[type(attentions[0]).__module__]
    original, done = module.eager_attention_forward, {}

    def spy(owner: Any, q: Any, k: Any, v: Any, attention_mask: Any, **kwargs: Any) -> Any:
        start = done.get(owner, 0)
        done[owner] = start + k.shape[2]
        mask = torch.zeros(1, 1, 1, k.shape[2])
        if attentions.index(owner) < first:
            return original(owner, q, k, v, mask, **kwargs)
        mask = mask.masked_fill(closed[start : done[owner]], torch.finfo(torch.float32).min)
        return original(owner, q, k, v, mask, **kwargs)

    subject.model.set_attn_implementation("eager")
    with monkeypatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", spy)
        output = encode(subject, inputs)
    subject.model.set_attn_implementation("sdpa")
    assert all(end == len(closed) for end in done.values())
    return output
