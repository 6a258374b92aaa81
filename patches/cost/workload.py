"""What a call computes, for `vlmcompress.flops`: from plans before it ran, or from its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmcompress.errors import VLMCompressError
from vlmcompress.flops.exact import Load
from vlmcompress.methods.composition.pipeline import Upstream
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.before_projector import (
    EncoderMethod,
    PixelSelector,
    Resizer,
    TowerDropper,
)
from vlmcompress.methods.contracts.decoder import tokens_per_layer
from vlmcompress.patches.cost.layer_shapes import macs
from vlmcompress.patches.cost.model_shape import shape_of
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.report.report import ImageReport
from vlmcompress.tokens import Grid, Layout

__all__ = ["Image", "load_of", "shape_of"]

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
    are as many tokens, a `PixelSelector` or `TowerDropper` to leave the same share of every frame
    and window, and an `EncoderMethod` of every window, and of padding as of the picture.

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
    parts = ModelParts.of(model)
    tower = _Tower.of(parts.family, parts.base)
    if tiles is not None and len(tiles) != len(images):
        raise VLMCompressError(f"{len(images)} images but tiles of {len(tiles)}")
    layers = len(parts.layers)
    rows = [[count] * layers for count in text]
    works = []
    for number, image in enumerate(images):
        use = _ImageUse.of(image, layers)
        if not 0 <= use.row < len(rows):
            raise VLMCompressError(f"an image of row {use.row}, but text of {len(rows)} rows")
        works.append(tower.work(use, upstream, None if tiles is None else tiles[number]))
        counts = zip(rows[use.row], use.visual, use.separators, strict=True)
        rows[use.row] = [sum(tokens) for tokens in counts]
    return Load(
        encoder=tuple(tokens for work in works for tokens in work.tokens),
        projected=sum(work.projected for work in works),
        rows=tuple(map(tuple, rows)),
        patches=sum(work.patches for work in works),
        pairs=tuple(pairs for work in works for pairs in work.pairs),
    )


@dataclass(frozen=True)
class _ImageUse:
    """What plans and reports say of an image."""

    row: int
    layout: Layout
    given: int
    """Tokens that a method before the projector leaves."""
    visual: Sequence[int]
    separators: Sequence[int]
    """Both of each decoder layer."""

    @classmethod
    def of(cls, image: Image | ImageReport, layers: int) -> _ImageUse:
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
    projected: float


@dataclass(frozen=True)
class _Tower:
    """The vision side of one model, as its configuration describes it.

    Budgets ask again and again, and walking modules takes long.
    """

    encoder: Encoder
    base: nn.Module
    layers: int
    tile: int | None
    """Patches that the tower sees at once; None where it takes pictures of any size."""
    cls: int
    """Tokens of a tile that are no patches."""
    taps: tuple[tuple[int, float], ...]
    """Layers whose outputs DeepStack projects, too, and the part of all projectors that does it."""

    @classmethod
    def of(cls, family: Family, base: Any) -> _Tower:
        vision, encoder = base.config.vision_config, family.encoder
        layers = getattr(vision, "num_hidden_layers", None) or vision.depth
        tile, cls_tokens = encoder.tile(base), encoder.cls_tokens(base)
        return cls(encoder, base, layers, tile, cls_tokens, _taps(family, base))

    def work(self, image: _ImageUse, upstream: Upstream | None, tiles: int | None) -> _Work:
        """Of one image or clip."""
        if self.tile is None:
            return self._native(image, upstream)
        count = self.encoder.tiles_of(self.base, image.layout) if tiles is None else tiles
        entering = [self.tile] * self.layers
        depth, block = self.encoder.depth(self.base, self.layers), self.encoder.patches(self.base)
        units = self.tile // block
        keep = round(units * image.given / len(image.layout))
        if isinstance(upstream, EncoderMethod):
            # What comes behind the feature layer runs on all patches again.
            merging = _merging(upstream, depth, units, keep)
            entering[:depth] = [tokens * block for tokens in merging[:depth]]
        if isinstance(upstream, TowerDropper) and upstream.shortens:
            first = upstream.before(depth)
            entering[first:depth] = [keep * block] * (depth - first)
        tokens = tuple(patches + self.cls for patches in entering)
        patches, separated = self.tile * count, any(image.separators)
        return _Work(
            tokens=[tokens] * count,
            pairs=[tuple(n * n for n in tokens)] * count,
            patches=patches,
            projected=self.encoder.projected_of(self.base, image.layout, patches, count, separated),
        )

    def _native(self, image: _ImageUse, upstream: Upstream | None) -> _Work:
        """Of a picture whose patches go through the tower at its own size."""
        grid, block = image.layout.grid, self.encoder.merge_side(self.base) ** 2
        if isinstance(upstream, Resizer):
            grid = upstream.shape(grid, image.given)
        whole, first = len(grid), 0
        drops = isinstance(upstream, PixelSelector)
        if isinstance(upstream, TowerDropper):
            first, drops = upstream.before(self.layers), upstream.shortens
        kept = image.given if drops else whole
        counts = [whole if layer < first else kept for layer in range(self.layers)]
        leaving = counts
        if isinstance(upstream, EncoderMethod):
            frame = grid.h * grid.w
            merging = _merging(upstream, self.layers, frame, round(image.given / grid.t))
            *counts, kept = (tokens * grid.t for tokens in merging)
            leaving = [*counts[1:], kept]
        pairs = [
            self.encoder.compared(self.base, grid, layer, self.layers)
            * (count / whole * block) ** 2
            for layer, count in enumerate(counts)
        ]
        return _Work(
            tokens=[tuple(count * block for count in counts)],
            pairs=[tuple(pairs)],
            patches=whole * block,
            projected=kept + sum(share * (leaving[layer] - kept) for layer, share in self.taps),
        )


def _merging(method: EncoderMethod, depth: int, tokens: int, keep: int) -> list[int]:
    """Tokens that enter each of `depth` layers of a tower, and those that leave the last."""
    leaving = method.schedule(depth, tokens, keep)
    shorter = {layer + 1: count for layer, count in leaving.items()}
    return tokens_per_layer(depth + 1, tokens, shorter)


def _taps(family: Family, base: Any) -> tuple[tuple[int, float], ...]:
    """See `_Tower.taps`: DeepStack has a merger for each, listed behind the last one."""
    if family.encoder.deep is None:
        return ()
    layers = base.config.vision_config.deepstack_visual_indexes
    costs = [macs(projector) for projector in family.projectors(base)]
    last = costs[len(costs) - len(layers) :]
    return tuple((int(layer), cost / sum(costs)) for layer, cost in zip(layers, last, strict=True))
