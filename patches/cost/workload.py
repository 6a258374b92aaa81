"""What a call computes, for `vlmcompress.flops`: from plans before it ran, or from its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmcompress.errors import VLMCompressError
from vlmcompress.flops.exact import Load
from vlmcompress.methods.composition.pipeline import ImagePlan, Upstream
from vlmcompress.methods.contracts.before_projector import EncoderMethod, PixelSelector, Resizer
from vlmcompress.methods.contracts.method import tokens_per_layer
from vlmcompress.patches.cost.model_shape import shape_of
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.families.vision_encoders import TileEncoder, TwoTowerEncoder
from vlmcompress.report.report import ImageReport
from vlmcompress.tokens import Grid, Layout

__all__ = ["Image", "load_of", "shape_of"]

_WITH_CLS = ("clip_vision_model", "internvl_vision")
"""Kinds of towers whose tiles have one token that is no patch."""
Image = tuple[int, Layout | Grid, ImagePlan | None]
"""Row of the batch, layout, and what is kept of it; None for all tokens."""


def load_of(
    model: nn.Module,
    images: Sequence[Image | ImageReport],
    text: Sequence[int],
    upstream: Upstream | None = None,
    tiles: Sequence[int] | None = None,
) -> Load:
    """What a call computes, from plans before it ran or from reports afterwards.

    Exact but for what only the run decides: a plan's separators are taken to stay as long as there
    are as many tokens, a `PixelSelector` to leave the same share of every frame and window, and an
    `EncoderMethod` the same share of padding as of the picture.

    Args:
        model: of a supported family.
        images: in the order of the prompts.
        text: per row of the batch, its tokens that are no placeholders of pictures.
        upstream: the method of the pipeline that acts before the projector, where there is one.
        tiles: per image, pieces that the vision tower encodes, where the model cuts images into
            tiles and joins them again; None for the fewest that the layout fits in.

    Raises:
        UnsupportedModelError: no family serves the model.
        VLMCompressError: an image is of a row without text, or tiles are not given for each.
    """
    tower = _Tower.of(model)
    if tiles is not None and len(tiles) != len(images):
        raise VLMCompressError(f"{len(images)} images but tiles of {len(tiles)}")
    layers = len(tower.family.layers(tower.base))
    rows = [[count] * layers for count in text]
    works = []
    for number, image in enumerate(images):
        seen = _Seen.of(image, layers)
        if not 0 <= seen.row < len(rows):
            raise VLMCompressError(f"an image of row {seen.row}, but text of {len(rows)} rows")
        works.append(tower.work(seen, upstream, None if tiles is None else tiles[number]))
        parts = (rows[seen.row], seen.visual, seen.separators)
        rows[seen.row] = [sum(counts) for counts in zip(*parts, strict=True)]
    return Load(
        encoder=tuple(tokens for work in works for tokens in work.tokens),
        projected=sum(work.projected for work in works),
        rows=tuple(map(tuple, rows)),
        patches=sum(work.patches for work in works),
        pairs=tuple(pairs for work in works for pairs in work.pairs),
    )


@dataclass(frozen=True)
class _Seen:
    """What plans and reports say of an image."""

    row: int
    layout: Layout
    given: int
    """Tokens that a method before the projector leaves."""
    visual: Sequence[int]
    separators: Sequence[int]
    """Both of each decoder layer."""

    @classmethod
    def of(cls, image: Image | ImageReport, layers: int) -> _Seen:
        if isinstance(image, ImageReport):
            parts = Layout.of(*(Grid(*part) for part in image.parts))
            return cls(image.row, parts, image.given, image.per_layer, image.separators)
        row, layout, plan = image
        whole = Layout.of(layout) if isinstance(layout, Grid) else layout
        visual = [len(whole)] * layers if plan is None else plan.per_layer
        separators = [min(len(whole.separators), count) for count in visual]
        return cls(row, whole, len(whole) if plan is None else plan.given, visual, separators)


@dataclass(frozen=True)
class _Work:
    """What one image or clip costs before the decoder, as fields of `Load`."""

    tokens: list[tuple[int, ...]]
    pairs: list[tuple[float, ...]]
    patches: int
    projected: int


@dataclass(frozen=True)
class _Tower:
    """The vision side of one model."""

    family: Family
    base: nn.Module
    config: Any
    layers: int
    tile: int | None
    """Patches that the tower sees at once; None where it takes pictures of any size."""
    cls: int
    """Tokens of a tile that are no patches."""

    @classmethod
    def of(cls, model: nn.Module) -> _Tower:
        """From configurations alone: budgets ask again and again, and modules take long to walk."""
        family = family_of(model)
        base: Any = family.base(model)
        vision, tile = base.config.vision_config, None
        if vision.model_type != "pixtral" and hasattr(vision, "image_size"):
            (height, width), (high, wide) = _pair(vision.image_size), _pair(vision.patch_size)
            tile = (height // high) * (width // wide)
        layers = getattr(vision, "num_hidden_layers", None) or vision.depth
        return cls(family, base, base.config, layers, tile, int(vision.model_type in _WITH_CLS))

    def work(self, seen: _Seen, upstream: Upstream | None, tiles: int | None) -> _Work:
        """Of one image or clip."""
        if self.tile is None:
            return self._native(seen, upstream)
        pieces = self._pieces(seen.layout) if tiles is None else tiles
        counts = [self.tile] * self.layers
        if isinstance(upstream, EncoderMethod):
            depth = self.family.encoder.depth(self.base, self.layers)
            keep = round(self.tile * seen.given / len(seen.layout))
            leaving = upstream.schedule(depth, self.tile, keep)
            entering = {layer + 1: count for layer, count in leaving.items()}
            # What comes behind the feature layer runs on all patches again.
            counts[:depth] = tokens_per_layer(depth, self.tile, entering)
        tokens = tuple(count + self.cls for count in counts)
        return _Work(
            tokens=[tokens] * pieces,
            pairs=[tuple(n * n for n in tokens)] * pieces,
            patches=self.tile * pieces,
            projected=self._projected(seen, pieces * self.tile, pieces),
        )

    def _pieces(self, layout: Layout) -> int:
        """Tiles or frames that the tower is given."""
        if not (isinstance(self.family.encoder, TileEncoder) and len(layout.parts) > 1):
            return sum(grid.t for grid in layout.parts)
        side, grid = layout.parts[0].h, layout.parts[1]
        size = self.config.vision_config.image_size
        shapes = [(h // size, w // size) for h, w in self.config.image_grid_pinpoints]
        fitting = [h * w for h, w in shapes if h * side >= grid.h and w * side >= grid.w]
        return 1 + int(min(fitting))

    def _projected(self, seen: _Seen, patches: int, pieces: int) -> int:
        """Tokens that leave the projector, which some families make fewer of afterwards."""
        encoder, layout = self.family.encoder, seen.layout
        if isinstance(encoder, TwoTowerEncoder):
            return patches + self.cls * pieces * any(seen.separators)  # CLS of frames
        pools = hasattr(self.config, "spatial_pool_stride") and len(layout.parts) == 1
        return patches if isinstance(encoder, TileEncoder) and not pools else len(layout)

    def _native(self, seen: _Seen, upstream: Upstream | None) -> _Work:
        """Of a picture whose patches go through the tower at its own size."""
        grid, side = seen.layout.grid, self._merge()
        if isinstance(upstream, Resizer):
            grid = upstream.shape(grid, seen.given)
        left = seen.given if isinstance(upstream, PixelSelector) else len(grid)
        share = left / len(grid)
        pairs = [self._pairs(grid, layer) * side**4 * share**2 for layer in range(self.layers)]
        return _Work(
            tokens=[(left * side**2,) * self.layers],
            pairs=[tuple(pairs)],
            patches=len(grid) * side**2,
            projected=left,
        )

    def _merge(self) -> int:
        """Patches along a side of a token."""
        vision, default = self.config.vision_config, getattr(self.config, "spatial_merge_size", 1)
        return int(getattr(vision, "spatial_merge_size", default))

    def _pairs(self, grid: Grid, layer: int) -> int:
        """Pairs of tokens that a layer compares: within a frame or within its windows."""
        if layer in self.family.encoder.whole(self.base, self.layers):
            return grid.t * (grid.h * grid.w) ** 2
        vision = self.config.vision_config
        size: int = vision.window_size // vision.spatial_merge_size // vision.patch_size

        def squares(length: int) -> int:
            return length // size * size**2 + (length % size) ** 2

        return grid.t * squares(grid.h) * squares(grid.w)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
