"""Reading the arguments that a hooked call was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers.cache_utils import Cache

CACHE_NAMES = ("cache", "past_key_values")
"""What releases of transformers call the KV cache, as an argument and as a field of outputs."""


def by_name(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward by name; most callers name them all already."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.pop("kwargs", {}), **bound}


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
    """The KV caches that a forward returned, as a tuple or under whichever name."""
    if isinstance(output, tuple):
        return [part for part in output if isinstance(part, Cache)]
    fields = (vars(output).get(name) for name in CACHE_NAMES)
    return [part for part in fields if isinstance(part, Cache)]


def carries_images(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings images or clips, encoded or not."""
    return bool(kwargs.get("mm_encoder_outputs")) or any(
        name.startswith("pixel_values") and value is not None for name, value in kwargs.items()
    )
