"""How a forward begins: its mask, its layout, and what one that brings no new image needs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmcompress.patches.hooks.arguments import cache_of
from vlmcompress.patches.hooks.unsupported import two_dimensional
from vlmcompress.patches.sequence.cache_state import CacheState, Slots, state_of
from vlmcompress.patches.sequence.stage_layout import Flow

if TYPE_CHECKING:
    from vlmcompress.patches.call.call_state import Current
    from vlmcompress.patches.engine import Engine


def masking(now: Current, mask: Any) -> Tensor | None:
    """The caller's 2-D attention mask, None where it is known to mask nothing.

    Looking waits for the device, so that only a prefill does.

    Raises:
        UnsupportedCallError: it is no 2-D mask.
    """
    mask = two_dimensional(mask)
    if mask is None:
        return None
    if now.generating and not now.own_loop:
        if now.nothing_masked is None:
            now.nothing_masked = bool(mask.all())
        return None if now.nothing_masked else mask
    return None if now.encoded and bool(mask.all()) else mask


def new_flow(engine: Engine, kwargs: dict[str, Any], past: int, columns: Slots) -> Flow:
    """The layout of a forward whose chunk has the given virtual columns."""
    mask = two_dimensional(kwargs.get("attention_mask"))
    return Flow(
        batch=len(columns.index),
        past=past,
        state=state_of(cache_of(kwargs)),
        columns=columns,
        virtual_width=kwargs["inputs_embeds"].shape[1],
        kinds=engine.kinds,
        given_masks=engine.now.given_masks,
        cache=cache_of(kwargs),
        padding=None if mask is None else mask.to(columns.index.device, torch.bool),
        rotary=functools.partial(_rotary, engine) if engine.positions == "renumber" else None,
    )


def _rotary(engine: Engine, hidden: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    module = engine.lm.get_submodule("rotary_emb")
    kinds = (kind,) if len(set(engine.kinds.names)) > 1 else ()
    embeddings: tuple[Tensor, Tensor] = module(hidden, positions, *kinds)
    return embeddings


def go_on(engine: Engine, kwargs: dict[str, Any], state: CacheState) -> dict[str, Any]:
    """The decoder's arguments that have to change, if any.

    Args:
        engine: whose flow is set where layers need other arguments than the model's own.
        kwargs: of the decoder, with the mask as `masking` gives it.
        state: of the cache.
    """
    embeds = kwargs["inputs_embeds"]
    batch, length = embeds.shape[:2]
    if kwargs["attention_mask"] is None and _passes(engine, state, length):
        engine.now.next_state = state.grown(length)
        return {}
    columns = torch.arange(length, device=embeds.device) + state.virtual
    flow = new_flow(engine, kwargs, state.virtual, Slots(columns.expand(batch, length), None))
    engine.now.flow = flow
    positions = kwargs.get("position_ids")
    if engine.positions == "renumber":
        positions = flow.renumbered(0)
    elif positions is None:
        positions = columns.expand(batch, length)
    return {"position_ids": positions, "attention_mask": flow.first_mask()}


def _passes(engine: Engine, state: CacheState, length: int) -> bool:
    """Whether the model's own arguments are right in every layer, if nothing is masked."""
    kinds, stages = engine.kinds, len(state.stages)
    if kinds.own or engine.positions == "renumber" or state.padded:
        return False
    if length > 1:
        return stages == 1 and not kinds.flash
    # One query sees every key: no mask is made, of which each stage would need its own.
    return stages == 1 or not (kinds.eager or torch.compiler.is_compiling())
