"""The layout of one forward: which slots each stage of decoder layers computes and attends to.

A *stage* is a run of decoder layers between two cuts: all its layers hold the same tokens. Dropping
tokens before layers 2 and 5 makes three, also for a later forward that continues on that cache.

A *slot* is a column of what is really computed, a *virtual column* one of the sequence as the
caller sees it. Rows that keep fewer tokens than the longest are padded on the left with *fillers*.
A filler repeats a real token of its row, so that all that is computed for it is finite; masks keep
others from attending to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.gather import take, take_all
from vlmcompress.patches.sequence.attention_bias import TokenBias
from vlmcompress.patches.sequence.attention_masks import Given, LayerKinds, VisibleKeys
from vlmcompress.patches.sequence.cache_state import WHOLE, CacheState, Slots
from vlmcompress.patches.sequence.earlier_inputs import EarlierInputs
from vlmcompress.patches.sequence.late_entry import LateEntry
from vlmcompress.patches.sequence.layer_arguments import LayerArguments
from vlmcompress.patches.sequence.packing import both, pack, slot_of
from vlmcompress.patches.sequence.separators import close
from vlmcompress.patches.sequence.spans import Span

Rotary = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]


@dataclass
class StageLayout:
    """One forward of the decoder on a chunk of new tokens after `past` cached ones."""

    batch: int
    past: int
    """Virtual length of what the cache holds."""
    state: CacheState | None
    columns: Slots
    """Virtual columns of the chunk's slots at the first stage."""
    virtual_width: int
    """Length of the chunk as the caller sees it."""
    kinds: LayerKinds
    given_masks: Given = None
    """Masks that the base model made for the unshortened chunk, for each kind of layer."""
    cache: Cache | None = None
    padding: Tensor | None = None
    """[B, past + chunk] bool over virtual columns: the caller's attention mask."""
    rotary: Rotary | None = None
    """Computes (cos, sin) of a kind of layer from hidden states and positions, to renumber."""
    end_of_text: int | None = None
    """A token id that separates texts."""
    bias: TokenBias | None = None
    """What is added to attention logits."""
    counts: list[int] = field(default_factory=list)
    """Valid chunk tokens of each row at the current stage."""
    spans: list[Span] = field(default_factory=list)
    text: list[Tensor] = field(default_factory=list)
    """Per row: slots, at the current stage, of the text after the last visual token."""
    last: Tensor | None = None
    """[B] slot, at the current stage, of the last prompt token."""
    generated: int = 0
    """Tokens at the end of the chunk that are not part of the prompt."""
    cuts: tuple[int, ...] = ()
    """Layers before which tokens are dropped, or enter."""
    checks: Checks = field(default_factory=Checks)
    """Of what the method gave there, due when the layers are done."""
    current: int = 0
    """The layer at which the running stage began; not always the last cut, for a stage also begins
    where an *earlier* turn cut: from there on the cache holds fewer keys, though this forward drops
    nothing. `last_cut` says what of the chunk is kept, `current` whose keys and masks are right."""
    fired: Tensor | None = None
    """[B, Q, I]: what the neurons of the layer before a cut gave, where the method watches them."""
    entered: Tensor | None = None
    """[B, Q, D]: what entered the layer before a cut."""
    _rows: dict[int, Slots] = field(default_factory=dict)

    @cached_property
    def leaves_layers_alone(self) -> bool:
        """Whether the model's own arguments are right for every layer, as in most decode steps."""
        stages = 1 if self.state is None else len(self.state.stages)
        changed = self.cuts or stages > 1 or self.rotary is not None
        return not (changed or self.kinds.masks_made_here or self.kinds.flash)

    def starts_stage(self, layer: int) -> bool:
        """Whether a stage begins at `layer`, of this forward or of an earlier turn."""
        return layer in self.cuts or (self.state is not None and layer in self.state.stages)

    @property
    def width(self) -> int:
        """Slots of the chunk at the first stage."""
        return self.columns.index.shape[1]

    def _past_slots(self, layer: int) -> Slots:
        if self.state is not None:
            return self.state.stage(layer, self.state.tail)
        columns = torch.arange(self.past, device=self.columns.index.device)
        return Slots(columns.expand(self.batch, self.past), None)

    def past_valid(self, layer: int) -> Tensor | None:
        """[B, past slots of `layer`] bool: cached keys that may be attended to."""
        valid = self._past_slots(layer).valid
        if self.padding is None:
            return valid
        return both(take(self.padding, self._past_columns(layer)), valid)

    def _past_columns(self, layer: int) -> Tensor:
        """[B, past slots of `layer`] int64: their virtual columns."""
        index = self._past_slots(layer).index
        if self.state is None or self.state.is_first(layer):
            return index
        return take(self._past_slots(WHOLE).index, index)

    def rows(self, layer: int) -> Slots:
        """Slots of the chunk that enter `layer`, numbered as at the first stage."""
        cut = self.last_cut(layer)
        if cut is not None:
            return cut
        columns = torch.arange(self.width, device=self.columns.index.device)
        return Slots(columns.expand(self.batch, self.width), self.columns.valid)

    def last_cut(self, layer: int) -> Slots | None:
        """What the last cut of this forward at or before `layer` left of the chunk."""
        starts = [start for start in self._rows if start <= layer]
        return self._rows[max(starts)] if starts else None

    def keys(self, layer: int) -> Slots:
        """Slots that `layer` attends to: cached ones, then the chunk's."""
        past = self._past_slots(layer)
        # The whole numbers its slots by virtual columns, stages of layers by slots of the whole.
        if layer == WHOLE:
            return past.append(self.columns, 0)
        width = self.past_width(WHOLE)
        if self.state is not None and self.state.is_first(layer):  # earlier turns did not cut here
            whole = torch.arange(width, device=past.index.device)
            past = Slots(whole.expand_as(past.index), past.valid)
        return past.append(self.rows(layer), width)

    def first_mask(self) -> Tensor | None:
        """[B, slots] bool: the 2-D mask of the first stage, None when nothing is masked.

        None as well where every layer gets a mask of its own.
        """
        if self.kinds.masks_made_here and not self.kinds.needs_padding:
            return None
        if self.padding is None and not self.has_fillers(WHOLE):
            return None
        keys = self.keys(WHOLE)
        if self.padding is None:
            return keys.valid
        return both(take(self.padding, keys.index), keys.valid)

    def has_fillers(self, layer: int) -> bool:
        """Whether any slot of `layer` is one; a decode step without must not compute anything."""
        past = self.state is not None and self.state.has_fillers(layer)
        chunk = self.last_cut(layer) or self.columns
        return past or chunk.valid is not None

    @cached_property
    def arguments(self) -> LayerArguments:
        """What its layers are given."""
        return LayerArguments(self)

    def start_stage(self, layer: int) -> None:
        """From `layer` on, other tokens take part."""
        self.current = layer
        self.arguments.embeddings = {}

    def past_seen(self, layer: int) -> VisibleKeys:
        """The cached keys that `layer` still holds."""
        past = self._past_columns(layer)
        # A sliding layer throws old keys away by itself, so it may hold fewer than were ever kept.
        held = past.shape[1]
        if self.cache is not None and layer < len(self.cache.layers):
            keys = getattr(self.cache.layers[layer], "keys", None)
            held = held if keys is None else min(held, keys.shape[-2])
        return VisibleKeys(past, self.past_valid(layer)).last(held)

    def chunk_seen(self) -> VisibleKeys:
        """The chunk's tokens at the current stage."""
        rows = self.rows(self.current)
        return VisibleKeys(take(self.columns.index, rows.index), self._open(rows))

    def counted(self, kind: str, seen: VisibleKeys) -> VisibleKeys:
        """The same with columns as a kind of layer counts them: chunks begin with the text."""
        reach = self.kinds.reach_of(kind)
        if reach is None or not reach.chunks or self.padding is None:
            return seen
        return seen.counted_from((self.padding.cumsum(1) == 0).sum(1, keepdim=True))

    def renumbered(self, layer: int) -> Tensor:
        """[B, Q] int64: positions of the chunk at `layer`, counted without gaps."""
        rows = self.rows(layer)
        valid = self._open(rows)
        steps = torch.ones_like(rows.index) if valid is None else valid.long()
        past_valid = self.past_valid(layer)
        if past_valid is None:
            before = torch.full_like(steps[:, :1], self.past_width(layer))
        else:
            before = past_valid.sum(1, keepdim=True)
        return (before + steps.cumsum(1) - 1).clamp_min(0)

    def cut(self, layer: int, kept: list[Tensor], hidden: Tensor) -> Tensor:
        """Drop tokens of the spans before `layer`; gives hidden states [B, Q', D] of the others.

        Args:
            layer: the first layer without them.
            kept: per span, ascending places [count] among its surviving tokens.
            hidden: [B, Q, D] at the current stage.
        """
        rows = self.rows(self.current)
        opened = self._open(rows)
        keep = torch.ones_like(rows.index, dtype=torch.bool) if opened is None else opened.clone()
        closings = [
            span.closing(keep, places) for span, places in zip(self.spans, kept, strict=True)
        ]
        for span, (closed, left) in zip(self.spans, close(closings, self.checks), strict=True):
            self.counts[span.row] -= closed
            span.separators = left
        size = max(self.counts)
        index, valid = pack(keep, size, ragged=min(self.counts) < size)
        hidden, entered = take_all([hidden, rows.index], index)
        self._rows[layer] = Slots(entered, valid)
        self.move(slot_of(keep, size), kept)
        self.earlier.cut(layer, index)
        self.fired = self.entered = None  # they are of slots that have moved
        for span in self.spans:
            span.trace.cuts[layer] = span.index
            span.trace.separators[layer] = len(span.separators)
        return hidden

    @property
    def placeholders(self) -> int:
        """Those of the chunk at the current stage that are not masked."""
        return sum(len(span.index) + len(span.separators) for span in self.spans)

    def open(self) -> Tensor | None:
        """[B, Q] bool: slots of the chunk at the current stage that are tokens; None for all."""
        return self._open(self.rows(self.current))

    @cached_property
    def earlier(self) -> EarlierInputs:
        """What has entered layers in which a later cut ranks."""
        return EarlierInputs(self.kinds, () if 0 in self.cuts else self.cuts)

    @cached_property
    def late(self) -> LateEntry:
        """Tokens that enter after the first layer; `cuts` then has layer 0 and those they enter."""
        return LateEntry(self)

    def enter(self, layer: int, rows: Slots) -> None:
        """The slots `rows` of the chunk, numbered as at the first stage, enter `layer`."""
        self._rows[layer] = rows

    def _open(self, rows: Slots) -> Tensor | None:
        if self.padding is None:
            return rows.valid
        chunk = take(self.padding, take(self.columns.index, rows.index))
        return both(chunk, rows.valid)

    def past_width(self, layer: int) -> int:
        """Slots that the cache of `layer` holds before this forward."""
        return self._past_slots(layer).index.shape[1]

    def move(self, slot: Tensor, kept: list[Tensor]) -> None:
        """Renumber spans and text rows after `slot` [B, Q] gave every old slot its new one."""
        for span, places in zip(self.spans, kept, strict=True):
            span.move(slot[span.row], places)
        self.text = [slot[row, slots] for row, slots in enumerate(self.text)]
        if self.last is not None:
            self.last = slot.gather(1, self.last[:, None])[:, 0]

    def next_state(self) -> CacheState:
        """What the cache must remember after this forward."""
        if not self.spans and self.state is not None:  # nothing dropped: all stages grow alike
            return self.state.grown(self.width)
        prompt = {}
        for start in sorted({WHOLE, *self._rows, *(self.state.stages if self.state else ())}):
            slots = self.keys(start)
            end = slots.index.shape[1] - self.generated
            valid = None if slots.valid is None else slots.valid[:, :end]
            prompt[start] = Slots(slots.index[:, :end], valid)
        length = self.past + self.virtual_width - self.generated
        bias = None if self.bias is None else self.bias.until(length)
        return CacheState(length, prompt, self.generated, bias)
