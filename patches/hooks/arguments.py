"""Reading the arguments that a hooked call was given."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def by_name(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward by name; most callers name them all already."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.pop("kwargs", {}), **bound}


def carries_images(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings images or clips, encoded or not."""
    return bool(kwargs.get("mm_encoder_outputs")) or any(
        name.startswith("pixel_values") and value is not None for name, value in kwargs.items()
    )
