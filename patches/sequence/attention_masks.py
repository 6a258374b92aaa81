"""Attention masks for decoders whose layers do not all see the same tokens.

Layers with a sliding window count distances in the unshortened sequence, and some models let the
tokens of an image attend to one another. Their masks are made here, layer kind by layer kind, from
the columns that the slots stand for: what the model would build from the shortened sequence counts
distances between the kept tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.ops.gather import take_pairs
from vlmcompress.patches.hooks.arguments import cache_name
from vlmcompress.patches.hooks.unsupported import check_attention
from vlmcompress.patches.sequence.packing import join

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_INDEXED = "indexed_attention"
_HYBRID = "hybrid"
_LIKE = {FULL: FULL, SLIDING: SLIDING, CHUNKED: CHUNKED, _INDEXED: FULL}
_LIKE |= {_HYBRID: FULL, f"{_HYBRID}_sliding": SLIDING}
"""Kinds of layers with keys -> what they may attend to. Indexed ones pick keys by themselves out of
those that their mask shows; hybrid ones have a convolution beside their attention."""
_REFERENCE = "reference_sliding_attention"
"""Sees all of the prompt and a window of what was written since: right whatever the prompt lost."""
_WITHOUT_KEYS = ("linear_attention", "conv", "mamba", "mlp", "moe")
"""Kinds of layers that carry a state along, or treat each token by itself. Their masks are 2-D."""
Given = Mapping[str, Tensor | None] | Tensor | None


@dataclass(frozen=True)
class Reach:
    """How far back a layer sees that does not see everything."""

    size: int
    """Tokens of a window, which ends with the token that looks, or of a chunk."""
    chunks: bool = False
    """Whether the sequence is cut into chunks, each of which sees only itself."""
    both_ways: bool = False
    """Whether a window reaches as far forward, too."""

    def sees(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether tokens at columns `queries` see earlier ones at `keys`, which broadcast."""
        if self.chunks:
            return queries // self.size == keys // self.size
        distance = queries - keys
        return (distance.abs() if self.both_ways else distance) < self.size


@dataclass(frozen=True)
class LayerKinds:
    """What the layers of a decoder may attend to."""

    names: tuple[str, ...]
    """The kind of each layer, as its configuration calls it."""
    reaches: Mapping[str, Reach]
    """Of the kinds that do not see everything."""
    masks_made_here: bool
    """Instead of by the model, which would count distances in the shortened sequence."""
    eager: bool
    """Whether the attention adds float masks; otherwise they are bool."""
    flash: bool
    """Whether it takes 2-D masks."""
    both_ways: bool = False
    """Whether tokens see those after them: an encoder, which has no cache."""

    def check_cuts(self) -> None:
        """Tokens can be dropped between layers only if masks can be made for every layer.

        Raises:
            UnsupportedModelError: some layers take others than this attention implementation has.
        """
        others = set(self.names) - {FULL}
        if others and not self.masks_made_here:
            raise UnsupportedModelError(
                f"decoder-stage methods cannot make the masks of {', '.join(sorted(others))} with "
                "this attention implementation: use a projector-stage method, eager or sdpa"
            )

    def reach_of(self, kind: str) -> Reach | None:
        """How far a kind of layer sees back, None where it sees everything."""
        return self.reaches.get(kind)

    def ranks_in(self, layer: int) -> int:
        """The nearest layer, `layer` or one before it, that sees all tokens.

        A sliding layer gives images behind its window no attention: nothing can be ranked there.
        It depends on nothing but the model, or a prompt would be ranked otherwise in a batch with
        a longer one. Where no layer before it is full, the nearest that attends to tokens at all;
        `layer` itself where there is none.
        """
        return self._ranks[layer]

    @cached_property
    def _ranks(self) -> tuple[int, ...]:
        """Of each layer; asked for several times at every layer of a prefill."""
        found, full, attends = [], -1, -1
        for number, name in enumerate(self.names):
            attends = number if has_keys(name) else attends
            full = number if attends == number and self.reach_of(name) is None else full
            near = full if full >= 0 else attends
            found.append(near if near >= 0 else number)
        return tuple(found)

    @property
    def needs_padding(self) -> bool:
        """Whether some layers make use of a 2-D mask, beside those made here for others."""
        return any(name in _WITHOUT_KEYS or name.startswith(_HYBRID) for name in self.names)


def has_keys(kind: str) -> bool:
    """Whether a kind of layer attends to tokens."""
    return kind not in _WITHOUT_KEYS


def picks_keys(kind: str) -> bool:
    """Whether a kind of layer wants to be shown a mask in every forward, to pick from it."""
    return kind == _INDEXED


