"""Calls that cannot work on a shortened sequence, refused before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.patches.hooks.arguments import cache_of, setting_of

_OTHERWISE = (
    "a compressed model needs the default dynamic cache; vlmcompress.shorten(model, inputs, ...) "
    "gives what generate() takes with any"
)
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def check_attention(lm: nn.Module) -> str:
    """The attention implementation of the language model.

    Raises:
        UnsupportedModelError: it is one whose masks the engine cannot shorten.
    """
    config: Any = lm.config
    found = str(config._attn_implementation)
    if found not in _ATTENTION:
        raise UnsupportedModelError(
            f"attention implementation {found!r} is not supported; use {', '.join(_ATTENTION)}"
        )
    return found


def unreached(name: str) -> UnsupportedCallError:
    """For a feature call that ran past the hooks of a method, as compiled code does."""
    return UnsupportedCallError(
        f"{name} could not reach into the vision tower: call compress() before torch.compile()"
    )


def check_generate(model: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuse what `generate` would do with a cache of fixed size or in pieces.

    Raises:
        UnsupportedCallError: static cache, or chunked prefill.
    """
    implementation = setting_of(model, kwargs, "cache_implementation")
    if implementation is not None and "static" in implementation:
        raise UnsupportedCallError(
            f"cache_implementation={implementation!r} has a fixed length: {_OTHERWISE}"
        )
    if setting_of(model, kwargs, "prefill_chunk_size") is not None:
        raise UnsupportedCallError("prefill_chunk_size is not supported on a compressed model")
    _check_cache(cache_of(kwargs))


def check_forward(model: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuse calls in coordinates of the full prompt, and training.

    Raises:
        UnsupportedCallError: labels, a tensor of `logits_to_keep`, training mode, a static cache.
    """
    if model.training:
        raise UnsupportedCallError("a compressed model only infers: call model.eval() first")
    if kwargs.get("labels") is not None:
        raise UnsupportedCallError(
            "labels refer to the full prompt, but the logits of a compressed model are shortened"
        )
    if isinstance(kwargs.get("logits_to_keep"), torch.Tensor):
        raise UnsupportedCallError(
            "logits_to_keep as a tensor refers to the full prompt: give a number"
        )
    _check_cache(cache_of(kwargs))


def check_modalities(name: str, known: Collection[str], call: Mapping[str, Any]) -> None:
    """Refuse clips on a family whose clips the engine does not know: they would stay whole.

    Raises:
        UnsupportedCallError: the call brings what is not among the `known` modalities.
    """
    brought = set(call.get("mm_encoder_outputs") or ())
    if call.get("pixel_values_videos") is not None:
        brought.add("video")
    if brought - set(known):
        raise UnsupportedCallError(
            f"{name} models are supported with {', '.join(known)} only, "
            f"this call brings {', '.join(sorted(brought))}"
        )


def two_dimensional(mask: Any) -> torch.Tensor | None:
    """`mask` if it is [batch, tokens] or None.

    Raises:
        UnsupportedCallError: it is anything else, such as a prepared 4-D mask.
    """
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
        raise UnsupportedCallError(
            "a compressed model needs a 2-D attention_mask (batch, tokens) or none"
        )
    return mask


def _check_cache(cache: Any) -> None:
    if cache is not None and getattr(cache, "is_compileable", False):
        raise UnsupportedCallError(f"{type(cache).__name__} has a fixed length: {_OTHERWISE}")
