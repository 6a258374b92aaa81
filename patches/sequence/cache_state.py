"""What must be remembered between forwards, and a cache that reports the unshortened length.

State belongs to the cache object: several caches, turns, beams and copies then work by themselves.
A *virtual* column is a column of the sequence as the caller sees it; a *slot* is a column of what
is really in the cache. Decoder layers form stages: every layer of a stage holds the same slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.sequence.attention_bias import TokenBias
from vlmcompress.patches.sequence.packing import join

WHOLE = -1
"""Stage of all that the decoder is given. Its first layers hold the same, unless tokens enter late:
these layers then have a stage 0."""


@dataclass(frozen=True)
class Slots:
    """The slots that the layers of one stage hold."""

    index: Tensor
    """[B, n] int64: virtual columns (of the stage `WHOLE`) or slots of that stage (of others)."""
    valid: Tensor | None
    """[B, n] bool; None where no slot is a filler."""

    def extended(self, start: int, count: int) -> Slots:
        """With `count` further slots that every row keeps, numbered from `start`."""
        if count == 0:
            return self
        index = self.index
        tail = torch.arange(start, start + count, device=index.device).expand(len(index), count)
        valid = join([(self.valid, index.shape[1]), (None, count)], len(index), index.device)
        return Slots(torch.cat([index, tail], 1), valid)

    def append(self, other: Slots, offset: int) -> Slots:
        """With the slots of a new chunk, whose numbers start at `offset`."""
        index = torch.cat([self.index, other.index + offset], 1)
        parts = [(self.valid, self.index.shape[1]), (other.valid, other.index.shape[1])]
        return Slots(index, join(parts, len(index), index.device))

    def rows(self, rows: Tensor) -> Slots:
        """The batch rows `rows`, for beams."""
        rows = rows.to(self.index.device)
        return Slots(self.index[rows], None if self.valid is None else self.valid[rows])


@dataclass(frozen=True)
class CacheState:
    """Slots per stage at the end of the last shortened chunk, and how much came after it."""

    length: int
    """Virtual length up to the end of the last shortened chunk."""
    stages: dict[int, Slots]
    """First decoder layer of the stage -> slots; ascending, `WHOLE` first."""
    tail: int = 0
    """Tokens appended since, which every stage keeps."""
    bias: TokenBias | None = None
    """What the tokens up to `length` stand for; None where each stands for itself."""

    @property
    def virtual(self) -> int:
        """Length of the sequence as the caller sees it."""
        return self.length + self.tail

    def stage(self, layer: int, tail: int) -> Slots:
        """Slots of the stage that `layer` belongs to, with `tail` appended ones."""
        first = self._first(layer)
        slots = self.stages[first]
        start = self.length if first == WHOLE else self.stages[WHOLE].index.shape[1]
        return slots.extended(start, tail)

    def has_fillers(self, layer: int) -> bool:
        """Whether any slot of the stage that `layer` belongs to is one."""
        return self.stages[self._first(layer)].valid is not None

    @property
    def padded(self) -> bool:
        """Whether any slot of any stage is a filler."""
        return any(slots.valid is not None for slots in self.stages.values())

    @property
    def is_plain(self) -> bool:
        """Whether a model that knows nothing of it can go on: all layers hold the same tokens, each
        of which stands for itself."""
        return len(self.stages) == 1 and self.bias is None and not self.padded

    def grown(self, count: int) -> CacheState:
        """With `count` tokens more, which every stage keeps."""
        return replace(self, tail=self.tail + count)

    def is_first(self, layer: int) -> bool:
        """Whether `layer` belongs to the stage whose slots are virtual columns."""
        return self._first(layer) == WHOLE

    def _first(self, layer: int) -> int:
        return max(start for start in self.stages if start <= layer)

    def rows(self, rows: Tensor) -> CacheState:
        """The same state of the batch rows `rows`, for beams."""
        stages = {layer: slots.rows(rows) for layer, slots in self.stages.items()}
        bias = None if self.bias is None else self.bias.rows(rows)
        return replace(self, stages=stages, bias=bias)


class _VirtualLength:
    """Mixed into a cache's class: lengths as the caller counts them, masks as the layers need."""

    _vlmcompress: CacheState
    _vlmcompress_open = False
    """Whether a compressed model is about to add to it."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if not (self._vlmcompress_open or self._vlmcompress.is_plain):
            raise UnsupportedCallError(
                "a compressed model filled this cache with what the bare model cannot read: call "
                "compress() again, or begin with a new cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._vlmcompress.virtual

    def get_query_offset(self, layer_idx: int = 0) -> int:
        # Of the cache: layer 0 stands for the first with keys, and may itself be one without.
        return int(super().get_seq_length(layer_idx))  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        state = self._vlmcompress
        # transformers 5.19 still takes a positive number for the length to keep.
        count = state.virtual - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if count > state.tail:
            raise UnsupportedCallError(
                f"cannot crop {count} tokens: only the {state.tail} after the shortened prompt "
                "can be removed from a compressed cache"
            )
        super().crop(-count)  # type: ignore[misc]
        self._vlmcompress = replace(state, tail=state.tail - count)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._vlmcompress = self._vlmcompress.rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._vlmcompress = self._vlmcompress.rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        size = len(self._vlmcompress.stages[WHOLE].index)
        rows = torch.arange(size).repeat_interleave(repeats)
        self._vlmcompress = self._vlmcompress.rows(rows)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.__class__ = type(self).__bases__[1]
        del self._vlmcompress
        vars(self).pop("_vlmcompress_open", None)


_classes: dict[type, type] = {}


def _virtual_class(cls: type) -> type:
    if cls not in _classes:
        _classes[cls] = type(f"Compressed{cls.__name__}", (_VirtualLength, cls), {})
    return _classes[cls]


def state_of(cache: Cache | None) -> CacheState | None:
    """The state kept on `cache`, or None for an ordinary cache."""
    return getattr(cache, "_vlmcompress", None)


def attach_state(cache: Cache, state: CacheState) -> None:
    """Keep `state` on `cache` and let it report virtual lengths from now on."""
    if not isinstance(cache, _VirtualLength):
        cache.__class__ = _virtual_class(type(cache))
    cache._vlmcompress = state  # type: ignore[attr-defined]
    cache._vlmcompress_open = False  # type: ignore[attr-defined]


def open_for_more(cache: Cache | None) -> None:
    """Let a forward that knows its state add to it, until the next state is attached."""
    if cache is not None and state_of(cache) is not None:
        cache._vlmcompress_open = True  # type: ignore[attr-defined]
