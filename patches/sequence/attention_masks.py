"""Attention masks for decoders whose layers do not all see the same tokens.

Layers with a sliding window count distances in the unshortened sequence, and some models let the
tokens of an image attend to one another. Their masks are made here, layer kind by layer kind, from
the columns that the slots stand for: what the model would build from the shortened sequence counts
distances between the kept tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.ops.gather import take_pairs
from vlmcompress.patches.hooks.unsupported import check_attention
from vlmcompress.patches.sequence.packing import join

FULL, SLIDING = "full_attention", "sliding_attention"
Given = Mapping[str, Tensor | None] | Tensor | None


@dataclass(frozen=True)
class LayerKinds:
    """What the layers of a decoder may attend to."""

    names: tuple[str, ...]
    """The kind of each layer."""
    window: int | None
    """Tokens that a sliding layer sees, its own among them."""
    masks_made_here: bool
    """Instead of by the model, which would count distances in the shortened sequence."""
    eager: bool
    """Whether the attention adds float masks; otherwise they are bool."""
    flash: bool
    """Whether it takes 2-D masks."""

    def check_cuts(self) -> None:
        """Tokens can be dropped between layers only if it is known what every layer attends to.

        Raises:
            UnsupportedModelError: some layers are of another kind.
        """
        allowed = (FULL, SLIDING) if self.masks_made_here else (FULL,)
        others = set(self.names) - set(allowed)
        if others:
            raise UnsupportedModelError(
                f"decoder-stage methods need {' or '.join(allowed)} in every layer, this model has "
                f"{', '.join(sorted(others))}: use a projector-stage method"
            )

    def window_of(self, kind: str) -> int | None:
        """The window of a kind of layer, None where it sees everything."""
        return self.window if kind == SLIDING else None

    def ranks_in(self, layer: int) -> int:
        """The nearest layer, `layer` or one before it, that sees all tokens.

        A sliding layer gives images behind its window no attention: nothing can be ranked there.
        It depends on nothing but the model, or a prompt would be ranked otherwise in a batch with
        a longer one. `layer` itself where no layer before it is full.
        """
        full = [n for n in range(layer + 1) if self.window_of(self.names[n]) is None]
        return max(full, default=layer)


def layer_kinds(lm: nn.Module, layers: int, masks_in_base: bool) -> LayerKinds:
    """Read the kinds from the configuration of a decoder.

    Args:
        lm: the decoder stack.
        layers: how many it has.
        masks_in_base: the base model makes the masks, because images attend to themselves.

    Raises:
        UnsupportedModelError: that with FlashAttention, which takes no such masks.
    """
    config: Any = lm.config
    attention = check_attention(lm)
    flash = attention.startswith("flash")
    if masks_in_base and flash:
        raise UnsupportedModelError(
            f"attention implementation {attention!r} is not supported for images that attend to "
            "themselves: use eager, sdpa"
        )
    window = getattr(config, "sliding_window", None)
    names = getattr(config, "layer_types", None) or [FULL if window is None else SLIDING] * layers
    made_here = (masks_in_base or SLIDING in names) and not flash
    return LayerKinds(tuple(names[:layers]), window, made_here, attention == "eager", flash)


@dataclass(frozen=True)
class VisibleKeys:
    """Keys of one kind of layer: columns of the unshortened sequence and which are valid."""

    columns: Tensor
    """[B, n] int64."""
    valid: Tensor | None
    """[B, n] bool, None for all."""

    def last(self, count: int) -> VisibleKeys:
        """The newest `count`, which are all that a sliding layer stores."""
        start = max(0, self.columns.shape[1] - count)
        valid = None if self.valid is None else self.valid[:, start:]
        return VisibleKeys(self.columns[:, start:], valid)

    def reached(self, row: int, queries: Tensor, window: int | None) -> Tensor:
        """[Q, n] bool: which of them later `queries` [Q] (columns) of one row of the batch see."""
        distance = queries[:, None] - self.columns[row]
        seen = torch.ones_like(distance, dtype=torch.bool) if window is None else distance < window
        return seen if self.valid is None else seen & self.valid[row]


def build(
    past: VisibleKeys,
    chunk: VisibleKeys,
    given: Tensor | None,
    start: int,
    window: int | None,
    dtype: Any,
) -> Tensor | None:
    """The mask of one kind of layer, None where plain causal attention does.

    Args:
        past: cached keys that the layer still holds.
        chunk: queries, and the keys that they bring.
        given: what the model made for the unshortened chunk, [B or 1, 1, Q0, K0] bool or float,
            whose last Q0 columns are the chunk's; None if that would be causal attention.
        start: column of the unshortened chunk's first token.
        window: of the layer, None where it reaches everything.
        dtype: of a float mask, None for bool.

    Returns:
        [B, 1, Q, P + Q].
    """
    (batch, queries), cached = chunk.columns.shape, past.columns.shape[1]
    parts = [(past.valid, cached), (chunk.valid, queries)]
    valid = join(parts, batch, chunk.columns.device)
    # A query that is alone sees everything; without a past, SDPA knows causality by itself.
    causal = dtype is None and given is None and not cached
    if valid is None and window is None and (queries == 1 or causal):
        return None
    reached = chunk.columns.new_ones(batch, queries, cached, dtype=torch.bool)
    if window is not None:
        reached = chunk.columns[:, :, None] - past.columns[:, None] < window
    allowed = torch.cat([reached, inside(chunk.columns, given, start, window)], 2)
    if valid is not None:
        allowed = allowed & valid[:, None]
    if dtype is None:
        return allowed[:, None]
    closed = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return closed.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def inside(
    columns: Tensor,
    given: Tensor | None,
    start: int,
    window: int | None,
    queries: Tensor | None = None,
) -> Tensor:
    """What the tokens of a chunk may see of their own chunk, padding aside.

    Args:
        columns: [B, Q] int64, of the unshortened sequence.
        given: as for `build`.
        start: as for `build`.
        window: as for `build`.
        queries: [R] int64 places in the chunk: only these rows; None for all.

    Returns:
        [B, Q or R, Q] bool.
    """
    order = torch.arange(columns.shape[1], device=columns.device)
    queries = order if queries is None else queries
    if given is not None:
        mask = given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2
        mask = mask[:, 0, :, -mask.shape[2] :]
        places = columns - start
        return take_pairs(mask, places[:, queries], places)
    causal = (queries[:, None] >= order).expand(len(columns), -1, -1)
    if window is None:
        return causal
    return causal & (columns[:, queries, None] - columns[:, None] < window)
