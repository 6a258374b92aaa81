"""What the layers of one forward are given at each stage instead of the model's own arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmcompress.ops.gather import take, take_all
from vlmcompress.patches.sequence.attention_masks import build, has_keys, picks_keys
from vlmcompress.patches.sequence.cache_state import WHOLE
from vlmcompress.patches.sequence.packing import cut_mask
from vlmcompress.patches.sequence.per_token import PerToken

if TYPE_CHECKING:
    from vlmcompress.patches.sequence.stage_layout import StageLayout

_CONVOLUTION = "conv_mask"
"""What some layers call the 2-D mask of a convolution beside their attention."""


class LayerArguments:
    """Made once for all layers of one kind in a stage, which take the same."""

    def __init__(self, stages: StageLayout) -> None:
        self._stages = stages
        self._made: dict[tuple[int, str, bool, bool], dict[str, Any]] = {}
        self.embeddings: dict[str, Any] = {}
        """Kind of layer -> rotary embeddings of the chunk's tokens at the current stage, as far as
        seen: cos and sin, or whatever else the model makes; None for layers without."""

    def of(self, layer: int, given: dict[str, Any], hidden: Tensor) -> dict[str, Any] | None:
        """The keyword arguments of `layer` at the current stage, or None to leave them alone."""
        kind, rotary = self._stages.kinds.names[layer], given.get("position_embeddings")
        first = layer == 0 and self._stages.bias is not None
        key = self._stages.current, kind, rotary is None, first
        if key not in self._made:
            self._made[key] = self._make(layer, given, hidden)
        made = self._made[key]
        self.embeddings[kind] = made.get("position_embeddings", rotary)
        return made or None

    def follow(self, given: dict[str, Any]) -> dict[str, Any]:
        """Further arguments of a layer, for the tokens that are left of the chunk."""
        cut = self._stages.last_cut(self._stages.current)
        return given if cut is None else self._per_token.follow(given, cut)

    @cached_property
    def _per_token(self) -> PerToken:
        return PerToken(self._stages.batch, self._stages.width, self._stages.end_of_text)

    def _make(self, layer: int, given: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        stages, kinds = self._stages, self._stages.kinds
        stage = stages.current
        if kinds.flash and hidden.shape[1] > 1 and given.get("position_ids") is not None:
            # FlashAttention reads gaps in position ids as borders between packed sequences.
            steps = torch.arange(hidden.shape[1], device=hidden.device)
            inputs["position_ids"] = steps.expand(len(hidden), -1)
        if kinds.masks_made_here:
            inputs["attention_mask"] = self._own_mask(layer, given, hidden)
        whole = stage == 0 and stages.last_cut(0) is None
        if not whole and _CONVOLUTION in given:
            inputs[_CONVOLUTION] = self._padding(hidden)
        if whole:  # the model made masks and rotary for just these slots
            return inputs
        mask = given.get("attention_mask")
        if not kinds.masks_made_here and (mask is not None or stages.has_fillers(stage)):
            keys, rows = stages.keys(stage), stages.rows(stage)
            inputs["attention_mask"] = cut_mask(
                mask, rows.index, keys.index, keys.valid, stages.past_width(WHOLE), kinds.flash
            )
        return inputs | self._rotary(layer, given.get("position_embeddings"), hidden)

    def _rotary(self, layer: int, given: Any, hidden: Tensor) -> dict[str, Any]:
        stages = self._stages
        stage, cut = stages.current, stages.last_cut(stages.current)
        if given is None:
            return {}
        if stages.rotary is not None:
            kind = stages.kinds.names[layer]
            return {"position_embeddings": stages.rotary(hidden, stages.renumbered(stage), kind)}
        return {} if cut is None else {"position_embeddings": _kept(given, cut.index)}

    def _own_mask(self, layer: int, given: Mapping[str, Any], hidden: Tensor) -> Tensor | None:
        stages, kinds = self._stages, self._stages.kinds
        kind, end = kinds.names[layer], stages.past + stages.virtual_width
        if not has_keys(kind):
            return self._padding(hidden)
        picks, own = picks_keys(kind), given.get("attention_mask")
        if picks and isinstance(own, Tensor) and own.dim() == 2:
            found = self._padding(hidden)
            return hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if found is None else found
        reach = kinds.reach_of(kind)
        # A window that is wider than the whole sequence is none: plain causal attention is faster.
        masks, bias = stages.given_masks, stages.bias
        past, chunk = stages.past_seen(layer), stages.chunk_seen()
        mask = build(
            stages.counted(kind, past),
            stages.counted(kind, chunk),
            masks.get(kind) if isinstance(masks, Mapping) else masks,
            stages.past,
            reach if reach is not None and reach.size < end else None,
            hidden.dtype if kinds.eager or bias is not None else None,
            always=picks or bias is not None,
            both_ways=kinds.both_ways,
        )
        if bias is None or mask is None:
            return mask
        columns = torch.cat([past.columns, chunk.columns], dim=1)
        added = bias.of(layer, kind, columns, stages.rows(stages.current).index)
        return mask + added.to(mask.device, mask.dtype)

    def _padding(self, hidden: Tensor) -> Tensor | None:
        """[B, Q] bool: which slots are tokens; None where all are, as in a decode step."""
        return None if hidden.shape[1] == 1 else self._stages.open()


def _kept(rotary: Any, index: Tensor) -> Any:
    """Rotary embeddings of the kept tokens, a pair or one complex tensor."""
    if not isinstance(rotary, Tensor):
        return tuple(take_all(rotary, index))
    if rotary.is_complex():
        return torch.view_as_complex(take(torch.view_as_real(rotary), index))
    return take(rotary, index)
