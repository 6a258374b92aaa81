"""What a vision encoder is like: its signals, its costs, how patches become decoder tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from vlmcompress.tokens import Grid, Layout

CLS_TOKENS = {
    "clip_vision_model": 1,
    "internvl_vision": 1,
    "llama4_vision_model": 1,
    "qianfan_ocr_vision": 1,
}
"""Kinds of towers that have tokens that are no patches -> how many."""
_NATIVE = ("pixtral",)
"""Kinds of towers that name an image size, yet take pictures of any."""
_SIDES = (
    "spatial_merge_size",
    "merge_kernel_size",
    "merge_size",
    "downsample_factor",
    "pooling_kernel_size",
    "hidden_stride",
    "scale_factor",
    "downsample_ratio",
    "pixel_shuffle_ratio",
)
"""What configurations call the patches along a side of a token, or one divided by them."""


def signals_of(*tower: str) -> frozenset[str]:
    """All signals of a family whose tower gives some: what one layer gives, others do, too."""
    layers = {f"layer_{name}" for name in tower if name in ("keys", "cls_attention")}
    return frozenset({"text", "vocabulary", "question_logits", *tower, *layers})


class Encoder:
    """What signals and costs need to know of a family's vision side. This one gives no signals."""

    signals: ClassVar[frozenset[str]] = signals_of()
    """Fields of `VisualTokens` beyond features and grid that can be collected."""
    towers: tuple[str, ...] = ("vision_tower",)
    """Vision towers in the base model; several have the same sizes."""
    projector: str = "multi_modal_projector"
    """The projector in the base model."""
    sizes: str | None = None
    """The argument of feature calls that says how large pictures are, "{}" standing for the
    modality; None where all are of one size, or nothing says it."""
    deep: str | None = None
    """Where projectors of other layers of the tower are, for DeepStack."""
    per_token: tuple[str, ...] = ()
    """Modules beside the projector that run once for each token, for costs."""
    per_patch: tuple[str, ...] = ()
    """Modules of the projector that run once for each patch, for costs."""
    across_frames: bool = False
    """Whether patches attend to those of other frames of their clip."""
    cls_place: int = 0
    """Which token of a tile is its CLS, where it has one."""
    blocks: ClassVar[bool] = False
    """Whether a token is made of a block of patches, of `merge_side` along a side."""
    watched: bool = False
    """Whether queries and keys are taken where the layers attend with them, whatever their parts
    are called; otherwise they are computed from the usual names."""

    def at(self, tower: str, projector: str, **more: Any) -> Encoder:
        """The same where a base model has these names, its layers watched.

        Args:
            tower: name of the vision tower in the base model.
            projector: name of the projector.
            more: other fields of this class.
        """
        own = copy.copy(self)
        own.towers, own.projector, own.watched = (tower,), projector, True
        vars(own).update(more)
        return own

    def gives(self, base: Any) -> frozenset[str]:
        """The signals of this model: some families come with several kinds of tower."""
        return self.signals

    def depth(self, base: Any, layers: int) -> int:
        """How many of a tower's `layers` the features go through; the last is the feature layer."""
        return layers

    def states(self, base: Any, layers: int) -> list[int]:
        """The hidden states that become the features; 0 is what enters the first layer."""
        return [layers]

    def full_attention_layers(self, base: Any, depth: int) -> Sequence[int]:
        """Layers before `depth` whose attention spans an image or frame, not a window of it."""
        return range(depth)

    def patches(self, base: Any) -> int:
        """Of how many neighbouring patches the projector makes one feature."""
        return self.merge_side(base) ** 2 if self.blocks else 1

    def grids(
        self, base: Any, modality: str, call: Mapping[str, Any]
    ) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of the tokens of each image or clip, for those with `sizes`."""
        raise NotImplementedError

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        """Values of patches as values of placeholders.

        Args:
            base: the base model.
            modality: "image" or "video".
            values: [B, n, C] as the tower takes images (CLS among the n), or [P, C] where it takes
                the patches of all images as one sequence.
            call: arguments of the feature call by name.

        Returns:
            Per layout of the family [placeholders, C]; anything at separators.
        """
        projected = self.projected(base, modality, values, call)
        pieces = self.pieces(base, modality, projected, call)
        packed = (self.packed(base, modality, p, call, n) for n, p in enumerate(pieces))
        return list(packed)

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        """Values of patches as values of what the projector makes: [B, m, C] or [M, C]."""
        raise NotImplementedError

    def pieces(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        """Those values taken apart: [m, C] or [tiles, m, C] for each layout of the family."""
        return list(values)

    def packed(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any], number: int
    ) -> Tensor:
        """The values of piece `number` as values of its placeholders [placeholders, C]."""
        return values

    def tile(self, base: Any) -> int | None:
        """Patches that a tower sees at once; None where it takes pictures of any size."""
        vision = base.config.vision_config
        if vision.model_type in _NATIVE or not hasattr(vision, "image_size"):
            return None
        (height, width), (high, wide) = _pair(vision.image_size), _pair(vision.patch_size)
        return (height // high) * (width // wide)

    def cls_tokens(self, base: Any) -> int:
        """Tokens of a tile that are no patches."""
        return CLS_TOKENS.get(base.config.vision_config.model_type, 0)

    def tiles_of(self, base: Any, layout: Layout) -> int:
        """Tiles or frames that the tower is given for an image or clip: the fewest that fit."""
        return sum(grid.t for grid in layout.parts)

    def projected_of(
        self, base: Any, layout: Layout, patches: int, tiles: int, separated: bool
    ) -> int:
        """Tokens that leave the projector, which some families make fewer of afterwards.

        Args:
            base: the base model.
            layout: of the image or clip.
            patches: of all its tiles.
            tiles: of it.
            separated: whether separators enter the decoder with it.
        """
        return len(layout)

    def merge_side(self, base: Any) -> int:
        """Patches along a side of a token, where the tower takes pictures of any size."""
        owners = (base.config.vision_config, base.config)
        named = (getattr(owner, name, None) for owner in owners for name in _SIDES)
        side = next((found for found in named if found is not None), 1)
        if isinstance(side, list | tuple):
            side = side[0]
        return round(side if side >= 1 else 1 / side)

    def compared(self, base: Any, grid: Grid, layer: int, layers: int) -> int:
        """Pairs of tokens of a grid that attention compares in one of a tower's `layers`."""
        return len(grid) ** 2 if self.across_frames else grid.t * (grid.h * grid.w) ** 2


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def block_means(values: Tensor, block: int) -> Tensor:
    """[B, n, C] on square grids -> [B, n / block**2, C], the mean of each block x block patches."""
    side = round(values.shape[1] ** 0.5)
    grid = values.view(len(values), side // block, block, side // block, block, -1)
    return grid.mean((2, 4)).flatten(1, 2)