def layer_kinds(lm: nn.Module, layers: int, masks_in_base: bool) -> LayerKinds:
    """Read the kinds from the configuration of a decoder.

    Args:
        lm: the decoder stack.
        layers: how many it has.
        masks_in_base: the base model makes the masks, because images attend to themselves.

    Raises:
        UnsupportedModelError: that with FlashAttention, which takes no such masks, or a kind of
            layer that is not known: what it may attend to would be guessed.
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
    names = tuple(names[:layers])
    known = (*_LIKE, *_WITHOUT_KEYS, _REFERENCE)
    unknown = set(names) - set(known)
    if unknown:
        raise UnsupportedModelError(
            f"{type(lm).__name__} has layers of a kind that is not known: "
            f"{', '.join(sorted(unknown))}; known are {', '.join(known)}"
        )
    if flash and CHUNKED in names:
        raise UnsupportedModelError(
            f"attention implementation {attention!r} is not supported with {CHUNKED}: use eager, "
            "sdpa"
        )
    made_here = (masks_in_base or bool(set(names) - {FULL, _REFERENCE})) and not flash
    chunk = getattr(config, "attention_chunk_size", None)
    both_ways = cache_name(lm.forward) is None
    sliding = None
    if window:  # what reaches both ways includes its end
        sliding = Reach(window + both_ways, both_ways=both_ways)
    reaches = {
        **{name: sliding for name in names if _LIKE.get(name) == SLIDING and sliding},
        **{name: Reach(chunk, chunks=True) for name in names if name == CHUNKED and chunk},
    }
    return LayerKinds(names, reaches, made_here, attention == "eager", flash, both_ways)


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

    def counted_from(self, first: Tensor) -> VisibleKeys:
        """The same with columns counted from `first` [B, 1]."""
        return VisibleKeys(self.columns - first, self.valid)

    def reached(self, row: int, queries: Tensor, reach: Reach | None) -> Tensor:
        """[Q, n] bool: which of them later `queries` [Q] (columns) of one row of the batch see."""
        own = self.columns[row]
        if reach is None:
            seen = torch.ones(len(queries), len(own), dtype=torch.bool, device=own.device)
        else:
            seen = reach.sees(queries[:, None], own)
        return seen if self.valid is None else seen & self.valid[row]


def build(
    past: VisibleKeys,
    chunk: VisibleKeys,
    given: Tensor | None,
    start: int,
    reach: Reach | None,
    dtype: Any,
    always: bool = False,
    both_ways: bool = False,
) -> Tensor | None:
    """The mask of one kind of layer, None where plain attention does.

    Args:
        past: cached keys that the layer still holds.
        chunk: queries, and the keys that they bring.
        given: what the model made for the unshortened chunk, [B or 1, 1, Q0, K0] bool or float,
            whose last Q0 columns are the chunk's; None if that would be causal attention.
        start: column of the unshortened chunk's first token.
        reach: of the layer, None where it reaches everything.
        dtype: of a float mask, None for bool.
        always: make one also where plain attention does.
        both_ways: plain attention is not causal.

    Returns:
        [B, 1, Q, P + Q].
    """
    (batch, queries), cached = chunk.columns.shape, past.columns.shape[1]
    parts = [(past.valid, cached), (chunk.valid, queries)]
    valid = join(parts, batch, chunk.columns.device)
    # A query that is alone sees everything; without a past, SDPA knows causality by itself.
    causal = dtype is None and given is None and not cached
    if valid is None and reach is None and (queries == 1 or causal) and not always:
        return None
    reached = chunk.columns.new_ones(batch, queries, cached, dtype=torch.bool)
    if reach is not None:
        reached = reach.sees(chunk.columns[:, :, None], past.columns[:, None])
    allowed = torch.cat(
        [reached, inside(chunk.columns, given, start, reach, both_ways=both_ways)], 2
    )
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
    reach: Reach | None,
    queries: Tensor | None = None,
    both_ways: bool = False,
) -> Tensor:
    """What the tokens of a chunk may see of their own chunk, padding aside.

    Args:
        columns: [B, Q] int64, of the unshortened sequence.
        given: as for `build`.
        start: as for `build`.
        reach: as for `build`.
        queries: [R] int64 places in the chunk: only these rows; None for all.
        both_ways: as for `build`.

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
    causal = ((queries[:, None] >= order) | both_ways).expand(len(columns), -1, -1)
    if reach is None:
        return causal
    return causal & reach.sees(columns[:, queries, None], columns[:, None])
