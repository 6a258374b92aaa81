"""Reading the arguments that a hooked call was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers.cache_utils import Cache

CACHE_NAMES = ("cache", "past_key_values")
"""What releases of transformers call the KV cache, as an argument and as a field of outputs."""

_ON_HOST: Any = WeakIdKeyDictionary()


def on_host(values: Any) -> Any:
    """A tensor as lists, for which the device is waited for once while it stays as it is."""
    if not isinstance(values, Tensor):
        return values
    if values.device.type == "cpu" or values.is_inference():
        return values.tolist()
    known = _ON_HOST.get(values)
    if known is None or known[0] != values._version:
        known = _ON_HOST[values] = values._version, values.tolist()
    return known[1]


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module computes; accelerate knows it for weights that rest elsewhere."""
    placed = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if placed is not None:
        return torch.device(placed)
    weights = (weight.device for weight in module.parameters() if not weight.is_meta)
    return next(weights, otherwise)


def by_name(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward by name; most callers name them all already."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.pop("kwargs", {}), **bound}


def hidden_of(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The hidden states that a layer or its attention is given: its first argument."""
    return args[0] if args else kwargs["hidden_states"]


def with_hidden(args: Any, kwargs: dict[str, Any], hidden: Any) -> tuple[Any, dict[str, Any]]:
    """The same arguments with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def hidden_in(output: Any) -> Any:
    """The hidden states among what a layer gave: that, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden_in(output: Any, hidden: Any) -> Any:
    """The same output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def named_after_first(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a layer by name, but the first, its hidden states."""
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a call, under whichever name; None where there is none.

    Callers may use the name of an older release, which the forward itself takes for the new one.
    """
    given = (arguments.get(name) for name in CACHE_NAMES)
    return next((cache for cache in given if cache is not None), None)


def cache_name(forward: Callable[..., Any]) -> str | None:
    """What a forward calls its KV cache; None where it takes none."""
    known = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in known), None)


def caches_in(output: Any) -> list[Cache]:
    """The KV caches that a forward returned, as a tuple or under whichever name.

    None of a forward that failed, which gave nothing.
    """
    # Not getattr: newer outputs answer to the older name, too, with a warning.
    fields = getattr(output, "__dict__", {})
    parts = output if isinstance(output, tuple) else map(fields.get, CACHE_NAMES)
    return [part for part in parts if isinstance(part, Cache)]


def carries_images(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings images or clips, encoded or not."""
    return bool(kwargs.get("mm_encoder_outputs")) or any(
        name.startswith("pixel_values") and value is not None for name, value in kwargs.items()
    )


def setting_of(model: nn.Module, kwargs: Mapping[str, Any], name: str) -> Any:
    """What `generate`, called with `kwargs`, goes by; None where nobody says it."""
    config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
    value = kwargs.get(name)
    return getattr(config, name, None) if value is None else value


def repeated(
    model: nn.Module, kwargs: Mapping[str, Any], ids: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Ids and mask [B, ...] of prompts as `generate`, called with `kwargs`, gives them to the
    model: once for each beam or answer."""
    names = ("num_beams", "num_return_sequences")
    copies = max(setting_of(model, kwargs, name) or 1 for name in names)
    if copies == 1:
        return ids, mask
    rows = None if mask is None else mask.repeat_interleave(copies, 0)
    return ids.repeat_interleave(copies, 0), rows
