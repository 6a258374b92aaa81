"""What a method does for one prompt, on random signals of the sizes of a real VLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from dev.benchmarks.random_signals import PlainLayer, PlainTower, Widths, asked_of, tokens
from vlmcompress.errors import BudgetError
from vlmcompress.methods import (
    DecoderMethod,
    DecoderReducer,
    Method,
    ProjectorMethod,
    Reducer,
    Selector,
)
from vlmcompress.methods.contracts.before_projector import (
    EncoderMethod,
    PixelSelector,
    PixelTokens,
    Resizer,
    TokenPatches,
    TowerDropper,
)
from vlmcompress.methods.contracts.decoder import LateEntry, tokens_per_layer
from vlmcompress.ops.apportion import even
from vlmcompress.tokens import Grid, VisualTokens

TEXT, BEFORE = 40, 5
"""Words of the prompt, and how many of them stand before the picture."""

TOWER = 23
"""Layers of CLIP that the features of LLaVA-1.5 go through."""

PIXELS = 4704
"""Values of the pixels of one token of Qwen2-VL: 2 frames of 28x28 pixels of 3 colours."""

PICTURES: dict[str, tuple[Grid, ...]] = {
    "image": (Grid(1, 24, 24),),
    "tiles": (Grid(1, 24, 24),) * 5,
    "large": (Grid(1, 48, 60),),
    "clip": (Grid(20, 12, 12),),
}


@dataclass(frozen=True, eq=False)
class Model:
    """The sizes of a VLM that the cost of a choice depends on."""

    layer: type[torch.nn.Module]
    rotary: type[torch.nn.Module]
    config: PretrainedConfig
    widths: Widths
    limit: float = 0.01
    """Share of the full prefill above which a choice is marked."""


MODELS = {
    "llava-1.5-7b": Model(
        LlamaDecoderLayer,
        LlamaRotaryEmbedding,
        LlamaConfig(),
        Widths(hidden=4096, tower=1024, entering=1024, inner=4096, words=32064, question=TEXT),
    ),
    "llava-onevision-0.5b": Model(
        Qwen2DecoderLayer,
        Qwen2RotaryEmbedding,
        Qwen2Config(
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
        ),
        Widths(hidden=896, tower=1152, entering=1152, inner=896, words=151936, question=TEXT),
        limit=0.02,
    ),
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def whole(grids: Sequence[Grid]) -> Grid:
    """The grid that methods see all parts of a picture as."""
    return grids[0] if len(grids) == 1 else Grid(1, 1, sum(map(len, grids)))


def works(
    method: Method, model: Model, grids: Sequence[Grid], dtype: torch.dtype, count: int | None
) -> Callable[[], object] | None:
    """What the method does for one prompt with this picture; None where it cannot
    keep `count` (None: its default)."""
    try:
        if isinstance(method, DecoderMethod):
            return _decoder(method, plain_layer(model, tuple(grids), dtype), count)
        if isinstance(method, LateEntry):  # it chooses nothing
            layers, total = plain_layer(model, tuple(grids), dtype).depth, sum(map(len, grids))
            method.schedule(layers, total, count)
            return partial(method.schedule, layers, total, count)
        if isinstance(method, DecoderReducer) and method.acts_at == "decoder":
            return _between(method, plain_layer(model, tuple(grids), dtype), count)
        if isinstance(method, PixelSelector | Resizer) and method.acts_at == "pixels":
            return _pixels(method, grids, count)
        if isinstance(method, EncoderMethod) and method.acts_at == "encoder":
            return _tower(method, len(grids), dtype, count)
        if isinstance(method, TowerDropper):
            return _dropped(method, grids, dtype, count)
        assert isinstance(method, ProjectorMethod)
        together = (whole(grids),) if method.across_parts else tuple(grids)
        shown = [asked_of(method, part) for part in shown_tokens(model, together, dtype)]
        if method.across_parts:
            shown = [replace(shown[0], parts=tuple(grids))]
        return _projector(method, shown, count)
    except BudgetError:
        return None


def _projector(
    method: ProjectorMethod, shown: Sequence[VisualTokens], count: int | None
) -> Callable[[], object]:
    shares = _shares(count, len(shown))
    for part, share in zip(shown, shares, strict=True):
        method.keep_count(part.grid, share)

    def work() -> None:
        for part, share in zip(shown, shares, strict=True):
            kept = method.keep_count(part.grid, share)
            if isinstance(method, Reducer):
                method.reduce(part, kept)
            elif isinstance(method, Selector):
                method.select(part, kept)

    return work


def _shares(count: int | None, parts: int) -> Sequence[int | None]:
    return [None] * parts if count is None else even(count, parts).tolist()


def _decoder(method: DecoderMethod, view: PlainLayer, count: int | None) -> Callable[[], object]:
    total = len(view.grid)
    views = []
    schedule = method.schedule(view.depth, total, count)
    alive = tokens_per_layer(view.depth, total, schedule)
    for layer, kept in schedule.items():
        left = torch.linspace(0, total - 1, alive[layer - 1]).round().long()
        views.append((view.without(layer, left), kept))

    def work() -> None:
        method.schedule(view.depth, total, count)
        for before, kept in views:
            method.keep(before, kept)

    return work


def _between(method: DecoderReducer, view: PlainLayer, count: int | None) -> Callable[[], object]:
    grids, total = view.parts, len(view.grid)
    schedule = method.schedule_on(grids, view.depth, total, count)
    alive = tokens_per_layer(view.depth, total, schedule)

    def work() -> None:
        method.schedule_on(grids, view.depth, total, count)
        for layer, kept in schedule.items():
            method.merge(view.hidden[view.visual[: alive[layer - 1]]], grids, kept)

    return work


def _pixels(
    method: PixelSelector | Resizer, grids: Sequence[Grid], count: int | None
) -> Callable[[], object]:
    shares = _shares(count, len(grids))
    if isinstance(method, Resizer):
        return lambda: [method.shape(*one) for one in zip(grids, shares, strict=True)]
    generator = torch.Generator().manual_seed(0)
    shown = [PixelTokens(torch.randn(len(g), PIXELS, generator=generator), g) for g in grids]

    def work() -> None:
        for pixels, share in zip(shown, shares, strict=True):
            method.select(pixels, method.keep_count(pixels.grid, share), share is not None)

    return work


def _tower(
    method: EncoderMethod, tiles: int, dtype: torch.dtype, count: int | None
) -> Callable[[], object]:
    generator, patches = torch.Generator().manual_seed(0), 576
    keep = method.keep_count(Grid(1, 24, 24), None if count is None else max(1, count // tiles))
    schedule = method.schedule(TOWER, patches, keep)
    views = []
    for before, layer in pairwise([None, *schedule]):
        n = 1 + (patches if before is None else schedule[before])
        hidden = torch.randn(tiles, n, 1024, generator=generator).to(dtype)
        views.append((PlainTower(layer or 0, TOWER, 1, hidden, hidden[..., :64].float()), layer))

    def work() -> None:
        for view, layer in views:
            method.merge(view, schedule[layer or 0])

    return work


def _dropped(
    method: TowerDropper, grids: Sequence[Grid], dtype: torch.dtype, count: int | None
) -> Callable[[], object]:
    """Tokens of 2x2 patches as wide as those of Qwen2.5-VL."""
    generator, shares = torch.Generator().manual_seed(0), _shares(count, len(grids))
    shown = [
        TokenPatches(torch.randn(1, len(g), 4, 1280, generator=generator).to(dtype), g)
        for g in grids
    ]

    def work() -> None:
        for seen, share in zip(shown, shares, strict=True):
            method.select(seen, method.keep_count(seen.grid, share))

    return work


@cache
def shown_tokens(model: Model, grids: tuple[Grid, ...], dtype: torch.dtype) -> list[VisualTokens]:
    """All signals of the parts of a picture; all parts have the same vocabulary."""
    made = tokens(grids[0], widths=model.widths)
    words = made.vocabulary
    parts = [
        made,
        *(
            tokens(g, i, widths=replace(model.widths, words=1))
            for i, g in enumerate(grids[1:], start=1)
        ),
    ]
    return [
        replace(
            part,
            features=part.features.to(dtype),
            text=None if part.text is None else part.text.to(dtype),
            keys=None if part.keys is None else part.keys.to(dtype),
            vocabulary=None if words is None else words.to(dtype),
        )
        for part in parts
    ]


@cache
def plain_layer(model: Model, grids: tuple[Grid, ...], dtype: torch.dtype) -> PlainLayer:
    total, config = sum(map(len, grids)), model.config
    heads, cached = config.num_attention_heads, config.num_key_value_heads
    n, generator = total + TEXT, torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return PlainLayer(
        grid=whole(grids),
        parts=grids,
        layer=1,
        depth=config.num_hidden_layers,
        index=torch.arange(total),
        queries=randn(heads, n, config.hidden_size // heads).to(dtype),
        cached=randn(cached, n, config.hidden_size // heads).to(dtype),
        hidden=randn(n, config.hidden_size),
        gates=randn(n, config.intermediate_size).to(dtype),
        before=BEFORE,
    )
