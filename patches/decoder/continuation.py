"""How a forward begins: its mask, its layout, and what one that brings no new image needs."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.hooks.arguments import cache_of
from vlmcompress.patches.hooks.unsupported import two_dimensional
from vlmcompress.patches.sequence.attention_bias import check_made_here
from vlmcompress.patches.sequence.attention_masks import LayerKinds
from vlmcompress.patches.sequence.cache_state import CacheState, Slots, state_of
from vlmcompress.patches.sequence.host_chunk import HostChunk
from vlmcompress.patches.sequence.stage_layout import StageLayout


def looked_at(now: CallState, kwargs: dict[str, Any]) -> tuple[dict[str, Any], HostChunk | None]:
    """The decoder's arguments, without a mask that is known to mask nothing.

    Looking waits for the device, so that only a prefill does.

    Returns:
        The arguments, and what a prefill with images looks at; None for other forwards.

    Raises:
        UnsupportedCallError: the mask is no 2-D mask, or images come without ids.
    """
    mask = two_dimensional(kwargs.get("attention_mask"))
    chunk = None
    if now.encoded:
        chunk = HostChunk.of((now.call or {}).get("input_ids"), mask)
    return {**kwargs, "attention_mask": _masking(now, mask, chunk)}, chunk


def _masking(now: CallState, mask: Tensor | None, chunk: HostChunk | None) -> Tensor | None:
    if mask is None:
        return None
    seen = mask if chunk is None or chunk.mask is None else chunk.mask
    if now.generating and not now.own_loop:
        if now.nothing_masked is None:
            now.nothing_masked = bool(seen.all())
        return None if now.nothing_masked else mask
    return None if chunk is not None and bool(seen.all()) else mask


def lay_out(installed: Installed, kwargs: dict[str, Any], past: int, columns: Slots) -> StageLayout:
    """The layout of a forward whose chunk has the given virtual columns."""
    mask = two_dimensional(kwargs.get("attention_mask"))
    config: Any = installed.lm.config
    ends = getattr(config, "eos_token_id", None)
    state = state_of(cache_of(kwargs))
    return StageLayout(
        batch=len(columns.index),
        past=past,
        state=state,
        bias=None if state is None else state.bias,
        columns=columns,
        virtual_width=kwargs["inputs_embeds"].shape[1],
        kinds=_kinds(installed, state),
        given_masks=installed.now.given_masks,
        cache=cache_of(kwargs),
        padding=None if mask is None else mask.to(columns.index.device, torch.bool),
        end_of_text=ends[0] if isinstance(ends, list) else ends,
        rotary=functools.partial(_rotary, installed) if installed.positions == "renumber" else None,
    )


def _kinds(installed: Installed, state: CacheState | None) -> LayerKinds:
    """Of the layers, on a cache that a method of another `compress` may have filled.

    Raises:
        UnsupportedModelError: what that method left needs masks that cannot be made any more.
    """
    kinds = installed.kinds
    if state is None or kinds.masks_made_here or (state.bias is None and 0 not in state.stages):
        return kinds
    check_made_here(installed.lm, kinds, "what the cache holds needs attention masks of its own")
    return replace(kinds, masks_made_here=True)


def _rotary(
    installed: Installed, hidden: Tensor, positions: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    module = installed.lm.get_submodule("rotary_emb")
    kinds = (kind,) if len(set(installed.kinds.names)) > 1 else ()
    embeddings: tuple[Tensor, Tensor] = module(hidden, positions, *kinds)
    return embeddings


def go_on(installed: Installed, kwargs: dict[str, Any], state: CacheState) -> dict[str, Any]:
    """The decoder's arguments that have to change, if any.

    Args:
        installed: whose `now.stages` is set where layers need other arguments than the model's own.
        kwargs: of the decoder, as `looked_at` gives them.
        state: of the cache.
    """
    embeds = kwargs["inputs_embeds"]
    batch, length = embeds.shape[:2]
    if kwargs["attention_mask"] is None and _passes(installed, state, length):
        installed.now.next_state = state.grown(length)
        return {}
    columns = torch.arange(length, device=embeds.device) + state.virtual
    stages = lay_out(installed, kwargs, state.virtual, Slots(columns.expand(batch, length), None))
    installed.now.stages = stages
    positions = kwargs.get("position_ids")
    if installed.positions == "renumber":
        positions = stages.renumbered(0)
    elif positions is None:
        positions = columns.expand(batch, length)
    return {"position_ids": positions, "attention_mask": stages.first_mask()}


def _passes(installed: Installed, state: CacheState, length: int) -> bool:
    """Whether the model's own arguments are right in every layer, if nothing is masked."""
    kinds, count = _kinds(installed, state), len(state.stages)
    if kinds.masks_made_here or installed.positions == "renumber" or state.padded:
        return False
    if length > 1:
        return count == 1 and not kinds.flash
    # One query sees every key: no mask is made, of which each stage would need its own.
    return count == 1 or not (kinds.eager or torch.compiler.is_compiling())
