"""What a call computes up to its first token, and what each token after it costs: exact FLOPs.

2 per multiply-add; matrices, attention and patch embeddings, not what is elementwise (norms,
activations, softmax, rotary embedding, adding DeepStack features). `patches.cost` reads a
`ModelShape` from a model and a `Load` from plans; how papers count is in `paper_conventions`.
Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vlmcompress.errors import VLMCompressError


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer. Whatever its MLP and heads look like, these numbers are its cost."""

    weights: int
    """Multiply-adds of one token with all matrices it meets: of experts only the active ones."""
    width: float
    """All query heads together: heads * head_dim, half that of queries and half that of values
    where they differ; 0 for layers that do not attend."""
    cached: int = 0
    """Keys and values that one token leaves in the cache: 2 * kv_heads * head_dim."""
    window: int | None = None
    """Tokens that a query sees, its own among them; None for all before it."""
    chunked: bool = False
    """Whether windows are chunks of the sequence, each of which sees only itself."""
    block: tuple[int, int] = (1, 0)
    """Tokens of a block that a linear attention works on at once, and multiply-adds of each begun
    one."""

    def pairs(self, tokens: int, causal: bool = True) -> int:
        """Pairs of query and key in a prefill of so many tokens."""
        if not causal:
            return tokens * tokens
        full = min(tokens, self.window or tokens)
        if self.chunked and full:
            whole, rest = divmod(tokens, full)
            return whole * (full * (full + 1) // 2) + rest * (rest + 1) // 2
        return full * (full + 1) // 2 + (tokens - full) * full

    def flops(self, tokens: float, pairs: float) -> float:
        """FLOPs of so many tokens, among which attention compares so many pairs."""
        return 2 * (self.weights * tokens + 2 * self.width * pairs)

    def seen(self, before: int) -> int:
        """Tokens that a token behind so many sees, itself among them."""
        if self.window is None:
            return before + 1
        return before % self.window + 1 if self.chunked else min(before + 1, self.window)

    def blocks(self, tokens: int) -> int:
        """FLOPs of the blocks of a prefill."""
        size, macs = self.block
        return 2 * macs * -(-tokens // size)

    def kept(self, tokens: int) -> int:
        """Tokens that a cache holds after so many: a sliding layer forgets what no later query
        sees."""
        return tokens if self.window is None else min(tokens, self.window - 1)


@dataclass(frozen=True)
class ModelShape:
    """The sizes that cost depends on."""

    embedding: int
    """Multiply-adds of the embedding of one patch."""
    encoder: tuple[LayerShape, ...]
    """All layers of the vision tower that run, those behind the feature layer among them."""
    projector: int
    """Multiply-adds of one token that leaves the projector, with all its matrices (mergers too)."""
    decoder: tuple[LayerShape, ...]
    lm_head: int
    """Multiply-adds of the logits of one position."""
    entry: int = 0
    """Multiply-adds of one token that enters the decoder, with matrices beside its layers."""
    all_logits: bool = False
    """Whether a forward gives the logits of every position, not only of the last."""
    pooler: tuple[int, int] = (0, 0)
    """Multiply-adds of an attention pooling head behind the tower, per token (merged tokens are put
    back before it) and per image."""
    value_bytes: int = 2
    """Bytes of one cached number."""


@dataclass(frozen=True)
class Load:
    """What a call computes up to its first token."""

    encoder: tuple[tuple[int, ...], ...]
    """Per encoded image, tile or clip: tokens that each ViT layer computes, CLS among them."""
    projected: float
    """Tokens that leave the projector, all images together; of several projectors that see
    different numbers the mean, weighted by their cost."""
    rows: tuple[tuple[int, ...], ...]
    """Per row of the batch: tokens that enter each decoder layer: text, visual and separators."""
    selection: float = 0.0
    """FLOPs of the selection itself, as the caller knows them."""
    patches: int | None = None
    """Patches that are embedded; None for all tokens of the first ViT layer."""
    pairs: tuple[tuple[float, ...], ...] | None = None
    """Pairs of query and key in each ViT layer, as `encoder`; None where all tokens of an entry
    attend to one another. Frames and windows make them fewer."""

    @property
    def padded(self) -> Load:
        """The load with all rows padded to the longest."""
        longest = tuple(max(layer) for layer in zip(*self.rows, strict=True))
        return replace(self, rows=(longest,) * len(self.rows))


@dataclass(frozen=True)
class Costs:
    """FLOPs up to the first token, 2 per multiply-add, by where they are spent."""

    encoder: float
    """Vision tower with patch embedding."""
    projector: float
    selection: float
    prefill: tuple[float, ...]
    """FLOPs of each decoder layer."""
    lm_head: float
    """One position per row, or all where the model cannot do with fewer."""
    kv_bytes: int
    """Bytes of the keys and values that the prefill leaves in the cache. The states of layers that
    carry one along are beside them, of one size whatever the prompt."""
    entry: float = 0.0
    """Matrices of the decoder beside its layers."""

    @property
    def total(self) -> float:
        """All FLOPs up to the first token."""
        parts = self.encoder + self.projector + self.selection + self.entry + self.lm_head
        return parts + sum(self.prefill)


def first_token(shape: ModelShape, load: Load, causal: bool = True) -> Costs:
    """FLOPs of encoding the pictures, of the prefill and of the logits of its last position.

    Args:
        shape: of the model.
        load: what it computes.
        causal: count the pairs of query and key that the mask of a decoder layer allows, which is
            what FlashAttention and SDPA without a mask compute. False counts all n^2, which is what
            eager attention and SDPA with a mask compute (padded batches, Gemma 3).

    Raises:
        VLMCompressError: counts are negative or not one per layer.
    """
    _check("ViT", shape.encoder, load.encoder)
    _check("decoder", shape.decoder, load.rows)
    pairs = [[n * n for n in image] for image in load.encoder] if load.pairs is None else load.pairs
    _check("ViT", shape.encoder, pairs)
    if len(pairs) != len(load.encoder):
        raise VLMCompressError(f"{len(load.encoder)} images but pairs of {len(pairs)}")
    tokens = sum(image[0] for image in load.encoder)
    patches = tokens if load.patches is None else load.patches
    _check_counts([load.projected, patches, load.selection])
    layers = (
        layer.flops(*counts)
        for image, compared in zip(load.encoder, pairs, strict=True)
        for layer, *counts in zip(shape.encoder, image, compared, strict=True)
    )
    per_token, per_image = shape.pooler
    around = (shape.embedding + per_token) * patches + per_image * len(load.encoder)
    left = sum(row[-1] for row in load.rows)
    by_layer = list(zip(shape.decoder, zip(*load.rows, strict=True), strict=False))
    held = sum(layer.cached * layer.kept(n) for layer, counts in by_layer for n in counts)
    return Costs(
        encoder=2 * around + sum(layers),
        projector=2 * shape.projector * load.projected,
        selection=load.selection,
        prefill=tuple(
            sum(layer.flops(n, layer.pairs(n, causal)) + layer.blocks(n) for n in counts)
            for layer, counts in by_layer
        ),
        lm_head=2 * shape.lm_head * (left if shape.all_logits else len(load.rows)),
        kv_bytes=shape.value_bytes * held,
        entry=2 * shape.entry * sum(map(max, load.rows)),
    )


def decode_step(shape: ModelShape, cached: Sequence[Sequence[int]]) -> float:
    """FLOPs of one further token in each row, logits included.

    Args:
        shape: of the model.
        cached: per row, tokens before the new one in each layer. Of a sliding layer all that have
            entered it: the window is applied here.

    Raises:
        VLMCompressError: counts are negative or not one per layer.
    """
    _check("decoder", shape.decoder, cached)
    layers = (
        layer.flops(1, layer.seen(n))
        for row in cached
        for layer, n in zip(shape.decoder, row, strict=True)
    )
    return sum(layers) + 2 * (shape.lm_head + shape.entry) * len(cached)


def _check(name: str, layers: Sequence[LayerShape], rows: Iterable[Sequence[float]]) -> None:
    for counts in rows:
        if len(counts) != len(layers):
            raise VLMCompressError(
                f"{len(layers)} {name} layers need as many counts, got {len(counts)}"
            )
        _check_counts(counts)


def _check_counts(counts: Iterable[float]) -> None:
    for count in counts:
        if not (math.isfinite(count) and count >= 0):
            raise VLMCompressError(f"a count must be 0 or more, got {count}")
